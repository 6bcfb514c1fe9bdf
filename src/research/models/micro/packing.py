"""Documents as token rows: several whole documents share a row, and none sees another.

Shapes: B rows, T tokens a row. A batch is a dict of `input_ids_BT`, `position_ids_BT` (from 0 in each document),
`labels_BT` (the next token; padding and a document's last token are left out by weight 0), `weights_BT` and
`document_BT` (-1: padding).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from research.models.micro.corpus import Document

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


@dataclass
class Tokens:
    """Tokenised documents, end to end. weights: 1 where the token is taught, less where it is only read."""

    ids: np.ndarray
    weights: np.ndarray
    starts: np.ndarray  # of each document, and the end of the last

    def __len__(self) -> int:
        return len(self.starts) - 1


def tokenize(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, context: int) -> Tokens:
    """Encode each segment apart, as prompts and replies are at inference; longer documents are cut at the context."""
    segments = [segment for document in documents for segment in document.segments]
    tokenizer.backend_tokenizer.no_padding()  # a padded call of the tokenizer leaves its padding switched on
    encoded = [e.ids for e in tokenizer.backend_tokenizer.encode_batch_fast([text for text, _ in segments])]
    ids: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    starts = [0]
    position = 0
    for document in documents:
        parts = encoded[position : position + len(document.segments)]
        position += len(parts)
        document_ids = np.concatenate([np.array(part, np.uint16) for part in parts])[:context]
        document_weights = [weight for _, weight in document.segments]
        ids.append(document_ids)
        weights.append(np.repeat(np.array(document_weights, np.float16), [len(part) for part in parts])[:context])
        starts.append(starts[-1] + len(document_ids))
    return Tokens(np.concatenate(ids), np.concatenate(weights), np.array(starts, np.int64))


def pack(tokens: Tokens, chosen: np.ndarray, width: int) -> list[list[int]]:
    """Rows of document numbers whose lengths sum to at most `width`, filled in the order given."""
    rows: list[list[int]] = []
    row: list[int] = []
    room = width
    lengths = np.diff(tokens.starts)
    for document in chosen.tolist():
        length = int(lengths[document])
        if length > room and row:
            rows.append(row)
            row, room = [], width
        row.append(document)
        room -= length
    return [*rows, row] if row else rows


def epochs(
    tokens: Tokens, width: int, rows: int, rng: np.random.Generator, shorter: int, longer: int
) -> Iterator[list[list[int]]]:
    """Batches of `rows` packed rows, endlessly, over documents longer than `shorter` and at most `longer` tokens."""
    lengths = np.diff(tokens.starts)
    chosen = np.flatnonzero((lengths > shorter) & (lengths <= longer))
    if not len(chosen):
        return
    while True:
        packed = pack(tokens, rng.permutation(chosen), width)
        packed = [packed[i % len(packed)] for i in range(max(rows, len(packed) // rows * rows))]
        for start in range(0, len(packed), rows):
            yield packed[start : start + rows]


def steps_between_long_batches(tokens: Tokens, width: int, rows: int, context: int, long_rows: int) -> int:
    """How many batches of short rows go with each batch of long rows, so that all documents are seen as often."""
    lengths = np.diff(tokens.starts)
    short = lengths[lengths <= width].sum() / (rows * width)
    long = lengths[lengths > width].sum() / (long_rows * context)
    return max(1, round(short / max(long, 1e-9))) if long else 1


def batch(tokens: Tokens, rows: Sequence[Sequence[int]], width: int, pad: int) -> dict[str, torch.Tensor]:
    """The tensors of some packed rows, on the CPU."""
    import torch

    shape = (len(rows), width)
    ids, labels = np.full(shape, pad, np.int64), np.full(shape, pad, np.int64)
    positions, document = np.zeros(shape, np.int64), np.full(shape, -1, np.int32)
    weights = np.zeros(shape, np.float32)
    for r, row in enumerate(rows):
        at = 0
        for number, which in enumerate(row):
            start, end = tokens.starts[which], tokens.starts[which + 1]
            n = int(end - start)
            ids[r, at : at + n] = tokens.ids[start:end]
            labels[r, at : at + n - 1] = tokens.ids[start + 1 : end]
            weights[r, at : at + n - 1] = tokens.weights[start + 1 : end]
            positions[r, at : at + n] = np.arange(n)
            document[r, at : at + n] = number
            at += n
    arrays = {
        "input_ids_BT": ids,
        "labels_BT": labels,
        "position_ids_BT": positions,
        "document_BT": document,
        "weights_BT": weights,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def attention_mask(document_BT: torch.Tensor) -> torch.Tensor:
    """Boolean mask (B, 1, T, T): each token sees its own document up to itself."""
    import torch

    t = document_BT.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=document_BT.device).tril()
    return (causal & (document_BT[:, :, None] == document_BT[:, None, :]))[:, None]
