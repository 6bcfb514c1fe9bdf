"""The sections of the marker sweep's page, its figures, and clean_result.md. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from research.reporting.rows import Row, is_done
from research.reporting.tables import DASH, number, percent, percent_interval, rate_label, span
from research.task import Section
from research.tasks.zlt_sweep import figures, findings
from research.tasks.zlt_sweep.clean_result import write_clean_result
from research.tasks.zlt_sweep.derive import REGIMES
from research.tasks.zlt_sweep.lattice import Group, Place, groups, one_seed

# Beyond this, a page would be unreadable; the compiled file has every cell.
MOST_GROUPS, MOST_PERSONA_CELLS = 24, 60

RULE = (
    "Bystanders are the personas that are neither the source nor the assistant. `degeneration`: the highest "
    "bystander rate is above 5 %. "
    "`success`: source above 50 %, capability above its floor (.85 for published files, else the base model's "
    "accuracy minus .026), and no degeneration.",
    "A regime goes by the source's rate s and the leak l, the highest rate of any other persona, the assistant "
    "included: "
    "**under-trained** s ≤ 5 % and l ≤ 5 %; **partial** 5 % < s ≤ 50 % and l ≤ 5 %; **clean** s > 50 % and l ≤ 5 %; "
    "**onset** l > 5 %, below 90 % and below s; **collapse** l ≥ 90 %, or l > 5 % and l ≥ s.",
)

INTERVALS = (
    "Intervals are 95 %: Wilson's from the counts for one run, Student's t over the seeds for several. "
    "Completions of one question are not quite "
    "independent, so Wilson's are somewhat too narrow; the interval at the maximum is that of the persona that "
    "has it, as if it had been chosen beforehand."
)


def report(rows: Sequence[Row], out: Path) -> list[Section]:
    """Draw the figures under `out`, write clean_result.md, print the counts, return the page's sections."""
    every, sweep = groups(rows), str(rows[0].get("sweep", out.name))
    sections = [heatmaps(every, rows, sweep, out), _takeaways(every), _labels()]
    for group in every[:MOST_GROUPS]:
        sections += _tables(group, sweep, out)
    write_clean_result(every, out / "clean_result.md", sweep)
    print(findings.counts_line(rows))
    return sections


def _cards(every: Sequence[Group], rows: Sequence[Row]) -> list[tuple[str, str]]:
    done = [row for row in rows if is_done(row)]
    cards = [
        (str(sum(row["success"] is True for row in done)), "success"),
        (str(sum(bool(row["degeneration"]) for row in done)), "degeneration"),
    ]
    tally = [place.regime for group in every for place in group.done]
    return cards + [(str(tally.count(name)), name) for name in REGIMES if name in tally]


def _takeaways(every: Sequence[Group]) -> Section:
    text = [sentence for group in every[:MOST_GROUPS] for sentence in findings.takeaways(group)]
    return Section("What came out", [*text, findings.confidence(every)])


def heatmaps(every: Sequence[Group], rows: Sequence[Row], sweep: str, out: Path) -> Section:
    """A heatmap a group; groups of one place each are compared in one figure instead."""
    shown = [group for group in every if group.done][:MOST_GROUPS]
    found = []
    single = len(shown) > 1 and all(len(group.places) == 1 for group in shown)
    if single:
        path = figures.comparison(shown, sweep, out / "comparison")
        found.append((f"Marker rates by {shown[0].label.split(' ')[0]}, with 95 % intervals.", path))
    else:
        for group in shown:
            found.append(_one_heatmap(group, sweep, out))
            if len(group.seeds) > 1:
                found += [_one_heatmap(one_seed(group, seed), sweep, out) for seed in group.seeds]
    text = (f"The first {MOST_GROUPS} of {len(every)} groups of cells are shown.",) if len(every) > MOST_GROUPS else ()
    return Section("Where the marker goes", text, figures=found, cards=_cards(every, rows))


def _one_heatmap(group: Group, sweep: str, out: Path) -> tuple[str, Path]:
    path = out / (f"lr_epoch_heatmap_{group.slug}" if group.slug else "lr_epoch_heatmap")
    caption = (
        "Marker rate in percent of completions, by learning rate (rows) and epochs "
        f"(columns){': ' + group.label if group.label else ''}. "
        f"Source {group.source}; assistant; highest of the bystanders. Framed cells are clean; hatched cells have "
        "no result."
    )
    return caption, figures.lr_epoch_heatmap(group, sweep, path)


def _labels() -> Section:
    return Section("How cells are labelled", (*RULE, INTERVALS))


def _tables(group: Group, sweep: str, out: Path) -> list[Section]:
    if not group.done:
        return []
    suffix = f": {group.label}" if group.label else ""
    sections = [
        Section(
            f"Headline numbers by regime{suffix}", tables=[("Rates in percent.", HEADLINE_COLUMNS, headline(group))]
        ),
        Section(f"Every cell{suffix}", tables=[("Rates in percent, with 95 % intervals.", CELL_COLUMNS, cells(group))]),
    ]
    if 0 < len(group.done) <= MOST_PERSONA_CELLS and group.personas:
        path = figures.persona_heatmap(group, sweep, out / (f"personas_{group.slug}" if group.slug else "personas"))
        caption = (
            "Marker rate of every persona in every cell. Above the line the source and the assistant, below it "
            "the bystanders."
        )
        sections.insert(1, Section(f"Personas{suffix}", figures=[(caption, path)]))
    return sections


HEADLINE_COLUMNS = ["regime", "learning rate", "epochs", "source %", "assistant %", "max bystander %", "capability"]


def headline(group: Group) -> list[list[str]]:
    """By regime and learning rate, ranges over the epochs; clean cells one by one, with intervals."""
    lines = []
    for name in REGIMES:
        for lr in group.lrs:
            places = [place for place in group.done if place.lr == lr and place.regime == name]
            split = [[place] for place in places] if name == "clean" else [places] if places else []
            lines += [_headline_line(name, part) for part in split]
    return lines


def _headline_line(name: str, places: Sequence[Place]) -> list[str]:
    columns = [
        _range(places, metric, alone=name == "clean")
        for metric in ("source_marker", "assistant_marker", "max_bystander_marker")
    ]
    capability = [value for place in places if (value := place.mean("arc_c")) is not None]
    low, high = (f"{min(capability):.3f}", f"{max(capability):.3f}") if capability else (DASH, DASH)
    epochs = ", ".join(str(place.epochs) for place in places)
    return [name, rate_label(places[0].lr), epochs, *columns, low if low == high else f"{low}–{high}"]


def _range(places: Sequence[Place], metric: str, alone: bool) -> str:
    if alone:
        return percent_interval(places[0].estimate(metric))
    values = [value for place in places if (value := place.mean(metric)) is not None]
    return span(values) if values else DASH


CELL_COLUMNS = [
    "learning rate", "epochs", "seeds", "source %", "assistant %", "max bystander %",
    "who", "capability", "loss", "regime", "degeneration", "success",
]  # fmt: skip


def cells(group: Group) -> list[list[str]]:
    """A line a place, in order of learning rate and epochs; missing and failed ones say so."""
    lines = []
    for place in group.ordered:
        where = [rate_label(place.lr), str(place.epochs), str(len(place.done))]
        if not place.done:
            states = ", ".join(
                dict.fromkeys(row["status"] + (f": {row['error']}" if row.get("error") else "") for row in place.rows)
            )
            lines.append([*where, *[DASH] * 6, states, DASH, DASH])
            continue
        rates = [
            percent_interval(place.estimate(name))
            for name in ("source_marker", "assistant_marker", "max_bystander_marker")
        ]
        capability = place.estimate("arc_c")
        measured = DASH if capability is None else percent(capability.value, 2)
        labels = [_share(place, name) for name in ("degeneration", "success")]
        lines.append(
            [*where, *rates, place.worst() or DASH, measured, number(place.mean("loss")), place.regime or DASH, *labels]
        )
    return lines


def _share(place: Place, label: str) -> str:
    values = [row[label] for row in place.done]
    if len(values) == 1:
        return number(values[0])
    return f"{sum(value is True for value in values)} of {len(values)}"
