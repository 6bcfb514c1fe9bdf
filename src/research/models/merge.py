"""The policy as plain weights: W0 + scale * B A, from the pristine base, for samplers and for saving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigurationError
from research.models.deltas import weight_deltas
from research.models.sharding import is_sharded

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merged_weights(
    policy: PeftModel | PreTrainedModel, adapted_only: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name as in the base model's state dict, tensor) for every weight, one at a time; the policy is not touched.

    The sum is in float32 and rounded once. Tied embeddings appear under both names, since some samplers keep a copy of
    their own. A policy without adapters gives its own weights. adapted_only: leaves out what no adapter changes.
    Raises ConfigurationError for a sharded base, of which no process has whole weights.
    """
    if is_sharded(policy):
        raise ConfigurationError("model.shard=true: no process holds whole weights; merge from an unsharded base")
    deltas = {delta.module: delta for delta in weight_deltas(policy)}
    for name, tensor in unwrapped(policy).state_dict().items():
        plain = name.replace(".base_layer.", ".")
        owner, _, leaf = plain.rpartition(".")
        if owner in deltas and leaf == "weight":
            yield plain, deltas[owner].merged()
        elif not adapted_only and (plain != name or not _of_an_adapter(name, deltas)):
            yield plain, tensor.detach()


def save_merged(
    policy: PeftModel | PreTrainedModel, directory: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> Path:
    """Write the merged model as an ordinary checkpoint that any library loads."""
    import torch

    plain = unwrapped(policy)
    tied = set(plain.all_tied_weights_keys or {})
    state = {name: tensor for name, tensor in merged_weights(policy) if name not in tied}
    with torch.device("meta"):  # the architecture without adapters, whose own saving would use PEFT's names
        skeleton = type(plain)(plain.config)
    skeleton.generation_config = plain.generation_config
    skeleton.save_pretrained(directory, state_dict=state)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return directory


def unwrapped(policy: PeftModel | PreTrainedModel) -> PreTrainedModel:
    """The transformers model inside; adapted layers are still in place."""
    wrapped: Any = policy
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped


def _of_an_adapter(name: str, modules: dict) -> bool:
    """Whether a weight lies inside an adapted module."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in modules for count in range(1, len(parts)))
