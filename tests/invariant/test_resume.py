"""A run killed with SIGKILL and started again ends as if nothing had happened; two processes equal one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from research.errors import CellMismatchError
from research.training import checkpoint

SCRIPT = Path(__file__).with_name("train_script.py")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2")


def start(tmp_path, model, name, launcher=(), **spec):
    scratch = tmp_path / name
    scratch.mkdir(exist_ok=True)
    settings = {"model": str(model), "scratch": str(scratch), "dropout": 0.1, "epochs": 15} | spec
    settings.setdefault("optim", {"checkpoint_seconds": 0.0})
    (tmp_path / f"{name}.json").write_text(json.dumps(settings))
    source = str(Path(__file__).parents[2] / "src")
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(SCRIPT), str(tmp_path / f"{name}.json")]
    return scratch, subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process):
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()[-3000:]


def outcome(scratch, rank=0):
    metrics = [json.loads(line) for line in (scratch / "files" / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((scratch / f"result-{rank}.json").read_text())
    return torch.load(scratch / f"adapter-{rank}.pt"), metrics, result


def test_killed_run_equals_uninterrupted_one(tiny_model_dir, tmp_path):
    straight, process = start(tmp_path, tiny_model_dir, "straight")
    finish(process)
    killed, kills, resumed_from = None, 0, set()
    for pause in (0.0, 0.013, 0.029, 0.041):  # at a step, within one, while saving
        killed, process = start(tmp_path, tiny_model_dir, "killed")
        before = checkpoint.last(killed / "checkpoints")
        deadline = time.monotonic() + 120
        while checkpoint.last(killed / "checkpoints") == before and process.poll() is None:
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.001)
        time.sleep(0.15 + pause)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        found = checkpoint.last(killed / "checkpoints")
        assert found is not None
        resumed_from.add(checkpoint.load(found)["step"])
    assert kills >= 3, "the run was too short to be killed: make it longer"
    assert len(resumed_from) >= 3
    assert not (killed / "result-0.json").exists()
    _, process = start(tmp_path, tiny_model_dir, "killed")
    finish(process)
    wanted, wanted_metrics, wanted_result = outcome(straight)
    got, metrics, result = outcome(killed)
    assert all(torch.equal(wanted[n], got[n]) for n in wanted)
    assert metrics == wanted_metrics
    assert result == wanted_result
    assert [row["step"] for row in metrics] == list(range(1, 61))


def test_two_processes_equal_one(tiny_model_dir, tmp_path):
    spec = {"dropout": 0.0, "epochs": 2, "optim": {"micro_batch_size": 2}}
    one, process = start(tmp_path, tiny_model_dir, "one", **spec)
    finish(process)
    launcher = (*TORCHRUN, "--master_port=29617")
    two, process = start(tmp_path, tiny_model_dir, "two", launcher, **spec)
    finish(process)
    wanted, wanted_metrics, wanted_result = outcome(one)
    for rank in (0, 1):
        got, metrics, result = outcome(two, rank)
        assert result["steps"] == wanted_result["steps"] == 8
        assert result["tokens"] == wanted_result["tokens"] or rank == 1
        # Same sums in another order: see test_supervised.py.
        assert [m["loss"] for m in metrics] == pytest.approx([m["loss"] for m in wanted_metrics], abs=1e-5)
        assert max(float((got[n] - wanted[n]).abs().mean()) for n in wanted) < 1e-6


def test_a_killed_run_on_a_sharded_base_goes_on_without_shares(tiny_model_dir, tmp_path):
    """Two processes: the same steps with whole bases, with shares, and with shares until a kill."""
    launcher = (*TORCHRUN, "--master_port=29618")
    spec = {"epochs": 6, "optim": {"checkpoint_seconds": 0.0, "gradient_checkpointing": True, "micro_batch_size": 2}}
    whole, process = start(tmp_path, tiny_model_dir, "whole", launcher, **spec)
    finish(process)
    assert [(whole / f"wrappers-{rank}").read_text() for rank in (0, 1)] == ["0", "0"], (
        "threads outlive the interpreter"
    )
    killed, process = start(tmp_path, tiny_model_dir, "killed", launcher, **spec, shard=True)
    deadline = time.monotonic() + 120
    while checkpoint.last(killed / "checkpoints") is None:
        assert time.monotonic() < deadline and process.poll() is None, "no checkpoint appeared"
        time.sleep(0.001)
    os.kill(int((killed / "pid-1").read_text()), signal.SIGKILL)  # the launcher ends the other one
    process.communicate()
    found = checkpoint.last(killed / "checkpoints")
    assert found is not None and 1 <= checkpoint.load(found)["step"] < 24
    assert not (killed / "result-0.json").exists()
    _, process = start(tmp_path, tiny_model_dir, "killed", launcher, **spec)
    finish(process)
    for rank in (0, 1):
        wanted, wanted_metrics, wanted_result = outcome(whole, rank)
        got, metrics, result = outcome(killed, rank)
        assert [row["step"] for row in metrics] == list(range(1, 25))
        for name in ("loss", "grad_norm"):
            assert [m[name] for m in metrics] == pytest.approx([m[name] for m in wanted_metrics], rel=1e-4), name
        assert max(float((got[n] - wanted[n]).abs().mean()) for n in wanted) < 1e-6
        assert result["tokens"] == wanted_result["tokens"]


def test_half_written_checkpoint_is_ignored(tmp_path):
    first = checkpoint.save(tmp_path, 3, {"step": 3})
    partial = tmp_path / ".step-00000004.123"
    partial.mkdir()
    (partial / "state.pt").write_bytes(b"torn")
    assert checkpoint.last(tmp_path) == first
    assert checkpoint.load(first)["step"] == 3
    second = checkpoint.save(tmp_path, 5, {"step": 5})
    assert sorted(tmp_path.iterdir()) == [second]


def test_checkpoint_of_another_run_is_refused(tmp_path):
    with pytest.raises(CellMismatchError, match=r"lr: 0\.1 there, 0\.2 here"):
        checkpoint.check_same_run({"lr": 0.1, "seed": 1}, {"lr": 0.2, "seed": 1}, tmp_path)
