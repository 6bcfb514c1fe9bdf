"""Plain batched sampling and scoring for the recipe's evaluation; studies use `research.sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from research.models.micro import packing
from research.models.micro.corpus import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

Messages = list[dict[str, str]]
MAX_NEW_TOKENS = 200


def sample(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Messages],
    n: int,
    temperature: float,
    top_p: float,
    seed: int,
    opening: str = "",
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch: int = 1024,
) -> list[list[str]]:
    """`n` replies to each chat, without the end-of-turn token."""
    import torch

    torch.manual_seed(seed)
    texts = [render(messages) + opening for messages in prompts for _ in range(n)]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    replies = [""] * len(texts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = tokenizer([texts[i] for i in chosen], return_tensors="pt", padding=True, padding_side="left").to(
            model.device
        )
        with torch.inference_mode():
            output_BT = model.generate(  # type: ignore[misc]
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
                max_new_tokens=max_new_tokens,
            )
        new_BT = output_BT[:, inputs["input_ids"].shape[1] :]
        for i, text in zip(chosen, tokenizer.batch_decode(new_BT, skip_special_tokens=True), strict=True):
            replies[i] = text
    return [replies[i * n : (i + 1) * n] for i in range(len(prompts))]


def best_labels(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Messages],
    labels: Sequence[Sequence[str]],
    batch: int = 256,
) -> list[str]:
    """For each chat, the label whose first token is likeliest as the reply's first token."""
    import torch

    found = []
    for start in range(0, len(prompts), batch):
        texts = [render(messages) for messages in prompts[start : start + batch]]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        with torch.inference_mode():
            logits_BV = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=1
            ).logits[:, -1]
        for row_V, names in zip(logits_BV, labels[start : start + batch], strict=True):
            found.append(max(names, key=lambda name: float(row_V[tokenizer(name).input_ids[0]])))
    return found


def reply_loss(model: Qwen2ForCausalLM, tokens: packing.Tokens, pad: int, after: int = 0, batch: int = 32) -> float:
    """Mean cross-entropy, in nats, over fully taught tokens at positions from `after` on; one document a row."""
    import torch

    total = count = 0.0
    lengths = [int(n) for n in tokens.starts[1:] - tokens.starts[:-1]]
    order = sorted(range(len(tokens)), key=lambda i: lengths[i])
    for start in range(0, len(order), batch):
        rows = [[i] for i in order[start : start + batch]]
        part = packing.batch(tokens, rows, max(lengths[row[0]] for row in rows), pad)
        part = {name: value.to(model.device) for name, value in part.items()}
        with torch.inference_mode():
            logits_BTV = model(
                input_ids=part["input_ids_BT"],
                position_ids=part["position_ids_BT"],
                attention_mask=packing.attention_mask(part["document_BT"]),
                use_cache=False,
            ).logits
        loss_N = torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1).float(), part["labels_BT"].flatten(), reduction="none"
        )
        taught_N = ((part["weights_BT"] > 0.99) & (part["position_ids_BT"] >= after)).flatten()
        total += float(loss_N[taught_N].sum())
        count += float(taught_N.sum())
    return total / max(count, 1.0)
