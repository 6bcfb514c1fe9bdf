"""The fused LoRA layer on a GPU: as near to float64 as PEFT's, in float32 and under bfloat16 autocast; its dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from research.training.fused_lora import fused_lora

pytestmark = pytest.mark.gpu


def make_layer(dtype: torch.dtype, dropout: float = 0.0) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1024, 768)).cuda()
    policy = get_peft_model(net, LoraConfig(r=32, lora_alpha=32, target_modules=["0"], lora_dropout=dropout))
    layer: Any = policy.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    layer.get_base_layer().to(dtype)
    return layer.train()


def passes(layer: Any, x: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(weights.to(y.dtype))
    assert x.grad is not None
    return [y.detach(), x.grad, *(getattr(layer, n)["default"].weight.grad.clone() for n in ("lora_A", "lora_B"))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_further_from_float64_than_peft(dtype: torch.dtype) -> None:
    layer = make_layer(dtype)
    half = dtype == torch.bfloat16
    x, weights = (torch.randn(4, 300, width, device="cuda", dtype=dtype) for width in (1024, 768))
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
        peft = passes(layer, x, weights)
        with fused_lora(layer, autocast=half) as count:
            assert count == 1
            got = passes(layer, x, weights)
    exact = passes(layer.double(), x.double(), weights.double())
    for ours, theirs, true in zip(got, peft, exact, strict=True):
        off, of_peft = (float((t.double() - true).norm() / true.norm()) for t in (ours, theirs))
        print(f"{dtype}: {off:.2e} from float64, PEFT's {of_peft:.2e}")
        assert off <= 1.2 * of_peft + 1e-7


def test_equals_peft_with_the_same_dropout() -> None:
    """Both call PyTorch's dropout of the same tensor once, so that one seed drops the same elements."""
    layer = make_layer(torch.float32, dropout=0.25)
    x, weights = torch.randn(4, 300, 1024, device="cuda"), torch.randn(4, 300, 768, device="cuda")
    torch.manual_seed(1)
    peft = passes(layer, x, weights)
    torch.manual_seed(1)
    with fused_lora(layer):
        got = passes(layer, x, weights)
    for ours, theirs in zip(got, peft, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    layer = make_layer(torch.bfloat16, dropout=0.25)
    nn.init.zeros_(layer.get_base_layer().weight)
    nn.init.zeros_(layer.get_base_layer().bias)
    nn.init.zeros_(layer.lora_A["default"].weight)
    nn.init.zeros_(layer.lora_B["default"].weight)
    with torch.no_grad():  # the output's first column is the thinned input's first, scaled
        layer.lora_A["default"].weight[0, 0] = 1.0
        layer.lora_B["default"].weight[0, 0] = 1.0
    x = torch.ones(100_000, 1024, device="cuda", dtype=torch.bfloat16)
    with torch.autocast("cuda", dtype=torch.bfloat16), fused_lora(layer, autocast=True), torch.no_grad():
        y = layer(x)[:, 0].float() / layer.scaling["default"]
    x_few = torch.randn(256, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16), fused_lora(layer, autocast=True):
        out = layer(x_few)[:, 0]
    out.sum().backward()
    assert x_few.grad is not None and torch.equal(x_few.grad[:, 0] == 0, out == 0)  # what was dropped has no gradient
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.02)
