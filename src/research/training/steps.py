"""Small things around a training step: evaluation mode, trimming a micro-batch, the words of a log line."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from research.cells import ranks


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def trimmed(inputs: dict[str, Any], kept_B: torch.Tensor) -> dict[str, Any]:
    """The kept rows of a micro-batch, without columns that are padding in all of them."""
    rows = {
        name: value[kept_B] if isinstance(value, torch.Tensor) and value.ndim and len(value) == len(kept_B) else value
        for name, value in inputs.items()
    }
    first = int(rows["prompt_mask"].any(0).int().argmax())
    width = int(rows["completion_mask"].sum(1).max())
    for name in ("prompt_ids", "prompt_mask"):
        rows[name] = rows[name][:, first:]
    for name in ("completion_ids", "completion_mask", "tool_mask", "old_per_token_logps", "ref_per_token_logps"):
        if name in rows:
            rows[name] = rows[name][:, : max(width, 1)]
    return rows


def over_processes(metrics: Mapping[str, float]) -> dict[str, float]:
    """Means over the processes, which see as many rollouts each; those without a number for a name are left out."""
    seen = ranks.gathered({name: float(value) for name, value in metrics.items()})
    found = {}
    for name in metrics:
        known = [part[name] for part in seen if not math.isnan(part[name])]
        found[name] = math.fsum(known) / len(known) if known else math.nan
    return found


def state_of(part: Any) -> dict[str, Any] | None:
    return part.state_dict() if hasattr(part, "state_dict") else None


def finite(value: Any) -> float | None:
    number = float(value) if value is not None else math.nan
    return number if math.isfinite(number) else None


def screen_line(step: int, steps: int, row: Mapping[str, float | None]) -> str:
    names = (
        "reward",
        "reward_std",
        "loss",
        "kl_drift",
        "cos_align",
        "grad_norm",
        "completions/mean_length",
        "step_time",
    )
    shown = [f"{name} {value:.3g}" for name in names if (value := row.get(name)) is not None]
    return f"step {step}/{steps}: " + ", ".join(shown)
