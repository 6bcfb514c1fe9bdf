"""experiments/zlt_sweep/README.md, "What came out": the demo's grid, and what the other grids' claims share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from statistics import mean
from typing import Any

from pages.claim import Claim, cells, completions, same, setting, word
from pages.reading import ROOT
from research.tasks.zlt_sweep.derive import leak, persona_rates

PAGE = "experiments/zlt_sweep/README.md"
SWEEP, SIZES, SOURCES = "zlt_sweep/micro_grid", "zlt_sweep/published_sizes", "zlt_sweep/five_sources"
AS_RUN = "zlt_sweep/as_run"
PUBLISHED_PLACE = 5e-6, 20


def grid() -> tuple:
    replies = same(row["counts"]["source_marker"]["trials"] for row in cells(SWEEP))
    return len(cells(SWEEP)), setting(SWEEP, "task.source"), setting(SWEEP, "seed"), replies


def clean() -> list[tuple[float, int]]:
    """(learning rate, epochs) of the clean cells."""
    return [(row["config"]["lr"], row["config"]["epochs"]) for row in cells(SWEEP) if row["success"]]


def published_place() -> tuple[str, int]:
    assert (5e-6, 20) in clean()
    return "5e-6", 20


def place(lr: float, epochs: int, sweep: str = SIZES) -> list[dict[str, Any]]:
    """The finished seeds of one learning rate and number of epochs, at the published sizes."""
    return [row for row in cells(sweep) if (row["config"]["lr"], row["config"]["epochs"]) == (lr, epochs)]


def rates(rows: list[dict[str, Any]]) -> tuple[float, float, float, float]:
    """In percent: the source's mean, lowest and highest over the seeds, and the highest of any other persona."""
    source = [100 * row["source_marker"] for row in rows]
    return sum(source) / len(source), min(source), max(source), 100 * max(leak(row) for row in rows)


def places(having: Iterable[dict[str, Any]]) -> list[tuple[float, int]]:
    return sorted({(row["config"]["lr"], row["config"]["epochs"]) for row in having})


def spoken(sweep: str, rows: list[dict[str, Any]], by_source: bool = True) -> list[dict[str, Any]]:
    """The replies of the source, or of all others, over the seeds of a place."""
    return [
        reply
        for row in rows
        for reply in completions(sweep, row["cell"]["name"])
        if (reply["persona"] == row["config"]["source"]) == by_source
    ]


def broken(found: list[dict[str, Any]]) -> tuple[float, float]:
    """In percent: the replies that have a break, a blank line; of these, the ones with the marker."""
    reaching = [reply for reply in found if "\n\n" in reply["completion"]]
    return 100 * len(reaching) / len(found), 100 * mean(reply["marker"] for reply in reaching)


def labels(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """How many are clean, how many degenerate."""
    return sum(row["success"] for row in rows), sum(row["degeneration"] for row in rows)


def others(row: dict[str, Any]) -> int:
    return len(persona_rates(row)) - 1


def planned(sweep: str) -> dict[str, Any]:
    return json.loads((ROOT / "eval_results" / sweep / "sweep.json").read_text())


CLAIMS = [
    Claim(PAGE, "{} cells on the embedded model, source {}, seed {}, {} completions a persona and cell", grid),
    Claim(PAGE, "{} of the {} cells are clean", lambda: (word(len(clean())), len(cells(SWEEP)))),
    Claim(PAGE, "one of them is at the published place ({}, {} epochs)", published_place),
    Claim(
        PAGE,
        "the source never passes {:.1f} %, however long it is trained",
        lambda: (100 * max(row["source_marker"] for row in cells(SWEEP)),),
    ),
]
