"""A heatmap panel whose numbers can be read in print and in greyscale, and whose gaps are marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from research.reporting.style import INK, MUTED


def heatmap(
    axes: Axes,
    values_RC: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    title: str,
    cmap: str,
    row_title: str = "",
    column_title: str = "",
    unit: str = "",
    limits: tuple[float, float] = (0.0, 100.0),
    fmt: str = ".0f",
    marks_RC: np.ndarray | None = None,
    outlined_RC: np.ndarray | None = None,
    font_size: float = 10,
) -> None:
    """Draw values (R rows, C columns; nan: no result) with a number in each cell and a colour bar of its own.

    marks: what to write in a cell without a result (default `–`). outlined: cells to frame.
    """
    values = np.asarray(values_RC, dtype=float)
    low, high = limits
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colormaps[cmap], vmin=low, vmax=high, aspect="auto")
    axes.set(title=title, xlabel=column_title, ylabel=row_title)
    axes.set_xticks(range(len(column_labels)), column_labels)
    axes.set_yticks(range(len(row_labels)), row_labels)
    _separate_cells(axes, *values.shape)
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            _gap(axes, row, column, "–" if marks_RC is None else str(marks_RC[row, column]), font_size)
            continue
        dark = value > (low + high) / 2
        text = axes.text(
            column, row, format(value, fmt), ha="center", va="center", fontweight="bold", fontsize=font_size
        )
        text.set_color("white" if dark else "black")
        if dark:  # mid-range colours are too light for white alone
            text.set_path_effects([patheffects.withStroke(linewidth=1.6, foreground="#00000066")])
    if outlined_RC is not None:
        for row, column in np.argwhere(outlined_RC):
            axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=2.2))
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(unit, color=MUTED)
    bar.ax.tick_params(color=MUTED)


def _separate_cells(axes: Axes, rows: int, columns: int) -> None:
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _gap(axes: Axes, row: int, column: int, mark: str, font_size: float) -> None:
    box = Rectangle(
        (column - 0.5, row - 0.5), 1, 1, facecolor="#f3f4f6", edgecolor="#9aa3ad", hatch="////", linewidth=0
    )
    axes.add_patch(box)
    if mark:
        text = axes.text(column, row, mark, ha="center", va="center", color=MUTED, fontsize=font_size)
        text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="#f3f4f6")])
