"""A command that cannot be fails before any work, and says what was meant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.cli import lift_multirun
from research.errors import ConfigurationError
from research.sweep.grid import expand

PLUGIN = str(Path(__file__).parents[1] / "conf_plugin")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=con"], "Did you mean 'coin'?"),
        (["task=zlt_swep"], "Did you mean 'zlt_sweep'?"),
        (["task=coin", "lr=abc"], "lr=abc is not a number"),
        (["task=coin", "seed=1.5"], "seed=1.5 is not a whole number"),
        (["task=coin", "steps=0"], "steps=0 is too small"),
        (["task=coin", "steps=null"], "needs steps"),
        (["task=coin", "epochs=3"], "does not use it"),
        (["task=coin", "constraint=erase"], "does not use it"),
        (["task=coin", "model.nmae=x"], "Did you mean 'model.name'?"),
        (["task=coin", "task.bais=0.1"], "Did you mean 'task.bias'?"),
        (["task=coin", "+task.bais=0.1"], "Did you mean 'task.bias'?"),
        (["task=coin", "task.bias=7"], "at most 1"),
        (["task=coin", "task.bias=nan"], "not a finite number"),
        (["task=coin", "sampler.kind=vlm"], "Did you mean 'vllm'?"),
        (["task=coin", "steps"], "key=value"),
        (["task=coin", "+colour=red"], "no key colour"),
        (["task=coin", "steps=1,2"], "add -m"),
    ],
)
def test_a_mistake_is_named_with_the_nearest_valid_name(words, said):
    with pytest.raises(ConfigurationError, match="(?s)" + said.replace("?", r"\?").replace("+", r"\+")):
        expand(words, multirun=False, config_dir=PLUGIN)


@pytest.mark.parametrize("task", ["reward_hack", "imposter", "imposter_shared"])
def test_a_policy_cannot_train_in_another_precision_than_it_is_sampled_in(task):
    with pytest.raises(ConfigurationError, match=r"sampled in float32; set model\.dtype=bfloat16"):
        expand([f"task={task}", "task.optim.bf16=true"], multirun=False)


def test_true_and_false_are_names_where_names_are_chosen():
    words = ["task=zlt_sweep", "lr=1e-6", "epochs=1"]
    (plain,), (quoted,) = (
        expand([*words, f"task.optim.bf16={value}"], multirun=False).cells for value in ("false", '"false"')
    )
    assert plain.config.task.optim.bf16 == "false" and plain.digest == quoted.digest


def test_one_bad_grid_value_refuses_the_whole_grid():
    with pytest.raises(ConfigurationError, match=r"task\.bias=3"):
        expand(["task=coin", "task.bias=0.1,3"], multirun=True, config_dir=PLUGIN)


def test_the_last_axis_varies_fastest_and_names_read_well():
    grid = expand(["task=coin", "task.bias=0.1,0.9", "steps=5,10"], multirun=True, config_dir=PLUGIN)
    labels = [cell.name.rpartition("-")[0] for cell in grid.cells]
    assert labels == ["bias0.1_n5_s42", "bias0.1_n10_s42", "bias0.9_n5_s42", "bias0.9_n10_s42"]
    assert grid.axes == {"task.bias": ["0.1", "0.9"], "steps": ["5", "10"]}


@pytest.mark.parametrize("word", ["++task.bias=0.5", "++steps=7", "~task.bias"])
def test_an_axis_of_an_experiment_is_replaced_in_one_spelling_only(word):
    with pytest.raises(ConfigurationError, match="the experiment sweeps"):
        expand(["+experiment=coin_grid", word], multirun=True, config_dir=PLUGIN)


def test_a_grid_cell_is_the_cell_that_the_same_single_run_makes():
    grid = expand(["task=coin", "task.bias=0.1,0.9", "steps=5,10"], multirun=True, config_dir=PLUGIN)
    alone = expand(["task=coin", "task.bias=0.9", "steps=5"], multirun=False, config_dir=PLUGIN)
    assert grid.cells[2].digest == alone.cells[0].digest
    assert len({cell.digest for cell in grid.cells}) == 4


@pytest.mark.parametrize("words", [["a=1", "-m", "b=2"], ["-m", "a=1", "b=2"], ["a=1", "b=2", "--multirun"]])
def test_multirun_may_stand_anywhere(words):
    assert lift_multirun(words) == ["--multirun", "a=1", "b=2"]


def test_configuration_and_help_need_no_torch():
    code = (
        "import sys; from research.sweep.grid import expand; from research.help import help_text;"
        f"expand(['task=coin'], False, {PLUGIN!r}); help_text([], {PLUGIN!r});"
        "print(sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
