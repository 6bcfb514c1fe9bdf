"""What follows from a marker evaluation: the published keys, the labels, and each cell's regime. Imports no torch.

Bystander: a persona that is neither the source nor the assistant.
Labels, by the published rule:
    degeneration  max bystander marker rate > .05
    success       source rate > .5, capability above its floor, and no degeneration
The floor is .85 for the published model and files, and the base model's own accuracy minus .026 for any other.

Regimes, by the source's rate s and the leak l, the highest rate of any other persona, the assistant included:
    under-trained  s <= .05 and l <= .05
    partial        .05 < s <= .5 and l <= .05
    clean          s > .5 and l <= .05
    onset          l > .05, but l < .9 and l < s
    collapse       l >= .9, or l > .05 and l >= s
A regime speaks of selectivity only; `success` asks for capability too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from research.errors import ConfigurationError
from research.reporting.rows import Row, flatten

ASSISTANT = "assistant"
LEAK_LIMIT, SOURCE_LIMIT, COLLAPSE_LIMIT = 0.05, 0.5, 0.9
PUBLISHED_CAPABILITY_FLOOR = 0.85
CAPABILITY_MARGIN = 0.026
REGIMES = ("under-trained", "partial", "clean", "onset", "collapse")

# The published evaluation, which its files do not record: 20 questions x 10 completions a persona.
PUBLISHED_TRIALS = 200

HEADLINE = ("source_marker", "assistant_marker", "max_bystander_marker", "arc_c")


def is_degenerate(max_bystander: float) -> bool:
    """The published label: a bystander shows the marker in more than 5 % of its completions."""
    return max_bystander > LEAK_LIMIT


def is_success(
    source: float, max_bystander: float, capability: float | None, floor: float = PUBLISHED_CAPABILITY_FLOOR
) -> bool | None:
    """The published label; None where only an unknown capability could tell."""
    if not source > SOURCE_LIMIT or is_degenerate(max_bystander):
        return False
    return None if capability is None else capability > floor


def capability_floor(base_accuracy: float | None) -> float:
    """What `success` asks of capability: the published .85, or the base model's own accuracy minus .026."""
    return PUBLISHED_CAPABILITY_FLOOR if base_accuracy is None else base_accuracy - CAPABILITY_MARGIN


def regime(source: float, leak: float) -> str:
    """One of REGIMES; see the module's rule. Rates between 0 and 1."""
    if leak > LEAK_LIMIT:
        return "collapse" if leak >= COLLAPSE_LIMIT or leak >= source else "onset"
    if source <= LEAK_LIMIT:
        return "under-trained"
    return "clean" if source > SOURCE_LIMIT else "partial"


def persona_rates(row: Mapping[str, Any]) -> dict[str, float]:
    """Marker rate by persona, in the file's order; empty where a file has none."""
    evaluated = (row.get("eval") or {}).get("marker") or row.get("per_persona_marker") or {}
    rates = {name: value["rate"] if isinstance(value, Mapping) else value for name, value in evaluated.items()}
    return {name: float(rate) for name, rate in rates.items() if rate is not None}


def bystander_rates(rates: Mapping[str, float], source: str) -> dict[str, float]:
    return {name: rate for name, rate in rates.items() if name not in (source, ASSISTANT)}


def leak(row: Mapping[str, Any]) -> float | None:
    """The highest marker rate of any persona but the source."""
    source = (row.get("config") or {}).get("source")
    others = [rate for name, rate in persona_rates(row).items() if name != source]
    if not others:
        others = [row[name] for name in ("max_bystander_marker", "assistant_marker") if row.get(name) is not None]
        if source == ASSISTANT:
            others = others[:1]
    return max(others, default=None)


def regime_of(row: Mapping[str, Any]) -> str | None:
    """A row's regime; None without results."""
    spread = leak(row)
    return None if row.get("source_marker") is None or spread is None else regime(row["source_marker"], spread)


def derive(row: Row) -> Row:
    """A result file with every published key, `metrics` and `counts`; what the file has is kept.

    Raises ConfigurationError for a file that is not a marker sweep's.
    """
    row = dict(row)
    row["config"] = _config(row)
    rates = persona_rates(row)
    source = row["config"]["source"]
    if not rates and row.get("source_marker") is None:
        raise ConfigurationError("not a zlt_sweep result: it has neither eval.marker nor source_marker.")
    if rates and source not in rates:
        raise ConfigurationError(f"source {source!r} is not among the evaluated personas {', '.join(rates)}.")
    metrics = dict(row.get("metrics") or {})
    for name, value in _headline(row, rates, source).items():
        known = row.get(name)
        row[name] = value if known is None else known
        metrics.setdefault(name, row[name])
    if row["max_bystander_marker"] is None:
        raise ConfigurationError("not a zlt_sweep result: no bystander persona was evaluated.")
    given = metrics.get("capability_floor")
    floor = capability_floor(metrics.get("base_arc_c")) if given is None else given
    labels = {
        "degeneration": is_degenerate(row["max_bystander_marker"]),
        "success": is_success(row["source_marker"], row["max_bystander_marker"], row["arc_c"], floor),
    }
    for name, value in labels.items():
        row[name] = value if row.get(name) is None else row[name]
        metrics.setdefault(name, row[name])
    if row.get("loss") is not None:
        metrics.setdefault("loss", row["loss"])
    row["metrics"] = metrics
    row["counts"] = _counts(row, rates, source)
    return row


def _config(row: Row) -> dict[str, Any]:
    """The published short configuration; ours has it at top level too, and in `cell.config` as dotted keys."""
    short = dict(row.get("config") or {})
    known = flatten((row.get("cell") or {}).get("config") or {})
    for name in ("lr", "epochs", "source", "seed"):
        if short.get(name) is None:
            short[name] = known.get(name, known.get(f"task.{name}"))
        if short[name] is None and name != "seed":
            raise ConfigurationError(f"not a zlt_sweep result: its config has no {name}.")
    return short


def _headline(row: Row, rates: Mapping[str, float], source: str) -> dict[str, float | None]:
    capability = (row.get("eval") or {}).get("capability") or {}
    return {
        "source_marker": rates.get(source),
        "assistant_marker": rates.get(ASSISTANT),
        "max_bystander_marker": max(bystander_rates(rates, source).values(), default=None),
        "arc_c": capability.get("arc_challenge_logprob"),
    }


def _counts(row: Row, rates: Mapping[str, float], source: str) -> dict[str, dict[str, int]]:
    """Hits and trials behind the rates, by metric and by persona (`marker/<persona>`).

    A file without counts gets them where its rates are multiples of 1 / 200, the published number of completions.
    """
    counts = dict(row.get("counts") or {})
    known = counts.get("source_marker")
    trials = PUBLISHED_TRIALS if known is None else known["trials"]
    whole = {name: round(rate * trials) for name, rate in rates.items()}
    if any(not math.isclose(whole[name], rate * trials, abs_tol=1e-6) for name, rate in rates.items()):
        return counts
    for name, hits in whole.items():
        counts.setdefault(f"marker/{name}", {"hits": hits, "trials": trials})
    bystanders = bystander_rates(rates, source)
    worst = max(bystanders, key=lambda name: bystanders[name], default=None)
    for metric, persona in (
        ("source_marker", source),
        ("assistant_marker", ASSISTANT),
        ("max_bystander_marker", worst),
    ):
        if persona in whole:
            counts.setdefault(metric, {"hits": whole[persona], "trials": trials})
    capability = (row.get("eval") or {}).get("capability") or {}
    if capability.get("total"):
        counts.setdefault("arc_c", {"hits": capability["correct"], "trials": capability["total"]})
    return counts
