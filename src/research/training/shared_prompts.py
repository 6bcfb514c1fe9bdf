"""Log-probs of completions that share prompts: each prompt goes through the model once, whatever the group's size.

The rows of a micro-batch become one packed row. A distinct prompt, less its last token, is a prefix; each completion
is a tail that begins with that last token, so that the shifted labels of any causal head stay right. Tails attend to
their prefix and to themselves. Without dropout, what a completion scores, and every gradient, is what separate rows
would give, up to the order of sums; with prompts of P tokens and G completions of C, (P + G C) tokens are computed
instead of G (P + C).

The idea is known as a shared prefix or prefix grouping (Liu et al., Prefix Grouper, 2025).

Legend: B rows, L columns of the padded batch, T packed tokens, N prefixes, P and C longest prefix and tail, H query heads,
J key heads, Y = 2 J, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from research.training.attention import SHARED_PROMPTS as NAME
from research.training.attention import can_pack, gathered, spread

GAP = {torch.float32: 1e-3, torch.float64: 1e-6}  # nats; in 16 bits `WIDE`: there the count of layers decides
WIDE = 1.0


@dataclass
class Layout:
    """Where prefixes and tails lie in the packed row; the attention of every layer reads it."""

    prefix_tokens: int
    prefix_slots: torch.Tensor  # (prefix_tokens,) place in the flattened (N, P) grid
    tail_slots: torch.Tensor  # (T - prefix_tokens,) place in the flattened (B, C) grid
    prefixes: int
    longest_prefix: int
    longest_tail: int
    prefix_of_B: torch.Tensor
    rows_per_prefix: int | None  # rows of every prefix, where each has as many and they come in order
    visible_B1CK: torch.Tensor  # K = P + C keys: which of them a tail's token may see
    layers_reached: int = 0
    bias: torch.Tensor | None = None  # `visible` as what is added to scores, made by the first layer

    def bias_like(self, states: torch.Tensor) -> torch.Tensor:
        """0 or -inf, (B, 1, C, K), in the states' dtype; rows begin at multiples of 16 bytes or more, as kernels want them."""
        if self.bias is None or self.bias.dtype != states.dtype:
            *rows, keys = self.visible_B1CK.shape
            room = states.new_full((*rows, -(-keys // 8) * 8), -torch.inf)
            self.bias = room[..., :keys].masked_fill_(self.visible_B1CK, 0.0)
        return self.bias

    def for_each_row(self, states_N: torch.Tensor) -> torch.Tensor:
        """Each row's prefix states, (N, ...) -> (B, ...)."""
        if self.rows_per_prefix is None:
            return states_N[self.prefix_of_B]
        return states_N.unsqueeze(1).expand(-1, self.rows_per_prefix, *states_N.shape[1:]).flatten(0, 1)


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
        """What the model's forward takes. A mask of four dimensions is taken as finished; nothing reads it."""
        mask_1111 = torch.zeros(1, 1, 1, 1, device=self.input_ids.device)
        return {
            "input_ids": self.input_ids, "position_ids": self.position_ids, "labels": self.labels,
            "attention_mask": mask_1111, "shared_prompts": self.layout,
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
    each = len(tails) // len(prefixes)
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
        each if prefix_of_B.equal(torch.arange(len(prefixes)).repeat_interleave(each)) else None,
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
    lay, at = shared_prompts, shared_prompts.prefix_tokens
    lay.layers_reached += 1
    each = query.shape[1] // key.shape[1]  # query heads of a key head
    # Keys and values are spread, shared and repeated as one: kernels are what this costs.
    (prefix_queries, tail_queries), (prefix_states, tail_states) = (
        states.split([at, states.shape[2] - at], 2) for states in (query, torch.cat([key, value], 1))
    )
    rows = len(lay.prefix_of_B)
    states_NYPD = spread(prefix_states, lay.prefix_slots, lay.prefixes, lay.longest_prefix)
    parts = []
    if at:
        query_NHPD = spread(prefix_queries, lay.prefix_slots, lay.prefixes, lay.longest_prefix)
        key_NJPD, value_NJPD = states_NYPD.chunk(2, 1)
        out = scaled_dot_product_attention(
            query_NHPD, key_NJPD, value_NJPD, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=each > 1
        )
        parts.append(gathered(out, lay.prefix_slots))
    query_BHCD = spread(tail_queries, lay.tail_slots, rows, lay.longest_tail)
    states_BYCD = spread(tail_states, lay.tail_slots, rows, lay.longest_tail)
    seen_BYKD = torch.cat([lay.for_each_row(states_NYPD), states_BYCD], 2)
    # With a mask, kernels that keep no scores want as many key heads as query heads.
    keys_BHKD, values_BHKD = repeat_kv(seen_BYKD, each).chunk(2, 1)
    out = scaled_dot_product_attention(
        query_BHCD, keys_BHKD, values_BHKD, attn_mask=lay.bias_like(query_BHCD), dropout_p=dropout, scale=scaling
    )
    parts.append(gathered(out, lay.tail_slots))
    return torch.cat(parts)[None], None


AttentionInterface.register(NAME, shared_prompts_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def obstacle(model: PreTrainedModel, longest: int) -> str | None:
    """Why the model's prompts cannot be shared, or None: it must attend fully, and is tried out on two short rows.

    Some families do not hand on to their layers what they do not know, and would attend across completions.
    """
    if model.config._attn_implementation not in ("sdpa", NAME) or not can_pack(model, longest):
        return "not every layer attends to the whole sequence by PyTorch's kernel"
    ids_BL = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 12, 13, 0]], device=model.device)
    ids_BL %= model.config.get_text_config().vocab_size
    seen_BL = torch.ones_like(ids_BL)
    seen_BL[1, -1] = 0
    before, training = model.config._attn_implementation, model.training
    model.eval()
    try:
        with torch.no_grad():
            separate = model(input_ids=ids_BL, attention_mask=seen_BL, use_cache=False).logits
            wanted_BW = _next_logps(separate, ids_BL)[:, 3:] * seen_BL[:, 4:]
            model.set_attn_implementation(NAME)
            batch = pack(ids_BL, seen_BL, 3)
            inputs = {name: value for name, value in batch.model_inputs().items() if name != "labels"}
            together = model(**inputs, use_cache=False).logits
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        return f"{type(model).__name__} refuses the packed row ({error})"
    finally:
        model.set_attn_implementation(before)
        model.train(training)
    reached, layers = batch.layout.layers_reached, model.config.get_text_config().num_hidden_layers
    if reached != layers:
        return f"the layout reached {reached} of {layers} layers of {type(model).__name__}"
    gap = float((batch.unpacked(_next_logps(together, batch.input_ids)) - wanted_BW).abs().max())
    if not gap <= GAP.get(separate.dtype, WIDE):
        return f"{type(model).__name__} scores a packed row {gap:.2g} nats apart from separate rows"
    return None


def _next_logps(logits_BLV: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
    logps_BLV = logits_BLV[:, :-1].float().log_softmax(-1)
    return logps_BLV.gather(2, ids_BL[:, 1:, None])[..., 0]


def score(
    model: torch.nn.Module, ids_BL: torch.Tensor, seen_BL: torch.Tensor, width: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of completion tokens, both (B, width), `rows` rows a forward pass of TRL's fused head."""
    logps, entropies = [], []
    for ids, seen in zip(ids_BL.split(rows), seen_BL.split(rows), strict=True):
        batch = pack(ids, seen, width)
        output = model(**batch.model_inputs(), fused_lm_head=True)
        logps.append(batch.unpacked(output.log_probs))
        entropies.append(batch.unpacked(output.entropy))
    return torch.cat(logps), torch.cat(entropies)
