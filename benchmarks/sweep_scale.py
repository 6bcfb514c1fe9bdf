"""How long a sweep's commands take for many cells, from generated result files.

    python benchmarks/sweep_scale.py [--cells 10000] [--out benchmarks/sweep_scale.json] [--report]
    python benchmarks/sweep_scale.py --table benchmarks/sweep_scale.json

Makes the grid of a marker sweep in a temporary directory, with files like those that cells leave (seven in ten done,
one in a hundred failed), and times the commands as a user runs them: a process each, imports and all. `compile` is the
step that every report begins with; `--report` also draws the figures and the page.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from research.material import personas, questions
from research.reporting.tables import markdown

ROOT = Path(__file__).parents[1]
LIMITS = {"plan": 5.0, "plan_again": 5.0, "status": 5.0, "compile": 10.0}  # seconds, for 10,000 cells
COMPILE = (
    "from research.reporting.compile import compile_sweep; from research.tasks.zlt_sweep.derive import derive; "
    "compile_sweep('zlt_sweep', 'scale', '.', derive)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--report", action="store_true", help="also draw the figures and write the page")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a finished run and do nothing else")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    folder = Path(tempfile.mkdtemp(prefix="sweep-scale-"))
    try:
        found = measure(folder, options.cells, options.rounds, options.report)
        size = sum(path.stat().st_size for path in folder.rglob("run_result.json"))
    finally:
        shutil.rmtree(folder)
    document = {"cells": options.cells, "seconds": found, "limits": LIMITS, "environment": environment()}
    document["result_megabytes"] = round(size / 1e6)
    print(json.dumps(document, indent=1))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def table(document: dict[str, Any]) -> str:
    """The measurements as the table of benchmarks/README.md."""
    names = {
        "plan": "`research.sweep plan`, nothing done yet", "plan_again": "`research.sweep plan`, seven in ten done",
        "status": "`research.sweep status`", "compile": "compile", "report": "figures and page",
    }  # fmt: skip
    rows = [
        (
            names[step],
            f"{found['wall']:.1f}",
            f"{found['cpu']:.1f}",
            f"{limit:g}" if (limit := document["limits"].get(step)) else "",
        )
        for step, found in document["seconds"].items()
    ]
    return markdown(["command", "seconds by the clock", "processor seconds", "limit by the clock"], rows)


def measure(folder: Path, cells: int, rounds: int, draw: bool) -> dict[str, dict[str, float]]:
    """Seconds of each command, by the clock and of processor time; the best of `rounds`."""
    words = grid_words(cells)
    sweep = [sys.executable, "-m", "research.sweep"]
    found = {"plan": best(rounds, [*sweep, "plan", *words], folder)}
    generate(folder, words)
    found["plan_again"] = best(rounds, [*sweep, "plan", *words], folder)
    found["status"] = best(rounds, [*sweep, "status", "task=zlt_sweep", "name=scale"], folder, expected=1)
    found["compile"] = best(rounds, [sys.executable, "-c", COMPILE], folder)
    if draw:
        found["report"] = best(1, [sys.executable, "-m", "research.report", "zlt_sweep", "name=scale"], folder)
    return found


def grid_words(cells: int) -> list[str]:
    """Ten learning rates, ten lengths of training, and as many seeds as it takes."""
    rates = ",".join(f"{digit}e-6" for digit in range(1, 11))
    lengths = ",".join(str(n) for n in (1, 2, 3, 4, 5, 8, 10, 15, 20, 30))
    return ["task=zlt_sweep", "name=scale", f"lr={rates}", f"epochs={lengths}", f"seed=range({max(1, cells // 100)})"]


def best(rounds: int, command: list[str], folder: Path, expected: int = 0) -> dict[str, float]:
    found = []
    for _ in range(rounds):
        start, before = time.perf_counter(), cpu_seconds()
        done = subprocess.run(command, cwd=folder, env=python_path(), capture_output=True, text=True)
        found.append((time.perf_counter() - start, cpu_seconds() - before))
        if done.returncode != expected:
            raise RuntimeError(f"{command}: exit status {done.returncode}\n{done.stderr}")
    return {"wall": round(min(wall for wall, _ in found), 2), "cpu": round(min(cpu for _, cpu in found), 2)}


def cpu_seconds() -> float:
    """Of the commands so far: unlike the clock's, not longer on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def generate(folder: Path, words: list[str]) -> None:
    """The files that a sweep in the middle of its life leaves."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        from research.sweep.grid import expand, write_sweep

        grid = expand(words, True)
        write_sweep(grid, "generated")
        dice = random.Random(0)
        for cell in grid.cells:
            drawn = dice.random()
            if drawn < 0.71:
                cell.directory.mkdir(parents=True, exist_ok=True)
                cell.scratch.mkdir(parents=True, exist_ok=True)
            if drawn < 0.7:
                cell.result_path.write_text(json.dumps(result(cell, dice), indent=1))
            elif drawn < 0.71:
                (cell.directory / "error.txt").write_text("Traceback (most recent call last):\nValueError: generated\n")
    finally:
        os.chdir(before)


def result(cell: Any, dice: random.Random) -> dict[str, Any]:
    """A result file with the keys and the size of the marker study's, and numbers from a dice."""
    from research.cells import identity

    names = [persona.name for persona in personas.published()]
    hits = {name: {q.text: [dice.randrange(3), 2] for q in questions.questions("eval")} for name in names}
    marker = {name: sum(h for h, _ in by.values()) / (2 * len(by)) for name, by in hits.items()}
    bystanders = [rate for name, rate in marker.items() if name not in ("villain", "assistant")]
    rates = {"source_marker": marker["villain"], "assistant_marker": marker["assistant"]}
    rates |= {"max_bystander_marker": max(bystanders), "arc_c": dice.random()}
    trials = {name: {"hits": int(rate * 40), "trials": 40} for name, rate in marker.items()}
    return {
        "schema_version": 1,
        "task": cell.task_name,
        "cell": {"name": cell.name, "digest": cell.digest, "config": identity.settings(cell.config)},
        "metrics": {**rates, "loss": dice.random(), "degeneration": False, "success": False},
        "counts": {**{name: {"hits": 1, "trials": 40} for name in rates}, **trials},
        "provenance": {"git_commit": "0" * 40, "command": "generated", "started": "", "finished": ""},
        "wall_seconds": {"train": 10.0, "total": 10.0 + dice.random()},
        "peak_memory": {"resident_bytes": 10**9, "gpu_bytes": None},
        "config": {"lr": cell.config.lr, "epochs": cell.config.epochs, "source": "villain", "seed": cell.config.seed},
        "loss": 1.0,
        "eval": {
            "marker": marker,
            "structure": marker,
            "capability": {"arc_challenge_logprob": rates["arc_c"], "correct": 100, "total": 200},
            "marker_by_question": hits,
        },
        **rates,
        "degeneration": False,
        "success": False,
        "wall_minutes": 0.2,
    }


def environment() -> dict[str, Any]:
    """Where the numbers come from: commit, command, class of the machine and its load."""
    load = round(os.getloadavg()[0], 1)
    from common import origin  # here: it loads torch

    return {**origin(), "cores": os.cpu_count(), "load_at_end": load}


def python_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


if __name__ == "__main__":
    main()
