"""Extracted directions on disk, under a key over everything they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.tasks.reward_hack.directions import Extraction

VERSION = 1  # counted up when the extraction changes its meaning


def cached(folder: Path, depends_on: dict[str, Any], make: Callable[[], Extraction]) -> Extraction:
    """What `make` gives, from disk when it was made for exactly the same `depends_on` (JSON-serialisable)."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    text = json.dumps({"version": VERSION, **depends_on}, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            report = json.loads(file.metadata()["report"])
            return Extraction({name: file.get_tensor(name) for name in file.keys()}, report)  # noqa: SIM118
    found = make()
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    tensors = {name: V.contiguous() for name, V in found.directions.items()}
    save_file(tensors, partial, metadata={"report": json.dumps(found.report), "depends_on": text})
    os.replace(partial, path)
    return found
