"""How the trainer's tensors reach an engine's workers in other processes, without passing through the host's memory.

GPU tensors are shared as CUDA IPC handles; a worker on another GPU copies from there what its shard needs. Torch counts
on one reader for each time that a tensor is shared, and wraps its memory anew each time. Hence a handle for each rank,
and one buffer for good, which is shared once and filled at every sync.

Shape suffixes as in `models.deltas`.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from research.models.deltas import WeightDelta


@dataclass(frozen=True)
class Layer:
    """One layer's factors in the buffer: left (rows, inner) from `start` on, then right (inner, columns)."""

    module: str
    scale: float
    start: int
    rows: int
    inner: int
    columns: int


@dataclass(frozen=True)
class Shipment:
    """What every rank is told at a sync. handles: the buffer for each rank, where it is a new one; else empty."""

    layers: list[Layer]
    handles: list[bytes]


class Staging:
    """The trainer's side: the factors of one sync, in float32, in a buffer that every rank has mapped."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.buffer: Tensor | None = None

    @torch.no_grad()
    def fill(self, deltas: Sequence[WeightDelta]) -> Shipment:
        """Copy the factors into the buffer; the copies are complete on return."""
        layers, start = [], 0
        for delta in deltas:
            (rows, inner), columns = delta.left_OK.shape, delta.right_KI.shape[1]
            layers.append(Layer(delta.module, delta.scale, start, rows, inner, columns))
            start += (rows + columns) * inner
        device, handles = deltas[0].left_OK.device, []
        if self.buffer is None or self.buffer.numel() < start or self.buffer.device != device:
            self.buffer = torch.empty(start, device=device)
            handles = shared(self.buffer, self.ranks)
        for delta, layer in zip(deltas, layers, strict=True):
            left_OK, right_KI = factors(layer, self.buffer)
            left_OK.copy_(delta.left_OK)
            right_KI.copy_(delta.right_KI)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return Shipment(layers, handles)


def factors(layer: Layer, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Views of one layer's factors."""
    middle = layer.start + layer.rows * layer.inner
    left_OK = buffer[layer.start : middle].view(layer.rows, layer.inner)
    return left_OK, buffer[middle : middle + layer.inner * layer.columns].view(layer.inner, layer.columns)


def received(shipment: Shipment, buffer: Tensor) -> list[WeightDelta]:
    """The worker's side: the shipment's deltas. It keeps its own shard of the base; left stands in for that."""
    deltas = []
    for layer in shipment.layers:
        left_OK, right_KI = factors(layer, buffer)
        deltas.append(WeightDelta(layer.module, left_OK, left_OK, right_KI, layer.scale))
    return deltas


def shared_bases(deltas: Sequence[WeightDelta], ranks: int) -> list[bytes]:
    """For each rank the deltas with their pristine weights, which stand in for the factors too."""
    return shared([replace(delta, left_OK=delta.base_OI, right_KI=delta.base_OI) for delta in deltas], ranks)


def shared(value: Any, ranks: int) -> list[bytes]:
    """`value` pickled once for each rank, its tensors as handles; they must live until every rank has let go."""
    import torch.multiprocessing  # noqa: F401  registers the reductions of tensors

    pickled = []
    for _ in range(ranks):
        target = BytesIO()
        ForkingPickler(target, pickle.HIGHEST_PROTOCOL).dump(value)
        pickled.append(target.getvalue())
    return pickled
