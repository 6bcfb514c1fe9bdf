"""A random Qwen2 in a directory, and LoRA policies on it, for tests against real engines on GPUs."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HEAD, HIDDEN, HEADS, INNER = 64, 512, 8, 1408
TRAINER = "cuda:0"


def save_model(path: Path, seed: int = 0, vocabulary: int = 2048, key_value_heads: int = 2) -> Path:
    """4 layers of 512, head size 64, tied embeddings, bfloat16; without a tokenizer."""
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=HIDDEN, num_hidden_layers=4, num_attention_heads=HEADS,
        num_key_value_heads=key_value_heads, intermediate_size=INNER, max_position_embeddings=1024,
        tie_word_embeddings=True, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(seed)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def load_base(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).to(TRAINER)


def make_policy(directory, seed=1, size=0.02, targets=TARGETS, rslora=True):
    """LoRA of rank 8 in float32, moved away from the base."""
    config = LoraConfig(r=8, lora_alpha=16, use_rslora=rslora, target_modules=targets)
    policy = get_peft_model(load_base(directory), config)
    for parameter in factors(policy):
        parameter.data = parameter.data.float()
    move(policy, seed, size)
    return policy


def factors(policy, part="lora_"):
    return [parameter for name, parameter in policy.named_parameters() if part in name]


def move(policy, seed, size=0.02):
    """As training would: another B. size 0: the base again."""
    generator = torch.Generator(TRAINER).manual_seed(seed)
    for parameter in factors(policy, "lora_B"):
        parameter.data = torch.randn(parameter.shape, generator=generator, device=TRAINER) * size


def mean(a, b):
    """Mean absolute difference of two lists of rows of log-probs."""
    pairs = [(x, y) for rows in zip(a, b, strict=True) for x, y in zip(*rows, strict=True)]
    return sum(abs(x - y) for x, y in pairs) / len(pairs)
