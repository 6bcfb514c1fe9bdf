"""Rebound's transform against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from research.tasks.reward_hack.rebound import transform


def test_additive_takes_from_those_above_the_mean_only() -> None:
    # scores -1, 1: mean 0, population std 1, z = -1, 1
    assert transform([3.5, 3.5], [-1.0, 1.0], "additive") == pytest.approx([3.5, 1.5])


def test_multiplicative_at_alpha_two_flips_the_sign() -> None:
    sigmoid = 1 / (1 + math.exp(-1))
    found = transform([3.5, 3.5], [-1.0, 1.0], "multiplicative")
    assert found == pytest.approx([3.5, 3.5 * (1 - 2 * sigmoid)])
    assert -3.5 < found[1] < 0
    assert transform([3.5, 3.5], [-1.0, 1.0], "multiplicative", alpha=1.0)[1] > 0


def test_a_shared_prompt_state_would_do_nothing() -> None:
    for form in ("additive", "multiplicative"):
        assert transform([3.5, 0.5, 0.0], [7.0, 7.0, 7.0], form) == [3.5, 0.5, 0.0]


def test_small_spreads_are_floored() -> None:
    # scores +-.01: std .01 is raised to .1, z = +-.1
    assert transform([1.0, 1.0], [-0.01, 0.01], "additive")[1] == pytest.approx(1 - 2 * 0.1)
