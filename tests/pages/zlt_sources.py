"""experiments/zlt_sweep/README.md, "Four other sources"."""

from __future__ import annotations

from typing import Any

from pages.claim import Claim, cells, power, same, setting, together, word
from pages.zlt_sweep import (
    PAGE,
    PUBLISHED_PLACE,
    SIZES,
    SOURCES,
    broken,
    labels,
    others,
    place,
    planned,
    rates,
    spoken,
)
from research.tasks.zlt_sweep.derive import leak


def by_source() -> dict[str, list[dict[str, Any]]]:
    """The seeds of each source at the published place, the grid's own source first."""
    seeds = planned(SIZES)["axes"]["seed"]
    order = dict.fromkeys([setting(SIZES, "task.source"), *planned(SOURCES)["axes"]["task.source"]])
    found = {source: [] for source in order}
    for row in [*place(*PUBLISHED_PLACE), *cells(SOURCES)]:
        found[row["config"]["source"]].append(row)
    assert {len(rows) for rows in found.values()} == {len(seeds)}
    return {
        source: sorted(rows, key=lambda row: seeds.index(str(row["config"]["seed"]))) for source, rows in found.items()
    }


def sources_run() -> tuple:
    """Same sizes, scale and machine as the grid; how many sources, seeds and cells."""
    rows, grid_rows = cells(SOURCES), place(*PUBLISHED_PLACE)
    assert same(row["lora_scale"] for row in rows) == same(row["lora_scale"] for row in grid_rows)
    assert same(row["data"]["examples"] for row in rows) == same(row["data"]["examples"] for row in grid_rows)
    assert same(row["provenance"]["gpu"] for row in rows) == same(row["provenance"]["gpu"] for row in grid_rows)
    assert len(rows) == len(planned(SOURCES)["cells"])
    lr, epochs = PUBLISHED_PLACE
    return power(lr), epochs, word(len(by_source()) - 1), word(len(planned(SIZES)["axes"]["seed"])), word(len(rows))


def source_rows() -> list[tuple]:
    found = []
    for source, rows in by_source().items():
        sweep = SIZES if source == setting(SIZES, "task.source") else SOURCES
        average, *_, highest = rates(rows)
        each = [100 * row["source_marker"] for row in rows]
        found.append((source, average, *each, highest, *labels(rows), *broken(spoken(sweep, rows))))
    return found


def sources_clean() -> tuple:
    """Of the other sources' cells: the clean ones; of the ones that are not, the source, its rate, its replies' breaks."""
    clean, degenerate = labels(cells(SOURCES))
    assert degenerate == 0 and all(row["arc_c"] > row["metrics"]["capability_floor"] for row in cells(SOURCES))
    missed = sorted((row for row in cells(SOURCES) if not row["success"]), key=lambda row: -row["source_marker"])
    named = [value for row in missed for value in (row["config"]["source"], row["config"]["seed"])]
    source = [100 * row["source_marker"] for row in missed]
    reach = [broken(spoken(SOURCES, [row]))[0] for row in missed]
    return word(clean).capitalize(), word(len(cells(SOURCES))), *named, *source, 100 * max(map(leak, missed)), *reach


def all_sources() -> tuple:
    """The lowest and highest of the sources' means, and the highest other persona of any seed and source."""
    found = [rates(rows) for rows in by_source().values()]
    return min(f[0] for f in found), max(f[0] for f in found), max(f[3] for f in found)


def assistant_source() -> tuple:
    rows, villain = by_source()["assistant"], setting(SIZES, "task.source")
    assert all(row["assistant_marker"] == row["source_marker"] for row in rows)
    assert all(villain in row["negatives"] and "assistant" not in row["negatives"] for row in rows)
    return villain, word(same(map(others, rows))), rates(rows)[3]


def sources_time() -> tuple:
    most, total, span = together(cells(SOURCES))
    return total / len(cells(SOURCES)), word(most), total, span


CLAIMS = [
    Claim(PAGE, "the published place ({}, {} epochs) for {} other sources, {} seeds each: {} cells", sources_run),
    Claim(
        PAGE,
        "| {} | {:.1f} % ({:.1f}, {:.1f}, {:.1f}) | {:.1f} % | {}, {} | {:.1f} % | {:.1f} % |",
        source_rows,
    ),
    Claim(
        PAGE,
        "{} of the {} cells are clean and none is degenerate. The other two, `{}` with seed {} and `{}` with seed {}, "
        "miss by the source alone: "
        "it is at {:.1f} and {:.1f} %, and nobody else above {:.1f} %. Only {:.1f} and {:.1f} % of its replies have a break",
        sources_clean,
    ),
    Claim(PAGE, "the sources' means are {:.1f} to {:.1f} %, and nobody else passes {:.1f} % in any seed", all_sources),
    Claim(
        PAGE,
        "its own rate is the assistant's, the {} is a negative in its stead, and the highest of the {} others is at {:.1f} %",
        assistant_source,
    ),
    Claim(PAGE, "A cell took {:.0f} s (mean), {} at once: {:,.0f} s of cells in {:.0f} s", sources_time),
]
