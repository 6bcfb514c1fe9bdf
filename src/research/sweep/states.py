"""What became of each cell, told by the files it left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.cells.claim import holder

STATES = ("done", "running", "failed", "queued", "to do")


@dataclass(frozen=True)
class State:
    """One cell's state, and the reason where it has one: the error's last line, or who runs it."""

    name: str
    state: str
    reason: str = ""


def state_of(directory: Path, scratch: Path, claimed: bool = True) -> State:
    """Done: the result exists. Running: a living process holds the claim. Failed: only an error is there.

    claimed: False where the claim is known to be a dead process's.
    """
    if (directory / "run_result.json").exists():
        return State(directory.name, "done")
    if claimed and (scratch / "claim.json").exists() and (owner := holder(scratch)):
        return State(directory.name, "running", owner)
    error = directory / "error.txt"
    if error.exists():
        lines = error.read_text(errors="replace").strip().splitlines()
        return State(directory.name, "failed", lines[-1] if lines else "")
    return State(directory.name, "to do")


def count(states: Iterable[State]) -> dict[str, int]:
    """How many cells are in each state."""
    found = dict.fromkeys(STATES, 0)
    for state in states:
        found[state.state] += 1
    return found


@dataclass(frozen=True)
class Cost:
    """seconds = base + slope * units, units being epochs or steps; fitted to `n` earlier results."""

    base: float
    slope: float
    n: int

    def seconds(self, units: float) -> float:
        return self.base + self.slope * units


def fit_cost(results: Sequence[dict[str, Any]]) -> Cost | None:
    """Fit the cost of a cell to earlier run_result.json documents of the same task; None without any.

    Training grows with the units, by least squares through zero, and the other phases are their mean. Of a task that
    names no phase `train` the whole cell grows.
    """
    if not results:
        return None
    units = [units_of(result["cell"]["config"]) for result in results]
    totals = [float(result["wall_seconds"]["total"]) for result in results]
    trained = [float(r["wall_seconds"].get("train", total)) for r, total in zip(results, totals, strict=True)]
    slope = sum(x * y for x, y in zip(units, trained, strict=True)) / sum(x * x for x in units)
    return Cost((sum(totals) - sum(trained)) / len(results), slope, len(results))


def units_of(settings: dict[str, Any]) -> float:
    """What a cell's time grows with: its epochs, else its steps."""
    return float(settings.get("epochs") or settings.get("steps") or 1)


def earlier_results(results_root: Path, task_name: str, model_name: str, limit: int = 200) -> list[dict[str, Any]]:
    """The newest results of a task with one model, of any sweep under a results root; what is no JSON is passed over."""
    paths = sorted(
        (results_root / "eval_results" / task_name).glob("*/*/run_result.json"), key=lambda p: -p.stat().st_mtime
    )
    found = []
    for path in paths[:limit]:
        try:
            document = json.loads(path.read_text())
        except (ValueError, FileNotFoundError):
            continue
        if document.get("cell", {}).get("config", {}).get("model.name") == model_name and "wall_seconds" in document:
            found.append(document)
    return found
