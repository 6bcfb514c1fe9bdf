"""Which examples share an optimizer step, and how a step's examples become tensors without padding.

Legend of shape suffixes: T packed tokens, K labelled positions, B sequences, L longest sequence.

The composition of a step depends on (seed, epoch) only. Inside a step the order is free, since the step's loss is a
mean over all its labels: examples are sorted by length and dealt to micro-batches (and processes) so that all carry
about the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from research.cells.seeding import stable_seed

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Tokens up to the last label; `positions` predict `targets` (the label at position p + 1 is the target of p)."""

    input_ids: list[int]
    positions: list[int]
    targets: list[int]


def prepare(row: Mapping[str, Sequence[int]]) -> Example | None:
    """Cut a row after the last token that predicts a label; None when no label is left.

    Nothing after that token can reach the loss in a causal model. Raises ValueError when ids and labels differ in
    length.
    """
    ids, labels = list(row["input_ids"]), list(row["labels"])
    if len(ids) != len(labels):
        raise ValueError(f"an example has {len(ids)} input_ids but {len(labels)} labels; they must correspond")
    positions = [p - 1 for p in range(1, len(labels)) if labels[p] != IGNORED]
    if not positions:
        return None
    return Example(ids[: positions[-1] + 1], positions, [labels[p + 1] for p in positions])


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The epoch's permutation of the examples."""
    generator = torch.Generator().manual_seed(stable_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator).tolist()


def deal(indices: Sequence[int], lengths: Sequence[int], parts: int, size: int) -> list[list[int]]:
    """Split a step's examples into `parts` of at most `size` with like tokens: longest first, to the lightest part."""
    dealt: list[list[int]] = [[] for _ in range(parts)]
    load = [0] * parts
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        part = min((p for p in range(parts) if len(dealt[p]) < size), key=lambda p: (load[p], p))
        dealt[part].append(index)
        load[part] += lengths[index]
    return dealt


class StepSampler:
    """Yields this process's micro-batches of one epoch, as (example indices, labels in the whole optimizer step).

    A process without an example of its own (the last, short step) gets one of the step's with zero weight, marked by a
    negative count, so that all processes take part in the gradient exchange.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lengths = [len(example.input_ids) for example in examples]
        self.labels = [len(example.targets) for example in examples]
        self.batch_size, self.size, self.seed, self.rank, self.world = batch_size, micro_batch_size, seed, rank, world
        self.accumulation = self._micro_batches(batch_size)
        self.epoch = 0

    def _micro_batches(self, examples: int) -> int:
        return -(-examples // (self.size * self.world))

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def __len__(self) -> int:
        rest = len(self.lengths) % self.batch_size
        full = len(self.lengths) // self.batch_size * self.accumulation
        return full + (self._micro_batches(rest) if rest else 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = epoch_order(len(self.lengths), self.seed, self.epoch)
        for start in range(0, len(order), self.batch_size):
            step = order[start : start + self.batch_size]
            total = sum(self.labels[i] for i in step)
            rounds = self._micro_batches(len(step))
            parts = deal(step, self.lengths, rounds * self.world, self.size)
            for mine in parts[self.rank :: self.world]:
                yield [(i, total) for i in mine] if mine else [(step[0], -total)]


def collate(batch: Sequence[tuple[Example, int]], packed: bool = True) -> dict[str, Any]:
    """Model inputs of one micro-batch, and `targets_K` and `weight`: what a label counts in the step's mean.

    packed: one row of all tokens, with the boundaries as flash-attention names them. Otherwise padded on the left, so
    that the labels, which end every sequence, meet in the last columns; `targets_K` then has a row for each sequence.
    """
    examples, total = [example for example, _ in batch], batch[0][1]
    weight = 1.0 / total if total > 0 else 0.0
    return (_packed if packed else _padded)(examples) | {"weight": weight}


def _packed(examples: Sequence[Example]) -> dict[str, Any]:
    lengths = [len(example.input_ids) for example in examples]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.tensor([token for example in examples for token in example.input_ids])
    starts = bounds[:-1].tolist()
    keep = [start + p for start, example in zip(starts, examples, strict=True) for p in example.positions]
    boundaries = bounds.to(torch.int32)
    return {
        "input_ids": ids[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "packed_slots": _slots(lengths),
        "logits_to_keep": torch.tensor(keep),
        "targets_K": torch.tensor([target for example in examples for target in example.targets]),
    }


def _slots(lengths: Sequence[int]) -> torch.Tensor:
    """Where each packed token lies in the flattened (B, L) grid."""
    grid_BL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return grid_BL.flatten().nonzero()[:, 0]


def _padded(examples: Sequence[Example]) -> dict[str, Any]:
    longest = max(len(example.input_ids) for example in examples)
    shape = (len(examples), longest)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    positions, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        offset = longest - length
        ids[row, offset:] = torch.tensor(example.input_ids)
        mask[row, offset:] = 1
        positions[row, offset:] = torch.arange(length)
        targets[row, [offset + p for p in example.positions]] = torch.tensor(example.targets)
    columns = (targets != IGNORED).any(0).nonzero()[:, 0]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "logits_to_keep": columns,
        "targets_K": targets[:, columns],
    }
