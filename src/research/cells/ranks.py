"""One cell on several processes: who writes its files, who goes first, and what happens when one of them fails.

    torchrun --nproc-per-node 4 -m research task=zlt_sweep model=qwen2_5_7b_instruct
    python -m research.sweep submit task=zlt_sweep hydra.launcher.tasks_per_node=4 hydra.launcher.gpus_per_node=4

Every process runs the whole cell and the training deals each step's examples to them. The first process alone holds
the claim and writes; the others follow its decisions.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

# The others wait this long for the first, which may be sampling a whole data set.
PATIENCE = timedelta(hours=12)


def rank() -> int:
    """This process's number; 0 where there is one process only."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes run the cell together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meet the other processes, started by torchrun, accelerate or as tasks of a SLURM step; alone, do nothing."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        os.environ.update(_slurm_ranks())
    if world_size() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    atexit.register(_leave)


def _leave() -> None:
    """End the group's threads while the interpreter is whole: one that outlives it can abort the process.

    After training that takes a collection first: torch's wrapper of the model holds the group, and a cycle the wrapper.
    """
    import torch

    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def from_first(value: T) -> T:
    """The first process's value, in every process."""
    if world_size() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def gathered(value: T) -> list[T]:
    """Every process's value, in the order of their ranks, in every process."""
    if world_size() == 1:
        return [value]
    import torch

    found: list[T | None] = [None] * world_size()
    torch.distributed.all_gather_object(found, value)
    return found  # type: ignore[return-value]


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block, then the others do: they find in the cache what it made."""
    if rank() == 0:
        yield
        from_first(None)
    else:
        from_first(None)
        yield


def abort() -> None:
    """End this process, and so the launch: the other processes wait for one that failed, and would wait for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _slurm_ranks() -> dict[str, str]:
    """torch's variables from those of a SLURM step. Raises CalledProcessError where scontrol fails."""
    slurm = {name: os.environ[f"SLURM_{name}"] for name in ("PROCID", "LOCALID", "STEP_NUM_TASKS", "JOB_ID")}
    nodes = os.environ["SLURM_STEP_NODELIST"]
    address = nodes
    if "[" in nodes or "," in nodes:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        address = listed.stdout.split()[0]
    tasks = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", slurm["STEP_NUM_TASKS"]))
    assert tasks is not None
    return {
        "RANK": slurm["PROCID"],
        "LOCAL_RANK": slurm["LOCALID"],
        "WORLD_SIZE": slurm["STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": tasks.group(),
        "MASTER_ADDR": address,
        # Jobs that share a node need ports of their own.
        "MASTER_PORT": str(20000 + int(slurm["JOB_ID"]) % 40000),
    }
