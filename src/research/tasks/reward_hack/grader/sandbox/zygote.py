"""One warm worker: a process with Python's usual modules imported that forks a fresh child for each program.

It never sees a program, an argument or an answer: it takes two descriptors, gives them to a new child, and when told
to, kills whatever is left, reads the marker file, and empties the scratch directory. So nothing is there that a child
could inherit.

Started by `worker.py` as `python -S -c ... <settings as JSON>`, its control socket as descriptor 0. Messages on it:

    -> {"run": {}} with two descriptors (job, stdout)      <- {"pid": n} | {"error": text}
    -> {"cpu": {}}                                         <- {"cpu": seconds the child has used}
    -> {"end": {"file": name or null, "size": bytes}}      <- {"status": wait status, "file": hex or null}
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import signal
import socket
import stat
import sys
import time

import child
import guards

# Imported before the first fork: what programs import costs them nothing, and stays readable in any sandbox.
PREIMPORTED = """
    abc array bisect calendar cmath collections collections.abc contextlib copy csv dataclasses datetime decimal enum
    fractions functools hashlib heapq inspect io itertools json logging math numbers operator pprint queue random re
    statistics string struct tempfile textwrap threading time traceback types typing unittest uuid warnings zlib
"""


def main() -> None:
    """Guard this process, say which guards hold, serve until the control socket closes."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    for name in PREIMPORTED.split():
        importlib.import_module(name)
    try:
        sandbox = Sandbox(settings)
    except OSError as error:
        _send(control, {"error": str(error)})
        return
    if settings["namespaces"]:
        _become_init(control)
        try:
            guards.build_root(settings["root"], "/scratch")
        except OSError as error:
            _send(control, {"error": str(error)})
            return
    try:
        sandbox.prepare()
    except OSError as error:
        _send(control, {"error": str(error)})
        return
    gc.collect()
    gc.freeze()
    _send(control, {"ready": sandbox.guards})
    sandbox.serve(control, null)


def _become_init(control: socket.socket) -> None:
    """Fork into the new process namespace and return there; its first process takes all others with it when it ends."""
    inner = os.fork()
    if inner == 0:
        guards.prctl(guards.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        return
    control.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(inner, 0)
    os._exit(0)


class Sandbox:
    """The guards of one worker and the child it runs now."""

    def __init__(self, settings: dict) -> None:
        self.limits = settings["limits"]
        self.namespaces = settings["namespaces"]
        self.guards = {"namespaces": self.namespaces, "landlock": 0, "seccomp": False}
        self.scratch = "/scratch" if self.namespaces else settings["root"]
        self.wants = settings["guards"]
        self.pid = 0
        self.used = False
        self.filter = b""
        # Root of a container may be unable to: there, nobody is not always a user that it may become.
        self.drop_user = not self.namespaces and os.geteuid() == 0 and _works(lambda: guards.become_nobody(False))
        if self.namespaces:
            guards.enter_namespaces()

    def prepare(self) -> None:
        """All guards that this process itself can take on."""
        if "seccomp" in self.wants:
            with contextlib.suppress(OSError):
                self.filter = guards.seccomp_program()
                self.guards["seccomp"] = _works(lambda: guards.install_seccomp(self.filter))
        if not self.guards["seccomp"]:
            if self.namespaces:
                raise OSError("no seccomp: processes of a reply could not be told from the worker")
            guards.prctl(guards.PR_SET_CHILD_SUBREAPER, 1)
        if not self.namespaces:
            self.own_scratch()
            if "landlock" in self.wants and guards.landlock_version():
                guards.restrict_paths(self.scratch)
                self.guards["landlock"] = guards.landlock_version()
            os.chdir("/")
        guards.prctl(guards.PR_SET_DUMPABLE, 0)  # nobody reads this process's memory, nor that of its children

    def serve(self, control: socket.socket, null: int) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
            if not message:
                return
            request = json.loads(message)
            if "run" in request:
                job, stdout = descriptors
                try:
                    _send(control, {"pid": self.start(job, stdout, null)})
                except OSError as error:
                    _send(control, {"error": str(error)})
                os.close(job)
                os.close(stdout)
            elif "cpu" in request:
                _send(control, {"cpu": time.clock_gettime(_cpu_clock(self.pid))})
            else:
                _send(control, self.end(**request["end"]))

    def start(self, job: int, stdout: int, null: int) -> int:
        """Fork the child for one program."""
        if self.namespaces:
            os.chdir("/")
            guards.fresh_scratch(self.scratch, self.limits["scratch"], 64, self.used)
        self.used = True
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.become_child(job, stdout, null)
                child.serve()
            finally:
                os._exit(0)
        return self.pid

    def become_child(self, job: int, stdout: int, null: int) -> None:
        """Everything that is given up between the fork and the reply's first line."""
        os.setsid()
        high = [os.dup(job), os.dup(stdout), os.dup(null)]
        for target, source in ((3, high[0]), (1, high[1]), (0, high[2]), (2, high[2])):
            os.dup2(source, target)
        os.closerange(4, 4096)
        os.chdir(self.scratch)
        os.umask(0o077)
        sys.argv = ["reply"]
        random.seed(0)  # the module seeds itself anew in every fork
        limits = self.limits
        if self.drop_user:
            guards.become_nobody(read_all=bool(self.guards["landlock"]))
        threads = 64 if self.namespaces else None
        guards.set_limits(limits["memory"], limits["cpu_seconds"], limits["scratch"], threads)
        if self.namespaces:
            guards.drop_capabilities()
        guards.prctl(guards.PR_SET_PDEATHSIG, signal.SIGKILL)  # here, since a change of user clears it
        if self.guards["seccomp"]:
            guards.install_seccomp(self.filter)

    def end(self, file: str | None, size: int) -> dict:
        """Kill the child and all it left, read the marker file, empty the scratch directory."""
        status = self.reap()
        content = self.read_marker(file, size) if file else None
        if not self.namespaces:
            _empty(self.scratch)
            self.own_scratch()
        return {"status": status, "file": content}

    def own_scratch(self) -> None:
        """The scratch directory belongs to whom programs run as; without Landlock one may have removed it."""
        os.chmod(self.scratch, 0o700)
        if self.drop_user:
            os.chown(self.scratch, guards.NOBODY, guards.NOBODY)

    def reap(self) -> int:
        """The child's wait status; no descendant is left when this returns."""
        status = -1
        os.kill(self.pid, signal.SIGKILL)
        if self.namespaces:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        while True:
            if not self.namespaces and not self.guards["seccomp"]:
                for pid in _children():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            try:
                pid, ended = os.waitpid(-1, 0)
            except ChildProcessError:
                return status
            if pid == self.pid:
                status = ended

    def read_marker(self, name: str, size: int) -> str | None:
        """The start of a regular file of that name in the scratch directory, as hex; links and pipes are not read."""
        try:
            file = os.open(os.path.join(self.scratch, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            return os.read(file, size).hex() if stat.S_ISREG(os.fstat(file).st_mode) else None
        finally:
            os.close(file)


def _cpu_clock(pid: int) -> int:
    """The kernel's number for the clock of a process's CPU time (clock_getcpuclockid)."""
    return (~pid << 3) | 2


def _works(action) -> bool:
    """Whether `action` succeeds in a process of its own, which then ends."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _children() -> list[int]:
    """Processes whose parent is this one: what daemons become when their parents end (this process is a subreaper)."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def _empty(directory: str) -> None:
    """Remove all that is in the directory, however deep and whatever its permissions; links are never followed.

    What a subdirectory holds is moved up before the subdirectory goes, so depth costs neither stack nor descriptors.
    """
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, 0o700)
    moved = 0
    while entries := list(os.scandir(directory)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)
                moved += 1
                os.rename(inner.path, os.path.join(directory, f".moved{moved}"))
            os.rmdir(entry.path)


def _send(control: socket.socket, message: dict) -> None:
    control.send(json.dumps(message).encode())


if __name__ == "__main__":
    main()
