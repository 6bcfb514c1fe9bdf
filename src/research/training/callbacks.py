"""What happens every N steps: evaluation, direction refresh, co-training of a discriminator.

    class Refresh:
        every = 10
        def __call__(self, moment: Moment) -> Mapping[str, float]: ...      # joins the step's line in metrics.jsonl
        def state_dict(self) -> dict: ...                                   # optional: saved with each checkpoint
        def load_state_dict(self, state: dict) -> None: ...

A callback runs after the optimizer step and before the step is logged and saved, so a resumed run repeats none that
was saved. State may hold tensors, numbers, strings, and lists and dictionaries of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from research.sampling.interface import Sampler
    from research.training.constraints import Constraint
    from research.training.rollouts import Group


@dataclass(frozen=True)
class Moment:
    """What a callback may look at, and change: the run after optimizer step `step` (counted from 1).

    groups: this step's rollouts with their rewards and records. The sampler still holds the weights that drew them;
    call `sampler.sync(policy)` before sampling from the updated policy.
    """

    step: int
    policy: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    groups: Sequence[Group]
    constraint: Constraint | None


class Callback(Protocol):
    """Called after every `every`-th optimizer step; what it returns is logged with that step."""

    every: int

    def __call__(self, moment: Moment) -> Mapping[str, float]: ...
