"""What policy training samples and scores: prompts, rollouts, groups, and rewards for whole groups at once.

A reward sees every group of the step together, so that pairwise, adversarial and batched rewards all fit:

    def reward(groups: Sequence[Group], step: int) -> Scores: ...
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from research.cells.seeding import stable_seed
from research.errors import ConfigurationError


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked. token_ids: the rendered prompt. record: the task's own data, for its reward."""

    token_ids: Sequence[int]
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """One completion. token_ids end in the stop token unless cut off; text is decoded without special tokens.

    logprobs: the sampler's, untempered. teacher: drawn from a frozen pool instead of the policy.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    text: str
    finish_reason: str
    teacher: bool = False


@dataclass
class Group:
    """The rollouts of one prompt in one step; `index` is the prompt's place in the list given to the trainer."""

    index: int
    prompt: Prompt
    rollouts: list[Rollout]
    rewards: list[float] = field(default_factory=list)
    records: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Scores:
    """rewards[i][j]: rollout j of group i, NaN when it cannot be scored. records: per rollout, for callbacks and logs.

    metrics: the step's means under the task's own names, written to metrics.jsonl.
    """

    rewards: Sequence[Sequence[float]]
    records: Sequence[Sequence[Mapping[str, Any]]] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


class Reward(Protocol):
    """Scores all groups of a step. One with `state_dict()` and `load_state_dict(state)` is saved and resumed."""

    def __call__(self, groups: Sequence[Group], step: int) -> Scores: ...


class TeacherPool(Protocol):
    """Frozen rollouts by prompt, `fraction` of each group; their ratio is 1 (advantage-weighted imitation)."""

    fraction: float

    def draw(self, prompt: Prompt, n: int, seed: int) -> list[Rollout]:
        """`n` rollouts for this prompt, or none when the pool has none; the same for the same seed."""
        ...


def schedule(n_prompts: int, per_step: int, steps: int, seed: int) -> list[int]:
    """Which prompts each step asks, flat, `per_step` a step: permutations one after the other, distinct within a step.

    Raises ConfigurationError when a step asks for more prompts than there are.
    """
    if per_step > n_prompts:
        raise ConfigurationError(f"A step asks {per_step} prompts, but there are only {n_prompts}; lower batch_size.")
    chosen: list[int] = []
    epoch = 0
    while len(chosen) < per_step * steps:
        order = list(range(n_prompts))
        random.Random(stable_seed(seed, "prompts", epoch)).shuffle(order)
        chosen += order[: n_prompts - n_prompts % per_step]
        epoch += 1
    return chosen[: per_step * steps]
