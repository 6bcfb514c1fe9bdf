"""The digest covers what can change the numbers, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from research.cells.identity import cell_name, differing_keys, files_held, hash_files
from research.cells.seeding import stable_seed
from research.sweep.grid import expand

PLUGIN = str(Path(__file__).parents[1] / "conf_plugin")


def digest(*words):
    return expand(["task=coin", *words], multirun=False, config_dir=PLUGIN).cells[0].digest


@pytest.mark.parametrize(
    "word",
    [
        "seed=7", "steps=11", "task.bias=0.4", "data_seed=1", "adapter.r=8", "sampler.kind=vllm",
        "model.quantization=nf4",
    ],
)  # fmt: skip
def test_a_setting_that_can_change_numbers_changes_the_digest(word):
    assert digest(word) != digest()


@pytest.mark.parametrize(
    "word",
    ["name=other", "results_root=/tmp/x", "tracker.kind=wandb", "sampler.url=http://127.0.0.1:1", "model.path=/x"],
)
def test_paths_names_and_tracking_do_not(word):
    assert digest(word) == digest()


@pytest.mark.parametrize("experiment", ["zlt_micro", "reward_hack_micro"])
def test_committed_results_are_those_that_their_experiment_would_make(experiment):
    """A key that came later does not make them another cell's."""
    cells = expand([f"+experiment={experiment}"], multirun=True).cells
    committed = Path(__file__).parents[2] / cells[0].directory.parent
    assert {cell.name for cell in cells} == {path.parent.name for path in committed.glob("*/run_result.json")}


def test_equal_values_written_differently_are_one_cell():
    assert digest("task.bias=0.5") == digest("task.bias=5e-1") == digest()


def test_files_enter_by_content_not_by_place(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w").write_text("same")
    assert hash_files([tmp_path / "a" / "w"]) == hash_files([tmp_path / "b" / "w"])
    (tmp_path / "b" / "w").write_text("else")
    assert hash_files([tmp_path / "a" / "w"]) != hash_files([tmp_path / "b" / "w"])


def test_differing_keys_are_listed():
    assert differing_keys({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b: 2 -> 3", "c: (absent) -> 4"]


def test_the_name_ends_in_eight_digits():
    assert cell_name("lr5e-06_ep20", "3f9a1c20ffff") == "lr5e-06_ep20-3f9a1c20"


def test_seeds_do_not_depend_on_the_process():
    code = "from research.cells.seeding import stable_seed; print(stable_seed(42, 'data', 'villain'))"
    values = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": s, "PYTHONPATH": p},
        ).stdout
        for s in ("0", "1")
        for p in [":".join(sys.path)]
    }
    assert values == {f"{stable_seed(42, 'data', 'villain')}\n"}
    assert 0 <= stable_seed("x") < 2**31


def test_held_files_are_looked_at_once_and_again_after_the_block(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    with files_held():
        first = hash_files([path])
        path.write_text("other")
        assert hash_files([path]) == first
    assert hash_files([path]) != first
