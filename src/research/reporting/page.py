"""The report of a sweep or of a foreign file: compiled rows, the task's figures and sections, and report.html.

figures/<task>/<name>/{report.html, *.png, *.pdf}
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.errors import ConfigurationError
from research.reporting import origin
from research.reporting.compile import COMPILED, compile_sweep, sweep_folder, write_compiled
from research.reporting.foreign import read_results
from research.reporting.html import write_page
from research.reporting.rows import Row, is_done, settings
from research.reporting.tables import cell_table, number
from research.task import BaseTask, Section


def recompile(
    task_name: str,
    task: type[BaseTask] | BaseTask,
    name: str,
    results_root: Path | str = ".",
    only: str | None = None,
    out: Path | None = None,
) -> list[Path]:
    """Compile a sweep of ours and write its report; returns the paths worth telling: table, page, figures.

    only: the one cell that was run without a grid; it is reported even where an earlier grid did not have it.
    """
    study = _instance(task)
    rows = compile_sweep(task_name, name, results_root, study.derive, only)
    target = Path(out or Path(results_root) / "figures" / task_name / name)
    compiled = sweep_folder(task_name, name, results_root) / COMPILED
    return [compiled, *write_report(rows, study, target, task_name, name, compiled)]


def report_foreign(
    task_name: str,
    task: type[BaseTask] | BaseTask,
    source: Path,
    results_root: Path | str = ".",
    out: Path | None = None,
) -> list[Path]:
    """Report result files from elsewhere; writes only under `out`, by default figures/<task>/<stem of the file>.

    Raises ConfigurationError for unreadable or foreign files, and where `out` would be a place of our own results.
    """
    stem = source.resolve().stem if source.is_file() else source.resolve().name
    target = Path(out or Path(results_root) / "figures" / task_name / stem)
    _refuse_our_own(target, Path(results_root))
    study = _instance(task)
    rows = read_results(source, task_name, study.derive)
    target.mkdir(parents=True, exist_ok=True)
    write_compiled(target / COMPILED, rows)
    return [target / COMPILED, *write_report(rows, study, target, task_name, stem, target / COMPILED)]


def write_report(
    rows: Sequence[Row], task: BaseTask, out: Path, task_name: str, name: str, compiled: Path
) -> list[Path]:
    """Let the task draw, then write report.html; returns the page and the figures.

    The task's rows carry `sweep`, its name.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = [{**row, "sweep": name} for row in rows]
    sections = list(task.report(rows, out)) if any(is_done(row) for row in rows) else []
    every_cell = Section("Every metric of every cell", tables=[cell_table(rows)])
    details = [_fixed_settings(rows)]
    if (facts := origin.table(rows)) is not None:
        details.append(Section("Provenance", tables=[facts]))
    if any(section.tables for section in sections):
        details.insert(0, every_cell)
    else:
        sections.append(every_cell)
    figures = [Path(path) for section in sections for _, path in section.figures]
    files = [compiled, *sorted(out.glob("*.md")), *figures, *(path.with_suffix(".pdf") for path in figures)]
    links = [(path.name, Path(os.path.relpath(path, out)).as_posix()) for path in files if path.exists()]
    page = write_page(
        out / "report.html",
        title=f"{task_name}: {name}",
        subtitle=_purpose(task),
        cards=_cards(rows),
        sections=sections,
        details=details,
        links=links,
        provenance=origin.line(rows),
    )
    return [page, *figures]


def _purpose(task: BaseTask) -> str:
    """The first line of the task's docstring.

    A dataclass without one has only its signature, which says nothing here.
    """
    text = (type(task).__doc__ or "").strip()
    return "" if text.startswith(f"{type(task).__name__}(") else text.split("\n")[0]


def _cards(rows: Sequence[Row]) -> list[tuple[str, str]]:
    states = [row.get("status", "done") for row in rows]
    cards = [(f"{states.count('done')} of {len(rows)}", "cells with a result")]
    return cards + [(str(states.count(state)), state) for state in ("failed", "missing") if state in states]


def _fixed_settings(rows: Sequence[Row]) -> Section:
    every = [settings(row) for row in rows]
    names = dict.fromkeys(name for one in every for name in one)
    fixed = [[name, number(every[0].get(name))] for name in names if len({repr(one.get(name)) for one in every}) == 1]
    return Section("Settings that all cells share", tables=[("", ["setting", "value"], fixed)])


def _refuse_our_own(target: Path, results_root: Path) -> None:
    place, root = target.resolve(), results_root.resolve()
    if place.is_relative_to(root / "eval_results"):
        raise ConfigurationError(
            f"out={target} lies among our own results; results=... writes elsewhere. Set another out=DIR."
        )
    if not place.is_relative_to(root / "figures"):
        return
    parts = place.relative_to(root / "figures").parts
    if len(parts) < 2 or parts[1] == "default" or (root / "eval_results" / parts[0] / parts[1]).exists():
        raise ConfigurationError(
            f"out={target} holds the report of our own results, which results=... never overwrites. Set another "
            "out=DIR."
        )


def _instance(task: Any) -> BaseTask:
    return task() if isinstance(task, type) else task
