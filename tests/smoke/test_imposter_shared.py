"""The shared-model variant on a tiny random model: both judges, a killed run, traces, and the two learning rates."""

import json
from pathlib import Path

import pytest
from smoke.apart import run_apart, run_until_killed

from research.cells.cell import Cell, Shared
from research.config import Optimization, RunConfig
from research.tasks.imposter.corpus import CorpusConfig
from research.tasks.imposter.shared_task import ImposterShared

MODULE = f"smoke.{Path(__file__).stem}"


def make_config(model_dir, judge="head", **changes) -> RunConfig:
    config = RunConfig(lr=1e-3, steps=3, batch_size=4, seed=3)
    config.model.path, config.model.dtype = str(model_dir), "float32"
    config.adapter.r, config.adapter.scale, config.adapter.dropout = 4, 1.0, 0.0
    config.task = ImposterShared(
        judge=judge, prompts=8, reasoning_tokens=6, last=10, buckets=2, d_lr=1e-3,
        corpus=CorpusConfig(form="window", span_tokens=12, prefix_tokens=12),
        optim=Optimization(betas=[0.95, 0.95], schedule="linear", warmup_ratio=0.0, checkpoint_seconds=0.0),
    )  # fmt: skip
    for name, value in changes.items():
        setattr(config.task, name, value)
    return config


def run(config, root: Path):
    return config.task.run(
        Cell(
            "cell", config, root / "results", root / "scratch", Shared(), root / "cache", progress=lambda message: None
        )
    )


def lines(root: Path) -> list[dict]:
    rows = [json.loads(line) for line in (root / "results/metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k and k != "step_time"} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return root, run_apart(MODULE, tiny_model_dir, root)


def test_both_tasks_train(uninterrupted):
    root, _ = uninterrupted
    rows = lines(root)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["judge/loss"] > 0 and row["judge/grad_norm"] > 0 and 0 <= row["unclosed_rate"] <= 1 for row in rows)


IN_THE_JUDGES_TURN = """
import research.tasks.imposter.shared_judge as judges
learn = judges.HeadJudge.learn

def halfway(self, samples, sampler, step):
    if step == 3:
        learn(self, samples[: len(samples) // 2 + 1], sampler, step)
        die()
    return learn(self, samples, sampler, step)

judges.HeadJudge.learn = halfway
"""


def test_a_run_killed_in_the_judges_turn_ends_as_the_uninterrupted_one(uninterrupted, tiny_model_dir, tmp_path):
    import torch

    run_until_killed(MODULE, tiny_model_dir, tmp_path, IN_THE_JUDGES_TURN)
    assert [path.name for path in (tmp_path / "scratch/policy").glob("step-*")] == ["step-00000002"]
    resumed = run_apart(MODULE, tiny_model_dir, tmp_path)
    root, result = uninterrupted
    assert lines(tmp_path) == lines(root) and resumed.metrics == result.metrics
    heads = [torch.load(r / "scratch/final/discriminator_head.pt", weights_only=True) for r in (root, tmp_path)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_the_reasoning_judge_learns_a_value(tiny_model_dir, tmp_path):
    run(make_config(tiny_model_dir, judge="reasoning"), tmp_path)
    for row in lines(tmp_path):
        assert 0 < row["judge/value"] < 1 and row["judge/value_loss"] >= 0 and 0 <= row["judge/accuracy"] <= 1


def test_the_judge_moves_the_adapter_at_its_own_rate(tiny_model_dir):
    import torch

    from research.models.adapters import attach_lora
    from research.models.base import load_base
    from research.tasks.imposter.shared_judge import HeadJudge, Sample

    samples = [Sample("The tide", " rises twice a day.", True), Sample("The tide", " qz vvw qz", False)]
    moved = {}
    for d_lr in (1e-3, 1e-2):
        config = make_config(tiny_model_dir)
        base = load_base(config.model)
        policy = attach_lora(base, config.adapter, 0)
        judge = HeadJudge(policy, base.tokenizer, d_lr, 1.0, (0.95, 0.95), 10, 0)
        before = [p.detach().clone() for p in judge.adapter]
        first = judge.learn(samples, None, 1)["judge/loss"]
        moved[d_lr] = max(float((p - q).abs().max()) for p, q in zip(judge.adapter, before, strict=True))
        assert all(p.grad is None for p in judge.adapter)  # the generator's optimizer sees nothing of it
        for step in range(8):
            last = judge.learn(samples, None, step)["judge/loss"]
        assert last < first
    assert moved[1e-2] == pytest.approx(10 * moved[1e-3], rel=1e-3)  # Adam's first step is its learning rate
    assert torch.isfinite(torch.tensor(list(moved.values()))).all()


@pytest.fixture(scope="module")
def traces(tiny_model_dir, tmp_path_factory):
    """What a run exported, as `datasets` loads it, and what the run says of it."""
    import datasets

    root = tmp_path_factory.mktemp("traces")
    result = run(make_config(tiny_model_dir, export=12), root)
    found = datasets.load_dataset("json", data_files=str(root / "results/traces.jsonl"), split="train")
    return found, result.extra["exported"]


def test_traces_are_kept_when_they_help_and_load_as_a_dataset(traces):
    found, exported = traces
    assert exported["sampled"] == 12 and 0 < exported["kept"] < 12 and exported["mean_gain"] > 0
    assert len(found) == exported["kept"] and min(found["gain"]) > 0
    assert found[0]["completion"][0]["content"].startswith("<think>\n")


def test_a_supervised_run_on_the_traces_learns_them(traces, tiny_model_dir, tmp_path):
    from trl import SFTConfig, SFTTrainer

    found, _ = traces
    arguments = SFTConfig(
        str(tmp_path), max_steps=12, per_device_train_batch_size=len(found), learning_rate=1e-2, logging_steps=1,
        use_cpu=True, bf16=False, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(str(tiny_model_dir), arguments, train_dataset=found)
    row = trainer.train_dataset[0]
    learnt = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    assert trainer.processing_class.decode(learnt).startswith(found[0]["completion"][0]["content"])
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]


def test_completions_are_paid_gated_and_remembered(tiny_model_dir):
    from transformers import AutoTokenizer

    from research.tasks.imposter.corpus import Span
    from research.tasks.imposter.shared_run import SharedReward
    from research.training.rollouts import Group, Prompt, Rollout

    class Half:
        def rewards(self, samples, sampler, step):
            assert all(not sample.real for sample in samples)
            return [0.5] * len(samples)

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    task = make_config(tiny_model_dir, length_tolerance=0.5).task
    reward = SharedReward(task, Half(), None, tokenizer)
    truth = " and the sea falls"
    texts = [
        "hm\n</think>\nand the sea rises",
        "</think>\nno",
        "never closed",
        "</think>\n  ",
        "</think>\n" + "long " * 40,
    ]
    rollouts = [Rollout([1], [0.0], text, "stop") for text in texts]
    scores = reward([Group(0, Prompt([1], {"span": Span("d", "The moon pulls", truth)}), rollouts)], step=1)
    assert list(scores.rewards[0]) == [0.5, 0.0, 0.0, 0.0, 0.0]  # only the first has the truth's length
    assert scores.metrics["p_real"] == 0.5 and scores.metrics["gated_rate"] == pytest.approx(2 / 5)
    assert scores.metrics["unclosed_rate"] == scores.metrics["empty_rate"] == pytest.approx(1 / 5)
    assert [s.real for s in reward.samples] == [False, False, False, True]
    assert reward.samples[0].prefix + reward.samples[0].completion == "The moon pulls and the sea rises"
    assert reward.written[0] == (truth, "and the sea rises") and len(reward.written) == 3
    other = SharedReward(task, Half(), None, tokenizer)
    other.load_state_dict(reward.state_dict())
    assert other.written == reward.written


def test_mauve_of_the_last_sequences(tiny_model_dir):
    from research.models.base import load_base
    from research.tasks.imposter.shared_run import measure

    config = make_config(tiny_model_dir)
    base = load_base(config.model)
    truths = [f"The {n}th boat sails" for n in range(20)]
    same = measure(config.task, base, [(t, t) for t in truths])
    other = measure(config.task, base, [(t, "qz vvw " * (3 + n)) for n, t in enumerate(truths)])
    assert same["mauve"] == pytest.approx(1.0) and other["mauve"] < 0.2 and same["sequences"] == 20
    assert measure(config.task, base, [("a", "b")])["mauve"] is None
