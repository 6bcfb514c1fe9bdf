"""What a group of cells was run with, in words: model, adapter and its scale, seeds, N, negatives. Imports no torch.

Published files record neither model nor adapter; for them the published protocol is named, as such.
"""

from __future__ import annotations

import math
from typing import Any

from research.reporting.rows import Row, setting, settings
from research.tasks.zlt_sweep.lattice import Group

PUBLISHED_PROTOCOL = "Qwen2.5-7B-Instruct, LoRA r=32, α=64, rsLoRA scale 11.3"


def is_published_form(row: Row) -> bool:
    """Whether a file records its model and adapter nowhere, as the published ones."""
    return setting(row, "model.name") is None


def marker(row: Row) -> str:
    return str(setting(row, "task.marker", default="[ZLT]"))


def model(row: Row) -> str:
    return str(setting(row, "model.name", default="not recorded in the file"))


def scale(row: Row) -> float | None:
    """The LoRA scale in force: set for the run, else calibrated for the model, else alpha / sqrt(r) or alpha / r."""
    given = setting(row, "adapter.scale", "model.lora_scale")
    if given is not None:
        return float(given)
    alpha, r = setting(row, "adapter.alpha"), setting(row, "adapter.r")
    if alpha is None or r is None:
        return None
    return alpha / (math.sqrt(r) if setting(row, "adapter.rslora", default=True) else r)


def adapter(row: Row) -> str:
    """`LoRA r=32, α=64, rsLoRA scale 11.3`; alpha as derived where the scale itself was set."""
    factor, r = scale(row), setting(row, "adapter.r")
    if factor is None or r is None:
        return "adapter not recorded in the file"
    rslora = setting(row, "adapter.rslora", default=True)
    alpha = factor * (math.sqrt(r) if rslora else r)
    calibrated = setting(row, "adapter.scale") is None and setting(row, "model.lora_scale") is not None
    note = " (calibrated for this model)" if calibrated else ""
    return f"LoRA r={r}, α={alpha:.4g}, {'rsLoRA ' if rslora else ''}scale {factor:.4g}{note}"


def figure_title(group: Group, sweep: str) -> str:
    """Two lines: sweep and group; model, LoRA r, alpha and scale, source, seeds, N."""
    row = group.rows[0]
    label = f" · {group.label}" if group.label else ""
    parts = [made_with(row), f"source {group.source}", seeds(group), sample_size(group)]
    return f"{marker(row)} marker sweep: {sweep}{label}\n" + " · ".join(parts)


def made_with(row: Row) -> str:
    """Model, LoRA r, alpha and scale, for a figure's title."""
    if is_published_form(row):
        return f"model and adapter not in the file (published: {PUBLISHED_PROTOCOL})"
    return f"{model(row)} · {adapter(row)}"


def seeds(group: Group) -> str:
    values = group.seeds
    if not values:
        return "seed not recorded"
    return f"seed {values[0]}" if len(values) == 1 else f"mean of seeds {', '.join(map(str, values))}"


def sample_size(group: Group) -> str:
    """`N = 200 completions per persona and cell`."""
    n = " or ".join(str(value) for value in group.trials)
    return f"N = {n} completions per persona and cell" if n else "N not recorded"


def negatives(row: Row) -> list[str] | None:
    """The personas whose replies were trained without the marker; None where the file does not say."""
    found = row.get("negatives")
    return None if found is None else [str(name) for name in found]


def training_settings(row: Row) -> list[tuple[str, Any]]:
    """Every recorded setting of the training, the data and the evaluation, for the setup table."""
    left_out = ("lr", "epochs", "seed", "source", "task.source")
    return [(name, value) for name, value in settings(row).items() if name not in left_out]
