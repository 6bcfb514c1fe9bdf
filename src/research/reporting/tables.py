"""Numbers as people read them, and tables of them: for the page, for Markdown, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from research.reporting.rows import Row, is_done, metric, rate, setting, title, varying
from research.scoring.statistics import Estimate

DASH = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """A rate between 0 and 1 in percent, without the sign; a dash for None."""
    return DASH if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def percent_interval(found: Estimate | None, digits: int = 1) -> str:
    """`64.5 [57.6, 70.8]`; without an interval, the value alone."""
    if found is None:
        return DASH
    if math.isnan(found.low):
        return percent(found.value, digits)
    return f"{percent(found.value, digits)} [{percent(found.low, digits)}, {percent(found.high, digits)}]"


def number(value: Any) -> str:
    """A setting or a metric: four significant digits, learning rates in exponent form, lists joined, null as a dash."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value and abs(value) < 1e-3:
            return rate_label(value)
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value)
    return str(value)


def rate_label(lr: float) -> str:
    """A learning rate in exponent form with as many digits as it needs: 1e-06, 2.5e-05."""
    return next(text for digits in range(17) if float(text := f"{lr:.{digits}e}") == float(lr))


def span(values: Sequence[float], digits: int = 1) -> str:
    """`12.0` or `0.0–2.0`: the range of rates, in percent."""
    low, high = percent(min(values), digits), percent(max(values), digits)
    return low if low == high else f"{low}–{high}"


def cell_table(rows: Sequence[Row], limit: int = 500) -> tuple[str, list[str], list[list[str]]]:
    """Every metric of every cell, rates with their Wilson intervals: (caption, columns, rows); at most `limit` rows."""
    axes = varying(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.get("metrics") or {}))
    failed = any(not is_done(row) for row in rows)
    columns = ["cell", *axes, *names, *(["state"] if failed else [])]
    body = []
    for row in rows[:limit]:
        state = (
            "done" if is_done(row) else f"{row['status']}: {row['error']}" if row.get("error") else str(row["status"])
        )
        values = [_metric_text(row, name) for name in names]
        body.append([title(row), *(number(setting(row, name)) for name in axes), *values, *([state] if failed else [])])
    caption = "Rates with counts are in percent, with Wilson 95 % intervals."
    if len(rows) > limit:
        caption += f" The first {limit} of {len(rows)} cells; the compiled file has all."
    return caption, columns, body


def _metric_text(row: Row, name: str) -> str:
    found = rate(row, name)
    return percent_interval(found) if found is not None and metric(row, name) is not None else number(metric(row, name))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""

    def line(values: Sequence[Any]) -> str:
        return "| " + " | ".join(str(value).replace("|", "\\|").replace("\n", " ") for value in values) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *(line(row) for row in rows)])
