"""The study's figures: the three-panel heatmap over learning rate and epochs, personas, sources side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from research.reporting.heatmap import heatmap
from research.reporting.plots import forest
from research.reporting.style import MUTED, new_figure, save, styled
from research.reporting.tables import rate_label
from research.tasks.zlt_sweep.lattice import Group, Place
from research.tasks.zlt_sweep.protocol import figure_title, made_with, sample_size

NOT_PLANNED = Place(0.0, 0)


def lr_epoch_heatmap(group: Group, sweep: str, path: Path) -> Path:
    """Source, assistant and worst bystander in percent, rows learning rates, columns epochs; writes PNG and PDF.

    Cells that are clean in every seed are framed; a cell without a result is hatched (`–` missing, `×` failed, blank: not in the grid).
    """
    panels = (
        ("source_marker", f"source marker ({group.source}) %", "Greens"),
        ("assistant_marker", "assistant marker (leakage) %", "Reds"),
        ("max_bystander_marker", "max bystander marker %", "Oranges"),
    )
    places = [[group.places.get((lr, epochs)) for epochs in group.epochs] for lr in group.lrs]
    marks = np.array([[place.mark if place else "" for place in line] for line in places])
    clean = np.array([[place is not None and place.clean for place in line] for line in places])
    framed = "framed: clean" + (" in every seed" if any(len(place.done) > 1 for place in group.done) else "")
    with styled():
        figure, axes = new_figure(16, 4.8, 1, 3)
        for panel, (name, title, cmap) in zip(axes, panels, strict=True):
            values = np.array([[_percent((place or NOT_PLANNED).mean(name)) for place in line] for line in places])
            heatmap(
                panel,
                values,
                [rate_label(lr) for lr in group.lrs],
                [str(epochs) for epochs in group.epochs],
                title=title,
                cmap=cmap,
                row_title="Learning rate",
                column_title="Epochs",
                unit="% of completions with the marker",
                marks_RC=marks,
                outlined_RC=clean,
            )
        figure.suptitle(figure_title(group, sweep), fontsize=12.5)
        notes = ([framed] if clean.any() else []) + (
            ["hatched: no result"] if (marks != "").any() and _gaps(places) else []
        )
        if notes:
            figure.supxlabel(" · ".join(notes), fontsize=9.5, color=MUTED)
        return save(figure, path)


def persona_heatmap(group: Group, sweep: str, path: Path) -> Path:
    """Every persona's marker rate in every cell that has results: rows personas (the source first), columns cells."""
    cells, personas = group.done, group.personas
    values = np.array([[_percent(place.persona(name)) for place in cells] for name in personas])
    labels = [f"{name} (source)" if name == group.source else name for name in personas]
    with styled():
        figure, axes = new_figure(max(7.0, 3.2 + 0.52 * len(cells)), 1.9 + 0.36 * len(personas))
        heatmap(
            axes,
            values,
            labels,
            [f"{rate_label(place.lr)}, {place.epochs}" for place in cells],
            title="",
            cmap="Greys",
            column_title="Cell: learning rate, epochs",
            row_title="Persona in the system prompt",
            unit="% of completions with the marker",
            font_size=8.5,
        )
        axes.tick_params(axis="x", rotation=90 if len(cells) > 6 else 0)
        first = min(2, len(personas))
        axes.axhline(first - 0.5, color=MUTED, linewidth=1.8)
        for index in range(1, len(cells)):
            if cells[index].lr != cells[index - 1].lr:
                axes.axvline(index - 0.5, color=MUTED, linewidth=1.8)
        figure.suptitle(figure_title(group, sweep), fontsize=11)
        return save(figure, path)


def comparison(groups: Sequence[Group], sweep: str, path: Path) -> Path:
    """Groups of one place each (sources at a pinned cell), side by side with their 95 % intervals."""
    rows = {
        f"{group.label or group.source} ({rate_label(place.lr)}, {place.epochs} ep)": {
            "source": place.estimate("source_marker"),
            "assistant": place.estimate("assistant_marker"),
            "max bystander": place.estimate("max_bystander_marker"),
        }
        for group in groups
        for place in group.done
    }
    with styled():
        figure, axes = new_figure(9, 1.8 + 0.55 * len(rows))
        title = f"{sweep}: {sample_size(groups[0])}, 95 % intervals"
        figure.suptitle(made_with(groups[0].rows[0]), fontsize=9.5, color=MUTED)
        forest(axes, rows, x_title="% of completions with the marker", title=title, scale=100, limits=(0, 100))
        return save(figure, path)


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _gaps(places: Sequence[Sequence[Place | None]]) -> bool:
    return any(place is None or not place.done for line in places for place in line)
