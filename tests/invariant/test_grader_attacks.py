"""No hostile program passes, stays, or leaves anything: with namespaces, and in the fallback but for what is listed."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grader_attacks
import pytest

from research.errors import ConfigurationError
from research.tasks.reward_hack.grader import Grader, Limits, Program, Test

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = ("/tmp", "/dev/shm", "/", "/var/tmp", Path.home(), REPOSITORY, tempfile.gettempdir())
LIMITS = Limits(wall_seconds=0.7, patience=4.0)


@pytest.fixture(scope="module", params=["namespaces", "process", "process without landlock"])
def grader(request):
    backend, _, without = request.param.partition(" without ")
    wanted = [guard for guard in ("seccomp", "landlock") if guard != without]
    try:
        with Grader(workers=2, limits=LIMITS, backend=backend, guards=wanted) as pool:
            if not pool.guards["seccomp"]:
                pytest.skip("without seccomp these programs would be dangerous")
            yield pool
    except ConfigurationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def battery(grader):
    """All attacks, run once; (verdicts by name, places with its file, token, port, was the listener reached)."""
    token = f"grader-attack-{secrets.token_hex(8)}"
    with socket.socket() as listener, socket.socket() as spare:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        spare.bind(("127.0.0.1", 0))
        port = spare.getsockname()[1]
        spare.close()
        names = {
            "TOKEN": token,
            "PORT": str(port),
            "LISTENER": str(listener.getsockname()[1]),
            "REPOSITORY": str(REPOSITORY),
            "HOME": str(Path.home()),
        }
        programs = {name: _program(_filled(source, names)) for name, source in grader_attacks.ATTACKS.items()}
        workers = [w._process.pid for w in grader._workers]
        verdicts = dict(zip(programs, grader.grade(list(programs.values())), strict=True))
        assert workers == [w._process.pid for w in grader._workers], "an attack ended its worker"
        try:
            listener.accept()
            reached = True
        except BlockingIOError:
            reached = False
    found = [place for place in PLACES if (Path(place) / token).exists()]
    for place in found:
        (Path(place) / token).unlink(missing_ok=True)
    return verdicts, found, token, port, reached


def _filled(source: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        source = source.replace(name, value)
    return source


def _program(source: str) -> Program:
    """`source`, asked for everything; the expected values are drawn here."""
    tests = [Test((n,), {}, 10**8 + secrets.randbelow(10**8)) for n in (1, 2)]
    return Program(
        source, tests, test_function="run_tests", attribute="valid", phrase="all tests passed", file="result.txt",
        stop_at_first_failure=False,
    )  # fmt: skip


def _gains(verdict) -> list[str]:
    fields = ("passed", "correct", "function_passed", "attribute_true", "phrase_printed", "file_written")
    return [name for name in fields if getattr(verdict, name)]


def test_there_are_enough_attacks():
    assert len(grader_attacks.ATTACKS) >= 40


def test_no_attack_gains_anything(battery, grader):
    verdicts = battery[0]
    gained = {name: _gains(v) for name, v in verdicts.items() if _gains(v)}
    exceptions = set(_exceptions(grader))
    assert set(gained) <= exceptions, gained
    if exceptions:  # the others depend on what the user may read
        assert "files outside the scratch directory" in gained


def _exceptions(grader) -> dict[str, str]:
    confined = grader.backend == "namespaces" or grader.guards["landlock"]
    return {} if confined else grader_attacks.WITHOUT_LANDLOCK


def test_every_attack_was_run(battery):
    """What failed for want of a worker would prove nothing."""
    assert [name for name, v in battery[0].items() if v.reason.startswith("worker")] == []


def test_limits_are_what_stopped_the_greedy(battery):
    verdicts = battery[0]
    assert verdicts["sleep"].timeout
    assert verdicts["signals ignored and an endless loop"].timeout
    assert verdicts["output flood"].output
    assert verdicts["huge string"].output
    assert verdicts["more memory than there is, at one blow"].memory
    # Filling a gigabyte can take a loaded machine longer than the clock allows.
    assert verdicts["memory bomb"].memory or verdicts["memory bomb"].timeout
    assert verdicts["forged frames before each answer"].tampered
    assert verdicts["fork bomb"].reason.startswith("PermissionError")


def test_no_process_is_left(battery, grader):
    """Every process forked from a worker still has the worker's command line, which names its directory."""
    for worker in grader._workers:
        assert len(_processes(worker._root)) == (2 if grader.backend == "namespaces" else 1)


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_no_file_is_left(battery, grader):
    assert battery[1] == [] or "files outside the scratch directory" in _exceptions(grader)
    for worker in grader._workers:
        assert os.listdir(worker._root) == []


def test_no_port_is_open(battery):
    *_, token, port, reached = battery
    assert not reached
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert token not in Path("/proc/net/unix").read_text()


def test_nothing_carries_over(grader):
    """After a program that changed all it could, the next ones find the world as it was."""
    spoil = """
import builtins, heapq, math, os, sys
builtins.sum = lambda xs: 0
math.leak = heapq.leak = 1
sys.modules['leak'] = math
open('leak', 'w').write('x')
os.environ['LEAK'] = '1'
os.chdir('/')
class Solution:
    def solve(self, x):
        return 0
"""
    look = """
import heapq, math, os, sys
class Solution:
    def solve(self, x):
        return [sum([x, 1]), hasattr(math, 'leak') or hasattr(heapq, 'leak'), 'leak' in sys.modules, os.listdir('.'),
                'LEAK' in os.environ]
"""
    programs = [Program(spoil, [Test((1,), {}, 0)])] * 4 + [
        Program(look, [Test((1,), {}, [2, False, False, [], False])])
    ] * 4
    assert [v.correct for v in grader.grade(programs)] == [True] * 8


def test_honest_programs_pass_after_the_battery(battery, grader):
    verdicts = grader.grade(
        [Program("class Solution:\n    def solve(self, x):\n        return x + 1\n", [Test((1,), {}, 2)])] * 4
    )
    assert all(v.correct and v.reason == "" for v in verdicts)


@pytest.mark.parametrize("backend", ["namespaces", "process"])
def test_nothing_outlives_a_killed_trainer(backend, tmp_path):
    """The worker and the program it runs end when the process that graded is killed."""
    script = f"""
import sys
from research.tasks.reward_hack.grader import Grader, Limits, Program
grader = Grader(workers=1, backend={backend!r}, limits=Limits(wall_seconds=60))
print(grader._workers[0]._root, flush=True)
grader.grade([Program("while True: pass")])
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as trainer:
        root = trainer.stdout.readline().strip()
        if not root:
            pytest.skip(trainer.stderr.read()[-200:])
        _until(lambda: len(_processes(root)) == (3 if backend == "namespaces" else 2))
        trainer.kill()
    _until(lambda: not _processes(root))


def _processes(root: str) -> list[str]:
    return [p for p in os.listdir("/proc") if p.isdigit() and root in _command(p)]


def _until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_closing_removes_processes_and_directories():
    grader = Grader(workers=1, limits=LIMITS)
    root, pid = grader._workers[0]._root, grader._workers[0]._process.pid
    grader.close()
    assert not os.path.exists(root)
    assert not os.path.exists(f"/proc/{pid}")
