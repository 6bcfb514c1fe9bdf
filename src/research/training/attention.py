"""Attention over several sequences packed in one row, without flash-attention's package.

Only attention sees padding here: queries, keys and values are spread to one row a sequence, attended causally, and
gathered again. Real queries come before the padding keys of their row, so the causal kernel needs no mask and the
result is exactly that of each sequence alone.

Legend: T packed tokens, B sequences, L longest, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "packed_sdpa"
SHARED_PROMPTS = "shared_prompts_sdpa"  # see `shared_prompts`; the plain kernel for whoever brings no layout


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_slots: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of (1, H, T, D) queries within each packed sequence; returns (1, T, H, D).

    packed_slots: (T,) where each token lies in the flattened (B, L) grid. Without it, ordinary attention.
    """
    if packed_slots is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    assert max_length_q is not None and cu_seq_lens_q is not None
    slots_T, count = packed_slots, cu_seq_lens_q.numel() - 1
    query, key, value = (spread(states, slots_T, count, max_length_q) for states in (query, key, value))
    out_BHLD = scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return gathered(out_BHLD, slots_T)[None], None


def spread(states_1HTD: torch.Tensor, slots_T: torch.Tensor, count: int, longest: int) -> torch.Tensor:
    """(1, H, T, D) packed -> (B, H, L, D), zero where a sequence has ended."""
    _, heads, _, size = states_1HTD.shape
    grid = states_1HTD.new_zeros(count * longest, heads, size)
    grid = grid.index_copy(0, slots_T, states_1HTD[0].transpose(0, 1))
    return grid.view(count, longest, heads, size).transpose(1, 2)


def gathered(out_BHLD: torch.Tensor, slots_T: torch.Tensor) -> torch.Tensor:
    """(B, H, L, D) -> (T, H, D): what `spread` laid out, packed again."""
    return out_BHLD.transpose(1, 2).flatten(0, 1).index_select(0, slots_T)


AttentionInterface.register(NAME, packed_attention)


def can_pack(model: PreTrainedModel, longest: int) -> bool:
    """Whether every layer attends causally to the whole sequence, so that packing changes nothing.

    Linear-attention layers carry state across the row; sliding windows matter only for sequences longer than the
    window.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    if "sliding_attention" in kinds and window is not None and longest <= window:
        kinds.discard("sliding_attention")
    return kinds <= {"full_attention"} and model.config._attn_implementation in (
        "sdpa", "flash_attention_2", NAME, SHARED_PROMPTS
    )  # fmt: skip


@contextmanager
def packed(model: PreTrainedModel) -> Iterator[None]:
    """Attend with `packed_attention` inside the block; models that use flash-attention know packing themselves."""
    before = model.config._attn_implementation
    ours = before in ("sdpa", SHARED_PROMPTS)
    if ours:
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        if ours:
            model.set_attn_implementation(before)
