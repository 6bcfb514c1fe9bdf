"""Weight deltas: worked out by hand, and against PEFT's own merge."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from research.errors import ConfigurationError
from research.models.deltas import trainable_fingerprint, weight_deltas, without_adapter, write_merged


def lora_policy(directory, dtype=torch.float32, **options):
    """A LoRA policy whose B is not zero."""
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    policy = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **options))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return policy


def test_merge_worked_out_by_hand():
    base = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    left, right = torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0, 20.0]])
    target = torch.full((2, 2), -1.0)
    write_merged(target, base, left, right, 0.5)
    assert target.tolist() == [[6.0, 12.0], [13.0, 24.0]]


def test_merge_rounds_once_and_never_accumulates():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 48, generator=generator).bfloat16()
    left, right = torch.randn(64, 4, generator=generator), torch.randn(4, 48, generator=generator)
    target = torch.empty_like(base)
    for _ in range(1000):
        write_merged(target, base, left, right, 0.3)
    exact = base.double() + 0.3 * left.double() @ right.double()
    assert (target.double() - exact).abs().max() <= exact.abs().max() * 2**-8
    assert torch.equal(target, exact.float().bfloat16())


@pytest.mark.parametrize("rslora", [False, True])
def test_deltas_equal_pefts_merge(tiny_model_dir, rslora):
    policy = lora_policy(tiny_model_dir, use_rslora=rslora)
    merged = deepcopy(policy).merge_and_unload().state_dict()
    deltas = list(weight_deltas(policy))
    assert len(deltas) == 2 * 2
    for delta in deltas:
        torch.testing.assert_close(delta.merged(), merged[f"{delta.module}.weight"], rtol=0, atol=1e-6)
        assert not torch.equal(delta.merged(), delta.base_OI)


def test_two_active_adapters_add_up(tiny_model_dir):
    policy = lora_policy(tiny_model_dir)
    policy.add_adapter(
        "other", LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    policy.base_model.set_adapter(["default", "other"])
    for delta in weight_deltas(policy):
        layer = policy.get_base_model().get_submodule(delta.module)
        expected = delta.base_OI + layer.get_delta_weight("default") + layer.get_delta_weight("other")
        torch.testing.assert_close(delta.merged(), expected, rtol=0, atol=1e-6)


def test_disabled_adapter_writes_the_base_back(tiny_model_dir):
    policy = lora_policy(tiny_model_dir)
    with policy.disable_adapter():
        assert all(torch.equal(delta.merged(), delta.base_OI) for delta in weight_deltas(policy))


def test_policy_without_its_adapter_is_the_base_and_nothing_is_left_changed(tiny_model_dir):
    policy = lora_policy(tiny_model_dir)
    for name, parameter in policy.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    trainable = {n: p.requires_grad for n, p in policy.named_parameters()}
    ids = torch.arange(10)[None]
    adapted = policy(ids).logits
    with without_adapter(policy):
        base = policy(ids).logits
    assert torch.equal(base, AutoModelForCausalLM.from_pretrained(tiny_model_dir)(ids).logits)
    assert torch.equal(policy(ids).logits, adapted) and not torch.equal(adapted, base)
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == trainable


def test_merged_policy_is_refused(tiny_model_dir):
    policy = lora_policy(tiny_model_dir)
    policy.merge_adapter()
    with pytest.raises(ConfigurationError, match="unmerge"):
        list(weight_deltas(policy))


def test_dora_is_refused(tiny_model_dir):
    with pytest.raises(ConfigurationError, match="plain LoRA"):
        list(weight_deltas(lora_policy(tiny_model_dir, use_dora=True)))


def test_trainable_weights_outside_the_adapter_are_refused(tiny_model_dir):
    policy = lora_policy(tiny_model_dir)
    policy.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"model\.norm\.weight"):
        list(weight_deltas(policy))


def test_any_layer_with_delta_factors_takes_part():
    class Diagonal(nn.Module):
        """U diag(knob) Vh beside a frozen linear layer, the interface of an adapter layer."""

        merged, disable_adapters, active_adapters = False, False, ("default",)

        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(3, 2, bias=False).requires_grad_(False)
            self.u, _, self.vh = torch.linalg.svd(self.base_layer.weight, full_matrices=False)
            self.knob = nn.Parameter(torch.tensor([0.5, -1.0]))

        def get_base_layer(self):
            return self.base_layer

        def delta_factors(self, adapter):
            return self.u * self.knob, self.vh, 1.0

    layer = Diagonal()
    (delta,) = weight_deltas(nn.ModuleDict({"model": layer}))
    assert delta.module == "model"
    expected = layer.base_layer.weight + layer.u @ torch.diag(layer.knob) @ layer.vh
    torch.testing.assert_close(delta.merged(), expected)


def test_fingerprint_sees_trainable_bits_only(tiny_model_dir):
    policy = lora_policy(tiny_model_dir)
    first = trainable_fingerprint(policy)
    assert trainable_fingerprint(policy) == first
    weight = next(p for n, p in policy.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert trainable_fingerprint(policy) != first
