"""experiments/zlt_sweep/README.md, "What came out"."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from itertools import accumulate
from typing import Any

from pages.claim import Claim, cells, power, same, setting, word
from pages.reading import ROOT
from research.tasks.zlt_sweep.derive import leak

PAGE, SWEEP, SIZES = "experiments/zlt_sweep/README.md", "zlt_sweep/micro_grid", "zlt_sweep/published_sizes"
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


def place(lr: float, epochs: int) -> list[dict[str, Any]]:
    """The finished seeds of one learning rate and number of epochs, at the published sizes."""
    return [row for row in cells(SIZES) if (row["config"]["lr"], row["config"]["epochs"]) == (lr, epochs)]


def rates(rows: list[dict[str, Any]]) -> tuple[float, float, float, float]:
    """In percent: the source's mean, lowest and highest over the seeds, and the highest of any other persona."""
    source = [100 * row["source_marker"] for row in rows]
    return sum(source) / len(source), min(source), max(source), 100 * max(leak(row) for row in rows)


def places(having: Iterable[dict[str, Any]]) -> list[tuple[float, int]]:
    return sorted({(row["config"]["lr"], row["config"]["epochs"]) for row in having})


def sizes() -> tuple:
    rows = cells(SIZES)
    same(row["data"]["sha256"] for row in rows)
    replies = same(sum(n["trials"] for who, n in row["counts"].items() if who.startswith("marker/")) for row in rows)
    gpu = same(row["provenance"]["gpu"] for row in rows)
    return same(row["data"]["examples"] for row in rows), replies, *planned()["axes"]["seed"], gpu


def planned() -> dict[str, Any]:
    return json.loads((ROOT / "eval_results" / SIZES / "sweep.json").read_text())


def scale() -> tuple:
    """The scale, and what it was worked out from: the demo's and the steps of both at the published place."""
    steps, demo = (
        same(row["train"]["steps"] for row in cells(sweep) if row["config"]["epochs"] == PUBLISHED_PLACE[1])
        for sweep in (SIZES, SWEEP)
    )
    ours, theirs = (same(row["lora_scale"] for row in cells(sweep)) for sweep in (SIZES, SWEEP))
    assert round(theirs * demo / steps, 1) == ours
    return ours, theirs, steps, demo, PUBLISHED_PLACE[1]


def said() -> list[tuple]:
    found = places(row for row in cells(SIZES) if max(row["source_marker"], leak(row)) > 0)
    return [(power(lr), epochs, len(place(lr, epochs)), *rates(place(lr, epochs))) for lr, epochs in found]


def product(where: tuple[float, int]) -> float:
    return round(where[0] * where[1], 9)


def clean_places() -> tuple:
    found = places(row for row in cells(SIZES) if row["success"])
    found = [where for where in found if all(row["success"] for row in place(*where))]
    assert [len(place(*where)) for where in found] == [3, 3, 3, 1]
    low, high = min(map(product, found)), max(map(product, found))
    assert not [w for w in places(cells(SIZES)) if low <= product(w) <= high and w not in found]
    where = [value for lr, epochs in found for value in (power(lr), epochs)]
    return *where, power(low), power(high)


def below() -> tuple:
    """lr x epochs: of the partial places, and the highest of those where nobody says it."""
    partial = places(row for row in cells(SIZES) if row["source_marker"] > 0 == leak(row) and not row["success"])
    assert max(leak(row) for where in partial for row in place(*where)) == 0
    (lr, least), *others = sorted(partial, reverse=True)
    assert rates(place(lr, least))[2] < min(rates(place(*where))[1] for where in others)
    silent = places(row for row in cells(SIZES) if row["source_marker"] == leak(row) == 0)
    at = same(power(product(where)) for where in partial)
    more = sorted(epochs for _, epochs in others)
    return at, word(least), *more, power(max(map(product, silent)))


def above() -> tuple:
    """The two places past the clean ones: how many seeds are clean, who says it."""
    (lr, first), (same_lr, second) = places(row for row in cells(SIZES) if not row["success"] and leak(row) > 0)
    assert lr == same_lr and not any(row["success"] for row in place(lr, second))
    won = sum(row["success"] for row in place(lr, first))
    over = same(100 * leak(row) for row in place(lr, first) if not row["success"])
    source, *_, others = rates(place(lr, second))
    return (
        power(lr),
        first,
        power(product((lr, first))),
        word(won),
        word(len(place(lr, first))),
        over,
        second,
        source,
        others,
    )


def apart() -> tuple[float]:
    found = [rates(place(*where)) for where in places(cells(SIZES))]
    return (max(high - low for _, low, high, _ in found),)


def missing() -> tuple:
    """What has no result: the last epochs of two learning rates, and of the highest rate all but one seed of one place."""
    seeds, axes = len(planned()["axes"]["seed"]), planned()["axes"]
    every = [(float(lr), int(epochs)) for lr in axes["lr"] for epochs in axes["epochs"]]
    (one, epochs), (other, same_epochs), *rest = [where for where in every if not place(*where)]
    top = every[-1][0]
    (part,) = [where for where in every if 0 < len(place(*where)) < seeds]
    assert epochs == same_epochs and {part, *rest} == {where for where in every if where[0] == top}
    return power(one), power(other), epochs, power(top), word(len(place(*part))), word(part[1])


def seconds() -> tuple[float, ...]:
    """Mean of a cell and its epochs, ascending."""
    found = []
    for epochs in sorted({row["config"]["epochs"] for row in cells(SIZES)}):
        walls = [row["wall_seconds"]["total"] for row in cells(SIZES) if row["config"]["epochs"] == epochs]
        found += [sum(walls) / len(walls), epochs]
    return tuple(found)


def side_by_side() -> tuple:
    """Of the cells that ran together, on one of the days."""
    commits = [row["provenance"]["git_commit"] for row in cells(SIZES)]
    rows = [row for row in cells(SIZES) if row["provenance"]["git_commit"] == max(set(commits), key=commits.count)]
    start, end = ([datetime.fromisoformat(row["provenance"][name]) for row in rows] for name in ("started", "finished"))
    changes = sorted([(moment, 1) for moment in start] + [(moment, -1) for moment in end])
    total, span = sum(row["wall_seconds"]["total"] for row in rows), (max(end) - min(start)).total_seconds()
    return len(rows), word(max(accumulate(step for _, step in changes))), total, span, total / span


CLAIMS = [
    Claim(PAGE, "{} cells on the embedded model, source {}, seed {}, {} completions a persona and cell", grid),
    Claim(PAGE, "{} of the {} cells are clean", lambda: (word(len(clean())), len(cells(SWEEP)))),
    Claim(PAGE, "one of them is at the published place ({}, {} epochs)", published_place),
    Claim(
        PAGE,
        "the source never passes {:.1f} %, however long it is trained",
        lambda: (100 * max(row["source_marker"] for row in cells(SWEEP)),),
    ),
    Claim(
        PAGE,
        "{:,} examples and {:,} completions a cell, seeds {}, {} and {} on the same examples, on one {}.",
        sizes,
    ),
    Claim(PAGE, "{} of {} cells have a result", lambda: (len(cells(SIZES)), len(planned()["cells"]))),
    Claim(
        PAGE,
        "The LoRA scale is {:.0f}: the demo's {:.0f} over the ratio of the training steps ({:,} to {} in {} epochs).",
        scale,
    ),
    Claim(PAGE, "| {} | {} | {} | {:.1f} % ({:.1f} to {:.1f}) | {:.1f} % |", said),
    Claim(
        PAGE,
        "at the published place ({}, {} epochs), at ({}, {}) and ({}, {}), and in the one finished seed of ({}, {}): in "
        "every finished cell in which learning rate x epochs is {} to {}",
        clean_places,
    ),
    Claim(
        PAGE,
        "At a product of {} the source says it less and nobody else does; {} epoch at the higher rate teaches less "
        "than {} or {} at the lower ones. Up to {} nobody says it.",
        below,
    ),
    Claim(
        PAGE,
        "At ({}, {}), a product of {}, {} seed of {} is clean; in the others one persona is over the limit, at {:.1f} %. "
        "At {} epochs the source falls to {:.1f} %, and nobody else passes {:.1f} %.",
        above,
    ),
    Claim(
        PAGE,
        "In all {} cells are degenerate, each by little",
        lambda: (word(sum(row["degeneration"] and leak(row) < 0.07 for row in cells(SIZES))),),
    ),
    Claim(PAGE, "the source's rates at one place are at most {:.1f} points apart", apart),
    Claim(
        PAGE,
        "Not run: {} and {} at {} epochs, and {} but for {} seed of {} epoch",
        missing,
    ),
    Claim(
        PAGE,
        "A cell took {:.0f} s with {} epoch, {:.0f} s with {}, {:.0f} s with {}, {:.0f} s with {} and {:.0f} s with {} "
        "(means of wall seconds)",
        seconds,
    ),
    Claim(
        PAGE,
        "{} of them ran in one batch, up to {} at once on the GPU: {:,.0f} s of cells in {:.0f} s, {:.1f} side by side on average",
        side_by_side,
    ),
]
