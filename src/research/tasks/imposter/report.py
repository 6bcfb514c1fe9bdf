"""The page of the imposter study, in the published form, and its figures. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.reporting.plots import forest, trajectories
from research.reporting.rows import Row, is_done, setting, title
from research.reporting.style import new_figure, save, styled
from research.reporting.tables import DASH, number, percent, percent_interval
from research.scoring.statistics import Estimate
from research.task import Section

# Measures of the before/after table: name, what it is, whether it is a rate.
MEASURES = (
    ("gap", "gap = human - mean(generated)", False),
    ("human_logit", "human logit", False),
    ("generated_logit", "generator logit", False),
    ("positive_rate", "generated spans with positive logit", True),
    ("above_human_rate", "generated spans above the human one", True),
    ("gap_below_10", "documents with gap < 10", True),
    ("gap_below_5", "documents with gap < 5", True),
    ("gap_below_0.42_of_before", "documents with gap < 10/24 of the mean gap before", True),
    ("gap_below_0.21_of_before", "documents with gap < 5/24 of the mean gap before", True),
    ("degenerate_rate", "degenerate spans, of any kind", True),
    ("copied_rate", "copied from the context", True),
    ("repeated_rate", "repeating themselves", True),
    ("empty_rate", "empty", True),
    ("overlong_rate", "over-long or cut off", True),
    ("duplicate_rate", "written word for word for several documents", True),
)
MOST_CELLS = 12

READING = (
    "The discriminator gives a logit for a span: high means that it reads as the author's. Before and after training, "
    "the same **original discriminator** judges, which was frozen after stage 1 and never saw the evaluation's "
    "documents. A gap of 0 means that it cannot tell the two apart; a fall of the gap is what the generator learned, "
    "unless the degenerate rates rose with it.",
    "Thresholds of 10 and 5 logits belong to the published discriminator; a small one has another scale, so they are "
    "also given as shares of the mean gap before training (10/24 and 5/24). Intervals are 95 %, by bootstrap over "
    "documents.",
)


def report(rows: Sequence[Row], out: Path) -> list[Section]:
    """Draw the figures under `out` and return the page's sections."""
    done = [row for row in rows if is_done(row) and row.get("evaluation")]
    if not done:
        return []
    sections = [_headline(done, out)]
    for row in done[:MOST_CELLS]:
        sections += _cell(row, out, len(done) > 1)
    if len(done) > MOST_CELLS:
        sections[0].text = (*sections[0].text, f"The first {MOST_CELLS} of {len(done)} cells are shown one by one.")
    return sections


def _headline(rows: Sequence[Row], out: Path) -> Section:
    first = rows[0]
    change = Estimate(**first["gap_change"])
    after, before = first["evaluation"]["after"], first["evaluation"]["before"]
    cards = [
        (f"{100 * change.value:+.0f} %", "gap against the original discriminator"),
        (f"{percent(after['positive_rate']['value'], 0)} %", "generated spans scoring human"),
        (f"{number(before['gap']['value'])} to {number(after['gap']['value'])}", "gap, before and after"),
        (f"{percent(first['metrics'].get('discriminator_accuracy'))} %", "held-out accuracy of stage 1"),
        (number(setting(first, "steps")), "training steps"),
    ]
    if len(rows) > 1:
        cards = [(label, f"{text}, {title(first)}") for label, text in cards[:1]] + cards[3:]
    figures = []
    if len(rows) > 1:
        changes = {title(row): {"change of the gap": Estimate(**row["gap_change"])} for row in rows}
        with styled():
            figure, axes = new_figure(7.5, 1.2 + 0.4 * len(changes))
            forest(axes, changes, x_title="relative change of the gap, %", scale=100, reference=0.0)
            path = save(figure, out / "gap_change")
        n = after["gap"]["n"]
        figures.append(
            (f"Change of the gap against the frozen original, N = {n} documents a cell, 95 % intervals.", path)
        )
    return Section("What came out", READING, figures=figures, cards=cards)


def _cell(row: Row, out: Path, named: bool) -> list[Section]:
    suffix = f": {title(row)}" if named else ""
    slug = f"_{row['cell']['name']}" if named else ""
    found = [Section(f"Final evaluation{suffix}", _verdict(row), tables=[_before_after(row)])]
    record = row.get("training") or {}
    if record:
        found += [_trajectory(row, record, out, slug, suffix), _tables(record, suffix)]
    return found


def _verdict(row: Row) -> list[str]:
    """What may be claimed, and what not."""
    change = Estimate(**row["gap_change"])
    rates = {phase: row["evaluation"][phase]["degenerate_rate"]["value"] for phase in ("before", "after")}
    rise = 100 * (rates["after"] - rates["before"])
    text = [
        f"The gap changed by {100 * change.value:+.1f} % [{100 * change.low:+.1f}, {100 * change.high:+.1f}] "
        f"over {change.n} documents; "
        + ("the interval excludes 0." if change.low > 0 or change.high < 0 else "the interval includes 0.")
    ]
    text.append(
        f"Degenerate spans went from {percent(rates['before'])} % to {percent(rates['after'])} % ({rise:+.1f} points)"
        + ("; a lower gap may be theirs." if rise > 5 else ".")
    )
    if "duplicate_rate" in row["evaluation"]["after"]:  # of results that have it
        same = {phase: percent(row["evaluation"][phase]["duplicate_rate"]["value"]) for phase in ("before", "after")}
        text.append(
            f"Spans written word for word for several documents went from {same['before']} % to {same['after']} %."
        )
    return text


def _before_after(row: Row) -> tuple[str, list[str], list[list[str]]]:
    phases = row["evaluation"]
    body = []
    for name, label, is_rate in MEASURES:
        pair = [Estimate(**phases[p][name]) if name in phases[p] else None for p in ("before", "after")]
        if any(pair):
            body.append([label, *(percent_interval(e) if is_rate else _interval(e) for e in pair)])
    metrics = row["metrics"]
    for name in ("mauve", "mauve_star", "frontier_integral"):
        if metrics.get(name) is not None:
            body.append([name.replace("_", " "), number(metrics.get(f"{name}_before")), number(metrics[name])])
    n = phases["after"]["gap"]["n"]
    return f"N = {n} documents; rates in percent, with 95 % intervals.", ["measure", "before", "after"], body


def _trajectory(row: Row, record: Mapping[str, Any], out: Path, slug: str, suffix: str) -> Section:
    steps, curves = record["steps"], record["curves"]
    events = {"co-training": [entry["step"] for entry in record["cotrain"]]} if 0 < len(record["cotrain"]) <= 30 else {}
    figures = []
    panels = (
        ("gap", "gap, logits", {"gap": "gap"}),
        ("logits", "logit of the judge in training", {"human_logit": "human", "generated_logit": "generated"}),
        ("losses", "nats a token", {"auxiliary/behaviour_cloning": "behaviour cloning", "kl_drift": "KL to the base"}),
    )
    for name, y_title, wanted in panels:
        series = {
            label: (steps, [float("nan") if v is None else v for v in curves[key]])
            for key, label in wanted.items() if key in curves
        }  # fmt: skip
        if not series:
            continue
        with styled():
            figure, axes = new_figure(7.5, 3.6)
            trajectories(axes, series, x_title="optimizer step", y_title=y_title, events=events)
            path = save(figure, out / f"{name}{slug}")
        caption = (
            f"Means over {record['window']} steps, N = {record['early']['steps'] + record['late']['steps']} steps."
        )
        figures.append((caption, path))
    table = (
        "Mean gap against the discriminator that learns along.",
        ["steps", "mean gap"],
        [[f"{b['first']}-{b['last']}", number(b["gap"])] for b in record["bins"]],
    )
    return Section(f"Gap trajectory{suffix}", tables=[table], figures=figures)


def _tables(record: Mapping[str, Any], suffix: str) -> Section:
    early, late = record["early"], record["late"]
    names = (
        ("gap", "mean gap", number), ("near", "steps with gap < 10, %", percent),
        ("negative_steps", "steps with negative gap", number),
        ("reward", "mean reward", number), ("generated_logit", "mean generator logit", number),
        ("positive_steps", "steps with positive mean logit, %", percent),
        ("behaviour_cloning", "behaviour-cloning loss, nats a token", number),
        ("kl_drift", "KL to the base, nats a token", number),
    )  # fmt: skip
    phases = [[label, show(early[key]), show(late[key])] for key, label, show in names]
    split = record["split"]
    tables: list[Any] = [
        (
            f"Early: steps up to {split}. Late: after it.",
            ["", "early", "late"],
            [["steps", early["steps"], late["steps"]], *phases],
        )
    ]
    if record["cotrain"]:
        rows = [
            [
                entry["step"],
                number(entry["loss_before"]),
                number(entry["loss"]),
                number(entry["loss_after"]),
                _of_chance(entry),
            ]
            for entry in record["cotrain"]
        ]
        columns = ["step", "loss on fresh pairs", "loss in the round", "loss after it", "of chance, %"]
        chance = _chance(record["cotrain"][0])
        by = "ln 2 = " if chance == math.log(2) else ""
        tables.append(
            (f"Co-training of the discriminator; the loss of one that cannot tell is {by}{chance:.3f}.", columns, rows)
        )
    sync = record["sync"]
    seconds = record["seconds"]
    tables.append((
        "Syncs and time.", ["", "value"],
        [
            ["syncs", sync["count"]], ["seconds a sync", number(sync["seconds"])],
            ["largest trainer-sampler gap on the probe, nats", number(sync["largest_probe_gap"])],
            ["seconds a step", number(seconds["step_time"])],
            ["of which sampling", number(seconds["sampling/seconds"])],
            ["of which judging", number(seconds["reward/seconds"])],
        ],
    ))  # fmt: skip
    return Section(f"Early against late, co-training, time{suffix}", tables=tables)


def _of_chance(entry: Mapping[str, Any]) -> str:
    return DASH if entry["loss_before"] is None else percent(entry["loss_before"] / _chance(entry), 0)


def _chance(entry: Mapping[str, Any]) -> float:
    """What a round's run gives as chance; the logistic loss's, for one that gives none."""
    return entry["chance_loss"] or math.log(2)


def _interval(found: Estimate | None) -> str:
    return DASH if found is None else f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"
