"""Steepest ascent in log space from a two-level fraction around a centre.

    python -m research.tasks.imposter.ascent results=FILE_OR_DIR [response=mauve] [factors=a,b] [t=1.5] [out=DIR]

`results` is a directory of this suite's results, a compiled file of them, or a JSON list of rows such as
`{"g_lr": 2e-5, "d_lr": 1e-4, "d_scale": 10.0, "mauve": 0.119}`. The centre is found, not marked. Prints the effects,
the path, and the next cell with the command that runs it; with `out=`, writes `ascent.json` and `next_cell.sh` there.

The rule (Box & Wilson 1951; the published run's normalisation): with x = log10 of a factor, c its
centre and b half its effect, x_j(t) = c_j + t (b_j / max |b|) D_j. D_j is the interval from the centre to the high
level, or to the low one where b_j < 0. Values are rounded to one significant figure.
"""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from research.cells.cell import write_atomically
from research.errors import ConfigurationError
from research.words import number, run, settings

DEFAULT_T = 1.5
PLAIN = ("python", "-m", "research", "task=imposter_shared")
PATH_STEPS = (0.0, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0)
# How the published table calls what are keys of `task=imposter_shared`.
PUBLISHED_NAMES = {"g_lr": "lr", "d_lr": "task.d_lr", "d_scale": "task.d_scale"}
# Numbers of a run that are no design factors even where they differ.
NOT_FACTORS = frozenset({"id", "steps", "seed", "data_seed"})

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Design:
    """A balanced, orthogonal two-level fraction and its centre, all levels as they were set (no logarithms).

    signs: a row of +1 and -1 for each run, in the order of `factors`. response: one value a run. ignored: rows unused.
    """

    factors: tuple[str, ...]
    low: tuple[float, ...]
    centre: tuple[float, ...]
    high: tuple[float, ...]
    signs: tuple[tuple[int, ...], ...]
    response: tuple[float, ...]
    centre_response: float | None
    ignored: int


@dataclass(frozen=True)
class Ascent:
    """effects: mean at high - mean at low. slopes: half of that, a coded unit. prediction: of the linear model at t."""

    effects: tuple[float, ...]
    slopes: tuple[float, ...]
    t: float
    exact: tuple[float, ...]
    rounded: tuple[float, ...]
    prediction: float


def find_design(rows: Sequence[Row], response: str = "mauve", factors: Sequence[str] | None = None) -> Design:
    """Find the centre and the corners among rows.

    Raises ConfigurationError when there is none, when a response is missing, or when the runs at hand are unbalanced.
    """
    factors = tuple(factors or _varied(rows, response))
    for factor in factors:
        bad = [row.get(factor) for row in rows if not _positive(row.get(factor))]
        if bad:
            raise ConfigurationError(f"{factor} is {bad[0]!r} in a row: a path in log space needs positive numbers")
    best: tuple[int, Row, list[tuple[float, float]], list[Row]] | None = None
    for candidate in rows:
        intervals = [_intervals([row[factor] for row in rows], candidate[factor]) for factor in factors]
        for levels in itertools.product(*intervals):
            corners = [row for row in rows if all(row[f] in pair for f, pair in zip(factors, levels, strict=True))]
            if best is None or len(corners) > best[0]:
                best = (len(corners), candidate, list(levels), corners)
    if not factors or best is None or not best[3]:
        raise ConfigurationError(
            f"no two-level design around a centre among {len(rows)} rows with factors "
            f"{', '.join(factors) or '(none vary)'}: one row must lie "
            "between the two levels of every factor, and the others at those levels"
        )
    _, centre, chosen, corners = best
    missing = [_name(row, factors) for row in corners if not _finite(row.get(response))]
    if missing:
        raise ConfigurationError(f"{len(missing)} run(s) have no {response}: {'; '.join(missing)}. Run them first")
    signs = tuple(
        tuple(1 if row[f] == high else -1 for f, (_, high) in zip(factors, chosen, strict=True)) for row in corners
    )
    _check_orthogonal(factors, signs)
    return Design(
        factors=factors,
        low=tuple(low for low, _ in chosen),
        centre=tuple(float(centre[f]) for f in factors),
        high=tuple(high for _, high in chosen),
        signs=signs,
        response=tuple(float(row[response]) for row in corners),
        centre_response=float(centre[response]) if _finite(centre.get(response)) else None,
        ignored=len(rows) - len(corners) - 1,
    )


def climb(design: Design, t: float = DEFAULT_T) -> Ascent:
    """The point of the path at `t` intervals of the strongest factor; raises ConfigurationError when none matters."""
    effects = []
    for column in zip(*design.signs, strict=True):
        at_high = [y for sign, y in zip(column, design.response, strict=True) if sign > 0]
        at_low = [y for sign, y in zip(column, design.response, strict=True) if sign < 0]
        effects.append(math.fsum(at_high) / len(at_high) - math.fsum(at_low) / len(at_low))
    slopes = [effect / 2 for effect in effects]
    steepest = max(map(abs, slopes))
    if steepest < 1e-12:
        raise ConfigurationError("every effect is zero: the runs show no direction to go in")
    exact, prediction = [], math.fsum(design.response) / len(design.response)
    for slope, low, centre, high in zip(slopes, design.low, design.centre, design.high, strict=True):
        interval = math.log10(high / centre) if slope >= 0 else math.log10(centre / low)
        exact.append(10 ** (math.log10(centre) + t * slope / steepest * interval))
        prediction += t * slope * slope / steepest
    return Ascent(tuple(effects), tuple(slopes), t, tuple(exact), tuple(map(clean, exact)), prediction)


def clean(value: float) -> float:
    """A positive number rounded to one significant figure."""
    return float(f"{value:.0e}")


def aliases(design: Design) -> list[str]:
    """For each factor, the two-factor interactions that the design cannot tell from it."""
    found = []
    columns = dict(zip(design.factors, zip(*design.signs, strict=True), strict=True))
    for factor, column in columns.items():
        for a, b in itertools.combinations([f for f in design.factors if f != factor], 2):
            product = [x * y for x, y in zip(columns[a], columns[b], strict=True)]
            if list(column) in (product, [-x for x in product]):
                found.append(f"{factor} with {a} x {b}")
    return found


def caveats(design: Design, rows: Sequence[Row]) -> list[str]:
    """What the numbers cannot say; printed with every ascent."""
    said = []
    if aliased := aliases(design):
        said.append(
            f"Aliasing: each main effect is mixed with a two-factor interaction ({'; '.join(aliased)}), so that all "
            "factors help is not identified: one outstanding corner raises them together."
        )
    if len(set(design.signs)) == len(design.signs):
        said.append("No replicates: there is no error term, so no effect can be told from seed-to-seed noise.")
    steps = sorted({row["steps"] for row in rows if row.get("steps") is not None})
    said.append(
        f"Steps are confounded: rows ran for {', '.join(f'{s:g}' for s in steps)} steps, so an effect may be time."
        if len(steps) > 1
        else "Steps are confounded as soon as the next cell runs longer, as the published one did: compare "
        "it at equal steps."
    )
    return said


def read_rows(results: Path) -> tuple[list[dict[str, float | None]], bool]:
    """Rows of numbers from this suite's results or from a plain list; the flag says whether they are this suite's."""
    if results.is_dir():
        # the cells before their table, which a later single cell is not in
        files = sorted(results.glob("*/run_result.json")) or [results / "all_results_compiled.json"]
    else:
        files = [results]
    if not files or not all(file.exists() for file in files):
        raise ConfigurationError(
            f"no results at {results}: give a run_result.json, a directory of them, or a JSON list"
        )
    raw: list[dict[str, Any]] = []
    for file in files:
        try:
            content = json.loads(file.read_text())
        except ValueError as error:
            raise ConfigurationError(f"{file} is not JSON: {error}") from error
        raw += content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in raw):
        raise ConfigurationError(f"{results} must hold a list of rows, each an object of numbers")
    ours = bool(raw) and all("cell" in row for row in raw)
    return [_numbers(_flat(row["cell"]["config"]) | row["metrics"] if ours else row) for row in raw], ours


def command(design: Design, ascent: Ascent, launched: Sequence[str] = PLAIN) -> str:
    """The command that runs the next cell. launched: the words that ran the others."""
    keys = [PUBLISHED_NAMES.get(factor, factor) for factor in design.factors]
    settings = [f"{key}={value:g}" for key, value in zip(keys, ascent.rounded, strict=True)]
    return shlex.join([*launched, *settings])


def launched_by(line: str | None, name: str, factors: Sequence[str]) -> list[str]:
    """The words of the line that launched a sweep's cells, for one more with the same settings, as `name`_next.

    Without a line the plain task's.
    """
    if line is None:
        return list(PLAIN)
    replaced = {"-m", "--multirun", "name", "experiment/ascent_point", *factors}
    words = [w for w in shlex.split(line)[3:] if w.lstrip("+").partition("=")[0] not in replaced]
    parser = OverridesParser.create()
    kept = [w for w in words if not parser.parse_override(w).is_sweep_override()]
    return [*PLAIN[:3], *kept, f"name={name}_next"]


def line_of(results: Path) -> str | None:
    """The line that launched a folder's cells: the sweep's, or where only cells are left, that of the first."""
    sweep, cells = results / "sweep.json", sorted(results.glob("*/run_result.json"))
    if sweep.is_file():
        return str(json.loads(sweep.read_text())["command"])
    return json.loads(cells[0].read_text()).get("provenance", {}).get("command") if cells else None


def describe(design: Design, ascent: Ascent, said: Sequence[str], response: str, then: str) -> str:
    """Effects, path, next cell and caveats as text."""
    lines = [f"{len(design.signs)} corners around a centre, response {response}"]
    lines.append(f"{'factor':>14} {'low':>9} {'centre':>9} {'high':>9} {'effect':>9} {'slope':>9}")
    table = zip(design.factors, design.low, design.centre, design.high, ascent.effects, ascent.slopes, strict=True)
    lines += [f"{f:>14} {low:9.2g} {c:9.2g} {h:9.2g} {e:+9.4f} {b:+9.5f}" for f, low, c, h, e, b in table]
    mean = math.fsum(design.response) / len(design.response)
    lines.append(
        f"mean of the corners {mean:.5g}"
        + (
            f", centre {design.centre_response:.5g} (curvature {design.centre_response - mean:+.5g})"
            if design.centre_response is not None
            else ", centre not measured"
        )
    )
    if design.ignored:
        lines.append(f"{design.ignored} row(s) lie at no corner and were not used")
    lines.append("\npath, t in intervals of the strongest factor:")
    for t in sorted({*PATH_STEPS, ascent.t}):
        point = climb(design, t)
        values = "  ".join(f"{f}={v:.3g}" for f, v in zip(design.factors, point.exact, strict=True))
        lines.append(f"  t={t:<5g} {values}  linear prediction {point.prediction:.4g}")
    lines.append(f"\nnext cell (t={ascent.t:g}, one significant figure): {then}")
    lines += ["", "caveats:", *(f"- {line}" for line in said)]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """The command of the module's docstring."""
    options = settings(argv, {"results": None, "response": "mauve", "factors": "", "t": str(DEFAULT_T), "out": ""})
    response = options["response"]
    folder = Path(options["results"])
    rows, _ = read_rows(folder)
    design = find_design(rows, response, options["factors"].split(",") if options["factors"] else None)
    ascent = climb(design, number(options, "t"))
    said = caveats(design, rows)
    then = command(design, ascent, launched_by(line_of(folder), folder.name, design.factors))
    print(describe(design, ascent, said, response, then))
    if options["out"]:
        out = Path(options["out"])
        record = {
            "design": asdict(design),
            "ascent": asdict(ascent),
            "caveats": said,
            "command": then,
        }
        write_atomically(out / "ascent.json", json.dumps(record, indent=1) + "\n")
        write_atomically(out / "next_cell.sh", then + "\n")


def _varied(rows: Sequence[Row], response: str) -> list[str]:
    """Columns whose numbers differ between rows, in the order of the first row."""
    names = [name for name in (rows[0] if rows else ()) if name not in NOT_FACTORS and name != response]
    preferred = [name for name in (*PUBLISHED_NAMES, *PUBLISHED_NAMES.values()) if name in names]
    return [name for name in preferred or names if len({row.get(name) for row in rows}) > 1]


def _intervals(values: Sequence[float], centre: float) -> list[tuple[float, float]]:
    """Every (low, high) around a centre among the values of a factor."""
    below = sorted({value for value in values if value < centre})
    above = sorted({value for value in values if value > centre})
    return list(itertools.product(below, above))


def _check_orthogonal(factors: Sequence[str], signs: Sequence[Sequence[int]]) -> None:
    """A missing run unbalances a factor, or correlates two: their effects are then no difference of means."""
    columns = list(zip(*signs, strict=True))
    for factor, column in zip(factors, columns, strict=True):
        if sum(column):
            high = sum(sign > 0 for sign in column)
            raise ConfigurationError(
                f"the design is unbalanced: {factor} has {high} run(s) at its high level and {len(column) - high} at "
                "its low one. Run the missing corner first"
            )
    for (a, x), (b, y) in itertools.combinations(zip(factors, columns, strict=True), 2):
        if sum(i * j for i, j in zip(x, y, strict=True)):
            raise ConfigurationError(f"{a} and {b} do not vary independently over the {len(signs)} corners")


def _name(row: Row, factors: Sequence[str]) -> str:
    return ", ".join(f"{factor}={row[factor]:g}" for factor in factors)


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {k: v for k, v in row.items() if v is None or (isinstance(v, int | float) and not isinstance(v, bool))}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


if __name__ == "__main__":
    run(main, __doc__)
