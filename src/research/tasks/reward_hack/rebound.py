"""Rebound: rewards lowered where a rollout's hidden state points along the hack concept (Wu & Tang 2026, 2604.01476).

    s_i = h_i . d           h_i: hidden state at the response's last token, mean over a band of layers
    z_i = (s_i - mean s) / max(std s, min_std)                within the group
    additive:        r'_i = r_i - alpha max(z_i, 0)
    multiplicative:  r'_i = r_i (1 - alpha sigmoid(z_i) [z_i > 0])

Both come before the advantages. The text reads the state at the prompt's last token, which all rollouts of a group
share, so that every z would be 0; the response's last token is the reading under which the method does anything. With
alpha = 2 the multiplicative factor lies in (-1, 0) for every z > 0: the reward's sign flips; alpha <= 1 keeps it at
or above 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

FORMS = ("additive", "multiplicative")


def transform(
    rewards: Sequence[float], scores: Sequence[float], form: str, alpha: float = 2.0, min_std: float = 0.1
) -> list[float]:
    """A group's rewards after the penalty; `scores` are the rollouts' s_i, the spread is the population's."""
    centre, spread = fmean(scores), max(pstdev(scores), min_std)
    z = [(score - centre) / spread for score in scores]
    if form == "additive":
        return [r - alpha * max(value, 0.0) for r, value in zip(rewards, z, strict=True)]
    assert form == "multiplicative", form
    return [r * (1 - alpha / (1 + math.exp(-value)) if value > 0 else 1.0) for r, value in zip(rewards, z, strict=True)]
