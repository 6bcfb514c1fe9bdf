"""experiments/imposter/README.md: the cells that ran a second time, alone on a GPU: how far a run repeats, what sharing a GPU saves."""

from __future__ import annotations

from typing import Any

from pages.claim import Claim, cells, short, together, word
from pages.imposter import ALONE, LONG, PAGE, SWEEP, arm, change, falls, logged, won
from pages.imposter_design import ALONE as ALONE_SHARED
from pages.imposter_design import HIGH, PUBLISHED, centre


def repeated() -> dict:
    """The cell that ran again by itself, with the same settings, against the same discriminator."""
    (again,) = cells(ALONE)
    (first,) = [row for row in arm("rl_only") if row["cell"]["config"] == again["cell"]["config"]]
    assert first in won() and again["stage1"] == first["stage1"]
    assert again["metrics"]["gap_before"] == first["metrics"]["gap_before"]
    return first


def again() -> tuple:
    (row,), first = cells(ALONE), repeated()
    assert not falls(row)
    config = row["cell"]["config"]
    return config["task.arm"], config["seed"], *change(row), *change(first)


def parts() -> tuple[int]:
    """The step at which the two first write differently; in the first they write the same and learn the same but for rounding."""
    one, other = (logged(sweep, repeated()["cell"]["name"]) for sweep in (SWEEP, ALONE))
    assert all(one[0][name] == other[0][name] for name in ("num_tokens", "gap", "reward", "loss", "grad_norm"))
    assert 0 < abs(one[0]["update_norm/lora_B"] - other[0]["update_norm/lora_B"]) < 1e-6
    return (next(a["step"] for a, b in zip(one, other, strict=True) if a["num_tokens"] != b["num_tokens"]),)


def discriminators() -> tuple:
    """The gap before training by the discriminator of this sweep and of the longer one, which learned from the same pairs."""
    first = repeated()
    (longer,) = [
        row for row in cells(LONG)
        if all(row["cell"]["config"][name] == first["cell"]["config"][name] for name in ("task.arm", "seed"))
    ]  # fmt: skip
    names = [name for name in first["cell"]["config"] if name.startswith(("task.discriminator", "task.corpus"))]
    assert all(first["cell"]["config"][name] == longer["cell"]["config"][name] for name in names)
    assert first["stage1"]["pairs"] == longer["stage1"]["pairs"]
    return first["cell"]["config"]["seed"], first["metrics"]["gap_before"], longer["metrics"]["gap_before"]


def again_mauve() -> tuple[str]:
    return (short(cells(ALONE)[0]["metrics"]["mauve"]),)


def seconds(row: dict[str, Any], phase: str) -> float:
    return row["wall_seconds"][phase]


def per_hour(count: int, gpu_seconds: float) -> str:
    return f"{3600 * count / gpu_seconds:.1f}"


def slower() -> tuple:
    """Training seconds of the two cells that ran twice: side by side, alone."""
    twice = [(repeated(), *cells(ALONE)), (centre(), *cells(ALONE_SHARED))]
    return tuple(seconds(row, "train") for pair in twice for row in pair)


def arms_time() -> tuple:
    """The short arms: sum, mean and span; then with the high cells that began while they ran, on the same three GPUs."""
    arms, others = cells(SWEEP), cells(HIGH)
    both = [*arms, *others]
    (_, total, ours), (_, _, theirs), (_, _, span) = map(together, (arms, others, both))
    assert span < ours + theirs
    (arm,), (shared,) = cells(ALONE), cells(ALONE_SHARED)
    by_turns = len(arms) * seconds(arm, "total") + len(others) * seconds(shared, "total")
    return (
        f"{total:,.0f}", f"{total / len(arms):.0f}", f"{ours:.0f}", len(both), f"{span:.0f}",
        per_hour(len(both), 3 * span), seconds(arm, "total"), seconds(shared, "total"), f"{by_turns:,.0f}",
        per_hour(len(both), by_turns),
    )  # fmt: skip


def design_time() -> tuple:
    five, (alone,) = cells(PUBLISHED), cells(ALONE_SHARED)
    _, total, span = together(five)
    return (
        word(len(five)).capitalize(), f"{total:,.0f}", f"{span:.0f}", per_hour(len(five), span),
        per_hour(1, seconds(alone, "total")),
    )  # fmt: skip


CLAIMS = [
    Claim(
        PAGE,
        "`{}` with seed {} once more: the same settings, the same frozen discriminator, a GPU to itself. The gap changes by "
        "{:+.1f} % [{:+.1f}, {:+.1f}], where the sweep has {:+.1f} % [{:+.1f}, {:+.1f}]: no win.",
        again,
    ),
    Claim(PAGE, "by step {} they write different text", parts),
    Claim(
        PAGE,
        "with seed {} this sweep's finds a gap of {:.2f} before training, that of the longer sweep below, from the same pairs, {:.2f}",
        discriminators,
    ),
    Claim(PAGE, "The cell that ran again does not win and ends at {} all the same", again_mauve),
    Claim(
        PAGE, "training took {:.1f} s in the sweep and {:.1f} s alone; the design's centre {:.1f} and {:.1f} s.", slower
    ),
    Claim(
        PAGE,
        "{} s of cells, {} s on average, in {} s by the clock. The nine high cells of the design ran on the same GPUs at the same time: {} "
        "cells in {} s of three GPUs, {} a GPU-hour. One after another, at the {:.1f} and {:.1f} s of the two cells that ran alone, they "
        "would take {} s, {} a GPU-hour.",
        arms_time,
    ),
    Claim(
        PAGE,
        "{} cells of the design: {} s of cells in {} s of one GPU, {} a GPU-hour, against {} alone.",
        design_time,
    ),
]
