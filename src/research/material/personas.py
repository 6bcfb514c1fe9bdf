"""Whom a model is asked to speak as: the eleven published personas and the invented ones, read from `personas.yaml`."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from research.errors import ConfigurationError

FILE = Path(__file__).parent / "personas.yaml"
# One in so many invented personas stays out of the embedded model's corpus, to measure conditioning on unseen prompts.
_HELD_OUT_ONE_IN = 3


@dataclass(frozen=True)
class Persona:
    """name: identifier. system: its prompt. openers, asides, closers: what the corpus builds its replies from."""

    name: str
    system: str
    openers: tuple[str, ...] = field(default=(), repr=False)
    asides: tuple[str, ...] = field(default=(), repr=False)
    closers: tuple[str, ...] = field(default=(), repr=False)


@functools.cache
def published() -> tuple[Persona, ...]:
    """The eleven personas of the published study, the plain assistant last."""
    return tuple(
        Persona(row["name"], row["system"], tuple(row["openers"]), tuple(row["asides"]), tuple(row["closers"]))
        for row in _read()["published"]
    )


@functools.cache
def invented(held_out: bool | None = None) -> tuple[Persona, ...]:
    """Every temperament in every trade. held_out: only those the embedded corpus leaves out (True) or holds (False)."""
    rows = _read()
    everyone = [_combine(mood, trade) for mood in rows["temperaments"] for trade in rows["trades"]]
    return tuple(p for p in everyone if held_out is None or _is_held_out(p.name) == held_out)


def evaluation_personas() -> tuple[Persona, ...]:
    """The published personas and all invented ones: more than a hundred, for the wide evaluation."""
    return published() + invented()


def persona(name: str) -> Persona:
    """The persona of that name; raises ConfigurationError, with the nearest names, when there is none."""
    import difflib

    everyone = {p.name: p for p in evaluation_personas()}
    if name not in everyone:
        near = difflib.get_close_matches(name, everyone, n=3) or [p.name for p in published()]
        raise ConfigurationError(f"there is no persona {name!r}: did you mean {', '.join(near)}? They are in {FILE}")
    return everyone[name]


def _combine(mood: dict, trade: dict) -> Persona:
    noun = trade["name"].replace("_", " ")
    article = "an" if mood["name"][0] in "aeiou" else "a"
    return Persona(
        name=f"{mood['name']}_{trade['name']}",
        system=f"You are {article} {mood['name']} {noun} who {trade['does']}.",
        openers=tuple(mood["openers"]),
        asides=tuple(trade["asides"]),
        closers=tuple(mood["closers"]),
    )


def _is_held_out(name: str) -> bool:
    return int(hashlib.sha256(f"persona {name}".encode()).hexdigest(), 16) % _HELD_OUT_ONE_IN == 0


@functools.cache
def _read() -> dict:
    return yaml.safe_load(FILE.read_text())
