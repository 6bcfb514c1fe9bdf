"""experiments/imposter/README.md, "The shared model's design"."""

from __future__ import annotations

import json
from typing import Any

from scipy.stats import spearmanr

from pages.claim import Claim, cells, completions, gpu, power, same, setting, word
from pages.imposter import PAGE
from pages.reading import ROOT

PUBLISHED, HIGH = "imposter_shared/ascent", "imposter_shared/ascent_high"
ALONE = "imposter_shared/alone"
FACTORS = ("lr", "task.d_lr", "task.d_scale")
CENTRE = ("1e-5", "2e-5", "1")


def next_of(sweep: str) -> dict[str, Any]:
    """The cell that the rule chose."""
    (row,) = cells(f"{sweep}_next")
    return row


def by_level(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: [row["cell"]["config"][name] for name in FACTORS])


def levels(row: dict[str, Any]) -> tuple[str, str, str]:
    config = row["cell"]["config"]
    return power(config["lr"]), power(config["task.d_lr"]), f"{config['task.d_scale']:g}"


def mauve(row: dict[str, Any]) -> float:
    return row["metrics"]["mauve"]


def kl(row: dict[str, Any]) -> float:
    return row["metrics"]["kl_drift"]


def everything() -> list[tuple[str, dict[str, Any]]]:
    """Every cell, as the table has them: what the table calls it, and the cell."""
    named = [("alone", row) for row in cells(ALONE)]
    found = [("design", row) for row in by_level(cells(PUBLISHED))] + named + [("rule", next_of(PUBLISHED))]
    return found + [("high", row) for row in by_level(cells(HIGH))] + [("high, rule", next_of(HIGH))]


def table() -> list[tuple]:
    names = ("sequences", "mauve", "reward", "judge_accuracy", "unclosed_rate", "kl_drift")
    return [
        (what, *levels(row), row["cell"]["config"]["steps"], *(row["metrics"][name] for name in names))
        for what, row in everything()
    ]


def size() -> tuple:
    steps = setting(PUBLISHED, "steps")
    assert steps == setting(HIGH, "steps") == setting(ALONE, "steps") == next_of(HIGH)["cell"]["config"]["steps"]
    assert len({row["cell"]["config"]["seed"] for _, row in everything()}) == 1
    tokens = setting(PUBLISHED, "task.corpus.span_tokens"), setting(PUBLISHED, "task.reasoning_tokens")
    kind = gpu(PUBLISHED, f"{PUBLISHED}_next", ALONE, HIGH, f"{HIGH}_next")
    return word(len(cells(PUBLISHED))), steps, *tokens, kind


def ascent(sweep: str) -> dict[str, Any]:
    return json.loads((ROOT / "figures" / sweep / "ascent.json").read_text())


def chosen(sweep: str) -> tuple[str, str, str]:
    """Where the rule put its cell, which is where it ran."""
    rounded = ascent(sweep)["ascent"]["rounded"]
    assert levels(next_of(sweep)) == (power(rounded[0]), power(rounded[1]), f"{rounded[2]:g}")
    return power(rounded[0]), power(rounded[1]), f"{rounded[2]:g}".lstrip("0")


def sixth() -> tuple:
    return next_of(PUBLISHED)["cell"]["config"]["steps"], *chosen(PUBLISHED)


def high() -> tuple:
    """All corners and the centre, and where the rule put the next."""
    design, published = ascent(HIGH)["design"], ascent(PUBLISHED)["design"]
    for end in ("low", "centre", "high"):
        times = [a / b for a, b in zip(design[end][:2], published[end][:2], strict=True)]
        assert all(abs(value - 50) < 1e-6 for value in times) and design[end][2] == published[end][2]
    assert len(cells(HIGH)) == len(design["signs"]) + 1
    return word(len(design["signs"])), *chosen(HIGH)


def measured_on() -> tuple:
    """Sequences that MAUVE is over: all that a cell of 200 steps writes, but those without text."""
    config = cells(PUBLISHED)[0]["cell"]["config"]
    last = setting(PUBLISHED, "task.last")
    assert config["steps"] * config["batch_size"] == last == setting(HIGH, "task.last")
    assert same(row["metrics"]["mauve_buckets"] for _, row in everything()) == setting(PUBLISHED, "task.buckets")
    kept = [row["metrics"]["sequences"] for _, row in everything() if not collapsed(row)]
    return setting(PUBLISHED, "task.buckets"), last, config["steps"], f"{min(kept):.0f}", f"{max(kept):.0f}"


def collapsed(row: dict[str, Any]) -> bool:
    return row["metrics"]["unclosed_rate"] == 1


def centre() -> dict[str, Any]:
    (row,) = [row for row in cells(PUBLISHED) if levels(row) == CENTRE]
    return row


def corners() -> list[dict[str, Any]]:
    return [row for row in cells(PUBLISHED) if row is not centre()]


def replicate() -> tuple:
    """The centre twice, and how far the corners and their effects are apart: no further than it, or just."""
    (alone,) = cells(ALONE)
    assert alone["cell"]["config"] == centre()["cell"]["config"]
    apart = mauve(alone) - mauve(centre())
    found = [mauve(row) for row in corners()]
    effects = ascent(PUBLISHED)["ascent"]["effects"]
    assert abs(max(found) - min(found) - apart) < 0.002 and max(map(abs, effects)) < apart
    assert max(found) < min(mauve(centre()), mauve(alone))
    return mauve(centre()), mauve(alone), apart, min(found), max(found), max(found) - min(found), *effects


def shared_text() -> tuple[int, int]:
    """Sequences that the two centres both wrote, at the same place, and how many each wrote."""
    name = centre()["cell"]["name"]
    one, other = (completions(sweep, name) for sweep in (PUBLISHED, ALONE))
    return sum(a == b for a, b in zip(one, other, strict=True)), len(one)


def led_nowhere() -> tuple:
    """Predicted and come to; the lowest of the five; the policy's distance in these and in it."""
    row, five = next_of(PUBLISHED), cells(PUBLISHED)
    assert mauve(row) < min(map(mauve, five))
    assert row["cell"]["config"]["steps"] == 2 * setting(PUBLISHED, "steps")
    return ascent(PUBLISHED)["ascent"]["prediction"], mauve(row), max(map(kl, five)), kl(row)


def collapse() -> tuple:
    """The cells at the judge's high rate: they end with replies that close no reasoning."""
    rows = [row for row in cells(HIGH) if collapsed(row)]
    assert {levels(row)[1] for row in rows} == {"5e-3"} and len(rows) == len(cells(HIGH)) // 2
    assert not any(collapsed(row) for _, row in everything() if row not in rows)
    for row in rows:
        assert row["metrics"]["reward"] == 0 and row["metrics"]["judge_accuracy"] == 1
    others = [row for row in [*cells(HIGH), next_of(HIGH)] if not collapsed(row)]
    smooth, plain = ([row["metrics"]["mauve_star"] for row in of] for of in (rows, others))
    assert min(smooth) > max(plain) and max(map(mauve, rows)) < min(map(mauve, others))
    sequences = [row["metrics"]["sequences"] for row in rows]
    distance = list(map(kl, rows))
    return (
        same(levels(row)[1] for row in rows), word(len(rows)), f"{min(sequences):.0f}", f"{max(sequences):.0f}",
        setting(HIGH, "task.last"), min(distance), max(distance), min(map(mauve, rows)), max(map(mauve, rows)),
        min(smooth), max(smooth), min(plain), max(plain),
    )  # fmt: skip


def moved() -> tuple:
    """The cells at the judge's low rate, and the centre between: how far the policy went, and MAUVE."""
    rows = [row for row in cells(HIGH) if levels(row)[1] == "2.5e-4"]
    (middle,) = [row for row in cells(HIGH) if row not in rows and not collapsed(row)]
    spread = [
        word(len(rows)),
        *(end(map(kl, rows)) for end in (min, max)),
        *(end(map(mauve, rows)) for end in (min, max)),
    ]
    assert levels(middle) == ("5e-4", "1e-3", "1")
    assert max(mauve(row) for row in [*cells(HIGH), next_of(HIGH)]) < mauve(centre())
    return "2.5e-4", *spread, kl(middle), mauve(middle)


def goes_down() -> tuple:
    """Rank correlation of MAUVE with the policy's distance: over all cells that did not collapse, over the unmoved ones."""
    rows = [row for _, row in everything() if not collapsed(row)]
    unmoved = [*cells(PUBLISHED), *cells(ALONE)]

    def correlation(of: list[dict[str, Any]]) -> str:
        return f"{spearmanr(list(map(kl, of)), list(map(mauve, of))).statistic:+.2f}"

    return word(len(rows)), correlation(rows), word(len(unmoved)), correlation(unmoved)


def overlap() -> tuple[str, float, float]:
    """Of the high cells at the judge's low rate and of the published corners: in range, and their means."""
    rows = [row for row in cells(HIGH) if levels(row)[1] == "2.5e-4"]
    assert max(map(mauve, rows)) > min(map(mauve, corners()))
    means = [sum(map(mauve, of)) / len(of) for of in (rows, corners())]
    assert means[1] - means[0] < mauve(cells(ALONE)[0]) - mauve(centre())
    return word(len(rows)), *means


def high_rule() -> tuple:
    """The judge's effect, which is the collapse; predicted and come to: below every cell at the published levels."""
    found = ascent(HIGH)["ascent"]
    row = next_of(HIGH)
    assert min(found["effects"]) == found["effects"][1]
    at_published = [*cells(PUBLISHED), *cells(ALONE), next_of(PUBLISHED)]
    assert mauve(row) < min(map(mauve, at_published))
    return found["effects"][1], found["prediction"], mauve(row), word(len(at_published))


CLAIMS = [
    Claim(PAGE, "{} cells of {} steps at the published levels, {} + {} tokens, on the embedded model and one {}", size),
    Claim(
        PAGE,
        "the sixth, of {} steps, where the rule of steepest ascent put it from these (`ascent.json`; lr {}, judge's {}, scale {})",
        sixth,
    ),
    Claim(
        PAGE,
        "{} corners and their centre, and (`eval_results/imposter_shared/ascent_high_next/`) the cell after them (lr {}, judge's {}, "
        "scale {})",
        high,
    ),
    Claim(
        PAGE,
        "MAUVE in {} buckets on the last {} sequences that have text, in a cell of {} steps all it wrote from the first step on: "
        "{} to {} in a cell that did not collapse",
        measured_on,
    ),
    Claim(PAGE, "| {} | {} | {} | {} | {} | {:.0f} | {:.3f} | {:.2f} | {:.2f} | {:.2f} | {:.4f} |", table),
    Claim(
        PAGE,
        "with the same seed it has {:.3f} in the design and {:.3f} alone, {:.3f} apart. The corners have {:.3f} to {:.3f}, {:.3f} apart, "
        "and the effects that the rule follows are {:+.3f}, {:+.3f} and {:+.3f}.",
        replicate,
    ),
    Claim(PAGE, "{} of the {} sequences of the two centres are the same, word for word", shared_text),
    Claim(
        PAGE,
        "It predicted {:.3f} for the sixth cell, which came to {:.3f}, less than any of the five, with twice their steps. None of the five "
        "moves the policy by more than {:.4f} nats; the sixth moves it by {:.4f}.",
        led_nowhere,
    ),
    Claim(
        PAGE,
        "With the judge's lr at {} all {} cells end in replies that never close their reasoning. Only {} to {} of their {} sequences have "
        "text, the KL is {:.1f} to {:.1f}. MAUVE of so few does not compare with the others: it is {:.3f} to {:.3f}, below theirs, while "
        "its smoothed form is {:.3f} to {:.3f}, above the other high cells' {:.3f} to {:.3f}.",
        collapse,
    ),
    Claim(
        PAGE,
        "With the judge's lr at {} the {} cells move the policy by {:.3f} to {:.3f} nats and have {:.3f} to {:.3f}; the centre, at {:.3f} "
        "nats, has {:.3f}.",
        moved,
    ),
    Claim(
        PAGE,
        "Over the {} cells that did not collapse the rank correlation of MAUVE with the KL is {}; over the {} at the published levels and "
        "equal steps, which hardly moved, {}.",
        goes_down,
    ),
    Claim(
        PAGE,
        "the {} overlap with the published corners, and their means, {:.3f} and {:.3f}, are less apart than the two centres",
        overlap,
    ),
    Claim(
        PAGE,
        "the judge's lr has an effect of {:+.3f}, which is the collapse. It predicted {:.3f} away from it, and the cell came to {:.3f}, "
        "less than any of the {} at the published levels.",
        high_rule,
    ),
]  # fmt: skip
