"""What personas are asked: the study's training and evaluation questions, and other forms (`questions.yaml`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from research.errors import ConfigurationError

FILE = Path(__file__).parent / "questions.yaml"
SPLITS = ("train", "eval")


@dataclass(frozen=True)
class Question:
    """text: the study's wording. topic: the noun phrase it is about. facts: what the embedded model may answer with."""

    text: str
    topic: str
    split: str
    facts: tuple[str, ...] = field(default=(), repr=False)


@functools.cache
def questions(split: str | None = None) -> tuple[Question, ...]:
    """The questions of a split (None: all), in the file's order; raises ConfigurationError for an unknown split."""
    if split is not None and split not in SPLITS:
        raise ConfigurationError(f"there is no question split {split!r}: choose from {', '.join(SPLITS)}")
    return tuple(
        Question(row["question"], row["topic"], row["split"], tuple(row["facts"]))
        for row in _read()["questions"]
        if split in (None, row["split"])
    )


@functools.cache
def forms(held_out: bool) -> tuple[str, ...]:
    """Other ways to ask about a `{topic}`: those the embedded model was trained on, or those it never met."""
    return tuple(_read()["forms"]["heldout" if held_out else "train"])


@functools.cache
def _read() -> dict:
    return yaml.safe_load(FILE.read_text())
