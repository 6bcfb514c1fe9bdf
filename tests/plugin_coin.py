"""A third party's task: nothing in the suite knows it."""

from __future__ import annotations

import pickle
import random
import time
from dataclasses import dataclass
from typing import ClassVar

from research.cells.seeding import stable_seed
from research.config import key
from research.task import BaseTask, Result


@dataclass
class Coin(BaseTask):
    """How often does a coin fall on heads?"""

    root_keys: ClassVar[frozenset[str]] = frozenset({"steps"})
    uses_model: ClassVar[bool] = False
    bias: float = key(0.5, "chance of heads", min=0, max=1)
    crash: bool = key(False, "raise in the middle")
    seconds: float = key(0.0, "how long to sleep", min=0)

    def label(self, config):
        return f"bias{self.bias:g}_n{config.steps}_s{config.seed}"

    def run(self, cell):
        generator = random.Random(stable_seed(cell.config.seed, "coin"))
        heads = 0
        for step in range(cell.config.steps):
            heads += generator.random() < self.bias
            cell.log(step, {"heads": heads})
            if self.crash and step == cell.config.steps // 2:
                raise ValueError("the coin fell on its edge")
        time.sleep(self.seconds)
        return Result({"heads": heads / cell.config.steps}, {"heads": (heads, cell.config.steps)})


@dataclass
class Walk(BaseTask):
    """Where does a random walk end? It saves its generator's state every step, and resumes from it."""

    root_keys: ClassVar[frozenset[str]] = frozenset({"steps"})
    uses_model: ClassVar[bool] = False
    pause: float = key(0.0, "seconds between steps", min=0, identity=False)

    def run(self, cell):
        saved = cell.scratch / "state.pickle"
        generator, step, place = random.Random(cell.config.seed), 0, 0.0
        if saved.exists():
            state, step, place = pickle.loads(saved.read_bytes())
            generator.setstate(state)
            cell.rewind(step)
        starts = cell.scratch / "starts.txt"
        starts.write_text((starts.read_text() if starts.exists() else "") + f"{step}\n")
        while step < cell.config.steps:
            place += generator.gauss(0, 1)
            step += 1
            cell.log(step, {"place": place})
            partial = saved.with_suffix(".tmp")
            partial.write_bytes(pickle.dumps((generator.getstate(), step, place)))
            partial.replace(saved)
            time.sleep(self.pause)
        return Result({"place": place})


@dataclass
class Pair(BaseTask):
    """What do two processes make of one number each, and what becomes of the first when the second fails?"""

    uses_model: ClassVar[bool] = False
    several_processes: ClassVar[bool] = True
    crash: bool = key(False, "the second process raises, the first waits for it")

    def run(self, cell):
        import torch

        if self.crash and not cell.writes:
            raise ValueError("the second of the pair failed")
        total = torch.tensor([1.0 if cell.writes else 10.0])
        torch.distributed.all_reduce(total)
        cell.log(1, {"sum": float(total)})
        return Result({"sum": float(total)})
