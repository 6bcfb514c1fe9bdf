"""What a report asks of a row, whichever file it came from: its settings, its metrics, the counts behind its rates.

A row is the content of a run_result.json plus `status`: done, failed (with `error`) or missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research.scoring.statistics import Estimate, wilson

Row = dict[str, Any]

# Settings in which rows of one table may differ without being different experiments.
UNINTERESTING = ("name", "results_root", "tracker")


def settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's configuration as dotted keys; a published file has a short `config` of its own."""
    cell = row.get("cell") or {}
    return flatten(cell.get("config") or row.get("config") or {})


def setting(row: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """The first of several settings that the row has and that is not null."""
    known = settings(row)
    return next((known[name] for name in names if known.get(name) is not None), default)


def metric(row: Mapping[str, Any], name: str) -> Any:
    """A metric's value; None where the cell has none."""
    return (row.get("metrics") or {}).get(name)


def count(row: Mapping[str, Any], name: str) -> tuple[int, int] | None:
    """(hits, trials) behind a rate, or None."""
    found = (row.get("counts") or {}).get(name)
    if found is None:
        return None
    hits, trials = (found["hits"], found["trials"]) if isinstance(found, Mapping) else found
    return int(hits), int(trials)


def rate(row: Mapping[str, Any], name: str) -> Estimate | None:
    """A rate with its Wilson interval from the counts; None without counts."""
    found = count(row, name)
    return wilson(*found) if found and found[1] > 0 else None


def is_done(row: Mapping[str, Any]) -> bool:
    return row.get("status", "done") == "done"


def title(row: Mapping[str, Any]) -> str:
    """The cell's name without its digest, or its short configuration."""
    name = (row.get("cell") or {}).get("name")
    if name:
        stem, _, tail = str(name).rpartition("-")
        return stem if stem and len(tail) == 8 else str(name)
    return " ".join(f"{key}={value}" for key, value in settings(row).items())


def varying(rows: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> list[str]:
    """The settings in which rows differ, one for each way of dividing the rows.

    Settings that change together (a model's name and its path) are told by the first of them.
    """
    every = [settings(row) for row in rows]
    names = list(dict.fromkeys(name for one in every for name in one))
    partitions: dict[tuple[int, ...], str] = {}
    for name in names:
        if name in without or name.split(".")[0] in UNINTERESTING:
            continue
        values = [repr(one.get(name)) for one in every]
        order = {value: index for index, value in enumerate(dict.fromkeys(values))}
        if len(order) > 1:
            partitions.setdefault(tuple(order[value] for value in values), name)
    return list(partitions.values())


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; Hydra's `_target_` is left out."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif name != "_target_":
            flat[prefix + str(name)] = value
    return flat
