"""The trainer's weights, written in place into a running vLLM engine.

Runs inside the engine's worker process. vLLM fuses q, k, v and gate, up into one parameter each and, under tensor
parallelism, keeps a shard of rows (column-parallel layers) or columns (row-parallel layers). `place` finds where one
layer of the model lies; `LiveWeights.bind` checks every place against the trainer's pristine weights, bit for bit,
before anything is written; `LiveWeights.write` then overwrites W with W0 + scale * left @ right. Addresses stay, so
CUDA graphs stay valid. The prefix cache must be reset by whoever calls.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from research.errors import StaleWeightsError
from research.models.deltas import WeightDelta, write_merged
from research.sampling.staging import Shipment, received

ALL = slice(None)


@dataclass(frozen=True)
class Place:
    """Where this rank keeps one layer's weight.

    module: the engine's layer. rows: of the engine's parameter. out, columns: the part of the full weight kept there.
    """

    module: str
    rows: slice
    out: slice
    columns: slice


def place(name: str, modules: dict[str, nn.Module], packed: dict[str, list[str]]) -> Place | None:
    """The place of layer `name` (its name in the checkpoint); None when the engine has no such layer in a known layout.

    packed: the engine model's `packed_modules_mapping`, e.g. {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}.
    """
    parent, _, leaf = name.rpartition(".")
    fused = next((f for f, parts in packed.items() if leaf in parts and f"{parent}.{f}" in modules), None)
    target = f"{parent}.{fused}" if fused else name
    layer: Any = modules.get(target)
    if layer is None:
        return None
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    rank = getattr(layer, "tp_rank", 0)
    if fused:
        index = packed[fused].index(leaf)
        if "QKVParallelLinear" in kinds:
            head, kv = layer.head_size, layer.num_kv_heads
            sizes = [layer.num_heads * head, kv * head, kv * getattr(layer, "v_head_size", head)]
            if index:  # fewer key-value heads than ranks: neighbours hold the same one
                rank //= layer.num_kv_head_replicas
        elif "MergedColumnParallelLinear" in kinds and len(layer.output_sizes) == len(packed[fused]):
            sizes = [size // layer.tp_size for size in layer.output_sizes]
        else:
            return None
        offset, size = sum(sizes[:index]), sizes[index]
        return Place(target, slice(offset, offset + size), slice(rank * size, (rank + 1) * size), ALL)
    if "RowParallelLinear" in kinds:
        size = layer.input_size_per_partition
        return Place(target, ALL, ALL, slice(rank * size, (rank + 1) * size))
    if "ColumnParallelLinear" in kinds:
        size = layer.output_size_per_partition
        return Place(target, ALL, slice(rank * size, (rank + 1) * size), ALL)
    return Place(target, ALL, ALL, ALL)


class LiveWeights:
    """The adapted layers of one rank's engine model."""

    def __init__(self, model: nn.Module, keep_base: bool) -> None:
        """keep_base: keep a copy of this rank's pristine weights, for a trainer whose own lie in another process."""
        # LoRA-enabled engines wrap each layer; the weight stays in the wrapped one.
        self.modules = {n: getattr(m, "base_layer", m) for n, m in model.named_modules() if ".base_layer" not in n}
        self.packed: dict[str, list[str]] = dict(getattr(model, "packed_modules_mapping", {}) or {})
        self.keep_base = keep_base
        self.places: dict[str, Place] = {}
        self.base: dict[str, Tensor] = {}

    def bind(self, deltas: Iterable[WeightDelta]) -> str:
        """Find and check every layer's place: "in_place", or "reload" for an engine that keeps its weights packed.

        Must run while the engine still holds the checkpoint's weights. Raises StaleWeightsError when an engine's
        weights differ from the trainer's pristine ones: another base model, or a layout that `place` misreads.
        """
        for delta in deltas:
            spot = place(delta.module, self.modules, self.packed)
            weight = None if spot is None else getattr(self.modules[spot.module], "weight", None)
            if spot is None or weight is None:
                raise StaleWeightsError(
                    f"the engine has no place for {delta.module}; its layers are named like {sorted(self.modules)[-1]}"
                )
            if weight.numel() == 0 or weight.ndim != 2:
                return "reload"  # CPU builds pack linear weights and drop the originals
            held_OI, full_OI = weight.data[spot.rows], delta.base_OI[spot.out, spot.columns]
            if held_OI.shape != full_OI.shape or not torch.equal(held_OI, full_OI.to(held_OI)):
                raise StaleWeightsError(
                    f"{delta.module}: the engine's weights are not the trainer's pristine base (shapes "
                    f"{tuple(held_OI.shape)} and {tuple(full_OI.shape)}); are both of one unquantised checkpoint?"
                )
            self.places[delta.module] = spot
            if self.keep_base:
                self.base[delta.module] = held_OI.clone()
        return "in_place"

    def write(self, deltas: Iterable[WeightDelta]) -> int:
        """Overwrite every layer with its merged weight and return how many there were.

        Raises StaleWeightsError, before anything is written, unless these are the layers that were bound: one left out
        would keep another policy's weights.
        """
        deltas = list(deltas)
        if {delta.module for delta in deltas} != set(self.places):
            raise StaleWeightsError(
                f"the sync carries {len(deltas)} layers, not the {len(self.places)} that this engine was bound with; a "
                "policy that adapts other layers needs an engine of its own"
            )
        for delta in deltas:
            self._write(delta)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return len(deltas)

    def _write(self, delta: WeightDelta) -> None:
        """This rank's part of one layer."""
        spot = self.places[delta.module]
        target_OI = self.modules[spot.module].weight.data[spot.rows]
        base_OI = self.base[delta.module] if self.keep_base else delta.base_OI[spot.out, spot.columns]
        left_OK, right_KI = delta.left_OK[spot.out], delta.right_KI[:, spot.columns]
        device = target_OI.device
        write_merged(target_OI, base_OI, left_OK.to(device), right_KI.to(device), delta.scale)


class LiveSyncWorker:
    """Mixed into vLLM's worker (`worker_extension_cls`), so that `collective_rpc` reaches every rank.

    Each method answers (result, refusal). An exception in one of several workers would reach the trainer as another
    type, and the answers of the ranks after it would be taken for those of the next call.
    """

    research_buffer: Tensor | None = None

    def research_bind(self: Any, deltas: list[WeightDelta] | list[bytes]) -> tuple[str, str]:
        """deltas: for ranks in other processes what `staging.shared_bases` made of them."""
        remote = isinstance(deltas[0], bytes)
        self.research_live = LiveWeights(self.get_model(), keep_base=remote)
        return _answer(lambda: self.research_live.bind(pickle.loads(deltas[self.rank]) if remote else deltas))

    def research_write(self: Any, sent: list[WeightDelta] | Shipment) -> tuple[int, str]:
        """sent: for ranks in other processes a shipment."""
        if isinstance(sent, Shipment):
            if sent.handles:
                self.research_buffer = pickle.loads(sent.handles[self.rank])
            sent = received(sent, self.research_buffer)
        return _answer(lambda: self.research_live.write(sent))

    def research_release(self: Any) -> None:
        """Let go of the trainer's buffer, which could not be freed otherwise."""
        self.research_buffer = None


def _answer(call: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return call(), ""
    except StaleWeightsError as error:
        return None, str(error)
