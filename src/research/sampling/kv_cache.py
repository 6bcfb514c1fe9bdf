"""A preallocated key-value cache, and attention over it, for the decode loop of the transformers sampler.

Prompts are right-aligned at column P, so that every row writes its new token to the same column, and a row's unused
columns lie on the left, masked. Rows are dropped as their completions end.

Legend: S rows (one a completion), N prompts, T packed prompt tokens, P longest prompt, C columns, H query heads, J key
heads, G = H / J query heads a key head, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from research.training.attention import packed_attention

NAME = "sampler_cache"


class KeyValueCache:
    """Keys and values of all layers; stands in for transformers' cache within one batch of completions.

    While `filling`, the model sees the packed prompts and each layer's states are stored once a prompt and then copied
    to the rows; afterwards each call appends one column.
    """

    def __init__(self, layers: int, lengths: list[int], rows_of: torch.Tensor, new_tokens: int) -> None:
        device = rows_of.device
        self.layers, self.rows_of, self.longest = layers, rows_of, max(lengths)
        self.columns = self.longest + new_tokens
        self.keys: list[torch.Tensor | None] = [None] * layers
        self.values: list[torch.Tensor | None] = [None] * layers
        lengths_N = torch.tensor(lengths, device=device)
        columns_C = torch.arange(self.columns, device=device)
        visible_NC = columns_C >= self.longest - lengths_N[:, None]
        self.ragged = min(lengths) < self.longest
        self.visible_SC = visible_NC[rows_of]
        self.prompt_slots_T = visible_NC[:, : self.longest].flatten().nonzero()[:, 0]
        self.prompts = len(lengths)
        self.filled = 0
        self.filling = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the model's attention layers with (1, J, T, D) while filling, else (S, J, 1, D)."""
        if self.filling:
            self.keys[layer_idx] = self._store(key_states)
            self.values[layer_idx] = self._store(value_states)
            return key_states, value_states
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        assert keys is not None and values is not None
        keys[:, :, self.filled] = key_states[:, :, 0]
        values[:, :, self.filled] = value_states[:, :, 0]
        end = self.filled + 1
        return keys[:, :, :end], values[:, :, :end]

    def _store(self, states_1JTD: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = states_1JTD.shape
        grid = states_1JTD.new_zeros(self.prompts * self.longest, heads, size)
        grid[self.prompt_slots_T] = states_1JTD[0].transpose(0, 1)
        prompts_NJPD = grid.view(self.prompts, self.longest, heads, size).transpose(1, 2)
        rows = states_1JTD.new_zeros(len(self.rows_of), heads, self.columns, size)
        rows[:, :, : self.longest] = prompts_NJPD[self.rows_of]
        return rows

    def filled_prompts(self) -> None:
        """The prompts are in; what comes now is one token a row."""
        self.filling, self.filled = False, self.longest

    def next_column(self) -> None:
        self.filled += 1

    def mask(self) -> torch.Tensor | None:
        """(S, 1, 1, columns so far): which keys a row's new token may see; None when all of them."""
        return self.visible_SC[:, None, None, : self.filled + 1] if self.ragged else None

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all other rows."""
        self.visible_SC = self.visible_SC[rows]
        for states in (self.keys, self.values):
            for layer in range(self.layers):
                tensor = states[layer]
                assert tensor is not None
                states[layer] = tensor[rows]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.filling else self.filled


def cached_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_slots: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """One new query a row over its keys; while the prompts are read, causal attention within each.

    The G query heads that share a key head are taken as G queries of it, so that no key is copied.
    """
    if packed_slots is not None:
        return packed_attention(
            module, query, key, value, attention_mask, dropout, scaling, packed_slots=packed_slots, **kwargs
        )
    rows, heads, _, size = query.shape
    grouped_SJGD = query.view(rows, key.shape[1], heads // key.shape[1], size)
    out_SJGD = scaled_dot_product_attention(grouped_SJGD, key, value, attn_mask=attention_mask, scale=scaling)
    return out_SJGD.reshape(rows, 1, heads, size), None


AttentionInterface.register(NAME, cached_attention)
