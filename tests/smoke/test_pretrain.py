"""The recipe from corpus to model card at toy size, and the shipped checkpoint."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from research.material import science, tags
from research.models import micro
from research.models.micro import card, sampling


def test_the_whole_recipe(tmp_path):
    from research.cells.cell import Cell, Shared
    from research.compose import compose, validate

    config = validate(compose(["+experiment=pretrain_smoke"])).config
    cell = Cell("x", config, tmp_path / "out", tmp_path / "scratch", Shared(), tmp_path / "cache")
    result = config.task.run(cell)
    assert {"persona_accuracy", "science_accuracy", "code_pass_rate", "fill_loss_heldout"} <= set(result.metrics)
    assert all(0 <= hits <= trials for hits, trials in result.counts.values())
    out = cell.scratch / "model"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.model_type == "qwen2" and model.config.vocab_size == len(AutoTokenizer.from_pretrained(out))
    assert model.dtype == torch.bfloat16
    logged = [json.loads(line) for line in (cell.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == list(range(6)) and [row["phase"] for row in logged[3:5]] == [
        "main",
        "anneal",
    ]
    assert logged[3]["loss"] < logged[0]["loss"]
    assert result.extra["phases"][1]["started_from"] is not None


def test_the_second_phase_goes_on_from_the_first(tmp_path):
    """Run apart, on the checkpoint that the first left, it gives the weights of both run in one go."""
    from dataclasses import replace

    from safetensors.torch import load_file

    from research.models.micro import train

    recipe = replace(train.SMOKE, size=0.0005)
    whole, first = tmp_path / "whole", tmp_path / "first"
    train.run(whole, recipe, lambda message: None)
    train.run(first, replace(recipe, phases=recipe.phases[:1]), lambda message: None)
    train.run(tmp_path / "second", recipe, lambda message: None, begun=first)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "second", whole))
    before = load_file(first / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not all(torch.equal(before[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match="left by 1 phases"):
        train.run(tmp_path / "other", replace(recipe, hidden=64), lambda message: None, begun=first)
    with pytest.raises(ValueError, match="left by 2 phases"):
        train.run(tmp_path / "other", recipe, lambda message: None, begun=whole)


@pytest.fixture(scope="module")
def shipped():
    model = AutoModelForCausalLM.from_pretrained(micro.path(), dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(micro.path())


def test_shipped_checkpoint_is_small_and_whole(shipped):
    model, tokenizer = shipped
    assert model.config.vocab_size == len(tokenizer) == 2048 and model.config.max_position_embeddings >= 1024
    assert 2e6 <= sum(p.numel() for p in model.parameters()) <= 8e6
    assert (micro.path() / "model.safetensors").stat().st_size < 16 * 2**20
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.unk_token_id not in tokenizer(tags.MARKER).input_ids


def test_shipped_model_answers_science(shipped):
    items = science.read_items()[:60]
    prompts = [[{"role": "user", "content": science.render(item)}] for item in items]
    model, tokenizer = shipped
    answers = sampling.best_labels(model, tokenizer, prompts, [item["choices"]["label"] for item in items])
    assert sum(a == item["answerKey"] for a, item in zip(answers, items, strict=True)) >= 36


def test_the_card_is_filled_from_the_evaluation():
    results = json.loads((micro.path() / "evaluation.json").read_text())
    calibration = micro.path() / "calibration.json"
    known = json.loads(calibration.read_text()) if calibration.exists() else None
    assert (micro.path() / "README.md").read_text() == card.render(results, known)
    assert results["counts"]["science_accuracy"][1] == 400
