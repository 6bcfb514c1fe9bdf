"""Templates of small Python problems: one sentence, one method, a canonical solution of one to a few lines.

The families are in `data/code_templates.yaml`; a family has parameters (numbers, comparisons, letters), and one problem
is a family with its parameters filled in. `code_problems` enumerates the parameters, splits them, computes the tests.

    name         unique
    arguments    what the method takes after `self`: `xs` list of int, `n` int, `s` str, `words` list of str
    parameters   name -> `2..50` (both ends included), `letters`, `marks` (punctuation) or `comparisons`;
                 all combinations
    rule         `different`: the two parameters differ; `increasing`: the second is larger than the first by 2 or more
    difficulty   easy (the default), medium, hard
    wordings     the statement, in one or more wordings
    body         the method's body in the canonical solution
    wrong        plausible mistakes: an off-by-one, a wrong comparison, a forgotten step. `code_problems` drops those
                 that happen to pass every test of a problem
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from research.errors import ConfigurationError

Parameters = dict[str, int | str]

FILE = Path(__file__).parent / "data" / "code_templates.yaml"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARKS = "-+*#.:/_~=!?"
COMPARISONS = {">": "greater than", "<": "less than", ">=": "at least", "<=": "at most"}
_FLIPPED = {">": ">=", ">=": ">", "<": "<=", "<=": "<"}
_OPPOSITE = {">": "<", "<": ">", ">=": "<=", "<=": ">="}
_AXES: dict[str, tuple[str, ...]] = {
    "letters": tuple(LETTERS),
    "marks": tuple(MARKS),
    "comparisons": tuple(COMPARISONS),
}


@dataclass(frozen=True)
class Template:
    """One family of problems; the fields are the keys above."""

    name: str
    arguments: str
    axes: tuple[tuple[str, str], ...]
    wordings: tuple[str, ...]
    body: str
    wrong: tuple[str, ...]
    rule: str | None = None
    difficulty: str = "easy"

    def parameters(self) -> Iterator[Parameters]:
        """Every combination of the parameters that the rule allows."""
        names = [name for name, _ in self.axes]
        for values in itertools.product(*(_values(spec) for _, spec in self.axes)):
            if self.rule == "different" and values[0] == values[1]:
                continue
            if self.rule == "increasing" and int(values[1]) < int(values[0]) + 2:
                continue
            yield dict(zip(names, values, strict=True))


@functools.cache
def templates() -> tuple[Template, ...]:
    """All families, in the file's order."""
    found = []
    for row in yaml.safe_load(FILE.read_text()):
        axes = tuple(row.pop("parameters").items())
        wordings, wrong = tuple(row.pop("wordings")), tuple(row.pop("wrong"))
        found.append(Template(axes=axes, wordings=wordings, wrong=wrong, **row))
    return tuple(found)


def fill(text: str, parameters: Parameters) -> str:
    """`text` with its parameters; only `{name}` of a parameter or derived word is replaced, other braces stay."""
    values = dict(parameters)
    op = values.get("op")
    if isinstance(op, str):
        values |= {"cmp": COMPARISONS[op], "flip": _FLIPPED[op], "opposite": _OPPOSITE[op]}
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def _values(spec: str) -> tuple[int | str, ...]:
    if spec in _AXES:
        return _AXES[spec]
    first, dots, last = spec.partition("..")
    if not (dots and first.isdigit() and last.isdigit()):
        raise ConfigurationError(f"{FILE.name}: parameter {spec!r}: write a range such as 2..50, or {', '.join(_AXES)}")
    return tuple(range(int(first), int(last) + 1))
