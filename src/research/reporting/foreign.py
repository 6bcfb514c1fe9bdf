"""Result files from elsewhere: one run_result.json, a compiled list, or a directory of either. Read only."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from research.errors import ConfigurationError
from research.reporting.compile import COMPILED, Derive, fill_nulls, finish_row, planned_cells, read_rows
from research.reporting.rows import Row


def read_results(source: Path, task: str, derive: Derive) -> list[Row]:
    """Rows from a file or a directory, whoever wrote it.

    Raises ConfigurationError that names the file and what is wrong.

    A directory: its sweep.json's cells, else every run_result.json under it, else its compiled list.
    A row whose every value but its configuration is null (the published form of a missing cell) is a missing cell.
    """
    if not source.exists():
        raise ConfigurationError(f"results={source} does not exist.")
    if source.is_file():
        return _checked(_load(source), source, task, derive)
    cells = planned_cells(source)
    if cells is not None:
        return read_rows(source, cells, task, derive)
    files = sorted(source.rglob("run_result.json"), key=lambda path: _natural(str(path.parent)))
    if files:
        loaded = [row for path in files for row in _checked(_load(path), path, task, derive)]
        fill_nulls(loaded)
        return loaded
    if (source / COMPILED).exists():
        return _checked(_load(source / COMPILED), source / COMPILED, task, derive)
    raise ConfigurationError(f"results={source} holds no sweep.json, no run_result.json and no {COMPILED}.")


def _load(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"results={path} cannot be read as JSON: {error}") from error
    rows = content if isinstance(content, list) else [content]
    if not rows:
        raise ConfigurationError(f"results={path} is an empty list; there is nothing to report.")
    return rows


def _checked(loaded: list[Any], path: Path, task: str, derive: Derive) -> list[Row]:
    rows: list[Row] = []
    for index, row in enumerate(loaded):
        if not isinstance(row, dict):
            raise ConfigurationError(
                f"results={path}: entry {index} is {type(row).__name__}, not a result (an object)."
            )
        missing = row.get("status") in ("missing", "failed") or _all_null(row)
        if missing:
            cell = row.get("cell") or {"name": None, "digest": None, "config": row.get("config") or {}}
            rows.append(row | {"status": row.get("status", "missing"), "cell": cell})
            continue
        try:
            rows.append(finish_row(row, task, derive) | {"status": "done"})
        except ConfigurationError as error:
            raise ConfigurationError(f"results={path}: entry {index}: {error}") from error
    fill_nulls(rows)
    return rows


def _all_null(row: Row) -> bool:
    return "config" in row and all(value is None for name, value in row.items() if name != "config")


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Numbers in a path by size, so that ep5 comes before ep10 and 1e-06 before 5e-06."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(0, float(part), "") if part[:1].isdigit() else (1, 0.0, part) for part in parts if part]
