"""Intervals and tests against values worked out by hand or by another library."""

import math

import numpy as np
import pytest

from research.scoring.statistics import bootstrap_interval, mean_interval, paired_t_test, wilson


def test_wilson_is_the_closed_form():
    z, p, n = 1.959963984540054, 129 / 200, 200
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = wilson(129, 200)
    assert (found.value, found.n) == (0.645, 200)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-9)


def test_wilson_at_the_ends_stays_inside():
    assert wilson(0, 200).low == 0
    assert wilson(0, 200).high == pytest.approx(1.959964**2 / (200 + 1.959964**2), abs=1e-6)
    assert wilson(200, 200).high == 1


@pytest.mark.parametrize(("hits", "trials"), [(1, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_rate(hits, trials):
    with pytest.raises(ValueError, match="hits"):
        wilson(hits, trials)


def test_mean_interval_by_the_table_of_t():
    found = mean_interval([0.6, 0.7, 0.8])  # sd .1, t(.975, 2) = 4.302653
    assert found.value == pytest.approx(0.7)
    assert found.high - found.value == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert math.isnan(mean_interval([0.5]).low)


def test_paired_t_test_by_hand():
    found = paired_t_test([3.0, 4.0, 6.0], [1.0, 3.0, 3.0])  # differences 2, 1, 3: mean 2, sd 1, t = 2 sqrt(3)
    assert found.t == pytest.approx(2 * math.sqrt(3))
    assert found.p == pytest.approx(0.0741799, abs=1e-6)
    assert found.difference.value == pytest.approx(2)
    assert found.difference.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    with pytest.raises(ValueError, match="pairs"):
        paired_t_test([1.0], [2.0])


def test_paired_t_test_without_spread():
    assert paired_t_test([1.0, 2.0], [1.0, 2.0]).p == 1
    assert paired_t_test([2.0, 3.0], [1.0, 2.0]).t == math.inf


def test_bootstrap_covers_the_mean_and_repeats():
    values = list(np.random.default_rng(1).normal(3, 1, 400))
    found = bootstrap_interval(values, seed=5)
    assert found == bootstrap_interval(values, seed=5)
    spread = 1.96 * np.std(values) / 20  # the normal approximation, which 400 values meet
    assert (found.low, found.high) == pytest.approx((np.mean(values) - spread, np.mean(values) + spread), abs=0.02)
    assert bootstrap_interval([1.0, 9.0, 2.0], np.median).value == 2
