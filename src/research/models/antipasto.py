"""AntiPaSTO: a trainable diagonal in the singular basis of each weight matrix.

    y = W x + U ((dS + dS_hack) * (Vh x)),        W = U diag(S) Vh

`dS` and `dS_hack` (r numbers a module, zero at the start) are all that trains; U and Vh are frozen. W is never
rebuilt, so with both knobs at zero the output is the base model's to the bit, and switching the adapter off gives the
reference policy without a second model. `dS_hack` is the quarantine of a routing constraint: it stays frozen unless
`train_quarantine` says otherwise. The forward pass sees the sum of the knobs, hence their gradients are equal by
construction; whoever trains both decides how to split it (`research.training.constraints`).

To PEFT this is a LoRA layer of another kind (its custom-module dispatch): saved, loaded, disabled and merged like
LoRA. A saved adapter is loaded into a policy made by `attach`, since PEFT's config file does not record custom layers.

Method: AntiPaSTO (github.com/wassname/AntiPaSTO) in the diagonal, full-rank form used with projected GRPO.
Shapes: U (d_out, r), Vh (r, d_in), knobs (r,), r = min(d_in, d_out) or fewer.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from research.errors import ConfigurationError
from research.models.svd import decompose

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Leaf names of the published adapter: attention, GatedDeltaNet, MLP.
TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj",
    "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj",
    "gate_proj", "up_proj", "down_proj",
)  # fmt: skip


def attach(
    model: PreTrainedModel, targets: Sequence[str] = TARGETS, rank: int | None = None, cache: Path | None = None
) -> PeftModel:
    """Wrap `model` with the adapter, zero-initialised; every other parameter is frozen.

    targets: leaf names; those that the model lacks are passed over. rank: axes kept a module; None for min(d_in,
    d_out). cache: folder of decompositions, shared by runs; None computes them anew.
    Raises ConfigurationError when no linear layer has one of the names.
    """
    present = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = [target for target in targets if target in present]
    if not chosen:
        raise ConfigurationError(
            f"adapter.targets={list(targets)} names no linear layer of this model; it has {sorted(present)}."
        )
    config = LoraConfig(
        r=rank or _widest(model, chosen), target_modules=chosen, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    layer = functools.partial(AntipastoLinear, rank=rank, cache=cache)
    config._register_custom_module({nn.Linear: layer})  # type: ignore[dict-item]
    return get_peft_model(model, config)


class AntipastoLinear(nn.Module, BaseTunerLayer):
    """One adapted linear layer; its names begin with `lora_`, by which PEFT's tuner moves and casts."""

    adapter_layer_names = ("lora_dS", "lora_dS_hack")
    U: torch.Tensor  # (d_out, r), orthonormal columns
    Vh: torch.Tensor  # (r, d_in), orthonormal rows

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, *, rank: int | None, cache: Path | None, **_: Any
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.quarantine_trainable = False
        self._before_merge: torch.Tensor | None = None
        weight = self.get_base_layer().weight
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        factors = decompose(weight, rank, cache)
        self.register_buffer("U", factors.U, persistent=False)
        self.register_buffer("S", factors.S, persistent=False)
        self.register_buffer("Vh", factors.Vh, persistent=False)
        knob = torch.zeros(factors.S.numel(), dtype=torch.float32, device=weight.device)
        self.lora_dS = nn.ParameterDict({adapter_name: nn.Parameter(knob.clone())})
        self.lora_dS_hack = nn.ParameterDict({adapter_name: nn.Parameter(knob.clone())})
        self.set_adapter([adapter_name])

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode)
        if not self.quarantine_trainable:
            self.lora_dS_hack.requires_grad_(False)

    def knob(self, adapter: str) -> torch.Tensor:
        """dS + dS_hack, (r,)."""
        return self.lora_dS[adapter] + self.lora_dS_hack[adapter]

    def delta_factors(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """What is added to the weight, as left (d_out, r) @ right (r, d_in) times a scale: how samplers take it."""
        return self.U.float() * self.knob(adapter).detach(), self.Vh, 1.0

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """U diag(dS + dS_hack) Vh, (d_out, d_in), float32."""
        left, right, _ = self.delta_factors(adapter)
        return left @ right.float()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        for adapter in self.active_adapters:
            if adapter in self.lora_dS:
                h = nn.functional.linear(x, self.Vh) * self.knob(adapter)
                y = y + nn.functional.linear(h.to(self.U.dtype), self.U).to(y.dtype)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add U diag(dS + dS_hack) Vh to the weight; raises ValueError with `safe_merge` when that is not finite."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.lora_dS]
        weight = self.get_base_layer().weight
        for name in names:
            merged = (weight.data.float() + self.get_delta_weight(name)).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"Merging adapter {name!r} gives weights that are not finite.")
            if self._before_merge is None:
                self._before_merge = weight.data
            weight.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put back the very weights that were there before the merge, not a rounded difference."""
        if self._before_merge is not None:
            self.get_base_layer().weight.data = self._before_merge
        self._before_merge = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "antipasto." + super().__repr__()


def layers(policy: nn.Module) -> dict[str, AntipastoLinear]:
    """Module name -> layer, for every adapted linear."""
    return {name: module for name, module in policy.named_modules() if isinstance(module, AntipastoLinear)}


def train_quarantine(policy: nn.Module, trainable: bool = True) -> None:
    """Let the quarantine knobs train (a routing constraint), or freeze them again."""
    for layer in layers(policy).values():
        layer.quarantine_trainable = trainable
        layer.lora_dS_hack.requires_grad_(trainable)


@contextlib.contextmanager
def ablated(policy: nn.Module) -> Iterator[None]:
    """Within the block, every dS_hack is zero: the policy as it would be deployed."""
    knobs = [knob for layer in layers(policy).values() for knob in layer.lora_dS_hack.values()]
    kept = [knob.detach().clone() for knob in knobs]
    with torch.no_grad():
        for knob in knobs:
            knob.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for knob, value in zip(knobs, kept, strict=True):
                knob.copy_(value)


def _widest(model: nn.Module, targets: Sequence[str]) -> int:
    """The largest full rank among the targets; PEFT's config wants a number."""
    return max(
        min(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in targets
    )
