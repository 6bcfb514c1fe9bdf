"""More English for pretraining: paragraphs and comments of the training sources that the clean prose leaves out.

They teach the language, code and lists among it. Nothing of a held-out source, and no sentence that occurs in one.
"""

from __future__ import annotations

import functools
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from research.material import prose


@functools.cache
def paragraphs() -> tuple[tuple[str, ...], ...]:
    """The paragraphs of each training source, in reading order; sources sorted by name."""
    held_out = {
        prose._key(s) for split in ("cotrain", "heldout") for d in prose.documents(split, 1) for s in d.sentences
    }
    seen: set[str] = set()
    sources: dict[str, list[str]] = {}
    for source, text in (*prose._topics(), *prose._docstrings(), *_comments()):
        if prose.split_of(source) != "train":
            continue
        for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
            paragraph = prose._plain(" ".join(block.split()))
            sentences = prose.sentences_of(paragraph)
            if len(paragraph.split()) < 5 or paragraph in seen or any(prose._key(s) in held_out for s in sentences):
                continue
            seen.add(paragraph)
            sources.setdefault(source, []).append(paragraph)
    return tuple(tuple(found) for _, found in sorted(sources.items()))


def _comments() -> Iterator[tuple[str, str]]:
    """(`module:NAME`, text) of every block of two or more full-line comments in the standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(prose._source_files(library)):
        source = f"module:{path.relative_to(library).parts[0].removesuffix('.py').lstrip('_').lower()}"
        for block in re.findall(r"(?:^[ \t]*#+ .*\n){2,}", path.read_text(errors="ignore"), re.MULTILINE):
            yield source, re.sub(r"^[ \t]*#+ ?", "", block, flags=re.MULTILINE)
