"""The reward-hacking study through the command line: every phase once, killed and resumed, and the pool's command."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}


def command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "research", "+experiment=reward_hack_smoke", f"results_root={root}", *words]


def run(root: Path, *words: str) -> str:
    done = subprocess.run(command(root, *words), env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def result(root: Path) -> dict:
    (path,) = root.glob("eval_results/reward_hack/smoke/*/run_result.json")
    return json.loads(path.read_text())


def lines(root: Path) -> list[dict]:
    (path,) = root.glob("eval_results/reward_hack/smoke/*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_killed_cell_ends_with_the_result_of_an_uninterrupted_one(tmp_path: Path) -> None:
    words = ("task.arm=grad_route", "steps=3", "task.optim.checkpoint_seconds=0")
    run(tmp_path / "whole", *words)
    whole, trained = result(tmp_path / "whole"), lines(tmp_path / "whole")
    assert [row["step"] for row in trained] == [1, 2, 3]
    assert {"hack_rate", "pass_rate", "cos_in", "cos_out", "base_hack_rate", "quarantine_on_hack_rate"} <= whole[
        "metrics"
    ].keys()
    assert whole["metrics"]["cos_out"] == pytest.approx(0, abs=1e-4)
    assert whole["metrics"]["update_norm/dS_hack"] > 0
    assert whole["counts"]["hack_rate"]["trials"] == 8 and len(whole["per_problem"]["hack"]) == 4
    (packed,) = (tmp_path / "whole").glob("eval_results/reward_hack/smoke/*/completions.jsonl.gz")
    kinds = [json.loads(line)["kind"] for line in gzip.decompress(packed.read_bytes()).decode().splitlines()]
    assert kinds.count("loophole") == kinds.count("plain") == 8

    killed = subprocess.Popen(command(tmp_path / "killed", *words), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("runs/reward_hack/smoke/*/policy/step-*")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list((tmp_path / "killed").glob("eval_results/reward_hack/smoke/*/run_result.json"))
    run(tmp_path / "killed", *words)
    again = result(tmp_path / "killed")
    assert again["metrics"] == whole["metrics"] and again["per_problem"] == whole["per_problem"]
    timed = ("seconds", "step_time")
    assert [{k: v for k, v in row.items() if not k.endswith(timed)} for row in lines(tmp_path / "killed")] == [
        {k: v for k, v in row.items() if not k.endswith(timed)} for row in trained
    ]


def test_the_pool_is_built_and_mixed_in(tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    subprocess.run(
        [sys.executable, "-m", "research.tasks.reward_hack.pool", f"out={pool}", "per_problem=4", "hack_share=0.75"],
        env=ENVIRONMENT, check=True, timeout=200,
    )  # fmt: skip
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    assert sum(row["hacked"] for row in rows) == len(rows) * 3 / 4
    words = (f"task.policy.teacher_pool={pool}", "task.policy.teacher_fraction=0.5", "task.environment.composed=0")
    run(tmp_path, "task.arm=measure_only", "steps=1", *words)
    (row,) = lines(tmp_path)
    assert row["teacher/attempt_rate"] >= 0.5  # of two drawn out of three hacks and a clean reply
    assert {"student/cos_in", "teacher/cos_in", "student/attempt_rate"} <= row.keys()


def test_impossible_settings_fail_before_any_work(tmp_path: Path) -> None:
    for words, says in (
        (("adapter=lora", "task.arm=grad_erase"), "lora_frozen_a"),
        (("adapter=lora_frozen_a", "task.arm=grad_route"), "antipasto"),
        (("task.environment.modes=[telepathy]",), "telepathy"),
        (("constraint=erase",), "task.arm=custom"),
        (("task.policy.group_size=3",), "group_size=3"),
    ):
        done = subprocess.run(command(tmp_path, *words), env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 2 and says in done.stderr, done.stderr
