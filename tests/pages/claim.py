"""A sentence of a page with the values that fill it, and what the values are read from: committed files only."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pages.reading import ROOT

WORDS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
)


@dataclass(frozen=True)
class Claim:
    """values() fills the template by `str.format`; a list of tuples fills it once for each.

    The template holds no number of its own. What the words say beside the numbers, values() may assert.
    """

    page: str
    template: str
    values: Callable[[], Sequence[Any]]

    def sentences(self) -> list[str]:
        found = self.values()
        return [self.template.format(*row) for row in (found if isinstance(found, list) else [found])]


@functools.cache
def benchmark(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / name).read_text())


@functools.cache
def cells(sweep: str) -> list[dict[str, Any]]:
    """The finished cells of a committed sweep, `task/name`."""
    return [json.loads(path.read_text()) for path in sorted(ROOT.glob(f"eval_results/{sweep}/*/run_result.json"))]


def setting(sweep: str, name: str) -> Any:
    return same(row["cell"]["config"][name] for row in cells(sweep))


def same(values: Any) -> Any:
    """The value that all of them are."""
    (value,) = set(values)
    return value


def word(number: int) -> str:
    return WORDS[number]


def short(value: float) -> str:
    """.63 for 0.63."""
    return f"{value:.2f}".replace("0.", ".", 1)


def power(lr: float) -> str:
    """5e-6, 1.5e-4."""
    return f"{lr:.1e}".replace(".0e", "e").replace("e-0", "e-")
