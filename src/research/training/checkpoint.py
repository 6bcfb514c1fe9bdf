"""Checkpoints that a SIGKILL at any moment cannot spoil.

A checkpoint is a directory that appears under its final name only when everything in it is on the disk; whatever else
lies beside it is the debris of a kill and is swept at the next save. Loading takes the last complete one.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy
import torch

from research.errors import CellMismatchError

_STATE = "state.pt"


def save(directory: Path, step: int, state: dict[str, Any], texts: dict[str, str] | None = None) -> Path:
    """Write `directory/step-N/` with the state and small text files, then drop all other entries of `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"step-{step:08d}"
    if final.exists():
        return final
    partial = directory / f".{final.name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    torch.save(state, partial / _STATE)
    for name, text in (texts or {}).items():
        (partial / name).write_text(text)
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    os.rename(partial, final)
    _sync(directory)
    for other in directory.iterdir():
        if other != final:
            shutil.rmtree(other)
    return final


def last(directory: Path) -> Path | None:
    """The newest complete checkpoint."""
    found = sorted(directory.glob("step-*"))
    return found[-1] if found else None


def load(checkpoint: Path) -> dict[str, Any]:
    """The state, on the CPU. It was written by this suite, so that it may hold any Python object."""
    return torch.load(checkpoint / _STATE, map_location="cpu", weights_only=False)


def check_same_run(stored: dict[str, Any], wanted: dict[str, Any], checkpoint: Path) -> None:
    """Raise CellMismatchError, naming the keys, when a checkpoint belongs to another training run."""
    different = sorted(k for k in stored.keys() | wanted.keys() if stored.get(k) != wanted.get(k))
    if different:
        detail = ", ".join(f"{k}: {stored.get(k)!r} there, {wanted.get(k)!r} here" for k in different)
        raise CellMismatchError(
            f"{checkpoint} belongs to another run ({detail}); remove it or use another scratch directory"
        )


def rng_state() -> dict[str, Any]:
    """All generators of this process that training may draw from (dropout's among them)."""
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators back to where `rng_state` found them."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
