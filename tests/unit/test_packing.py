"""Batching worked out by hand."""

from __future__ import annotations

import pytest

from research.training.packing import Example, StepSampler, collate, deal, epoch_order, prepare


def test_rows_are_cut_after_the_last_label():
    assert prepare({"input_ids": [7, 8, 9, 10, 11], "labels": [-100, -100, 9, -100, -100]}) == Example([7, 8], [1], [9])
    # A label on the first token has nothing before it that could predict it.
    assert prepare({"input_ids": [7, 8], "labels": [7, -100]}) is None
    assert prepare({"input_ids": [7, 8, 9], "labels": [7, 8, 9]}) == Example([7, 8], [0, 1], [8, 9])


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 input_ids but 1 labels"):
        prepare({"input_ids": [7, 8], "labels": [7]})


def test_deal_balances_tokens_within_the_size():
    lengths = [10, 1, 2, 9, 3, 7]
    parts = deal(range(6), lengths, parts=2, size=3)
    assert sorted(i for part in parts for i in part) == list(range(6))
    # 10 | 9, then 7 to the lighter, 3 and 2 to the other, which is then full.
    assert parts == [[0, 4, 2], [3, 5, 1]]
    assert deal([0, 1], lengths, parts=3, size=2) == [[0], [1], []]


def examples(count):
    return [Example(list(range(5, 8 + i % 7)), [1 + i % 2], [i]) for i in range(count)]


def test_a_steps_examples_depend_on_seed_and_epoch_only():
    def steps(micro, world):
        ranks = [StepSampler(examples(37), 8, micro, seed=5, rank=r, world=world) for r in range(world)]
        for rank in ranks:
            rank.epoch = 3
        accumulation = ranks[0].accumulation
        rows = [list(rank) for rank in ranks]
        assert {len(r) for r in rows} == {len(ranks[0])}
        found = []
        for start in range(0, len(rows[0]), accumulation):
            block = [key for r in rows for micro_batch in r[start : start + accumulation] for key in micro_batch]
            found.append(sorted(i for i, total in block if total > 0))
            assert {total for _, total in block if total > 0} == {len(found[-1])}  # one label an example
        return found

    order = epoch_order(37, seed=5, epoch=3)
    plain = [sorted(order[i : i + 8]) for i in range(0, 37, 8)]
    assert steps(8, 1) == plain
    assert steps(3, 1) == plain
    assert steps(2, 2) == plain
    assert steps(1, 4) == plain
    assert epoch_order(37, 5, 4) != order
    assert epoch_order(37, 6, 3) != order


def test_packed_and_padded_batches_by_hand():
    batch = [(Example([3, 4, 5], [0, 2], [4, 6]), 3), (Example([8, 9], [1], [7]), 3)]
    packed = collate(batch)
    assert packed["input_ids"].tolist() == [[3, 4, 5, 8, 9]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert packed["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert packed["packed_slots"].tolist() == [0, 1, 2, 3, 4]
    assert packed["logits_to_keep"].tolist() == [0, 2, 4]
    assert packed["targets_K"].tolist() == [4, 6, 7]
    assert packed["weight"] == pytest.approx(1 / 3)
    padded = collate(batch, packed=False)
    assert padded["input_ids"].tolist() == [[3, 4, 5], [0, 8, 9]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert padded["position_ids"].tolist() == [[0, 1, 2], [0, 0, 1]]
    assert padded["logits_to_keep"].tolist() == [0, 2]
    assert padded["targets_K"].tolist() == [[4, 6], [-100, 7]]
    assert collate([(batch[0][0], -3)])["weight"] == 0.0
