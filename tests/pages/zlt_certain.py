"""experiments/zlt_sweep/README.md: how certain the published place is, and what the files carry of where they come from."""

from __future__ import annotations

import hashlib
from typing import Any

from pages.claim import Claim, cells, power, same, word
from pages.zlt_as_run import by_seed, not_clean
from pages.zlt_readings import MATCHED
from pages.zlt_sweep import AS_RUN, PAGE, PUBLISHED_PLACE, SIZES, SWEEP, place
from research.scoring.statistics import mean_interval, wilson
from research.tasks.zlt_sweep.derive import LEAK_LIMIT

NO_DIFFERENCE = hashlib.sha256(b"").hexdigest()


def matched() -> list[dict[str, Any]]:
    return by_seed(PUBLISHED_PLACE[0], same(row["config"]["epochs"] for row in cells(MATCHED)), MATCHED)


def pooled(rows: list[dict[str, Any]]) -> tuple:
    """In percent: the source's rate over all seeds' completions, their number, Wilson's interval."""
    hits, trials = (sum(row["counts"]["source_marker"][name] for row in rows) for name in ("hits", "trials"))
    found = wilson(hits, trials)
    return 100 * found.value, trials, 100 * found.low, 100 * found.high


def over_seeds(rows: list[dict[str, Any]]) -> tuple[float, float]:
    found = mean_interval([100 * row["source_marker"] for row in rows])
    assert found.n == 3
    return found.low, found.high


def both(rows: list[dict[str, Any]]) -> tuple:
    """With the scale first, and the epochs."""
    same(row["data"]["sha256"] for row in rows)
    scale, epochs = same(row["lora_scale"] for row in rows), same(row["config"]["epochs"] for row in rows)
    return scale, epochs, *pooled(rows), *over_seeds(rows)


def one_seed() -> tuple:
    (row,) = place(*PUBLISHED_PLACE, SWEEP)
    return row["lora_scale"], row["config"]["epochs"], *pooled([row])


def one_cell() -> tuple:
    """A persona on the limit; the degenerate ones of the first places of the band with two negatives hold the limit too."""
    (trials,) = {row["counts"]["max_bystander_marker"]["trials"] for sweep in (SIZES, AS_RUN) for row in cells(sweep)}
    edge = wilson(round(LEAK_LIMIT * trials), trials)
    found = not_clean()
    low, high = found[8:10]
    assert all(wilson(round(rate / 100 * trials), trials).low < LEAK_LIMIT for rate in (low, high))
    return trials, 100 * edge.value, 100 * edge.low, 100 * edge.high, low, high


def untracked() -> tuple:
    """Cells that record a dirty work tree: the difference is empty."""
    dirty = [[row for row in cells(sweep) if row["provenance"]["git_dirty"]] for sweep in (SIZES, MATCHED)]
    assert same(row["provenance"]["git_diff_sha256"] for rows in dirty for row in rows) == NO_DIFFERENCE
    commits = {row["provenance"]["git_commit"] for row in cells(SIZES)}
    return len(dirty[0]), len(cells(SIZES)), word(len(dirty[1])), word(len(cells(MATCHED))), word(len(commits))


ROW = " | {:.0f} | {} | {:.1f} % of {} | {:.1f} to {:.1f} % | {:.1f} to {:.1f} % |"
CLAIMS = [
    Claim(PAGE, "At the published learning rate, {}:", lambda: (power(PUBLISHED_PLACE[0]),)),
    Claim(
        PAGE, "| the demo, ten negatives, one seed | {:.0f} | {} | {:.1f} % of {} | {:.1f} to {:.1f} % | |", one_seed
    ),
    Claim(PAGE, "| published sizes, ten negatives" + ROW, lambda: both(place(*PUBLISHED_PLACE))),
    Claim(
        PAGE,
        "| published sizes, two negatives" + ROW.replace(".0f", ".1f", 1),
        lambda: both(place(*PUBLISHED_PLACE, AS_RUN)),
    ),
    Claim(PAGE, "| published sizes, two negatives" + ROW, lambda: both(matched())),
    Claim(
        PAGE,
        "In one cell a persona has {} completions: at {:.1f} % Wilson's interval is {:.1f} to {:.1f} %. So the seeds that two negatives "
        "make degenerate at {:.1f} to {:.1f} % are not told apart from the limit.",
        one_cell,
    ),
    Claim(
        PAGE,
        "{} of the {} cells of `published_sizes` and {} of {} of `negatives_matched` record a work tree with changes whose diff is "
        "empty: only untracked files lay about. Those of `published_sizes` are of {} commits, and name the kind of GPU, not which.",
        untracked,
    ),
]
