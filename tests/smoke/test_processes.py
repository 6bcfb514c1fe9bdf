"""One cell on two processes: the same numbers as on one, one set of files, and no process left waiting for another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]), "OMP_NUM_THREADS": "1",
}  # fmt: skip
TORCHRUN = [
    "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
]  # fmt: skip


def research(cwd, *words, processes=1, check=True):
    launcher = TORCHRUN if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "research", *words]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def small_cell(model):
    return [
        "task=zlt_sweep", "model.name=tiny", f"model.path={model}", "lr=1e-4", "epochs=1", "batch_size=5",
        "adapter.dropout=0", "task.data.n_positives=10", "task.data.n_per_negative=2", "task.data.max_tokens=12",
        "task.eval.samples=1", "task.eval.max_tokens=8", "task.capability.n_questions=8",
    ]  # fmt: skip


@pytest.mark.parametrize("share", [[], ["model.shard=true"]], ids=["whole", "sharded"])
def test_two_processes_leave_one_set_of_files_with_the_numbers_of_one(tmp_path, tiny_model_dir, share):
    words, found = small_cell(tiny_model_dir), []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        root.mkdir()
        done = research(root, *words, *(share if processes > 1 else []), processes=processes)
        (result,) = root.rglob("run_result.json")
        steps = [json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines()]
        found.append((json.loads(result.read_text()), steps))
        assert done.stdout.count("1 of 1 done") == 1
        assert not list(root.rglob("claim*")) and not list(root.rglob("*.tmp"))
    (one, steps), (two, steps_of_two) = found
    assert len(steps) == one["train"]["steps"] == 6  # 30 examples, 5 a step: 3 for one process, 2 for the other
    assert steps[-1]["loss"] < 0.99 * steps[0]["loss"], "it learns, so that wrong gradients show"
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [s[name] for s in steps_of_two] == pytest.approx([s[name] for s in steps], rel=1e-4), name
    assert two["train"]["tokens"] == one["train"]["tokens"]
    assert two["cell"] == one["cell"] and two["data"] == one["data"] and two["eval"] == one["eval"]
    again = research(tmp_path / "2", *words, *share, processes=2)
    assert again.stderr.count("already done") == 1


def test_a_failing_cell_ends_all_processes(tmp_path):
    """The second process fails in the middle, while the first waits for it."""
    words = ["--config-dir", str(TESTS / "conf_plugin"), "task=pair", "task.crash=true"]
    done = research(tmp_path, *words, processes=2, check=False)
    assert done.returncode != 0
    (error,) = tmp_path.rglob("error.txt")
    assert "the second of the pair" in error.read_text()
    assert not list(tmp_path.rglob("run_result.json"))


def test_an_engine_that_needs_whole_weights_is_refused_with_a_sharded_base(tmp_path, tiny_model_dir):
    words = [*small_cell(tiny_model_dir), "model.shard=true", "sampler=vllm"]
    done = research(tmp_path, *words, processes=2, check=False)
    assert done.returncode != 0 and "sampler=vllm needs whole weights" in done.stderr
    assert not list(tmp_path.rglob("run_result.json"))


def test_a_task_made_for_one_process_refuses_two(tmp_path):
    words = ["--config-dir", str(TESTS / "conf_plugin"), "task=coin"]
    done = research(tmp_path, *words, processes=2, check=False)
    assert done.returncode != 0 and "task=coin runs in one process, and 2 were started" in done.stderr
    assert not list(tmp_path.rglob("run_result.json"))
