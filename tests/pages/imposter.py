"""experiments/imposter/README.md, "What came out": the short arms."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pages.claim import Claim, cells, completions, gpu, same, setting, short, word
from pages.reading import ROOT

PAGE, SWEEP, ALONE, LONG = "experiments/imposter/README.md", "imposter/arms", "imposter/alone", "imposter/long"
REINFORCED = ("rl_only", "full")
MOST_DEGENERATE, LEAST_CHANGE = 0.05, -0.20


def rows(sweep: str = SWEEP) -> list[tuple]:
    found = []
    for row in sorted(cells(sweep), key=lambda row: (row["cell"]["config"]["task.arm"], row["cell"]["config"]["seed"])):
        config, metrics = row["cell"]["config"], row["metrics"]
        rates = [metrics[name] for name in ("degenerate_rate_before", "degenerate_rate", "mauve_before", "mauve")]
        logits = [metrics["gap_before"], metrics["gap"]]
        found.append(
            (config["task.arm"], config["seed"], metrics["discriminator_accuracy"], *logits, *change(row), *rates)
        )
    return found


def change(row: dict) -> list[float]:
    """Of the gap, percent, with its interval."""
    return [100 * row["metrics"][name] for name in ("gap_change", "gap_change_low", "gap_change_high")]


def size() -> tuple:
    arms = {row["cell"]["config"]["task.arm"] for row in cells(SWEEP)}
    seeds = {row["cell"]["config"]["seed"] for row in cells(SWEEP)}
    assert len(cells(SWEEP)) == len(arms) * len(seeds)
    counts = [word(len(what)) for what in (cells(SWEEP), arms, seeds)]
    return gpu(SWEEP, ALONE), *counts, setting(SWEEP, "steps"), setting(SWEEP, "batch_size")


def documents() -> tuple:
    return setting(SWEEP, "task.eval.documents"), word(setting(SWEEP, "task.eval.candidates"))


def arm(name: str) -> list[dict]:
    """Its cells by seed."""
    found = [row for row in cells(SWEEP) if row["cell"]["config"]["task.arm"] == name]
    return sorted(found, key=lambda row: row["cell"]["config"]["seed"])


def reinforced() -> list[dict]:
    return [row for name in REINFORCED for row in arm(name)]


def falls(row: dict) -> bool:
    """The gap, with an interval that excludes 0."""
    return row["metrics"]["gap_change_high"] < 0


def more_degenerate(row: dict) -> float:
    return row["metrics"]["degenerate_rate"] - row["metrics"]["degenerate_rate_before"]


def won(sweep: str = SWEEP) -> list[dict]:
    """By the study's rule: the gap falls, and degenerate spans rise by 5 points at most."""
    return [row for row in cells(sweep) if falls(row) and more_degenerate(row) <= MOST_DEGENERATE]


def seeds(rows: list[dict]) -> list[int]:
    return [row["cell"]["config"]["seed"] for row in rows]


def fall(row: dict) -> float:
    return -change(row)[0]


def wins() -> tuple:
    alone, both = ([row for row in arm(name) if row in won()] for name in REINFORCED)
    assert len(alone) + len(both) == len(won())
    counts = word(len(won())).capitalize(), word(len(cells(SWEEP)))
    return *counts, *seeds(alone), *map(fall, alone), *seeds(both), *map(fall, both)


def logged(sweep: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "eval_results" / sweep / name / "metrics.jsonl").open()]


def spoiled() -> tuple:
    """The one cell in which the gap falls and which does not win: its degenerate spans, over-long ones."""
    (row,) = [row for row in cells(SWEEP) if falls(row) and row not in won()]
    metrics, config = row["metrics"], row["cell"]["config"]
    assert metrics["degenerate_rate"] == metrics["overlong_rate"]
    rates = metrics["degenerate_rate_before"], metrics["degenerate_rate"]
    return config["task.arm"], config["seed"], fall(row), *rates


def within_chance() -> tuple:
    """The other cells with reinforcement, one of each arm with the same seed; and cloning's three."""
    others = [row for row in reinforced() if not falls(row)]
    assert [row["cell"]["config"]["task.arm"] for row in others] == list(REINFORCED)
    cloned = arm("bc_only")
    assert not any(falls(row) or row["metrics"]["gap_change_low"] > 0 for row in cloned)
    return same(seeds(others)), *map(fall, others), *(change(row)[0] for row in cloned)


def fifth() -> tuple:
    (row,) = [row for row in cells(SWEEP) if row["metrics"]["gap_change"] <= LEAST_CHANGE]
    return row["cell"]["config"]["task.arm"], row["cell"]["config"]["seed"]


def arms_apart() -> tuple:
    """Mean change of each arm, and how far its seeds lie apart: further than the mean is from 0."""
    found = []
    for name in ("rl_only", "full", "bc_only"):
        changes = [change(row)[0] for row in arm(name)]
        found.append((sum(changes) / len(changes), max(changes) - min(changes)))
    assert all(apart > abs(average) for average, apart in found)
    return *(average for average, _ in found), *(apart for _, apart in found)


def rise(row: dict) -> float:
    return row["metrics"]["mauve"] - row["metrics"]["mauve_before"]


def distribution() -> tuple:
    """MAUVE with reinforcement: in how many cells it falls, from and to what; the three winners' and cloning's."""
    down = [row for row in reinforced() if rise(row) < 0]
    before, after = ([row["metrics"][name] for row in down] for name in ("mauve_before", "mauve"))
    lost = [row for row in won() if row in down]
    (kept,) = [row for row in won() if row not in down]
    assert kept == max(won(), key=fall) and len(lost) == 2
    losses = [short(row["metrics"]["mauve"]) for row in sorted(lost, key=lambda row: row["metrics"]["mauve"])]
    cloned = [rise(row) for row in arm("bc_only")]
    return (
        word(len(down)), word(len(reinforced())), *map(short, (min(before), max(before), min(after), max(after))),
        word(len(won())), word(len(lost)), *losses, *seeds([kept]), short(kept["metrics"]["mauve_before"]),
        short(kept["metrics"]["mauve"]), f"{min(cloned):+.2f}", f"{max(cloned):+.2f}",
    )  # fmt: skip


def first_words(row: dict, phase: str, sweep: str = SWEEP) -> Counter[str]:
    found = (span["text"].split() for span in completions(sweep, row["cell"]["name"]) if span["phase"] == phase)
    return Counter(words[0] if words else "" for words in found)


def openings() -> tuple:
    """The commonest first word of what a cell writes: before training, after it in each arm, in the cell that ran again."""
    human = {span["document"]: span["human"] for span in completions(SWEEP, cells(SWEEP)[0]["cell"]["name"])}
    authors = sum(text.split()[0] == "If" for text in human.values())
    before = [first_words(row, "before").most_common(1)[0] for row in cells(SWEEP)]
    assert {first for first, _ in before} == {"If"}
    after = {
        name: [first_words(row, "after").most_common(1)[0] for row in arm(name)]
        for name in ("rl_only", "full", "bc_only")
    }
    assert {first for first, _ in after["rl_only"] + after["full"][1:] + after["bc_only"]} == {"If"}
    assert after["full"][0][0] == "This"
    ((last, once_more),) = first_words(cells(ALONE)[0], "after", ALONE).most_common(1)
    assert last == "If"
    written = same(first_words(row, "after").total() for row in cells(SWEEP))
    counts = [count for _, count in before]
    shares = [[count for _, count in after[name]] for name in ("rl_only", "full", "bc_only")]
    return written, min(counts), max(counts), authors, len(human), *(n for of in shares for n in of), once_more


def unseen() -> tuple:
    """Spans that are others' word for word, in how many cells; the cell in which MAUVE rises, and how many begin alike there."""
    duplicates = f"{same(row['metrics']['duplicate_rate'] for row in reinforced()):g}"
    (row,) = [row for row in reinforced() if rise(row) > 0]
    count = first_words(row, "after")["If"]
    assert count == max(first_words(other, "after")["If"] for other in reinforced())
    config = row["cell"]["config"]
    return duplicates, word(len(reinforced())), config["task.arm"], config["seed"], count


def not_shown() -> tuple:
    """Percent of the written spans that the discriminator was not shown: first and last ten steps, means over cells."""
    found = []
    for names in (REINFORCED, ("bc_only",)):
        shares = [
            [line["not_shown_rate"] for line in logged(SWEEP, row["cell"]["name"])] for n in names for row in arm(n)
        ]
        found += [
            100 * sum(sum(of[part]) / 10 for of in shares) / len(shares) for part in (slice(10), slice(-10, None))
        ]
    return tuple(found)


def cotraining() -> tuple:
    """Loss on fresh pairs before a round: how many rounds, all below chance; means over cells of the first and the last."""
    rounds = [row["training"]["cotrain"] for row in cells(SWEEP)]
    chance = same(r["chance_loss"] for of in rounds for r in of)
    losses = [r["loss_before"] for of in rounds for r in of]
    assert max(losses) < chance
    first, last = (sum(of[i]["loss_before"] for of in rounds) / len(rounds) for i in (0, -1))
    return len(losses), short(min(losses)), short(max(losses)), f"{chance:.3f}".lstrip("0"), short(first), short(last)


CLAIMS = [
    Claim(PAGE, "on the embedded model and {}s: {} cells, {} arms, {} seeds, {} steps of {} spans", size),
    Claim(PAGE, "{} held-out documents, {} spans each", documents),
    Claim(
        PAGE,
        "| `{}` | {} | {:.3f} | {:.2f}, {:.2f} | {:+.1f} % [{:+.1f}, {:+.1f}] | {:.3f}, {:.3f} | {:.2f}, {:.2f} |",
        rows,
    ),
    Claim(
        PAGE,
        "{} of the {} cells win by the study's rule: with reinforcement alone and seeds {} and {} the gap falls by {:.1f} and {:.1f} %, "
        "with both and seed {} by {:.1f} %.",
        wins,
    ),
    Claim(
        PAGE,
        "`{}` with seed {} lowers the gap too, by {:.1f} %, but spans that are too long rise from {:.3f} to {:.3f} of all: no win.",
        spoiled,
    ),
    Claim(
        PAGE,
        "With seed {} the falls, of {:.1f} and {:.1f} %, are within chance, and so are the changes with cloning alone, of {:+.1f}, "
        "{:+.1f} and {:+.1f} %.",
        within_chance,
    ),
    Claim(PAGE, "Only `{}` with seed {} closes a fifth of the gap", fifth),
    Claim(
        PAGE,
        "the mean change is {:+.1f} % with reinforcement alone, {:+.1f} % with both and {:+.1f} % with cloning alone, while the "
        "seeds of these arms are {:.1f}, {:.1f} and {:.1f} points apart",
        arms_apart,
    ),
    Claim(
        PAGE,
        "MAUVE falls in {} of the {} reinforced cells, from {} to {} before training to {} to {} after it. Of the {} winners it falls in "
        "{}, to {} and {}; in the other, with seed {}, which closes most of the gap, it does not fall ({} before, "
        "{} after). With cloning alone it changes by {} to {}.",
        distribution,
    ),
    Claim(
        PAGE,
        "Before training the commonest first word of a cell's {} spans is *If*, in {} to {} of them; the author has it {} times in {}. "
        "After reinforcement alone it is *If* in {}, {} and {}, with both *This* in {} and *If* in {} and {}, with cloning alone *If* in "
        "{}, {} and {}; in the cell that ran again *If* in {}.",
        openings,
    ),
    Claim(PAGE, "which is {} in all {}; where MAUVE does not fall, `{}` with seed {}, {} begin alike", unseen),
    Claim(
        PAGE,
        "at first {:.0f} % of the spans written, at the end {:.0f} %; with cloning alone {:.0f} and {:.0f} %",
        not_shown,
    ),
    Claim(
        PAGE,
        "Before each of the {} rounds of co-training its loss on fresh pairs, {} to {}, is below chance, {}; {} in the first round and {} "
        "in the last, mean over cells.",
        cotraining,
    ),
]  # fmt: skip
