"""Submit a grid to SLURM, through submitit, and leave."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research.cells import ranks, run
from research.cells.cell import Shared
from research.cells.claim import AlreadyRunning, claim, holder
from research.cells.progress import Progress
from research.errors import ConfigurationError
from research.sweep.frozen import refuse
from research.sweep.grid import Grid, plan_cell, write_sweep
from research.sweep.queue import joined_states, remember

LAUNCHER = "hydra/launcher=slurm"

# The launcher's keys that submitit knows for every kind of cluster; the others are SLURM's.
GENERAL = (
    "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout",
)  # fmt: skip


class FrozenCell:
    """The callable of one array task: a cell as it was when submitted. Called again after preemption, it resumes."""

    def __init__(self, cell: run.Plan) -> None:
        self.task_name, self.config, self.inputs = cell.task_name, cell.config, dict(cell.inputs)
        self.name, self.digest = cell.name, cell.digest

    def __call__(self) -> str:
        cell = plan_cell(self.task_name, self.config)
        if cell.digest != self.digest:
            refuse(cell.directory.with_name(self.name), self.inputs, cell.inputs)
        outcome = run.run(cell, Shared(), Progress())
        if ranks.rank() == 0:
            compile_if_last(cell)
        if outcome.status == "failed":
            raise RuntimeError(f"{outcome.name}: {outcome.message}")
        return outcome.status

    def checkpoint(self) -> Any:
        """What submitit requeues when the job is preempted or runs out of time."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def compile_if_last(cell: run.Plan) -> None:
    """Compile when every cell of the sweep has ended. Several that finish together each do; the files are whole."""
    from research.reporting.compile import planned_cells
    from research.sweep.finish import report

    folder = cell.directory.parent

    def ended(name: str) -> bool:
        return (folder / name / "run_result.json").exists() or (folder / name / "error.txt").exists()

    if all(ended(planned["name"]) for planned in planned_cells(folder) or []):
        report([cell], multirun=True)


def with_launcher(words: Sequence[str]) -> list[str]:
    """The overrides with the SLURM launcher chosen, unless they choose one."""
    return [*words] if any(word.startswith("hydra/launcher=") for word in words) else [*words, LAUNCHER]


def submit(grid: Grid, command: str) -> list[str]:
    """Submit the cells that are neither done nor running nor queued, as job arrays; the ids of the jobs.

    Raises ConfigurationError where there is no SLURM, or it refuses.
    """
    check_slurm()
    with contextlib.ExitStack() as held:
        # Two submits at the same moment would both find the cells missing.
        for folder in sorted({cell.scratch.parent for cell in grid.cells}):
            _enter_alone(folder, held)
        return _submit(grid, command)


def check_slurm() -> None:
    """Raise ConfigurationError where there is no SLURM."""
    if shutil.which("sbatch") is None:
        raise ConfigurationError(
            "sbatch is not on this machine: submit from a login node of the cluster, or run with -m alone."
        )


def _enter_alone(folder: Path, held: contextlib.ExitStack) -> None:
    """Claim a sweep for the time of a submission; another one is waited for."""
    folder.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        try:
            held.enter_context(claim(folder))
            return
        except AlreadyRunning:
            if not told:
                print(f"waiting for {holder(folder) or 'another process'}, which is submitting", file=sys.stderr)
            told = True
            time.sleep(0.2)


def _submit(grid: Grid, command: str) -> list[str]:
    import submitit

    states = joined_states([(cell.directory, cell.scratch) for cell in grid.cells])
    waiting = [c for c, found in zip(grid.cells, states, strict=True) if found.state in ("to do", "failed")]
    write_sweep(grid, command)
    if not waiting:
        return []
    parameters = _launcher_parameters(grid.raw)
    folder = Path(str(parameters.pop("submitit_folder"))).absolute()
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=parameters.pop("max_num_timeout"))
    executor.update_parameters(**{k if k in GENERAL else f"slurm_{k}": v for k, v in parameters.items()})
    ids: list[str] = []
    size = max_array_size()
    for start in range(0, len(waiting), size):
        part = waiting[start : start + size]
        try:
            with executor.batch():
                jobs = [executor.submit(FrozenCell(cell)) for cell in part]
        except submitit.core.utils.FailedJobError as error:
            raise ConfigurationError(
                f"SLURM took {len(ids)} of {len(waiting)} cells, then refused: {error}\n"
                "The same command submits the rest."
            ) from error
        remember({c.scratch: str(job.job_id) for c, job in zip(part, jobs, strict=True)})
        ids += [str(job.job_id) for job in jobs]
    return ids


def max_array_size() -> int:
    """How many tasks SLURM takes in one array."""
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60)
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", done.stdout)
    return int(found.group(1)) - 1 if found else 1000


def _launcher_parameters(raw: DictConfig) -> dict[str, Any]:
    if not uses_slurm(raw):
        raise ConfigurationError(
            "submit needs a SLURM launcher: leave hydra/launcher out, or set hydra/launcher=slurm."
        )
    with_choices = OmegaConf.merge(raw, {"hydra": {"job": {"name": "research"}}})
    names = [name for name in map(str, with_choices.hydra.launcher) if name != "_target_"]
    resolved = {name: OmegaConf.select(with_choices, f"hydra.launcher.{name}") for name in names}
    return {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in resolved.items() if v is not None}


def uses_slurm(raw: DictConfig) -> bool:
    """Whether the launcher of a command is SLURM's."""
    return str(OmegaConf.select(raw, "hydra.launcher._target_")).endswith("SlurmLauncher")


def gpus_per_cell(raw: DictConfig) -> int:
    """GPUs that the launcher asks for a cell; 0 where it asks for none, or is not SLURM's."""
    launcher = OmegaConf.select(raw, "hydra.launcher")
    return int(launcher.get("gpus_per_node") or 0) * int(launcher.get("nodes") or 1)
