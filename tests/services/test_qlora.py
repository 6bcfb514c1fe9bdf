"""A base in 4 bits: smaller, trained on, never written to, and sampled from with the weights that the trainer has."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from invariant import policy_setup as setup
from invariant.test_supervised import make_rows
from smoke.test_processes import research

from research.compose import compose, validate
from research.config import AdapterConfig, ModelConfig, Optimization
from research.errors import ConfigurationError, StaleWeightsError
from research.models.adapters import attach_lora, detach
from research.models.base import load_base
from research.models.merge import merged_weights
from research.models.quantization import dense_weight, is_quantized
from research.sampling.interface import SamplingParams
from research.sampling.proof import trainer_logprobs
from research.sampling.transformers_sampler import TransformersSampler
from research.training.fused_lora import fused_lora
from research.training.supervised import train

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("one_thread")]


def load(directory, quantization="nf4"):
    return load_base(ModelConfig(name="tiny", path=str(directory), quantization=quantization), device="cpu")


def adapted(base, dropout=0.0):
    return attach_lora(base, AdapterConfig(r=4, scale=1.0, dropout=dropout), seed=0)


@torch.no_grad()
def shift(policy, seed=0, size=0.1):
    """Move B in place, as an optimizer does."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


def trained_weights(policy):
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


def test_layers_hold_four_bits_a_weight_and_the_rest_is_whole():
    plain = load_base(ModelConfig(), device="cpu")
    base = load_base(ModelConfig(quantization="nf4"), device="cpu")
    model, layers = base.model, base.model.model.layers
    size = {m: sum(t.nbytes for t in m.state_dict().values()) for m in (layers, plain.model.model.layers)}
    assert size[layers] < 0.2 * size[plain.model.model.layers]
    assert model.get_memory_footprint() < plain.model.get_memory_footprint() / 2
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, plain.model.lm_head.weight)
    assert is_quantized(model) and not is_quantized(plain.model)
    wanted = plain.model.model.layers[2].mlp.up_proj.weight
    error = (dense_weight(layers[2].mlp.up_proj) - wanted).norm() / wanted.norm()
    assert 0.02 < error < 0.15  # NF4's on normal weights is about a tenth
    assert base.weights_hash != plain.weights_hash, "what is cached for one must not serve the other"


def test_one_bit_of_a_code_and_one_scale_are_seen(tiny_model_dir):
    base = load(tiny_model_dir)
    assert load(tiny_model_dir).loaded_fingerprint == base.loaded_fingerprint
    weight = base.model.model.layers[1].mlp.up_proj.weight
    for tensor in (weight.data, weight.quant_state.absmax):
        tensor[7] ^= 1
        with pytest.raises(RuntimeError, match="changed since it was loaded"):
            base.check_pristine()
        tensor[7] ^= 1
        base.check_pristine()


def test_supervised_training_lowers_the_loss_and_leaves_the_base(tiny_model_dir, tmp_path):
    base = load(tiny_model_dir)
    policy, log = adapted(base), []
    with fused_lora(policy.get_base_model()) as fused:
        assert fused == 0
    train(
        policy, make_rows(), Optimization(), lr=1e-2, epochs=12, batch_size=8, seed=7, scratch=tmp_path,
        log=lambda step, metrics: log.append(metrics["loss"]),
    )  # fmt: skip
    assert log[-1] < log[0] / 2
    assert all(p.dtype == torch.float32 for p in policy.parameters() if p.requires_grad)
    detach(base, policy)


class Stop(Exception):
    pass


def attempt(directory, scratch, stop_at=None):
    """Train three epochs with dropout; the adapter and the steps that were logged."""
    policy, steps = adapted(load(directory), dropout=0.1), []

    def log(step, metrics):
        steps.append(step)
        if step == stop_at:
            raise Stop

    train(
        policy, make_rows(), Optimization(checkpoint_seconds=0.0), lr=1e-2, epochs=3, batch_size=8, seed=7,
        scratch=scratch, log=log,
    )  # fmt: skip
    return trained_weights(policy), steps


def test_a_resumed_run_ends_with_the_adapter_of_an_uninterrupted_one(tiny_model_dir, tmp_path):
    whole, _ = attempt(tiny_model_dir, tmp_path / "whole")
    with pytest.raises(Stop):
        attempt(tiny_model_dir, tmp_path / "stopped", stop_at=4)
    resumed, steps = attempt(tiny_model_dir, tmp_path / "stopped")
    assert steps == [4, 5, 6], "it went on from the checkpoint of step 3"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_sampler_scores_and_draws_as_the_policy_of_the_last_sync(tiny_model_dir):
    base = load(tiny_model_dir)
    policy = adapted(base, dropout=0.1).train()
    shift(policy)
    sampler = TransformersSampler(policy)
    params = SamplingParams(temperature=0, max_tokens=10)
    assert sampler.sync(policy).probe_gap < 1e-3
    before = sampler.generate([[5, 6, 7]], 1, params)
    shift(policy, seed=1)
    assert sampler.generate([[5, 6, 7]], 1, params) == before, "weights change at a sync only"
    assert sampler.sync(policy).moved > 0.01
    ((after,),) = sampler.generate([[5, 6, 7]], 1, params)
    assert [[after]] != before and policy.training
    scores = trainer_logprobs(policy, [[5, 6, 7, *after.token_ids]])[0][2:]
    assert after.logprobs == pytest.approx(scores, abs=1e-4)
    detach(base, policy)


def test_a_swallowed_sync_is_noticed(tiny_model_dir, monkeypatch):
    policy = adapted(load(tiny_model_dir))
    sampler = TransformersSampler(policy)
    sampler.sync(policy)
    shift(policy)
    stale = dict(sampler.weights)
    monkeypatch.setattr("research.sampling.transformers_sampler._snapshot", lambda policy: stale)
    with pytest.raises(StaleWeightsError, match="does not hold the trainer's weights"):
        sampler.sync(policy)


def test_grpo_trains_the_adapter_in_float32_on_an_untouched_base(tiny_model_dir, tmp_path):
    """A learning rate whose first step bfloat16 would round away in most of A's entries."""
    base = load(tiny_model_dir)
    policy = adapted(base)
    shift(policy)
    before = trained_weights(policy)
    _, rows = setup.train(
        policy, base.tokenizer, tmp_path, setup.config(lr=1e-6, kl_beta=0.1), sampler=TransformersSampler(policy)
    )
    assert len(rows) == 2 and all(row["grad_norm"] > 0 and row["sync/probe_gap"] < 1e-3 for row in rows)
    for name, weight in trained_weights(policy).items():
        assert weight.dtype == torch.float32
        assert 0 < (weight - before[name]).abs().max() < 1e-5, name
    detach(base, policy)


def test_a_base_without_adapter_is_sampled_from(tiny_model_dir):
    base = load(tiny_model_dir)
    sampler = TransformersSampler(base.model)
    assert sampler.sync(base.model).probe_gap < 1e-3


def test_merging_is_refused(tiny_model_dir):
    with pytest.raises(ConfigurationError, match="weights in 4 bits cannot take an adapter in"):
        list(merged_weights(adapted(load(tiny_model_dir))))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=reward_hack", "sampler=vllm"], "sampler=vllm takes weights with the adapter merged in"),
        (["task=reward_hack", "sampler=vllm_server"], "sampler=vllm_server takes weights"),
        (["task=reward_hack", "adapter=antipasto"], "adapter=antipasto decomposes plain weights"),
        (["task=imposter", "model.shard=true"], "model.shard=true shares out plain weights"),
        (["task=pretrain"], "task=pretrain trains all weights"),
    ],
)
def test_what_needs_plain_weights_is_refused_before_any_work(words, message):
    with pytest.raises(ConfigurationError, match=message):
        validate(compose([*words, "model.quantization=nf4"]))


def test_a_missing_package_is_named_with_its_command(tiny_model_dir, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install bitsandbytes==0\.50\.2"):
        load(tiny_model_dir)


def test_a_cell_runs_end_to_end(tiny_model_dir, tmp_path):
    research(
        tmp_path, "task=imposter", "model.name=tiny", f"model.path={tiny_model_dir}", "model.quantization=nf4",
        "lr=3e-3", "steps=2", "batch_size=8", "adapter.r=4", "task.prompts=8", "task.generation.max_tokens=12",
        "task.discriminator.hidden=32", "task.discriminator.layers=1", "task.discriminator.max_length=48",
        "task.same_lengths=false", "task.discriminator.epochs=1", "task.discriminator.pairs=16", "task.discriminator.heldout_pairs=8",
        "task.discriminator.per_span=1", "task.cotrain.every=2", "task.cotrain.pairs=8", "task.cotrain.replay=8",
        "task.eval.documents=8", "task.eval.candidates=2", "task.eval.mauve=false",
    )  # fmt: skip
    (frozen,) = tmp_path.rglob("config.yaml")
    assert "model.quantization: nf4" in frozen.read_text() and list(tmp_path.rglob("run_result.json"))
