"""Every shipped configuration composes, and its values pass validation."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from research.compose import compose, conf_dir, convert, validate
from research.config import RunConfig, check, docs
from research.sweep.grid import expand

CONF = Path(conf_dir())


def names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("task", names("task"))
def test_each_task(task):
    composed = validate(compose([f"task={task}"]))
    assert composed.task_name == task and composed.config.model.name == "micro"


@pytest.mark.parametrize("experiment", names("experiment"))
def test_each_experiment_says_its_task_and_its_command(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    raw = compose([f"+experiment={experiment}"])
    validate(raw)
    has_grid = bool(OmegaConf.select(raw, "hydra.sweeper.params"))
    package, first = text.splitlines()[:2]
    assert package == "# @package _global_", "Hydra reads its header from the first line only"
    assert first.startswith("# python -m research ") and f"+experiment={experiment}" in first, first
    assert (" -m" in first.removeprefix("# python -m")) == has_grid, "a grid is run with -m, a single cell without"
    if has_grid and composes_offline(raw):
        assert len(expand([f"+experiment={experiment}"], multirun=True).cells) > 1


def composes_offline(raw):
    return OmegaConf.select(raw, "model.path") == "embedded"


@pytest.mark.parametrize(
    ("group", "choice"),
    [(g, c) for g in ("model", "adapter", "sampler", "tracker") for c in names(g)],
)
def test_each_choice_of_a_group(group, choice):
    check(convert(compose([f"{group}={choice}"]), "zlt_sweep"))


def test_every_key_has_a_line_of_help():
    undocumented = [name for name, (field, _) in docs(RunConfig).items() if not field.metadata.get("doc")]
    assert undocumented == []


@pytest.mark.parametrize("task", names("task"))
def test_every_key_of_a_task_has_a_line_of_help(task):
    cls = type(validate(compose([f"task={task}"])).config.task)
    assert [name for name, (field, _) in docs(cls).items() if not field.metadata.get("doc")] == []
