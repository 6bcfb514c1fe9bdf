"""The proof catches a sampler that does not follow, and names the cause."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from research.errors import StaleWeightsError
from research.sampling import proof
from research.sampling.proof import ProofState, gap_metrics, make_probe, prove, trainer_logprobs


@pytest.fixture
def policy(tiny_model_dir):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules=["q_proj", "v_proj"]))


def step(policy, size=0.1, seed=0):
    """Move the adapter as a training step would."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * size


def merged(policy):
    model = deepcopy(policy).merge_and_unload()
    return lambda sequences: trainer_logprobs(model, sequences)


def test_probe_is_fixed_and_fits_the_context():
    assert make_probe(500, 1024) == make_probe(500, 4096)
    assert [len(ids) for ids in make_probe(500, 1024)] == [24, 24, 24] + [161] * 6
    assert max(len(ids) for ids in make_probe(500, 64)) == 63
    long = make_probe(500, 1024)[3:]
    assert len({tuple(ids[:-1]) for ids in long}) == 1 and len({ids[-1] for ids in long}) == 6


def test_following_sampler_is_proven_and_its_movement_reported(policy):
    state = ProofState()
    gap, moved = prove(policy, merged(policy), state)
    assert gap < 1e-4 and moved == 0.0
    step(policy)
    gap, moved = prove(policy, merged(policy), state)
    assert gap < 1e-4 and moved > 0.01


def test_proof_ignores_dropout_and_keeps_the_training_mode(policy):
    policy.train()
    policy.get_base_model().model.norm.eval()
    before = {n: m.training for n, m in policy.named_modules()}
    step(policy)
    prove(policy, merged(policy), ProofState())
    assert {n: m.training for n, m in policy.named_modules()} == before


def test_stale_sampler_is_caught_with_the_gap(policy):
    state, stale = ProofState(), merged(policy)
    prove(policy, stale, state)
    step(policy)
    with pytest.raises(StaleWeightsError, match=r"worst probe token.*did not change at all"):
        prove(policy, stale, state)


def test_small_movement_of_the_trainer_alone_is_caught(policy):
    state, stale = ProofState(), merged(policy)
    prove(policy, stale, state)
    step(policy, size=0.0001)
    fresh = merged(policy)(state.probe)
    moved = max(abs(a - b) for f, s in zip(fresh, stale(state.probe), strict=True) for a, b in zip(f, s, strict=True))
    assert 5e-4 < moved < 5e-3  # the gap alone would pass
    with pytest.raises(StaleWeightsError, match="did not change at all"):
        prove(policy, stale, state)


def test_base_model_in_place_of_the_adapter_is_named(policy):
    base = deepcopy(policy).unload()
    step(policy)
    with pytest.raises(StaleWeightsError, match="as the base model does"):
        prove(policy, lambda s: trainer_logprobs(base, s), ProofState())


def test_stale_prefix_cache_is_named(policy):
    old = merged(policy)
    step(policy, size=0.3)
    new = merged(policy)

    def sampler(sequences):
        return [fresh[:-1] + stale[-1:] for fresh, stale in zip(new(sequences), old(sequences), strict=True)]

    with pytest.raises(StaleWeightsError, match="cache was not reset"):
        prove(policy, sampler, ProofState())


def test_noise_of_the_precision_is_no_stale_sampler(policy):
    """Independent errors of a twentieth of a nat on every token, the size of bfloat16's in a large model."""
    step(policy)
    state = ProofState(dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)

    def noisy(sequences):
        return [
            [x + 0.05 * torch.randn((), generator=generator).item() for x in row] for row in merged(policy)(sequences)
        ]

    for seed in range(20):
        prove(policy, noisy, state)
        step(policy, size=0.001 if seed % 2 else 0.1, seed=seed)


NOISE = 0.05  # nats a token, independent in every pass: a large model's in bfloat16


@pytest.fixture
def noisy_trainer(monkeypatch):
    """Every pass of the trainer has errors of its own; returns what gives a sampler's such errors."""
    generator = torch.Generator().manual_seed(0)

    def blurred(rows):
        return [(torch.tensor(row) + NOISE * torch.randn(len(row), generator=generator)).tolist() for row in rows]

    monkeypatch.setattr(
        proof, "trainer_logprobs", lambda policy, sequences: blurred(trainer_logprobs(policy, sequences))
    )
    return blurred


def readings(moved, count=3000):
    """Sampler, trainer and last sync on as many independent tokens as the probe is worth; each with errors of one size.

    moved: how far the last step moved the log-probs, in units of the mean gap between two readings of the same weights.
    The sampler holds the last sync's weights.
    """
    torch.manual_seed(0)
    errors = torch.randn(count, 3, 183)
    step = torch.randn(count, 183) * moved * 2**0.5
    errors[:, 1] += step
    return errors.tolist()


def test_errors_alone_never_make_the_last_sync_much_nearer():
    assert sum(proof._nearer(*three) for three in readings(moved=0)) == 0
    assert (
        sum(proof._nearer(*three, times=1.0) for three in readings(moved=0)) > 1000
    )  # simply nearer: every other time


def test_a_sampler_one_sync_behind_is_seen_from_a_step_of_one_and_a_half_gaps():
    caught = [sum(proof._nearer(*three) for three in readings(moved, 1000)) for moved in (0.75, 1.5)]
    assert caught[0] < 50 and caught[1] > 950


def test_noise_on_both_sides_is_no_stale_sampler(policy, noisy_trainer):
    """Where a step moves less than rounding does, the last sync's log-probs are as near as the trainer's."""
    state = ProofState(dtype=torch.bfloat16)
    step(policy)
    exact = merged(policy)(make_probe(policy.config.vocab_size, state.context))
    for _ in range(100):
        prove(policy, lambda _: noisy_trainer(exact), state)


def test_sampler_one_sync_behind_is_caught_beyond_the_noise(policy, noisy_trainer):
    state = ProofState(dtype=torch.bfloat16)
    prove(policy, lambda s: noisy_trainer(merged(policy)(s)), state)
    for seed in range(1, 8):
        old = merged(policy)(state.probe)
        step(policy, size=0.04, seed=seed)
        new = merged(policy)(state.probe)
        moved = torch.cat([torch.tensor(n) - torch.tensor(o) for n, o in zip(new, old, strict=True)])
        assert moved.abs().mean() < 0.15 and moved.abs().max() < 0.8  # the gap alone would pass
        with pytest.raises(StaleWeightsError, match=r"previous sync|base model"):
            prove(policy, lambda _, rows=old: noisy_trainer(rows), state)
        prove(policy, lambda _, rows=new: noisy_trainer(rows), state)


def test_stale_sampler_within_the_tolerance_is_caught_by_what_it_resembles(policy):
    state, stale = ProofState(dtype=torch.bfloat16), merged(policy)
    prove(policy, stale, state)
    step(policy, size=0.005)
    fresh = merged(policy)(state.probe)

    def sampler(sequences):  # neither exactly as before
        return [[value + 1e-5 for value in row] for row in stale(sequences)]

    moved = max(abs(a - b) for f, s in zip(fresh, stale(state.probe), strict=True) for a, b in zip(f, s, strict=True))
    assert moved < 0.6  # what bfloat16 is allowed
    with pytest.raises(StaleWeightsError, match="base model"):
        prove(policy, sampler, state)


def test_nan_is_never_a_proof(policy):
    with pytest.raises(StaleWeightsError):
        prove(policy, lambda s: [[float("nan")] * (len(ids) - 1) for ids in s], ProofState())


def test_failed_proof_leaves_the_state(policy):
    state = ProofState()
    prove(policy, merged(policy), state)
    before, stale = deepcopy(state), merged(policy)
    step(policy)
    for _ in range(2):  # a caller that swallows the error does not get past it by asking again
        with pytest.raises(StaleWeightsError):
            prove(policy, stale, state)
    assert state == before


def test_gap_metrics_by_hand():
    metrics = gap_metrics([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-2.0]])
    assert metrics["sampler/gap_mean"] == pytest.approx(0.5)
    assert metrics["sampler/gap_max"] == 1.0
    assert metrics["sampler/ratio_mean"] == pytest.approx((2.718281828**0.5 + 1 + 2.718281828**-1) / 3)
