"""What a study is to the suite: the one page that a plug-in author reads.

A task is a dataclass whose fields are its configuration keys, named by `_target_` in a YAML of the `task` group:

    # my_conf/task/coin.yaml
    # @package _global_
    steps: 10
    task:
      _target_: my_package.coin.Coin
      bias: 0.5

    # my_package/coin.py
    @dataclass
    class Coin(BaseTask):
        root_keys: ClassVar = frozenset({"steps"})
        bias: float = key(0.5, "chance of heads", min=0, max=1)

        def run(self, cell: Cell) -> Result: ...

    python -m research --config-dir my_conf task=coin -m task.bias=0.3,0.7

It needs `root_keys` (those of lr, epochs, steps, batch_size, advantages, constraint that it uses) and `run`; the other
methods have defaults in `BaseTask`. `run` may be killed at any moment and is then called again: it resumes from
`cell.scratch`, or starts over with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from research.cells.cell import Cell
    from research.config import RunConfig


@dataclass
class Result:
    """What a cell came to.

    metrics: flat, by the names of the suite. counts: hits and trials behind every rate, `{"source_marker": (3, 200)}`.
    extra: further top-level keys of run_result.json, JSON-serialisable.
    """

    metrics: dict[str, float | bool | None]
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Section:
    """One part of a report page: a heading, paragraphs of text, tables and figures.

    cards: (value, label), shown large before the text. tables: (caption, column names, rows). figures: (caption, path of the PNG).
    A paragraph that starts with `- ` is a list item; `code` and **bold** are understood.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]] = ()
    figures: Sequence[tuple[str, Path]] = ()
    cards: Sequence[tuple[str, str]] = ()


class BaseTask:
    """Defaults for everything but `run`."""

    root_keys: ClassVar[frozenset[str]] = frozenset()
    uses_model: ClassVar[bool] = True  # whether the base model's files are part of the cell's identity
    several_processes: ClassVar[bool] = False  # whether several may run one cell; `cell.writes` is true in one of them

    def validate(self, config: RunConfig) -> None:
        """Raise ConfigurationError for settings that are impossible together; loads nothing, runs nothing."""

    def label(self, config: RunConfig) -> str:
        """The readable part of the cell's name: letters, digits, `.`, `_`, `-`, `+`."""
        return f"s{config.seed}"

    def inputs(self, config: RunConfig) -> Mapping[str, str]:
        """Content hashes of the files that enter, by name; they are part of the cell's identity."""
        return {}

    def run(self, cell: Cell) -> Result:
        raise NotImplementedError(f"{type(self).__name__} must define run(cell)")

    def derive(self, row: dict[str, Any]) -> dict[str, Any]:
        """Fill in what an older or foreign run_result.json lacks; called on every file a report reads."""
        return row

    def report(self, rows: Sequence[dict[str, Any]], out: Path) -> Sequence[Section]:
        """Write figures under `out` and return the sections of report.html; `rows` are result files in grid order.

        A missing cell is a row whose metrics are null.
        """
        return ()
