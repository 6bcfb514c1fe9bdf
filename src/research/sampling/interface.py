"""The one interface through which every study, evaluation and data generation samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SamplingParams:
    """How to draw completions.

    temperature: 0 is greedy. top_p: nucleus mass kept, in (0, 1]. max_tokens: upper bound on new tokens a completion.
    seed: makes the draw reproducible. stop_token_ids: end a completion; the stopping token is kept as its last id.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 128
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    token_ids: new tokens only. logprobs: natural log of each token's probability under the model's own
    distribution, before temperature and top_p; same length. finish_reason: "stop" (a stop token was drawn) or "length".
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


@dataclass(frozen=True)
class SyncReceipt:
    """Proof that a sampler holds the trainer's weights.

    seconds: wall time of the sync. version: counts syncs from 1. probe_gap: largest absolute difference, in nats,
    between trainer and sampler log-probs over the fixed probe. moved: its largest absolute change since the last sync.
    """

    seconds: float
    version: int
    probe_gap: float
    moved: float


class Sampler(Protocol):
    """Generates from the policy's current weights."""

    def generate(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[list[Completion]]:
        """Draw `n` completions for each prompt; the outer list follows `prompts`.

        The draw depends on `params.seed` and on the prompts only, never on how they are batched.
        Raises ValueError for an empty prompt or one without room for a token, SamplerError when the engine fails.
        """
        ...

    def sync(self, policy: PreTrainedModel | PeftModel) -> SyncReceipt:
        """Make the policy's current weights those that generate; raises StaleWeightsError when they are not."""
        ...

    def close(self) -> None:
        """Release the engine; calling it twice is harmless."""
        ...
