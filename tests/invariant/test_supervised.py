"""What training computes does not depend on how it is computed.

Tolerances: the same sums in another order, in float32. With two layers of width 64 and losses near 6 nats, one rounding
is 4e-7 nats, and gradients agree to about 1e-6 of their norm; 1e-5 leaves room for a few hundred roundings, and no room
for an error in a mask, a position or a weight, which shows in the second digit.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from research.config import AdapterConfig, ModelConfig, Optimization
from research.models.adapters import attach_lora
from research.models.base import load_base
from research.training.attention import packed
from research.training.losses import label_loss
from research.training.packing import collate, prepare
from research.training.supervised import train


def make_rows(count=13, seed=0, vocab=512):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        length = int(torch.randint(6, 40, (), generator=generator))
        ids = torch.randint(5, vocab, (length,), generator=generator).tolist()
        kept = {length - 3, length - 2 - i % 2, 2 + i % 3}
        rows.append({"input_ids": ids, "labels": [t if p in kept else -100 for p, t in enumerate(ids)]})
    return rows


def make_policy(directory, dropout=0.0, freeze_a=False, shard=False):
    base = load_base(ModelConfig(path=str(directory), shard=shard), device=None if shard else "cpu")
    policy = attach_lora(base, AdapterConfig(dropout=dropout, freeze_a=freeze_a), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    return policy


def plain_loss(policy, rows):
    """One row at a time, all logits, no tricks: sum of the labels' losses over their number."""
    total, count = 0.0, 0
    for row in rows:
        logits = policy(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total = total + cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total / count


def gradients(policy):
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return found


@pytest.mark.parametrize("pack", [True, False])
def test_loss_and_gradients_equal_the_plain_computation(tiny_model_dir, pack):
    policy = make_policy(tiny_model_dir).train()
    rows = make_rows()
    expected = plain_loss(policy, rows)
    expected.backward()
    wanted = gradients(policy)
    examples = [prepare(row) for row in rows]
    total = sum(len(e.targets) for e in examples)
    batch = collate([(e, total) for e in examples], packed=pack)
    if pack:
        with packed(policy.get_base_model()):
            loss = label_loss(policy, batch)
    else:
        loss = label_loss(policy, batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    got = gradients(policy)
    assert got.keys() == wanted.keys()
    scale = torch.cat([g.flatten() for g in wanted.values()]).norm()
    for name, value in wanted.items():
        assert (got[name] - value).norm() <= 1e-5 * scale, name


def run(directory, tmp_path, rows=None, name="run", epochs=2, batch_size=8, dropout=0.0, lr=1e-3, **optim):
    policy = make_policy(directory, dropout)
    log = []
    result = train(
        policy, rows or make_rows(), Optimization(**optim), lr=lr, epochs=epochs, batch_size=batch_size, seed=7,
        scratch=tmp_path / name, log=lambda step, metrics: log.append({"step": step, **metrics}),
    )  # fmt: skip
    trained = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
    return result, log, trained


def test_accumulated_equals_whole_batch(tiny_model_dir, tmp_path):
    whole, whole_log, whole_weights = run(tiny_model_dir, tmp_path, name="whole")
    parts, parts_log, parts_weights = run(tiny_model_dir, tmp_path, name="parts", micro_batch_size=3)
    assert whole.steps == parts.steps == 4
    assert whole.tokens == parts.tokens
    for a, b in zip(whole_log, parts_log, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    # Adam divides by the gradient's own size, so entries with gradients near zero may differ by a fraction of lr =
    # 1e-3.
    worst = max(float((whole_weights[n] - parts_weights[n]).abs().mean()) for n in whole_weights)
    assert worst < 1e-6


def test_logged_loss_is_the_steps_mean_over_labels(tiny_model_dir, tmp_path):
    rows = make_rows(8)
    _, log, _ = run(tiny_model_dir, tmp_path, rows=rows, epochs=1)
    assert log[0]["loss"] == pytest.approx(float(plain_loss(make_policy(tiny_model_dir), rows).detach()), abs=1e-5)


def test_training_lowers_the_loss_with_the_schedule_asked_for(tiny_model_dir, tmp_path):
    result, log, _ = run(tiny_model_dir, tmp_path, epochs=10, lr=5e-3, dropout=0.05, warmup_ratio=0.1)
    assert log[-1]["loss"] < log[0]["loss"] / 2
    assert result.loss == pytest.approx(sum(row["loss"] for row in log) / 20)
    rates = [row["learning_rate"] for row in log]
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(2.5e-3)
    assert max(rates) == pytest.approx(5e-3)
    assert rates[11] == pytest.approx(2.5e-3)  # cosine's half-way point between step 2 and step 20


def test_gradient_checkpointing_changes_nothing(tiny_model_dir, tmp_path):
    _, plain, _ = run(tiny_model_dir, tmp_path, name="plain", epochs=1, dropout=0.05)
    _, checkpointed, _ = run(
        tiny_model_dir, tmp_path, name="checkpointed", epochs=1, dropout=0.05, gradient_checkpointing=True
    )
    assert [row["loss"] for row in plain] == pytest.approx([row["loss"] for row in checkpointed], abs=1e-6)


def test_second_call_returns_the_finished_run(tiny_model_dir, tmp_path):
    first, log, weights = run(tiny_model_dir, tmp_path)
    again, second_log, same = run(tiny_model_dir, tmp_path)
    assert log
    assert second_log == []
    assert (again.loss, again.steps, again.tokens) == (first.loss, first.steps, first.tokens)
    assert all(torch.equal(weights[n], same[n]) for n in weights)


def test_rows_without_labels_train_nothing(tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match="no row of the dataset has a label"):
        run(tiny_model_dir, tmp_path, rows=[{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}])
