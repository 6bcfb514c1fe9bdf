"""A real SLURM of one node, for the tests: munge, accounting, controller and node daemon. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[dict[str, str]]:
    """Start the cluster; yields the environment in which its commands work. Everything is stopped at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("state", "spool", "log"):
        (directory / name).mkdir(exist_ok=True)
    started: list[subprocess.Popen] = []
    database = Path(tempfile.mkdtemp(prefix="slurm-db-", dir="/var/tmp"))
    environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}
    try:
        _munge(started)
        port = _database(started, database, directory)
        _write_configuration(directory, port)
        _start(started, ["slurmdbd", "-D"], directory, environment | {"SLURM_CONF": str(directory / "slurm.conf")})
        _until(lambda: _ok(["sacctmgr", "-n", "show", "cluster"], environment), "slurmdbd")
        subprocess.run(["sacctmgr", "-i", "add", "cluster", "bench"], env=environment, capture_output=True, check=False)
        _start(started, ["slurmctld", "-D"], directory, environment)
        _start(started, ["slurmd", "-D"], directory, environment)
        _until(lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], environment), "an idle node")
        yield environment
    finally:
        subprocess.run(["scancel", "--me"], env=environment, capture_output=True, check=False)
        with contextlib.suppress(RuntimeError):  # the processes of jobs outlive a node daemon that ends before them
            _until(lambda: not _output(["squeue", "-h"], environment), "an empty queue")
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(database, ignore_errors=True)


def _munge(started: list[subprocess.Popen]) -> None:
    key = Path("/etc/munge/munge.key")
    if not key.exists():
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        shutil.chown(key, "munge", "munge")
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    if not _ok(["munge", "-n"]):
        command = ["runuser", "-u", "munge", "--", "munged", "--foreground", "--force"]
        started.append(subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL))
        _until(lambda: _ok(["munge", "-n"]), "munge")


def _database(started: list[subprocess.Popen], data: Path, directory: Path) -> int:
    """A private MariaDB for the accounting: without it a job that dies hard is never seen to have failed."""
    port = _free_port()
    shutil.chown(data, "mysql", "mysql")
    data.chmod(0o755)
    install = ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db"]
    subprocess.run(install, capture_output=True, check=True)
    sock = data / "db.sock"
    server = [
        "mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}", f"--socket={sock}",
        "--bind-address=127.0.0.1", f"--port={port}", f"--pid-file={data / 'db.pid'}", "--innodb-buffer-pool-size=32M",
    ]  # fmt: skip
    _start(started, server, directory, dict(os.environ))
    client = ["mariadb", "--no-defaults", f"--socket={sock}", "--user=root"]
    _until(lambda: _ok([*client, "-e", "select 1"]), "the database")
    grants = "".join(
        f"create user slurm@'{host}' identified by 'slurm'; grant all on slurm_acct_db.* to slurm@'{host}';"
        for host in ("localhost", "127.0.0.1")
    )
    subprocess.run([*client, "-e", grants], check=True)
    return port


def _write_configuration(directory: Path, port: int) -> None:
    host, memory = socket.gethostname().split(".")[0], _memory_mb()
    controller, node, accounting = (_free_port() for _ in range(3))
    settings = {
        "ClusterName": "bench", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmUser": "root", "SlurmdUser": "root",
        "SlurmctldPort": controller, "SlurmdPort": node,
        "StateSaveLocation": directory / "state", "SlurmdSpoolDir": directory / "spool",
        "SlurmctldPidFile": directory / "ctld.pid", "SlurmdPidFile": directory / "d.pid",
        "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "MpiDefault": "none",
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core", "ReturnToService": 2,
        "AccountingStorageType": "accounting_storage/slurmdbd", "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": accounting, "JobAcctGatherType": "jobacct_gather/linux", "MaxArraySize": 4,
        "KillWait": 2,
        # The tests' jobs mostly wait: more of them run at once than there are processors.
        "SlurmdParameters": "config_overrides",
        # How long a requeued job is held, instead of two minutes.
        "AuthInfo": "cred_expire=30",
    }  # fmt: skip
    lines = [f"{key}={value}" for key, value in settings.items()]
    lines.append(f"NodeName={host} NodeAddr=127.0.0.1 CPUs=6 RealMemory={memory} State=UNKNOWN")
    lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    (directory / "slurm.conf").write_text("\n".join(lines) + "\n")
    storage = {
        "DbdHost": "localhost", "DbdAddr": "127.0.0.1", "DbdPort": accounting, "SlurmUser": "root",
        "AuthType": "auth/munge", "StorageType": "accounting_storage/mysql", "StorageHost": "127.0.0.1",
        "StoragePort": port, "StorageUser": "slurm", "StoragePass": "slurm", "StorageLoc": "slurm_acct_db",
        "PidFile": directory / "dbd.pid",
    }  # fmt: skip
    path = directory / "slurmdbd.conf"
    path.write_text("\n".join(f"{key}={value}" for key, value in storage.items()) + "\n")
    path.chmod(0o600)


def _start(started: list[subprocess.Popen], command: list[str], directory: Path, environment: dict[str, str]) -> None:
    log = (directory / "log" / f"{Path(command[0]).name}.log").open("wb")
    started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))


def _until(condition, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come up within {seconds:.0f} s")
        time.sleep(0.2)


def _ok(command: list[str], environment: dict[str, str] | None = None) -> bool:
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _memory_mb() -> int:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(pages / 2**20 * 0.9)
