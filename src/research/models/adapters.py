"""LoRA on the base model through PEFT, put on and taken off without a trace."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from research.cells.seeding import stable_seed
from research.config import AdapterConfig, ModelConfig
from research.errors import ConfigurationError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from research.models.base import Base


def lora_scale(adapter: AdapterConfig, model: ModelConfig) -> float:
    """The factor before B A: `adapter.scale`, else the model's calibrated one, else from alpha and r.

    rsLoRA: alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732); plain LoRA: alpha / r.
    """
    if adapter.scale is not None:
        return adapter.scale
    if model.lora_scale is not None:
        return model.lora_scale
    return adapter.alpha / _divisor(adapter)


def lora_config(adapter: AdapterConfig, model: ModelConfig) -> LoraConfig:
    """PEFT's configuration, alpha chosen so that PEFT's own scaling equals `lora_scale`."""
    from peft import LoraConfig

    if adapter.kind != "lora" or adapter.r is None:
        raise ConfigurationError(f"adapter.kind={adapter.kind} with adapter.r={adapter.r} is no LoRA; use adapter=lora")
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=lora_scale(adapter, model) * _divisor(adapter),  # type: ignore[arg-type]
        use_rslora=adapter.rslora,
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.targets),
        bias="none",
    )


def attach_lora(base: Base, adapter: AdapterConfig, seed: int) -> PeftModel:
    """Put a fresh LoRA on the base: A random from `seed`, B zero, both float32; everything else frozen.

    Raises ConfigurationError for a target that the model does not have.
    """
    import torch
    from peft import get_peft_model

    config = lora_config(adapter, base.config)
    leaves = {name.rsplit(".", 1)[-1] for name, _ in base.model.named_modules()}
    if missing := [target for target in adapter.targets if target not in leaves]:
        known = sorted(leaf for leaf in leaves if leaf.endswith("_proj"))
        raise ConfigurationError(f"adapter.targets: {base.config.name} has no module named {missing}; it has {known}")
    with torch.random.fork_rng():
        torch.manual_seed(stable_seed(seed, "lora"))
        policy = get_peft_model(base.model, config)
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, f"adapter parameter {name} is {parameter.dtype}"
            if adapter.freeze_a and "lora_A" in name:
                parameter.requires_grad_(False)
    return policy


def detach(base: Base, policy: PeftModel) -> Base:
    """Take the adapter off and prove that the base is bit-identical to what was loaded; raises RuntimeError if not."""
    base.model = policy.unload()
    if hasattr(base.model, "peft_config"):
        del base.model.peft_config
    base.model.eval().requires_grad_(False)
    base.check_pristine()
    return base


def _divisor(adapter: AdapterConfig) -> float:
    assert adapter.r is not None
    return math.sqrt(adapter.r) if adapter.rslora else float(adapter.r)
