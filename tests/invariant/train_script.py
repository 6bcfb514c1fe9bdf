"""A training run in a process of its own, for tests that kill it or start several: `python train_script.py SPEC.json`.

Writes into the scratch directory: `pid-RANK` at once, metrics.jsonl as a cell does, `adapter-RANK.pt` and
`result-RANK.json` at the end, `wrappers-RANK` at exit: how many torch wrappers, which hold process groups, are left.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from invariant.test_supervised import make_policy, make_rows

from research.cells import ranks
from research.cells.cell import Cell
from research.cells.cell import Shared as CellShared
from research.config import Optimization, RunConfig
from research.training.supervised import train


def main(spec: dict) -> None:
    torch.set_num_threads(1)
    scratch = Path(spec["scratch"])
    cell = Cell("cell", RunConfig(), scratch / "files", scratch, CellShared(), scratch / "cache")
    (scratch / f"pid-{ranks.rank()}").write_text(str(os.getpid()))
    atexit.register(count_wrappers, scratch)  # runs after what joining registers
    ranks.join()
    policy = make_policy(spec["model"], dropout=spec["dropout"], shard=spec.get("shard", False))
    result = train(
        policy, make_rows(30), Optimization(**spec["optim"]), lr=1e-3, epochs=spec["epochs"], batch_size=8, seed=7,
        scratch=scratch, log=cell.log, rewind=cell.rewind,
    )  # fmt: skip
    rank = ranks.rank()
    torch.save({n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}, scratch / f"adapter-{rank}.pt")
    found = {"loss": result.loss, "steps": result.steps, "tokens": result.tokens}
    (scratch / f"result-{rank}.json").write_text(json.dumps(found))


def count_wrappers(scratch: Path) -> None:
    alive = sum(isinstance(thing, torch.nn.parallel.DistributedDataParallel) for thing in gc.get_objects())
    (scratch / f"wrappers-{ranks.rank()}").write_text(str(alive))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
