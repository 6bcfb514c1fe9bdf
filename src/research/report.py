"""Recompile results, tables, figures and report.html from what is on disk.

    python -m research.report zlt_sweep name=micro_grid
    python -m research.report zlt_sweep results=all_results_compiled.json out=/tmp/published

`T [name=SWEEP] [results=FILE_OR_DIR] [out=DIR] [results_root=DIR] [--config-dir DIR]`. With `results=`, writes only
under `out=` (by default figures/<task>/<stem of the file>), never over our own. Exit status: 0, or 2 for a command that
cannot be.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from research.config import nearest
from research.errors import ConfigurationError

ARGUMENTS = ("name", "results", "out", "results_root")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; leaves through SystemExit when the command cannot be."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        sys.exit(0 if words else 2)
    try:
        paths = report(words)
    except ConfigurationError as error:
        print(f"research.report: {error}", file=sys.stderr)
        sys.exit(2)
    for path in paths:
        print(path)


def report(words: Sequence[str]) -> list[Path]:
    """What the command does; returns the files written. Raises ConfigurationError."""
    task_name, given, config_dir = parse(words)
    # Hydra is imported after the arguments are known to be sound: mistakes are told at once.
    from research.compose import compose, task_class
    from research.reporting.page import recompile, report_foreign

    task = task_class(compose([f"task={task_name}"], config_dir), task_name)
    root = Path(given.get("results_root", "."))
    out = Path(given["out"]) if "out" in given else None
    if "results" in given:
        return report_foreign(task_name, task, Path(given["results"]), root, out)
    return recompile(task_name, task, given.get("name", "default"), root, out=out)


def parse(words: Sequence[str]) -> tuple[str, dict[str, str], str | None]:
    """(task, arguments by name, value of --config-dir); raises ConfigurationError with the nearest valid name."""
    tasks: list[str] = []
    given: dict[str, str] = {}
    config_dir, rest = None, list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name == "--config-dir":
            config_dir = value if equals else (rest.pop(0) if rest else "")
            if not Path(config_dir).is_dir() or not config_dir:
                raise ConfigurationError(f"--config-dir {config_dir!r} is not a directory.")
        elif equals and name == "task":
            tasks.append(value)
        elif equals and name in ARGUMENTS:
            if not value:
                raise ConfigurationError(f"{name}= has no value.")
            given[name] = value
        elif equals or word.startswith("-"):
            valid = ", ".join(f"{known}=" for known in ARGUMENTS)
            raise ConfigurationError(
                f"There is no argument {name}.{nearest(name, (*ARGUMENTS, '--config-dir'))} There is {valid}, "
                "--config-dir."
            )
        else:
            tasks.append(word)
    if len(tasks) != 1:
        raise ConfigurationError(
            f"Name one task, e.g. `python -m research.report zlt_sweep`; got {' '.join(tasks) or 'none'}."
        )
    if "results" in given and "name" in given:
        raise ConfigurationError("results= reads files from elsewhere and name= a sweep of ours; give one of them.")
    return tasks[0], given, config_dir


if __name__ == "__main__":
    main()
