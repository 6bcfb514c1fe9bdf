"""Wins that are none: spans that fool a judge by copying, by repeating, or by their length."""

from __future__ import annotations

from collections.abc import Sequence

from research.tasks.imposter.corpus import Span
from research.tasks.imposter.writing import Written

KINDS = ("copied", "repeated", "empty", "overlong")
COPY_NGRAM = 4  # words in a row that count as taken over
COPY_SHARE = 0.5
REPEAT_SHARE = 0.5
OVERLONG = 3.0


def flags(human: Span, written: Written) -> dict[str, bool]:
    """Which degenerate kinds a written span is.

    copied: at least half of its 4-word sequences (or all of it, when shorter) stand in the context. repeated: fewer
    than half of its 2-word sequences are distinct. empty: no text. overlong: cut at the token limit, or 3 times the
    human's words.
    """
    words = written.text.split()
    context = f"{human.before} {human.after}"
    return {
        "copied": bool(words) and _copied(words, context),
        "repeated": _repeated(words),
        "empty": not words,
        "overlong": written.cut or len(words) > OVERLONG * max(5, len(human.text.split())),
    }


def _copied(words: Sequence[str], context: str) -> bool:
    if len(words) < COPY_NGRAM:
        return f" {' '.join(words)} " in f" {context} "
    known = set(_ngrams(context.split(), COPY_NGRAM))
    found = _ngrams(words, COPY_NGRAM)
    return sum(gram in known for gram in found) >= COPY_SHARE * len(found)


def _repeated(words: Sequence[str]) -> bool:
    pairs = _ngrams(words, 2)
    return len(pairs) >= 4 and len(set(pairs)) < REPEAT_SHARE * len(pairs)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
