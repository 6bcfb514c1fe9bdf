"""From a group's rewards to its advantages, chosen by name.

rewards_NG: N groups of G rollouts of one prompt each; NaN marks a rollout that could not be scored and gets advantage
0. An estimator is a function `(rewards_NG, state) -> Advantages`; `state` is a JSON-serialisable dictionary that the
trainer keeps across steps and saves with the checkpoint. Shapes: N groups, G rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from research.errors import ConfigurationError

EPSILON = 1e-4  # TRL's guard in the z-score's denominator
SPREAD = 1e-6  # a group whose rewards differ by less has nothing to teach


class Advantages(NamedTuple):
    """advantages_NG, and which groups are left out of the loss altogether (policy and KL term)."""

    advantages_NG: torch.Tensor
    skipped_N: torch.Tensor


Estimator = Callable[[torch.Tensor, dict[str, Any]], Advantages]


def group_zscore(rewards_NG: torch.Tensor, state: dict[str, Any]) -> Advantages:
    """(r - mean) / (std + 1e-4) within the group, unbiased std, as TRL does. GRPO: Shao et al. 2024 (2402.03300)."""
    centred = rewards_NG - _mean(rewards_NG)
    count = rewards_NG.isfinite().sum(1, keepdim=True)
    variance = centred.nan_to_num().square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
    return Advantages((centred / (variance.sqrt() + EPSILON)).nan_to_num(), _none(rewards_NG))


def group_mean(rewards_NG: torch.Tensor, state: dict[str, Any]) -> Advantages:
    """r - mean within the group, groups of equal rewards skipped: Dr. GRPO, Liu et al. 2025 (2503.20783), sect. 3.2.

    Its other half, a denominator that does not depend on lengths, is the trainer's `loss_type: dr_grpo`.
    """
    spread = rewards_NG.nan_to_num(nan=-torch.inf).amax(1) - rewards_NG.nan_to_num(nan=torch.inf).amin(1)
    return Advantages((rewards_NG - _mean(rewards_NG)).nan_to_num(), ~(spread >= SPREAD))


def rank(rewards_NG: torch.Tensor, state: dict[str, Any]) -> Advantages:
    """Ranks within the group, spread evenly over [-1, 1]; ties share their mean rank, so a group of equals gets 0."""
    below = (rewards_NG.unsqueeze(2) > rewards_NG.unsqueeze(1)).sum(2)
    above = (rewards_NG.unsqueeze(2) < rewards_NG.unsqueeze(1)).sum(2)
    scored = (rewards_NG.isfinite().sum(1, keepdim=True) - 1).clamp(min=1)
    return Advantages(((below - above) / scored).to(rewards_NG.dtype), _none(rewards_NG))


def ema_baseline(rewards_NG: torch.Tensor, state: dict[str, Any], decay: float = 0.9) -> Advantages:
    """r - b with b an exponential moving average of past mean rewards; the first batch is its own baseline."""
    mean = float(rewards_NG.nanmean())
    baseline = state.get("baseline", mean)
    state["baseline"] = decay * baseline + (1 - decay) * mean
    return Advantages((rewards_NG - baseline).nan_to_num(), _none(rewards_NG))


ESTIMATORS: dict[str, Estimator] = {
    "group_zscore": group_zscore, "group_mean": group_mean, "rank": rank, "ema": ema_baseline
}  # fmt: skip


def estimator(name: str) -> Estimator:
    """The estimator of that name; raises ConfigurationError for an unknown one."""
    if name not in ESTIMATORS:
        raise ConfigurationError(f"advantages={name!r} is not one of {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[name]


def _mean(rewards_NG: torch.Tensor) -> torch.Tensor:
    return rewards_NG.nanmean(1, keepdim=True)


def _none(rewards_NG: torch.Tensor) -> torch.Tensor:
    return torch.zeros(rewards_NG.shape[0], dtype=torch.bool, device=rewards_NG.device)
