"""experiments/imposter/README.md, "What came out"."""

from __future__ import annotations

import json

from pages.claim import Claim, cells, power, same, setting, short, word
from pages.reading import ROOT

PAGE, SWEEP, ASCENT = "experiments/imposter/README.md", "imposter/arms", "imposter_shared/ascent"
MOST_DEGENERATE, LEAST_CHANGE = 0.05, -0.20


def rows(sweep: str = SWEEP) -> list[tuple]:
    found = []
    for row in sorted(cells(sweep), key=lambda row: (row["cell"]["config"]["task.arm"], row["cell"]["config"]["seed"])):
        config, metrics = row["cell"]["config"], row["metrics"]
        change = [100 * metrics[name] for name in ("gap_change", "gap_change_low", "gap_change_high")]
        rates = [metrics[name] for name in ("degenerate_rate_before", "degenerate_rate", "mauve_before", "mauve")]
        logits = [metrics["gap_before"], metrics["gap"]]
        found.append((config["task.arm"], config["seed"], metrics["discriminator_accuracy"], *logits, *change, *rates))
    return found


def size() -> tuple:
    arms = {row["cell"]["config"]["task.arm"] for row in cells(SWEEP)}
    seeds = {row["cell"]["config"]["seed"] for row in cells(SWEEP)}
    assert len(cells(SWEEP)) == len(arms) * len(seeds)
    counts = [word(len(what)) for what in (cells(SWEEP), arms, seeds)]
    return *counts, setting(SWEEP, "steps"), setting(SWEEP, "batch_size")


def documents() -> tuple:
    return setting(SWEEP, "task.eval.documents"), word(setting(SWEEP, "task.eval.candidates"))


def arm(name: str) -> list[dict]:
    """Its cells by seed."""
    found = [row for row in cells(SWEEP) if row["cell"]["config"]["task.arm"] == name]
    return sorted(found, key=lambda row: row["cell"]["config"]["seed"])


def falls(row: dict) -> bool:
    """The gap, with an interval that excludes 0."""
    return row["metrics"]["gap_change_high"] < 0


def more_degenerate(row: dict) -> float:
    return row["metrics"]["degenerate_rate"] - row["metrics"]["degenerate_rate_before"]


def won() -> list[dict]:
    """By the study's rule: the gap falls, and degenerate spans rise by 5 points at most."""
    return [row for row in cells(SWEEP) if falls(row) and more_degenerate(row) <= MOST_DEGENERATE]


def seeds(rows: list[dict]) -> list[int]:
    return [row["cell"]["config"]["seed"] for row in rows]


def wins() -> tuple:
    alone = arm("rl_only")
    winners, (other,) = [row for row in alone if row in won()], [row for row in alone if row not in won()]
    assert len(winners) == len(won()) and not falls(other)
    numbers = [-100 * row["metrics"]["gap_change"] for row in (*winners, other)]
    counts = word(len(winners)).capitalize(), word(len(cells(SWEEP)))
    return *counts, *seeds(winners), *numbers[:2], *seeds([other]), numbers[2]


def spoiled() -> tuple:
    """The one cell in which the gap falls and which does not win: its degenerate spans, over-long ones."""
    (row,) = [row for row in cells(SWEEP) if falls(row) and row not in won()]
    metrics, config = row["metrics"], row["cell"]["config"]
    assert metrics["degenerate_rate"] == metrics["overlong_rate"]
    rates = metrics["degenerate_rate_before"], metrics["degenerate_rate"]
    return config["task.arm"], config["seed"], -100 * metrics["gap_change"], *rates


def fifth() -> tuple[str]:
    return (word(sum(row["metrics"]["gap_change"] <= LEAST_CHANGE for row in cells(SWEEP))),)


def arms_apart() -> tuple:
    """Mean change of each arm, and how far its seeds lie apart: further than the mean is from 0."""
    found = []
    for name in ("rl_only", "full", "bc_only"):
        changes = [100 * row["metrics"]["gap_change"] for row in arm(name)]
        found.append((sum(changes) / len(changes), max(changes) - min(changes)))
    assert all(apart > abs(average) for average, apart in found)
    return *(average for average, _ in found), *(apart for _, apart in found)


def distribution() -> tuple:
    """How MAUVE changes: in how many cells up and down, between what, and in the two that win."""
    change = [row["metrics"]["mauve"] - row["metrics"]["mauve_before"] for row in cells(SWEEP)]
    up, down = (row["metrics"]["mauve"] - row["metrics"]["mauve_before"] for row in won())
    assert up > 0 > down
    rises = sum(value > 0 for value in change)
    counts = word(rises), word(len(change) - rises)
    return *counts, f"{min(change):+.2f}", f"{max(change):+.2f}", short(up), short(-down)


def not_shown() -> tuple:
    """Percent of the written spans that the discriminator was not shown: first and last ten steps, mean over cells."""
    first, last = [], []
    for path in ROOT.glob(f"eval_results/{SWEEP}/*/metrics.jsonl"):
        if path.parent.name.startswith("bc_only"):
            continue
        shares = [row["not_shown_rate"] for row in map(json.loads, path.open()) if "not_shown_rate" in row]
        first.append(sum(shares[:10]) / 10)
        last.append(sum(shares[-10:]) / 10)
    return 100 * sum(first) / len(first), 100 * sum(last) / len(last)


def cotraining() -> tuple:
    """Loss on fresh pairs before a round, means over cells: the first round, the last, chance."""
    rounds = [row["training"]["cotrain"] for row in cells(SWEEP)]
    before = [sum(of[i]["loss_before"] for of in rounds) / len(rounds) for i in (0, -1)]
    return short(before[0]), short(before[1]), f"{same(r['chance_loss'] for of in rounds for r in of):.3f}".lstrip("0")


def design() -> list[dict]:
    """The cells of the ascent, the one that the rule chose last."""
    found = [*cells(ASCENT), *cells(f"{ASCENT}_next")]
    return sorted(found, key=lambda row: [row["cell"]["config"][name] for name in ("steps", "lr", "task.d_lr")])


def levels(row: dict) -> tuple[str, str, str]:
    config = row["cell"]["config"]
    return power(config["lr"]), power(config["task.d_lr"]), f"{config['task.d_scale']:g}"


def design_size() -> tuple:
    five, (sixth,) = design()[:-1], design()[-1:]
    steps = same(row["cell"]["config"]["steps"] for row in five), sixth["cell"]["config"]["steps"]
    tokens = setting(ASCENT, "task.corpus.span_tokens"), setting(ASCENT, "task.reasoning_tokens")
    return word(len(five)), steps[0], *tokens, steps[1]


def chosen() -> tuple:
    """Where the rule put the sixth cell, which is where it ran."""
    rounded = ascent()["rounded"]
    assert levels(design()[-1]) == (power(rounded[0]), power(rounded[1]), f"{rounded[2]:g}")
    return power(rounded[0]), power(rounded[1]), f"{rounded[2]:g}".lstrip("0")


def ascent() -> dict:
    return json.loads((ROOT / "figures" / ASCENT / "ascent.json").read_text())["ascent"]


def measured_on() -> tuple:
    sequences = [round(row["metrics"]["sequences"]) for row in design()]
    assert max(sequences) == setting(ASCENT, "task.last")
    return setting(ASCENT, "task.buckets"), setting(ASCENT, "task.last"), min(sequences), max(sequences)


def design_rows() -> list[tuple]:
    names = ("mauve", "reward", "judge_accuracy", "kl_drift")
    return [(*levels(r), r["cell"]["config"]["steps"], *(r["metrics"][name] for name in names)) for r in design()]


def unmoved() -> tuple[float, ...]:
    *corners, centre = sorted(row["metrics"]["mauve"] for row in design()[:-1])
    assert levels(next(row for row in design() if row["metrics"]["mauve"] == centre)) == ("1e-5", "2e-5", "1")
    return max(row["metrics"]["kl_drift"] for row in design()), min(corners), max(corners), centre


CLAIMS = [
    Claim(PAGE, "{} cells of {} steps at the published levels, {} + {} tokens", lambda: design_size()[:-1]),
    Claim(PAGE, "the sixth, of {} steps, where the rule", lambda: design_size()[-1:]),
    Claim(PAGE, "lr {}, judge's {}, scale {}", chosen),
    Claim(PAGE, "MAUVE in {} buckets on the last {} sequences but empty ones, {} to {} a cell", measured_on),
    Claim(PAGE, "| {} | {} | {} | {} | {:.3f} | {:.2f} | {:.2f} | {:.4f} |", design_rows),
    Claim(
        PAGE,
        "no cell moves the policy by more than {:.4f} nats. The corners have no replicate; their MAUVE is {:.3f} to "
        "{:.3f}, and the centre between them {:.3f}.",
        unmoved,
    ),
    Claim(
        PAGE,
        "predicted {:.3f} for the sixth cell; it came to {:.3f}.",
        lambda: (ascent()["prediction"], design()[-1]["metrics"]["mauve"]),
    ),
    Claim(PAGE, "{} cells, {} arms, {} seeds, {} steps of {} spans", size),
    Claim(PAGE, "{} held-out documents, {} spans each", documents),
    Claim(
        PAGE,
        "| `{}` | {} | {:.3f} | {:.2f}, {:.2f} | {:+.1f} % [{:+.1f}, {:+.1f}] | {:.3f}, {:.3f} | {:.2f}, {:.2f} |",
        rows,
    ),
    Claim(PAGE, "{:.0f} % of the spans written, at the end {:.0f} %", not_shown),
    Claim(PAGE, "{} in the first round and {} in the last, mean over cells; chance is {}", cotraining),
    Claim(
        PAGE,
        "{} of the {} cells win by the study's rule, both by reinforcement alone: with seeds {} and {} the gap falls by {:.1f} "
        "and {:.1f} %. With seed {} its fall of {:.1f} % is within chance.",
        wins,
    ),
    Claim(
        PAGE,
        "`{}` with seed {} lowers the gap too, by {:.1f} %, but spans that are too long rise from {:.3f} to {:.3f} of all: no win.",
        spoiled,
    ),
    Claim(PAGE, "In {} cell does the gap fall by a fifth", fifth),
    Claim(
        PAGE,
        "the mean change is {:+.1f} % with reinforcement alone, {:+.1f} % with both and {:+.1f} % with cloning alone, while the "
        "seeds of these arms are {:.1f}, {:.1f} and {:.1f} points apart",
        arms_apart,
    ),
    Claim(
        PAGE,
        "MAUVE rises in {} cells and falls in {}, by {} to {}; of the two that win it rises in one, by {}, and falls in the other, by {}",
        distribution,
    ),
]
