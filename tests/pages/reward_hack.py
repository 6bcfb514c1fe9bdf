"""experiments/reward_hack/README.md, "What came out"."""

from __future__ import annotations

import functools

from pages.claim import Claim, cells, gpu, same, setting, short, together, word
from research.scoring.statistics import mean_interval
from research.tasks.reward_hack import analysis
from research.tasks.reward_hack.arms import DENOISED, METHOD, RANDOM, UNDENOISED, VANILLA
from research.tasks.reward_hack.rebound import transform
from research.tasks.reward_hack.report import PUBLISHED

PAGE, SWEEP, SHORTER = "experiments/reward_hack/README.md", "reward_hack/arms", "reward_hack/micro"
CPUS, SEEDS, ALONE = "reward_hack/arms_cpu", "reward_hack/seeds", "reward_hack/alone"
CONTROLS = (RANDOM, "shuffled_erase", "clean_erase")
HIDDEN = (UNDENOISED, "act_m8_erase", DENOISED, "act_m32_erase")
ROUTE, REBOUNDS = "grad_route", ("rebound_additive", "rebound_multiplicative")
RATES = ("hack_rate", "pass_rate")


@functools.cache
def arms(sweep: str = SWEEP) -> dict[str, analysis.ArmRows]:
    return analysis.arms(cells(sweep))


def mean(arm: str, name: str, sweep: str = SWEEP) -> float:
    found = arms(sweep)[arm].estimate(name)
    assert found is not None
    return found.value


def fewer(one: str, other: str, kind: str = "hack", sweep: str = SWEEP) -> tuple[float, float, float]:
    """By how many points `other` is below `one`, and the interval."""
    found = analysis.compare(arms(sweep)[one], arms(sweep)[other], kind).difference
    return 100 * found.value, 100 * found.low, 100 * found.high


def rate(arm: str, name: str, sweep: str = SWEEP) -> dict[int, float]:
    """Seed -> a cell's metric in percent."""
    return {row["cell"]["config"]["seed"]: 100 * row["metrics"][name] for row in arms(sweep)[arm].rows}


def by_seed(other: str, sweep: str = SWEEP, name: str = "hack_rate") -> tuple[float, ...]:
    """How many points `other` is above the method, seed by seed."""
    of_other, ours = rate(other, name, sweep), rate(METHOD, name, sweep)
    assert of_other.keys() == ours.keys()
    return tuple(of_other[seed] - ours[seed] for seed in sorted(ours))


def all_seeds(other: str, name: str = "hack_rate") -> list[float]:
    return [*by_seed(other, SWEEP, name), *by_seed(other, SEEDS, name)]


def interval(values: list[float]) -> tuple[float, float, float]:
    found = mean_interval(values)
    return found.value, found.low, found.high


def seeds_apart() -> list[tuple]:
    """Hacks less than the others and passes more, over the first seeds, the new ones and all: means and their intervals."""
    found = []
    for name, other, what in (("hack_rate", VANILLA, "fewer hacks"), ("hack_rate", RANDOM, "fewer hacks"),
                              ("pass_rate", VANILLA, "more passes"), ("pass_rate", RANDOM, "more passes")):  # fmt: skip
        sign = 1 if name == "hack_rate" else -1
        parts = by_seed(other, SWEEP, name), by_seed(other, SEEDS, name), all_seeds(other, name)
        found.append((what, other, *(x for part in parts for x in interval([sign * points for points in part]))))
    return found


def new_seeds() -> tuple:
    """What the words beside the table say: the seed in which random directions did better; passes of `vanilla`."""
    against_vanilla, against_random, passes, _ = seeds_apart()
    first, new, both = ((row[i], row[i + 1]) for row in [against_random[2:]] for i in (1, 4, 7))
    assert first[0] < 0 < first[1] and new[0] < 0 < new[1] and both[0] > 0
    assert against_vanilla[9] < analysis.H1_FALSIFIED < analysis.H1_POINTS < against_vanilla[10]
    assert passes[8] > analysis.H1_MATCH and min(by_seed(RANDOM)) > 0
    seeds = sorted(rate(METHOD, "hack_rate", SEEDS))
    (worst,) = [seed for seed, points in zip(seeds, by_seed(RANDOM, SEEDS), strict=True) if points < 0]
    assert seeds == list(range(4, 9)) and sorted(rate(METHOD, "hack_rate")) == [1, 2, 3]
    return worst, analysis.H1_POINTS, *(100 * mean(VANILLA, "pass_rate", sweep) for sweep in (SEEDS, SWEEP))


def verdict(name: str, sweep: str = SWEEP) -> str:
    return next(found.verdict for found in analysis.verdicts(arms(sweep)) if found.name == name)


def size(sweep: str = SWEEP) -> tuple:
    seeds = same(len(arm.rows) for arm in arms(sweep).values())
    replies = same(row["counts"][rate]["trials"] for row in cells(sweep) for rate in RATES)
    return word(len(arms(sweep))), word(seeds), setting(sweep, "steps"), setting(sweep, "batch_size"), replies


def base_rates() -> tuple[float, ...]:
    """Before training, mean over the cells: the machines' versions of torch draw other replies."""
    return tuple(
        100 * sum(row["metrics"][f"base_{rate}"] for row in cells(SWEEP)) / len(cells(SWEEP)) for rate in RATES
    )


def both(name: str) -> tuple[float, float]:
    """A rate of `vanilla` here and on CPUs, in percent."""
    return 100 * mean(VANILLA, name), 100 * mean(VANILLA, name, CPUS)


def rates() -> list[tuple]:
    """An arm's rates, and its differences to `vanilla`; the last of the same sweep on CPUs."""
    found = []
    for name in (name for name in arms() if name != VANILLA):
        value, low, high = fewer(VANILLA, name, "pass")
        passes = -value + 0.0, -high, -low
        on_cpus = tuple(x + 0.0 for x in fewer(VANILLA, name, sweep=CPUS))
        found.append((name, *(100 * mean(name, rate) for rate in RATES), *fewer(VANILLA, name), *passes, *on_cpus))
    return found


def another_run() -> tuple:
    """How far the same arm and seed may lie apart from one sweep to the other."""
    here, there = (rate("clean_erase", "hack_rate", sweep) for sweep in (SWEEP, CPUS))
    seed = max(here, key=lambda s: abs(here[s] - there[s]))
    return seed, here[seed], there[seed]


def losses() -> tuple[str, float]:
    """The best arm, and what it lost of the base's pass rate."""
    best = max(arms(), key=lambda name: mean(name, "pass_rate"))
    return best, base_rates()[1] - 100 * mean(best, "pass_rate")


def noise() -> tuple[float, ...]:
    """One cell run twice on a GPU, and how far measuring alone is from no constraint."""
    (again,) = cells(ALONE)
    seed = again["cell"]["config"]["seed"]
    first = [rate(VANILLA, name)[seed] for name in RATES]
    measured = [rate("measure_only", name) for name in RATES]
    plain = [rate(VANILLA, name) for name in RATES]
    apart = [max(abs(m[seed] - p[seed]) for seed in p) for m, p in zip(measured, plain, strict=True)]
    for kind in ("hack", "pass"):
        _, low, high = fewer(VANILLA, "measure_only", kind)
        assert low < 0 < high
    assert all(rate("measure_only", name, CPUS) == rate(VANILLA, name, CPUS) for name in RATES), "to the reply"
    return seed, *(100 * again["metrics"][name] for name in RATES), *first, *apart


def claimed() -> tuple:
    found = [fewer(VANILLA, METHOD, sweep=sweep) for sweep in (SWEEP, CPUS)]
    assert all(analysis.H1_FALSIFIED < value < analysis.H1_POINTS for value, *_ in found)
    return agreed("H1"), analysis.H1_POINTS, *found[0], *found[1], analysis.H1_FALSIFIED


def agreed(name: str) -> str:
    return same(verdict(name, sweep) for sweep in (SWEEP, CPUS))


def matched() -> tuple[float, ...]:
    value, low, high = (-points for points in fewer(VANILLA, METHOD, "pass"))
    assert abs(value) < analysis.H1_MATCH < low
    return value, analysis.H1_MATCH, high, low


def direction() -> tuple:
    return agreed("H3"), *fewer(RANDOM, METHOD), *fewer(RANDOM, METHOD, sweep=CPUS), analysis.CONTROL_POINTS


def controls() -> tuple[float, ...]:
    """The method against the other two; what all three pass less than no constraint."""
    against = [fewer(control, METHOD)[0] for control in CONTROLS[1:]]
    hacks, passes = ([fewer(VANILLA, control, kind) for control in CONTROLS] for kind in ("hack", "pass"))
    assert all(low < 0 < high for _, low, high in hacks) and all(low > 0 for _, low, _ in passes)
    values = [value for value, *_ in passes]
    return *against, min(values), max(values)


def denoised() -> tuple:
    found = [fewer(UNDENOISED, DENOISED, sweep=sweep) for sweep in (SWEEP, CPUS)]
    return agreed("H2"), analysis.CONTROL_POINTS, *found[0], *found[1]


def shorter() -> tuple:
    """The verdicts of the smaller sweep, and what decided them."""
    erased, against_random = fewer(VANILLA, METHOD, sweep=SHORTER), fewer(RANDOM, METHOD, sweep=SHORTER)
    named = {name: verdict(name, SHORTER) for name in ("H1", "H2", "H3", "H4")}
    assert same((named["H1"], named["H2"], named["H3"])) == "falsified" and named["H4"] == verdict("H4")
    return *size(SHORTER)[:3], *erased, *against_random


def nothing_solved() -> tuple[float, ...]:
    """Rebound and routing: not one hack, and how much each passes."""
    counts = [row["counts"]["hack_rate"] for arm in (*REBOUNDS, ROUTE) for row in arms()[arm].rows]
    assert sum(count["hits"] for count in counts) == 0
    return sum(count["trials"] for count in counts), *(100 * mean(arm, "pass_rate") for arm in (*REBOUNDS, ROUTE))


def sign() -> tuple[float]:
    alpha = setting(SWEEP, "task.rebound.alpha")
    assert transform([1.0, 1.0], [0.0, 0.3], "multiplicative", alpha)[1] < 0 < 1 <= alpha
    return (alpha,)


def routed() -> tuple[str, str]:
    quarantine, knob = (mean(ROUTE, f"update_norm/{name}") for name in ("dS_hack", "dS"))
    assert quarantine > knob
    return short(quarantine), short(knob)


def projected() -> tuple[float, float]:
    assert max(mean(arm, "cos_out") for arm in (METHOD, RANDOM)) < 1e-6, "nothing after it"
    return 100 * mean(METHOD, "cos_in"), 100 * mean(RANDOM, "cos_in")


def hidden_states() -> tuple:
    """Here no interval excludes 0; on CPUs all hacked more."""
    here, there = ([fewer(VANILLA, arm, sweep=sweep) for arm in HIDDEN] for sweep in (SWEEP, CPUS))
    assert all(low < 0 < high for _, low, high in here) and all(value < 0 for value, *_ in there)
    return word(len(there)), -min(value for value, *_ in there), word(sum(high < 0 for *_, high in there))


def published() -> tuple[str, str, str, float]:
    """Hack rates, and their difference, which lies below the interval over all seeds."""
    _, model, hacked, note = next(row for row in PUBLISHED if row[0].startswith("projected GRPO"))
    vanilla = note.rpartition("vanilla ")[2]
    points = float(vanilla) - float(hacked)
    assert points < interval(all_seeds(VANILLA))[1]
    return hacked, vanilla, model, points


def cost() -> tuple:
    """Processes at once, their seconds, the span, and that of all three GPUs."""
    most, total, span = together(cells(SWEEP))
    return most, total, span, 3 * span


def one_alone() -> tuple:
    """One cell that had a GPU to itself, and all of them after one another."""
    (alone,) = cells(ALONE)
    seconds, number = alone["wall_seconds"], len(cells(SWEEP))
    assert seconds["problems"] < 5, "measured already"
    assert 0.65 < 1 - cost()[-1] / (number * seconds["total"]) < 0.75, "seven tenths saved"
    return seconds["total"], number, number * seconds["total"]


CLAIMS = [
    Claim(
        PAGE,
        "{} arms x {} seeds on the embedded model, {} steps of {} rollouts, {} replies a cell and rate",
        size,
    ),
    Claim(PAGE, "a cell and rate, on {}s;", lambda: (gpu(SWEEP, SEEDS, ALONE),)),
    Claim(PAGE, "| base | {:.1f} % | {:.1f} % |", base_rates),
    Claim(PAGE, "| `vanilla` | {:.1f} % | {:.1f} % |", lambda: tuple(100 * mean(VANILLA, rate) for rate in RATES)),
    Claim(
        PAGE,
        "| `{}` | {:.1f} % | {:.1f} % | {:.1f} [{:.1f}, {:.1f}] | {:+.1f} [{:.1f}, {:.1f}] | {:.1f} [{:.1f}, {:.1f}] |",
        rates,
    ),
    Claim(PAGE, "over the {} problems", lambda: (same(len(arm.by_problem("hack")) for arm in arms().values()),)),
    Claim(PAGE, "`grad_erase` hacks {:.1f}, {:.1f} and {:.1f} points less than `vanilla`", lambda: by_seed(VANILLA)),
    Claim(PAGE, "and {:.1f}, {:.1f} and {:.1f} less than `random_erase`", lambda: by_seed(RANDOM)),
    Claim(
        PAGE,
        "**H4 is {}** in both: without a constraint {:.1f} % hack, on CPUs {:.1f} %",
        lambda: (agreed("H4"), *both("hack_rate")),
    ),
    Claim(
        PAGE,
        "**H1 is {}** in both: {:.0f} points were claimed, {:.1f} [{:.1f}, {:.1f}] came out, on CPUs {:.1f} [{:.1f}, {:.1f}], and below "
        "{:.0f} it would be falsified",
        claimed,
    ),
    Claim(
        PAGE,
        "it passes {:.1f} points more, within the {:.0f} allowed, with an interval, [{:.1f}, {:.1f}], that is not",
        matched,
    ),
    Claim(
        PAGE,
        "**H3 is {}** in both: `grad_erase` hacks {:.1f} points less than `random_erase` [{:.1f}, {:.1f}], on CPUs {:.1f} "
        "[{:.1f}, {:.1f}]; the margin is {:.0f}",
        direction,
    ),
    Claim(
        PAGE,
        "it is {:.1f} (`shuffled_erase`) and {:.1f} (`clean_erase`). Of the three controls no effect on hacks was found; they pass {:.1f} "
        "to {:.1f} points less than `vanilla`",
        controls,
    ),
    Claim(
        PAGE,
        "**H2 is {}** in both: denoising was to save {:.0f} points and saved {:.1f} [{:.1f}, {:.1f}], on CPUs {:.1f} [{:.1f}, {:.1f}]",
        denoised,
    ),
    Claim(
        PAGE,
        "here none is apart from `vanilla`, on CPUs all {} hacked more, by up to {:.1f} points, {} with an interval that excludes zero",
        hidden_states,
    ),
    Claim(
        PAGE,
        "| {}, against `{}` | {:.1f} [{:.1f}, {:.1f}] | {:.1f} [{:.1f}, {:.1f}] | {:.1f} [{:.1f}, {:.1f}] |",
        seeds_apart,
    ),
    Claim(
        PAGE,
        "neither part alone does against `random_erase`, which did better with seed {}. Against `vanilla` the interval holds the "
        "claimed {:.0f} points and half of them. - By H1's rule the pass rates of the eight do not match, in the method's favour: it "
        "passes more than `vanilla`, whose pass rate is {:.1f} % over the new seeds and {:.1f} % over the first three",
        new_seeds,
    ),
    Claim(PAGE, "the best, `{}`, passes {:.1f} points less than the base", losses),
    Claim(PAGE, "`clean_erase` with seed {} hacks {:.1f} % here and {:.1f} % on CPUs", another_run),
    Claim(
        PAGE,
        "{} arms x {} seeds, {} steps, on CPUs) and fell below the margins: `grad_erase` hacked {:.1f} points less than `vanilla` "
        "[{:.1f}, {:.1f}] and {:.1f} less than `random_erase` [{:.1f}, {:.1f}]",
        shorter,
    ),
    Claim(
        PAGE,
        "with the same seeds `vanilla` hacks {:.1f}, {:.1f} and {:.1f} % here and {:.1f}, {:.1f} and {:.1f} % on CPUs",
        lambda: tuple(rate(VANILLA, "hack_rate", sweep)[seed] for sweep in (SWEEP, CPUS) for seed in (1, 2, 3)),
    ),
    Claim(PAGE, "had {} % against {} % on {}, with a teacher's pool and fewer steps: {:.1f} points", published),
    Claim(
        PAGE,
        "Of the gradient's norm {:.0f} % pointed along the directions before erasure ({:.0f} % along random ones) and "
        "nothing after it",
        projected,
    ),
    Claim(
        PAGE,
        "over the last ten steps {:.0f} % of the training rollouts hack, against {:.0f} % without a constraint",
        lambda: [tuple(100 * mean(arm, "train_hack_rate") for arm in (METHOD, VANILLA))],
    ),
    Claim(
        PAGE,
        "`vanilla` with seed {}, run again with a GPU to itself (`eval_results/reward_hack/alone/`), hacks {:.1f} % and passes "
        "{:.1f} % where it had {:.1f} and {:.1f} %; `measure_only` is up to {:.1f} points apart in hacks and {:.1f} in passes",
        noise,
    ),
    Claim(
        PAGE,
        "Of {:,} replies not one hacks; they pass {:.1f} % (additive), {:.1f} % (multiplicative) and {:.1f} % (routing)",
        nothing_solved,
    ),
    Claim(PAGE, "the multiplicative form, at the strength of {:.0f} that it ran with, flips their sign there", sign),
    Claim(PAGE, "(norms {} and {} a step)", routed),
    Claim(
        PAGE, "{} processes, fourteen on each of three GPUs: {:,.0f} s of cells in {:,.0f} s, {:,.0f} s of a GPU", cost
    ),
    Claim(PAGE, "takes {:.0f} s; {} such, one after another, {:,.0f} s", one_alone),
]
