"""Proof that a sampler holds the weights the trainer holds.

The log-probs of a fixed probe are computed on both sides. They must agree within what the precision explains; they must
not lie much closer to the base model's, or to those of the policy as last synced, than to the policy's; and when the
trainable weights have changed enough to move the trainer's, the sampler's must have moved too. What these cannot see: a
sampler one sync behind while a step moves the log-probs by about the gap between two right implementations, or less.
Knows no engine: a sampler is a function from token sequences to log-probs. That function should score the last token of
each sequence the way sampled tokens are scored (through the prefix cache, if there is one), or a stale cache goes unseen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from research.errors import StaleWeightsError
from research.models.deltas import has_adapter, trainable_fingerprint, without_adapter

SamplerLogprobs = Callable[[list[list[int]]], list[list[float]]]

SHORT, LONG = 24, 161  # tokens of a probe sequence; the long ones fill cache blocks of up to 128 tokens
ENDINGS = 6  # of the long sequence: as many tokens that are scored through the cache
NEARER = 1.5  # times as near, on average, before a sampler is said to hold other weights


@dataclass(frozen=True)
class Tolerance:
    """How far two correct implementations may lie apart on the probe, in nats: worst token, and mean over tokens."""

    worst: float
    mean: float


TOLERANCES = {
    torch.float32: Tolerance(worst=5e-3, mean=1e-3),
    torch.float16: Tolerance(worst=0.15, mean=0.02),
    torch.bfloat16: Tolerance(worst=1.0, mean=0.2),
}


@dataclass
class ProofState:
    """What one sampler has proven so far; starts empty, updated by each proof that holds.

    context: longest sequence that the engine takes. dtype: precision that the sampler computes in; None: the policy's.
    """

    context: int = 1024
    dtype: torch.dtype | None = None
    probe: list[list[int]] = field(default_factory=list)
    fingerprint: str | None = None
    base: list[float] = field(default_factory=list)
    trainer: list[float] = field(default_factory=list)
    sampler: list[float] = field(default_factory=list)


def prove(policy: Any, sampler_logprobs: SamplerLogprobs, state: ProofState) -> tuple[float, float]:
    """Compare trainer and sampler on the probe and return (gap, moved), both in nats.

    gap: largest absolute difference over the probe's tokens. moved: largest absolute change of the sampler's
    log-probs since the last proof; 0 the first time. Raises StaleWeightsError, with the numbers and the likely
    causes, when the gap exceeds the tolerance of the precision; when the sampler is much nearer to the base model or to
    the last sync; when tokens scored through its prefix cache are off; or when it did not move and the trainer did.
    """
    if not state.probe:
        state.probe = make_probe(_vocabulary(policy), state.context)
    tolerance = TOLERANCES[state.dtype or next(p.dtype for p in policy.parameters() if p.is_floating_point())]
    now = trainable_fingerprint(policy)
    trainer = _flat(trainer_logprobs(policy, state.probe))
    sampler = _flat(sampler_logprobs(state.probe))
    if len(sampler) != len(trainer):
        raise StaleWeightsError(f"the sampler scored {len(sampler)} tokens of the probe instead of {len(trainer)}")
    gap, mean_gap = _worst(trainer, sampler), _mean(trainer, sampler)
    moved = _worst(sampler, state.sampler) if state.sampler else 0.0
    trainer_moved = _worst(trainer, state.trainer) if state.trainer else 0.0
    if not state.base and has_adapter(policy):
        with without_adapter(policy):
            state.base = _flat(trainer_logprobs(policy, state.probe))
    elsewhere = (
        _nearer(sampler, trainer, state.base)
        or _nearer(sampler, trainer, state.trainer)
        or _cache_is_stale(state, trainer, sampler)
    )
    stuck = state.fingerprint not in (None, now) and trainer_moved > tolerance.worst / 10 and moved == 0.0
    if not (gap <= tolerance.worst and mean_gap <= tolerance.mean) or stuck or elsewhere:  # written so that NaN fails
        measured = (
            f"trainer and sampler differ by {gap:.4g} nats on the worst probe token and {mean_gap:.4g} on average "
            f"(allowed: {tolerance.worst:g} and {tolerance.mean:g}); since the last sync the trainer moved by "
            f"{trainer_moved:.4g} and the sampler by {moved:.4g}"
        )
        raise StaleWeightsError(
            f"the sampler does not hold the trainer's weights: {measured}. {_diagnose(state, trainer, sampler)}"
        )
    state.fingerprint, state.trainer, state.sampler = now, trainer, sampler
    return gap, moved


def still_holds(sampler_logprobs: SamplerLogprobs, state: ProofState) -> None:
    """Raise StaleWeightsError unless the sampler answers as at the last proof: nobody changed its weights since."""
    if not state.sampler:
        return
    now = _flat(sampler_logprobs(state.probe))
    assert state.dtype is not None
    drift = _mean(now, state.sampler)
    if not drift <= TOLERANCES[state.dtype].mean or _nearer(now, state.sampler, state.base, times=1.0):
        raise StaleWeightsError(
            f"the sampler's weights changed after they were proven: the probe drifted by {drift:.4g} nats on average. "
            "Somebody else reloaded, restarted or updated the server; the tokens of this call are not the policy's."
        )


def make_probe(vocabulary: int, context: int) -> list[list[int]]:
    """Three short sequences, and a long one with several endings, of ids that are the same everywhere and always."""
    generator = torch.Generator().manual_seed(20_240_501)
    lengths = [min(n, context - 1) for n in (SHORT, SHORT, SHORT, LONG)]
    *short, long = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [*short, *([*long[:-1], (long[-1] + i) % vocabulary] for i in range(ENDINGS))]


@torch.no_grad()
def trainer_logprobs(policy: Any, sequences: Sequence[list[int]]) -> list[list[float]]:
    """Natural log-probs of each sequence's tokens after the first, under the policy as it stands, without dropout."""
    device = next(policy.parameters()).device
    longest = max(map(len, sequences))
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(sequences):  # padded on the right, which causal attention never sees
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT[row, : len(ids)] = 1
    training = [module for module in policy.modules() if module.training]
    policy.eval()
    try:
        output = policy(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False)
    finally:
        for module in training:
            module.training = True
    found = []
    for row, ids in enumerate(sequences):  # one at a time: float32 logits of a whole vocabulary are large
        logprobs_TV = output.logits[row, : len(ids) - 1].float().log_softmax(-1)
        found.append(logprobs_TV.gather(-1, ids_BT[row, 1 : len(ids), None].to(device))[:, 0].tolist())
    return found


def gap_metrics(trainer: Sequence[Sequence[float]], sampler: Sequence[Sequence[float]]) -> dict[str, float]:
    """The trainer-sampler gap on sampled tokens, logged at every step: mean and worst difference, mean ratio p/q."""
    differences = [t - s for ts, ss in zip(trainer, sampler, strict=True) for t, s in zip(ts, ss, strict=True)]
    if not differences:
        return {}
    return {
        "sampler/gap_mean": sum(map(abs, differences)) / len(differences),
        "sampler/gap_max": max(map(abs, differences)),
        "sampler/ratio_mean": sum(math.exp(min(d, 50.0)) for d in differences) / len(differences),
    }


def _diagnose(state: ProofState, trainer: list[float], sampler: list[float]) -> str:
    """The likely causes, most specific first."""
    if state.sampler and _worst(sampler, state.sampler) == 0.0:
        return (
            "Its answers did not change at all: the new weights were refused and the refusal swallowed, or requests "
            "do not name the new adapter, or only unchanged base weights were shipped."
        )
    if _cache_is_stale(state, trainer, sampler):
        return "Only tokens scored through the prefix cache are off: the cache was not reset after the sync."
    if _nearer(sampler, trainer, state.base):
        return (
            "It answers as the base model does: requests do not name the adapter, only base weights were shipped, "
            "or a reload from the original checkpoint undid the sync."
        )
    if _nearer(sampler, trainer, state.trainer):
        return "It answers with the weights of the previous sync: the new ones did not arrive."
    return (
        "Likely causes: another base model than the trainer's; a tied output head that kept its old copy; a sync of "
        "part of the weights; a scale (alpha, rslora) read differently."
    )


def _cache_is_stale(state: ProofState, trainer: list[float], sampler: list[float]) -> bool:
    """Whether each sequence's last token, scored through the cache, is far worse than the tokens that were not."""
    ends = [place - 1 for place in itertools.accumulate(len(ids) - 1 for ids in state.probe)]
    error = [x - y for x, y in zip(sampler, trainer, strict=True)]
    cached = [error[place] for place in ends]
    fresh = [value for place, value in enumerate(error) if place not in set(ends)]
    return _rms(cached, [0.0] * len(cached)) > 5 * max(_rms(fresh, [0.0] * len(fresh)), 1e-4)


def _nearer(sampler: list[float], trainer: list[float], other: list[float], times: float = NEARER) -> bool:
    """Whether the sampler is more than so many times as near to `other` as to the trainer.

    Simply nearer says nothing: each was measured with the rounding errors of its own pass, and where a step moves the
    log-probs less than these, the last sync's are as near as the trainer's own. The probe's tokens, many of them the same
    in several sequences, weigh as much as 183 independent ones: such errors alone make it 1.5 times as near at five
    standard deviations, and weights that moved by 1.5 times the gap do so nearly always.
    """
    return bool(other) and times * _mean(sampler, other) < _mean(sampler, trainer)


def _vocabulary(policy: Any) -> int:
    config = policy.config
    return int((config.get_text_config() if hasattr(config, "get_text_config") else config).vocab_size)


def _flat(rows: Sequence[Sequence[float]]) -> list[float]:
    return [value for row in rows for value in row]


def _worst(a: Sequence[float], b: Sequence[float]) -> float:
    differences = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _rms(a: Sequence[float], b: Sequence[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / max(1, len(a)))


def _mean(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)
