"""What benchmarks put in the place of the suite's own: random bases and directions, and PEFT's layers."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import torch

from research.models.svd import Factors
from research.training.constraints import knobs


def unfused(*_: Any, **__: Any) -> contextlib.AbstractContextManager:
    """In the place of `fused_lora`: PEFT's layers stay."""
    return contextlib.nullcontext()


def random_factors(weight: torch.Tensor, rank: int | None = None, cache: Path | None = None) -> Factors:
    """Orthonormal bases as `research.models.svd.decompose` gives them, without decomposing: for random weights."""
    r = min(weight.shape) if rank is None else min(rank, *weight.shape)
    left, right = (orthonormal(side, r, weight.device) for side in weight.shape)
    values = torch.ones(r, device=weight.device)
    return Factors(left.to(weight.dtype, copy=True), values, right.T.to(weight.dtype, copy=True).contiguous())


@functools.cache
def orthonormal(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, device=device)).Q


def random_directions(policy: Any, rows: int = 4) -> dict[str, torch.Tensor]:
    found = {}
    for knob in knobs(policy):
        generator = torch.Generator(knob.parameter.device).manual_seed(0)
        drawn = torch.randn(knob.parameter.numel(), rows, generator=generator, device=knob.parameter.device)
        found[knob.name] = torch.linalg.qr(drawn).Q.T.contiguous()
    return found
