"""`python -m research.sweep plan|submit|status|cancel ...`: what a grid would run, and what became of it.

python -m research.sweep plan task=zlt_sweep lr=1e-6,5e-6 epochs=1,20
python -m research.sweep submit task=zlt_sweep lr=1e-6,5e-6 epochs=1,20 hydra.launcher.partition=gpu
python -m research.sweep status task=zlt_sweep [name=SWEEP] [results_root=DIR] [--json] [--watch]
python -m research.sweep cancel task=zlt_sweep [name=SWEEP] [results_root=DIR]
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from research.cli import lift_multirun
from research.config import nearest
from research.errors import ConfigurationError
from research.sweep.states import State, count, earlier_results, fit_cost, units_of

# Between two looks of --watch: often enough to follow, rarely enough for a controller that many share.
WATCH_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exit status 2 for a command that cannot be, 130 after Ctrl-C, 141 when the reader has gone."""
    words = [w for w in lift_multirun(list(sys.argv[1:] if argv is None else argv)) if w != "--multirun"]
    commands = {"plan": plan, "submit": submit, "status": status, "cancel": cancel}
    try:
        if not words or {"--help", "-h"} & set(words):
            print(__doc__, flush=True)
            sys.exit(0 if words else 2)
        if words[0] not in commands:
            raise ConfigurationError(f"{words[0]!r} is not one of {', '.join(commands)}.{nearest(words[0], commands)}")
        try:
            commands[words[0]](words[1:])
        finally:
            sys.stdout.flush()
    except ConfigurationError as error:
        print(f"research.sweep: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough; nor may the interpreter flush what is left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def plan(words: Sequence[str]) -> None:
    """Print every cell with its state and expected cost; run nothing."""
    from research.sweep import slurm
    from research.sweep.grid import expand
    from research.sweep.queue import joined_states

    as_json, rest = _flag(words, "--json")
    config_dir, overrides = _config_dir(rest)
    grid = expand(slurm.with_launcher(overrides), True, config_dir)
    cells, first = grid.cells, grid.cells[0]
    cost = fit_cost(earlier_results(Path(first.config.results_root), first.task_name, first.config.model.name))
    states = joined_states([(cell.directory, cell.scratch) for cell in cells])
    expected = [cost.seconds(units_of(vars(cell.config))) if cost else None for cell in cells]
    left = sum(e for e, s in zip(expected, states, strict=True) if e is not None and s.state != "done")
    gpus = slurm.gpus_per_cell(grid.raw)
    if as_json:
        rows = [{**vars(s), "expected_seconds": e} for s, e in zip(states, expected, strict=True)]
        hours = {"expected_seconds_left": left, "expected_gpu_hours_left": left * gpus / 3600} if cost else {}
        print(json.dumps({"cells": rows, "counts": count(states), "gpus_per_cell": gpus, **hours}, indent=1))
        return
    _table(states, expected)
    told = (
        f"{left:.0f} s ({left / 3600:.2f} hours, {left * gpus / 3600:.2f} GPU-hours), from {cost.n} earlier results"
        if cost
        else "no earlier result to go by"
    )
    print(f"{_counted(states)}; expected: {told}")


def submit(words: Sequence[str]) -> None:
    """Submit what is missing and not queued to SLURM, and return."""
    from research.sweep import slurm
    from research.sweep.grid import expand

    config_dir, overrides = _config_dir(words)
    grid = expand(slurm.with_launcher(overrides), True, config_dir)
    jobs = slurm.submit(grid, shlex.join(["python", "-m", "research.sweep", *sys.argv[1:]]))
    first = grid.cells[0]
    told = f"{len(jobs)} of {len(grid.cells)} cells submitted" + (f", jobs {jobs[0]} to {jobs[-1]}" if jobs else "")
    print(f"{told}. python -m research.sweep status task={first.task_name} name={first.config.name}")


def cancel(words: Sequence[str]) -> None:
    """Cancel the queued and running jobs of a sweep."""
    from research.sweep.queue import cancel as cancel_jobs

    jobs = cancel_jobs(_runs(_sweep_directory(words)))
    print(f"{len(jobs)} jobs cancelled")


def status(words: Sequence[str]) -> None:
    """Print what became of the cells of a launched sweep; exit status 1 when one failed.

    With --watch, print again at every change, until nothing is queued or running. A controller that does not answer
    meanwhile is asked again.
    """
    as_json, rest = _flag(words, "--json")
    watch, rest = _flag(rest, "--watch")
    folder = _sweep_directory(rest)
    shown: list[State] = []
    while True:
        try:
            states = sweep_states(folder)
        except ConfigurationError as error:
            if not shown:
                raise
            print(f"research.sweep: {error}", file=sys.stderr)
            states = shown
        if states != shown:
            shown = states
            _show(states, as_json)
        if not watch or not any(s.state in ("running", "queued") for s in states):
            sys.exit(1 if any(s.state == "failed" for s in states) else 0)
        time.sleep(WATCH_SECONDS)


def _show(states: Sequence[State], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"cells": [vars(s) for s in states], "counts": count(states)}, indent=1), flush=True)
        return
    if sys.stdout.isatty():
        print("\033[H\033[2J", end="")  # the newest table replaces the one before
    _table(states)
    print(_counted(states), flush=True)


def sweep_states(folder: Path) -> list[State]:
    """The states of a sweep's cells in grid order; `folder` is eval_results/<task>/<name>.

    Raises ConfigurationError without a readable sweep.json, and when SLURM does not answer.
    """
    from research.reporting.compile import planned_cells
    from research.sweep.queue import joined_states

    cells = planned_cells(folder)
    if not cells:
        raise ConfigurationError(f"{folder / 'sweep.json'} does not exist: no sweep was launched there.")
    runs = _runs(folder)
    return joined_states([(folder / cell["name"], runs / cell["name"]) for cell in cells])


def _runs(folder: Path) -> Path:
    """runs/<task>/<name> beside eval_results/<task>/<name>."""
    return folder.parents[2] / "runs" / folder.parent.name / folder.name


def _sweep_directory(words: Sequence[str]) -> Path:
    """eval_results/<task>/<name>; raises ConfigurationError for other words, and where there is no such directory."""
    known = {"task": None, "name": "default", "results_root": "."}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise ConfigurationError(f"{word!r} is not one of task=, name=, results_root=.{nearest(key, known)}")
        known[key] = value
    if known["task"] is None:
        raise ConfigurationError("say which: task=NAME [name=SWEEP].")
    from research.reporting.compile import sweep_folder

    return sweep_folder(known["task"], known["name"] or "default", known["results_root"] or ".")


def _table(states: Sequence[State], expected: Sequence[float | None] | None = None) -> None:
    width = max(len(s.name) for s in states)
    for state, seconds in zip(states, expected or [None] * len(states), strict=True):
        tail = f"{seconds:8.0f} s" if seconds is not None and state.state != "done" else state.reason
        print(f"{state.name:<{width}}  {state.state:<8}  {tail}".rstrip())


def _counted(states: Sequence[State]) -> str:
    return f"{len(states)} cells: " + ", ".join(f"{n} {name}" for name, n in count(states).items() if n)


def _flag(words: Sequence[str], flag: str) -> tuple[bool, list[str]]:
    return flag in words, [word for word in words if word != flag]


def _config_dir(words: Sequence[str]) -> tuple[str | None, list[str]]:
    from research.cli import split

    overrides, config_dir = split(words)
    return config_dir, overrides


if __name__ == "__main__":
    main()
