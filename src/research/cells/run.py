"""Run one cell: skip it when done, refuse it when its directory belongs to another configuration, leave its files."""

from __future__ import annotations

import contextlib
import json
import resource
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from research.cells import identity, ranks, tracking
from research.cells.cell import Cell, Shared, write_atomically
from research.cells.claim import AlreadyRunning, claim
from research.cells.provenance import now, provenance
from research.config import RunConfig
from research.errors import CellMismatchError, ConfigurationError
from research.task import Result

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """One cell as it will be run: its identity and its places on disk."""

    task_name: str
    config: RunConfig
    inputs: Mapping[str, str]
    digest: str
    name: str
    directory: Path
    scratch: Path

    @property
    def result_path(self) -> Path:
        return self.directory / "run_result.json"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `status` is done, skipped (it was done before), busy (another process runs it) or failed."""

    name: str
    status: str
    directory: Path
    message: str = ""


def plan(task_name: str, config: RunConfig, model_inputs: Mapping[str, str]) -> Plan:
    """Work out a cell's identity from its settings and the hashes of the files that enter; runs nothing."""
    inputs = {**model_inputs, **config.task.inputs(config)}
    cell_digest = identity.digest(task_name, config, inputs)
    name = identity.cell_name(config.task.label(config), cell_digest)
    root, place = Path(config.results_root), Path(task_name) / config.name / name
    return Plan(task_name, config, inputs, cell_digest, name, root / "eval_results" / place, root / "runs" / place)


def is_done(cell: Plan) -> bool:
    """Whether the cell's result exists.

    Raises CellMismatchError when its directory is another configuration's, ConfigurationError for a result that is no
    JSON.
    """
    frozen = cell.directory / "config.yaml"
    if frozen.exists():
        text = frozen.read_text()
        # The digest is the first key; parsing the whole of ten thousand files would take minutes.
        found = {"digest": cell.digest} if text.startswith(f"digest: {cell.digest}\n") else yaml.safe_load(text)
        if not isinstance(found, dict) or found.get("digest") != cell.digest:
            raise CellMismatchError(_mismatch(cell, found if isinstance(found, dict) else {}))
    if not cell.result_path.exists():
        return False
    try:
        recorded = json.loads(cell.result_path.read_text()).get("cell", {})
    except ValueError as error:
        raise ConfigurationError(
            f"{cell.result_path} is not JSON ({error}). Move it away, and the cell runs again."
        ) from error
    if recorded.get("digest") != cell.digest:
        raise CellMismatchError(_mismatch(cell, {**recorded, "settings": recorded.get("config", {})}))
    return True


def run(cell: Plan, shared: Shared, progress: Callable[[str], None]) -> Outcome:
    """Run a cell unless it is done; whatever a task raises becomes error.txt and a failed outcome.

    Started as several processes (see `ranks`), the first decides and writes, and a failure ends the process.
    Raises CellMismatchError, and KeyboardInterrupt after the files are closed.
    """
    ranks.join()
    if ranks.world_size() > 1 and not cell.config.task.several_processes:
        raise ConfigurationError(
            f"task={cell.task_name} runs in one process, and {ranks.world_size()} were started; start it without "
            "torchrun or accelerate launch, with hydra.launcher.tasks_per_node=1."
        )
    if ranks.world_size() > 1 and cell.config.model.shard and cell.config.sampler.kind != "transformers":
        raise ConfigurationError(
            f"sampler={cell.config.sampler.kind} needs whole weights, and with model.shard=true no process has them; "
            "use sampler=transformers."
        )
    if ranks.rank() > 0:
        return _follow(cell, shared)
    with contextlib.ExitStack() as held:
        try:
            found = _stand_aside(cell, held, progress)
        except CellMismatchError as error:
            ranks.from_first(Outcome(cell.name, "refused", cell.directory, str(error)))
            raise
        if ranks.from_first(found) is not None:
            assert found is not None
            return found
        return _run_claimed(cell, shared, progress)


def _stand_aside(cell: Plan, held: contextlib.ExitStack, progress: Callable[[str], None]) -> Outcome | None:
    """The outcome of a cell that needs no work from us; None when it is ours to run, its claim entered in `held`."""
    if is_done(cell):
        progress(f"{cell.name}: already done")
        return Outcome(cell.name, "skipped", cell.directory)
    cell.scratch.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(claim(cell.scratch))
    except AlreadyRunning as busy:
        progress(f"{cell.name}: left alone, {busy}")
        return Outcome(cell.name, "busy", cell.directory, str(busy))
    if is_done(cell):
        return Outcome(cell.name, "skipped", cell.directory)
    (cell.directory / "error.txt").unlink(missing_ok=True)
    return None


def _follow(cell: Plan, shared: Shared) -> Outcome:
    """Take part in a cell that another process decides about and writes."""
    found = ranks.from_first(None)
    if found is not None and found.status == "refused":
        raise CellMismatchError(found.message)
    if found is not None:
        return found
    try:
        cell.config.task.run(_cell(cell, shared, None, lambda *message: None))
    except Exception as error:
        return _failed(cell, error)
    return Outcome(cell.name, "done", cell.directory)


def _run_claimed(cell: Plan, shared: Shared, progress: Callable[[str], None]) -> Outcome:
    config, started, clock = cell.config, now(), time.perf_counter()
    cell.directory.mkdir(parents=True, exist_ok=True)
    error_path = cell.directory / "error.txt"
    frozen: dict[str, Any] = {
        "digest": cell.digest,
        "task": cell.task_name,
        "settings": identity.settings(config),
        "inputs": dict(cell.inputs),
    }
    write_atomically(cell.directory / "config.yaml", yaml.safe_dump(frozen, sort_keys=True, allow_unicode=True))
    try:
        with tracking.track(config.tracker, cell.task_name, config.name, cell.name, frozen["settings"]) as tracker:
            running = _cell(cell, shared, tracker, progress)
            result = config.task.run(running)
            seconds = {**running.seconds, "total": time.perf_counter() - clock}
            document = _document(cell, result, seconds, started)
            if tracker is not None:
                tracker.summary({**result.metrics})
        write_atomically(cell.result_path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    except Exception as error:
        progress(f"{cell.name}: failed, {type(error).__name__}: {error} (traceback in {error_path})".replace("\n", " "))
        return _failed(cell, error)
    progress(f"{cell.name}: done in {seconds['total']:.0f} s")
    return Outcome(cell.name, "done", cell.directory)


def _cell(cell: Plan, shared: Shared, tracker: Any, progress: Callable[[str], None]) -> Cell:
    return Cell(
        name=cell.name, config=cell.config, directory=cell.directory, scratch=cell.scratch, shared=shared,
        cache=Path(cell.config.results_root) / "runs" / "cache", tracker=tracker, progress=progress,
    )  # fmt: skip


def _failed(cell: Plan, error: Exception) -> Outcome:
    """Leave error.txt, called while the error is handled. Of several processes, the one that fails ends them all."""
    path = cell.directory / "error.txt"
    if ranks.world_size() == 1 or not path.exists():  # the first error is the cause, later ones follow from it
        write_atomically(path, traceback.format_exc())
    if ranks.world_size() > 1:
        traceback.print_exc()
        ranks.abort()
    return Outcome(cell.name, "failed", cell.directory, f"{type(error).__name__}: {error}")


def _document(cell: Plan, result: Result, seconds: Mapping[str, float], started: str) -> dict[str, Any]:
    """The content of run_result.json."""
    facts = provenance(shlex.join(["python", "-m", "research", *sys.argv[1:]]))
    facts |= {"inputs": dict(cell.inputs), "started": started, "finished": now()}
    document = {
        "schema_version": SCHEMA_VERSION,
        "task": cell.task_name,
        "cell": {"name": cell.name, "digest": cell.digest, "config": identity.settings(cell.config)},
        "metrics": result.metrics,
        "counts": {rate: {"hits": hits, "trials": trials} for rate, (hits, trials) in result.counts.items()},
        "provenance": facts,
        "wall_seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "peak_memory": _peak_memory(),
    }
    if clash := set(document) & set(result.extra):
        raise ConfigurationError(f"the task's extra keys {sorted(clash)} are the suite's own; rename them.")
    return document | result.extra


def _peak_memory() -> dict[str, int | None]:
    """Bytes: resident memory of this process so far, and of the GPU."""
    import torch

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "resident_bytes": resident,
        "gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def _mismatch(cell: Plan, found: Mapping[str, Any]) -> str:
    ours = {**identity.settings(cell.config), **{f"inputs.{k}": v for k, v in cell.inputs.items()}}
    theirs = {**found.get("settings", {}), **{f"inputs.{k}": v for k, v in found.get("inputs", {}).items()}}
    keys = identity.differing_keys(json.loads(json.dumps(theirs)), json.loads(json.dumps(ours)))
    listed = "\n  ".join(keys) if keys else f"digest: {found.get('digest')} -> {cell.digest}"
    return (
        f"{cell.directory} holds another configuration than the one asked for; "
        f"these keys differ (there -> here):\n  {listed}\n"
        "Choose another name=..., or move that directory away."
    )
