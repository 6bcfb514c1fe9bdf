"""SLURM's view of a sweep, joined with the files that cells left; and cancelling. Without SLURM, the files alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from research.cells.cell import write_atomically
from research.cells.claim import LIVING, job_of
from research.errors import ConfigurationError
from research.sweep.frozen import LAUNCHES
from research.sweep.states import State, state_of

JOBS = "jobs.json"
# How SLURM ends a job by itself, or by the job's own exit status.
BROKEN = ("FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED")


@dataclass(frozen=True)
class Queued:
    """What the queue says of a job: its state (PENDING, RUNNING, ...), why it waits, and its comment.

    `hydra/launcher=slurm` sets the comment to the file of the launch, whose rows the array's tasks are.
    """

    state: str
    reason: str
    comment: str


def joined_states(places: Sequence[tuple[Path, Path]]) -> list[State]:
    """The state of each cell, given as (directory under eval_results, directory under runs).

    A result is done, whatever SLURM says. Else a job in the queue decides; else the files; and where a submitted cell
    left none, what the accounting knows of its job. Raises ConfigurationError when squeue fails.
    """
    with ThreadPoolExecutor(16) as pool:  # on a network file system, looking at a file is what takes the time
        states = list(pool.map(lambda place: state_of(*place), places))
    if shutil.which("squeue") is None or all(state.state == "done" for state in states):
        return states
    folders = {scratch.parent for _, scratch in places}
    jobs = {folder / name: job for folder in folders for name, job in _read_jobs(folder).items()}
    queue = _queue() if jobs or any(_used_slurm(folder) for folder in folders) else {}
    jobs |= dict(pair for folder in folders for pair in _launched(queue, folder))
    claims = {i: job_of(places[i][1]) for i, state in enumerate(states) if state.state == "running"}
    living = _living({job for job in claims.values() if job is not None})
    for i, state in enumerate(states):
        job = jobs.get(places[i][1])
        if state.state == "done":
            continue
        if job in queue:
            states[i] = _in_queue(state, queue[job])
        elif (claimed := claims.get(i)) is not None and claimed not in living:
            states[i] = state_of(*places[i], claimed=False)
    silent = {i: job for i, s in enumerate(states) if s.state == "to do" and (job := jobs.get(places[i][1]))}
    ended = _ended(silent.values())
    for i, job in silent.items():
        states[i] = _after(states[i], job, ended.get(job))
    return states


def remember(ids: Mapping[Path, str]) -> None:
    """Note the jobs of submitted cells (runs directory -> job id) beside them, in jobs.json."""
    for folder in {scratch.parent for scratch in ids}:
        known = _read_jobs(folder) | {scratch.name: job for scratch, job in ids.items() if scratch.parent == folder}
        write_atomically(folder / JOBS, json.dumps(known, indent=1))


def cancel(runs: Path) -> list[str]:
    """Cancel a sweep's jobs that are queued or running, by its directory under runs/; their ids."""
    known = set(_read_jobs(runs).values())
    queue = _queue() if known or _used_slurm(runs) else {}
    held = sorted({job for _, job in _launched(queue, runs)} | (known & set(queue)))
    for part in _parts(held):
        _run(["scancel", *part])
    return held


def _in_queue(state: State, job: Queued) -> State:
    if job.state in LIVING:
        return replace(state, state="running", reason=state.reason if state.state == "running" else job.state.lower())
    return replace(state, state="queued", reason=f"{job.state}, {job.reason}".lower())


def _after(state: State, job: str, ended: str | None) -> State:
    """A submitted cell that left neither a result nor an error, and is not in the queue."""
    if ended in BROKEN:
        return replace(state, state="failed", reason=f"SLURM ended job {job}: {ended}")
    return replace(state, reason=f"job {job} ended without a result: {ended}" if ended else "")


def _queue() -> dict[str, Queued]:
    """The user's own jobs in SLURM's queue, array tasks one by one."""
    rows = (line.split("|", 3) for line in _run(["squeue", "-h", "-r", "--me", "-o", "%i|%T|%r|%k"]).splitlines())
    return {job: Queued(state, reason, comment) for job, state, reason, comment in rows}


def _launched(queue: Mapping[str, Queued], folder: Path) -> list[tuple[Path, str]]:
    """(cell's directory, job) for those jobs of a sweep that `-m hydra/launcher=slurm` submitted; folder: under runs/.

    A cell may have several, when the command was given twice.
    """
    launches = (folder.parents[1] / LAUNCHES).resolve()
    sweep, found, read = f"{folder.parent.name}/{folder.name}", [], {}
    for job, queued in queue.items():
        path = Path(queued.comment)
        if path.parent != launches or not path.exists():
            continue
        if path not in read:
            read[path] = json.loads(path.read_text())
        row = read[path][int(job.partition("_")[2] or 0)]
        if row["sweep"] == sweep:
            found.append((folder / row["name"], job))
    return found


def _used_slurm(folder: Path) -> bool:
    """Whether jobs of a sweep were ever submitted with our launcher, which leaves their scripts and logs here."""
    return (folder.parents[1] / ".submitit" / folder.parent.name / folder.name).exists()


def _living(jobs: set[str]) -> set[str]:
    """Those of some jobs, anybody's, that may have processes."""
    found: set[str] = set()
    for part in _parts(jobs):
        asked = ["squeue", "-h", "-t", "all", "-j", ",".join(part), "-o", "%A|%T"]
        rows = (line.split("|") for line in _run(asked, unless="Invalid job id").splitlines())
        found |= {job for job, state in rows if state in LIVING}
    return found


def _ended(jobs: Iterable[str]) -> dict[str, str]:
    """How jobs that left the queue ended, where the cluster keeps accounts: COMPLETED, FAILED, OUT_OF_MEMORY, ..."""
    found: dict[str, str] = {}
    if shutil.which("sacct") is None:
        return found
    for part in _parts(jobs):
        asked = ["sacct", "-X", "-n", "-P", "-j", ",".join(part), "-o", "JobID,State"]
        rows = (line.split("|") for line in _run(asked, unless="accounting storage is disabled").splitlines())
        found |= {job: state.split()[0] for job, state in rows if state}
    return found


def _run(command: Sequence[str], unless: str | None = None) -> str:
    """A SLURM command's output; empty for a failure that says `unless`. Raises ConfigurationError for any other."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{command[0]} is not on this machine: ask on a login node of the cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"{command[0]} did not answer within {error.timeout:.0f} s.") from error
    if done.returncode == 0:
        return done.stdout
    if unless is not None and unless in done.stderr:
        return ""
    raise ConfigurationError(f"{command[0]} failed: {done.stderr.strip() or f'exit status {done.returncode}'}")


def _parts(jobs: Iterable[str], size: int = 500) -> list[list[str]]:
    """Job ids, as many at a time as a command line takes."""
    every = sorted(jobs)
    return [every[start : start + size] for start in range(0, len(every), size)]


def _read_jobs(folder: Path) -> dict[str, str]:
    path = folder / JOBS
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is not a list of jobs ({error}); move it away. What it listed is shown by squeue only."
        ) from error
