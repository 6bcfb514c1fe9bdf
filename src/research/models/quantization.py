"""A frozen base in 4 bits: QLoRA (Dettmers et al. 2023, arXiv:2305.14314), through transformers and bitsandbytes.

    python -m research task=imposter model.quantization=nf4

Linear layers hold NF4 codes with doubly quantised scales, and compute in the precision that `model.dtype` resolves to;
embeddings, norms and the output head stay as they are. Adapters go on as on any base, in float32. Weights in 4 bits are
never merged with an adapter: rounding the sum would drop what training added.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from research.config import ModelConfig
from research.errors import ConfigurationError

if TYPE_CHECKING:
    import torch
    from torch import nn


def require(model: ModelConfig) -> None:
    """Raise ConfigurationError when the model is to be quantised and bitsandbytes is not installed."""
    if model.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            f"model.quantization={model.quantization} needs bitsandbytes, which is not installed: pip install "
            "'research[qlora]', or pip install bitsandbytes==0.50.2"
        )


def loading_arguments(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What makes `from_pretrained` quantise while it reads, on `device`; nothing for an ordinary base."""
    if model.quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def keep_codes(model: nn.Module) -> None:
    """Have no layer rewrite its codes: on some CPUs bitsandbytes repacks them when it first evaluates.

    A frozen base keeps its bits, and training and sampling compute alike.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def is_quantized(module: nn.Module) -> bool:
    """Whether any weight is held in 4 bits."""
    return any(hasattr(parameter, "quant_state") for parameter in module.parameters())


def dense_weight(layer: Any) -> torch.Tensor:
    """The weight of a linear layer as numbers, (d_out, d_in), dequantised if need be."""
    weight = layer.weight
    if not hasattr(weight, "quant_state"):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)
