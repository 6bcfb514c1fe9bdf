"""Advantages against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from research.errors import ConfigurationError
from research.training.advantages import estimator

nan = float("nan")


def test_group_zscore_is_trl_s_formula() -> None:
    # rewards 0, 0, 3, 3: mean 1.5, unbiased std sqrt(3)
    found = estimator("group_zscore")(torch.tensor([[0.0, 0.0, 3.0, 3.0]]), {})
    expected = 1.5 / (math.sqrt(3) + 1e-4)
    assert found.advantages_NG.tolist()[0] == pytest.approx([-expected, -expected, expected, expected])
    assert not found.skipped_N.any()


def test_group_mean_is_centred_not_scaled_and_skips_ties() -> None:
    rewards = torch.tensor([[0.5, 3.5, 0.5, 0.5], [3.5, 3.5, 3.5, 3.5]])
    found = estimator("group_mean")(rewards, {})
    assert found.advantages_NG[0].tolist() == pytest.approx([-0.75, 2.25, -0.75, -0.75])
    assert found.advantages_NG[1].tolist() == [0, 0, 0, 0]
    assert found.skipped_N.tolist() == [False, True]


def test_unscored_rollouts_get_nothing_and_do_not_enter_the_mean() -> None:
    rewards = torch.tensor([[1.0, nan, 3.0], [nan, nan, nan]])
    for name in ("group_mean", "group_zscore"):
        found = estimator(name)(rewards, {}).advantages_NG
        assert found[0, 1] == 0 and found[0, 0] == -found[0, 2]
        assert found[1].tolist() == [0, 0, 0]
    assert estimator("group_mean")(rewards, {}).advantages_NG[0].tolist() == [-1, 0, 1]
    assert estimator("rank")(rewards, {}).advantages_NG[0].tolist() == [-1, 0, 1]


def test_rank_spreads_evenly_and_shares_ties() -> None:
    found = estimator("rank")(torch.tensor([[10.0, -2.0, 7.0], [1.0, 1.0, 5.0], [2.0, 2.0, 2.0]]), {})
    assert found.advantages_NG[0].tolist() == [1, -1, 0]
    assert found.advantages_NG[1].tolist() == [-0.5, -0.5, 1]
    assert found.advantages_NG[2].tolist() == [0, 0, 0]


def test_ema_baseline_remembers() -> None:
    state: dict = {}
    first = estimator("ema")(torch.tensor([[1.0, 3.0]]), state)
    assert first.advantages_NG.tolist() == [[-1, 1]]
    second = estimator("ema")(torch.tensor([[5.0, 7.0]]), state)
    assert second.advantages_NG.tolist() == [[3, 5]]  # the baseline is still 2
    assert state["baseline"] == pytest.approx(0.9 * 2 + 0.1 * 6)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="group_zscore"):
        estimator("zscore")
