"""Live sync in place, as on a GPU, on a CPU engine with unpacked weights; shards against vLLM's own loaders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from research.errors import StaleWeightsError
from research.sampling.proof import ProofState, prove, trainer_logprobs
from services.vllm_policy import make_policy, merged_logprobs, move, worst

pytest.importorskip("vllm", reason="needs vLLM")
pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def engine(tiny_model_dir):
    """Without its packed kernels the CPU build computes with `layer.weight`, where a GPU's engine keeps it."""
    import vllm._custom_ops as ops
    from vllm.model_executor.layers import utils

    from research.sampling.vllm_engine import VLLMSampler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_supports_onednn", False)
        patch.setattr(utils, "check_cpu_sgl_kernel", lambda *_: False)
        patch.setattr(utils, "dispatch_cpu_unquantized_gemm", keeping(utils.dispatch_cpu_unquantized_gemm))
        sampler = VLLMSampler(tiny_model_dir, context=512, dtype="bfloat16")
        yield sampler
    sampler.close()


def keeping(dispatch):
    """The dispatcher, never dropping the weight it dispatches."""
    return lambda layer, remove_weight: dispatch(layer, False)


@pytest.fixture
def sampler(engine, tiny_model_dir):
    """The engine with the checkpoint's weights and nothing proven."""
    restore(engine, tiny_model_dir)
    engine.version, engine.path = 0, ""
    engine.proof = ProofState(context=512, dtype=torch.bfloat16)
    return engine


def restore(engine, directory):
    """Base weights back in place."""
    from transformers import AutoModelForCausalLM

    model = engine_model(engine)
    model.load_weights(iter(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).state_dict().items()))
    engine.llm.reset_prefix_cache()


def engine_model(engine):
    return engine.llm.llm_engine.model_executor.driver_worker.worker.get_model()


def test_in_place_sync_lands_in_the_fused_rows_and_does_not_drift(sampler, tiny_model_dir):
    policy = make_policy(tiny_model_dir, dtype=torch.bfloat16)
    model = engine_model(sampler)
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    receipt = sampler.sync(policy)
    assert sampler.path == "in_place"
    once = {n: p.clone() for n, p in model.named_parameters()}
    for seed in range(500):  # other weights, then the first ones again
        move(policy, seed)
        sampler._write(policy)
    move(policy, seed=1)
    for _ in range(500):
        sampler._write(policy)
    assert all(torch.equal(p, once[n]) for n, p in model.named_parameters())
    assert before == {n: p.data_ptr() for n, p in model.named_parameters()}  # CUDA graphs hold these addresses
    again = sampler.sync(policy)
    assert again.probe_gap == pytest.approx(receipt.probe_gap, abs=0.05)
    probe = sampler.proof.probe
    assert worst(sampler.logprobs(probe), trainer_logprobs(policy, probe)) < 0.3
    assert worst(sampler.logprobs(probe), merged_logprobs(policy, probe)) < 0.3


def test_written_weights_are_pefts_merge_to_the_last_rounding(sampler, tiny_model_dir):
    from copy import deepcopy

    policy = make_policy(tiny_model_dir, dtype=torch.bfloat16)
    sampler.sync(policy)
    merged = deepcopy(policy).merge_and_unload().state_dict()
    weights = dict(engine_model(sampler).named_parameters())
    attention = "model.layers.1.self_attn"
    expected = torch.cat([merged[f"{attention}.{p}_proj.weight"] for p in "qkv"])
    torch.testing.assert_close(weights[f"{attention}.qkv_proj.weight"], expected, rtol=2**-7, atol=2**-10)
    expected = torch.cat([merged[f"model.layers.0.mlp.{p}_proj.weight"] for p in ("gate", "up")])
    torch.testing.assert_close(weights["model.layers.0.mlp.gate_up_proj.weight"], expected, rtol=2**-7, atol=2**-10)


def test_another_base_model_is_refused(sampler, tiny_model_dir):
    policy = make_policy(tiny_model_dir, dtype=torch.bfloat16)
    with torch.no_grad():
        policy.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight[3, 5] += 1
    with pytest.raises(StaleWeightsError, match=r"layers\.1\.mlp\.up_proj.*not the trainer's pristine base"):
        sampler.sync(policy)


def test_policy_that_adapts_other_layers_is_refused(sampler, tiny_model_dir):
    """The layers that it leaves out would keep the first policy's weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    sampler.sync(make_policy(tiny_model_dir, dtype=torch.bfloat16))
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    with pytest.raises(StaleWeightsError, match="not the 14 that this engine was bound with"):
        sampler.sync(get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"])))


def test_prefix_cache_left_as_it_was_is_caught(sampler, tiny_model_dir):
    policy = make_policy(tiny_model_dir, dtype=torch.bfloat16)
    sampler.sync(policy)
    move(policy, seed=2, size=0.3)
    sampler._write(policy)
    with pytest.raises(StaleWeightsError):
        prove(policy, sampler.logprobs, sampler.proof)


def test_full_rank_factors_sync_like_lora(sampler, tiny_model_dir):
    """U diag(d) Vh of whole matrices, as AntiPaSTO has them, given through `delta_factors`."""
    policy = make_policy(tiny_model_dir, dtype=torch.bfloat16)
    for layer in (m for m in policy.modules() if hasattr(m, "lora_A")):
        u, s, vh = torch.linalg.svd(layer.get_base_layer().weight.float(), full_matrices=False)
        knob = 0.2 * torch.cos(torch.arange(len(s)))
        layer.delta_factors = lambda adapter, left=u * knob, right=vh: (left, right, 1.0)
        layer.forward = spectral_forward(layer, u * knob, vh)
    receipt = sampler.sync(policy)
    assert receipt.probe_gap < 0.6
    assert receipt.probe_gap > 0
    for layer in (m for m in policy.modules() if hasattr(m, "lora_A")):
        left, right, _ = layer.delta_factors("default")
        layer.forward = spectral_forward(layer, -left, right)
    with pytest.raises(StaleWeightsError):  # another policy than the one that was written
        prove(policy, sampler.logprobs, sampler.proof)


def spectral_forward(layer, left, right):
    return lambda x: layer.get_base_layer()(x) + (x.float() @ right.T @ left.T).to(x.dtype)


SHARDS = '''
import sys, torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear,
)
from research.models.deltas import WeightDelta
from research.sampling.live_sync import LiveWeights

rank, kv_heads, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
packed = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
generator = torch.Generator().manual_seed(0)


def full(rows, columns):
    return torch.randn(rows, columns, generator=generator)


def load(parts, weights):
    """By vLLM's own loaders."""
    for fused, ids in (("qkv_proj", "qkv"), ("gate_up_proj", (0, 1))):
        for name, shard in zip(packed[fused], ids):
            parts[fused].weight.weight_loader(parts[fused].weight, weights[name], shard)
    for name in ("o_proj", "down_proj", "plain_proj"):
        parts[name].weight.weight_loader(parts[name].weight, weights[name])
    return {name: part.weight.data.clone() for name, part in parts.items()}


with set_current_vllm_config(VllmConfig()):
    init_distributed_environment(2, rank, "file://" + file, rank, backend="gloo")
    initialize_model_parallel(2)
    sizes = {
        "q_proj": (64, 48), "k_proj": (16 * kv_heads, 48), "v_proj": (16 * kv_heads, 48), "o_proj": (48, 64),
        "gate_proj": (80, 48), "up_proj": (80, 48), "down_proj": (48, 80), "plain_proj": (32, 48),
    }
    weights = {name: full(*size) for name, size in sizes.items()}
    options = {"bias": False, "params_dtype": torch.float32}
    parts = {
        "qkv_proj": QKVParallelLinear(48, 16, 4, kv_heads, **options),
        "gate_up_proj": MergedColumnParallelLinear(48, [80, 80], **options),
        "o_proj": RowParallelLinear(64, 48, **options),
        "down_proj": RowParallelLinear(80, 48, **options),
        "plain_proj": ColumnParallelLinear(48, 32, **options),
    }
    load(parts, weights)
    model = nn.ModuleDict({"layer": nn.ModuleDict(parts)})
    model.packed_modules_mapping = packed
    deltas = [
        WeightDelta(f"layer.{name}", w, full(w.shape[0], 3), full(3, w.shape[1]), 0.5) for name, w in weights.items()
    ]
    live = LiveWeights(model, keep_base=sys.argv[4] == "keep")
    assert live.bind(deltas) == "in_place"
    for _ in range(3):
        assert live.write(deltas) == len(weights)
    written = {name: part.weight.data.clone() for name, part in parts.items()}
    expected = load(parts, {d.module.split(".")[1]: d.merged() for d in deltas})
    for name in parts:
        torch.testing.assert_close(written[name], expected[name], rtol=1e-6, atol=1e-6)
    print("ranks agree")
'''


@pytest.mark.parametrize(("kv_heads", "base"), [(2, "keep"), (1, "trainer")])
def test_tensor_parallel_shards_equal_vllms_own_loading(tmp_path, kv_heads, base):
    """Two ranks; with one key-value head both ranks hold a copy of it."""
    script = tmp_path / "shards.py"
    script.write_text(SHARDS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    command = [str(kv_heads), str(tmp_path / "rendezvous"), base]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), *command], env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank in ranks:
        output, _ = rank.communicate(timeout=180)
        assert rank.returncode == 0 and "ranks agree" in output, output[-3000:]
