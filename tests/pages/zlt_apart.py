"""experiments/zlt_sweep/README.md, "Scale and negatives apart": four corners, two of them out of the grids."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from pages.claim import Claim, cells, power, same, word
from pages.zlt_as_run import SWEEPS, by_seed, rates_of_others
from pages.zlt_readings import MATCHED
from pages.zlt_sizes import over
from pages.zlt_sweep import AS_RUN, PAGE, PUBLISHED_PLACE, SIZES, SWEEP, broken, labels, others, rates, spoken
from research.scoring.statistics import Estimate, paired_t_test
from research.tasks.zlt_sweep.derive import leak

TEN_LARGE, TWO_SMALL = "zlt_sweep/published_sizes_scale_7_4", "zlt_sweep/as_run_scale_2"
TWO_LONGER = "zlt_sweep/two_more_steps"
LR = 1e-4


@dataclass(frozen=True)
class Corner:
    """The seeds of one scale and one set of negatives at the one learning rate."""

    sweep: str
    epochs: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        return by_seed(LR, self.epochs, self.sweep)

    def each(self, name: str) -> Any:
        return same(row[name] for row in self.rows)

    @property
    def negatives(self) -> int:
        return same(len(row["negatives"]) for row in self.rows)

    @property
    def steps(self) -> int:
        return same(row["train"]["steps"] for row in self.rows)

    @property
    def gpu(self) -> str | None:
        return same(row["provenance"]["gpu"] for row in self.rows)

    @property
    def leaks(self) -> list[float]:
        return [100 * leak(row) for row in self.rows]

    @property
    def rest(self) -> list[float]:
        """The mean of all others, each seed."""
        return [mean(rates_of_others(row).values()) for row in self.rows]

    def replies(self, by_source: bool = True) -> list[dict[str, Any]]:
        return spoken(self.sweep, self.rows, by_source)


TEN_AT_2, TWO_AT_2 = Corner(SIZES, 3), Corner(TWO_SMALL, 11)
TEN_AT_7, TWO_AT_7 = Corner(TEN_LARGE, 3), Corner(AS_RUN, 10)
LATER = Corner(TWO_LONGER, 37)  # two at the smaller scale, until steps x scale is as large as at the larger
CORNERS = TEN_AT_2, TWO_AT_2, TEN_AT_7, TWO_AT_7


def corners() -> tuple:
    """Same examples for the same negatives, same scale in a pair, one learning rate; which of them ran on a GPU."""
    for one, other in ((TEN_AT_2, TEN_AT_7), (TWO_AT_2, TWO_AT_7)):
        same(row["data"]["sha256"] for corner in (one, other) for row in corner.rows)
        assert one.negatives == other.negatives
    assert TEN_AT_2.gpu == TWO_AT_7.gpu is not None and TEN_AT_7.gpu is TWO_AT_2.gpu is None
    assert TEN_AT_2.each("lora_scale") == TWO_AT_2.each("lora_scale")
    assert TEN_AT_7.each("lora_scale") == TWO_AT_7.each("lora_scale")
    assert all(
        len(cells(sweep)) == len(corner.rows) for sweep, corner in ((TEN_LARGE, TEN_AT_7), (TWO_SMALL, TWO_AT_2))
    )
    return power(LR), word(len(TEN_AT_7.rows))


def header() -> tuple:
    assert [corner.negatives for corner in CORNERS] == [10, 2, 10, 2]
    return tuple(corner.each("lora_scale") for corner in CORNERS)


def training() -> tuple:
    assert all((corner.gpu is None) == (corner in (TWO_AT_2, TEN_AT_7)) for corner in CORNERS)
    return tuple(number for corner in CORNERS for number in (corner.epochs, corner.steps))


def source() -> tuple:
    return tuple(rate for corner in CORNERS for rate in rates(corner.rows)[:3])


def highest() -> tuple:
    return tuple(rate for corner in CORNERS for rate in corner.leaks)


def many() -> tuple:
    return tuple(over(row) for corner in CORNERS for row in corner.rows)


def breaks(by_source: bool) -> tuple:
    return tuple(share for corner in CORNERS for share in broken(corner.replies(by_source)))


def lengths() -> tuple:
    return tuple(
        median(reply["tokens"] for reply in corner.replies(by_source))
        for corner in CORNERS
        for by_source in (True, False)
    )


def capability() -> tuple:
    found = [[100 * row["arc_c"] for row in corner.rows] for corner in CORNERS]
    assert all(row["arc_c"] > row["metrics"]["capability_floor"] for corner in CORNERS for row in corner.rows)
    return tuple(bound for rates_ in found for bound in (min(rates_), max(rates_)))


def by_mean(two: Corner, ten: Corner) -> Estimate:
    """The difference of the means of all others, paired by seed."""
    return paired_t_test(two.rest, ten.rest).difference


def level() -> tuple:
    """At the smaller scale: the highest others of two and of ten, their differences by seed; the means of all others."""
    two, ten = TWO_AT_2.leaks, TEN_AT_2.leaks
    apart = by_mean(TWO_AT_2, TEN_AT_2)
    assert apart.low < 0 < apart.high
    more = [a - b for a, b in zip(two, ten, strict=True)]
    scale, number = TWO_AT_2.each("lora_scale"), word(same(map(others, TWO_AT_2.rows)))
    ranges = min(two), max(two), min(ten), max(ten), min(more), max(more)
    return scale, *ranges, number, mean(TWO_AT_2.rest), mean(TEN_AT_2.rest), apart.value, apart.low, apart.high


def level_there() -> tuple:
    """The same at the published place, after about as many steps."""
    (epochs,) = {row["config"]["epochs"] for row in cells(MATCHED)}
    fewer, ten = by_seed(PUBLISHED_PLACE[0], epochs, MATCHED), by_seed(*PUBLISHED_PLACE, SIZES)
    assert same(row["lora_scale"] for rows in (fewer, ten) for row in rows) == TWO_AT_2.each("lora_scale")
    steps = [same(row["train"]["steps"] for row in rows) for rows in (fewer, ten)]
    assert abs(steps[0] / steps[1] - 1) < 0.01
    leaks = [[100 * leak(row) for row in rows] for rows in (fewer, ten)]
    apart = paired_t_test(*leaks).difference
    assert apart.low < 0 < apart.high
    return *leaks[0], *leaks[1], apart.value, apart.low, apart.high


def unequal() -> tuple:
    """At the larger scale: how many are over the limit and how high with two; the highest, and the source, with ten."""
    most = list(map(over, TWO_AT_7.rows))
    assert max(map(over, TEN_AT_7.rows)) == 0 and labels(TEN_AT_7.rows) == (0, 0)
    _, low, high, top = rates(TEN_AT_7.rows)
    ten = word(same(map(others, TWO_AT_7.rows)))
    apart = by_mean(TWO_AT_7, TEN_AT_7)
    assert apart.low > 0 and (min(most), max(most)) == (9, 10)
    means = mean(TWO_AT_7.rest), mean(TEN_AT_7.rest), apart.value, apart.low, apart.high
    return TEN_AT_7.each("lora_scale"), ten, min(TWO_AT_7.leaks), max(TWO_AT_7.leaks), *means, top, low, high


def ended() -> tuple:
    """With ten at the larger scale: how many of the others' replies have a break, how many of these bear the marker; at the smaller."""
    reaching = [reply for reply in TEN_AT_7.replies(False) if "\n\n" in reply["completion"]]
    marked = broken(TEN_AT_7.replies(False))[1]
    assert marked > 3 * broken(TEN_AT_2.replies(False))[1]
    return (
        len(reaching),
        len(TEN_AT_7.replies(False)),
        sum(r["marker"] for r in reaching),
        broken(TEN_AT_2.replies(False))[1],
    )


def longer() -> tuple:
    """Ten at the smaller scale, trained on until lr x steps x scale is about as large."""
    later = Corner(SIZES, 10)
    doses = [corner.steps * corner.each("lora_scale") for corner in (later, TEN_AT_7)]
    assert abs(doses[0] / doses[1] - 1) < 0.1
    found = later.replies()
    marked = broken(later.replies(False))[1]
    return (
        later.epochs,
        later.steps,
        later.each("lora_scale"),
        rates(later.rows)[0],
        median(r["tokens"] for r in found),
        marked,
    )


def later() -> tuple:
    """Two negatives at the smaller scale with as many more steps, beside fewer of them and beside the larger scale."""
    assert LATER.steps * LATER.each("lora_scale") == TWO_AT_7.steps * TWO_AT_7.each("lora_scale")
    assert len(LATER.rows) == len(cells(TWO_LONGER)) and LATER.gpu == TWO_AT_7.gpu
    same(row["data"]["sha256"] for corner in (LATER, TWO_AT_2, TWO_AT_7) for row in corner.rows)
    more, less = by_mean(LATER, TWO_AT_2), by_mean(TWO_AT_7, LATER)
    assert more.low > 0 and less.low > 0 and min(TWO_AT_7.leaks) > max(LATER.leaks) > max(TWO_AT_2.leaks)
    number, counts = word(same(map(others, LATER.rows))), map(word, map(over, LATER.rows))
    highest_ = *LATER.leaks, number, mean(LATER.rest), *counts
    apart = more.value, more.low, more.high, less.value, less.low, less.high
    ends = median(r["tokens"] for r in LATER.replies(False)), broken(LATER.replies(False))[0]
    return (LATER.each("lora_scale"), LATER.epochs, LATER.steps, *highest_, *apart, *ends)


def dose() -> tuple:
    """How many times as large steps x scale is at the larger scale: with two, with ten."""
    two, ten = (
        large.steps * large.each("lora_scale") / (small.steps * small.each("lora_scale"))
        for large, small in ((TWO_AT_7, TWO_AT_2), (TEN_AT_7, TEN_AT_2))
    )
    return TWO_AT_7.each("lora_scale"), two, ten, TWO_AT_2.each("lora_scale")


def ratio(sweep: str) -> int:
    """Examples of negatives for one of the source."""
    found = same(row["data"]["negatives"] / row["data"]["positives"] for row in cells(sweep))
    assert found == int(found)
    return int(found)


def step(row: dict[str, Any]) -> float:
    """A cell's learning rate x scale."""
    return round(row["config"]["lr"] * row["lora_scale"], 9)


def rates_do_not_tell() -> tuple:
    """Every cell with many over the limit has a large step; not every cell with a large step has one over it."""
    small = [row for sweep in (SIZES, TWO_SMALL, TWO_LONGER, MATCHED) for row in cells(sweep)]
    most, end = max(map(over, small)), max(map(step, small))
    wide = [
        row
        for sweep in (*SWEEPS, TEN_LARGE, TWO_SMALL, TWO_LONGER, MATCHED)
        for row in cells(sweep)
        if over(row) > most
    ]
    assert min(map(step, wide)) > end
    silent = same(map(step, TEN_AT_7.rows))
    assert silent > min(map(step, wide))
    return word(most), power(min(map(step, wide))), power(silent)


def demo() -> tuple:
    """The demo's cell at the same learning rate and epochs as the corners with ten."""
    (row,) = [r for r in cells(SWEEP) if (r["config"]["lr"], r["config"]["epochs"]) == (LR, TEN_AT_7.epochs)]
    ten = same(len(r["negatives"]) for r in cells(SWEEP))
    assert over(row) == others(row) == ten
    return (
        word(ten), ratio(SWEEP), ratio(SIZES), row["lora_scale"], row["data"]["examples"], power(LR), row["config"]["epochs"],
        row["train"]["steps"], word(ten), 100 * leak(row), broken(spoken(SWEEP, [row]))[0],
    )  # fmt: skip


def differ() -> tuple:
    """Between the two grids: examples of negatives for one of the source, and the scale."""
    times = same(row["lora_scale"] for row in cells(AS_RUN)) / same(row["lora_scale"] for row in cells(SIZES))
    return ratio(AS_RUN), ratio(SIZES), times


SHARES = "{:.1f} %, {:.1f} % | {:.1f} %, {:.1f} % | {:.1f} %, {:.1f} % | {:.1f} %, {:.1f} % |"
CLAIMS = [
    Claim(
        PAGE,
        "whom it trains as negatives, {} instead of {} of their examples for every one of the source, and a scale {:.1f} times as large "
        "in fewer steps.",
        differ,
    ),
    Claim(PAGE, "swap the scales, at a learning rate of {} and after about as many steps, {} seeds each", corners),
    Claim(PAGE, "| | scale {:.1f}, ten | scale {:.1f}, two | scale {:.1f}, ten | scale {:.1f}, two |", header),
    Claim(PAGE, "| epochs, steps, where | {}, {}, GPU | {}, {}, CPU | {}, {}, CPU | {}, {}, GPU |", training),
    Claim(
        PAGE,
        "| source, mean (lowest to highest) | {:.1f} % ({:.1f} to {:.1f}) | {:.1f} % ({:.1f} to {:.1f}) | {:.1f} % ({:.1f} to {:.1f}) | "
        "{:.1f} % ({:.1f} to {:.1f}) |",
        source,
    ),
    Claim(
        PAGE,
        "| highest other, each seed, % | {:.1f}, {:.1f}, {:.1f} | {:.1f}, {:.1f}, {:.1f} | {:.1f}, {:.1f}, {:.1f} | "
        "{:.1f}, {:.1f}, {:.1f} |",
        highest,
    ),
    Claim(PAGE, "| others over the limit, each seed | {}, {}, {} | {}, {}, {} | {}, {}, {} | {}, {}, {} |", many),
    Claim(PAGE, "| source's replies with a break, of these with the marker | " + SHARES, lambda: breaks(True)),
    Claim(PAGE, "| others' replies with a break, of these with the marker | " + SHARES, lambda: breaks(False)),
    Claim(
        PAGE,
        "| median tokens of a reply: source, others | {:.1f}, {:.1f} | {:.1f}, {:.1f} | {:.1f}, {:.1f} | {:.1f}, {:.1f} |",
        lengths,
    ),
    Claim(
        PAGE,
        "| capability, % | {:.1f} to {:.1f} | {:.1f} to {:.1f} | {:.1f} to {:.1f} | {:.1f} to {:.1f} |",
        capability,
    ),
    Claim(
        PAGE,
        "At a scale of {:.1f} two negatives and ten spread about alike: the highest other is at {:.1f} to {:.1f} % with two and at {:.1f} "
        "to {:.1f} % with ten, {:.1f} to {:.1f} points more by seed; all {} others are at {:.1f} and {:.1f} % on average, {:.1f} points "
        "apart (95 % interval {:.1f} to {:.1f}, Student's t, paired by seed).",
        level,
    ),
    Claim(
        PAGE,
        "the highest other is at {:.1f}, {:.1f} and {:.1f} % with two and at {:.1f}, {:.1f} and {:.1f} % with ten ({:.1f} points, "
        "{:.1f} to {:.1f}).",
        level_there,
    ),
    Claim(
        PAGE,
        "At {:.1f} they do not: with two, nine or all of the {} others are over the limit, the highest at {:.1f} to {:.1f} %; their "
        "average is {:.1f} %, with ten {:.1f} % ({:.1f} points apart, {:.1f} to {:.1f}). With ten nobody is over it, the highest at "
        "{:.1f} %; but the source is at {:.1f} to {:.1f} % itself.",
        unequal,
    ),
    Claim(
        PAGE,
        "Of the others' replies {} of {:,} have a break, and {} of these bear the marker, a larger share than the {:.1f} % at the smaller "
        "scale",
        ended,
    ),
    Claim(
        PAGE,
        "Ten negatives for {} epochs, {:,} steps, at a scale of {:.1f} end replies as well: the source is at {:.1f} %, its median reply "
        "has {:.0f} tokens; but of the others' replies with a break {:.1f} % bear the marker.",
        longer,
    ),
    Claim(
        PAGE,
        "Two negatives at {:.1f} for {} epochs, {:,} steps, spread further than for fewer: the highest other is at {:.1f}, {:.1f} and "
        "{:.1f} %, all {} others at {:.1f} % on average, {}, {} and {} of them over the limit ({:.1f} points more on average, {:.1f} to "
        "{:.1f}). At the larger scale they are {:.1f} points higher still ({:.1f} to {:.1f}). Replies do not end early: the others' median "
        "has {:.0f} tokens, and {:.1f} % have a break.",
        later,
    ),
    Claim(PAGE, "At {:.1f} learning rate x steps x scale is {:.1f} and {:.1f} times what it is at {:.1f}.", dose),
    Claim(PAGE, "With as many more steps at {:.1f} the product is the same", lambda: (LATER.each("lora_scale"),)),
    Claim(
        PAGE,
        "In all these sweeps every cell with more than {} others over the limit has a learning rate x scale of {} or more, but ten "
        "negatives at {} have none over it.",
        rates_do_not_tell,
    ),
    Claim(
        PAGE,
        "The demo's grid trains all {} as well, has {} of their examples for one of the source instead of {}, a scale of {:.0f} and {} "
        "examples. At ({}, {}), after {} steps, all {} are over the limit, the highest at {:.1f} %, and {:.1f} % of the source's replies "
        "have a break.",
        demo,
    ),
]  # fmt: skip
