"""experiments/zlt_sweep/README.md, "What came out"."""

from __future__ import annotations

from pages.claim import Claim, cells, same, setting, word

PAGE, SWEEP = "experiments/zlt_sweep/README.md", "zlt_sweep/micro_grid"


def grid() -> tuple:
    replies = same(row["counts"]["source_marker"]["trials"] for row in cells(SWEEP))
    return len(cells(SWEEP)), setting(SWEEP, "task.source"), setting(SWEEP, "seed"), replies


def clean() -> list[tuple[float, int]]:
    """(learning rate, epochs) of the clean cells."""
    return [(row["config"]["lr"], row["config"]["epochs"]) for row in cells(SWEEP) if row["success"]]


def published_place() -> tuple[str, int]:
    assert (5e-6, 20) in clean()
    return "5e-6", 20


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
