"""experiments/zlt_sweep/README.md, "At the published sizes"."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

from pages.claim import Claim, cells, power, same, together, word
from pages.zlt_sweep import (
    PAGE,
    PUBLISHED_PLACE,
    SIZES,
    SWEEP,
    broken,
    labels,
    others,
    place,
    places,
    planned,
    rates,
    spoken,
)
from research.tasks.zlt_sweep.derive import LEAK_LIMIT, leak, persona_rates, regime


def product(where: tuple[float, int]) -> float:
    return round(where[0] * where[1], 9)


def size_of(row: dict[str, Any]) -> float:
    """A cell's learning rate x epochs."""
    return product((row["config"]["lr"], row["config"]["epochs"]))


def over(row: dict[str, Any]) -> int:
    """How many personas other than the source are over the limit."""
    return sum(rate > LEAK_LIMIT for who, rate in persona_rates(row).items() if who != row["config"]["source"])


def sizes() -> tuple:
    rows = cells(SIZES)
    same(row["data"]["sha256"] for row in rows)
    replies = same(sum(n["trials"] for who, n in row["counts"].items() if who.startswith("marker/")) for row in rows)
    gpu = same(row["provenance"]["gpu"] for row in rows)
    return same(row["data"]["examples"] for row in rows), replies, *planned(SIZES)["axes"]["seed"], gpu


def scale() -> tuple:
    """The scale, and what it was worked out from: the demo's and the steps of both at the published place."""
    steps, demo = (
        same(row["train"]["steps"] for row in cells(sweep) if row["config"]["epochs"] == PUBLISHED_PLACE[1])
        for sweep in (SIZES, SWEEP)
    )
    ours, theirs = (same(row["lora_scale"] for row in cells(sweep)) for sweep in (SIZES, SWEEP))
    assert round(theirs * demo / steps, 1) == ours
    return ours, theirs, steps, demo, PUBLISHED_PLACE[1]


def whole() -> tuple:
    done, seeds = cells(SIZES), len(planned(SIZES)["axes"]["seed"])
    assert all(len(place(*where)) == seeds for where in places(done))
    return len(done), len(planned(SIZES)["cells"])


def counted() -> tuple[int, str]:
    clean, degenerate = labels(cells(SIZES))
    return clean, word(degenerate)


def said() -> list[tuple]:
    rows = []
    for where in places(row for row in cells(SIZES) if max(row["source_marker"], leak(row)) > 0):
        found = place(*where)
        assert len(found) == len(planned(SIZES)["axes"]["seed"])
        rows.append((power(where[0]), where[1], *rates(found), *labels(found), *broken(spoken(SIZES, found))))
    return rows


def band() -> list[tuple[float, int]]:
    """The places with a clean cell, but for the one place past the others: all that lie within their products."""
    *found, last = sorted(places(row for row in cells(SIZES) if row["success"]), key=product)
    low, high = min(map(product, found)), max(map(product, found))
    assert sorted(found) == [where for where in places(cells(SIZES)) if low <= product(where) <= high]
    assert product(last) > high and labels(place(*last))[0] == 1
    return sorted(found)


def clean_places() -> tuple:
    """Those where every seed is clean; the one where not all are, and the source's rate in the seed that is not."""
    *every, part = band()
    assert all(row["success"] for where in every for row in place(*where))
    won, _ = labels(place(*part))
    (missed,) = [100 * row["source_marker"] for row in place(*part) if not row["success"]]
    where = [value for lr, epochs in every for value in (power(lr), epochs)]
    return *where, power(part[0]), part[1], word(won), word(len(place(*part))), missed


def around() -> tuple:
    """The least and the highest product of the band, and the place of the clean cell outside of it."""
    inside = list(map(product, band()))
    (outside,) = [row for row in cells(SIZES) if row["success"] and size_of(row) not in inside]
    at = power(outside["config"]["lr"]), outside["config"]["epochs"]
    return power(min(inside)), power(max(inside)), word(labels([outside])[0]), *at


def below() -> tuple:
    """lr x epochs: of the partial places, and the highest of those where nobody says it."""
    under = [row for row in cells(SIZES) if size_of(row) < min(map(product, band()))]
    partial = places(row for row in under if row["source_marker"] > 0)
    assert max(map(leak, under)) == 0
    (lr, least), *rest = sorted(partial, reverse=True)
    assert rates(place(lr, least))[2] < min(rates(place(*where))[1] for where in rest)
    silent = places(row for row in under if row["source_marker"] == 0)
    assert not set(silent) & set(partial)
    at = same(power(product(where)) for where in partial)
    return at, word(least), *sorted(epochs for _, epochs in rest), power(max(map(product, silent)))


def past() -> list[tuple[float, int]]:
    """The places past the band, by product: the first two, at which the marker spreads, then the others."""
    return sorted((w for w in places(cells(SIZES)) if product(w) > max(map(product, band()))), key=product)


def spread() -> tuple:
    """The degenerate cells of the two places just past the band: how many, how many personas over the limit, how far."""
    first, second = (place(*where) for where in past()[:2])
    assert all(row["degeneration"] for row in second)
    bad = [row for row in first if row["degeneration"]]
    assert same(map(over, bad)) == 1
    at = [(power(where[0]), where[1], power(product(where))) for where in past()[:2]]
    leaks = [100 * leak(row) for row in second]
    return (
        *at[0],
        word(len(bad)),
        word(len(first)),
        same(100 * leak(row) for row in bad),
        *at[1],
        word(same(map(over, second))),
        word(same(map(others, second))),
        min(leaks),
        max(leaks),
    )


def further() -> tuple:
    """The degenerate cell past those: its place and its leak."""
    (row,) = [row for where in past()[2:] for row in place(*where) if row["degeneration"]]
    assert sum(row["degeneration"] for row in cells(SIZES)) == 1 + sum(labels(place(*w))[1] for w in past()[:2])
    return power(row["config"]["lr"]), row["config"]["epochs"], 100 * leak(row)


def nowhere() -> tuple:
    """The most personas over the limit in any cell, and the highest rate of any; the latter in the demo's grid too."""
    highest = [100 * max(map(leak, cells(sweep))) for sweep in (SIZES, SWEEP)]
    assert max(map(over, cells(SWEEP))) == same(map(others, cells(SWEEP)))
    ten = same(len(row["negatives"]) for row in cells(SWEEP))
    demo = same(row["lora_scale"] for row in cells(SWEEP))
    return (
        word(max(map(over, cells(SIZES)))),
        word(same(map(others, cells(SIZES)))),
        highest[0],
        word(ten),
        demo,
        highest[1],
    )


def fallen() -> tuple:
    """The source's means past the places where the marker spreads, by learning rate."""
    found = []
    for lr in sorted({lr for lr, _ in past()}):
        epochs = sorted(epochs for rate, epochs in past()[2:] if rate == lr)
        means = [rates(place(lr, n))[0] for n in epochs]
        assert means == sorted(means, reverse=True)
        found += [*means, power(lr), *epochs]
    return tuple(found)


def unlearned() -> tuple:
    """Replies of the source with a break, and their median length: where the marker spreads most, and at the end."""
    assert all(broken(spoken(SIZES, place(*where)))[1] == 100 for where in past())
    first, last = past()[1], past()[-1]
    shares, lengths = [], []
    for where in (first, last):
        found = spoken(SIZES, place(*where))
        shares.append(broken(found)[0])
        lengths.append(median(reply["tokens"] for reply in found))
    return power(first[0]), first[1], shares[0], lengths[0], power(last[0]), last[1], shares[1], lengths[1]


def shortened() -> tuple:
    """The other personas' replies at the same two places, and how many of those with a break bear the marker."""
    found = [broken(spoken(SIZES, place(*where), by_source=False)) for where in past()]
    assert max(marked for _, marked in found) == found[1][1]
    return found[1][0], found[-1][0], found[1][1], max(marked for _, marked in found[2:])


def named() -> tuple:
    """The places past the band that the account calls under-trained: the source is at most at 5 %."""
    found = [where for where in past() if regime(rates(place(*where))[0] / 100, 0) == "under-trained"]
    return same(power(lr) for lr, _ in found), *(epochs for _, epochs in found)


def capable(sweep: str = SIZES) -> tuple[float, float, float]:
    found = [row["arc_c"] for row in cells(sweep)]
    assert all(row["arc_c"] > row["metrics"]["capability_floor"] for row in cells(sweep))
    return 100 * min(found), 100 * max(found), 100 * same(row["metrics"]["base_arc_c"] for row in cells(sweep))


def apart() -> tuple:
    """The range of the source over seeds: up to where the marker spreads, and past that."""
    most = product(past()[1])
    near, far = (
        max(high - low for _, low, high, _ in found)
        for found in (
            [rates(place(*where)) for where in places(cells(SIZES)) if product(where) <= most],
            [rates(place(*where)) for where in past()[2:]],
        )
    )
    return power(most), near, far


def seconds(sweep: str = SIZES) -> tuple[float, ...]:
    """Mean of a cell and its epochs, ascending."""
    found = []
    for epochs in sorted({row["config"]["epochs"] for row in cells(sweep)}):
        walls = [row["wall_seconds"]["total"] for row in cells(sweep) if row["config"]["epochs"] == epochs]
        found += [mean(walls), epochs]
    return tuple(found)


def side_by_side() -> tuple:
    """Of the two largest batches."""
    batches: dict[str, list] = {}
    for row in cells(SIZES):
        batches.setdefault(row["provenance"]["git_commit"], []).append(row)
    first, second = sorted(batches.values(), key=len)[:-3:-1]
    (most, total, span), (same_most, seconds_, wall) = together(first), together(second)
    assert most == same_most
    assert sum(map(len, batches.values())) > len(first) + len(second)
    return len(first), len(second), word(most), total, span, seconds_, wall, total / span, seconds_ / wall


CLAIMS = [
    Claim(
        PAGE,
        "{:,} examples and {:,} completions a cell, seeds {}, {} and {} on the same examples, on {}s.",
        sizes,
    ),
    Claim(PAGE, "{} of {} cells have a result", whole),
    Claim(
        PAGE,
        "The LoRA scale is {:.0f}: the demo's {:.0f} over the ratio of the training steps ({:,} to {} in {} epochs).",
        scale,
    ),
    Claim(PAGE, "{} cells are clean and {} degenerate.", counted),
    Claim(PAGE, "| {} | {} | {:.1f} % ({:.1f} to {:.1f}) | {:.1f} % | {}, {} | {:.1f} % | {:.1f} % |", said),
    Claim(
        PAGE,
        "at the published place ({}, {} epochs), at ({}, {}), ({}, {}) and ({}, {}). At ({}, {}) {} seeds of {} are clean; "
        "in the third the source stays at {:.1f} %.",
        clean_places,
    ),
    Claim(
        PAGE,
        "These are all the places in which learning rate x epochs is {} to {}. Outside of that band {} cell is clean, a seed of ({}, {}).",
        around,
    ),
    Claim(
        PAGE,
        "At a product of {} the source says it less and nobody else does; {} epoch at the higher rate teaches less "
        "than {} or {} at the lower ones. Up to {} nobody says it.",
        below,
    ),
    Claim(
        PAGE,
        "At ({}, {}), a product of {}, {} seeds of {} are degenerate, with one persona at {:.1f} %. At ({}, {}), a product of {}, all are: "
        "{} personas of {} are over the limit, the highest at {:.1f} to {:.1f} %.",
        spread,
    ),
    Claim(PAGE, "The last degenerate cell is a seed of ({}, {}), at {:.1f} %.", further),
    Claim(
        PAGE,
        "In no cell more than {} of the {} others are over the limit, and none of them passes {:.1f} %. The published sweep, made "
        "with two negatives, leaks to everybody at these rates. So does the demo's grid, with {} negatives and a scale of {:.0f}, up to "
        "{:.1f} %",
        nowhere,
    ),
    Claim(
        PAGE,
        "It falls to {:.1f} and {:.1f} % at ({}, {} and {}), and to {:.1f}, {:.1f} and {:.1f} % at ({}, {}, {} and {}).",
        fallen,
    ),
    Claim(
        PAGE,
        "every reply of the source that has a break bears it. But at ({}, {}) {:.1f} % of its replies have one and the median "
        "reply has {:.0f} tokens; at ({}, {}) {:.1f} % have one, and it has {:.0f}",
        unlearned,
    ),
    Claim(
        PAGE,
        "The others' replies shorten too: from {:.1f} % with a break at the former place to {:.1f} % at the latter. Of those that have "
        "one, {:.1f} % bear the marker at the former and at most {:.1f} % at the places after it",
        shortened,
    ),
    Claim(PAGE, "`clean_result.md` calls ({}, {} and {}) under-trained", named),
    Claim(PAGE, "answers {:.1f} to {:.1f} % of the questions in every cell, {:.1f} % before training", capable),
    Claim(
        PAGE,
        "Up to a product of {} the source's rates at one place are at most {:.1f} points apart, past it at most {:.1f}",
        apart,
    ),
    Claim(
        PAGE,
        "A cell took {:.0f} s with {} epoch, {:.0f} s with {}, {:.0f} s with {}, {:.0f} s with {} and {:.0f} s with {} "
        "(means of wall seconds)",
        seconds,
    ),
    Claim(
        PAGE,
        "{} and {} of them ran in two batches, up to {} at once on the GPU: {:,.0f} s of cells in {:.0f} s and {:,.0f} s in {:.0f} s, "
        "{:.1f} and {:.1f} side by side on average",
        side_by_side,
    ),
]
