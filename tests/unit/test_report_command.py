"""`python -m research.report`: its arguments, the page of a task that nobody here knows, and no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from research import report
from research.errors import ConfigurationError

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["coin", "nmae=x"], "Did you mean 'name'"), (["coin", "--config-dri", "x"], "Did you mean '--config-dir'"),
        (["coin", "name="], "has no value"), ([], "Name one task"), (["coin", "imposter"], "Name one task"),
        (["coin", "name=a", "results=b"], "give one of them"),
        (["coin", "--config-dir", "/nowhere"], "is not a directory"),
        (["coni", "--config-dir", str(TESTS / "conf_plugin")], "coni does not exist"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_the_nearest_name(words, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        report.report(words)


def coin_sweep(root):
    folder = root / "eval_results" / "coin" / "fair"
    cells = []
    for steps in (10, 20, 40):
        config = {"steps": steps, "seed": 42, "task.bias": 0.5}
        cells.append({"name": f"n{steps}-0123abcd", "digest": "0123abcd", "config": config})
        if steps == 40:
            continue
        directory = folder / cells[-1]["name"]
        directory.mkdir(parents=True)
        row = {
            "task": "coin",
            "cell": cells[-1],
            "metrics": {"heads": 0.3},
            "counts": {"heads": {"hits": 3 * steps // 10, "trials": steps}},
        }
        row["provenance"] = {
            "git_commit": "a" * 40,
            "git_dirty": True,
            "python": "3.11.2",
            "libraries": {"torch": "2.13"},
            "cpu": "a CPU",
            "command": "python -m research -m",
        }
        (directory / "run_result.json").write_text(json.dumps(row))
    (folder / "sweep.json").write_text(json.dumps({"task": "coin", "name": "fair", "cells": cells}))


def run(*words, **options):
    code = "import sys; from research.report import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    path = f"{TESTS.parent / 'src'}:{TESTS}"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
        **options,
    )


def test_the_page_of_any_task_without_torch(tmp_path):
    coin_sweep(tmp_path)
    done = run("coin", "name=fair", f"results_root={tmp_path}", "--config-dir", str(TESTS / "conf_plugin"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "figures/coin/fair/report.html").read_text()
    assert "How often does a coin fall on heads?" in page
    assert "2 of 3" in page
    assert "30.0 [10.8, 60.3]" in page  # 3 of 10 by Wilson
    assert "Commit aaaaaaaaaaaa with uncommitted changes; Python 3.11.2, torch 2.13; a CPU" in page
    rows = json.loads((tmp_path / "eval_results/coin/fair/all_results_compiled.json").read_text())
    assert [row["metrics"]["heads"] for row in rows] == [0.3, 0.3, None]


def test_results_from_elsewhere_leave_our_own_alone(tmp_path):
    coin_sweep(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    source, out = tmp_path / "eval_results/coin/fair", tmp_path / "elsewhere"
    conf = ("--config-dir", str(TESTS / "conf_plugin"))
    assert run("coin", f"results={source}", f"results_root={tmp_path}", *conf).returncode == 2
    done = run("coin", f"results={source}", f"out={out}", f"results_root={tmp_path}", *conf)
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").exists()
    assert {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and out not in path.parents
    } == before
