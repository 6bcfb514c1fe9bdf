"""experiments/reward_hack/README.md, "What came out"."""

from __future__ import annotations

import functools

from pages.claim import Claim, cells, same, setting, short, word
from research.tasks.reward_hack import analysis
from research.tasks.reward_hack.arms import DENOISED, UNDENOISED
from research.tasks.reward_hack.rebound import transform
from research.tasks.reward_hack.report import PUBLISHED

PAGE, SWEEP = "experiments/reward_hack/README.md", "reward_hack/micro"
UNRESTORED, REBOUND = "grad_erase_unrestored", "rebound_multiplicative"
LATER = (DENOISED, UNDENOISED, UNRESTORED, REBOUND)
RATES = ("hack_rate", "pass_rate")


@functools.cache
def arms() -> dict[str, analysis.ArmRows]:
    return analysis.arms(cells(SWEEP))


def mean(arm: str, name: str) -> float:
    found = arms()[arm].estimate(name)
    assert found is not None
    return found.value


def fewer(one: str, other: str, kind: str = "hack") -> tuple[float, float, float]:
    """By how many points `other` is below `one`, and the interval."""
    found = analysis.compare(arms()[one], arms()[other], kind).difference
    return 100 * found.value, 100 * found.low, 100 * found.high


def by_seed(other: str) -> tuple[float, ...]:
    of_other, ours = (
        {row["cell"]["config"]["seed"]: row["metrics"]["hack_rate"] for row in arms()[arm].rows}
        for arm in (other, "grad_erase")
    )
    return tuple(100 * (of_other[seed] - ours[seed]) for seed in sorted(ours))


def verdict(name: str) -> str:
    return next(found.verdict for found in analysis.verdicts(arms()) if found.name == name)


def size() -> tuple:
    seeds = same(len(arm.rows) for arm in arms().values())
    replies = same(row["counts"][rate]["trials"] for row in cells(SWEEP) for rate in RATES)
    return word(len(arms())), word(seeds), setting(SWEEP, "steps"), setting(SWEEP, "batch_size"), replies


def rates() -> list[tuple]:
    return [(name, *(100 * mean(name, rate) for rate in RATES)) for name in arms()]


def base_rates() -> tuple[float, ...]:
    return tuple(
        100 * sum(row["metrics"][f"base_{rate}"] for row in cells(SWEEP)) / len(cells(SWEEP)) for rate in RATES
    )


def erased() -> tuple[float, ...]:
    return *fewer("vanilla", "grad_erase"), fewer("grad_erase", "vanilla", "pass")[0]


def nothing() -> tuple[float, ...]:
    value, low, high = fewer("vanilla", "random_erase")
    assert low < 0 < high
    return value, low, high


def claimed() -> tuple:
    assert fewer("vanilla", "grad_erase")[0] < analysis.H1_FALSIFIED
    assert fewer("grad_erase", "vanilla", "pass")[1] > analysis.H1_MATCH, "the pass rates do not match"
    return verdict("H1"), analysis.H1_POINTS, analysis.H1_FALSIFIED


def against_vanilla() -> list[tuple[float, float, float]]:
    found = [fewer("vanilla", arm) for arm in (UNRESTORED, UNDENOISED, DENOISED)]
    assert all(low > 0 for _, low, _ in found)
    return found


def denoised() -> tuple:
    value, low, high = fewer(DENOISED, UNDENOISED)
    assert value > 0, "more, not fewer"
    return verdict("H2"), analysis.CONTROL_POINTS, value, low, high


def hidden_states() -> tuple:
    share = same(round(100 * mean(arm, "cos_in")) for arm in (DENOISED, UNDENOISED))
    assert share < 100 * mean("grad_erase", "cos_in")
    return share, *fewer(DENOISED, "grad_erase"), *fewer(UNDENOISED, "grad_erase")


def restored() -> tuple[float, ...]:
    hacks, passes = fewer(UNRESTORED, "grad_erase"), fewer(UNRESTORED, "grad_erase", "pass")
    assert all(low < 0 < value < high for value, low, high in (hacks, passes))
    return *hacks, *passes


def sign() -> tuple[float]:
    alpha = setting(SWEEP, "task.rebound.alpha")
    assert transform([1.0, 1.0], [0.0, 0.3], "multiplicative", alpha)[1] < 0 < 1 <= alpha
    return (alpha,)


def rebound() -> tuple:
    counts = [row["counts"]["hack_rate"] for row in arms()[REBOUND].rows]
    assert sum(count["hits"] for count in counts) == 0
    passed = 100 * mean(REBOUND, "pass_rate"), base_rates()[1]
    return sum(count["trials"] for count in counts), *passed


def of_seed(row: dict) -> dict:
    """The cell of `vanilla` with a cell's seed."""
    return next(own for own in arms()["vanilla"].rows if own["cell"]["config"]["seed"] == row["cell"]["config"]["seed"])


def machines() -> tuple[str, ...]:
    """Python and torch of the later arms, then of the first ones."""
    found = []
    for later in (True, False):
        rows = [row["provenance"] for name, arm in arms().items() if (name in LATER) == later for row in arm.rows]
        found.append(same((one["cpu"], one["python"], one["libraries"]["torch"]) for one in rows))
    (cpu, *_), (other, *_) = found
    assert cpu != other
    for row in cells(SWEEP):
        base, known = ([one["metrics"][f"base_{rate}"] for rate in RATES] for one in (row, of_seed(row)))
        assert base == known, "the base's rates"
    return tuple(".".join(version.split(".")[:2]) for _, *versions in found for version in versions)


def projected() -> tuple[float, float]:
    assert max(mean(arm, "cos_out") for arm in ("grad_erase", "random_erase")) < 1e-6, "nothing after it"
    return 100 * mean("grad_erase", "cos_in"), 100 * mean("random_erase", "cos_in")


def routed() -> tuple[str, str]:
    quarantine, knob = (mean("grad_route", f"update_norm/{name}") for name in ("dS_hack", "dS"))
    assert quarantine > knob
    assert abs(mean("grad_route", "compile_rate") - 1 / 5) < 0.025, "a fifth of the replies compile"
    return short(quarantine), short(knob)


def published() -> tuple[str, str, str]:
    _, model, rate, note = next(row for row in PUBLISHED if row[0].startswith("projected GRPO"))
    return model, rate, note.rpartition("vanilla ")[2]


CLAIMS = [
    Claim(PAGE, "{} arms x {} seeds on the embedded model, {} steps of {} rollouts, {} replies a cell and rate", size),
    Claim(PAGE, "| base | {:.1f} % | {:.1f} % |", base_rates),
    Claim(PAGE, "| `{}` | {:.1f} % | {:.1f} % |", rates),
    Claim(PAGE, "| H4 {}: there is something to prevent |", lambda: (verdict("H4"),)),
    Claim(PAGE, "| {:.1f} points fewer hacks [{:.1f}, {:.1f}], {:.1f} points more passes |", erased),
    Claim(PAGE, "| {:.1f} points fewer [{:.1f}, {:.1f}]: nothing |", nothing),
    Claim(PAGE, "| {:.1f} points fewer [{:.1f}, {:.1f}] |", against_vanilla),
    Claim(PAGE, "over the {} problems", lambda: (same(len(arm.by_problem("hack")) for arm in arms().values()),)),
    Claim(PAGE, "`grad_erase` hacks {:.1f}, {:.1f} and {:.1f} points less than `vanilla`", lambda: by_seed("vanilla")),
    Claim(PAGE, "and {:.1f}, {:.1f} and {:.1f} less than `random_erase`", lambda: by_seed("random_erase")),
    Claim(PAGE, "**H1 is {}**: {:.0f} points were claimed, and fewer than {:.0f} came out", claimed),
    Claim(PAGE, "**H3 is {}** by its margin of {:.0f} points", lambda: (verdict("H3"), analysis.CONTROL_POINTS)),
    Claim(
        PAGE,
        "beats the random one by {:.1f} points [{:.1f}, {:.1f}]",
        lambda: fewer("random_erase", "grad_erase"),
    ),
    Claim(
        PAGE,
        "**H2 is {}**: denoising was to save {:.0f} points, and `act_m16_erase` hacks {:.1f} points more than "
        "`act_nobasis_erase` [{:.1f}, {:.1f}]",
        denoised,
    ),
    Claim(
        PAGE,
        "hold less of the gradient, {} % of its norm with and without the basis. Erasing them prevents a little: "
        "`act_m16_erase` hacks {:.1f} points more than `grad_erase` [{:.1f}, {:.1f}], `act_nobasis_erase` {:.1f} "
        "[{:.1f}, {:.1f}].",
        hidden_states,
    ),
    Claim(
        PAGE,
        "without it the policy hacks {:.1f} points more [{:.1f}, {:.1f}] and passes {:.1f} points more [{:.1f}, {:.1f}]",
        restored,
    ),
    Claim(PAGE, "at the strength of {:.0f} that it ran with their sign flips there", sign),
    Claim(
        PAGE,
        "Not one of {:,} replies hacks, but the policy also loses what the base could solve: it passes {:.1f} % against "
        "{:.1f} %",
        rebound,
    ),
    Claim(
        PAGE,
        "of its last ten steps' training rollouts {:.1f} % are correct (`vanilla`: {:.1f} %)",
        lambda: [tuple(100 * mean(arm, "train_correct_rate") for arm in (REBOUND, "vanilla"))],
    ),
    Claim(
        PAGE,
        "ran on another machine (Python {}, torch {}) than the others (Python {}, torch {})",
        machines,
    ),
    Claim(PAGE, "on {} ({} % against {} %,", published),
    Claim(
        PAGE,
        "Of the gradient's norm {:.0f} % pointed along the directions before erasure ({:.0f} % along random ones) and "
        "nothing after it",
        projected,
    ),
    Claim(
        PAGE,
        "(cosine {}; {} with random directions",
        lambda: [tuple(short(mean(arm, "update_cos_align")) for arm in ("grad_erase", "random_erase"))],
    ),
    Claim(
        PAGE,
        "over the last ten steps {:.0f} % of the training rollouts hack, against {:.0f} % without a constraint",
        lambda: [tuple(100 * mean(arm, "train_hack_rate") for arm in ("grad_erase", "vanilla"))],
    ),
    Claim(PAGE, "(norms {} and {} a step); without it a fifth of the replies compile", routed),
]
