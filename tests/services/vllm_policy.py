"""A small LoRA policy, and how training moves it, for tests against real engines."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from research.sampling.proof import trainer_logprobs

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_policy(directory: Path, *, r: int = 4, seed: int = 1, dtype: torch.dtype = torch.float32) -> PeftModel:
    """rsLoRA on every linear layer of the model, moved away from zero."""
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    policy = get_peft_model(base, LoraConfig(r=r, lora_alpha=8, use_rslora=True, target_modules=TARGETS))
    move(policy, seed)
    return policy


def move(policy: PeftModel, seed: int, size: float = 0.05) -> None:
    """As a training step would: new values for B."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * size).to(parameter)


def merged_logprobs(policy: PeftModel, sequences: list[list[int]]) -> list[list[float]]:
    """By transformers, from weights that PEFT merged."""
    return trainer_logprobs(deepcopy(policy).merge_and_unload(), sequences)


def worst(a: list[list[float]], b: list[list[float]]) -> float:
    return max(abs(x - y) for rows in zip(a, b, strict=True) for x, y in zip(*rows, strict=True))
