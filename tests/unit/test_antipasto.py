"""The AntiPaSTO adapter: identical to the base at zero, ordinary to PEFT, exact against dense algebra."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from research.errors import ConfigurationError
from research.models import antipasto, svd
from research.training.constraints import knobs


@pytest.fixture
def base(tiny_model_dir: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()


IDS = torch.tensor([[5, 9, 33, 60, 2, 41, 7]])


def shake(policy: PeftModel, seed: int = 0, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in antipasto.layers(policy).values():
            for knob in (*layer.lora_dS.values(), *layer.lora_dS_hack.values()):
                knob.copy_(torch.randn(knob.shape, generator=generator) * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bit_identical_to_the_base_at_zero(base, dtype: torch.dtype) -> None:
    base = base.to(dtype)
    before = base(IDS).logits
    policy = antipasto.attach(base)
    assert torch.equal(policy(IDS).logits, before)
    shake(policy)
    assert not torch.equal(policy(IDS).logits, before)
    with policy.disable_adapter():
        assert torch.equal(policy(IDS).logits, before)
    with torch.no_grad():
        for knob in knobs(policy):
            knob.parameter.zero_()
            knob.quarantine.zero_()
    assert torch.equal(policy(IDS).logits, before)


def test_forward_equals_a_dense_weight_change(base) -> None:
    weight = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    policy = antipasto.attach(base)
    shake(policy)
    layer = next(iter(antipasto.layers(policy).values()))
    U, _, Vh = torch.linalg.svd(weight, full_matrices=False)
    knob = layer.knob("default")
    # Signs of singular vectors cancel between U and Vh.
    dense = weight + U @ torch.diag(knob) @ Vh
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer(x), x @ dense.T + layer.base_layer.bias, atol=1e-4)


def test_only_the_main_knob_trains_until_a_route_asks(base) -> None:
    policy = antipasto.attach(base)

    def trainable() -> set[str]:
        return {name.split(".")[-2] for name, p in policy.named_parameters() if p.requires_grad}

    assert trainable() == {"lora_dS"}
    with policy.disable_adapter():
        pass
    assert trainable() == {"lora_dS"}
    antipasto.train_quarantine(policy)
    with policy.disable_adapter():
        pass
    assert trainable() == {"lora_dS", "lora_dS_hack"}
    antipasto.train_quarantine(policy, False)
    assert trainable() == {"lora_dS"}


def test_both_knobs_have_the_same_gradient(base) -> None:
    policy = antipasto.attach(base)
    antipasto.train_quarantine(policy)
    shake(policy)
    policy(IDS, labels=IDS).loss.backward()
    for knob in knobs(policy):
        assert knob.parameter.grad.abs().sum() > 0
        assert torch.equal(knob.parameter.grad, knob.quarantine.grad)


def test_save_load_merge_unmerge(base, tmp_path: Path) -> None:
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    policy = antipasto.attach(base)
    shake(policy)
    with torch.no_grad():
        expected = policy(IDS).logits
        policy.save_pretrained(tmp_path)
        saved = load_peft_weights(tmp_path, device="cpu")
        assert {name.split(".")[-1] for name in saved} == {"lora_dS", "lora_dS_hack"}  # knobs only, no U, no Vh
        shake(policy, seed=1)
        assert not torch.allclose(policy(IDS).logits, expected)
        set_peft_model_state_dict(policy, saved)
        assert torch.equal(policy(IDS).logits, expected)
        policy.merge_adapter()
        assert torch.allclose(policy(IDS).logits, expected, atol=1e-4)
        policy.unmerge_adapter()
        assert torch.equal(policy(IDS).logits, expected)
        plain = policy.merge_and_unload()
        assert torch.allclose(plain(IDS).logits, expected, atol=1e-4)
    assert set(dict(plain.named_parameters())) == set(before)


def test_unload_leaves_the_base_as_it_was(base) -> None:
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    policy = antipasto.attach(base)
    shake(policy)
    policy.merge_adapter()
    policy.unmerge_adapter()
    plain = policy.unload()
    assert all(torch.equal(before[name], p) for name, p in plain.named_parameters())


def test_quarantine_is_ablated_and_comes_back(base) -> None:
    policy = antipasto.attach(base)
    shake(policy)
    with torch.no_grad():
        whole = policy(IDS).logits
        with antipasto.ablated(policy):
            deployed = policy(IDS).logits
            assert all(not layer.lora_dS_hack["default"].any() for layer in antipasto.layers(policy).values())
        assert not torch.allclose(whole, deployed)
        assert torch.equal(policy(IDS).logits, whole)


def test_truncated_rank_and_missing_targets(base) -> None:
    with pytest.raises(ConfigurationError, match="q_proj"):
        antipasto.attach(base, targets=["nonesuch"])
    policy = antipasto.attach(base, rank=8)
    assert {layer.lora_dS["default"].numel() for layer in antipasto.layers(policy).values()} == {8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decompositions_are_cached_by_the_weight(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    first = svd.decompose(weight, None, tmp_path)
    assert first.U.dtype == dtype and len(list(tmp_path.iterdir())) == 1
    again = svd.decompose(weight, None, tmp_path)
    assert torch.equal(first.U, again.U) and torch.equal(first.Vh, again.Vh)
    close = (first.U.float() * first.S) @ first.Vh.float()
    assert torch.allclose(close, weight.float(), atol=1e-4 if dtype == torch.float32 else 0.1)
    svd.decompose(weight * 2, None, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert svd.weight_hash(weight) != svd.weight_hash(weight.T.contiguous())


def test_a_cached_file_of_another_weight_is_loud(tmp_path: Path) -> None:
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    svd.decompose(weight, None, tmp_path)
    (path,) = tmp_path.iterdir()
    other = weight.flip(0)
    path.rename(tmp_path / f"{svd.weight_hash(other)}_16.safetensors")
    with pytest.raises(ConfigurationError, match="does not belong"):
        svd.decompose(other, None, tmp_path)
    path.write_bytes(b"torn")
    with pytest.raises(ConfigurationError, match="delete it"):
        svd.decompose(weight, None, tmp_path)
