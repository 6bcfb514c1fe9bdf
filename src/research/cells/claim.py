"""One process a cell: a claim file with a heartbeat, so that two sweeps over the same cells do no work twice.

Creation is atomic on local and network file systems (a hard link either appears or does not). A claim whose process is
gone (same machine) or whose heartbeat stopped (another machine) is taken over; the takeover is a rename that one wins.
A claim made in a SLURM job names the job, so that one whose job was cancelled or requeued is not waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0

# SLURM's states of a job whose processes may be there.
LIVING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "CONFIGURING")


class AlreadyRunning(Exception):
    """Another living process holds the cell."""


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Hold the cell whose scratch directory this is; raises AlreadyRunning when another process does."""
    path = directory / "claim.json"
    token = json.dumps(
        {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot(os.getpid()), "at": time.time_ns(), **_job()}
    )
    _acquire(path, token)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _read(path) == token:
            path.unlink(missing_ok=True)


def holder(directory: Path) -> str | None:
    """`pid N on HOST` of the living process that holds a cell, or None."""
    text = _read(directory / "claim.json")
    if text is None or not _alive(directory / "claim.json", text):
        return None
    owner = json.loads(text)
    return f"process {owner['pid']} on {owner['host']}"


def job_of(directory: Path) -> str | None:
    """The id of the SLURM job whose process claimed a cell; None without a claim, or for one made outside SLURM."""
    text = _read(directory / "claim.json")
    try:
        return json.loads(text).get("job") if text is not None else None
    except ValueError:
        return None


def _acquire(path: Path, token: str) -> None:
    mine = path.with_name(f"claim.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}.tmp")
    mine.write_text(token)
    try:
        for _ in range(20):
            try:
                os.link(mine, path)
                return
            except FileExistsError:
                current = _read(path)
                if current is not None and _alive(path, current) and not _job_ended(json.loads(current)):
                    owner = json.loads(current)
                    raise AlreadyRunning(f"process {owner['pid']} on {owner['host']} is running this cell") from None
                grave = mine.with_suffix(".stale")
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, grave)
                    if _read(grave) != current:  # somebody else had already taken over: give it back
                        with contextlib.suppress(FileExistsError):
                            os.link(grave, path)
                grave.unlink(missing_ok=True)
                time.sleep(0.05)
        raise AlreadyRunning(f"{path} keeps changing hands; another sweep runs over the same cells")
    finally:
        mine.unlink(missing_ok=True)


def _alive(path: Path, text: str) -> bool:
    try:
        owner = json.loads(text)
        age = time.time() - path.stat().st_mtime
    except (ValueError, OSError):
        return False
    if owner["host"] == socket.gethostname():
        return _boot(owner["pid"]) == owner["boot"] and owner["boot"] is not None
    return age < STALE_SECONDS


def _job() -> dict[str, str]:
    """The SLURM job that this process is part of, and which attempt of it."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"job": job, "attempt": os.environ.get("SLURM_RESTART_COUNT", "0")} if job else {}


def _job_ended(owner: dict[str, str]) -> bool:
    """Whether a claim's SLURM job is over, or is our own in an earlier attempt; False where nobody knows."""
    mine = _job()
    if owner.get("job") is None or owner["host"] == socket.gethostname():
        return False
    if owner["job"] == mine.get("job"):
        return owner.get("attempt") != mine["attempt"]
    try:
        asked = subprocess.run(
            ["squeue", "-h", "-t", "all", "-j", owner["job"], "-o", "%T"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    if asked.returncode != 0:
        return "Invalid job id" in asked.stderr
    return not any(state in LIVING for state in asked.stdout.split())


def _boot(pid: int) -> str | None:
    """The start time of a process, which tells it from a later one of the same number; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if stat[0] in "ZX" else stat[19]


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
