"""The page of the shared-model variant: the published table, and how MAUVE goes with the settings. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from research.errors import ConfigurationError
from research.reporting.rows import Row, is_done, metric, setting
from research.reporting.style import new_figure, save, styled
from research.reporting.tables import number
from research.task import Section
from research.tasks.imposter import ascent

COLUMNS = ("steps", "lr", "task.d_lr", "task.d_scale", "seed")
HEADINGS = [
    "steps",
    "g-lr",
    "d-lr",
    "d-scale",
    "seed",
    "mauve",
    "smoothed mauve",
    "frontier integral",
    "sequences",
    "judge accuracy",
]


def report(rows: Sequence[Row], out: Path) -> list[Section]:
    """Draw the figure under `out` and return the page's sections."""
    done = [row for row in rows if is_done(row)]
    body = [
        [number(setting(row, name)) for name in COLUMNS]
        + [
            number(metric(row, name))
            for name in ("mauve", "mauve_star", "frontier_integral", "sequences", "judge_accuracy")
        ]
        for row in done
    ]
    text = (
        "MAUVE compares the last sequences written in training with the truths of the same prompts: 1 is equal. It "
        "depends on the number of sequences and of clusters, so only rows with the same ones compare.",
    )
    sections = [
        Section("What came out", text, tables=[("One row a cell, without intervals: one run each.", HEADINGS, body)])
    ]
    known = [row for row in done if metric(row, "mauve") is not None]
    if len(known) > 1:
        with styled():
            figure, axes = new_figure(6.5, 1.2 + 0.4 * len(known))
            axes.barh(range(len(known)), [metric(row, "mauve") for row in known], color="0.45")
            labels = [
                f"g {setting(r, 'lr'):g}, d {setting(r, 'task.d_lr'):g}, x {setting(r, 'task.d_scale'):g}"
                for r in known
            ]
            axes.set_yticks(range(len(known)), labels)
            axes.invert_yaxis()
            counts = [int(metric(row, "sequences") or 0) for row in known]
            span = str(min(counts)) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
            axes.set(xlabel=f"MAUVE (0 to 1), N = {span} sequences a cell")
            path = save(figure, out / "mauve")
        sections[0].figures = [("MAUVE of every cell; one run each, so no intervals.", path)]
    sections += _ascent(known, out.name)
    return sections


def _ascent(rows: Sequence[Row], name: str) -> list[Section]:
    """Effects and the next cell, where the rows are a two-level design around a centre."""
    table = [
        {name: setting(row, name) for name in ("lr", "task.d_lr", "task.d_scale", "steps")}
        | {"mauve": metric(row, "mauve")}
        for row in rows
    ]
    try:
        design = ascent.find_design(table)
        found = ascent.climb(design)
    except ConfigurationError:
        return []  # any other set of cells: there is no path to show
    body = [
        [f, number(e), number(x), number(r)]
        for f, e, x, r in zip(design.factors, found.effects, found.exact, found.rounded, strict=True)
    ]
    line = (rows[0].get("provenance") or {}).get("command")
    launched = ascent.launched_by(line, name, design.factors)
    columns = ["factor", "effect on MAUVE", f"path at t = {found.t:g}", "next cell"]
    return [
        Section(
            "Steepest ascent",
            [*ascent.caveats(design, table), f"`{ascent.command(design, found, launched)}`"],
            tables=[("", columns, body)],
        )
    ]
