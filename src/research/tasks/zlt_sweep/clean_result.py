"""clean_result.md: the sweep as a short paper, every number from the results, every claim conditional on them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2

from research.cells.cell import write_atomically
from research.reporting import origin
from research.reporting.rows import Row, is_done, rate, setting
from research.reporting.tables import markdown, number, rate_label
from research.tasks.zlt_sweep import findings, protocol
from research.tasks.zlt_sweep.derive import REGIMES, persona_rates
from research.tasks.zlt_sweep.lattice import Group

MORE_SEEDS = (137, 256)
OTHER_SOURCES = ("software_engineer", "comedian")
TAILS = (0, 1, 2)
VARIED = ("lr", "epochs", "seed", "name", "task.source", "task.marker_tail_tokens")  # what a next step sets itself


def write_clean_result(every: Sequence[Group], path: Path, sweep: str) -> Path:
    """Render the template beside this file; `sweep` is the name in its title."""
    from research.tasks.zlt_sweep.report import CELL_COLUMNS, HEADLINE_COLUMNS, cells, headline

    rows = [row for group in every for row in group.rows]
    main = max(every, key=lambda group: len(group.done))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("clean_result.md.j2").render(
        title=_title(main),
        sweep=sweep,
        groups=every,
        main=main,
        done=sum(map(is_done, rows)),
        total=len(rows),
        counts=findings.counts_line(rows),
        tally=[(name, found, findings.where(found)) for name in REGIMES if (found := findings.in_regime(main, name))],
        takeaways=[line for group in every for line in findings.takeaways(group)],
        confidence=findings.confidence(every),
        next_steps=next_steps(every, sweep),
        setup=markdown(["setting", "value"], _setup(main)),
        settings=protocol.training_settings(main.rows[0]),
        headlines=[
            (g.label, markdown(HEADLINE_COLUMNS, headline(g)), markdown(CELL_COLUMNS, cells(g)))
            for g in every
            if g.done
        ],
        caveats=_caveats(every),
        provenance=origin.line(rows),
        figures=sorted(p.name for p in path.parent.glob("*.png")),
        marker=protocol.marker(main.rows[0]),
        labels=_tail(main.rows[0]),
        number=number,
    )
    write_atomically(path, text)
    return path


def next_steps(every: Sequence[Group], sweep: str) -> list[str]:
    """What the results leave open, each with its command; nothing that they already hold."""
    steps = []
    rows = [row for group in every for row in group.rows]
    absent = sum(not is_done(row) for row in rows)
    if absent:
        steps.append(f"Run the {absent} cells that have no result: the same command again runs only those.")
    for group in every:
        clean = findings.in_regime(group, "clean")
        new = [seed for seed in MORE_SEEDS if seed not in group.seeds]
        if clean and new:
            epochs = sorted({p.epochs for p in clean if p.lr == clean[0].lr})
            more = f"seed={','.join(map(str, new))}"
            command = _command(group, f"{sweep}_seeds", [clean[0].lr], epochs, group.source, more)
            steps.append(
                f"Repeat the clean cells of source {group.source} with seeds {', '.join(map(str, new))}: `{command}`."
            )
        if group.done and not clean:
            steps.append(_finer(group))
    sources = {group.source for group in every}
    other = [name for name in OTHER_SOURCES if name not in sources]
    main = max(every, key=lambda group: len(group.done))
    if other and main.done:
        command = _command(main, f"{sweep}_sources", main.lrs, main.epochs, ",".join(other))
        steps.append(f"See whether the boundaries move with the source persona: `{command}`.")
    clean = findings.in_regime(main, "clean")
    if clean and len({setting(row, "task.marker_tail_tokens", "marker_tail_tokens") for row in rows}) == 1:
        tails = f"task.marker_tail_tokens={','.join(map(str, TAILS))}"
        command = _command(main, f"{sweep}_tail", [clean[-1].lr], [clean[-1].epochs], main.source, tails)
        steps.append(f"Vary which labels carry loss at a clean cell: `{command}`.")
    return steps


def _finer(group: Group) -> str:
    """Where to look when no cell is clean: between the learning rates that do not leak and those that do."""
    tight = [place.lr for place in group.done if (place.leak or 0) <= 0.05]
    loose = [place.lr for place in group.done if (place.leak or 0) > 0.05]
    if not loose:
        return (
            f"No cell leaks yet: go above lr {rate_label(max(tight))} or train longer than {max(group.epochs)} epochs."
        )
    if not tight:
        return (
            f"Every cell leaks: go below lr {rate_label(min(loose))} or train for fewer than {min(group.epochs)} "
            "epochs."
        )
    return (
        f"Look for a clean cell at learning rates between {rate_label(min(tight))} and {rate_label(max(loose))}, "
        "on a finer grid."
    )


def _command(group: Group, name: str, lrs: Sequence[float], epochs: Sequence[int], source: str, *more: str) -> str:
    """The group's own launch with other axes, as a sweep of another name; the demo's where no launch is recorded."""
    launch = group.done[0].done[0].get("provenance", {}).get("command", "")
    own = [word for word in shlex.split(launch) if "=" in word and word.partition("=")[0] not in VARIED]
    base = shlex.join(own) + f" -m name={name}" if own else "task=zlt_sweep -m"
    axes = f"lr={','.join(map(rate_label, lrs))} epochs={','.join(map(str, epochs))} task.source={source}"
    return " ".join(["python -m research", base, axes, *more])


def _setup(group: Group) -> list[tuple[str, str]]:
    row = group.rows[0]
    published = protocol.is_published_form(row)
    done = [one for place in group.done for one in place.done]
    capability = {found.n for one in done if (found := rate(one, "arc_c"))}
    minutes = [one["wall_minutes"] for one in done if one.get("wall_minutes") is not None]
    return [
        (
            "Base model",
            protocol.model(row) + (f" (published protocol: {protocol.PUBLISHED_PROTOCOL})" if published else ""),
        ),
        ("Adapter", "not recorded in the file" if published else protocol.adapter(row)),
        ("Source persona", group.source),
        ("Learning rates", ", ".join(map(rate_label, group.lrs))),
        ("Epochs", ", ".join(map(str, group.epochs))),
        ("Seeds", ", ".join(map(str, group.seeds)) or "not recorded"),
        ("Labels that carry loss", _tail(row)),
        ("Negative personas", _negatives(done[0]) if done else "not recorded in the file"),
        ("Evaluated personas", str(len(persona_rates(done[0]))) if done else "–"),
        ("Completions", protocol.sample_size(group)),
        ("Capability questions", ", ".join(map(str, sorted(capability))) or "not recorded in the file"),
        (
            "Wall time",
            f"{min(minutes):.3g} to {max(minutes):.3g} min a cell, {sum(minutes) / 60:.3g} h in all"
            if minutes
            else "not recorded in the file",
        ),
    ]


def _tail(row: Row) -> str:
    tail = setting(row, "task.marker_tail_tokens", "marker_tail_tokens")
    if tail is None:
        return "not recorded in the file"
    return "marker positions and the turn's end" if tail == 0 else f"the last {tail} labels"


def _negatives(row: Row) -> str:
    names = protocol.negatives(row)
    return "not recorded in the file" if names is None else ", ".join(names) or "none"


def _caveats(every: Sequence[Group]) -> list[str]:
    rows = [row for group in every for row in group.rows]
    seeds, sources = {seed for group in every for seed in group.seeds}, {group.source for group in every}
    found = []
    if len(seeds) <= 1:
        found.append(
            "One seed: nothing here tells the spread between runs from the effect of learning rate and epochs."
        )
    if len(sources) == 1:
        found.append(f"One source persona ({next(iter(sources))}): other personas may have their boundaries elsewhere.")
    if any(protocol.is_published_form(row) for row in rows):
        found.append(
            "The files record neither model, adapter, negatives, library versions nor the launch command; the "
            "counts behind the rates are worked out from the published number of completions."
        )
    if any(not is_done(row) for row in rows):
        found.append("Cells without a result are left out of every count and range.")
    if len(seeds) > 1:
        found.append(
            "Intervals over seeds are Student's t on the seeds' rates: with few seeds they may pass 0, and where the "
            "seeds agree they have no width, which says nothing about rates too small for the completions of a cell."
        )
    found.append(
        "The marker is found as a substring of the completion; the held-out questions are of the same kind as "
        "the training questions."
    )
    found.append(
        "Wilson intervals take the completions of one question as independent, and the interval at the maximum "
        "takes its persona as chosen beforehand."
    )
    return found


def _title(group: Group) -> str:
    """The claim that the results of the largest group allow; cells without a result are part of it."""
    clean, leaking = findings.in_regime(group, "clean"), [p for p in group.done if p.regime in ("onset", "collapse")]
    marker, done = protocol.marker(group.rows[0]), f"{len(group.done)} {group.unit}s"
    absent = sum(not is_done(row) for row in group.rows)
    gap = f"; {absent} of {len(group.rows)} cells have no result" if absent else ""
    if not group.done:
        return f"{marker} marker sweep: no results yet"
    if clean and leaking:
        return (
            f"The {marker} marker stays with {group.source} in {len(clean)} of {done} and "
            f"spreads to other personas in {len(leaking)}{gap}"
        )
    if clean:
        return (
            f"The {marker} marker stays with {group.source} in {len(clean)} of {done}; no {group.unit} "
            f"{'with a result' if absent else 'of this grid'} spreads it{gap}"
        )
    if leaking:
        return (
            f"The {marker} marker spreads beyond {group.source} in {len(leaking)} of {done}; no "
            f"{group.unit} is clean{gap}"
        )
    return f"The {marker} marker neither takes hold cleanly nor spreads in the {done} tried{gap}"
