"""The statistics that every report shares; thin over scipy. Rates and means with two-sided intervals, 95 % by default.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A value with the interval [low, high] and the number of observations n.

    The interval is nan where n is too small.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedTest:
    """Mean of the paired differences with its t-interval, the t statistic and the two-sided p-value."""

    difference: Estimate
    t: float
    p: float


@lru_cache(maxsize=65536)
def wilson(hits: int, trials: int, level: float = 0.95) -> Estimate:
    """The rate hits / trials with Wilson's score interval (Wilson 1927, no continuity correction).

    Raises ValueError unless 0 <= hits <= trials and trials > 0.
    """
    if trials <= 0 or not 0 <= hits <= trials:
        raise ValueError(
            f"{hits} hits in {trials} trials is not a rate; hits must lie between 0 and trials, trials above 0"
        )
    interval = stats.binomtest(hits, trials).proportion_ci(confidence_level=level, method="wilson")
    return Estimate(hits / trials, float(interval.low), float(interval.high), trials)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean over independent runs (seeds) with Student's t-interval; one value has no interval (nan)."""
    sample = _finite(values)
    mean, n = float(sample.mean()), len(sample)
    if n == 1:
        return Estimate(mean, float("nan"), float("nan"), 1)
    spread = float(stats.sem(sample))
    if spread == 0:
        return Estimate(mean, mean, mean, n)
    low, high = stats.t.interval(level, n - 1, loc=mean, scale=spread)
    return Estimate(mean, float(low), float(high), n)


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[..., float] = np.mean,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Estimate:
    """A statistic of independent observations with its percentile bootstrap interval (Efron 1979)."""
    sample = _finite(values)
    value = float(statistic(sample))
    if len(sample) == 1:
        return Estimate(value, float("nan"), float("nan"), 1)
    if np.ptp(sample) == 0:
        return Estimate(value, value, value, len(sample))
    found = stats.bootstrap(
        (sample,),
        statistic,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high), len(sample))


def paired_t_test(one: Sequence[float], other: Sequence[float], level: float = 0.95) -> PairedTest:
    """Two-sided t-test of the mean of `one - other` over pairs.

    Raises ValueError for unequal lengths or fewer than 2 pairs.
    """
    a, b = _finite(one), _finite(other)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a paired test needs at least 2 pairs of equal length; got {len(a)} and {len(b)} values")
    difference = mean_interval(list(a - b), level)
    if np.ptp(a - b) == 0:  # no spread: t is 0/0 or infinite, and scipy would warn
        constant = float(a[0] - b[0])
        return PairedTest(
            difference, float(np.copysign(np.inf, constant)) if constant else 0.0, 0.0 if constant else 1.0
        )
    result = stats.ttest_rel(a, b)
    return PairedTest(difference, float(result.statistic), float(result.pvalue))


def _finite(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(f"expected a non-empty list of finite numbers, got {list(values)!r}")
    return sample
