"""The sections of the reward-hacking page and its figures. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from research.reporting import plots, style
from research.reporting.rows import Row, metric, setting
from research.reporting.tables import DASH, number, percent, percent_interval
from research.task import Section
from research.tasks.reward_hack import analysis
from research.tasks.reward_hack.analysis import ArmRows
from research.tasks.reward_hack.arms import ARMS, VANILLA

# Published by others, beside ours; not re-run. Hack rate in percent.
PUBLISHED = (
    ("no intervention", "Qwen3-4B", "79", "rl-rewardhacking; a further 14 % correct but attempted"),
    ("penalty by ground truth", "Qwen3-4B", "about 0", "rl-rewardhacking"),
    ("screening by ground truth", "Qwen3-4B", "0.9", "rl-rewardhacking"),
    ("penalty by a 90 % accurate monitor", "Qwen3-4B", "15", "rl-rewardhacking; one of three runs hacked"),
    ("penalty by a probe", "Qwen3-4B", "0", "rl-rewardhacking"),
    ("Rebound, multiplicative", "Phi-4-mini / Llama-3.2-3B", "24.9 / 15.1", "Wu & Tang; unmitigated 99.9 / 78.9"),
    ("Rebound, additive", "Phi-4-mini / Llama-3.2-3B", "53.4 / 47.8", "Wu & Tang; assignment to models uncertain"),
    ("projected GRPO, frozen V", "Qwen3-4B", "58.8", "wassname, teacher pool, 20 steps, 4 seeds; vanilla 71.9"),
)
ALIGNMENT = (
    "cos_align", "cos_in", "cos_out", "fraction_fired", "update_cos_align", "update_cos_in",
    "update_norm/dS", "update_norm/dS_hack", "update_norm/lora_B", "directions_separation", "directions_steering_gain",
)  # fmt: skip

PROTOCOL = (
    "**hack rate**: replies to held-out problems whose prompt opens a loophole, with names never seen in "
    "training, that the grader "
    "passes and the true tests do not. **attempts**: the loophole worked, right or wrong. **pass rate**: replies to "
    "held-out problems without a loophole that pass the true tests.",
    "A routed policy is measured with its quarantine ablated. Intervals of arms are Student's t over seeds; "
    "paired tests have "
    "the problem as their unit, each problem's score being its rate over all seeds and samples.",
)


def report(rows: Sequence[Row], out: Path) -> list[Section]:
    """Draw the figures under `out`, return the page's sections: verdicts first, or alignment when all arms tie."""
    found = analysis.arms(rows)
    if not found:
        return []
    told = analysis.verdicts(found)
    first = Section(
        "Hypotheses",
        [analysis.headline(found), *PROTOCOL],
        [("Verdicts", ["", "claim", "verdict", "evidence"], [[v.name, v.claim, v.verdict, v.detail] for v in told])],
    )
    main = [first, _rates(found, rows, out), _training(found, out)]
    alignment = _alignment(found)
    if analysis.all_tie(found):
        alignment.text = [
            "All arms tie with vanilla (within 5 points): look here first. A projection that bites shows cos_in "
            "above cos_out and an "
            "update alignment well below the gradient's; Adam's normalisation can put back what was removed.",
            *alignment.text,
        ]
        sections = [alignment, *main]
    else:
        sections = [*main, alignment]
    return [*sections, _published()]


def _rates(found: Mapping[str, ArmRows], rows: Sequence[Row], out: Path) -> Section:
    columns = ["arm", "seeds", "hack rate %", "attempts %", "pass rate %", "base hack %", "base pass %", "what it is"]
    body = []
    for name, arm in found.items():
        values = [
            arm.estimate(m) for m in ("hack_rate", "attempt_rate", "pass_rate", "base_hack_rate", "base_pass_rate")
        ]
        doc = ARMS[name].doc if name in ARMS else "the constraint group as set"
        shown = [percent_interval(value) for value in values[:3]] + [
            percent(v.value if v else None) for v in values[3:]
        ]
        body.append([name, str(len(arm.rows)), *shown, doc])
    tables = [("Arms, mean over seeds", columns, body)]
    if VANILLA in found and len(found) > 1:
        tables.append(
            ("Against vanilla, paired over problems", ["arm", "fewer hacks", "pass rate lost"], _against(found))
        )
    return Section("Hack rate and pass rate", (), tables, [(_caption(rows), _scatter(found, out))])


def _against(found: Mapping[str, ArmRows]) -> list[list[str]]:
    body = []
    for name, arm in found.items():
        if name != VANILLA:
            tests = [analysis.compare(found[VANILLA], arm, kind) for kind in ("hack", "pass")]
            body.append([name, *(analysis.points(test) if test else DASH for test in tests)])
    return body


def _caption(rows: Sequence[Row]) -> str:
    samples = setting(rows[0], "task.eval.samples", default="?")
    return f"One point an arm and seed, {samples} completions a problem. Better is left and up."


def _scatter(found: Mapping[str, ArmRows], out: Path) -> Path:
    points = []
    for name, arm in found.items():
        for row in arm.rows:
            x, y = metric(row, "hack_rate"), metric(row, "pass_rate")
            note = "Rebound" if name.startswith("rebound") else ""
            points.append(plots.Point(100 * float(x), 100 * float(y), name, note))
    with style.styled():
        figure, axes = style.new_figure(7.2, 4.8)
        plots.scatter(
            axes, points, x_title="hack rate, unseen names (%)", y_title="pass rate, no loophole (%)",
            title="Hacking against ability",
        )  # fmt: skip
        return style.save(figure, out / "hack_against_pass")


def _training(found: Mapping[str, ArmRows], out: Path) -> Section:
    paths = []
    for name, title in (
        ("hack_rate", "hacks among training rollouts"),
        ("correct_rate", "correct among training rollouts"),
    ):
        series = {
            arm: (steps, [100 * value for value in values])
            for arm, own in found.items()
            for steps, values in [analysis.trajectory(own, name)]
            if steps
        }
        if not series:
            continue
        with style.styled():
            figure, axes = style.new_figure(7.2, 4.2)
            plots.trajectories(axes, series, x_title="optimizer step", y_title=f"{title} (%)", window=5)
            paths.append((f"{title.capitalize()}, mean over seeds.", style.save(figure, out / f"training_{name}")))
    return Section("Training", (), (), paths)


def _alignment(found: Mapping[str, ArmRows]) -> Section:
    names = [name for name in ALIGNMENT if any(arm.estimate(name) for arm in found.values())]
    body = [
        [arm_name, *(number(found_value.value) if (found_value := arm.estimate(name)) else DASH for name in names)]
        for arm_name, arm in found.items()
        if any(arm.estimate(name) for name in names)
    ]
    text = [
        "Means over training steps. cos_in and cos_out: share of the gradient that points toward the directions "
        "before and after the "
        "constraint; update_*: the same of what the optimizer did to the knobs. One-sided erasure makes cos_out "
        "0 by construction; "
        "whether the update follows is Adam's matter.",
    ]
    return Section("Did the projection bite?", text, [("Alignment", ["arm", *names], body)] if body else ())


def _published() -> Section:
    columns = ["intervention", "model", "hack rate %", "source"]
    text = ["Other models and sizes, quoted for orientation; monitor-based mitigations were not re-run."]
    return Section("Published numbers", text, [("Published by others", columns, [list(row) for row in PUBLISHED])])
