"""What an adapter adds to each frozen weight, as two factors: W = W0 + scale * left @ right.

LoRA is B @ A with scale alpha / r (rsLoRA: alpha / sqrt(r)); AntiPaSTO is (U * (dS + dS_hack)) @ Vh with scale 1. A
sampler needs nothing else: it adds the product to the pristine base in float32 and rounds once, so a thousand syncs
drift no further than one. (Adding to weights that are merged already does drift in bfloat16.)

An adapter layer takes part by being a PEFT LoRA layer, or by defining

    def delta_factors(self, adapter: str) -> tuple[Tensor, Tensor, float]: ...   # left (d_out, k), right (k, d_in),
    scale

Shape suffixes: O = rows of the weight (d_out), I = its columns (d_in), K = inner dimension of the factors.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from research.errors import ConfigurationError
from research.models.base import fingerprint
from research.models.sharding import own_rows

CHUNK_ELEMENTS = 1 << 24  # float32 intermediates of one chunk: 64 MiB; smaller ones cost more launches than they save
# Wider factors, of whole matrices, go through plain TF32 on a GPU: its error, 2**-11, is under that of a 16-bit result.
WIDE = 512
# PyTorch for CUDA brings Triton, on Linux; its first kernel needs a C compiler.
COMPILERS = (os.environ.get("CC"), "cc", "gcc", "clang")
TRITON = importlib.util.find_spec("triton") is not None and any(shutil.which(name) for name in COMPILERS if name)


@dataclass(frozen=True)
class WeightDelta:
    """One adapted linear layer: its name in the bare model, its pristine weight, and what the adapter adds to it.

    Of a sharded base these are the rows that this process holds.
    """

    module: str
    base_OI: Tensor
    left_OK: Tensor
    right_KI: Tensor
    scale: float

    def merged(self, dtype: torch.dtype | None = None) -> Tensor:
        """W0 + scale * left @ right, summed in float32, rounded once to `dtype` (default: the base weight's)."""
        merged_OI = torch.empty_like(self.base_OI, dtype=dtype or self.base_OI.dtype)
        write_merged(merged_OI, self.base_OI, self.left_OK, self.right_KI, self.scale)
        return merged_OI


@torch.no_grad()
def write_merged(target_OI: Tensor, base_OI: Tensor, left_OK: Tensor, right_KI: Tensor, scale: float) -> None:
    """Overwrite `target` with base + scale * left @ right: product and sum in float32, one rounding, little memory."""
    inner = right_KI.shape[0]
    tensors = (target_OI, base_OI, left_OK, right_KI)
    plain = {x.device for x in tensors} == {target_OI.device} and all(x.dtype != torch.float64 for x in tensors)
    if target_OI.is_cuda and inner <= WIDE and TRITON and plain:
        from research.models.merge_kernel import write_fused

        write_fused(target_OI, base_OI, left_OK, right_KI, scale)
        return
    left_OK, right_KI = left_OK.float() * scale, right_KI.float()
    rows = max(1, CHUNK_ELEMENTS // target_OI.shape[1])
    with _tf32(target_OI.is_cuda and inner > WIDE and target_OI.dtype != torch.float32):
        for start in range(0, target_OI.shape[0], rows):
            part = slice(start, start + rows)
            torch.add(base_OI[part], left_OK[part] @ right_KI, out=target_OI[part])


class _tf32:
    """Inside, float32 products use TF32, or do not; whatever was set before is set again afterwards."""

    def __init__(self, on: bool) -> None:
        self.wanted = "high" if on else "highest"

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.wanted)

    def __exit__(self, *_: Any) -> None:
        torch.set_float32_matmul_precision(self.before)


def weight_deltas(policy: nn.Module) -> Iterator[WeightDelta]:
    """One delta for each adapted linear layer of `policy`; none for a model without an adapter.

    Layers whose adapter is switched off yield a delta of scale 0. Raises ConfigurationError for what has no factors:
    merged layers, DoRA and other variants, adapters on embeddings, trainable weights outside the adapter, which
    no delta carries, and a base in 4 bits.
    """
    layers, stray, quantized = _survey(policy)
    if quantized:
        raise ConfigurationError(
            "model.quantization: weights in 4 bits cannot take an adapter in, whose changes rounding would drop; sample "
            "with sampler=transformers, or load the adapter onto the plain base model to merge it"
        )
    if layers and stray:
        raise ConfigurationError(
            f"{len(stray)} trainable weights outside the adapter would never reach the sampler: {', '.join(stray[:3])}"
        )
    for name, layer in layers.items():
        left_OK, right_KI, scale = _factors(name, layer)
        base_OI, rows = own_rows(layer.get_base_layer().weight.detach())
        yield WeightDelta(name, base_OI, left_OK.detach()[rows], right_KI.detach(), scale)


def has_adapter(policy: nn.Module) -> bool:
    """Whether any layer of the policy carries an adapter."""
    return bool(_survey(policy)[0])


@contextlib.contextmanager
def without_adapter(policy: nn.Module) -> Iterator[None]:
    """Inside, the policy computes as its base model. PEFT's own switch also makes frozen adapter weights trainable."""
    layers = list(_survey(policy)[0].values())
    before = [getattr(layer, "_disable_adapters", False) for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


def trainable_fingerprint(policy: nn.Module) -> str:
    """A hash of the bits that training changes (all weights if nothing is trainable), computed on the device."""
    parameters = [p for p in policy.parameters() if p.requires_grad] or list(policy.parameters())
    return fingerprint(nn.ParameterList([nn.Parameter(p.detach(), requires_grad=False) for p in parameters]))


def bare_name(name: str) -> str:
    """A parameter's or module's name in the unwrapped model: without the prefixes of PEFT, DDP and torch.compile."""
    for prefix in ("module.", "_orig_mod.", "base_model.model."):
        name = name.removeprefix(prefix)
    return name


def _survey(policy: nn.Module) -> tuple[dict[str, Any], list[str], bool]:
    """Adapter layers by bare name, trainable weights outside of them, and whether a weight is held in 4 bits.

    One walk of its own, since a sync takes it: PyTorch's iterators over the modules and parameters of a large
    model cost as much as the sync's matrix products.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, Any] = {}
    stray: list[str] = []
    quantized = False
    seen: set[int] = set()
    todo: list[tuple[str, nn.Module, bool]] = [("", policy, False)]
    while todo:
        name, module, inside = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if isinstance(module, BaseTunerLayer) or hasattr(type(module), "delta_factors"):
            layers[bare_name(name)] = module
            inside = True
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                quantized = quantized or hasattr(parameter, "quant_state")
                if parameter.requires_grad and not inside:
                    stray.append(f"{name}.{leaf}".removeprefix("."))
        prefix = f"{name}." if name else ""
        todo += [(prefix + child, m, inside) for child, m in reversed(module._modules.items()) if m is not None]
    return layers, stray, quantized


def _factors(name: str, layer: Any) -> tuple[Tensor, Tensor, float]:
    if layer.merged:
        raise ConfigurationError(
            f"{name}: its adapter is merged, so the pristine weights are gone; unmerge it before a sync"
        )
    adapters = list(layer.active_adapters)
    parts = [
        layer.delta_factors(a) if hasattr(layer, "delta_factors") else _lora_factors(name, layer, a) for a in adapters
    ]
    if not parts:
        raise ConfigurationError(f"{name}: no active adapter")
    if len(parts) == 1:
        left_OK, right_KI, scale = parts[0]
    else:  # the sum of several adapters is one product of stacked factors
        left_OK = torch.cat([left * scale for left, _, scale in parts], dim=1)
        right_KI, scale = torch.cat([right for _, right, _ in parts], dim=0), 1.0
    return left_OK, right_KI, 0.0 if layer.disable_adapters else float(scale)


def _lora_factors(name: str, layer: Any, adapter: str) -> tuple[Tensor, Tensor, float]:
    if adapter not in getattr(layer, "lora_A", {}):
        raise ConfigurationError(
            f"{name}: a {type(layer).__name__} has no low-rank factors that a sampler could be given"
        )
    plain = layer.get_base_layer().weight.ndim == 2 and not getattr(layer, "fan_in_fan_out", False)
    if not plain or adapter in getattr(layer, "lora_variant", {}) or layer.lora_B[adapter].bias is not None:
        raise ConfigurationError(
            f"{name}: only plain LoRA on linear layers can be synced (no DoRA, no bias, no transposed weight)"
        )
    return layer.lora_B[adapter].weight, layer.lora_A[adapter].weight, layer.scaling[adapter]
