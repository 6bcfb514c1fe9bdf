"""A cell in a process of its own, so that it can be killed, and so that nothing which ran before rounds its sums."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]), "OMP_NUM_THREADS": "1",
}  # fmt: skip

SCRIPT = """
import os, pickle, signal
from pathlib import Path
import {module} as test

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

{before}
root = Path({root!r})
result = test.run(test.make_config({model!r}), root)
(root / "result.pickle").write_bytes(pickle.dumps(result))
"""


def run_apart(module: str, model: Path, root: Path) -> Any:
    """The result of `run(make_config(model), root)` of a test module, in a fresh process."""
    done = _run(module, model, root, "")
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads((root / "result.pickle").read_bytes())


def run_until_killed(module: str, model: Path, root: Path, before: str) -> None:
    """The same, by a process that must kill itself: `before` arranges that `die` is called."""
    done = _run(module, model, root, before)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def _run(module: str, model: Path, root: Path, before: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(module=module, before=before, root=str(root), model=str(model))
    return subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
