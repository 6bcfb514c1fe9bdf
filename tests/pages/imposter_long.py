"""experiments/imposter/README.md, "A thousand steps"."""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from typing import Any

from pages import imposter
from pages.claim import Claim, cells, completions, gpu, same, setting, short, together, word
from pages.imposter import PAGE, falls, more_degenerate
from pages.reading import ROOT

SWEEP = "imposter/long"
REINFORCED, OTHERS = ("full", "rl_only"), ("bc_only", "sync_disabled")


def of(*arms: str) -> list[dict[str, Any]]:
    """Their cells by arm and seed, as the directories' names sort."""
    return [row for row in cells(SWEEP) if row["cell"]["config"]["task.arm"] in arms]


def size() -> tuple:
    rows = cells(SWEEP)
    every = same(row["cell"]["config"]["task.cotrain.every"] for row in rows)
    arms, seeds = ({row["cell"]["config"][name] for row in rows} for name in ("task.arm", "seed"))
    assert len(rows) == len(arms) * len(seeds)
    return gpu(SWEEP), *map(word, (len(rows), len(arms), len(seeds))), setting(SWEEP, "steps"), every


def time() -> tuple:
    """Seconds of all cells together, seconds by the clock."""
    _, total, span = together(cells(SWEEP))
    return f"{total:,.0f}", f"{span:,.0f}"


def closed() -> tuple:
    rows = of(*REINFORCED)
    assert all(falls(row) for row in rows)
    change = [-100 * row["metrics"]["gap_change"] for row in rows]
    beyond = sum(value > 100 for value in change)
    before, after = ([row["metrics"][name] for row in rows] for name in ("mauve_before", "mauve"))
    counts = word(len(rows)), min(change), max(change), word(beyond)
    return *counts, *(short(value) for value in (min(before), max(before))), f"{max(after):.3f}".lstrip("0")


def degenerate() -> tuple:
    rows = [row for row in of(*REINFORCED) if more_degenerate(row) > imposter.MOST_DEGENERATE]
    rates = [row["metrics"]["degenerate_rate"] for row in rows]
    assert all(row["metrics"]["degenerate_rate_before"] < 0.03 for row in rows)
    return word(len(rows)).capitalize(), word(len(of(*REINFORCED))), min(rates), max(rates)


def written(row: dict[str, Any], phase: str = "after") -> list[dict[str, Any]]:
    return [found for found in completions(SWEEP, row["cell"]["name"]) if found["phase"] == phase]


def winner() -> dict[str, Any]:
    """The one cell that wins by the study's rule."""
    (row,) = imposter.won(SWEEP)
    return row


def one_sentence() -> tuple:
    """What the winner writes: its commonest sentence, for how many documents, and how many sentences in all."""
    row = winner()
    texts = Counter(found["text"] for found in written(row))
    common = texts.most_common(1)[0][0]
    documents = {found["document"] for found in written(row) if found["text"] == common}
    config, metrics = row["cell"]["config"], row["metrics"]
    assert metrics["degenerate_rate"] == 0
    return (
        config["task.arm"], config["seed"], -100 * metrics["gap_change"], word(len(texts)), texts.total(), common,
        len(documents), same(row["cell"]["config"]["task.eval.documents"] for row in cells(SWEEP)),
    )  # fmt: skip


def alone() -> tuple:
    rows = of("bc_only")
    assert not any(falls(row) or row["metrics"]["gap_change_low"] > 0 for row in rows)
    assert max(row["metrics"]["degenerate_rate"] for row in rows) < 0.03
    change = [100 * row["metrics"]["gap_change"] for row in rows]
    mauve = [row["metrics"]["mauve"] - row["metrics"]["mauve_before"] for row in rows]
    return *(f"{value:+.1f}" for value in change), f"{min(mauve):+.2f}", f"{max(mauve):+.2f}"


def untouched() -> tuple[str]:
    """The arm in which what is trained never writes: everything measured after is what was measured before."""
    rows = of("sync_disabled")
    for row in rows:
        metrics = row["metrics"]
        assert all(metrics[f"{name}_before"] == metrics[name] for name in ("gap", "mauve", "degenerate_rate"))
        assert [found["text"] for found in written(row)] == [found["text"] for found in written(row, "before")]
        assert metrics["gap_change"] == 0
    return (word(len(rows)),)


def unshown() -> tuple:
    """The cell with fewer rounds of co-training: the stretches in which the discriminator was shown nothing, the last to the end."""
    rows = sorted(of(*REINFORCED), key=lambda row: row["metrics"]["cotrain_rounds"])
    fewest, all_rounds = rows[0], {found["step"] for found in rows[1]["training"]["cotrain"]}
    assert all({found["step"] for found in row["training"]["cotrain"]} == all_rounds for row in rows[1:])
    missing = sorted(all_rounds - {found["step"] for found in fewest["training"]["cotrain"]})
    path = ROOT / "eval_results" / SWEEP / fewest["cell"]["name"] / "metrics.jsonl"
    shares = [row["not_shown_rate"] for row in map(json.loads, path.open()) if "not_shown_rate" in row]
    stretches = [(value, len(list(run))) for value, run in groupby(shares, key=lambda share: share == 1)]
    assert stretches[-1][0] and len(shares) == setting(SWEEP, "steps")
    before = [length for nothing, length in stretches[:-1] if nothing]
    config = fewest["cell"]["config"]
    last = len(shares) - stretches[-1][1] + 1
    return config["task.arm"], config["seed"], last, max(before), *missing


def losing() -> tuple:
    """Rounds of co-training whose loss before the round is above chance, by arm and seed; the winner's loss in its last."""
    chance = same(found["chance_loss"] for row in cells(SWEEP) for found in row["training"]["cotrain"])

    def over(*arms: str) -> list[int]:
        rows = of(*arms)
        return [sum(found["loss_before"] > chance for found in row["training"]["cotrain"]) for row in rows]

    rounds = [sum(len(row["training"]["cotrain"]) for row in of(*arms)) for arms in (REINFORCED, OTHERS)]
    reinforced = over(*REINFORCED)
    assert winner()["cell"]["config"]["seed"] == 2 and reinforced[4] == 0
    last = winner()["training"]["cotrain"][-1]["loss_before"]
    return sum(reinforced), rounds[0], *reinforced, sum(over(*OTHERS)), rounds[1], short(last), short(chance)


def alike() -> tuple:
    """Spans written word for word for several documents, by arm and seed, of how many."""
    found = []
    for row in of(*REINFORCED):
        rows = written(row)
        documents = Counter(text for _, text in {(found["document"], found["text"]) for found in rows})
        found.append(sum(documents[span["text"]] > 1 for span in rows))
    return *found, len(rows)


def harder() -> tuple:
    """What differs from the shorter sweep besides the steps and when the discriminator trains: its pairs."""
    for name in ("task.cotrain.pairs", "task.cotrain.replay"):
        assert setting(SWEEP, name) == 2 * setting(imposter.SWEEP, name)
    return setting(SWEEP, "task.cotrain.pairs"), setting(SWEEP, "task.cotrain.replay")


CLAIMS = [
    Claim(PAGE, "on the embedded model and {}s: {} cells, {} arms, {} seeds, {} steps, co-training every {}", size),
    Claim(PAGE, "{} s of cells in {} s", time),
    Claim(
        PAGE,
        "| `{}` | {} | {:.3f} | {:.2f}, {:.2f} | {:+.1f} % [{:+.1f}, {:+.1f}] | {:.3f}, {:.3f} | {:.2f}, {:.2f} |",
        lambda: imposter.rows(SWEEP),
    ),
    Claim(
        PAGE,
        "In all {} reinforced cells it falls, by {:.1f} to {:.1f} %, in {} to below zero, and MAUVE falls from {} to {} to at most {}.",
        closed,
    ),
    Claim(PAGE, "{} of the {} write degenerate spans, {:.3f} to {:.3f} of all", degenerate),
    Claim(
        PAGE,
        "`{}` with seed {} wins by the study's rule: its gap falls by {:.1f} % without one degenerate span. It writes {} sentences in all "
        "its {} spans, the commonest, *{}*, for {} of the {} documents",
        one_sentence,
    ),
    Claim(PAGE, "the gap changes by {}, {} and {} %, all within chance, and MAUVE by {} to {}", alone),
    Claim(PAGE, "in all {} seeds every span, the gap and MAUVE are after training what they were before", untouched),
    Claim(
        PAGE,
        "Before {} of {} rounds its loss on fresh pairs is above chance: in {}, {} and {} of each `full` cell's and in {}, {} and {} of "
        "each `rl_only` cell's; in the other arms before {} of {}. Before the winner's last it is {}, where chance is {}",
        losing,
    ),
    Claim(
        PAGE,
        "`{}` with seed {} writes only spans that are cut from step {} on, as it had before for up to {} steps, and in such stretches fell "
        "the rounds at steps {}, {} and {}, which had nothing to show",
        unshown,
    ),
    Claim(PAGE, "{}, {} and {} (`full`) and {}, {} and {} (`rl_only`) of {}", alike),
    Claim(PAGE, "a round has {} fresh pairs and {} remembered ones", harder),
]
