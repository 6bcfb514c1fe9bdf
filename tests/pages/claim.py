"""A sentence of a page with the values that fill it, and what the values are read from: committed files only."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
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


@functools.cache
def completions(sweep: str, cell: str) -> list[dict[str, Any]]:
    """Everything a cell kept of what was written."""
    with gzip.open(ROOT / "eval_results" / sweep / cell / "completions.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def gpu(*sweeps: str) -> str | None:
    """The kind of GPU that all their cells had."""
    return same(row["provenance"]["gpu"] for sweep in sweeps for row in cells(sweep))


def during(row: dict[str, Any]) -> tuple[datetime, datetime]:
    """When a cell ran."""
    start, end = (datetime.fromisoformat(row["provenance"][name]) for name in ("started", "finished"))
    return start, end


def together(rows: list[dict[str, Any]]) -> tuple[int, float, float]:
    """Of cells that were launched together: the most at once, their seconds, the seconds from the first to the last."""
    start, end = zip(*map(during, rows), strict=True)
    changes = sorted([(moment, 1) for moment in start] + [(moment, -1) for moment in end])
    total, span = sum(row["wall_seconds"]["total"] for row in rows), (max(end) - min(start)).total_seconds()
    return max(accumulate(step for _, step in changes)), total, span


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
