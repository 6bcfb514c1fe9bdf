"""experiments/reward_hack/README.md, "What came out"."""

from __future__ import annotations

import functools

from pages.claim import Claim, cells, same, setting, short, word
from research.tasks.reward_hack import analysis
from research.tasks.reward_hack.arms import DENOISED, METHOD, RANDOM, UNDENOISED, VANILLA
from research.tasks.reward_hack.rebound import transform
from research.tasks.reward_hack.report import PUBLISHED

PAGE, SWEEP, SHORTER = "experiments/reward_hack/README.md", "reward_hack/arms", "reward_hack/micro"
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


def by_seed(other: str) -> tuple[float, ...]:
    of_other, ours = (
        {row["cell"]["config"]["seed"]: row["metrics"]["hack_rate"] for row in arms()[arm].rows}
        for arm in (other, METHOD)
    )
    return tuple(100 * (of_other[seed] - ours[seed]) for seed in sorted(ours))


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


def unchanged() -> tuple[str]:
    """Measuring the directions changes no reply's fate."""
    measured, plain = (
        {row["cell"]["config"]["seed"]: [row["metrics"][rate] for rate in RATES] for row in arms()[arm].rows}
        for arm in ("measure_only", VANILLA)
    )
    assert measured == plain
    return (word(len(plain)),)


def claimed() -> tuple:
    value, low, high = fewer(VANILLA, METHOD)
    assert analysis.H1_FALSIFIED < value < analysis.H1_POINTS
    return verdict("H1"), analysis.H1_POINTS, value, low, high, analysis.H1_FALSIFIED


def matched() -> tuple[float, ...]:
    value, low, high = fewer(VANILLA, METHOD, "pass")
    assert abs(value) < analysis.H1_MATCH and low < 0 < high
    return value, low, high, analysis.H1_MATCH


def direction() -> tuple:
    for control in (RANDOM, "shuffled_erase", "clean_erase"):
        _, low, high = fewer(VANILLA, control)
        assert low < 0 < high and fewer(VANILLA, control, "pass")[1] > 0, "prevents nothing, and costs passes"
    return verdict("H3"), *fewer(RANDOM, METHOD), analysis.CONTROL_POINTS


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
    more = [-fewer(VANILLA, arm)[0] for arm in (UNDENOISED, "act_m8_erase", DENOISED, "act_m32_erase")]
    assert min(more) > 0
    return min(more), max(more)


def published() -> tuple[str, str, str]:
    _, model, rate, note = next(row for row in PUBLISHED if row[0].startswith("projected GRPO"))
    return model, rate, note.rpartition("vanilla ")[2]


def machines() -> list[tuple[str, str]]:
    """Python and torch of the first two seeds, and of the third."""
    found = []
    for seeds in ((1, 2), (3,)):
        rows = [row["provenance"] for row in cells(SWEEP) if row["cell"]["config"]["seed"] in seeds]
        seen = [(one["python"], one["libraries"]["torch"]) for one in rows]
        found.append(tuple(".".join(v.split(".")[:2]) for v in max(set(seen), key=seen.count)))
    return found


def strangers() -> tuple[int]:
    """Cells of the first two seeds that ran where the third did."""
    there = {row["provenance"]["python"] for row in cells(SWEEP) if row["cell"]["config"]["seed"] == 3}
    ours = [row for row in cells(SWEEP) if row["cell"]["config"]["seed"] != 3]
    return (word(sum(row["provenance"]["python"] in there for row in ours)),)


CLAIMS = [
    Claim(PAGE, "{} arms x {} seeds on the embedded model, {} steps of {} rollouts, {} replies a cell and rate", size),
    Claim(PAGE, "| base | {:.1f} % | {:.1f} % |", base_rates),
    Claim(PAGE, "| `vanilla` | {:.1f} % | {:.1f} % |", lambda: tuple(100 * mean(VANILLA, rate) for rate in RATES)),
    Claim(PAGE, "| `{}` | {:.1f} % | {:.1f} % | {:.1f} [{:.1f}, {:.1f}] | {:+.1f} |", rates),
    Claim(PAGE, "the same rates as `vanilla` in each of {} seeds", unchanged),
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
    Claim(PAGE, "it passes {:.1f} points less [{:.1f}, {:.1f}], within the {:.0f} allowed", matched),
    Claim(
        PAGE,
        "**H3 is {}**: `grad_erase` hacks {:.1f} points less than `random_erase` [{:.1f}, {:.1f}], just past the margin of {:.0f}",
        direction,
    ),
    Claim(PAGE, "**H2 is {}**: denoising was to save {:.0f} points and saved {:.1f} [{:.1f}, {:.1f}]", denoised),
    Claim(
        PAGE,
        "{} arms x {} seeds, {} steps): `grad_erase` hacked {:.1f} points less than `vanilla` [{:.1f}, {:.1f}] and {:.1f} "
        "less than `random_erase` [{:.1f}, {:.1f}]",
        shorter,
    ),
    Claim(PAGE, "hack {:.1f} to {:.1f} points more than `vanilla`", hidden_states),
    Claim(
        PAGE,
        "Of {:,} replies not one hacks; they pass {:.1f} % (additive), {:.1f} % (multiplicative) and {:.1f} % (routing)",
        nothing_solved,
    ),
    Claim(PAGE, "at the strength of {:.0f} that it ran with their sign flips there", sign),
    Claim(PAGE, "(norms {} and {} a step)", routed),
    Claim(PAGE, "on {} ({} % against {} %,", published),
    Claim(PAGE, "Python {}, torch {}", machines),
    Claim(PAGE, "but for {} cells of the second", strangers),
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
]
