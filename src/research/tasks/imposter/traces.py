"""Reasoning traces for true completions: sampled with the truth in sight, kept when they make it likelier."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from research.cells.cell import write_atomically
from research.cells.seeding import stable_seed
from research.material.fill_prompts import (
    THINK_CLOSING,
    THINK_OPENING,
    continue_messages,
    explain_messages,
    parse_thought,
    thought_reply,
)  # fmt: skip
from research.sampling.interface import Sampler, SamplingParams
from research.tasks.imposter.corpus import Span
from research.training.auxiliary import token_logprobs


def export_traces(
    policy: Any, tokenizer: Any, sampler: Sampler, spans: Sequence[Span], options: Mapping[str, Any], max_tokens: int,
    seed: int, path: Path, rows: int = 16,
) -> dict[str, Any]:  # fmt: skip
    """Write one JSON line a kept trace: `messages`, `prompt` and `completion` (conversational), and the `gain` in nats.

    gain: log-probability of the whole truth after the trace, less that after an empty one. Returns how many were
    sampled and kept, and the mean gain of the kept.
    """

    def render(messages: list[dict[str, str]], opening: str) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        return tokenizer.encode(text + opening, add_special_tokens=False)

    params = SamplingParams(1.0, 1.0, max(1, max_tokens), stable_seed(seed, "traces"), (tokenizer.eos_token_id,))
    drawn = sampler.generate([render(explain_messages(s.before, s.text), THINK_OPENING) for s in spans], 1, params)
    traces = [parse_thought(tokenizer.decode(d[0].token_ids, skip_special_tokens=True)).reasoning for d in drawn]
    lines, gains = [], []
    for start in range(0, len(spans), rows):
        part = [(s, t) for s, t in zip(spans[start : start + rows], traces[start : start + rows], strict=True) if t]
        if not part:
            continue
        truths = [tokenizer.encode(span.text, add_special_tokens=False) for span, _ in part]
        totals = []
        for with_trace in (True, False):
            openings = [
                render(continue_messages(s.before), THINK_OPENING + (f"{t}\n" if with_trace else "") + THINK_CLOSING)
                for s, t in part
            ]
            with torch.no_grad():
                logps_BT, mask_BT = token_logprobs(policy, openings, truths)
            totals.append((logps_BT * mask_BT).sum(1))
        for (span, trace), gain in zip(part, (totals[0] - totals[1]).tolist(), strict=True):
            if gain > 0:
                reply = {"role": "assistant", "content": THINK_OPENING + thought_reply(span.text, trace)}
                prompt = continue_messages(span.before)
                lines.append({"prompt": prompt, "completion": [reply], "messages": [*prompt, reply], "gain": gain})
                gains.append(gain)
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {"sampled": len(spans), "kept": len(lines), "mean_gain": sum(gains) / len(gains) if gains else None}
