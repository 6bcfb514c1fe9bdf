"""Real English prose that every machine with Python has: its help topics and its standard library's docstrings.

A document is the prose of one topic, or of one docstring, cleaned: paragraphs reflowed; code, doctests, tables,
grammar and signatures dropped. Docstrings are read from source files with `ast`; no module is imported for its text.
No sentence occurs in two sources, so the splits share neither a source nor a sentence.

Text differs between Python versions: `content_hash` names what was read, and enters the identity of what is made of it.
Left out: the standard library's tests, and whatever a distribution does not ship.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from research.errors import ConfigurationError

# Share of the sources in each split. The embedded model's pretraining reads `train` alone.
SPLITS = {"train": 0.5, "cotrain": 0.25, "heldout": 0.25}

_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "idle_test",
        "lib-dynload",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    }
    | {"ensurepip", "turtledemo"}
)
_ABBREVIATIONS = frozenset(
    ["al", "approx", "cf", "dr", "e.g", "eg", "etc", "fig", "i.e", "ie", "incl", "mr", "mrs", "ms", "no", "resp", "sec"]
)
_SENTENCE_END = re.compile(r"([.!?])([\"')\]]*)\s+(?=[\"'(\[]?[A-Z0-9])")
_TYPOGRAPHIC = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\N{NO-BREAK SPACE}": " "}
)
_BULLET = re.compile(r"^\s*(?:[*\-•]|\(?\d{1,2}[.)])\s+")
_CODE = re.compile(r">>>|::=|->|==|!=|:=|\w\(\w*=|[{}<>|\\@#$^~]|__{2,}|\.\.\s|https?:|www\.|\w=\w|\+=|\s=\s|;\s*$")


@dataclass(frozen=True)
class Document:
    """source: `topic:NAME` or `module:NAME`, the unit of a split. sentences: in paragraphs, in reading order."""

    source: str
    paragraphs: tuple[tuple[str, ...], ...]

    @property
    def sentences(self) -> list[str]:
        return [sentence for paragraph in self.paragraphs for sentence in paragraph]

    @property
    def text(self) -> str:
        """Sentences joined by spaces, paragraphs by blank lines."""
        return "\n\n".join(" ".join(paragraph) for paragraph in self.paragraphs)


@functools.cache
def documents(split: str | None = None, min_sentences: int = 2) -> tuple[Document, ...]:
    """The prose of a split (None: all of it), ordered by source; raises ConfigurationError for an unknown split."""
    if split is not None and split not in SPLITS:
        raise ConfigurationError(f"there is no prose split {split!r}: choose from {', '.join(SPLITS)}")
    return tuple(
        document
        for document in _all_documents()
        if (split is None or split_of(document.source) == split) and len(document.sentences) >= min_sentences
    )


def split_of(source: str) -> str:
    """The split a source belongs to: a stable function of its name alone."""
    position = int.from_bytes(hashlib.sha256(f"prose split {source}".encode()).digest()[:8], "big") / 2**64
    for split, share in SPLITS.items():
        if position < share:
            return split
        position -= share
    return next(reversed(SPLITS))


def content_hash(split: str | None = None) -> str:
    """sha256 of everything `documents(split)` returns, sources and sentence bounds included."""
    digest = hashlib.sha256()
    for document in documents(split):
        digest.update(f"{document.source}\n{document.paragraphs!r}\n".encode())
    return digest.hexdigest()


def sentences_of(text: str) -> list[str]:
    """Split running English text into sentences; abbreviations, initials and decimals do not end one."""
    found, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        last_word = text[start : match.start()].split()[-1:]
        if match[1] == "." and last_word and _is_abbreviation(last_word[0]):
            continue
        found.append(text[start : match.end(2)].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def paragraphs_of(text: str) -> list[str]:
    """The reflowed prose paragraphs of a docstring or help topic, in order."""
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", inspect.cleandoc(text)) if block.strip()]
    paragraphs = []
    for block in blocks:
        for item in _items(block):
            paragraph = _plain(" ".join(item.split()))
            if _is_prose(paragraph):
                paragraphs.append(paragraph)
    return paragraphs


@functools.cache
def _all_documents() -> tuple[Document, ...]:
    """Every document; a paragraph that repeats a sentence of another source is dropped; short texts come first."""
    owner: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    kept = []
    for source, text in sorted((*_topics(), *_docstrings()), key=lambda pair: (len(pair[1]), pair)):
        paragraphs = []
        for paragraph in paragraphs_of(text):
            sentences = tuple(sentences_of(paragraph))
            if (source, paragraph) in seen or any(owner.get(_key(s), source) != source for s in sentences):
                continue
            seen.add((source, paragraph))
            owner.update({_key(sentence): source for sentence in sentences})
            paragraphs.append(sentences)
        if paragraphs:
            kept.append(Document(source, tuple(paragraphs)))
    return tuple(sorted(kept, key=lambda document: (document.source, document.paragraphs)))


def _topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics  # data only: importing it does nothing else
    except ImportError as error:
        raise ConfigurationError(
            "this Python has no pydoc_data, from which the embedded prose is read: install the full standard library"
        ) from error
    for name, text in topics.items():
        yield f"topic:{name.lower()}", text


def _docstrings() -> Iterator[tuple[str, str]]:
    """(`module:NAME`, docstring) with the top-level module's name: a package is one source."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(_source_files(library)):
        relative = path.relative_to(library)
        source = f"module:{relative.parts[0].removesuffix('.py').lstrip('_').lower()}"
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue  # the library ships files that are templates for other versions
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield source, text


def _source_files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name not in _SKIPPED_FOLDERS and not entry.name.startswith("config-"):
                yield from _source_files(entry)
        elif entry.suffix == ".py":
            yield entry


def _items(block: list[str]) -> Iterator[str]:
    """The running text of a block: itself, the body under a term it defines, or its bullets one by one."""
    block = textwrap.dedent("\n".join(block).expandtabs()).splitlines()
    if any(not line.strip("=-*+|~^ ") for line in block):
        return  # a heading's underline, or a table
    if _BULLET.match(block[0]):
        item: list[str] = []
        for line in block:
            if _BULLET.match(line):
                yield " ".join(item)
                item = [_BULLET.sub("", line)]
            else:
                item.append(line)
        yield " ".join(item)
        return
    if len(block) > 1 and block[1].startswith(" "):
        block = textwrap.dedent("\n".join(block[1:])).splitlines()
    if not any(line.startswith(" ") for line in block):
        yield " ".join(block)


def _plain(text: str) -> str:
    """Text without reStructuredText marks and typographic characters."""
    text = text.translate(_TYPOGRAPHIC)
    text = re.sub(r"(?<=[a-z])- (?=[a-z])", "-", text)  # a compound broken over two lines
    text = re.sub(r":[a-z:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`", r"\1", text)
    text = re.sub(r"``?([^`]+)``?_?", r"\1", text)
    text = re.sub(r"(?<!\w)\*\*?(\w(?:[^*]*\w)?)\*\*?(?!\w)", r"\1", text)
    text = re.sub(r"\s*\[\d+\](?=[\s.,;]|$)", "", text)
    return text.removesuffix("::").rstrip() + (":" if text.endswith("::") else "")


def _is_prose(text: str) -> bool:
    """Whole sentences of ordinary words: starts with a capital, ends with a stop, has no code in it."""
    words = text.split()
    if (
        len(words) < 5
        or not text.isascii()
        or not re.match(r"[\"'(]?[A-Z]", text)
        or not re.search(r"[.!?][\"')]*$", text)
    ):
        return False
    plain_words = sum(
        bool(re.fullmatch(r"[\"'(]*[A-Za-z][a-z]*(?:[-'][a-z]+)*[\"')]*[.,:;!?]*[\"')]*", w)) for w in words
    )
    return plain_words / len(words) >= 0.75 and not _CODE.search(text)


def _is_abbreviation(word: str) -> bool:
    word = word.lstrip("(\"'[").lower()
    return word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha())


def _key(sentence: str) -> str:
    return re.sub(r"\W+", " ", sentence).strip().lower()


def iter_sentences(chosen: Iterable[Document]) -> Iterator[str]:
    """The sentences of several documents, in order."""
    for document in chosen:
        yield from document.sentences
