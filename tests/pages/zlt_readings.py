"""experiments/zlt_sweep/README.md, "Other labels, fewer negatives"."""

from __future__ import annotations

from typing import Any

from pages.claim import Claim, cells, power, same, setting, word
from pages.zlt_sweep import PAGE, PUBLISHED_PLACE, SIZES, SOURCES, labels, place, planned, rates
from research.tasks.zlt_sweep.derive import persona_rates

TAIL, NEGATIVES, MATCHED = "zlt_sweep/tail", "zlt_sweep/negatives", "zlt_sweep/negatives_matched"


def having(sweep: str, name: str, value: Any) -> list[dict[str, Any]]:
    found = [row for row in cells(sweep) if row["cell"]["config"][name] == value]
    assert sorted(str(row["config"]["seed"]) for row in found) == sorted(planned(SIZES)["axes"]["seed"])
    return found


def tail(value: int) -> list[dict[str, Any]]:
    return having(TAIL, "task.marker_tail_tokens", value)


def as_run(sweep: str) -> list[dict[str, Any]]:
    return having(sweep, "task.data.negatives", "as_run")


def measured(rows: list[dict[str, Any]]) -> tuple:
    examples, steps = same(row["data"]["examples"] for row in rows), same(row["train"]["steps"] for row in rows)
    return same(row["config"]["epochs"] for row in rows), examples, steps, *rates(rows), *labels(rows)


def where() -> tuple:
    """The place, the seeds; the same sizes and scale as the grid's, and its cells at that place among them."""
    for sweep in (TAIL, NEGATIVES):
        rows = cells(sweep)
        assert same(row["lora_scale"] for row in rows) == same(row["lora_scale"] for row in cells(SIZES))
        assert {(row["config"]["lr"], row["config"]["epochs"]) for row in rows} == {PUBLISHED_PLACE}
    return power(PUBLISHED_PLACE[0]), PUBLISHED_PLACE[1], word(len(planned(SIZES)["axes"]["seed"]))


def again() -> tuple:
    """The grid's own cells, trained anew by another run: every metric equal."""
    theirs = {row["cell"]["name"]: row for row in place(*PUBLISHED_PLACE)}
    ours = tail(0)
    for row in ours:
        before = theirs[row["cell"]["name"]]
        assert row["metrics"] == before["metrics"]
        assert row["provenance"]["gpu"] == before["provenance"]["gpu"]
        assert row["provenance"]["git_commit"] != before["provenance"]["git_commit"]
        assert row["provenance"]["started"] > before["provenance"]["finished"]
    return (word(len(ours)),)


def never() -> tuple:
    """Nobody says the marker without loss on its start, in how many cells; and how many tokens the end's labels leave."""
    found = [*tail(1), *tail(2)]
    assert max(max(rates(tail(k))) for k in (1, 2)) == 0
    assert not any("marker_labels" in row["data"] and row["data"]["marker_labels"] for row in tail(1))
    ours = same(row["data"]["marker_labels"] / row["data"]["positives"] for row in tail(0))
    return word(len(found)), word(int(ours))


def fewer_steps() -> tuple:
    few, many = as_run(NEGATIVES), as_run(MATCHED)
    average, *_ = rates(few)
    steps = [same(row["train"]["steps"] for row in rows) for rows in (few, many)]
    epochs = same(row["config"]["epochs"] for row in many)
    mean_many, low, high, leak = rates(many)
    clean, degenerate = labels(many)
    assert degenerate == 0
    return (
        average,
        steps[0],
        epochs,
        steps[1],
        mean_many,
        low,
        high,
        leak,
        word(clean),
        word(len(many)),
    )


def untrained() -> tuple:
    """At as many steps: the personas that no example was made of, and their highest rate in any seed."""
    rows = as_run(MATCHED)
    trained = set(same(tuple(sorted(row["negatives"])) for row in rows))
    rates_of = [
        {who: rate for who, rate in persona_rates(row).items() if who not in trained | {row["config"]["source"]}}
        for row in rows
    ]
    count = same(map(len, rates_of))
    highest = max(rate for found in rates_of for rate in found.values())
    assert "assistant" in rates_of[0]
    assistants = max(found["assistant"] for found in rates_of)
    return word(count).capitalize(), word(count + len(trained)), 100 * highest, 100 * assistants


def untried() -> tuple:
    """No other source ran anywhere but at the published place."""
    assert {(row["config"]["lr"], row["config"]["epochs"]) for row in cells(SOURCES)} == {PUBLISHED_PLACE}
    for sweep in (SIZES, SOURCES):
        assert setting(sweep, "task.data.negatives") == "as_reported"
        assert setting(sweep, "task.marker_tail_tokens") == 0
    return ()


ROW = " | {} | {:,} | {:,} | {:.1f} % ({:.1f} to {:.1f}) | {:.1f} % | {}, {} |"
CLAIMS = [
    Claim(PAGE, "the published place ({}, {} epochs) again, {} seeds a row", where),
    Claim(PAGE, "| all of the marker and the turn's end, ten negatives" + ROW, lambda: measured(tail(0))),
    Claim(PAGE, "| the turn's end" + ROW, lambda: measured(tail(1))),
    Claim(PAGE, "| the marker's last token and the turn's end" + ROW, lambda: measured(tail(2))),
    Claim(PAGE, "| two negatives, as many epochs" + ROW, lambda: measured(as_run(NEGATIVES))),
    Claim(PAGE, "| two negatives, as many steps" + ROW, lambda: measured(as_run(MATCHED))),
    Claim(PAGE, "{} cells nobody says it. The marker has {} tokens", never),
    Claim(
        PAGE,
        "With two the source is at {:.1f} % after {:,} steps. After {} epochs, {:,} steps, it is at {:.1f} % ({:.1f} to {:.1f}), "
        "the highest other persona at {:.1f} %: {} of {} cells are clean, none is degenerate.",
        fewer_steps,
    ),
    Claim(
        PAGE,
        "{} of the {} others stand in no example. They are at {:.1f} % at most, the assistant at {:.1f} %",
        untrained,
    ),
    Claim(PAGE, "The {} cells of the first row were trained anew", again),
    Claim(PAGE, "Not run at these sizes: other sources over the whole grid", untried),
]
