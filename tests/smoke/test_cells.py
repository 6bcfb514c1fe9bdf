"""The command line on a third party's task: skip, refuse, fail, go on, share; all through real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "research", "--config-dir", str(TESTS / "conf_plugin"), "task=coin"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])}


def research(cwd, *words, check=True, **environment):
    done = subprocess.run(
        [*COMMAND, *words], cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=120
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def results(cwd):
    return sorted((cwd / "eval_results").rglob("run_result.json"))


def test_a_multirun_in_the_form_users_type(tmp_path):
    done = research(tmp_path, "-m", "task.bias=0.2,0.8", "steps=10,20")
    assert len(results(tmp_path)) == 4
    assert str(tmp_path) not in done.stdout and "report.html" in done.stdout.splitlines()[-1]
    sweep = json.loads((tmp_path / "eval_results/coin/default/sweep.json").read_text())
    assert [c["config"]["steps"] for c in sweep["cells"]] == [10, 20, 10, 20]
    rows = json.loads((tmp_path / "eval_results/coin/default/all_results_compiled.json").read_text())
    assert [row["cell"]["name"] for row in rows] == [c["name"] for c in sweep["cells"]]
    before = {path: path.stat().st_mtime_ns for path in results(tmp_path)}
    again = research(tmp_path, "-m", "task.bias=0.2,0.8", "steps=10,20,30")
    assert "4 already done" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(results(tmp_path)) == 6


def test_words_of_the_command_replace_the_axes_of_an_experiment(tmp_path):
    done = research(tmp_path, "+experiment=coin_grid", "-m", "task.bias=0.5", "task.crash=false")
    assert "2 cells, 0 already done" in done.stderr and "2 of 2 done" in done.stdout
    configs = [json.loads(path.read_text())["cell"]["config"] for path in results(tmp_path)]
    assert sorted((config["steps"], config["task.bias"]) for config in configs) == [(5, 0.5), (10, 0.5)]
    assert "4 cells" in research(tmp_path, "+experiment=coin_grid", "-m").stderr
    assert len(results(tmp_path)) == 6


def test_every_promised_fact_is_recorded(tmp_path):
    research(tmp_path, "steps=10")
    (path,) = results(tmp_path)
    result = json.loads(path.read_text())
    assert set(result) >= {
        "schema_version", "task", "cell", "metrics", "counts", "provenance", "wall_seconds", "peak_memory"
    }  # fmt: skip
    hits = result["counts"]["heads"]["hits"]
    assert result["metrics"]["heads"] == hits / 10 and result["counts"]["heads"]["trials"] == 10
    facts = result["provenance"]
    assert facts["python"].startswith("3.") and facts["libraries"]["torch"] and facts["torch_build"] and facts["cpu"]
    assert facts["command"].startswith("python -m research") and "task=coin" in facts["command"]
    assert facts["started"] <= facts["finished"] and set(facts) >= {
        "git_commit",
        "git_dirty",
        "git_diff_sha256",
        "gpu",
        "inputs",
    }
    assert result["wall_seconds"]["total"] > 0 and result["peak_memory"]["resident_bytes"] > 1e6
    assert len((path.parent / "metrics.jsonl").read_text().splitlines()) == 10
    assert (path.parent / "config.yaml").exists()


def test_a_failing_cell_stops_no_other_and_is_told(tmp_path):
    done = research(tmp_path, "-m", "task.crash=true,false", check=False)
    assert done.returncode == 1
    assert len(results(tmp_path)) == 1
    (error,) = (tmp_path / "eval_results").rglob("error.txt")
    assert "the coin fell on its edge" in error.read_text() and "Traceback" in error.read_text()
    assert "failed: " in done.stdout and "ValueError: the coin fell on its edge" in done.stdout
    rows = json.loads((tmp_path / "eval_results/coin/default/all_results_compiled.json").read_text())
    assert rows[0]["metrics"] is None or all(v is None for v in rows[0]["metrics"].values())


def test_a_directory_of_another_configuration_is_refused(tmp_path):
    research(tmp_path, "steps=10")
    (path,) = results(tmp_path)
    frozen = path.parent / "config.yaml"
    text = frozen.read_text()
    digest = next(line.split()[1] for line in text.splitlines() if line.startswith("digest"))
    frozen.write_text(text.replace(digest, "0" * 64).replace("bias: 0.5", "bias: 0.25"))
    done = research(tmp_path, "steps=10", check=False)
    assert done.returncode != 0
    assert "task.bias: 0.25 -> 0.5" in done.stderr


def test_a_bad_value_leaves_nothing_behind(tmp_path):
    done = research(tmp_path, "steps=0", check=False)
    assert done.returncode == 2 and "steps=0" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_cell_goes_on_with_the_same_command(tmp_path, how, code):
    process = subprocess.Popen(
        [*COMMAND, "task.seconds=30"], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path, "eval_results/coin/default/*/metrics.jsonl")
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert not results(tmp_path)
    if how == signal.SIGINT:
        assert "goes on from here" in said and "Traceback" not in said
    (folder,) = (tmp_path / "eval_results/coin/default").iterdir()
    assert not (folder / "error.txt").exists()


def test_two_sweeps_over_the_same_cell_do_its_work_once(tmp_path):
    first = subprocess.Popen([*COMMAND, "task.seconds=6"], cwd=tmp_path, env=ENVIRONMENT)
    wait_for(tmp_path, "runs/coin/default/*/claim.json")
    second = research(tmp_path, "task.seconds=6", check=False)
    assert "is running this cell" in second.stderr
    assert first.wait(timeout=60) == 0 and len(results(tmp_path)) == 1
    assert not list((tmp_path / "runs").rglob("claim*"))


def test_wandb_records_the_project_of_the_configuration(tmp_path):
    words = ["-m", "task.crash=true,false", "tracker=wandb", "tracker.mode=offline", "tracker.project=mine"]
    done = research(tmp_path, *words, check=False, WANDB_PROJECT="theirs", WANDB_DIR=str(tmp_path))
    assert "WANDB_PROJECT=theirs is ignored" in done.stderr
    runs = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    read = [read_wandb(path) for path in runs]
    assert len(read) == 3 and {r["project"] for r in read} == {"mine"}
    assert sorted(r["exit"] for r in read) == [0, 0, 1]
    assert sum(r["artifacts"] for r in read) == 1 and max(r["steps"] for r in read) >= 10


def read_wandb(path):
    """What one offline run recorded, from its transaction log."""
    from wandb.proto import wandb_internal_pb2

    found = {"project": None, "exit": None, "artifacts": 0, "steps": 0}
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["project"] = record.run.project
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
        elif kind == "artifact":
            found["artifacts"] += 1
        elif kind == "history":
            found["steps"] += 1
    return found


def log_records(content, block=32768, header=7):
    """The records of a LevelDB log: 32 KiB blocks of fragments (checksum 4 bytes, length 2, kind 1: whole, first, middle, last)."""
    at, parts = header, []
    while at + header <= len(content):
        if block - at % block < header:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts.append(content[at + header : at + header + length])
        at += header + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def wait_for(folder, pattern, seconds=60):
    end = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert time.monotonic() < end, f"{pattern} did not appear"
        time.sleep(0.05)
