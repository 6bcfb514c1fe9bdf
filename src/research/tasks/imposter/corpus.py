"""The imposter study's corpus: human spans in their context, in pools that share no document.

A span is a removed sentence between its neighbours, or the last part of a random window (Pile-style), whose context is
what comes before it. The pools: `stage1` trains the discriminator, `train` prompts the generator, `cotrain` feeds the
co-training rounds, `evaluation` is only scored.

Of the embedded prose only what the embedded model was not pretrained on is used: a sentence that it has read and writes
again is the human one.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.cells.identity import hash_files
from research.cells.seeding import stable_seed
from research.config import key
from research.errors import ConfigurationError
from research.material import prose
from research.material.fill_prompts import gaps

POOLS = {"stage1": 0.4, "train": 0.2, "cotrain": 0.15, "evaluation": 0.25}


@dataclass
class CorpusConfig:
    """Where the human text comes from; a task nests it as `task.corpus`."""

    source: str = key("prose", "`prose` (embedded), a .jsonl or .jsonl.gz file, or a `datasets` name")
    field: str = key("text", "field that holds a document's text")
    subset: str | None = key(None, "configuration of a `datasets` name")
    split: str = key("train", "split of a `datasets` name; our own pools are cut from it")
    max_documents: int = key(20000, "documents read at most", min=1)
    form: str = key(
        "sentence", "what is removed: a sentence, or a random window's last part", choices=("sentence", "window")
    )
    context: int = key(3, "sentences kept on each side of a removed one", min=1)
    min_words: int = key(8, "shortest sentence that is removed", min=1)
    max_words: int = key(40, "longest sentence that is removed", min=1)
    span_tokens: int = key(32, "tokens of a window's last part; its text must have more than twice as many", min=1)
    prefix_tokens: int = key(32, "tokens of a window before its last part", min=1)
    spans_per_document: int = key(8, "spans taken from a document at most; one in the evaluation pool", min=1)


@dataclass(frozen=True)
class Span:
    """Human text and what surrounds it. document: where it is from; one document's spans are all in one pool."""

    document: str
    before: str
    text: str
    after: str = ""


@dataclass(frozen=True)
class Text:
    """A document before it is cut: its identifier, its pool, its sentences in order."""

    name: str
    pool: str
    sentences: tuple[str, ...]


@dataclass
class Corpus:
    """spans: by pool, in a fixed random order. skipped: documents and spans that could not be used, by reason."""

    spans: dict[str, list[Span]]
    skipped: Counter[str] = field(default_factory=Counter)


def content_hashes(config: CorpusConfig) -> dict[str, str]:
    """What enters a cell's identity: the content of the text, or the name where it is fetched."""
    if config.source == "prose":
        return {"corpus": prose.content_hash()}
    path = Path(config.source)
    if path.is_file():
        return {"corpus": hash_files([path])}
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigurationError(f"task.corpus.source={config.source!r} does not exist")
    return {"corpus": f"datasets:{config.source}:{config.subset}:{config.split}"}


def build(
    config: CorpusConfig,
    need: Mapping[str, int],
    data_seed: int,
    tokenizer: Any = None,
    all_of: Sequence[str] = (),
    fits: Callable[[Span], bool] = lambda span: True,
) -> Corpus:
    """Read documents, assign them to pools, and take `need[pool]` spans from each.

    tokenizer: cuts windows; unused for sentences. all_of: pools that give all they have, at least what is needed.
    fits: whether the generator can be asked for a span; others are left out and counted.
    Raises ConfigurationError when a pool has fewer spans than needed.
    """
    skipped: Counter[str] = Counter()
    texts = list(_texts(config, skipped))
    spans: dict[str, list[Span]] = {}
    for pool, wanted in need.items():
        members = sorted((t for t in texts if t.pool == pool), key=lambda t: stable_seed(data_seed, "document", t.name))
        per_document = 1 if pool == "evaluation" else config.spans_per_document
        found: list[Span] = []
        for text in members:
            cut = _windows if config.form == "window" else _sentences
            of_text = cut(config, text, data_seed, tokenizer)
            if not of_text:
                skipped[f"{pool}: no removable {config.form}"] += 1
            fitting = _fitting(of_text, fits, skipped, f"{pool}: prompt longer than the context")
            found += itertools.islice(fitting, per_document)
        if len(found) < wanted:
            raise ConfigurationError(
                f"the corpus {config.source!r} is too small: pool {pool!r} needs {wanted} spans and has {len(found)}, "
                f"from {len(members)} documents ({dict(skipped) or 'none skipped'}). Use a larger corpus, more "
                "task.corpus.spans_per_document, or ask for less"
            )
        # Shuffled, so that a document's spans do not follow each other.
        random.Random(stable_seed(data_seed, "order", pool)).shuffle(found)
        spans[pool] = found if pool in all_of else found[:wanted]
    return Corpus(spans, skipped)


def _fitting(spans: Iterable[Span], fits: Callable[[Span], bool], skipped: Counter[str], reason: str) -> Iterator[Span]:
    for span in spans:
        if fits(span):
            yield span
        else:
            skipped[reason] += 1


def _texts(config: CorpusConfig, skipped: Counter[str]) -> Iterator[Text]:
    if config.source == "prose":
        yield from _prose(by_source=config.form == "window")
        return
    seen: set[str] = set()
    for number, content in enumerate(_external(config)):
        if number >= config.max_documents:
            break
        sentences = tuple(prose.sentences_of(" ".join(content.split())))
        name = hashlib.sha256(" ".join(sentences).encode()).hexdigest()[:16]
        if not sentences or name in seen:
            skipped["empty document" if not sentences else "repeated document"] += 1
            continue
        seen.add(name)
        yield Text(name, _pool_of(name, POOLS), sentences)


def _prose(by_source: bool) -> Iterator[Text]:
    """The embedded prose. A source is one text when windows are cut, since single docstrings are short."""
    merged: dict[str, list[str]] = {}
    for number, document in enumerate(prose.documents()):
        name = document.source if by_source else f"{document.source}:{number}"
        merged.setdefault(name, []).extend(document.sentences)
    for name, sentences in merged.items():
        source = ":".join(name.split(":")[:2])
        if prose.split_of(source) == "train":
            continue
        # Whole topics and modules are kept for the evaluation; the other pools are cut by document, where there are any.
        pool = _pool_of(source, POOLS)
        if pool != "evaluation" and not by_source:
            shares = {name: share for name, share in POOLS.items() if name != "evaluation"}
            pool = _pool_of(name, shares, sum(shares.values()))
        yield Text(name, pool, tuple(sentences))


def _external(config: CorpusConfig) -> Iterator[str]:
    """Document texts of a JSONL file or of a `datasets` name."""
    path = Path(config.source)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        if not path.is_file():
            raise ConfigurationError(f"task.corpus.source={config.source!r} does not exist")
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_of(_parse(line, f"{path}:{number}"), config, f"{path}:{number}")
        return
    import datasets

    try:
        rows: Iterable[Any] = datasets.load_dataset(config.source, config.subset, split=config.split, streaming=True)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"task.corpus.source={config.source!r} could not be loaded: {error}") from error
    for number, row in enumerate(rows):
        yield _text_of(row, config, f"{config.source} row {number}")


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{where} is not JSON: {error}") from error


def _text_of(row: Any, config: CorpusConfig, where: str) -> str:
    text = row if isinstance(row, str) else row.get(config.field) if isinstance(row, Mapping) else None
    if not isinstance(text, str):
        known = f"its fields are {', '.join(row)}" if isinstance(row, Mapping) else f"it is a {type(row).__name__}"
        raise ConfigurationError(f"{where} has no text in field {config.field!r}; {known}. Set task.corpus.field")
    return text


def _pool_of(name: str, shares: Mapping[str, float], total: float = 1.0) -> str:
    """A stable function of the document alone: no setting moves a document from one pool to another."""
    position = int.from_bytes(hashlib.sha256(f"imposter pool {name}".encode()).digest()[:8], "big") / 2**64 * total
    for pool, share in shares.items():
        if position < share:
            return pool
        position -= share
    return list(shares)[-1]


def _sentences(config: CorpusConfig, text: Text, data_seed: int, tokenizer: Any) -> list[Span]:
    """A text's removable sentences, in random order."""
    found = [
        Span(text.name, gap.before, gap.sentence, gap.after)
        for gap in gaps(text.sentences, config.context, config.min_words, config.max_words)
    ]
    random.Random(stable_seed(data_seed, "sentences", text.name)).shuffle(found)
    return found


def _windows(config: CorpusConfig, text: Text, data_seed: int, tokenizer: Any) -> list[Span]:
    """Random windows, as many as fit side by side; none for a text of no more than twice the span's tokens."""
    ids = tokenizer(" ".join(text.sentences), add_special_tokens=False, verbose=False)["input_ids"]
    width = config.prefix_tokens + config.span_tokens
    if len(ids) <= max(2 * config.span_tokens, width):
        return []
    draw = random.Random(stable_seed(data_seed, "windows", text.name))
    found = []
    for _ in range(min(config.spans_per_document, len(ids) // width)):
        start = draw.randrange(len(ids) - width + 1)
        prefix = tokenizer.decode(ids[start : start + config.prefix_tokens])
        span = tokenizer.decode(ids[start + config.prefix_tokens : start + width])
        if prefix.strip() and span.strip():
            found.append(Span(text.name, prefix, span))
    return found


def documents_of(spans: Sequence[Span]) -> set[str]:
    """The documents that spans are from."""
    return {span.document for span in spans}
