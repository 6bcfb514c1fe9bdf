"""Live sync into a real engine of two ranks, in processes of their own: every rank holds its shard, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpu import policies
from gpu.policies import HEAD, HEADS, INNER, TARGETS, mean, save_model
from research.errors import StaleWeightsError
from research.models.merge import merged_weights
from research.sampling.interface import SamplingParams
from research.sampling.proof import TOLERANCES, ProofState, trainer_logprobs

pytest.importorskip("vllm", reason="needs vLLM")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """One key-value head, which both ranks hold."""
    return save_model(tmp_path_factory.mktemp("model"), key_value_heads=1)


@pytest.fixture(scope="module")
def engine(directory):
    from research.sampling.vllm_engine import VLLMSampler

    sampler = VLLMSampler(directory, context=512, gpu_memory_utilization=0.1, tensor_parallel_size=2)
    yield sampler
    sampler.close()


@pytest.fixture
def sampler(engine, directory):
    """The engine with the checkpoint's weights and nothing proven or bound."""
    if engine.path:
        policy = make_policy(directory)
        move(policy, None)
        engine._write(policy)
        engine._reset_cache()
    engine.version, engine.path = 0, ""
    engine.proof = ProofState(context=512, dtype=torch.bfloat16)
    return engine


def make_policy(directory, seed=1, targets=TARGETS):
    policy = policies.make_policy(directory, targets=targets, rslora=False)
    move(policy, seed)
    return policy


def move(policy, seed):
    """Factors of few bits, whose product is exact in any order of summing: a shard's and the whole matrix's. None: 0."""
    generator = torch.Generator("cuda:0").manual_seed(seed or 0)
    for parameter in policies.factors(policy):
        drawn = torch.randint(-4, 5, parameter.shape, generator=generator, device="cuda:0").float() / 64
        parameter.data = drawn if seed is not None else torch.zeros_like(drawn)


def held(engine):
    """Each rank's linear weights, on the CPU. Defined inside, so that it travels by value."""

    def weights(worker):
        named = worker.get_model().named_parameters()
        return {name: tensor.detach().cpu() for name, tensor in named if name.endswith("_proj.weight")}

    return engine.llm.collective_rpc(weights)


def expected(policy, rank):
    """This rank's shards of the merged weights, cut by hand: heads and inner units are halved, the one kv head is not."""
    full = {name: tensor.cpu() for name, tensor in merged_weights(policy)}

    def rows(name):
        size = full[name].shape[0] // 2
        return full[name][rank * size : (rank + 1) * size]

    shards = {}
    for layer in range(4):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        query, key, value = (f"{attention}.{name}_proj.weight" for name in "qkv")
        assert full[query].shape[0] == HEADS * HEAD and full[key].shape[0] == HEAD
        shards[f"{attention}.qkv_proj.weight"] = torch.cat([rows(query), full[key], full[value]])
        gate_up = [rows(f"{mlp}.{name}_proj.weight") for name in ("gate", "up")]
        shards[f"{mlp}.gate_up_proj.weight"] = torch.cat(gate_up)
        for name in (f"{attention}.o_proj.weight", f"{mlp}.down_proj.weight"):
            size = full[name].shape[1] // 2
            shards[name] = full[name][:, rank * size : (rank + 1) * size]
    return shards


def assert_held(engine, policy):
    for rank, weights in enumerate(held(engine)):
        shards = expected(policy, rank)
        assert set(weights) == set(shards)
        wrong = [name for name, shard in shards.items() if not torch.equal(weights[name], shard)]
        assert not wrong, (rank, wrong)


def test_both_ranks_hold_their_shards_after_one_sync_and_after_a_hundred(sampler, directory):
    policy = make_policy(directory)
    receipt = sampler.sync(policy)
    assert sampler.path == "in_place"
    assert_held(sampler, policy)
    probe = sampler.proof.probe
    once = sampler.logprobs(probe)
    buffer = sampler.staging.buffer.data_ptr()
    for seed in range(2, 101):
        move(policy, seed)
        sampler._write(policy)
    assert_held(sampler, policy)
    move(policy, 1)
    again = sampler.sync(policy)
    assert again.moved < 0.05 and sampler.staging.buffer.data_ptr() == buffer
    assert_held(sampler, policy)
    unmerged = trainer_logprobs(policy, probe)
    gaps = {"after 1": mean(once, unmerged), "after 100": mean(sampler.logprobs(probe), unmerged)}
    print(f"worst gap {receipt.probe_gap:.4f} nats; mean gaps {gaps}")
    assert all(gap < TOLERANCES[torch.bfloat16].mean / 2 for gap in gaps.values())
    move(policy, 2)
    assert sampler.sync(policy).moved > 0.1


def test_generation_uses_the_new_weights(sampler, directory):
    policy = make_policy(directory)
    draw = SamplingParams(max_tokens=32, seed=1)
    batch = [[i % 2048, 5, 6, 7] for i in range(32)]
    before = sampler.generate(batch, 1, draw)
    sampler.sync(policy)
    drawn = sampler.generate(batch, 1, draw)
    assert drawn != before
    scored = trainer_logprobs(policy, [p + g[0].token_ids for p, g in zip(batch, drawn, strict=True)])
    assert mean([row[3:] for row in scored], [g[0].logprobs for g in drawn]) < TOLERANCES[torch.bfloat16].mean / 2


def test_a_sync_of_fewer_layers_is_refused_and_changes_nothing(sampler, directory):
    """By every rank; the answers to the next call are its own."""
    policy = make_policy(directory)
    sampler.sync(policy)
    with pytest.raises(StaleWeightsError, match="not the 28 that this engine was bound with"):
        sampler.sync(make_policy(directory, seed=2, targets=["q_proj"]))
    assert_held(sampler, policy)
    move(policy, 3)
    assert sampler.sync(policy).moved > 0.1
    assert_held(sampler, policy)


def test_another_base_is_refused_by_the_rank_that_sees_it(sampler, directory):
    """The change lies in rank 1's half."""
    policy = make_policy(directory)
    with torch.no_grad():
        policy.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight[INNER - 1, 5] += 1
    with pytest.raises(StaleWeightsError, match=r"layers\.1\.mlp\.up_proj.*not the trainer's pristine base"):
        sampler.sync(policy)
    policy = make_policy(directory)
    sampler.sync(policy)
    assert_held(sampler, policy)


def test_wider_factors_get_a_new_buffer_and_memory_does_not_grow(sampler, directory):
    """What a sync shares is let go of: neither process keeps memory of the syncs before."""
    policy = make_policy(directory)
    sampler.sync(policy)
    narrow = sampler.staging.buffer
    for layer in (m for m in policy.modules() if hasattr(m, "lora_A")):
        left, right, scale = layer.lora_B["default"].weight, layer.lora_A["default"].weight, layer.scaling["default"]
        wide = torch.cat([left] + [torch.zeros_like(left)] * 3, dim=1), torch.cat([right] * 4)
        layer.delta_factors = lambda adapter, wide=wide, scale=scale: (*wide, scale)
    sampler._write(policy)
    assert sampler.staging.buffer is not narrow
    assert_held(sampler, policy)
    torch.cuda.synchronize()
    used = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(2)]
    for _ in range(100):
        sampler._write(policy)
    after = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(2)]
    assert all(before - now < 64 << 20 for before, now in zip(used, after, strict=True)), (used, after)
