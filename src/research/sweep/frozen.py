"""The cells of a launch, frozen: a job that starts hours later must be the cell that was submitted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from research.cells import identity
from research.cells.cell import write_atomically
from research.cells.run import Plan
from research.errors import CellMismatchError

LAUNCHES = ".launches"


def freeze(cells: Sequence[Plan]) -> Path:
    """Write what and where each cell of a launch is, in launch order; the file's name follows from its content."""
    rows = [
        {
            "name": c.name,
            "digest": c.digest,
            "sweep": f"{c.task_name}/{c.config.name}",
            "settings": identity.settings(c.config),
            "inputs": dict(c.inputs),
        }
        for c in cells
    ]
    name = hashlib.sha256("".join(f"{row['sweep']} {row['digest']}\n" for row in rows).encode()).hexdigest()[:16]
    path = cells[0].scratch.parents[2] / LAUNCHES / f"{name}.json"
    write_atomically(path, json.dumps(rows, ensure_ascii=False))
    return path


def compare(cell: Plan, launch: Path, number: int) -> None:
    """Raise CellMismatchError, with the keys, when a cell is not the one that was frozen under its number."""
    frozen = json.loads(launch.read_text())[number]
    if frozen["digest"] == cell.digest:
        return
    then = {**frozen["settings"], **{f"inputs.{k}": v for k, v in frozen["inputs"].items()}}
    now = {**identity.settings(cell.config), **{f"inputs.{k}": v for k, v in cell.inputs.items()}}
    refuse(cell.directory.with_name(frozen["name"]), then, json.loads(json.dumps(now)))


def refuse(directory: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> NoReturn:
    """Leave error.txt in the directory of the cell that was submitted, and raise CellMismatchError.

    The last line, which is all that `status` shows, has the keys.
    """
    message = (
        f"{directory.name} is not what it was when it was submitted: a configuration or input file was edited "
        "meanwhile. Undo the edit, or submit again.\n"
        f"then -> now: {', '.join(identity.differing_keys(then, now))}"
    )
    if not (directory / "run_result.json").exists():
        write_atomically(directory / "error.txt", f"CellMismatchError: {message}\n")
    raise CellMismatchError(message)
