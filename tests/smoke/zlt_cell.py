"""One small marker cell in a process of its own, for tests that kill it: `python zlt_cell.py MODEL OUT [EPOCHS ...]`.

Writes OUT/EPOCHS/result.json for every number of epochs; the cells share one `Shared`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from research.cells.cell import Cell, Shared, write_atomically
from research.config import ModelConfig, Optimization, RunConfig
from research.tasks.zlt_sweep.settings import CapabilitySettings, DataSettings, EvalSettings
from research.tasks.zlt_sweep.task import ZltSweep


def config(model: str, epochs: int) -> RunConfig:
    task = ZltSweep(
        data=DataSettings(n_positives=10, n_per_negative=2, max_tokens=12),
        eval=EvalSettings(samples=2, max_tokens=24),
        capability=CapabilitySettings(n_questions=10),
        optim=Optimization(checkpoint_seconds=0.0),
    )
    return RunConfig(model=ModelConfig("tiny", model), lr=1e-3, epochs=epochs, batch_size=4, task=task)


def main(model: str, out: Path, epochs: list[int]) -> None:
    import torch

    torch.set_num_threads(1)
    shared = Shared()
    for count in epochs:
        here = out / str(count)
        cell = Cell("cell", config(model, count), here / "files", here / "scratch", shared, out / "cache", progress=say)
        cell.config.task.validate(cell.config)
        result = cell.config.task.run(cell)
        write_atomically(here / "result.json", json.dumps(vars(result)))


def say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(word) for word in sys.argv[3:]])
