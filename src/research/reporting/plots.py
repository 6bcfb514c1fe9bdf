"""Scatter with a Pareto front, trajectories with rolling means, forests of intervals: what the studies' pages share.

Each function draws on axes made with `style.new_figure` inside `style.styled()`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from research.reporting.style import COLORS, DASHES, INK, MARKERS, MUTED, despine
from research.scoring.statistics import Estimate


@dataclass(frozen=True)
class Point:
    """One run in a scatter: its place, its arm, and a note written beside it."""

    x: float
    y: float
    group: str
    note: str = ""


def scatter(
    axes: Axes, points: Sequence[Point], *, x_title: str, y_title: str, title: str = "", front: bool = True
) -> None:
    """One marker a run, one colour and shape a group.

    `front` joins the points with no other at lower x and higher y.
    """
    groups = list(dict.fromkeys(point.group for point in points))
    for index, group in enumerate(groups):
        own = [point for point in points if point.group == group]
        axes.plot(
            [p.x for p in own], [p.y for p in own],
            linestyle="none", marker=_turn(MARKERS, index), color=COLORS[index % len(COLORS)],
            markersize=8, markeredgecolor="white", markeredgewidth=0.8, label=f"{group} (n={len(own)})", zorder=3,
        )  # fmt: skip
    best = pareto_front([(point.x, point.y) for point in points])
    if front and len(best) > 1:
        axes.plot(*zip(*best, strict=True), color=INK, linewidth=1.2, linestyle="--", label="Pareto front", zorder=2)
    noted = {point.note: point for point in sorted(points, key=lambda point: point.y) if point.note}
    for point in noted.values():  # beside the highest that it is about
        axes.annotate(
            point.note, (point.x, point.y), xytext=(7, 5), textcoords="offset points", fontsize=8.5, color=MUTED
        )
    axes.set(xlabel=x_title, ylabel=y_title, title=title)
    despine(axes)
    _legend(axes, len(groups))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both lower x and higher y, by rising x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def trajectories(
    axes: Axes,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_title: str,
    y_title: str,
    title: str = "",
    window: int = 1,
    events: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Lines by name, each (steps, values), with the raw values faint behind a mean over the last `window` values.

    events: vertical lines by name, e.g. the co-training steps.
    """
    for index, (name, (steps, values)) in enumerate(series.items()):
        color, dash = COLORS[index % len(COLORS)], _turn(DASHES, index)
        if window > 1:
            axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
        axes.plot(steps, rolling_mean(values, window), color=color, linestyle=dash, linewidth=1.8, label=name)  # type: ignore[arg-type]
    for index, (name, places) in enumerate((events or {}).items()):
        for place in places:
            first = place == places[0]
            axes.axvline(
                place,
                color=MUTED,
                linewidth=0.9,
                linestyle=DASHES[(index + 3) % len(DASHES)],
                label=name if first else None,
            )  # type: ignore[arg-type]
    note = f" (mean of the last {window})" if window > 1 else ""
    axes.set(xlabel=x_title, ylabel=y_title + note, title=title)
    despine(axes)
    _legend(axes, len(series))


def rolling_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean over the last `window` values at each place.

    Nan values are left out, and the first places average what there is.
    """
    sample = np.asarray(values, dtype=float)
    known = np.isfinite(sample)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, sample, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(sample) + 1)
    starts = np.maximum(ends - window, 0)
    n = counts[ends] - counts[starts]
    return np.where(n > 0, (sums[ends] - sums[starts]) / np.maximum(n, 1), np.nan)


def forest(
    axes: Axes,
    rows: Mapping[str, Mapping[str, Estimate | None]],
    *,
    x_title: str,
    title: str = "",
    scale: float = 1.0,
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
) -> None:
    """A line a row, with a dot and its interval for each series; values are multiplied by `scale`.

    rows: `{"erase": {"hack rate": Estimate(...)}}`.
    """
    names = list(dict.fromkeys(name for series in rows.values() for name in series))
    step = 0.7 / max(len(names), 1)
    for index, name in enumerate(names):
        color, marker = COLORS[index % len(COLORS)], _turn(MARKERS, index)
        label: str | None = name
        for place, series in enumerate(rows.values()):
            found = series.get(name)
            if found is None or not math.isfinite(found.value):
                continue
            y = place + (index - (len(names) - 1) / 2) * step
            if math.isfinite(found.low):
                axes.plot(
                    [found.low * scale, found.high * scale], [y, y], color=color, linewidth=1.8, solid_capstyle="butt"
                )
            axes.plot(
                found.value * scale,
                y,
                marker=marker,
                color=color,
                markersize=6.5,
                linestyle="none",
                label=label,
                zorder=3,
                clip_on=False,
            )
            label = None
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=0.9, linestyle="--")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if limits:
        axes.set_xlim(*limits)
    axes.set(xlabel=x_title, title=title)
    despine(axes, "x")
    if len(names) > 1:
        axes.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _turn(styles: Sequence[Any], index: int) -> Any:
    """A style for the index-th series that, when the colours come round again, is not the one its colour had before."""
    return styles[(index + index // len(COLORS)) % len(styles)]


def _legend(axes: Axes, entries: int) -> None:
    """Inside while it leaves room for the points."""
    if entries > 8:
        axes.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    else:
        axes.legend(fontsize=8.5)
