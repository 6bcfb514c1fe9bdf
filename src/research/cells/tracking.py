"""Trackers: wandb, or none. The configured project wins over the environment, and every run is closed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.config import TrackerConfig

log = logging.getLogger(__name__)


class WandbTracker:
    """One wandb run: a cell's metrics, or a sweep's compiled results."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; its `step` is the x axis."""
        self.run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update({k: v for k, v in values.items() if v is not None})

    def artifact(self, name: str, files: Mapping[str, Path]) -> None:
        """Upload files as one artifact of type eval-results; `files` maps the name inside it to a path."""
        import wandb

        artifact = wandb.Artifact(name, type="eval-results")
        for inside, path in files.items():
            artifact.add_file(str(path), name=inside)
        self.run.log_artifact(artifact)


@contextlib.contextmanager
def track(
    config: TrackerConfig, task: str, sweep: str, name: str, settings: Mapping[str, Any]
) -> Iterator[WandbTracker | None]:
    """Open a tracker run for the length of a block; it is closed, and marked failed, also after an exception."""
    if config.kind == "none":
        yield None
        return
    import wandb

    other = os.environ.get("WANDB_PROJECT")
    if other is not None and other != config.project:
        log.warning(f"tracker.project={config.project} is used; WANDB_PROJECT={other} is ignored.")
    run = wandb.init(
        project=config.project, name=name, group=f"{task}/{sweep}", job_type=task, mode=config.mode,  # type: ignore[arg-type]
        config=dict(settings), reinit="finish_previous", dir=os.environ.get("WANDB_DIR"),
        settings=wandb.Settings(silent=True),
    )  # fmt: skip
    try:
        yield WandbTracker(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
