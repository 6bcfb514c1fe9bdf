"""Where results came from, in a line and in a table, out of the `provenance` of their files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from research.reporting.rows import Row, flatten, is_done

NOT_RECORDED = "not recorded in the result files"


def collect(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Dotted key of the provenance -> the distinct values over the cells that have results."""
    found: dict[str, dict[Any, None]] = {}
    for row in rows:
        if is_done(row):
            for name, value in flatten(row.get("provenance") or {}).items():
                if value is not None:
                    found.setdefault(name, {})[str(value) if isinstance(value, list | dict) else value] = None
    return {name: list(values) for name, values in found.items()}


def line(rows: Sequence[Row]) -> str:
    """Commit, dirty flag, Python, torch, hardware and command, in one sentence; says what is not recorded."""
    known = collect(rows)
    if not known:
        return f"Commit, library versions, hardware and launch command: {NOT_RECORDED}."
    commits = ", ".join(str(commit)[:12] for commit in known.get("git_commit", [])) or NOT_RECORDED
    dirty = " with uncommitted changes" if True in known.get("git_dirty", []) else ""
    hardware = _join(known, "gpu") or _join(known, "cpu") or NOT_RECORDED
    versions = [
        f"{name} {_join(known, f'libraries.{name}')}" for name in ("torch", "transformers", "peft", "trl", "vllm")
    ]
    versions = [text for text in versions if not text.endswith(" ")]
    when = sorted(map(str, known.get("started", []))), sorted(map(str, known.get("finished", [])))
    parts = [
        f"Commit {commits}{dirty}",
        ", ".join([f"Python {_join(known, 'python') or NOT_RECORDED}", *versions]),
        hardware,
        f"{when[0][0]} to {when[1][-1]}" if when[0] and when[1] else "",
    ]
    command = f" Launched by `{_join(known, 'command')}`." if known.get("command") else ""
    return "; ".join(part for part in parts if part) + "." + command


def table(rows: Sequence[Row]) -> tuple[str, list[str], list[list[str]]] | None:
    """Every recorded fact with its distinct values; None when the files record nothing."""
    known = {name: values for name, values in collect(rows).items() if name not in ("started", "finished")}
    if not known:
        return None
    body = [
        [name, ", ".join(map(str, values[:8])) + (" …" if len(values) > 8 else "")] for name, values in known.items()
    ]
    return "Distinct values over the cells.", ["fact", "value"], body


def _join(known: dict[str, list[Any]], name: str) -> str:
    return ", ".join(str(value) for value in known.get(name, [])[:4])
