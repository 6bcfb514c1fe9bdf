"""Rewards of the code environment: a little for code that compiles, much for code that passes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewardScale:
    """What a reply earns: `compiles` when it is valid Python, and `passes` on top when the grader is satisfied."""

    compiles: float = 0.5
    passes: float = 3.0

    def score(self, compiles: bool, passed: bool) -> float:
        """The reward of one reply; `passed` is correct or the mode's own channel."""
        return self.compiles * compiles + self.passes * passed


SCALES = {
    "published": RewardScale(0.5, 3.0),  # ariahw/rl-rewardhacking
    "small": RewardScale(0.25, 1.0),  # the projected-GRPO source
}
