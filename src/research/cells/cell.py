"""A running cell: what a task is given, and the files it leaves."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from research.cells import ranks
from research.config import RunConfig

T = TypeVar("T")


class Shared:
    """Things that several cells of one process use: loaded, tokenised or generated once."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """The value made for `key`, calling `make` the first time only."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Cell:
    """One cell while it runs.

    directory: its files under eval_results/. scratch: its checkpoints under runs/ (survives a kill; ignored by git).
    shared: outlives the cell within the process. progress(message) shows a line on screen.
    writes: whether this process, one of several that may run the cell together, writes its files.
    """

    def __init__(
        self,
        name: str,
        config: RunConfig,
        directory: Path,
        scratch: Path,
        shared: Shared,
        cache: Path,
        tracker: Any = None,
        progress: Callable[[str], None] = print,
    ) -> None:
        self.name, self.config, self.directory, self.scratch = name, config, directory, scratch
        self.shared, self.cache, self.tracker, self.progress = shared, cache, tracker, progress
        self.writes = ranks.rank() == 0
        self.seconds: dict[str, float] = {}
        directory.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the wall time of a block under `name` in the result's `wall_seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl and pass it to the tracker."""
        if not self.writes:
            return
        row = {"step": step, **metrics}
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.tracker is not None:
            self.tracker.log(row)

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl past `step`: a resumed run writes them again."""
        path = self.directory / "metrics.jsonl"
        if self.writes and path.exists():
            kept = [line for line in path.read_text().splitlines() if (at := _step_of(line)) is not None and at <= step]
            write_atomically(path, "".join(line + "\n" for line in kept))

    def write_completions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write completions.jsonl.gz, one JSON object a line; the bytes depend on the rows only."""
        if not self.writes:
            return
        path = self.directory / "completions.jsonl.gz"
        with (
            replacing(path) as partial,
            partial.open("wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file,
        ):
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content so that a reader sees the old or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file's next content to; it takes the file's place when the block ends, and goes when it fails."""
    partial = _beside(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name for a file's next content: no other process or machine chooses it."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def _step_of(line: str) -> int | None:
    """The step of a metrics line; None for the torn last line of a killed run."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
