"""What a run shows: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_SECONDS = 10.0


class Progress:
    """Call it with a message; with `step` and `total` it moves a bar, or off a terminal prints every ten seconds."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._last = 0.0
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            )
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)

    def __call__(self, message: str, step: int | None = None, total: int | None = None) -> None:
        if step is None or total is None:
            self._line(message)
        elif self._bar is None:
            if step >= total or time.monotonic() - self._last > PLAIN_SECONDS:
                self._last = time.monotonic()
                self._line(f"{message} {step}/{total}")
        else:
            self._move(message, step, total)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None

    def _line(self, message: str) -> None:
        if self._task is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)

    def _move(self, message: str, step: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task(message, total=total)
            self._bar.start()
        self._bar.update(self._task, description=message, completed=step, total=total)
        if step >= total:
            self.close()
