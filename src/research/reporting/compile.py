"""From the files of many cells to one list of rows, in grid order.

    eval_results/<task>/<name>/sweep.json, <cell>/run_result.json, <cell>/error.txt  ->  all_results_compiled.json

A cell that is missing or failed is a row with its configuration and null metrics. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from research.cells.cell import write_atomically
from research.errors import ConfigurationError
from research.reporting.rows import Row, flatten

COMPILED = "all_results_compiled.json"
Derive = Callable[[Row], Row]


def compile_sweep(
    task: str, name: str, results_root: str | Path = ".", derive: Derive = dict, also: str | None = None
) -> list[Row]:
    """Compile a sweep and write its all_results_compiled.json; returns the rows.

    derive: the task's own, called on every result. also: a cell to add when the grid does not have it.
    Several processes may finish together: each writes a whole file, and one that finds results newer than its
    own reading compiles again, so that the last file written lacks nothing.
    Raises ConfigurationError when there is no sweep.
    """
    folder = sweep_folder(task, name, results_root)
    while True:
        cells = _planned(folder, also)
        before = _state(folder, cells)
        rows = read_rows(folder, cells, task, derive)
        write_compiled(folder / COMPILED, rows)
        if _state(folder, cells) == before:
            return rows


def sweep_folder(task: str, name: str, results_root: str | Path = ".") -> Path:
    """Where a sweep's results are; raises ConfigurationError that lists the sweeps there are."""
    from research.config import nearest

    tasks = Path(results_root) / "eval_results" / task
    folder = tasks / name
    if folder.is_dir():
        return folder
    there = sorted(path.name for path in tasks.iterdir() if path.is_dir()) if tasks.is_dir() else []
    listed = f" There is {', '.join(there)}." if there else f" {tasks} holds no results yet; run the sweep first."
    raise ConfigurationError(f"There is no sweep name={name} of task={task} ({folder}).{nearest(name, there)}{listed}")


def read_rows(folder: Path, cells: Sequence[Mapping[str, Any]], task: str, derive: Derive) -> list[Row]:
    """One row a cell, in the order given, from the cell directories under `folder`; writes nothing."""
    with ThreadPoolExecutor(16) as pool:  # on a network file system, opening a file is what takes the time
        found = list(pool.map(lambda cell: _read_cell(folder, cell), cells))
    rows = [finish_row(row, task, derive) if row["status"] == "done" else row for row in found]
    fill_nulls(rows)
    return rows


def planned_cells(folder: Path) -> list[dict[str, Any]] | None:
    """The cells of sweep.json, in grid order; None without one."""
    path = folder / "sweep.json"
    if not path.exists():
        return None
    try:
        cells = list(json.loads(path.read_text())["cells"])
        if not all(isinstance(cell["name"], str) for cell in cells):
            raise TypeError("a cell without a name")
        return cells
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is not a sweep's grid ({error}); move it away, or launch the sweep again."
        ) from error


def write_compiled(path: Path, rows: Sequence[Row]) -> None:
    """A JSON list, one row a line: quick to write, and a changed cell is a changed line."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    write_atomically(path, "[\n" + ",\n".join(lines) + "\n]\n")


def _planned(folder: Path, also: str | None) -> list[dict[str, Any]]:
    cells = planned_cells(folder)
    if cells is None:
        cells = [{"name": path.name} for path in sorted(folder.iterdir()) if _is_cell(path)]
    if also is not None and all(cell["name"] != also for cell in cells):
        cells.append({"name": also})
    return cells


def _is_cell(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("run_result.json", "error.txt", "config.yaml"))


def _state(folder: Path, cells: Sequence[Mapping[str, Any]]) -> list[tuple[int | None, int | None]]:
    def stamp(path: Path) -> int | None:
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def one(cell: Mapping[str, Any]) -> tuple[int | None, int | None]:
        return stamp(folder / cell["name"] / "run_result.json"), stamp(folder / cell["name"] / "error.txt")

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, cells))


def _read_cell(folder: Path, cell: Mapping[str, Any]) -> Row:
    directory = folder / cell["name"]
    identity = {"name": cell["name"], "digest": cell.get("digest"), "config": cell.get("config") or {}}
    try:
        row = json.loads((directory / "run_result.json").read_bytes())
    except FileNotFoundError:
        return _without_result(directory, identity)
    except ValueError as error:
        return {"cell": identity, "status": "failed", "error": f"run_result.json is not JSON: {error}"}
    if not isinstance(row, dict):
        return {"cell": identity, "status": "failed", "error": "run_result.json is not an object"}
    digest = (row.get("cell") or {}).get("digest")
    if identity["digest"] and digest and digest != identity["digest"]:
        message = f"run_result.json belongs to digest {digest[:8]}, the sweep asks for {identity['digest'][:8]}"
        return {"cell": identity, "status": "failed", "error": message}
    return row | {"status": "done"}


def _without_result(directory: Path, identity: dict[str, Any]) -> Row:
    try:
        lines = (directory / "error.txt").read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return {"cell": identity, "status": "missing"}
    return {"cell": identity, "status": "failed", "error": lines[-1] if lines else "error.txt is empty"}


def finish_row(row: Row, task: str, derive: Derive) -> Row:
    """Check that a result is this task's, and let the task fill in what it lacks."""
    written_by = row.get("task", task)
    if written_by != task:
        raise ConfigurationError(
            f"a result of task={written_by} lies among those of task={task}; report it with `research.report "
            f"{written_by}`."
        )
    row = dict(derive(row))
    if not isinstance(row.get("metrics"), dict):
        raise ConfigurationError(
            f"not a result of task={task}: it has no metrics; its keys are {', '.join(map(str, row)) or 'none'}."
        )
    return row


def fill_nulls(rows: Sequence[Row]) -> None:
    """Give rows without a result the keys that results have: null metrics, null values, and the short configuration."""
    done = [row for row in rows if row["status"] == "done"]
    metrics = dict.fromkeys(name for row in done for name in row["metrics"])
    others = dict.fromkeys(name for row in done for name in row)
    short = dict.fromkeys(name for row in done for name in row.get("config") or {})
    for row in rows:
        if row["status"] == "done":
            continue
        known = flatten(row["cell"]["config"])
        row["metrics"] = dict.fromkeys(metrics)
        if short:
            row["config"] = {name: known.get(name, known.get(f"task.{name}")) for name in short}
        for name in others:
            row.setdefault(name, None)
