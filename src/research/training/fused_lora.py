"""LoRA's forward and backward in fewer passes over memory and fewer kernels, on CPUs and GPUs.

    y = x W' + b + scale * dropout(x) A' B'

The same function as PEFT's layer: the scale goes into the small products, and the adapter's output is added where the
base's lies. On a CPU dropout's 1 / (1 - p) goes into these products too, and dropout draws the gaps between dropped
elements (geometric) instead of a number for every element; each element is still dropped independently with probability
p. Under autocast a float32 adapter's small matrices are rounded to the base's bfloat16, where PEFT casts the input up
and down again.

Legend: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def dropped(count: int, p: float) -> torch.Tensor:
    """Sorted positions, out of `count`, that dropout removes; draws from torch's global generator, on the CPU."""
    rate = -math.log1p(-p)
    reach, parts = 0, []
    while reach < count:
        expected = (count - reach) * p
        gaps = torch.empty(int(expected + 5 * math.sqrt(expected) + 16), dtype=torch.float64).exponential_(rate)
        positions = (gaps.floor_() + 1).cumsum_(0).to(torch.int64) + (reach - 1)
        parts.append(positions)
        reach = int(positions[-1]) + 1
    found = torch.cat(parts) if len(parts) > 1 else parts[0]
    return found[: int(torch.searchsorted(found, count))]


def _thinned(x_TI: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor | None, float]:
    """Dropout; on a GPU its mask, on a CPU the places of its zeros; and 1 - p where that is still to be divided out."""
    if p == 0:
        return x_TI, None, 1.0
    if x_TI.is_cuda:
        return *torch.native_dropout(x_TI, p, True), 1.0
    gone = dropped(x_TI.numel(), p)
    thinned_TI = x_TI.clone(memory_format=torch.contiguous_format)
    thinned_TI.view(-1).index_fill_(0, gone, 0.0)
    return thinned_TI, gone, 1 - p


def _thinned_gradient(grad_TI: torch.Tensor, found: torch.Tensor | None, p: float) -> torch.Tensor:
    """The gradient, zero where `_thinned` made zeros and scaled where it scaled; may be in place."""
    if found is None:
        return grad_TI
    if found.dtype == torch.bool:
        return torch.ops.aten.native_dropout_backward(grad_TI, found, 1 / (1 - p))
    grad_TI.view(-1).index_fill_(0, found, 0.0)
    return grad_TI


class LoraLinear(torch.autograd.Function):
    """(x (T, I), W (O, I), b (O) or None, A (R, I), B (O, R), scale, p) -> y (T, O); W and b are frozen.

    Computes in W's dtype; the gradients of A and B come in theirs.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, a_RI: torch.Tensor,
        b_OR: torch.Tensor, scale: float, p: float,
    ) -> torch.Tensor:  # fmt: skip
        ctx.x_dtype, ctx.adapter_dtype = x_TI.dtype, a_RI.dtype
        x_TI, a_RI, b_OR = (tensor.to(weight_OI.dtype) for tensor in (x_TI, a_RI, b_OR))
        thinned_TI, found, kept = _thinned(x_TI, p)
        ctx.scale, ctx.p = scale / kept, p
        hidden_TR = thinned_TI @ a_RI.T
        y_TO = x_TI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_TI, weight_OI.T)
        y_TO.addmm_(hidden_TR, b_OR.T, alpha=ctx.scale)
        ctx.save_for_backward(thinned_TI, found, hidden_TR, weight_OI, a_RI, b_OR)
        return y_TO

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_TO,) = gradients
        thinned_TI, found, hidden_TR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        need_x, _, _, need_a, need_b, _, _ = ctx.needs_input_grad
        grad_a = grad_b = grad_x = None
        if need_b:
            grad_b = (grad_TO.T @ hidden_TR).to(ctx.adapter_dtype).mul_(ctx.scale)
        if need_a or need_x:
            grad_hidden_TR = (grad_TO @ b_OR).mul_(ctx.scale)
        if need_a:
            grad_a = (grad_hidden_TR.T @ thinned_TI).to(ctx.adapter_dtype)
        if need_x:
            grad_x = _thinned_gradient(grad_hidden_TR @ a_RI, found, ctx.p)
            grad_x = grad_x.addmm_(grad_TO, weight_OI).to(ctx.x_dtype)
        return grad_x, None, None, grad_a, grad_b, None, None


@contextmanager
def fused_lora(model: nn.Module, autocast: bool = False) -> Iterator[int]:
    """Inside, plain LoRA layers compute this way; yields how many. Others stay PEFT's.

    autocast: whether the model runs under bfloat16 autocast; then layers with a bfloat16 base are taken, else those in
    float32. Inside, adapters may be switched off and on or scaled, but not merged or replaced.
    """
    layers = [module for module in model.modules() if _fits(module, autocast)]
    for layer in layers:
        layer.forward = _forward_of(layer)  # type: ignore[method-assign]
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward


def _fits(module: nn.Module, autocast: bool) -> bool:
    from peft.tuners.lora import Linear

    if type(module) is not Linear or len(module.active_adapters) != 1 or module.disable_adapters or module.merged:
        return False
    adapter, base = module.active_adapters[0], module.get_base_layer()
    if adapter not in module.lora_A or adapter in module.lora_variant or type(base) is not nn.Linear:
        return False
    a, b = module.lora_A[adapter], module.lora_B[adapter]
    plain = not base.weight.requires_grad and a.bias is None and b.bias is None and not module.fan_in_fan_out
    same = a.weight.dtype == b.weight.dtype
    if autocast:
        return plain and same and base.weight.dtype == torch.bfloat16
    return plain and same and a.weight.dtype == base.weight.dtype == torch.float32


def _forward_of(layer: Any) -> Any:
    adapter, base = layer.active_adapters[0], layer.get_base_layer()
    a, b, dropout = layer.lora_A[adapter], layer.lora_B[adapter], layer.lora_dropout[adapter]
    p = getattr(dropout, "p", 0.0)

    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.disable_adapters:  # asked for the base: as a reference, or by a sampler that put merged weights there
            return base(x)
        flat_TI = x.reshape(-1, x.shape[-1])
        y_TO = LoraLinear.apply(
            flat_TI, base.weight, base.bias, a.weight, b.weight, layer.scaling[adapter], p if layer.training else 0.0
        )
        return y_TO.view(*x.shape[:-1], y_TO.shape[-1])

    return forward
