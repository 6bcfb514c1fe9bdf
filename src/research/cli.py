"""The Hydra app: compose, validate, run cells, compile what they left.

    python -m research task=zlt_sweep -m lr=1e-6,5e-6 epochs=1,20
    python -m research +experiment=zlt_micro -m
    python -m research --help

Exit status: 0 when every cell is done, 1 when one failed, 2 for a command that cannot be, 130 after Ctrl-C.
"""

from __future__ import annotations

import atexit
import os
import shlex
import subprocess
import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.cells import ranks, run
from research.cells.cell import Shared
from research.cells.progress import Progress
from research.config import nearest
from research.errors import ConfigurationError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Flags that Hydra answers by itself, without running anything.
INFORMATIVE = ("--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
FLAGS = (
    "--multirun",
    "-m",
    "--run",
    "-r",
    "--resolve",
    "--help",
    "-h",
    "--config-dir",
    "-cd",
    "--package",
    "-p",
    *INFORMATIVE,
)
TAKES_VALUE = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i")

# Tells the processes that a launcher starts where the cells lie as they were when the command was typed.
LAUNCH_VARIABLE = "RESEARCH_LAUNCH"


class CellFailed(RuntimeError):
    """A cell failed in a process of its own, where nothing but the exit status can tell."""


class _Session:
    """What the cells of one process share, and how they ended."""

    def __init__(self) -> None:
        self.shared, self.progress = Shared(), Progress()
        self.outcomes: list[run.Outcome] | None = None


_session = _Session()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m research`; leaves through SystemExit."""
    words = lift_multirun(list(sys.argv[1:] if argv is None else argv))
    try:
        sys.exit(_main(words))
    except ConfigurationError as error:
        print(f"research: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _session.progress.close()
        print("research: interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def lift_multirun(words: list[str]) -> list[str]:
    """Move -m / --multirun to the front: Hydra's parser takes overrides on one side of it only."""
    rest = [word for word in words if word not in ("-m", "--multirun")]
    return ["--multirun", *rest] if len(rest) < len(words) else rest


def run_job(raw: DictConfig) -> str:
    """What Hydra's launcher runs for each cell. Raises CellFailed outside the process that typed the command."""
    from hydra.core.hydra_config import HydraConfig

    from research.compose import typed
    from research.sweep.frozen import compare
    from research.sweep.grid import plan_cell

    hydra_config = HydraConfig.get()
    name, directory = str(hydra_config.job.override_dirname), Path()
    try:
        task_name = str(dict(hydra_config.runtime.choices)["task"])
        cell = plan_cell(task_name, typed(raw, task_name))
        name, directory = cell.name, cell.directory
        if (launch := os.environ.get(LAUNCH_VARIABLE)) is not None:
            compare(cell, Path(launch), hydra_config.job.num)
        outcome = run.run(cell, _session.shared, _session.progress)
    except ConfigurationError as error:
        outcome = run.Outcome(name, "failed", directory, str(error))
        _session.progress(f"refused: {error}")
    if _session.outcomes is not None:
        _session.outcomes.append(outcome)
    elif outcome.status == "failed":
        # Hydra's launcher hands the failure back as a value, so the job would end well in the scheduler's eyes.
        atexit.register(os._exit, 1)
        raise CellFailed(f"{outcome.name}: {outcome.message}")
    return outcome.status


def _main(words: list[str]) -> int:
    overrides, config_dir = split(words)
    if "--help" in words or "-h" in words:
        from research.help import help_text

        print(help_text(overrides, config_dir))
        return 0
    if any(word.split("=")[0] in INFORMATIVE for word in words):
        _hydra(words)
        return 0
    from research.sweep import slurm
    from research.sweep.frozen import freeze
    from research.sweep.grid import expand, swept_by_experiment, write_sweep

    grid = expand(overrides, "--multirun" in words, config_dir)
    command = shlex.join(["python", "-m", "research", *sys.argv[1:]])
    if on_slurm := "--multirun" in words and slurm.uses_slurm(grid.raw):
        slurm.check_slurm()
    if "--multirun" in words:
        os.environ[LAUNCH_VARIABLE] = str(freeze(grid.cells).resolve())
    if "--multirun" in words and ranks.rank() == 0:
        write_sweep(grid, command)
        _session.progress(f"{len(grid.cells)} cells, {sum(run.is_done(c) for c in grid.cells)} already done")
    _session.outcomes = []
    launched = 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us, instead of being printed as a traceback
    try:
        _hydra(words, swept_by_experiment(grid.raw))
    except KeyboardInterrupt:
        if not on_slurm:
            raise
        return _left_in_queue(grid)
    except Exception as error:
        launched = _launcher_stopped(error)
    finally:
        _session.progress.close()
    return max(launched, _close(grid, "--multirun" in words))


def _launcher_stopped(error: Exception) -> int:
    """The exit status after a launcher that runs cells elsewhere reports a failure; ConfigurationError when refused."""
    if isinstance(error, CellFailed):
        return 1  # the closing lines tell it
    from submitit.core.utils import FailedJobError, UncompletedJobError

    if isinstance(error, FailedJobError) and isinstance(error.__cause__, subprocess.CalledProcessError):
        hint = "\n`python -m research.sweep submit` splits arrays that are too large." if "array" in str(error) else ""
        raise ConfigurationError(f"SLURM refused the jobs: {str(error).strip()}{hint}") from error
    if isinstance(error, UncompletedJobError):
        print(f"research: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return 1


def _left_in_queue(grid: Any) -> int:
    """Say what becomes of the jobs that an interrupted command leaves to SLURM; the exit status."""
    first = grid.cells[0]
    root = "" if first.config.results_root in ("", ".") else f" results_root={first.config.results_root}"
    sweep = f"name={first.config.name}{root}"
    print(
        "research: interrupted; the jobs that SLURM has taken go on.\n"
        f"  python -m research.sweep status task={first.task_name} {sweep}   shows them, `cancel` ends them\n"
        f"  python -m research.report {first.task_name} {sweep}   compiles what they leave",
        file=sys.stderr,
    )
    return 130


def _hydra(words: list[str], swept: Collection[str] = ()) -> None:
    import hydra

    from research.compose import conf_dir, open_task_keys

    # The job is found by its importable name, so that launchers can pickle it.
    app = hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")(run_job)
    typed_by_user, sys.argv = sys.argv, [sys.argv[0], *open_task_keys(words, swept)]
    try:
        app()
    finally:
        sys.argv = typed_by_user


def _close(grid: Any, multirun: bool) -> int:
    """Compile and report what is on disk, say how it went; the exit status."""
    if ranks.rank() > 0:
        return 0
    from research.sweep.finish import finish

    failed, lines = finish(grid, _session.outcomes or [], multirun)
    for line in lines:
        print(line, flush=True)
    return 1 if failed else 0


def split(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The overrides among the words, and the value of --config-dir; raises ConfigurationError for unknown flags."""
    overrides, config_dir, index = [], None, 0
    while index < len(words):
        word = words[index]
        flag, _, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif flag not in FLAGS:
            raise ConfigurationError(f"There is no flag {flag}.{nearest(flag, FLAGS)} A setting is written key=value.")
        elif flag in TAKES_VALUE and not value:
            index += 1
            value = words[index] if index < len(words) else ""
        if flag in ("--config-dir", "-cd"):
            config_dir = value
            if not os.path.isdir(value):
                raise ConfigurationError(f"--config-dir {value!r} is not a directory.")
        index += 1
    return overrides, config_dir
