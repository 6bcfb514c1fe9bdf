"""The end of a command: compile and report what lies on disk, and say what failed and where the results are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from research.cells import run, tracking
from research.sweep.grid import Grid, by_sweep


def finish(grid: Grid, outcomes: Sequence[run.Outcome], multirun: bool) -> tuple[bool, list[str]]:
    """Compile each (task, name) of a grid; whether a cell failed, and the closing lines for the screen."""
    failures = failed_cells(grid, outcomes)
    lines = [f"failed: {name}: {reason}" for name, reason in failures]
    for folder, cells in by_sweep(grid.cells).items():
        done = sum(cell.result_path.exists() for cell in cells)
        busy = sum(outcome.status == "busy" and outcome.directory.parent == folder for outcome in outcomes)
        counted = f"{done} of {len(cells)} done" + (f", {busy} run by another process" if busy else "")
        lines.append(f"{cells[0].task_name}/{cells[0].config.name}: {counted}")
        if done:
            lines += [f"results: {path}" for path in report(cells, multirun)]
    return bool(failures), lines


def failed_cells(grid: Grid, outcomes: Sequence[run.Outcome]) -> list[tuple[str, str]]:
    """(name, last line of the error) for each cell that failed, here or, as error.txt tells, in another process."""
    failures = [(o.name, o.message.strip().splitlines()[-1]) for o in outcomes if o.status == "failed"]
    told = {o.directory for o in outcomes if o.status == "failed"}  # a name may occur in several sweeps
    for cell in grid.cells:
        error = cell.directory / "error.txt"
        if cell.directory not in told and error.exists() and not cell.result_path.exists():
            lines = error.read_text(errors="replace").strip().splitlines()
            failures.append((cell.name, lines[-1] if lines else "error.txt is empty"))
    return failures


def report(cells: Sequence[run.Plan], multirun: bool) -> list[Path]:
    """Write the compiled table, the figures and report.html; the paths worth telling."""
    from research.reporting.page import recompile

    first = cells[0]
    config, only = first.config, None if multirun else first.name
    paths = recompile(first.task_name, config.task, config.name, Path(config.results_root), only)
    if config.tracker.kind != "none":
        title = f"{first.task_name}-{config.name}"
        with tracking.track(config.tracker, first.task_name, config.name, f"{title}-compiled", {}) as tracker:
            assert tracker is not None
            tracker.artifact(title, {path.name: path for path in paths})
    return paths
