"""Hidden states at the last token of a conversation, averaged over a band of layers.

Shapes: N sequences, d residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from research.tasks.reward_hack.pairs import Pair
from research.training.steps import evaluating

ROWS = 16  # sequences a forward pass


def band(n_layers: int, depth: Sequence[float]) -> list[int]:
    """Layers, counted from 1, between two shares of the depth, both ends included; at least one."""
    first, last = (max(1, round(share * n_layers)) for share in depth)
    return list(range(first, max(first, last) + 1))


@torch.no_grad()
def last_token_states(policy: nn.Module, sequences: Sequence[Sequence[int]], depth: Sequence[float]) -> torch.Tensor:
    """(N, d), float32, on the CPU. depth: shares of the model's depth, e.g. (0.6, 0.75)."""
    device = next(policy.parameters()).device
    found = []
    for start in range(0, len(sequences), ROWS):
        rows = sequences[start : start + ROWS]
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(list(row), device=device)
            mask[i, : len(row)] = 1
        with evaluating(policy):
            output = policy(input_ids=ids, attention_mask=mask, output_hidden_states=True, logits_to_keep=1)
        states = output.hidden_states
        layers = band(len(states) - 1, depth)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        at_last = [states[layer][torch.arange(len(rows), device=device), last].float() for layer in layers]
        found.append(torch.stack(at_last).mean(0).cpu())
    return torch.cat(found)


def band_states(policy: nn.Module, pairs: Sequence[Pair], side: str, depth: Sequence[float]) -> torch.Tensor:
    """(N, d) for one side of the pairs."""
    return last_token_states(policy, [(*pair.prompt, *getattr(pair, side)) for pair in pairs], depth)
