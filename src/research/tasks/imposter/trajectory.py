"""What training went through, from the lines of metrics.jsonl: the numbers of the published page. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.reporting.plots import rolling_mean

BINS = 14  # rows of the gap table: a thousand steps each in the published run of 14,400
POINTS = 200  # points of a curve that a result file carries
NEAR = 10.0  # the published near-human gap
CURVES = (
    "gap",
    "human_logit",
    "generated_logit",
    "reward",
    "kl_drift",
    "auxiliary/behaviour_cloning",
    "degenerate_rate",
)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, one a step."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def trajectory(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Gap by phase and in rolling means, early against late, co-training losses, syncs and step times.

    Early is everything before the first co-training round, late the rest; without a round, the first seventh is early
    (2,000 of 14,000 published steps).
    """
    if not lines:
        return {}
    steps = [int(line["step"]) for line in lines]
    rounds = [line for line in lines if _number(line.get("cotrain/loss")) is not None]
    first_round = int(rounds[0]["step"]) if rounds else math.ceil(steps[-1] / 7)
    early = [line for line in lines if int(line["step"]) <= first_round]
    late = [line for line in lines if int(line["step"]) > first_round]
    window = max(1, round(len(lines) * 500 / 14400))
    kept = sorted(
        {round(i * (len(lines) - 1) / max(1, min(POINTS, len(lines)) - 1)) for i in range(min(POINTS, len(lines)))}
    )
    curves = {}
    for name in CURVES:
        values = [v if (v := _number(line.get(name))) is not None else math.nan for line in lines]
        if not all(map(math.isnan, values)):
            smooth = rolling_mean(values, window)
            curves[name] = [round(float(smooth[i]), 5) if math.isfinite(smooth[i]) else None for i in kept]
    syncs = [line for line in lines if line.get("sync/seconds") is not None]
    return {
        "bins": [_bin(part) for part in _parts(lines)],
        "window": window,
        "steps": [steps[i] for i in kept],
        "curves": curves,
        "split": first_round,
        "early": _phase(early),
        "late": _phase(late),
        "cotrain": [
            {"step": int(line["step"])}
            | {k: _number(line.get(f"cotrain/{k}")) for k in ("loss", "loss_before", "loss_after", "chance_loss")}
            for line in rounds
        ],
        "sync": {
            "count": len(syncs),
            "seconds": _mean(syncs, "sync/seconds"),
            "largest_probe_gap": max(
                (v for s in syncs if (v := _number(s.get("sync/probe_gap"))) is not None), default=None
            ),
        },
        "seconds": {name: _mean(lines, name) for name in ("step_time", "sampling/seconds", "reward/seconds")},
    }


def _parts(lines: Sequence[Mapping[str, Any]]) -> Iterable[Sequence[Mapping[str, Any]]]:
    """At most BINS consecutive parts of equal length, the last one shorter."""
    size = math.ceil(len(lines) / BINS)
    return (lines[start : start + size] for start in range(0, len(lines), size))


def _bin(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"first": int(lines[0]["step"]), "last": int(lines[-1]["step"]), "gap": _mean(lines, "gap")}


def _phase(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of a phase; shares are of steps whose value is known."""
    gaps = [v for line in lines if (v := _number(line.get("gap"))) is not None]
    rewards = [v for line in lines if (v := _number(line.get("generated_logit"))) is not None]
    return {
        "steps": len(lines),
        "gap": _mean(lines, "gap"),
        "near": sum(gap < NEAR for gap in gaps) / len(gaps) if gaps else None,
        "negative_steps": sum(gap < 0 for gap in gaps),
        "reward": _mean(lines, "reward"),
        "generated_logit": _mean(lines, "generated_logit"),
        "positive_steps": sum(reward > 0 for reward in rewards) / len(rewards) if rewards else None,
        "behaviour_cloning": _mean(lines, "auxiliary/behaviour_cloning"),
        "kl_drift": _mean(lines, "kl_drift"),
    }


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [v for line in lines if (v := _number(line.get(name))) is not None]
    return math.fsum(values) / len(values) if values else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
