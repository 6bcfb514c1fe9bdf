"""One look for every figure: fonts, colours, saving as PNG and PDF.

Colours are told apart in greyscale by marker or dash.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.cells.cell import replacing

INK, MUTED, GRID = "#1c2530", "#5d6875", "#d9dee4"
# Okabe and Ito's palette, ordered so that neighbours differ in lightness.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#4d4d4d", "#f0e442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 2)))
PNG_DPI = 180

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 9,
    "axes.labelsize": 10.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "figure.facecolor": "white",
    "hatch.linewidth": 0.6,
}


@contextmanager
def styled() -> Iterator[None]:
    """Everything drawn and saved inside has the suite's look."""
    with matplotlib.rc_context(RC):  # type: ignore[arg-type]
        yield


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many inches and its axes: one, or an array of them. No window, no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, path: Path) -> Path:
    """Write PATH as PNG and, beside it, as PDF; equal figures give equal files. Returns the PNG's path.

    A reader sees the old file or the new: cells that finish together draw at the same time.
    """
    path = path.with_suffix(".png") if path.suffix in (".png", ".pdf") else path.with_name(path.name + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=PNG_DPI, bbox_inches="tight", metadata={"Software": None})
    figure.set_layout_engine("none")  # laid out by the first save; the second would only do it again
    with replacing(path.with_suffix(".pdf")) as partial:
        figure.savefig(partial, format="pdf", bbox_inches="tight", metadata={"CreationDate": None})
    return path


def despine(axes: Axes, grid: str = "both") -> None:
    """Leave the left and bottom spines and a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
