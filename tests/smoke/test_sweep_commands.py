"""plan, status and cancel on what users meet: nothing there, half a file, a reader that goes, no SLURM."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]), "PATH": ""}
PLUGIN = f"--config-dir={TESTS / 'conf_plugin'}"


def command(*words, module="research.sweep"):
    return [sys.executable, "-m", module, *words]


def sweep(cwd, *words, module="research.sweep"):
    return subprocess.run(
        command(*words, module=module), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    done = sweep(folder, PLUGIN, "task=coin", "name=mine", "-m", "seed=1,2", module="research")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def launched(original, tmp_path):
    """A directory with two cells of a sweep named mine, both done."""
    return shutil.copytree(original, tmp_path / "launched")


@pytest.mark.parametrize("asked", ["status", "cancel"])
def test_a_sweep_that_was_never_launched_is_named_with_those_that_were(launched, asked):
    done = sweep(launched, asked, "task=coin", "name=mime")
    assert done.returncode == 2 and "Did you mean 'mine'?" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("torn", "said"),
    [("eval_results/coin/mine/sweep.json", "is not a sweep's grid"), ("runs/coin/mine/jobs.json", "is not a list")],
)
def test_half_a_file_is_named(launched, torn, said):
    path = launched / torn
    path.write_text((path.read_text() if path.exists() else '{"a": "1_0", "b": "1_1"}')[:12])
    (launched / "bin").mkdir()
    (launched / "bin" / "squeue").symlink_to(shutil.which("true"))  # SLURM is there, with nothing in its queue
    next((launched / "eval_results/coin/mine").glob("*/run_result.json")).unlink()
    environment = {**ENVIRONMENT, "PATH": str(launched / "bin")}
    words = command("status", "task=coin", "name=mine")
    done = subprocess.run(words, cwd=launched, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and str(torn) in done.stderr and said in done.stderr
    assert "Traceback" not in done.stderr


def test_half_a_result_is_named_and_costs_no_plan(launched):
    path = sorted((launched / "eval_results/coin/mine").glob("*/run_result.json"))[0]
    path.write_text(path.read_text()[:40])
    words = [PLUGIN, "task=coin", "name=mine", "seed=1,2"]
    plan = sweep(launched, "plan", *words)
    assert plan.returncode == 0 and "from 1 earlier results" in plan.stdout
    again = sweep(launched, "-m", *words, module="research")
    assert again.returncode == 2 and f"{path.relative_to(launched)} is not JSON" in again.stderr


def test_a_plan_without_earlier_results(tmp_path):
    words = ["plan", PLUGIN, "task=coin", "seed=1,2"]
    assert "2 cells: 2 to do; expected: no earlier result to go by" in sweep(tmp_path, *words).stdout
    told = json.loads(sweep(tmp_path, *words, "--json").stdout)
    assert "expected_seconds_left" not in told and [cell["expected_seconds"] for cell in told["cells"]] == [None, None]
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


@pytest.mark.parametrize("asked", [["plan", PLUGIN, "seed=range(3000)"], ["status", "--watch"]])
def test_a_reader_that_has_seen_enough_gets_no_traceback(launched, asked):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        command(*asked, "task=coin", "name=mine"), cwd=launched, env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (141, b"")


def test_status_and_cancel_from_another_directory(launched, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    told = sweep(elsewhere, "status", "task=coin", "name=mine", f"results_root={launched}", "--json")
    assert json.loads(told.stdout)["counts"]["done"] == 2
    cancelled = sweep(elsewhere, "cancel", "task=coin", "name=mine", f"results_root={launched}")
    assert cancelled.stdout == "0 jobs cancelled\n" and not list(elsewhere.iterdir())


def test_without_slurm_the_commands_that_need_it_say_so(launched):
    for words, module in [
        (["submit", PLUGIN, "task=coin", "seed=3,4"], "research.sweep"),
        ([PLUGIN, "task=coin", "-m", "seed=3,4", "hydra/launcher=slurm"], "research"),
    ]:
        done = sweep(launched, *words, module=module)
        assert done.returncode == 2 and "sbatch is not on this machine" in done.stderr
        assert "Traceback" not in done.stderr
    (launched / "runs/coin/mine/jobs.json").write_text('{"a": "1_0"}')
    done = sweep(launched, "cancel", "task=coin", "name=mine")
    assert done.returncode == 2 and "squeue is not on this machine" in done.stderr


def test_cells_as_local_processes_through_submitit(tmp_path):
    words = [PLUGIN, "task=coin", "-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    done = sweep(tmp_path, *words, "task.crash=false,true", module="research")
    assert done.returncode == 1 and "1 of 2 done" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("failed: ") == 1 and "ValueError: the coin fell on its edge" in done.stdout
    assert len(list(tmp_path.rglob("run_result.json"))) == len(list(tmp_path.rglob("error.txt"))) == 1
    assert list((tmp_path / "runs/.hydra/coin/default/.submitit").rglob("*_result.pkl")), "submitit ran them"


@pytest.mark.parametrize(
    "module",
    ["research.sweep", "research.report", "research.tasks.reward_hack.validate", "research.tasks.reward_hack.pool",
     "research.tasks.imposter.ascent", "research.tasks.imposter.remeasure", "research.tasks.zlt_sweep.calibrate"],
)  # fmt: skip
def test_every_command_explains_itself(tmp_path, module):
    done = sweep(tmp_path, "--help", module=module)
    assert done.returncode == 0 and module.rsplit(".")[-1] in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [("reward_hack.validate", "problem=x", "Did you mean 'problems'"), ("reward_hack.pool", "outs=x", "Did you mean 'out'"),
     ("reward_hack.pool", "out=", "out= has no value"), ("reward_hack.pool", "out", "out= has no value"),
     ("reward_hack.pool", "out=x per_problem=0", "per_problem=0 is not between"),
     ("imposter.ascent", "result=x", "Did you mean 'results'"), ("imposter.remeasure", "", "results= is missing")],
)  # fmt: skip
def test_a_mistake_in_a_small_command_is_one_line(tmp_path, module, words, message):
    done = sweep(tmp_path, *words.split(), module=f"research.tasks.{module}")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())
