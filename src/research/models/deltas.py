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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from research.errors import ConfigurationError
from research.models.base import fingerprint
from research.models.quantization import is_quantized
from research.models.sharding import own_rows

CHUNK_ELEMENTS = 1 << 24  # float32 intermediates of one chunk: 64 MiB; smaller ones cost more launches than they save
WIDE = (
    512  # wider factors, of whole matrices, go through plain TF32: its error, 2**-11, is under that of a 16-bit result
)


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
    left_OK, right_KI = left_OK.float() * scale, right_KI.float()
    wide = right_KI.shape[0] > WIDE
    if target_OI.is_cuda and not wide:
        if target_OI.dtype == base_OI.dtype == torch.bfloat16:
            with _Bfloat16SumsInFloat32():
                torch.addmm(base_OI, *split_bfloat16(left_OK, right_KI), out=target_OI)
            return
        left_OK, right_KI = split_product(left_OK, right_KI)
    rows = max(1, CHUNK_ELEMENTS // target_OI.shape[1])
    with _tf32(target_OI.is_cuda and (not wide or target_OI.dtype != torch.float32)):
        for start in range(0, target_OI.shape[0], rows):
            part = slice(start, start + rows)
            torch.add(base_OI[part], left_OK[part] @ right_KI, out=target_OI[part])


def split_product(left_OK: Tensor, right_KI: Tensor) -> tuple[Tensor, Tensor]:
    """Factors three times as wide whose product in TF32 is left @ right in float32, but for 2**-21 of each term.

    Each number is a TF32 part and a rest; the product of the two rests is dropped. Tensor cores then do what
    float32 arithmetic does more slowly (error-corrected TF32: Ootomo and Yokota 2022, arXiv:2203.03341).
    """
    left_high, right_high = _tf32_part(left_OK), _tf32_part(right_KI)
    left = torch.cat([left_high, left_high, left_OK - left_high], dim=1)
    right = torch.cat([right_high, right_KI - right_high, right_high], dim=0)
    return left, right


def split_bfloat16(left_OK: Tensor, right_KI: Tensor) -> tuple[Tensor, Tensor]:
    """bfloat16 factors six times as wide whose product is left @ right in float32, but for 2**-23 of each term.

    Each number is the sum of three bfloat16 numbers of falling size; of the nine products the three smallest are
    dropped. One matrix product, which adds the bfloat16 base in float32 and rounds once, then does the whole merge.
    """
    (l1, l2, l3), (r1, r2, r3) = _bfloat16_parts(left_OK), _bfloat16_parts(right_KI)
    return torch.cat([l1, l1, l2, l2, l1, l3], dim=1), torch.cat([r1, r2, r1, r2, r3, r1], dim=0)


def _bfloat16_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = x.bfloat16()
    rest = x - first
    second = rest.bfloat16()
    return first, second, (rest - second).bfloat16()


def _tf32_part(x: Tensor) -> Tensor:
    """x with the 13 lowest bits of its mantissa cleared, which TF32 holds exactly."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


class _Bfloat16SumsInFloat32:
    """Inside, bfloat16 products keep their partial sums in float32; PyTorch's default lets some be bfloat16."""

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def __exit__(self, *_: Any) -> None:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = self.before


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
    if is_quantized(policy):
        raise ConfigurationError(
            "model.quantization: weights in 4 bits cannot take an adapter in, whose changes rounding would drop; sample "
            "with sampler=transformers, or load the adapter onto the plain base model to merge it"
        )
    layers = _adapter_layers(policy)
    _refuse_trainable_weights_outside(policy, layers)
    for name, layer in layers.items():
        left_OK, right_KI, scale = _factors(name, layer)
        base_OI, rows = own_rows(layer.get_base_layer().weight.detach())
        yield WeightDelta(name, base_OI, left_OK.detach()[rows], right_KI.detach(), scale)


def has_adapter(policy: nn.Module) -> bool:
    """Whether any layer of the policy carries an adapter."""
    return bool(_adapter_layers(policy))


@contextlib.contextmanager
def without_adapter(policy: nn.Module) -> Iterator[None]:
    """Inside, the policy computes as its base model. PEFT's own switch also makes frozen adapter weights trainable."""
    layers = list(_adapter_layers(policy).values())
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


def _adapter_layers(policy: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        bare_name(n): m
        for n, m in policy.named_modules()
        if isinstance(m, BaseTunerLayer) or hasattr(m, "delta_factors")
    }


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


def _refuse_trainable_weights_outside(policy: nn.Module, layers: dict[str, Any]) -> None:
    if not layers:
        return
    prefixes = tuple(layer + "." for layer in layers)
    stray = [n for n, p in policy.named_parameters() if p.requires_grad and not bare_name(n).startswith(prefixes)]
    if stray:
        raise ConfigurationError(
            f"{len(stray)} trainable weights outside the adapter would never reach the sampler: {', '.join(stray[:3])}"
        )
