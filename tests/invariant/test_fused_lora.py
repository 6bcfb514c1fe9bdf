"""The fused LoRA layer is PEFT's function, and its dropout is dropout."""

from __future__ import annotations

import numpy
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import nn

from research.training import fused_lora as fused


def make_layer(bias=True, dropout=0.0):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40, bias=bias))
    policy = get_peft_model(net, LoraConfig(r=4, lora_alpha=6, target_modules=["0"], lora_dropout=dropout))
    layer = policy.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    return layer.train()


def passes(layer, x, weights):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * weights).sum().backward()
    return y.detach(), x.grad, layer.lora_A["default"].weight.grad.clone(), layer.lora_B["default"].weight.grad.clone()


@pytest.mark.parametrize("bias", [True, False])
def test_equals_peft_without_dropout(bias):
    layer = make_layer(bias)
    x, weights = torch.randn(2, 9, 24), torch.randn(2, 9, 40)
    expected = passes(layer, x, weights)
    with fused.fused_lora(layer) as count:
        assert count == 1
        got = passes(layer, x, weights)
    # Sums of at most 40 products of order 1 in another order: a few units in the last place of values of order 10.
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
    assert "forward" not in vars(layer)


def test_equals_peft_with_the_same_elements_dropped(monkeypatch):
    layer = make_layer(dropout=0.25)
    x, weights = torch.randn(1, 50, 24), torch.randn(1, 50, 40)
    gone = (torch.rand(x.numel(), generator=torch.Generator().manual_seed(1)) < 0.25).nonzero()[:, 0]
    mask = torch.ones(x.numel()).index_fill_(0, gone, 0.0).view_as(x) / 0.75

    class Fixed(nn.Module):
        def forward(self, x):
            return x * mask

    dropout = layer.lora_dropout["default"]
    layer.lora_dropout["default"] = Fixed()
    expected = passes(layer, x, weights)
    layer.lora_dropout["default"] = dropout
    monkeypatch.setattr(fused, "dropped", lambda count, p: gone)
    with fused.fused_lora(layer):
        got = passes(layer, x, weights)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_each_element_is_dropped_independently_with_probability_p(p):
    torch.manual_seed(0)
    count, draws = 40, 3000
    masks = numpy.zeros((draws, count))
    for row in range(draws):
        positions = fused.dropped(count, p).numpy()
        assert (numpy.diff(positions) > 0).all()
        assert ((positions >= 0) & (positions < count)).all()
        masks[row, positions] = 1
    hits = masks.sum(0)
    assert ((hits - draws * p) ** 2 / (draws * p * (1 - p))).sum() < 40 + 5 * numpy.sqrt(
        80
    )  # chi-square with 40 degrees
    correlation = numpy.corrcoef(masks.T)[numpy.triu_indices(count, 1)]
    assert kstest(correlation * numpy.sqrt(draws), "norm").pvalue > 1e-4
    sizes = masks.sum(1)
    assert sizes.var() == pytest.approx(count * p * (1 - p), rel=0.15)


def test_rate_over_many_elements():
    torch.manual_seed(1)
    count = 1_000_000
    found = fused.dropped(count, 0.05)
    assert len(found) == pytest.approx(50_000, abs=5 * numpy.sqrt(count * 0.05 * 0.95))
    where = numpy.histogram(found.numpy(), bins=100, range=(0, count))[0]
    assert chisquare(where).pvalue > 1e-3


def test_evaluation_mode_drops_nothing():
    layer = make_layer(dropout=0.5).eval()
    x = torch.randn(1, 7, 24)
    expected = layer(x)
    with fused.fused_lora(layer):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def half_layer():
    """A bfloat16 base with a float32 adapter, as training under autocast has it."""
    layer = make_layer()
    layer.get_base_layer().to(torch.bfloat16)
    return layer


def errors(got, exact):
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]


def test_under_autocast_no_further_from_float64_than_peft():
    layer = half_layer()
    x, weights = torch.randn(3, 33, 24, dtype=torch.bfloat16), torch.randn(3, 33, 40, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        peft = passes(layer, x, weights)
        with fused.fused_lora(layer, autocast=True) as count:
            assert count == 1
            got = passes(layer, x, weights)
    exact = passes(layer.double(), x.double(), weights.double())
    assert [t.dtype for t in got] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for ours, theirs in zip(errors(got, exact), errors(peft, exact), strict=True):
        assert ours <= 1.2 * theirs and ours < 0.01


def test_takes_only_what_it_computes_the_same():
    with fused.fused_lora(half_layer()) as count:
        assert count == 0  # without autocast PEFT computes the adapter in float32
    with fused.fused_lora(make_layer(), autocast=True) as count:
        assert count == 0  # a float32 base under autocast: PEFT's
    half = make_layer()
    half.get_base_layer().to(torch.float16)
    with fused.fused_lora(half, autocast=True) as count:
        assert count == 0  # bfloat16 autocast of a float16 base: PEFT's


def test_a_disabled_adapter_is_the_base():
    layer = make_layer(dropout=0.5)
    x = torch.randn(1, 7, 24)
    with fused.fused_lora(layer):
        layer._disable_adapters = True
        torch.testing.assert_close(layer(x), layer.get_base_layer()(x))
