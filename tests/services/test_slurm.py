"""Sweeps on a real SLURM of one node: arrays, failures, time limits, cancelling, edits, two at once."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.slurm_cluster import cluster

pytestmark = pytest.mark.services

TESTS = Path(__file__).parents[1]
SMALL = [
    "hydra.launcher.partition=main", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**environment, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])}


@pytest.fixture
def conf(tmp_path):
    return shutil.copytree(TESTS / "conf_plugin", tmp_path / "conf")


def research(slurm, cwd, conf, *words, module="research", check=True):
    command = [sys.executable, "-m", *module.split(), "--config-dir", str(conf), *words]
    done = subprocess.run(command, cwd=cwd, env=slurm, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def sweep(slurm, cwd, *words, check=True):
    command = [sys.executable, "-m", "research.sweep", *words]
    done = subprocess.run(command, cwd=cwd, env=slurm, capture_output=True, text=True, timeout=120)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def squeue(slurm, form="%i %T"):
    done = subprocess.run(["squeue", "-h", "-r", "-o", form], env=slurm, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def until(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.3)


def counts(slurm, cwd, task):
    told = sweep(slurm, cwd, "status", f"task={task}", "--json", check=False)
    return json.loads(told.stdout)["counts"]


def results(cwd):
    return sorted((cwd / "eval_results").rglob("run_result.json"))


def test_one_job_array_with_a_failing_cell_among_good_ones(slurm, tmp_path, conf):
    words = ["task=coin", "-m", "hydra/launcher=slurm", *SMALL, "task.bias=0.2,0.8", "task.crash=false,true"]
    done = research(slurm, tmp_path, conf, *words, check=False)
    assert done.returncode == 1
    assert len(results(tmp_path)) == 2
    errors = sorted((tmp_path / "eval_results").rglob("error.txt"))
    assert len(errors) == 2 and all("fell on its edge" in e.read_text() for e in errors)
    assert done.stdout.count("failed: ") == 2 and "2 of 4 done" in done.stdout
    states = subprocess.run(
        ["sacct", "-n", "-X", "-o", "JobID,State"], env=slurm, capture_output=True, text=True, check=True
    ).stdout
    array = {line.split()[0].split("_")[0] for line in states.splitlines() if "_" in line}
    assert len(array) == 1, "four cells are one job array"
    assert states.count("FAILED") == 2 and states.count("COMPLETED") == 2


def test_submit_returns_at_once_and_again_submits_nothing(slurm, tmp_path, conf):
    words = ["submit", f"--config-dir={conf}", "task=coin", *SMALL, "task.bias=0.1,0.3,0.5,0.7,0.9", "task.seconds=3"]
    start = time.monotonic()
    first = sweep(slurm, tmp_path, *words)
    assert "5 of 5 cells submitted" in first.stdout and time.monotonic() - start < 15
    assert "0 of 5 cells submitted" in sweep(slurm, tmp_path, *words).stdout
    told = counts(slurm, tmp_path, "coin")
    assert told["queued"] + told["running"] + told["done"] == 5
    until(lambda: len(results(tmp_path)) == 5, "five results")
    until(lambda: not squeue(slurm), "an empty queue")
    compiled = json.loads((tmp_path / "eval_results/coin/default/all_results_compiled.json").read_text())
    assert len(compiled) == 5 and all(row["metrics"]["heads"] is not None for row in compiled)
    assert (tmp_path / "figures/coin/default/report.html").exists()
    arrays = {path.name.split("_")[0] for path in (tmp_path / "runs/.submitit").rglob("*_submission.sh")}
    assert len(arrays) == 2, "the cluster takes arrays of three: five cells are two arrays"


def test_a_cancelled_sweep_is_submitted_again(slurm, tmp_path, conf):
    words = ["submit", f"--config-dir={conf}", "task=walk", *SMALL, "seed=1,2,3", "steps=30", "task.pause=0.2"]
    sweep(slurm, tmp_path, *words)
    until(lambda: any("RUNNING" in line for line in squeue(slurm)), "a running job")
    until(lambda: list((tmp_path / "runs/walk").rglob("state.pickle")), "a checkpoint")
    assert "3 jobs cancelled" in sweep(slurm, tmp_path, "cancel", "task=walk").stdout
    until(lambda: not squeue(slurm), "an empty queue")
    assert counts(slurm, tmp_path, "walk")["done"] == 0
    assert "3 of 3 cells submitted" in sweep(slurm, tmp_path, *words).stdout
    until(lambda: len(results(tmp_path)) == 3, "three results")


def release(slurm):
    """Start requeued jobs soon: SLURM holds them back for two minutes.

    Not at once: a node takes the credentials of a job that restarts within the second for those it has just revoked.
    """
    for line in squeue(slurm, "%A %r"):
        if line.endswith("BeginTime"):
            time.sleep(3)
            command = ["scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now"]
            subprocess.run(command, env=slurm, capture_output=True, check=False)  # it may have started by itself


@pytest.fixture(scope="module")
def uninterrupted(slurm, tmp_path_factory):
    """The metrics of a walk of 120 steps that nothing stops."""
    alone = tmp_path_factory.mktemp("alone")
    research(slurm, alone, TESTS / "conf_plugin", "task=walk", "steps=120")
    (path,) = results(alone)
    return json.loads(path.read_text())["metrics"]


def went_on_and_ended_as(cwd, metrics):
    (ours,) = [json.loads(path.read_text()) for path in results(cwd)]
    assert ours["metrics"] == metrics
    (starts,) = (cwd / "runs/walk").rglob("starts.txt")
    begun = [int(line) for line in starts.read_text().split()]
    assert begun[0] == 0 and len(begun) > 1 and begun[1] > 0, f"it went on from a checkpoint: {begun}"
    (logged,) = (cwd / "eval_results/walk").rglob("metrics.jsonl")
    assert [json.loads(line)["step"] for line in logged.read_text().splitlines()] == list(range(1, 121))


def test_a_cell_stopped_by_the_time_limit_ends_with_the_uninterrupted_result(slurm, tmp_path, conf, uninterrupted):
    words = ["submit", f"--config-dir={conf}", "task=walk", *SMALL[:-1], "hydra.launcher.timeout_min=1", "steps=120"]
    sweep(slurm, tmp_path, *words, "hydra.launcher.signal_delay_s=30", "task.pause=0.3")

    def finished():
        release(slurm)
        return results(tmp_path)

    until(finished, "the result", 240)
    went_on_and_ended_as(tmp_path, uninterrupted)
    logs = "".join(path.read_text() for path in (tmp_path / "runs/.submitit").rglob("*_log.out"))
    assert "this job is timed-out" in logs


@pytest.mark.parametrize("how", ["signal", "requeue"])
def test_a_preempted_cell_ends_with_the_uninterrupted_result(slurm, tmp_path, conf, uninterrupted, how):
    """signal: the cluster warns and the job requeues itself. requeue: SLURM takes the node away and requeues it."""
    words = ["submit", f"--config-dir={conf}", "task=walk", *SMALL, "steps=120", "task.pause=0.1"]
    sweep(slurm, tmp_path, *words)
    until(lambda: list((tmp_path / "runs/walk").rglob("state.pickle")), "a checkpoint")
    (job,) = squeue(slurm, "%A")
    command = ["scancel", "--signal=USR2", job] if how == "signal" else ["scontrol", "requeue", job]
    subprocess.run(command, env=slurm, check=True)

    def finished():
        release(slurm)
        return results(tmp_path)

    until(finished, "the result", 120)
    went_on_and_ended_as(tmp_path, uninterrupted)


def test_status_tells_what_slurm_knows_of_a_cell_that_left_no_file(slurm, tmp_path, conf):
    words = ["submit", f"--config-dir={conf}", "task=coin", *SMALL, "seed=1,2", "task.seconds=600"]
    sweep(slurm, tmp_path, *words)
    until(lambda: counts(slurm, tmp_path, "coin")["running"] == 2, "two running cells")
    claims = [json.loads(path.read_text()) for path in (tmp_path / "runs/coin").rglob("claim.json")]
    until(lambda: len(list((tmp_path / "runs/coin").rglob("claim.json"))) == 2, "two claims")
    claims = [json.loads(path.read_text()) for path in (tmp_path / "runs/coin").rglob("claim.json")]
    os.kill(claims[0]["pid"], 9)  # as the kernel does when memory runs out
    until(lambda: counts(slurm, tmp_path, "coin")["failed"] == 1, "a failed cell")
    told = json.loads(sweep(slurm, tmp_path, "status", "task=coin", "--json", check=False).stdout)
    (reason,) = [cell["reason"] for cell in told["cells"] if cell["state"] == "failed"]
    assert "SLURM ended job" in reason and "FAILED" in reason
    assert "1 of 2 cells submitted" in sweep(slurm, tmp_path, *words).stdout
    assert "2 jobs cancelled" in sweep(slurm, tmp_path, "cancel", "task=coin").stdout
    until(lambda: not squeue(slurm), "an empty queue")
    assert counts(slurm, tmp_path, "coin")["to do"] == 2


def test_a_configuration_edited_while_queued_is_refused(slurm, tmp_path, conf):
    command = [
        sys.executable, "-m", "research", "--config-dir", str(conf), "task=coin", "-m", "hydra/launcher=slurm", *SMALL,
        "hydra.launcher.array_parallelism=1", "task.seconds=6", "seed=1,2",
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=slurm, **pipes)
    until(lambda: list((tmp_path / "runs/coin").rglob("claim.json")), "the first cell running")
    path = conf / "task" / "coin.yaml"
    path.write_text(path.read_text().replace("steps: 10", "steps: 11"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert len(results(tmp_path)) == 1
    assert "steps: 10 -> 11" in out + err
    (error,) = (tmp_path / "eval_results").rglob("error.txt")
    assert "steps: 10 -> 11" in error.read_text()
    sacct = subprocess.run(["sacct", "-n", "-X", "-o", "State"], env=slurm, capture_output=True, text=True, check=True)
    assert "FAILED" in sacct.stdout


def test_a_submitted_cell_is_what_it_was_whatever_is_edited_meanwhile(slurm, tmp_path, conf):
    words = ["submit", f"--config-dir={conf}", "task=coin", *SMALL, "hydra.launcher.array_parallelism=1"]
    sweep(slurm, tmp_path, *words, "task.seconds=2", "seed=1,2")
    path = conf / "task" / "coin.yaml"
    path.write_text(path.read_text().replace("steps: 10", "steps: 11"))
    until(lambda: len(results(tmp_path)) == 2, "two results")
    assert all(json.loads(path.read_text())["cell"]["config"]["steps"] == 10 for path in results(tmp_path))


def test_two_sweeps_at_once_do_no_work_twice(slurm, tmp_path, conf):
    words = [
        sys.executable, "-m", "research", "--config-dir", str(conf), "task=walk", "-m", "hydra/launcher=slurm", *SMALL,
        "seed=1,2", "steps=20", "task.pause=0.2",
    ]  # fmt: skip
    both = [subprocess.Popen(words, cwd=tmp_path, env=slurm, stdout=subprocess.DEVNULL) for _ in range(2)]
    for process in both:
        assert process.wait(timeout=200) == 0
    assert len(results(tmp_path)) == 2
    for starts in (tmp_path / "runs/walk").rglob("starts.txt"):
        assert starts.read_text() == "0\n"
    rows = json.loads((tmp_path / "eval_results/walk/default/all_results_compiled.json").read_text())
    assert len(rows) == 2


def test_one_cell_on_two_tasks_of_a_job(slurm, tmp_path, conf):
    """Of two cells one works, in the other the second task fails while the first waits for it: both jobs end."""
    words = ["submit", f"--config-dir={conf}", "task=pair", *SMALL, "hydra.launcher.tasks_per_node=2"]
    sweep(slurm, tmp_path, *words, "task.crash=false,true")
    until(lambda: counts(slurm, tmp_path, "pair")["failed"] == 1 and results(tmp_path), "a result and an error", 200)
    (path,) = results(tmp_path)
    assert json.loads(path.read_text())["metrics"] == {"sum": 11.0}
    assert len((path.parent / "metrics.jsonl").read_text().splitlines()) == 1, "one task writes"
    (error,) = (tmp_path / "eval_results").rglob("error.txt")
    assert "the second of the pair failed" in error.read_text()
    until(lambda: not squeue(slurm), "an empty queue")


def test_nothing_is_left_running(slurm):
    until(lambda: not squeue(slurm), "an empty queue", 60)
