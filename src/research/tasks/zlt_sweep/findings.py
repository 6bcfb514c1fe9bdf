"""What the numbers say, in sentences that are written only where the numbers say it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from research.reporting.rows import Row, is_done
from research.reporting.tables import percent, percent_interval, rate_label, span
from research.tasks.zlt_sweep.derive import ASSISTANT, REGIMES
from research.tasks.zlt_sweep.lattice import Group, Place
from research.tasks.zlt_sweep.protocol import negatives, sample_size

MEANING = {
    "under-trained": "the source hardly shows the marker",
    "partial": "the source shows the marker in at most half of its completions, and no other persona above 5 %",
    "clean": "the source shows the marker in most completions, and no other persona above 5 %",
    "onset": "the marker has begun to spread to other personas",
    "collapse": "another persona shows the marker nearly always, or as often as the source",
}


def counts_line(rows: Sequence[Row]) -> str:
    """`25 of 25 cells with a result: 2 successes, 14 degenerate`."""
    done = [row for row in rows if is_done(row)]
    success, degenerate = sum(row["success"] is True for row in done), sum(bool(row["degeneration"]) for row in done)
    plural = "success" if success == 1 else "successes"
    return f"{len(done)} of {len(rows)} cells with a result: {success} {plural}, {degenerate} degenerate"


def in_regime(group: Group, name: str) -> list[Place]:
    return [place for place in group.done if place.regime == name]


def where(places: Sequence[Place]) -> str:
    """`lr 5e-06 at 10, 20 epochs; lr 1e-05 at 1 epoch`."""
    by_lr: dict[float, list[int]] = {}
    for place in places:
        by_lr.setdefault(place.lr, []).append(place.epochs)
    parts = []
    for lr, epochs in by_lr.items():
        unit = "epoch" if epochs == [1] else "epochs"
        parts.append(f"lr {rate_label(lr)} at {', '.join(map(str, epochs))} {unit}")
    return "; ".join(parts)


def takeaways(group: Group) -> list[str]:
    """List items: one a regime that occurs, then the boundary, non-monotone rows, capability; all with N."""
    prefix = f"({group.label}) " if group.label else ""
    lines = [_regime_line(name, in_regime(group, name), group) for name in REGIMES if in_regime(group, name)]
    if group.done and not in_regime(group, "clean"):
        lines.append(_no_clean(group))
    lines += [*_boundary(group), *_reversals(group), *_capability(group), *_negatives(group)]
    return [f"- {prefix}{line}" for line in lines]


def _regime_line(name: str, places: Sequence[Place], group: Group) -> str:
    source, spread = _span(places, "source_marker"), _span(places, "max_bystander_marker")
    counted = f"{len(places)} {group.unit}" + ("" if len(places) == 1 else "s")
    own = f"source {source} %, assistant {_span(places, 'assistant_marker')} %, highest bystander {spread} %"
    return f"**{name.capitalize()}** ({counted}: {where(places)}): {MEANING[name]}; {own}. {sample_size(group)}."


def _no_clean(group: Group) -> str:
    best = max(
        (place for place in group.done if (place.leak or 0) <= 0.05),
        key=lambda p: p.mean("source_marker") or 0,
        default=None,
    )
    line = f"**No clean {group.unit}** among the {len(group.done)} with a result"
    if best is None:
        return f"{line}: every one of them leaks above 5 %."
    rates = percent_interval(best.estimate("source_marker"))
    return f"{line}: without a leak above 5 %, the source reaches at most {rates} % ({where([best])})."


def _boundary(group: Group) -> list[str]:
    """The step in learning rate, at fixed epochs, from a clean cell to one that leaks."""
    found = []
    for place in in_regime(group, "clean"):
        higher = [other for other in group.done if other.epochs == place.epochs and other.lr > place.lr]
        after = min(higher, key=lambda other: other.lr, default=None)
        if after is not None and after.regime in ("onset", "collapse"):
            found.append(
                f"At {place.epochs} epochs, {after.lr / place.lr:.3g} times the learning rate "
                f"({rate_label(place.lr)} to {rate_label(after.lr)}) takes the "
                f"highest bystander from {_percent(place)} % to {_percent(after)} %."
            )
    return found


def _reversals(group: Group) -> list[str]:
    """Rows in which more epochs show a lower highest bystander, their 95 % intervals apart."""
    found = []
    for lr in group.lrs:
        row = [place for place in group.done if place.lr == lr]
        for before, after in pairwise(row):
            one, two = before.estimate("max_bystander_marker"), after.estimate("max_bystander_marker")
            if one and two and two.high < one.low and before.leak and before.leak > 0.05:
                found.append(
                    f"Not monotone: at lr {rate_label(lr)} the highest bystander falls from "
                    f"{percent_interval(one)} % at {before.epochs} epochs "
                    f"to {percent_interval(two)} % at {after.epochs}."
                )
    return found


def _capability(group: Group) -> list[str]:
    measured = [place for place in group.done if place.mean("arc_c") is not None]
    if not measured:
        return ["Capability was not measured."] if group.done else []
    low = min(measured, key=lambda place: place.mean("arc_c") or 0)
    high = max(measured, key=lambda place: place.mean("arc_c") or 0)
    bases = {
        row["metrics"]["base_arc_c"]
        for place in measured
        for row in place.done
        if row["metrics"].get("base_arc_c") is not None
    }
    base = f" The base model has {', '.join(f'{value:.3f}' for value in sorted(bases))}." if bases else ""
    n = {row["counts"]["arc_c"]["trials"] for place in measured for row in place.done if "arc_c" in row["counts"]}
    size = f" N = {', '.join(map(str, sorted(n)))} questions." if n else ""
    return [
        f"Capability lies between {low.mean('arc_c'):.3f} ({where([low])}) and {high.mean('arc_c'):.3f} "
        f"({where([high])}).{base}{size}"
    ]


def _negatives(group: Group) -> list[str]:
    """Who was trained not to show the marker: a low rate of theirs is trained, not generalised."""
    known = next((names for place in group.done for row in place.done if (names := negatives(row)) is not None), [])
    others = [name for name in group.personas if name != group.source]
    if others and set(others) <= set(known):
        return [
            "Every other evaluated persona was among the trained negatives: their low rates are trained, not "
            "generalised."
        ]
    if ASSISTANT in known:
        return ["The assistant was among the trained negatives: its low rate is trained, not generalised."]
    return []


def confidence(every: Sequence[Group]) -> str:
    """LOW with one seed or one source; MODERATE from 3 seeds and 2 sources on; HIGH from 5 and 5 on.

    The reason is given with it.
    """
    runs = [row for group in every for place in group.done for row in place.done]
    seeds, sources = {row["config"].get("seed") for row in runs}, {row["config"]["source"] for row in runs}
    enough = min(len(seeds) / 3, len(sources) / 2)
    level = "HIGH" if len(seeds) >= 5 and len(sources) >= 5 else "MODERATE" if enough >= 1 else "LOW"
    counted = f"{_number(seeds, 'seed')} and {_number(sources, 'source persona')}"
    missing = sum(not is_done(row) for group in every for row in group.rows)
    gaps = f"; {missing} cells have no result" if missing else ""
    reason = {
        "LOW": "where the boundaries lie may shift with either",
        "MODERATE": "the spread over seeds is measured, other models and other markers are not",
        "HIGH": "seeds and sources are both varied; other models and other markers are not",
    }[level]
    return f"**Confidence: {level}**, from {counted}{gaps}: {reason}."


def _number(values: set, unit: str) -> str:
    return f"one {unit} ({next(iter(values))})" if len(values) == 1 else f"{len(values)} {unit}s"


def _span(places: Sequence[Place], name: str) -> str:
    values = [value for place in places if (value := place.mean(name)) is not None]
    return span(values) if values else "–"


def _percent(place: Place) -> str:
    return percent(place.mean("max_bystander_marker"))
