"""One worker seen from outside: its process, the children it forks, the files and processes that go when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from research.tasks.reward_hack.grader.conversation import Conversation
from research.tasks.reward_hack.grader.program import Limits, Program, Verdict

_SANDBOX = Path(__file__).parent / "sandbox"
_FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8")  # no user's or installed packages, no current directory
_BOOT = "import sys; sys.path[:0] = {paths!r}; import zygote; del sys.path[:{count}]; zygote.main()"
_START_SECONDS = 60.0
_MARKER_BYTES = 4096  # of the result file; must fit a message


class WorkerError(RuntimeError):
    """A worker that could not be started, or ended on its own."""


class Worker:
    """One sandboxed zygote. `guards` says which protections hold once it is started."""

    def __init__(self, limits: Limits, namespaces: bool, wanted: tuple[str, ...] = ("seccomp", "landlock")) -> None:
        self.limits = limits
        self._root = tempfile.mkdtemp(prefix="grader-")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        self._stderr = b""
        settings = {
            "limits": limits.for_sandbox(),
            "namespaces": namespaces,
            "root": self._root,
            "guards": wanted,
        }
        boot = _BOOT.format(paths=[str(_SANDBOX), str(_SANDBOX.parent)], count=2)
        self._process = subprocess.Popen(
            [sys.executable, *_FLAGS, "-c", boot, json.dumps(settings)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},  # so that sets of strings have the same order in every run
            start_new_session=True,
        )
        theirs.close()
        try:
            answer = self._receive(_START_SECONDS)
        except WorkerError as error:
            self.close()
            raise WorkerError(f"{error}: {self._last_words()}") from None
        if "error" in answer:
            self.close()
            raise WorkerError(answer["error"])
        self.guards: dict[str, object] = answer["ready"]

    def close(self) -> None:
        """End the worker and everything in it; its directory goes."""
        self._control.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stderr = self._process.stderr
        if stderr is not None and not stderr.closed:
            self._stderr = stderr.read()
            stderr.close()
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._root)

    def _last_words(self) -> str:
        lines = self._stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def run(self, program: Program) -> Verdict:
        """Run one program in a fresh child. Raises WorkerError when the worker itself is gone."""
        job_ours, job_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        out_ours, out_theirs = os.pipe()
        os.set_blocking(out_ours, False)
        started = time.monotonic()
        try:
            socket.send_fds(self._control, [b'{"run": {}}'], [job_theirs.fileno(), out_theirs])
            job_theirs.close()
            os.close(out_theirs)
            out_theirs = -1
            answer = self._receive(_START_SECONDS)
            if "pid" not in answer:
                raise WorkerError(f"no child could be started: {answer.get('error')}")
            talk = Conversation(job_ours, out_ours, started, self.limits, self._cpu_seconds)
            verdict = talk.hold(program)
            end = {"end": {"file": program.file, "size": _MARKER_BYTES}}
            self._control.send(json.dumps(end).encode())
            ended = self._receive(_START_SECONDS)
            talk.finish(program, verdict, ended)
            verdict.seconds = time.monotonic() - started
            return verdict
        except OSError as error:
            raise WorkerError(f"the worker is gone: {error}") from None
        finally:
            job_ours.close()
            job_theirs.close()
            os.close(out_ours)
            if out_theirs >= 0:
                os.close(out_theirs)

    def _cpu_seconds(self) -> float:
        self._control.send(b'{"cpu": {}}')
        return float(self._receive(_START_SECONDS)["cpu"])

    def _receive(self, seconds: float) -> dict:
        self._control.settimeout(seconds)
        try:
            message = self._control.recv(8 << 20)
        except TimeoutError:
            raise WorkerError(f"no answer from the worker in {seconds:.0f} s") from None
        if not message:
            raise WorkerError("the worker ended on its own")
        return json.loads(message)
