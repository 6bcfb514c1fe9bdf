"""Sweeps on a real SLURM of one node: arrays, failures, time limits, cancelling, edits, two at once.

Cells that are stopped and go on are submitted first and looked at last: SLURM takes its time over them.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import make_tiny_model
from smoke.test_processes import small_cell

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


@pytest.fixture(autouse=True)
def nothing_is_left_running(slurm, tmp_path):
    """A test's own jobs end with it."""
    yield
    until(lambda: not squeue(slurm, tmp_path), "an empty queue")


def research(slurm, cwd, conf, *words, module="research", check=True):
    command = [sys.executable, "-m", *module.split(), "--config-dir", str(conf), *words]
    done = subprocess.run(command, cwd=cwd, env=slurm, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def sweep(slurm, cwd, *words, check=True):
    command = [sys.executable, "-m", "research.sweep", *words]
    done = subprocess.run(command, cwd=cwd, env=slurm, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def squeue(slurm, cwd):
    """(job, state) of the jobs that were submitted in a directory."""
    return listed(slurm, cwd, ["squeue", "-h", "-r", "-o", "%i|%T|%Z"])


def sacct(slurm, cwd):
    """(job, state) of all jobs, past ones too, that were submitted in a directory."""
    return listed(slurm, cwd, ["sacct", "-S", "now-1days", "-n", "-X", "-P", "-o", "JobID,State,WorkDir"])


def accounts(slurm, cwd, count):
    """The (job, state) of a directory's jobs, when the accounts, written later than the queue, have all as ended."""

    def ended():
        jobs = sacct(slurm, cwd)
        return len(jobs) == count and not {state for _, state in jobs} & {"PENDING", "RUNNING", "COMPLETING"}

    until(ended, f"{count} ended jobs in the accounts")
    return sacct(slurm, cwd)


def listed(slurm, cwd, command):
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, check=True)
    rows = (line.split("|") for line in done.stdout.splitlines())
    return [(job, state) for job, state, place in rows if place == str(cwd)]


def until(condition, what, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.3)


def counts(slurm, cwd, task):
    told = sweep(slurm, cwd, "status", f"task={task}", "--json", check=False)
    return json.loads(told.stdout)["counts"]


def results(cwd):
    return sorted((cwd / "eval_results").rglob("run_result.json"))


WALK = 120  # steps


@pytest.fixture(scope="module")
def stopped(slurm, tmp_path_factory):
    """Cells that SLURM stops in the middle, each in a directory of its own, and their like that nothing stops."""
    names = ("time limit", "signal", "requeue", "alone", "training", "training alone")
    folders = {name: tmp_path_factory.mktemp(name.replace(" ", "_")) for name in names}
    plugin = f"--config-dir={TESTS / 'conf_plugin'}"
    walk = ["submit", plugin, "task=walk", *SMALL, f"steps={WALK}", "task.pause=0.4"]
    # SLURM warns up to 30 s before it should: 20 to 50 s after the start.
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10", "task.pause=0.5"]
    sweep(slurm, folders["time limit"], *walk[:-1], *limit)
    training = small_cell(make_tiny_model(tmp_path_factory.mktemp("model")))
    training = ["submit", *training, *SMALL, "epochs=60", "task.optim.checkpoint_seconds=0"]
    one_thread = {**slurm, "OMP_NUM_THREADS": "1"}

    def submit_and_stop(name, environment, words, checkpoint, command):
        sweep(environment, folders[name], *words)
        until(lambda: list((folders[name] / "runs").rglob(checkpoint)), f"a checkpoint of {name}")
        ((job, _),) = squeue(slurm, folders[name])
        subprocess.run([*command, job], env=slurm, check=True)

    with ThreadPoolExecutor(3) as pool:
        begun = [
            pool.submit(submit_and_stop, "signal", slurm, walk, "state.pickle", ["scancel", "--signal=USR2"]),
            pool.submit(submit_and_stop, "requeue", slurm, walk, "state.pickle", ["scontrol", "requeue"]),
            pool.submit(submit_and_stop, "training", one_thread, training, "step-*", ["scontrol", "requeue"]),
        ]
    for each in begun:
        each.result()
    sweep(slurm, folders["alone"], *walk[:-1])
    sweep(one_thread, folders["training alone"], *training)
    return folders


@pytest.mark.usefixtures("stopped")  # begun here, looked at last
def test_one_job_array_with_a_failing_cell_among_good_ones(slurm, tmp_path, conf):
    words = ["task=coin", "-m", "hydra/launcher=slurm", *SMALL, "task.bias=0.2,0.8", "task.crash=false,true"]
    done = research(slurm, tmp_path, conf, *words, check=False)
    assert done.returncode == 1
    assert len(results(tmp_path)) == 2
    errors = sorted((tmp_path / "eval_results").rglob("error.txt"))
    assert len(errors) == 2 and all("fell on its edge" in e.read_text() for e in errors)
    assert done.stdout.count("failed: ") == 2 and "2 of 4 done" in done.stdout
    jobs = accounts(slurm, tmp_path, 4)
    assert len({job.split("_")[0] for job, _ in jobs}) == 1, "four cells are one job array"
    assert sorted(state for _, state in jobs) == ["COMPLETED", "COMPLETED", "FAILED", "FAILED"]


def test_submit_returns_at_once_and_again_submits_nothing(slurm, tmp_path, conf):
    words = ["submit", f"--config-dir={conf}", "task=coin", *SMALL, "task.bias=0.1,0.3,0.5,0.7,0.9", "task.seconds=3"]
    start = time.monotonic()
    first = sweep(slurm, tmp_path, *words)
    assert "5 of 5 cells submitted" in first.stdout and time.monotonic() - start < 15
    assert "0 of 5 cells submitted" in sweep(slurm, tmp_path, *words).stdout
    told = counts(slurm, tmp_path, "coin")
    assert told["queued"] + told["running"] + told["done"] == 5
    until(lambda: len(results(tmp_path)) == 5, "five results")
    until(lambda: not squeue(slurm, tmp_path), "an empty queue")
    compiled = json.loads((tmp_path / "eval_results/coin/default/all_results_compiled.json").read_text())
    assert len(compiled) == 5 and all(row["metrics"]["heads"] is not None for row in compiled)
    assert (tmp_path / "figures/coin/default/report.html").exists()
    arrays = {path.name.split("_")[0] for path in (tmp_path / "runs/.submitit").rglob("*_submission.sh")}
    assert len(arrays) == 2, "the cluster takes arrays of three: five cells are two arrays"


def test_a_cancelled_sweep_is_submitted_again(slurm, tmp_path, conf):
    words = ["submit", f"--config-dir={conf}", "task=walk", *SMALL, "seed=1,2,3", "steps=20"]
    sweep(slurm, tmp_path, *words, "task.pause=60")
    until(lambda: list((tmp_path / "runs/walk").rglob("state.pickle")), "a checkpoint")
    assert "3 jobs cancelled" in sweep(slurm, tmp_path, "cancel", "task=walk").stdout
    until(lambda: not squeue(slurm, tmp_path), "an empty queue")
    assert counts(slurm, tmp_path, "walk")["done"] == 0
    assert "3 of 3 cells submitted" in sweep(slurm, tmp_path, *words).stdout
    until(lambda: len(results(tmp_path)) == 3, "three results")


def test_status_tells_what_slurm_knows_of_a_cell_that_left_no_file(slurm, tmp_path, conf):
    words = ["submit", f"--config-dir={conf}", "task=coin", *SMALL, "seed=1,2", "task.seconds=600"]
    sweep(slurm, tmp_path, *words)
    until(lambda: counts(slurm, tmp_path, "coin")["running"] == 2, "two running cells")
    until(lambda: len(list((tmp_path / "runs/coin").rglob("claim.json"))) == 2, "two claims")
    claims = [json.loads(path.read_text()) for path in (tmp_path / "runs/coin").rglob("claim.json")]
    os.kill(claims[0]["pid"], 9)  # as the kernel does when memory runs out
    until(lambda: counts(slurm, tmp_path, "coin")["failed"] == 1, "a failed cell")
    told = json.loads(sweep(slurm, tmp_path, "status", "task=coin", "--json", check=False).stdout)
    (reason,) = [cell["reason"] for cell in told["cells"] if cell["state"] == "failed"]
    assert "SLURM ended job" in reason and "FAILED" in reason
    assert "1 of 2 cells submitted" in sweep(slurm, tmp_path, *words).stdout
    subprocess.run(["scontrol", "requeue", claims[1]["job"]], env=slurm, check=True)

    def reasons():
        told = json.loads(sweep(slurm, tmp_path, "status", "task=coin", "--json", check=False).stdout)
        return [cell["reason"] for cell in told["cells"] if cell["state"] == "queued"]

    until(lambda: "pending, begintime" in reasons(), "the reason why a requeued cell waits")
    assert "2 jobs cancelled" in sweep(slurm, tmp_path, "cancel", "task=coin").stdout
    until(lambda: not squeue(slurm, tmp_path), "an empty queue")
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
    out, err = process.communicate(timeout=400)
    assert process.returncode == 1, out + err
    assert len(results(tmp_path)) == 1
    assert "then -> now: steps: 10 -> 11" in out, "the closing lines have the keys"
    (error,) = (tmp_path / "eval_results").rglob("error.txt")
    assert "steps: 10 -> 11" in error.read_text()
    states = json.loads(sweep(slurm, tmp_path, "status", "task=coin", "--json", check=False).stdout)["cells"]
    assert [cell["reason"] for cell in states] == ["", "then -> now: steps: 10 -> 11"]
    assert sorted(state for _, state in accounts(slurm, tmp_path, 2)) == ["COMPLETED", "FAILED"]


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
        assert process.wait(timeout=400) == 0
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


def test_hydras_own_slurm_launcher(slurm, tmp_path, conf):
    words = ["task=coin", "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=main"]
    done = research(slurm, tmp_path, conf, *words, "hydra.launcher.mem_gb=1", "task.crash=false,true", check=False)
    assert done.returncode == 1 and "1 of 2 done" in done.stdout, done.stdout + done.stderr
    assert len(results(tmp_path)) == 1 and "ValueError: the coin fell on its edge" in done.stdout
    jobs = accounts(slurm, tmp_path, 2)
    assert len({job.split("_")[0] for job, _ in jobs}) == 1, "two cells are one job array"
    assert sorted(state for _, state in jobs) == ["COMPLETED", "FAILED"]


def test_two_submissions_at_the_same_moment_queue_no_cell_twice(slurm, tmp_path, conf):
    slow = tmp_path / "bin" / "sbatch"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 2\nexec {shutil.which("sbatch")} "$@"\n')
    slow.chmod(0o755)
    environment = {**slurm, "PATH": f"{slow.parent}{os.pathsep}{os.environ['PATH']}"}
    words = ["submit", f"--config-dir={conf}", "task=coin", *SMALL, "seed=1,2,3"]
    command = [sys.executable, "-m", "research.sweep", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=400) for process in both]
    assert sorted(out.split(" cells")[0] for out, _ in said) == ["0 of 3", "3 of 3"], said
    assert sum("which is submitting" in err for _, err in said) == 1
    until(lambda: len(results(tmp_path)) == 3 and not squeue(slurm, tmp_path), "three results and an empty queue")
    assert len(accounts(slurm, tmp_path, 3)) == 3


def test_jobs_of_an_interrupted_multirun_are_known_and_cancelled(slurm, tmp_path, conf):
    words = ["task=coin", *SMALL, "seed=1,2,3", "task.seconds=600", "hydra.launcher.array_parallelism=1"]
    command = [sys.executable, "-m", "research", "--config-dir", str(conf), "-m", "hydra/launcher=slurm", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    waiting = subprocess.Popen(command, cwd=tmp_path, env=slurm, **pipes)
    until(lambda: len(squeue(slurm, tmp_path)) == 3, "three jobs")
    until(lambda: list((tmp_path / "runs/coin").rglob("claim.json")), "a running cell")
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=400)
    assert waiting.returncode == 130 and "Traceback" not in err, out + err
    assert "research.sweep status task=coin name=default" in err
    told = counts(slurm, tmp_path, "coin")
    assert (told["running"], told["queued"]) == (1, 2)
    assert "0 of 3 cells submitted" in sweep(slurm, tmp_path, "submit", f"--config-dir={conf}", *words).stdout
    assert "3 jobs cancelled" in sweep(slurm, tmp_path, "cancel", "task=coin").stdout
    until(lambda: not squeue(slurm, tmp_path), "an empty queue")
    assert counts(slurm, tmp_path, "coin")["to do"] == 3


@pytest.mark.parametrize("how", ["submit", "-m"])
def test_a_refusal_of_slurm_is_told_in_its_words(slurm, tmp_path, conf, how):
    words = ["task=coin", *SMALL, "hydra.launcher.partition=nowhere", "seed=1,2"]
    if how == "submit":
        done = sweep(slurm, tmp_path, "submit", f"--config-dir={conf}", *words, check=False)
    else:
        done = research(slurm, tmp_path, conf, "-m", "hydra/launcher=slurm", *words, check=False)
    assert done.returncode == 2 and "invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr and not squeue(slurm, tmp_path)


def ended(slurm, cwd):
    """The one result of a sweep, when SLURM is through with it."""
    until(lambda: results(cwd) and not squeue(slurm, cwd), "the result", 500)
    (path,) = results(cwd)
    return json.loads(path.read_text()), (path.parent / "metrics.jsonl").read_text()


@pytest.mark.parametrize("how", ["time limit", "signal", "requeue"])
def test_a_stopped_cell_ends_with_the_uninterrupted_result(slurm, stopped, how):
    """time limit: of one attempt. signal: the cluster warns. requeue: the cluster takes the node away."""
    alone, _ = ended(slurm, stopped["alone"])
    ours, steps = ended(slurm, stopped[how])
    assert ours["metrics"] == alone["metrics"]
    (starts,) = (stopped[how] / "runs/walk").rglob("starts.txt")
    begun = [int(line) for line in starts.read_text().split()]
    assert begun[0] == 0 and len(begun) > 1 and begun[1] > 0, f"it went on from a checkpoint: {begun}"
    assert [json.loads(line)["step"] for line in steps.splitlines()] == list(range(1, WALK + 1))
    said = "".join(path.read_text() for path in (stopped[how] / "runs/.submitit").rglob("*_log.out"))
    assert ("this job is timed-out" in said) == (how == "time limit")


def test_a_training_that_was_requeued_ends_with_the_uninterrupted_result(slurm, stopped):
    wanted, wanted_steps = ended(slurm, stopped["training alone"])
    ours, steps = ended(slurm, stopped["training"])
    (log,) = (stopped["training"] / "runs/.submitit").rglob("*_log.out")
    resumed = re.findall(r"training resumes from step (\d+) of (\d+)", log.read_text())
    assert len(resumed) == 1 and 0 < int(resumed[0][0]) < int(resumed[0][1]) == ours["train"]["steps"]
    assert steps == wanted_steps, "every step's loss, gradient norm and rate"
    for part in ("cell", "metrics", "counts", "eval", "loss"):
        assert ours[part] == wanted[part], part


def test_nothing_is_left_running(slurm):
    def anybodys():
        return subprocess.run(["squeue", "-h"], env=slurm, capture_output=True, text=True, check=True).stdout

    until(lambda: not anybodys(), "an empty queue")
