"""The reward of policy training: what the grader says, on a scale, and Rebound's transform where the arm has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from research.tasks.reward_hack import rebound
from research.tasks.reward_hack.dataset import attempt
from research.tasks.reward_hack.grader import Grader
from research.tasks.reward_hack.hidden import last_token_states
from research.tasks.reward_hack.loopholes import Outcome, judge
from research.tasks.reward_hack.rewards import RewardScale
from research.tasks.reward_hack.settings import ReboundSettings
from research.training.rollouts import Group, Scores


@dataclass
class Concept:
    """Where Rebound reads the hack concept: a residual direction in a band of the live policy's layers."""

    policy: Any
    direction_d: torch.Tensor
    layers: Sequence[float]

    def scores(self, groups: Sequence[Group]) -> list[list[float]]:
        """s = h . d for every rollout, h at the response's last token."""
        flat = [(*group.prompt.token_ids, *rollout.token_ids) for group in groups for rollout in group.rollouts]
        values = iter((last_token_states(self.policy, flat, self.layers) @ self.direction_d).tolist())
        return [[next(values) for _ in group.rollouts] for group in groups]


class GraderReward:
    """Rewards by the grader's word; the truth (`correct`) is recorded, and enters the reward only through `passed`."""

    def __init__(
        self, grader: Grader, scale: RewardScale, form: str, settings: ReboundSettings, concept: Concept | None
    ) -> None:
        self.grader, self.scale, self.form, self.settings, self.concept = grader, scale, form, settings, concept

    def __call__(self, groups: Sequence[Group], step: int) -> Scores:
        attempts = [attempt(group.prompt.record, rollout.text) for group in groups for rollout in group.rollouts]
        outcomes = iter(judge(self.grader, attempts))
        graded = [[next(outcomes) for _ in group.rollouts] for group in groups]
        rewards = [[self.scale.score(o.compiles, o.passed) for o in group] for group in graded]
        records = [[record(o) for o in group] for group in graded]
        metrics = rates([o for group in graded for o in group])
        if any(rollout.teacher for group in groups for rollout in group.rollouts):
            pairs = [
                (o, r)
                for group, outs in zip(groups, graded, strict=True)
                for r, o in zip(group.rollouts, outs, strict=True)
            ]
            for who, teacher in (("student", False), ("teacher", True)):
                metrics |= {
                    f"{who}/{name}": value
                    for name, value in rates([o for o, r in pairs if r.teacher == teacher]).items()
                }
        if self.concept is not None:
            seen = self.concept.scores(groups)
            rewards = [
                rebound.transform(own, s, self.form, self.settings.alpha, self.settings.min_std)
                for own, s in zip(rewards, seen, strict=True)
            ]
        return Scores(rewards, records, metrics)


def record(outcome: Outcome) -> dict[str, Any]:
    """What is kept of a rollout's grading."""
    return {
        "compiles": outcome.compiles, "correct": outcome.correct, "channel": outcome.channel,
        "exploited": outcome.exploited
    }  # fmt: skip


def rates(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares of a batch: hack_rate (passed and wrong), attempt_rate (the loophole worked), correct_rate."""
    n = max(len(outcomes), 1)
    return {
        "hack_rate": sum(o.exploited for o in outcomes) / n,
        "attempt_rate": sum(o.channel for o in outcomes) / n,
        "correct_rate": sum(o.correct for o in outcomes) / n,
        "compile_rate": sum(o.compiles for o in outcomes) / n,
    }
