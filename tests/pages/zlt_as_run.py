"""experiments/zlt_sweep/README.md, "As the published code ran", and the calibration at the published sizes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from statistics import mean, median
from typing import Any

from pages.claim import Claim, cells, completions, during, gpu, power, same, setting, together, word
from pages.reading import ROOT
from pages.zlt_sizes import band, capable, over, product, scale, seconds, size_of, unlearned
from pages.zlt_sweep import (
    AS_RUN,
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
from research.tasks.zlt_sweep.calibrate import choose, fitting
from research.tasks.zlt_sweep.derive import (
    ASSISTANT,
    LEAK_LIMIT,
    REGIMES,
    SOURCE_LIMIT,
    leak,
    persona_rates,
    regime,
    regime_of,
)

ALONE, CALIBRATION = "zlt_sweep/alone", "eval_results/zlt_sweep/calibration/published_sizes.json"
SWEEPS = SWEEP, SIZES, AS_RUN


def by_seed(lr: float, epochs: int, sweep: str = AS_RUN) -> list[dict[str, Any]]:
    """The seeds of a place in the order of the launch."""
    order = planned(AS_RUN)["axes"]["seed"]
    found = sorted(place(lr, epochs, sweep), key=lambda row: order.index(str(row["config"]["seed"])))
    assert [str(row["config"]["seed"]) for row in found] == order
    return found


def trained() -> tuple[str, ...]:
    return same(tuple(row["negatives"]) for row in cells(AS_RUN))


def rates_of_others(row: dict[str, Any]) -> dict[str, float]:
    """In percent."""
    return {who: 100 * rate for who, rate in persona_rates(row).items() if who != row["config"]["source"]}


def fitted() -> tuple:
    """What the calibration found: the scales that fit and the chosen one; why the used one just fits and the others do not."""
    found = json.loads((ROOT / CALIBRATION).read_text())
    rows = found["cells"]
    assert fitting(rows) == found["fitting"] and choose(rows) == found["chosen"]
    assert found["examples"] == setting(SIZES, "task.data.n_positives")
    weights = same(row["provenance"]["inputs"]["weights"] for row in cells(SIZES))
    assert found["model"]["weights"] == weights
    assert not any("git_commit" in row or "gpu" in row for row in rows)
    low, used, _, high = sorted({row["scale"] for row in rows})
    assert used == same(row["lora_scale"] for row in cells(SIZES)) and used in found["fitting"]
    clean = {(row["source"], row["scale"]): row for row in rows if (row["lr"], row["epochs"]) == PUBLISHED_PLACE}
    edge = min((row for row in clean.values() if row["scale"] == used), key=lambda row: row["source_marker"])
    assert edge["source_marker"] == SOURCE_LIMIT
    (weak,) = [row for row in clean.values() if row["source_marker"] < SOURCE_LIMIT]
    (wide,) = [row for row in clean.values() if row["highest_other"] > LEAK_LIMIT]
    assert (weak["scale"], wide["scale"]) == (low, high) and weak["source"] == wide["source"]
    least, weakest = (100 * row["source_marker"] for row in (edge, weak))
    leaks = 100 * wide["highest_other"]
    (ours,) = [
        scale
        for scale in found["fitting"]
        if all(row["regime"] == "clean" for row in clean.values() if row["scale"] == scale)
    ]
    assert edge["regime"] == "partial" and ours > used
    limit = 100 * SOURCE_LIMIT
    return (
        *found["fitting"], found["chosen"], limit, edge["source"], least, limit, ours, low, weak["source"], weakest, high, leaks,
    )  # fmt: skip


def sizes() -> tuple:
    """Who is trained, the sizes, and the scale by the rule of the grid above."""
    rows = cells(AS_RUN)
    same(row["data"]["sha256"] for row in rows)
    assert planned(AS_RUN)["axes"] == planned(SIZES)["axes"]
    untrained = same(map(others, rows)) - len(trained())
    assert ASSISTANT not in trained()
    ours, theirs = same(row["lora_scale"] for row in rows), same(row["lora_scale"] for row in cells(SWEEP))
    _, _, _, demo, epochs = scale()
    steps = same(row["train"]["steps"] for row in rows if row["config"]["epochs"] == epochs)
    assert round(theirs * demo / steps, 1) == ours
    examples = same(row["data"]["examples"] for row in rows)
    of, done = (word(len(trained())), word(same(map(others, rows)))), len(planned(AS_RUN)["cells"])
    return *of, *trained(), word(untrained), examples, steps, epochs, theirs, steps, demo, ours, len(rows), done


def regimes() -> tuple:
    count = Counter(map(regime_of, cells(AS_RUN)))
    low, partial, clean, onset, collapse = (count[name] for name in REGIMES)
    assert labels(cells(AS_RUN)) == (clean, onset + collapse)
    return low, word(partial), word(clean), onset, word(collapse), *planned(AS_RUN)["axes"]["seed"]


def said() -> list[tuple]:
    found = []
    for where in places(row for row in cells(AS_RUN) if max(row["source_marker"], leak(row)) > 0):
        rows = by_seed(*where)
        many = ", ".join(str(over(row)) for row in rows)
        found.append((power(where[0]), where[1], *rates(rows), many, *labels(rows), *broken(spoken(AS_RUN, rows))))
    return found


def band_products() -> tuple[float, float]:
    return min(map(product, band())), max(map(product, band()))


def below() -> tuple:
    """The products at which nobody says it and at which the source alone does; how many replies of others do there."""
    under = [row for row in cells(AS_RUN) if size_of(row) < band_products()[0]]
    silent = [row for row in under if row["source_marker"] == 0]
    partial = [row for row in under if row["source_marker"] > 0]
    assert max(map(leak, silent)) == 0 and max(map(size_of, silent)) < min(map(size_of, partial))
    replied = sum(reply["marker"] for reply in spoken(AS_RUN, partial, by_source=False))
    return power(max(map(size_of, silent))), power(same(map(size_of, partial))), word(replied)


def within(sweep: str) -> list[dict[str, Any]]:
    low, high = band_products()
    return [row for row in cells(sweep) if low <= size_of(row) <= high]


def in_band() -> tuple:
    low, high = band_products()
    (clean, bad), (were_clean, were_bad) = labels(within(AS_RUN)), labels(within(SIZES))
    assert clean + bad == len(within(AS_RUN)) == len(within(SIZES)) and were_bad == 0
    ten = same(len(row["negatives"]) for row in cells(SIZES))
    return power(low), power(high), word(ten), word(clean), len(within(AS_RUN)), word(bad), word(ten), were_clean


def clean_place() -> tuple:
    """The one place that is clean in every seed, and its highest other persona."""
    (where,) = [w for w in places(cells(AS_RUN)) if all(row["success"] for row in place(*w, AS_RUN))]
    highest = rates(place(*where, AS_RUN))[-1]
    assert highest == 100 * LEAK_LIMIT
    return power(where[0]), where[1], highest


def not_clean() -> tuple:
    """The other places of the band: how many seeds degenerate, how far."""
    left = [w for w in places(within(AS_RUN)) if labels(place(*w, AS_RUN))[1]]
    bad = {w: [row for row in place(*w, AS_RUN) if row["degeneration"]] for w in left}
    first, second, third, last = left
    assert first == PUBLISHED_PLACE and len(bad[first]) == len(bad[second])
    few = [row for w in (first, second, third) for row in bad[w]]
    assert same(map(over, few)) == 1 and len(bad[last]) == len(place(*last, AS_RUN))
    for w in (first, second, third):
        rows = place(*w, AS_RUN)
        average = round(mean(map(leak, rows)), 6)
        assert regime(mean(row["source_marker"] for row in rows), average) == "clean"
    at = [value for lr, epochs in left for value in (power(lr), epochs)]
    leaks = [100 * leak(row) for row in few]
    counts = word(len(bad[first])), word(len(bad[third])), word(len(bad[last]))
    far = 100 * max(map(leak, bad[last]))
    return *at[:4], counts[0], *at[4:6], counts[1], min(leaks), max(leaks), *at[6:], counts[2], far


def past(lr: float | None = None) -> list[dict[str, Any]]:
    """The cells past the band."""
    return [row for row in cells(AS_RUN) if size_of(row) > band_products()[1] and lr in (None, row["config"]["lr"])]


def spread() -> tuple:
    found = []
    low, high = sorted({row["config"]["lr"] for row in past()})
    for lr in (low, high):
        epochs = [row["config"]["epochs"] for row in past(lr)]
        leaks, many = [100 * leak(row) for row in past(lr)], list(map(over, past(lr)))
        found.append([power(lr), min(epochs), max(epochs), word(min(many)), word(max(many)), min(leaks), max(leaks)])
    rows = past(high)
    ten = same(map(others, rows))
    assert all(min(rates_of_others(row).values()) > 0 for row in rows)
    everybody = sum(over(row) == ten for row in rows)
    assert max(map(over, past(low))) < ten
    found[0].insert(5, word(ten))
    return *found[0], *found[1], len(rows), word(ten), word(everybody), word(ten)


def apart() -> tuple:
    lr, epochs = max((w for w in places(past(5e-5))), key=product)
    return power(lr), epochs, *(word(over(row)) for row in by_seed(lr, epochs))


def tie() -> tuple:
    """The cell that the rule calls collapse: a persona is as high as the source."""
    (row,) = [row for row in cells(AS_RUN) if regime_of(row) == "collapse"]
    (who,) = [name for name, rate in rates_of_others(row).items() if rate == 100 * leak(row)]
    assert leak(row) == row["source_marker"]
    return power(row["config"]["lr"]), row["config"]["epochs"], who, 100 * leak(row)


def negatives() -> tuple:
    """In the cells at the higher rate: the means of the trained and of the others, and the highest of the trained in any cell."""
    rows = past(max(row["config"]["lr"] for row in past()))
    ours = [rates_of_others(row)[who] for row in rows for who in trained()]
    theirs = [rate for row in rows for who, rate in rates_of_others(row).items() if who not in trained()]
    highest = max(rates_of_others(row)[who] for row in cells(AS_RUN) for who in trained())
    return len(rows), mean(ours), word(len(theirs) // len(rows)), mean(theirs), highest


def averages(sweep: str) -> dict[str, float]:
    """Every other persona's mean over the cells with somebody over the limit, ascending."""
    rows = [row for row in cells(sweep) if leak(row) > LEAK_LIMIT]
    found = {who: mean(rates_of_others(row)[who] for row in rows) for who in rates_of_others(rows[0])}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def ordered() -> tuple:
    """The lowest three of every grid, the lowest here; the ten are in the order of the grid above, but for its ties."""
    lowest = same(tuple(sorted(list(averages(sweep))[:3])) for sweep in SWEEPS)
    here, above = averages(AS_RUN), averages(SIZES)
    first, *_ = here
    assert first not in trained() and first == lowest[0] and set(lowest[1:]) == set(trained())
    assert all(set(lowest) <= set(same(tuple(row["negatives"]) for row in cells(sweep))) for sweep in (SWEEP, SIZES))
    assert all(above[low] <= above[high] + 1e-9 for low, high in pairwise(here))
    assert len({round(rate, 6) for rate in above.values()}) == len(above) - 2  # the lowest three, level
    return *lowest, word(len(lowest)), here[first], word(len(here))


def source_stays() -> tuple:
    """Past the band: the source's replies with a break and their medians, by place; the others', and these with the marker."""
    where = places(past())
    source = [spoken(AS_RUN, place(*w, AS_RUN)) for w in where]
    rest = [broken(spoken(AS_RUN, place(*w, AS_RUN), by_source=False)) for w in where]
    shares = [broken(found) for found in source]
    assert same(marked for _, marked in shares) == 100
    lengths = [median(reply["tokens"] for reply in found) for found in source]
    breaks = [share for share, _ in shares]
    theirs = [share for share, _ in rest]
    fell = unlearned()[-2]
    return min(breaks), max(breaks), min(lengths), max(lengths), fell, min(theirs), max(theirs), max(m for _, m in rest)


def batch() -> tuple:
    most, total, span = together(cells(AS_RUN))
    return word(most), gpu(AS_RUN), total, span


def alone() -> tuple:
    """A cell trained again with the GPU to itself: equal in every metric and every reply."""
    (ours,) = cells(ALONE)
    name = ours["cell"]["name"]
    (theirs,) = [row for row in cells(AS_RUN) if row["cell"]["name"] == name]
    assert ours["provenance"]["gpu"] == theirs["provenance"]["gpu"]
    assert ours["provenance"]["started"] > max(row["provenance"]["finished"] for row in cells(AS_RUN))
    for part in ("metrics", "counts", "eval", "loss"):
        assert ours[part] == theirs[part]
    assert completions(ALONE, name) == completions(AS_RUN, name)
    at = power(ours["config"]["lr"]), ours["config"]["epochs"], ours["config"]["seed"]
    times = [row["wall_seconds"][part] for row in (ours, theirs) for part in ("total", "train")]
    return *at, *times, len(completions(ALONE, name))


def shared() -> tuple:
    """For that cell: how many of the grid's ran at once while it did, how much longer it took so, and what follows from both."""
    (ours,) = cells(ALONE)
    (theirs,) = [row for row in cells(AS_RUN) if row["cell"]["name"] == ours["cell"]["name"]]
    start, end = during(theirs)
    beside = sum(max(0.0, (min(end, b) - max(start, a)).total_seconds()) for a, b in map(during, cells(AS_RUN)))
    at_once = beside / (end - start).total_seconds()
    slower = theirs["wall_seconds"]["total"] / ours["wall_seconds"]["total"]
    return at_once, slower, at_once / slower


def again() -> tuple:
    """The published place at the larger scale, for the section on fewer negatives."""
    rows = place(*PUBLISHED_PLACE, AS_RUN)
    average, *_, highest = rates(rows)
    steps, ours = same(row["train"]["steps"] for row in rows), same(row["lora_scale"] for row in rows)
    return ours, steps, average, highest, word(labels(rows)[1]), word(len(rows))


CLAIMS = [
    Claim(
        PAGE,
        "{:.1f} and {:.1f} fit, and {:.1f} is chosen. So the scale that was used fits, at the edge: the calibration asks for {:.0f} % or "
        "more, and with it `{}` is at {:.1f} %. A success of the study needs more than {:.0f} %, and that cell is partial: by the study's "
        "own rule only {:.1f} fits. At {:.1f} `{}` is at {:.1f} %, too little; at {:.1f}, with the same source, another persona is at "
        "{:.1f} %.",
        fitted,
    ),
    Claim(
        PAGE,
        "the negatives that the code draws, {} of {}: `{}` and `{}`. The other {}, `assistant` among them, stand in no example. There are "
        "{} examples, and {} steps in {} epochs. The LoRA scale follows the same rule: the demo's {:.0f} over the ratio of the steps "
        "({} to {}) is {:.1f}. It is not calibrated. {} of {} cells have a result",
        sizes,
    ),
    Claim(
        PAGE,
        "{} cells are under-trained, {} partial, {} clean, {} onset and {} is collapse. Every place at which anybody says the marker, "
        "over three seeds; the seeds stand in the order {}, {}, {}:",
        regimes,
    ),
    Claim(PAGE, "| {} | {} | {:.1f} % ({:.1f} to {:.1f}) | {:.1f} % | {} | {}, {} | {:.1f} % | {:.1f} % |", said),
    Claim(
        PAGE,
        "Up to a product of {} nobody says the marker. At {} the source does, and {} reply of all others together.",
        below,
    ),
    Claim(
        PAGE,
        "At {} to {}, the band of {} negatives, {} of {} cells are clean and {} degenerate; with {} {} were clean and none degenerate.",
        in_band,
    ),
    Claim(
        PAGE,
        "Only ({}, {}) is clean in every seed, in one of them with a persona at {:.1f} %, on the limit.",
        clean_place,
    ),
    Claim(
        PAGE,
        "Of the published place ({}, {}) and of ({}, {}) {} seed is degenerate, of ({}, {}) {}, with one persona at {:.1f} to {:.1f} %; "
        "of ({}, {}) all {}, up to {:.1f} %. `clean_result.md` calls the first three of these clean, by their means",
        not_clean,
    ),
    Claim(
        PAGE,
        "At {} with {} to {} epochs {} to {} of the {} others are over the limit, the highest at {:.1f} to {:.1f} %. At {} with {} to {} "
        "epochs {} to {} are, the highest at {:.1f} to {:.1f} %. In each of these {} cells all {} say it, in {} all {} are over the "
        "limit.",
        spread,
    ),
    Claim(PAGE, "at ({}, {}) {}, {} and {}.", apart),
    Claim(PAGE, "a seed of ({}, {}), and that by a tie: the source and `{}` are both at {:.1f} %.", tie),
    Claim(
        PAGE,
        "In those {} cells they are at {:.1f} % on average, the {} others at {:.1f} %; in single cells they reach {:.1f} %.",
        negatives,
    ),
    Claim(
        PAGE,
        "`{}`, `{}` and `{}` are the lowest {} here, in the grid above and in the demo's. There all three are trained; here the first "
        "is not, and it is the lowest, at {:.1f} %. But for a tie the order of the {} is the same here as above.",
        ordered,
    ),
    Claim(
        PAGE,
        "Past the band {:.1f} to {:.1f} % of its replies have a break, every one of these bears the marker, and the median reply has "
        "{:.1f} to {:.0f} tokens. With ten negatives the share falls to {:.1f} %. The others' replies shorten as well, but {:.1f} to "
        "{:.1f} % keep a break, and up to {:.1f} % of these bear the marker.",
        source_stays,
    ),
    Claim(
        PAGE, "{:.1f} to {:.1f} % of the questions in every cell, {:.1f} % before training.", lambda: capable(AS_RUN)
    ),
    Claim(PAGE, "Up to {} cells ran at once on one {}, beside other runs: {:,.0f} s of cells in {:.0f} s.", batch),
    Claim(
        PAGE,
        "A cell took {:.0f} s with {} epoch, {:.0f} s with {}, {:.0f} s with {}, {:.0f} s with {} and {:.0f} s with {} (means).",
        lambda: seconds(AS_RUN),
    ),
    Claim(
        PAGE,
        "({}, {}) with seed {} was run again with the GPU to itself (`eval_results/zlt_sweep/alone/`): {:.0f} s, of which {:.1f} s are "
        "training, against {:.0f} s and {:.1f} s beside the others. Every metric is the same to the last digit, and every one of the "
        "{:,} replies is the same.",
        alone,
    ),
    Claim(
        PAGE,
        "While it ran beside them, {:.1f} cells of the grid ran at once on average, itself among them, and it took {:.1f} times as long. "
        "If all of them slowed down like it, sharing did {:.1f} times the work of one cell after another.",
        shared,
    ),
    Claim(
        PAGE,
        "With a scale of {:.1f} {} steps do the same, {:.1f} % and {:.1f} %, with {} seed of {} degenerate",
        again,
    ),
]
