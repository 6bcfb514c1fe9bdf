"""Log-probs of completions that share prompts: each prompt goes through the model once, whatever the group's size.

The rows of a micro-batch become one packed row. A distinct prompt, less its last token, is a prefix; each completion
is a tail that begins with that last token, so that the shifted labels of any causal head stay right. Tails attend to
their prefix and to themselves. What a completion scores, and every gradient, is what separate rows would give, up to
the order of sums; with prompts of P tokens and G completions of C, (P + G C) tokens are computed instead of G (P + C).

The idea is known as a shared prefix or prefix grouping (Liu et al., Prefix Grouper, 2025).

Legend: B rows, L columns of the padded batch, T packed tokens, N prefixes, P and C longest prefix and tail, H heads,
D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from research.training.attention import can_pack, spread

NAME = "shared_prompts_sdpa"


@dataclass(frozen=True)
class Layout:
    """Where prefixes and tails lie in the packed row; the attention of every layer reads it."""

    prefix_tokens: int
    prefix_slots: torch.Tensor  # (prefix_tokens,) place in the flattened (N, P) grid
    tail_slots: torch.Tensor  # (T - prefix_tokens,) place in the flattened (B, C) grid
    prefixes: int
    longest_prefix: int
    longest_tail: int
    prefix_of_B: torch.Tensor
    visible_B1CK: torch.Tensor  # K = P + C keys: which of them a tail's token may see


@dataclass(frozen=True)
class Batch:
    """A micro-batch as one row. labels: -100 but on completion tokens. places: of the token before each of them."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    layout: Layout
    places_BW: torch.Tensor
    scored_BW: torch.Tensor

    def model_inputs(self) -> dict[str, Any]:
        """What the model's forward takes; no mask, under any layer kind's name, so that it makes none of its own."""
        return {
            "input_ids": self.input_ids, "position_ids": self.position_ids, "labels": self.labels,
            "attention_mask": {"full_attention": None, "sliding_attention": None}, "shared_prompts": self.layout,
        }  # fmt: skip

    def unpacked(self, values_1T: torch.Tensor) -> torch.Tensor:
        """(1, T - 1) values of next tokens -> (B, width) of each row's completion, zero behind its end."""
        return values_1T[0][self.places_BW].masked_fill(~self.scored_BW, 0.0)


def pack(input_ids_BL: torch.Tensor, attention_BL: torch.Tensor, width: int) -> Batch:
    """Pack rows of a left-padded prompt and a right-padded completion in the last `width` columns."""
    device = input_ids_BL.device
    prompts: list[tuple[int, ...]] = []
    completions: list[list[int]] = []
    for ids, seen in zip(input_ids_BL.tolist(), attention_BL.tolist(), strict=True):
        prompts.append(tuple(token for token, keep in zip(ids[:-width], seen[:-width], strict=True) if keep))
        completions.append([token for token, keep in zip(ids[-width:], seen[-width:], strict=True) if keep])
    order = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    prefixes = [prompt[:-1] for prompt in order]
    tails = [[prompt[-1], *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    P, C, T0 = max(map(len, prefixes)), max(map(len, tails)), sum(map(len, prefixes))
    prefix_lengths = torch.tensor([len(prefix) for prefix in prefixes])
    tail_lengths = torch.tensor([len(tail) for tail in tails])
    prefix_of_B = torch.tensor([order[prompt] for prompt in prompts])
    starts_B = T0 + tail_lengths.cumsum(0) - tail_lengths

    tokens = [token for part in (*prefixes, *tails) for token in part]
    positions = [place for prefix in prefixes for place in range(len(prefix))]
    for prompt, tail in zip(prompts, tails, strict=True):
        positions.extend(range(len(prompt) - 1, len(prompt) - 1 + len(tail)))
    labels = torch.tensor(tokens)
    labels[:T0] = -100
    labels[starts_B] = -100

    columns_W = torch.arange(width)
    scored_BW = columns_W < tail_lengths[:, None] - 1
    own_CC = torch.ones(C, C, dtype=torch.bool).tril()
    prefix_B1P = (torch.arange(P) < prefix_lengths[prefix_of_B][:, None])[:, None]
    visible_BCK = torch.cat([prefix_B1P.expand(-1, C, -1), own_CC.expand(len(tails), -1, -1)], 2)
    layout = Layout(
        T0,
        (torch.arange(P) < prefix_lengths[:, None]).flatten().nonzero()[:, 0].to(device),
        (torch.arange(C) < tail_lengths[:, None]).flatten().nonzero()[:, 0].to(device),
        len(prefixes),
        P,
        C,
        prefix_of_B.to(device),
        visible_BCK[:, None].to(device),
    )
    return Batch(
        torch.tensor(tokens, device=device)[None],
        torch.tensor(positions, device=device)[None],
        labels[None].to(device),
        layout,
        (starts_B[:, None] + columns_W).where(scored_BW, 0).to(device),
        scored_BW.to(device),
    )


def shared_prompts_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_prompts: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of (1, H, T, D) queries in the layout; returns (1, T, H, D). Without one, ordinary attention."""
    if shared_prompts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    lay, gqa = shared_prompts, query.shape[1] != key.shape[1]
    at = lay.prefix_tokens
    parts = []
    key_NHPD = spread(key[:, :, :at], lay.prefix_slots, lay.prefixes, lay.longest_prefix)
    value_NHPD = spread(value[:, :, :at], lay.prefix_slots, lay.prefixes, lay.longest_prefix)
    if at:
        query_NHPD = spread(query[:, :, :at], lay.prefix_slots, lay.prefixes, lay.longest_prefix)
        out = scaled_dot_product_attention(
            query_NHPD, key_NHPD, value_NHPD, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=gqa
        )
        parts.append(out.transpose(1, 2).flatten(0, 1).index_select(0, lay.prefix_slots))
    rows = len(lay.prefix_of_B)
    query_BHCD, key_BHCD, value_BHCD = (
        spread(states[:, :, at:], lay.tail_slots, rows, lay.longest_tail) for states in (query, key, value)
    )
    out = scaled_dot_product_attention(
        query_BHCD,
        torch.cat([key_NHPD[lay.prefix_of_B], key_BHCD], 2),
        torch.cat([value_NHPD[lay.prefix_of_B], value_BHCD], 2),
        attn_mask=lay.visible_B1CK,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=gqa,
    )
    parts.append(out.transpose(1, 2).flatten(0, 1).index_select(0, lay.tail_slots))
    return torch.cat(parts)[None], None


AttentionInterface.register(NAME, shared_prompts_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether the layout's attention can stand in for the model's own: full attention by PyTorch's kernel."""
    return model.config._attn_implementation == "sdpa" and can_pack(model, longest)
