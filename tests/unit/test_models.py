"""Loading, LoRA and merging."""

from __future__ import annotations

import math
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from research.config import AdapterConfig, ModelConfig
from research.errors import ConfigurationError, ModelUnavailableError
from research.models.adapters import attach_lora, detach, lora_config, lora_scale
from research.models.base import fingerprint, load_base
from research.models.merge import merged_weights, save_merged


@pytest.fixture
def base(tiny_model_dir):
    return load_base(ModelConfig(name="tiny", path=str(tiny_model_dir)), device="cpu")


def fill_b(policy, seed=0):
    """Make the adapter do something: B starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05


def test_base_is_frozen_float32_on_cpu(base):
    assert base.device.type == "cpu"
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training
    assert len(base.weights_hash) == 64


def test_attention_plans_nothing(tiny_model_dir):
    """cuDNN would, for every shape of a batch."""
    torch.backends.cuda.enable_cudnn_sdp(True)  # PyTorch's default, which nothing after this needs
    load_base(ModelConfig(name="tiny", path=str(tiny_model_dir)), device="cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_files_that_lack_a_weight_are_refused(tiny_model_dir, tmp_path):
    """It would be random numbers."""
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.1.mlp.up.weight"] = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelUnavailableError, match=r"lack 1 weights of a qwen2 model: model\.layers\.1\.mlp\.up_proj"):
        load_base(ModelConfig(name="x", path=str(tmp_path / "model")), device="cpu")


def test_sharing_the_base_with_nobody_is_said_aloud(tiny_model_dir, base):
    with pytest.warns(RuntimeWarning, match=r"model\.shard=true is ignored"):
        alone = load_base(ModelConfig(name="tiny", path=str(tiny_model_dir), shard=True), device="cpu")
    assert not alone.sharded and alone.loaded_fingerprint == base.loaded_fingerprint


def test_fingerprint_sees_one_bit_and_the_order():
    layer = torch.nn.Linear(3, 2)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    layer.weight.data.view(torch.int32)[1, 2] ^= 1
    flipped = fingerprint(layer)
    assert flipped != before
    layer.weight.data.view(torch.int32)[1, 2] ^= 1
    assert fingerprint(layer) == before
    layer.weight.data = layer.weight.data.flip(0)
    assert fingerprint(layer) != before


@pytest.mark.parametrize("path", ["Qwen/Never-Existed-0B", "/no/such/directory", "./none"])
def test_unavailable_model_fails_at_once_and_says_what_to_do(path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(ModelUnavailableError, match=r"model\.path") as caught:
        load_base(ModelConfig(name="x", path=path))
    assert path in str(caught.value)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("adapter", "model", "scale"),
    [
        (AdapterConfig(r=32, alpha=64.0, rslora=True), ModelConfig(), 64 / math.sqrt(32)),
        (AdapterConfig(r=32, alpha=64.0, rslora=False), ModelConfig(), 2.0),
        (AdapterConfig(r=32, alpha=64.0), ModelConfig(lora_scale=5.5), 5.5),
        (AdapterConfig(r=32, scale=3.25, rslora=False), ModelConfig(lora_scale=5.5), 3.25),
    ],
)
def test_scale_is_what_peft_applies(base, adapter, model, scale):
    assert lora_scale(adapter, model) == pytest.approx(scale, rel=1e-12)
    base.config = model
    policy = attach_lora(base, adapter, seed=1)
    layer = policy.get_base_model().model.layers[0].mlp.up_proj
    assert layer.scaling["default"] == pytest.approx(scale, rel=1e-12)


def test_published_parameter_count_at_the_7b_shape():
    from peft import get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        policy = get_peft_model(Qwen2ForCausalLM(shape), lora_config(AdapterConfig(), ModelConfig()))
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == 80_740_352


def test_same_seed_same_adapter_and_detach_leaves_no_trace(base):
    x = torch.arange(5, 25)[None]
    before = base.model(x).logits
    first = attach_lora(base, AdapterConfig(), seed=3)
    weights = {n: p.clone() for n, p in first.named_parameters() if p.requires_grad}
    assert {p.dtype for p in weights.values()} == {torch.float32}
    fill_b(first)
    assert not torch.equal(first(x).logits, before)
    detach(base, first)
    assert torch.equal(base.model(x).logits, before)
    again = attach_lora(base, AdapterConfig(), seed=3)
    assert all(torch.equal(weights[n], p) for n, p in again.named_parameters() if p.requires_grad)
    detach(base, again)
    other = attach_lora(base, AdapterConfig(), seed=4)
    assert not all(torch.equal(weights[n], p) for n, p in other.named_parameters() if p.requires_grad)


def test_detach_refuses_a_changed_base(base):
    policy = attach_lora(base, AdapterConfig(), seed=0)
    base.model.model.norm.weight.data[0] += 1e-6
    with pytest.raises(RuntimeError, match="changed since it was loaded"):
        detach(base, policy)


def test_freeze_a_trains_b_only(base):
    policy = attach_lora(base, AdapterConfig(freeze_a=True), seed=0)
    trained = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert len(trained) == 14
    assert all("lora_B" in n for n in trained)


def test_unknown_target_is_refused(base):
    with pytest.raises(ConfigurationError, match="c_attn"):
        attach_lora(base, AdapterConfig(targets=["q_proj", "c_attn"]), seed=0)


def test_merged_equals_unmerged(base, tmp_path):
    from transformers import AutoModelForCausalLM

    policy = attach_lora(base, AdapterConfig(), seed=0).eval()
    fill_b(policy)
    x = torch.arange(5, 45)[None]
    expected = policy(x).logits.log_softmax(-1)
    merged = dict(merged_weights(policy))
    assert "lm_head.weight" in merged
    assert not any("lora" in name or "base_layer" in name for name in merged)
    save_merged(policy, tmp_path, base.tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    # Two float32 orders of summation over 2 layers of width 64; logits are of order 1.
    torch.testing.assert_close(loaded(x).logits.log_softmax(-1), expected, rtol=0, atol=2e-5)
    changed = dict(merged_weights(policy, adapted_only=True))
    assert len(changed) == 14
    assert all(torch.equal(changed[n], merged[n]) for n in changed)
    detach(base, policy)  # merging read the base and wrote nothing


def test_merged_weight_by_hand(base):
    policy = attach_lora(base, AdapterConfig(r=4, scale=2.0), seed=0)
    fill_b(policy)
    layer = policy.get_base_model().model.layers[1].self_attn.k_proj
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    expected = layer.base_layer.weight.double() + 2.0 * b @ a
    got = dict(merged_weights(policy))["model.layers.1.self_attn.k_proj.weight"]
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)
