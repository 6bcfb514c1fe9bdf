"""The imposter study on a tiny random model: every arm, and runs killed between and during co-training rounds."""

import json
import math
from pathlib import Path

import pytest
from smoke.apart import run_apart, run_until_killed
from smoke.test_processes import research

from research.cells.cell import Cell, Shared
from research.config import Optimization, RunConfig
from research.errors import StaleWeightsError
from research.tasks.imposter import settings
from research.tasks.imposter.corpus import CorpusConfig
from research.tasks.imposter.task import Imposter

MODULE = f"smoke.{Path(__file__).stem}"


def make_config(model_dir, arm="full", **changes) -> RunConfig:
    config = RunConfig(lr=3e-3, steps=4, batch_size=8, seed=3)
    config.model.path, config.model.dtype = str(model_dir), "float32"
    config.adapter.r, config.adapter.scale, config.adapter.dropout = 4, 1.0, 0.1
    config.task = Imposter(
        arm=arm, prompts=8,
        generation=settings.GenerationConfig(max_tokens=12),
        discriminator=settings.DiscriminatorConfig(
            hidden=32, layers=1, max_length=48, epochs=1, pairs=16, heldout_pairs=8, per_span=1
        ),
        cotrain=settings.CotrainConfig(every=2, pairs=8, replay=8),
        eval=settings.EvaluationConfig(documents=8, candidates=2, mauve=False),
        optim=Optimization(schedule="constant", checkpoint_seconds=0.0),
    )  # fmt: skip
    for name, value in changes.items():
        setattr(config.task, name, value)
    return config


def make_cell(config, root: Path) -> Cell:
    return Cell(
        "cell", config, root / "results", root / "scratch", Shared(), root / "cache", progress=lambda message: None
    )


def run(config, root: Path):
    return config.task.run(make_cell(config, root))


def lines(root: Path) -> list[dict]:
    """metrics.jsonl without what a clock wrote."""
    rows = [json.loads(line) for line in (root / "results/metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k and k != "step_time"} for row in rows]


def weights(root: Path) -> dict:
    from safetensors.torch import load_file

    found = {}
    for path in sorted((root / "scratch/final").rglob("*.safetensors")):
        found |= {f"{path.parent.name}/{name}": tensor for name, tensor in load_file(path).items()}
    return found


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return root, run_apart(MODULE, tiny_model_dir, root)


def test_full_arm_reports_every_measure(uninterrupted):
    root, result = uninterrupted
    for name in ("gap", "human_logit", "generated_logit", "gap_change", "degenerate_rate", "discriminator_accuracy"):
        assert result.metrics[name] is not None
    assert result.metrics["cotrain_rounds"] == 2 and [r["step"] for r in result.extra["training"]["cotrain"]] == [2, 4]
    rows = lines(root)
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all("auxiliary/behaviour_cloning" in row for row in rows)
    assert result.extra["evaluation"]["before"]["gap"]["n"] == 8


def test_the_report_of_a_run(uninterrupted, tmp_path):
    _, result = uninterrupted
    row = {"cell": {"name": "full_st4_s3-12345678", "config": {"steps": 4}}, "metrics": result.metrics, **result.extra}
    sections = Imposter().report([json.loads(json.dumps(row))], tmp_path)
    titles = " ".join(section.title for section in sections)
    for word in ("What came out", "Final evaluation", "Gap trajectory", "co-training"):
        assert word in titles
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".pdf"}


def test_what_was_trained_loads_in_the_usual_libraries(uninterrupted, tiny_model_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    final = uninterrupted[0] / "scratch/final"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), final / "generator")
    assert AutoModelForSequenceClassification.from_pretrained(final / "discriminator").config.num_labels == 1


DURING_A_ROUND = """
import research.tasks.imposter.judging as judging
whole, calls = judging.train, []

def train(discriminator, optimizer, pairs, *rest, **options):
    calls.append(1)
    if len(calls) == 3:  # stage 1 is the first training; the second co-training round is the third
        whole(discriminator, optimizer, pairs[: len(pairs) // 2], *rest, **options)
        die()
    return whole(discriminator, optimizer, pairs, *rest, **options)

judging.train = train
"""
BETWEEN_ROUNDS = """
import research.training.grpo as grpo
save = grpo.PolicyTrainer._save_checkpoint

def saved(self, *arguments):
    save(self, *arguments)
    if self.state.global_step == 3:
        die()

grpo.PolicyTrainer._save_checkpoint = saved
"""


@pytest.mark.parametrize("before", [BETWEEN_ROUNDS, DURING_A_ROUND], ids=["between_rounds", "during_a_round"])
def test_a_killed_run_ends_as_the_uninterrupted_one(uninterrupted, tiny_model_dir, tmp_path, before):
    import torch

    run_until_killed(MODULE, tiny_model_dir, tmp_path, before)
    assert [path.name for path in (tmp_path / "scratch/policy").glob("step-*")] == ["step-00000003"]
    resumed = run_apart(MODULE, tiny_model_dir, tmp_path)
    root, result = uninterrupted
    assert lines(tmp_path) == lines(root)
    assert resumed.metrics == result.metrics
    ours, theirs = weights(tmp_path), weights(root)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_swallowed_syncs_are_caught_unless_the_proof_is_off(tiny_model_dir, tmp_path):
    config = make_config(tiny_model_dir, arm="sync_disabled")
    with pytest.raises(StaleWeightsError, match="does not hold the trainer's weights"):
        run(config, tmp_path / "checked")
    config.sampler.check = False
    result = run(config, tmp_path / "unchecked")
    # The generator never changed, so the same seeds write the same spans: the gap is flat to the last digit.
    assert result.metrics["gap"] == result.metrics["gap_before"] and result.metrics["gap_change"] == 0.0


@pytest.mark.parametrize("arm", ["rl_only", "bc_only"])
def test_arms_train_with_what_they_name(tiny_model_dir, tmp_path, arm):
    run(make_config(tiny_model_dir, arm=arm), tmp_path)
    rows = lines(tmp_path)
    assert all(("auxiliary/behaviour_cloning" in row) == (arm == "bc_only") for row in rows)
    assert all((row["reward_std"] == 0) == (arm == "bc_only") for row in rows)


@pytest.mark.parametrize(
    ("changes", "chance"),
    [({"loss": "margin", "margin": 2.0}, 2.0), ({"reward_from": "sentences"}, 2 * math.log(2))],
    ids=["margin", "sentences"],
)
def test_discriminators_that_the_source_lists_as_next(tiny_model_dir, tmp_path, changes, chance):
    config = make_config(tiny_model_dir)
    for name, value in changes.items():
        setattr(config.task.discriminator, name, value)
    config.task.cotrain.part = "head"
    result = run(config, tmp_path)
    rows = lines(tmp_path)
    assert (
        all(row["reward_std"] > 0 for row in rows) and result.extra["training"]["cotrain"][0]["chance_loss"] == chance
    )


def test_fewer_targets_and_windows(tiny_model_dir, tmp_path):
    config = make_config(tiny_model_dir, corpus=CorpusConfig(form="window", span_tokens=8, prefix_tokens=12))
    config.adapter.targets = ["o_proj", "gate_proj"]
    run(config, tmp_path)
    trained = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights(tmp_path) if ".lora_" in name}
    assert trained == {"o_proj", "gate_proj"}


def test_two_processes_train_as_one(tiny_model_dir, tmp_path):
    words = [
        "task=imposter", "model.name=tiny", f"model.path={tiny_model_dir}", "lr=3e-3", "steps=4", "batch_size=8",
        "seed=3", "adapter.r=4", "adapter.dropout=0", "task.prompts=8", "task.generation.max_tokens=12",
        "task.discriminator.hidden=32", "task.discriminator.layers=1", "task.discriminator.max_length=48",
        "task.same_lengths=false", "task.discriminator.epochs=1", "task.discriminator.pairs=16", "task.discriminator.heldout_pairs=8",
        "task.discriminator.per_span=1", "task.cotrain.every=2", "task.cotrain.pairs=8", "task.cotrain.replay=8",
        "task.eval.documents=8", "task.eval.candidates=2", "task.eval.mauve=false", "task.save_at=[2]",
    ]  # fmt: skip
    found = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        root.mkdir()
        research(root, *words, processes=processes)
        (result,) = root.rglob("run_result.json")
        steps = [json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines()]
        found.append((json.loads(result.read_text())["metrics"], steps))
        assert len(list(root.rglob("checkpoints/step_2/generator/adapter_model.safetensors"))) == 1
    (one, steps), (two, steps_of_two) = found
    assert [row["step"] for row in steps_of_two] == [1, 2, 3, 4]
    assert len({row["gap"] for row in steps}) == 4 and one["gap"] != one["gap_before"]
    for name in ("gap", "human_logit", "grad_norm", "reward", "auxiliary/behaviour_cloning", "update_norm/lora_B"):
        assert [row[name] for row in steps_of_two] == pytest.approx([row[name] for row in steps], rel=1e-3), name
    for name in ("gap_before", "gap", "generated_logit", "human_logit", "discriminator_accuracy"):
        assert two[name] == pytest.approx(one[name], rel=1e-3), name
    cotrained = [[row["cotrain/loss"] for row in part if "cotrain/loss" in row] for part in (steps, steps_of_two)]
    assert len(cotrained[0]) == 2 and cotrained[1] == pytest.approx(cotrained[0], rel=1e-3)
