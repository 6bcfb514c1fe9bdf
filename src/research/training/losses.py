"""Losses that supervised training and auxiliary terms share."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from research.training.packing import IGNORED


def label_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Sum over a micro-batch's labels of -log p(target), times `weight` (1 / labels of the whole step), in float32.

    Logits are computed at labelled positions only: `logits_to_keep` selects hidden states before the output matrix.
    """
    batch = dict(batch)
    targets, weight = batch.pop("targets_K"), batch.pop("weight")
    logits = model(**batch, use_cache=False).logits
    logits_KV = logits.flatten(0, 1).float()
    return cross_entropy(logits_KV, targets.flatten(), ignore_index=IGNORED, reduction="sum") * weight
