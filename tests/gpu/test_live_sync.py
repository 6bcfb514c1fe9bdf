"""Live sync into a real engine on a GPU: in place, CUDA graphs kept, proofs that hold and proofs that fail."""

from __future__ import annotations

import statistics
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from research.errors import StaleWeightsError
from research.models.deltas import write_merged
from research.sampling.interface import SamplingParams
from research.sampling.proof import ProofState, prove, trainer_logprobs

pytest.importorskip("vllm", reason="needs vLLM")
pytestmark = pytest.mark.gpu

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A random Qwen2, 4 layers of 512, head size 64, tied embeddings, bfloat16."""
    config = Qwen2Config(
        vocab_size=2048, hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        intermediate_size=1408, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(directory):
    from research.sampling.vllm_engine import VLLMSampler

    sampler = VLLMSampler(directory, context=512, gpu_memory_utilization=0.1)
    yield sampler
    sampler.close()


@pytest.fixture
def sampler(engine, directory):
    load(engine, base(directory))
    engine.version, engine.path = 0, ""
    engine.proof = ProofState(context=512, dtype=torch.bfloat16)
    return engine


def base(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)


def load(engine, model):
    """Full weights through vLLM's reload."""
    weights = [(name, tensor.to("cuda")) for name, tensor in model.state_dict().items()]
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
    engine.llm.reset_prefix_cache()


def engine_weights(engine):
    (model,) = engine.llm.apply_model(lambda m: m)
    return dict(model.named_parameters())


def make_policy(directory, seed=1, size=0.02):
    model = base(directory).to("cuda")
    policy = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=TARGETS))
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    move(policy, seed, size)
    return policy


def move(policy, seed, size=0.02):
    generator = torch.Generator("cuda").manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, device="cuda") * size


def mean(a, b):
    pairs = [(x, y) for rows in zip(a, b, strict=True) for x, y in zip(*rows, strict=True)]
    return sum(abs(x - y) for x, y in pairs) / len(pairs)


def test_written_in_place_without_drift(sampler, directory):
    """1 sync and 1,000 leave the same bits at the same addresses, and vLLM, merged and unmerged transformers agree."""
    policy = make_policy(directory)
    receipt = sampler.sync(policy)
    assert sampler.path == "in_place"
    weights = engine_weights(sampler)
    once, addresses = {n: p.clone() for n, p in weights.items()}, {n: p.data_ptr() for n, p in weights.items()}
    first = sampler.logprobs(sampler.proof.probe)
    for seed in range(500):
        move(policy, seed)
        sampler._write(policy)
    move(policy, 1)
    for _ in range(500):
        sampler._write(policy)
    sampler.sync(policy)
    weights = engine_weights(sampler)
    assert all(torch.equal(p, once[n]) for n, p in weights.items())
    assert addresses == {n: p.data_ptr() for n, p in weights.items()}
    probe = sampler.proof.probe
    merged = deepcopy(policy).merge_and_unload()
    gaps = {
        "unmerged": mean(first, trainer_logprobs(policy, probe)),
        "merged": mean(first, trainer_logprobs(merged, probe)),
        "after 1,000": mean(first, sampler.logprobs(probe)),
    }  # fmt: skip
    print(f"worst gap {receipt.probe_gap:.4f} nats; mean gaps {gaps}")
    assert all(gap < 0.03 for gap in gaps.values())


def test_a_merge_is_the_exact_sum_rounded_once():
    """Against float64, for shapes and slices as a fused layer has them; ties of the last bit may fall either way."""
    generator = torch.Generator("cuda").manual_seed(0)
    for rows, columns in ((512, 3584), (3584, 18944), (18944, 3584), (64, 96)):
        base_OI = (torch.randn(rows, columns, generator=generator, device="cuda") * 0.02).bfloat16()
        left_OK = torch.randn(rows, 32, generator=generator, device="cuda") * 1e-3
        right_KI = torch.randn(32, columns, generator=generator, device="cuda")
        fused_OI = torch.full((rows + 128, columns), torch.nan, dtype=torch.bfloat16, device="cuda")
        write_merged(fused_OI[128:], base_OI, left_OK, right_KI, 1.7)
        exact_OI = base_OI.double() + 1.7 * (left_OK.double() @ right_KI.double())
        assert (fused_OI[128:] != exact_OI.bfloat16()).double().mean() < 1e-3
        assert ((fused_OI[128:] - exact_OI).abs() <= exact_OI.abs() * 2**-8 + 1e-9).all()
        assert fused_OI[:128].isnan().all()


def test_generation_uses_the_new_weights_at_the_old_speed(sampler, directory):
    """CUDA graphs stay valid: what is drawn after a sync has the policy's log-probs."""
    policy = make_policy(directory)
    draw = SamplingParams(max_tokens=64, seed=1)
    batch = [[i % 2048, 5, 6, 7] for i in range(64)]
    sampler.generate(batch, 1, draw)

    def seconds():
        start = time.perf_counter()
        sampler.generate(batch, 1, draw)
        return time.perf_counter() - start

    before = statistics.median(seconds() for _ in range(5))
    sampler.sync(policy)
    seconds()
    after = statistics.median(seconds() for _ in range(5))
    print(f"{64 * 64 / before:.0f} tok/s before the sync, {64 * 64 / after:.0f} after")
    assert after < 1.15 * before
    drawn = sampler.generate(batch[:4], 1, draw)
    expected = trainer_logprobs(policy, [p + g[0].token_ids for p, g in zip(batch, drawn, strict=False)])
    gaps = [
        abs(t - s) for row, g in zip(expected, drawn, strict=True) for t, s in zip(row[3:], g[0].logprobs, strict=True)
    ]
    assert sum(gaps) / len(gaps) < 0.05


def test_draws_do_not_depend_on_the_batch_order(sampler):
    batch = [[i % 2048, 5, 6, 7] for i in range(8)]
    params = SamplingParams(max_tokens=4, seed=1)
    forward, backward = sampler.generate(batch, 2, params), sampler.generate(batch[::-1], 2, params)[::-1]
    same = [
        a.token_ids == b.token_ids for x, y in zip(forward, backward, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert sum(same) >= len(same) - 1  # bfloat16 kernels may round a near-tie differently in another batch


def test_full_rank_factors(sampler, directory):
    """U diag(d) Vh of whole matrices, through `delta_factors`."""
    policy = make_policy(directory)
    for layer in (m for m in policy.modules() if hasattr(m, "lora_A")):
        u, s, vh = torch.linalg.svd(layer.get_base_layer().weight.float(), full_matrices=False)
        left = u * (0.05 * torch.cos(torch.arange(len(s), device=u.device)))
        layer.delta_factors = lambda adapter, left=left, right=vh: (left, right, 1.0)
        layer.forward = lambda x, own=layer, left=left, right=vh: (
            own.get_base_layer()(x) + (x.float() @ right.T @ left.T).to(x.dtype)
        )
    receipt = sampler.sync(policy)
    assert sampler.path == "in_place"
    print(f"worst gap {receipt.probe_gap:.4f} nats")


def test_failures_are_caught(sampler, directory):
    policy = make_policy(directory, size=0.1)
    with pytest.raises(StaleWeightsError):  # nothing was synced
        prove(policy, sampler.logprobs, ProofState(context=512, dtype=torch.bfloat16))
    sampler.sync(policy)
    move(policy, 2, size=0.1)
    with pytest.raises(
        StaleWeightsError, match=r"did not change at all|differ by"
    ):  # refused, and the refusal swallowed
        prove(policy, sampler.logprobs, sampler.proof)
    sampler._write(policy)
    with pytest.raises(StaleWeightsError, match="cache was not reset"):
        prove(policy, sampler.logprobs, sampler.proof)
    sampler._reset_cache()
    prove(policy, sampler.logprobs, sampler.proof)
    load(sampler, base(directory))  # undone by a reload
    with pytest.raises(StaleWeightsError, match="as the base model does"):
        prove(policy, sampler.logprobs, sampler.proof)


def test_another_base_model_is_refused(sampler, directory):
    policy = make_policy(directory)
    with torch.no_grad():
        policy.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight[3, 5] += 1
    with pytest.raises(StaleWeightsError, match="not the trainer's pristine base"):
        sampler.sync(policy)


def test_several_saved_adapters_in_one_batch(engine, directory, tmp_path):
    """An engine of its own; it stands last, for the other one is closed first."""
    from research.sampling.vllm_engine import VLLMSampler

    engine.close()
    policies = [make_policy(directory, seed=s) for s in (1, 2)]
    for index, policy in enumerate(policies):
        policy.save_pretrained(tmp_path / str(index))
    prompt = [7] * 64
    sampler = VLLMSampler(directory, context=512, gpu_memory_utilization=0.1, adapters=2, adapter_rank=8)
    drawn = sampler.generate_with([tmp_path / "0", tmp_path / "1"], [prompt] * 2, 1, SamplingParams(max_tokens=16))
    for (completion,), policy in zip(drawn, policies, strict=True):
        (expected,) = trainer_logprobs(policy, [prompt + completion.token_ids])
        assert mean([completion.logprobs], [expected[63:]]) < 0.05
    sampler.close()
