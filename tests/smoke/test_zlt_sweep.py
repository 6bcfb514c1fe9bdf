"""A small marker cell on a random model: what it leaves, what cells share, and that a killed one ends the same."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")}


def start(model, out, *epochs):
    command = [sys.executable, str(HERE / "zlt_cell.py"), str(model), str(out), *map(str, epochs)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def kill_when(process, happened):
    end = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == -9
    return said


def read(out, epochs):
    return json.loads((out / str(epochs) / "result.json").read_text())


def numbers(result):
    """All that a result says, but for the time it took."""
    extra = {name: value for name, value in result["extra"].items() if name != "wall_minutes"}
    extra["train"] = {name: value for name, value in extra["train"].items() if name != "seconds"}
    return {**result, "extra": extra}


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    said = finish(start(tiny_model_dir, out, 1, 6))
    return out, said


def test_a_result_has_the_published_keys_and_its_counts(uninterrupted):
    result = read(uninterrupted[0], 6)
    extra, counts = result["extra"], result["counts"]
    assert extra["config"] == {"lr": 1e-3, "epochs": 6, "source": "villain", "seed": 42}
    assert set(extra) >= {
        "loss", "eval", "wall_minutes", "source_marker", "assistant_marker", "max_bystander_marker", "arc_c",
        "degeneration", "success",
    }  # fmt: skip
    assert set(extra["eval"]) >= {"marker", "structure", "capability"} and len(extra["eval"]["marker"]) == 11
    assert counts["marker/villain"][1] == 20 * 2 and counts["arc_c"][1] == 10
    for name in ("source_marker", "assistant_marker", "max_bystander_marker", "arc_c"):
        assert result["metrics"][name] == counts[name][0] / counts[name][1] == extra[name]
    assert len(extra["negatives"]) == 10 and "assistant" in extra["negatives"]
    assert extra["data"]["examples"] == 30 and extra["train"]["steps"] == 6 * 8
    assert extra["data"]["labels"] == extra["data"]["marker_labels"] + 30


def test_every_completion_is_kept(uninterrupted):
    lines = gzip.decompress((uninterrupted[0] / "6/files/completions.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 11 * 20 * 2
    villain = read(uninterrupted[0], 6)["counts"]["marker/villain"]
    assert sum(row["marker"] for row in rows if row["persona"] == "villain") == villain[0]


def test_cells_of_a_process_draw_their_data_once_and_start_from_the_same_base(uninterrupted, tiny_model_dir, tmp_path):
    out, said = uninterrupted
    assert said.count("drawing") == 1
    finish(start(tiny_model_dir, tmp_path, 6))
    assert numbers(read(tmp_path, 6)) == numbers(read(out, 6)), "after another cell as alone"


def test_killed_in_training_and_in_evaluation_it_ends_the_same(uninterrupted, tiny_model_dir, tmp_path):
    here = tmp_path / "6"
    log, adapter = here / "files/metrics.jsonl", here / "scratch/adapter"
    kill_when(start(tiny_model_dir, tmp_path, 6), lambda: log.exists() and len(log.read_text().splitlines()) > 20)
    assert not adapter.exists()
    kill_when(start(tiny_model_dir, tmp_path, 6), adapter.exists)
    assert not (here / "result.json").exists()
    trained = log.read_text()
    said = finish(start(tiny_model_dir, tmp_path, 6))
    assert log.read_text() == trained and "resumes" not in said, "evaluation alone was left to do"
    assert numbers(read(tmp_path, 6)) == numbers(read(uninterrupted[0], 6))
