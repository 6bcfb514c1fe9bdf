"""What makes two cells the same: every setting that can change the numbers, every file that enters, by content."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from research.config import RunConfig

# Counted up when the meaning of a configuration changes although its keys do not, so that old results are not reused.
DIGEST_RULE = 1


def settings(config: RunConfig) -> dict[str, Any]:
    """The settings that can change the numbers, as dotted keys: fields marked `identity=False` are left out."""
    return dict(_flatten(config, ""))


def digest(task_name: str, config: RunConfig, inputs: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the digest rule, the task, its settings and the content hashes of its input files."""
    return _hash_json([DIGEST_RULE, task_name, settings(config), dict(inputs)])


def cell_name(label: str, cell_digest: str) -> str:
    """The directory name of a cell: what a person would write, then eight digits of the digest."""
    return f"{label}-{cell_digest[:8]}"


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """`key: one -> other` for every dotted key in which two settings disagree."""
    shown = [
        (name, *(repr(side[name]) if name in side else "(absent)" for side in (one, other)))
        for name in sorted(set(one) | set(other))
    ]
    return [f"{name}: {a} -> {b}" for name, a, b in shown if a != b]


_held: dict[tuple[Path, ...], str] | None = None


@contextlib.contextmanager
def files_held() -> Iterator[None]:
    """Within the block, look at each group of files once: for many cells that share them."""
    global _held
    outer, _held = _held, {} if _held is None else _held
    try:
        yield
    finally:
        _held = outer


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over the names and contents of files; equal wherever they lie."""
    files = tuple(sorted(paths, key=lambda p: p.name))
    if _held is not None and files in _held:
        return _held[files]
    total = hashlib.sha256()
    for path in files:
        stat = path.stat()
        total.update(f"{path.name}\0{_hash_file(str(path), stat.st_size, stat.st_mtime_ns)}\0".encode())
    if _held is not None:
        _held[files] = total.hexdigest()
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _hash_file(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flatten(value: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    for name, unless in _counted(type(value)):  # type: ignore[arg-type]
        item = getattr(value, name)
        if item == unless:
            continue
        if hasattr(type(item), "__dataclass_fields__"):
            yield from _flatten(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item


@lru_cache(maxsize=256)
def _counted(schema: type) -> list[tuple[str, Any]]:
    """The fields of a dataclass that can change the numbers, each with the value at which it does not count."""
    kinds = [(f, f.metadata.get("identity", True)) for f in fields(schema)]
    return [(f.name, f.default if kind == "if set" else _NEVER) for f, kind in kinds if kind]


_NEVER = object()


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
