"""Factors through the buffer that workers in other processes read from."""

from __future__ import annotations

import torch

from research.models.deltas import WeightDelta
from research.sampling.staging import Staging, received


def make_deltas(rank, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    shapes = {"q_proj": (8, 6), "down_proj": (6, 14)}
    return [WeightDelta(n, draw(o, i), draw(o, rank), draw(rank, i), 0.5) for n, (o, i) in shapes.items()]


def test_every_rank_is_given_the_buffer_once_and_the_factors_at_every_sync():
    staging, kept = Staging(ranks=2), None
    for rank, seed in ((3, 0), (3, 1), (2, 2), (5, 3)):
        deltas = make_deltas(rank, seed)
        shipment = staging.fill(deltas)
        grown = kept is None or kept.numel() < sum(d.left_OK.numel() + d.right_KI.numel() for d in deltas)
        assert len(shipment.handles) == (2 if grown else 0)
        assert grown or staging.buffer is kept
        kept = staging.buffer
        assert all(handle != shipment.handles[0] for handle in shipment.handles[1:])  # a share for each reader
        for sent, got in zip(deltas, received(shipment, kept), strict=True):
            assert (got.module, got.scale) == (sent.module, sent.scale)
            assert torch.equal(got.left_OK, sent.left_OK.float()) and torch.equal(got.right_KI, sent.right_KI.float())


def test_the_trainers_own_factors_are_not_shared():
    deltas = make_deltas(3, 0)
    Staging(ranks=1).fill(deltas)
    assert not any(part.is_shared() for delta in deltas for part in (delta.left_OK, delta.right_KI, delta.base_OI))
