"""experiments/reward_hack/README.md, "What came out"."""

from __future__ import annotations

import functools

from pages.claim import Claim, cells, same, setting, short, word
from pages.zlt_sweep import together
from research.scoring.statistics import mean_interval
from research.tasks.reward_hack import analysis
from research.tasks.reward_hack.arms import DENOISED, METHOD, RANDOM, UNDENOISED, VANILLA
from research.tasks.reward_hack.rebound import transform
from research.tasks.reward_hack.report import PUBLISHED

PAGE, SWEEP, SHORTER = "experiments/reward_hack/README.md", "reward_hack/arms", "reward_hack/micro"
SEEDS, ALONE = "reward_hack/seeds", "reward_hack/alone"
CONTROLS = (RANDOM, "shuffled_erase", "clean_erase")
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


def over_seeds() -> tuple:
    """Both sweeps' seeds as the unit: points below `vanilla` and below the random directions, and points passed more."""
    found: list = [word(len(all_seeds(VANILLA)))]
    for other in (VANILLA, RANDOM):
        differences = all_seeds(other)
        found += [*interval(differences), min(differences), max(differences)]
    seeds = sorted(rate(METHOD, "hack_rate", SEEDS))
    (worst,) = [seed for seed, points in zip(seeds, by_seed(RANDOM, SEEDS), strict=True) if points < 0]
    assert min(by_seed(RANDOM)) > 0
    passes = interval([-points for points in all_seeds(VANILLA, "pass_rate")])
    rates = [100 * mean(VANILLA, "pass_rate", sweep) for sweep in (SEEDS, SWEEP)]
    assert found[2] < analysis.H1_FALSIFIED < analysis.H1_POINTS < found[3], "both within the interval"
    return *found, worst, *passes, *rates


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


def rates() -> list[tuple]:
    """An arm's rates, and both differences to `vanilla`."""
    found = []
    for name in (name for name in arms() if name != VANILLA):
        passes = -fewer(VANILLA, name, "pass")[0] + 0.0
        found.append((name, *(100 * mean(name, rate) for rate in RATES), *fewer(VANILLA, name), passes))
    return found


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
    return seed, *(100 * again["metrics"][name] for name in RATES), *first, *apart


def claimed() -> tuple:
    value, low, high = fewer(VANILLA, METHOD)
    assert analysis.H1_FALSIFIED < value < analysis.H1_POINTS
    return verdict("H1"), analysis.H1_POINTS, value, low, high, analysis.H1_FALSIFIED


def matched() -> tuple[float, ...]:
    value, low, high = (-points for points in fewer(VANILLA, METHOD, "pass"))
    assert abs(value) < analysis.H1_MATCH and high < 0 < low
    return value, high, low, analysis.H1_MATCH


def direction() -> tuple:
    return verdict("H3"), *fewer(RANDOM, METHOD), analysis.CONTROL_POINTS


def controls() -> tuple[float, ...]:
    """The method against the other two; all three against no constraint."""
    against = [fewer(control, METHOD)[0] for control in CONTROLS[1:]]
    hacks, passes = ([fewer(VANILLA, control, kind) for control in CONTROLS] for kind in ("hack", "pass"))
    assert all(low < 0 < high for _, low, high in hacks) and all(low > 0 for _, low, _ in passes)
    values = [[value for value, *_ in found] for found in (hacks, passes)]
    return *against, *(limit(found) for found in values for limit in (min, max))


def denoised() -> tuple:
    return verdict("H2"), analysis.CONTROL_POINTS, *fewer(UNDENOISED, DENOISED)


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
    found = [fewer(VANILLA, arm) for arm in (UNDENOISED, "act_m8_erase", DENOISED, "act_m32_erase")]
    assert all(low < 0 < high for _, low, high in found)
    values = [value for value, *_ in found]
    return word(len(found)), max(values), -min(values)


def published() -> tuple[str, str, str]:
    _, model, rate, note = next(row for row in PUBLISHED if row[0].startswith("projected GRPO"))
    return model, rate, note.rpartition("vanilla ")[2]


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


def gpus() -> tuple[str]:
    return (same(row["provenance"]["gpu"] for sweep in (SWEEP, SEEDS, ALONE) for row in cells(sweep)) + "s",)


CLAIMS = [
    Claim(
        PAGE,
        "{} arms x {} seeds on the embedded model, {} steps of {} rollouts, {} replies a cell and rate",
        size,
    ),
    Claim(PAGE, "a cell and rate, on {};", gpus),
    Claim(PAGE, "| base | {:.1f} % | {:.1f} % |", base_rates),
    Claim(PAGE, "| `vanilla` | {:.1f} % | {:.1f} % |", lambda: tuple(100 * mean(VANILLA, rate) for rate in RATES)),
    Claim(PAGE, "| `{}` | {:.1f} % | {:.1f} % | {:.1f} [{:.1f}, {:.1f}] | {:+.1f} |", rates),
    Claim(PAGE, "over the {} problems", lambda: (same(len(arm.by_problem("hack")) for arm in arms().values()),)),
    Claim(PAGE, "`grad_erase` hacks {:.1f}, {:.1f} and {:.1f} points less than `vanilla`", lambda: by_seed(VANILLA)),
    Claim(PAGE, "and {:.1f}, {:.1f} and {:.1f} less than `random_erase`", lambda: by_seed(RANDOM)),
    Claim(
        PAGE,
        "**H4 is {}**: without a constraint {:.1f} % hack",
        lambda: (verdict("H4"), 100 * mean(VANILLA, "hack_rate")),
    ),
    Claim(
        PAGE,
        "**H1 is {}**: {:.0f} points were claimed, {:.1f} [{:.1f}, {:.1f}] came out, and below {:.0f} it would be falsified",
        claimed,
    ),
    Claim(PAGE, "it passes {:.1f} points more [{:.1f}, {:.1f}], within the {:.0f} allowed", matched),
    Claim(
        PAGE,
        "**H3 is {}**: `grad_erase` hacks {:.1f} points less than `random_erase` [{:.1f}, {:.1f}]; the margin is {:.0f}",
        direction,
    ),
    Claim(
        PAGE,
        "it is {:.1f} (`shuffled_erase`) and {:.1f} (`clean_erase`). The three controls themselves hack {:.1f} to {:.1f} points "
        "less than `vanilla`, all within chance, and pass {:.1f} to {:.1f} points less",
        controls,
    ),
    Claim(PAGE, "**H2 is {}**: denoising was to save {:.0f} points and saved {:.1f} [{:.1f}, {:.1f}]", denoised),
    Claim(
        PAGE,
        "None of the {} hidden-state directions is apart from `vanilla`: they hack between {:.1f} points less and {:.1f} more",
        hidden_states,
    ),
    Claim(
        PAGE,
        "With all {} and the seed as the unit, `grad_erase` hacks {:.1f} points less than `vanilla` [{:.1f}, {:.1f}], by seed "
        "{:.1f} to {:.1f}, and {:.1f} less than `random_erase` [{:.1f}, {:.1f}], by seed {:.1f} to {:.1f}: with seed {} random "
        "directions did better. It passes {:.1f} points more than `vanilla` [{:.1f}, {:.1f}], whose pass rate is {:.1f} % over the "
        "new seeds and {:.1f} % over the first three",
        over_seeds,
    ),
    Claim(PAGE, "The claimed {:.0f} points are within that interval", lambda: (analysis.H1_POINTS,)),
    Claim(
        PAGE,
        "{} arms x {} seeds, {} steps, on CPUs) came out below the margins: `grad_erase` hacked {:.1f} points less than `vanilla` "
        "[{:.1f}, {:.1f}] and {:.1f} less than `random_erase` [{:.1f}, {:.1f}]",
        shorter,
    ),
    Claim(PAGE, "whether it passes {:.0f} points is a matter of seeds", lambda: (analysis.CONTROL_POINTS,)),
    Claim(PAGE, "on {} ({} % against {} %,", published),
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
    Claim(PAGE, "at the strength of {:.0f} that it ran with their sign flips there", sign),
    Claim(PAGE, "(norms {} and {} a step)", routed),
    Claim(
        PAGE, "{} processes, fourteen on each of three GPUs: {:,.0f} s of cells in {:,.0f} s, {:,.0f} s of a GPU", cost
    ),
    Claim(PAGE, "takes {:.0f} s; one after another the {} would take {:,.0f} s: sharing saved seven tenths", one_alone),
]
