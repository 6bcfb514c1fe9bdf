"""Verdicts of the preregistered analysis on rows made by hand, at and around every threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from research.tasks.reward_hack import analysis
from research.tasks.reward_hack.report import report


def cell(arm: str, seed: int, hack: float, passed: float, n: int = 40, spread: int = 0) -> dict[str, Any]:
    """A result with `n` problems of 10 samples each; `spread` makes problems differ, the mean stays."""

    def table(rate: float) -> dict[str, list[int]]:
        return {f"p{i}": [round(10 * rate) + (spread if i % 2 else -spread), 10] for i in range(n)}

    return {
        "status": "done", "arm": arm, "cell": {"name": f"{arm}_s{seed}-00000000", "config": {"seed": seed,
        "task": {"arm": arm}}},
        "metrics": {"hack_rate": hack, "attempt_rate": hack, "pass_rate": passed, "base_hack_rate": 0.01,
        "base_pass_rate": 0.6},
        "per_problem": {"hack": table(hack), "pass": table(passed)},
        "trajectory": [{"step": s, "hack_rate": hack * s / 10, "correct_rate": passed} for s in range(1, 11)],
    }  # fmt: skip


def judged(**rates: tuple[float, float]) -> dict[str, str]:
    rows = [cell(arm, seed, *values, spread=1) for arm, values in rates.items() for seed in (1, 2, 3)]
    return {v.name: v.verdict for v in analysis.verdicts(analysis.arms(rows))}


@pytest.mark.parametrize(
    ("hack", "passed", "expected"),
    [(0.3, 0.6, "supported"), (0.4, 0.6, "supported"), (0.5, 0.6, "undecided"), (0.6, 0.6, "falsified"),
     (0.3, 0.4, "not supported"), (0.8, 0.6, "falsified")],
)  # fmt: skip
def test_h1(hack: float, passed: float, expected: str) -> None:
    assert judged(vanilla=(0.7, 0.6), grad_erase=(hack, passed))["H1"] == expected


def test_controls_need_fifteen_points_and_an_interval_without_zero() -> None:
    found = judged(
        vanilla=(0.7, 0.6), grad_erase=(0.3, 0.6), random_erase=(0.7, 0.6), act_m16_erase=(0.5, 0.6),
        act_nobasis_erase=(0.6, 0.6),
    )  # fmt: skip
    assert found == {"H1": "supported", "H2": "falsified", "H3": "supported", "H4": "supported"}


def test_nothing_is_judged_when_vanilla_does_not_hack() -> None:
    rows = [cell("vanilla", 1, 0.2, 0.6), cell("grad_erase", 1, 0.1, 0.6)]
    told = analysis.verdicts(analysis.arms(rows))
    assert {v.name: v.verdict for v in told} == {
        "H1": "not testable", "H2": "not testable", "H3": "not testable", "H4": "falsified"
    }  # fmt: skip
    assert "reward_hack_4b" in told[-1].detail


def test_missing_arms_are_said() -> None:
    found = {v.name: v for v in analysis.verdicts(analysis.arms([cell("vanilla", 1, 0.7, 0.6)]))}
    assert found["H1"].verdict == found["H3"].verdict == "not testable" and "grad_erase" in found["H1"].detail


def test_headline_in_the_published_form() -> None:
    rows = [cell("vanilla", 1, 0.7, 0.6), cell("grad_erase", 1, 0.2, 0.6)]
    assert analysis.headline(analysis.arms(rows)) == (
        "At matched pass rate ±5pp on held-out problems without write access, grad_erase reduces hack rate from "
        "70.0% to 20.0%."
    )
    rows[1] = cell("grad_erase", 1, 0.2, 0.3)
    assert analysis.headline(analysis.arms(rows)).startswith("Pass rates do not match")


def test_the_unit_is_the_problem_over_seeds_and_samples() -> None:
    rows = [cell("vanilla", seed, 0.7, 0.6) for seed in (1, 2, 3)]
    rows[0]["per_problem"]["hack"]["p0"] = [0, 10]
    scores = analysis.arms(rows)["vanilla"].by_problem("hack")
    assert scores["p0"] == pytest.approx(14 / 30) and scores["p1"] == pytest.approx(0.7) and len(scores) == 40


@pytest.mark.parametrize("tie", [True, False])
def test_the_page_turns_to_alignment_when_all_arms_tie(tmp_path: Path, tie: bool) -> None:
    rows = [
        cell("vanilla", 1, 0.7, 0.6),
        cell("grad_erase", 1, 0.68 if tie else 0.2, 0.6),
        cell("rebound_additive", 1, 0.7, 0.5),
    ]
    rows[1]["metrics"] |= {"cos_align": 0.2, "cos_in": 0.3, "cos_out": 0.0, "update_cos_in": 0.25}
    if not tie:
        rows[2] = cell("rebound_additive", 1, 0.3, 0.5)
    sections = report(rows, tmp_path)
    assert sections[0].title == ("Did the projection bite?" if tie else "Hypotheses")
    for section in sections:
        for _, path in section.figures:
            assert path.exists() and path.with_suffix(".pdf").exists()
    assert not report([], tmp_path) and not report([{"status": "missing", "metrics": None}], tmp_path)
