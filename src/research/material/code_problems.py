"""Small Python problems: the shipped sets of the reward-hacking study, endless ones for the embedded model's corpus.

    python -m research.material.code_problems        # writes data/code_problems_{train,heldout}.jsonl again

Three splits: `train` and `heldout` are the study's, `pretrain` is the corpus's. No two problems of different splits
share a template's parameters, nor are they the same function under two descriptions ("greater than 7" and "at
least 8"): problems that agree on a fixed set of probe inputs always fall into one split.

A row of the JSONL files, which is also how a user writes problems of their own:

    id                  unique string (or number)
    statement           what to do, in words
    starter_code        what the reply completes
    entry_point         what is called, e.g. `Solution().solve`
    tests               list of {"args": "[...]", "kwargs": "{...}", "expected": "..."}, each a Python literal in a
                        string; `args` or `kwargs` may be left out
    canonical_solution  a program that passes
    difficulty          easy, medium, hard
    split               train, heldout, pretrain
    setup_code          optional: runs before the reply (imports, helper classes)
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from research.material.code_templates import LETTERS, Parameters, Template, fill, templates

DATA = Path(__file__).parent / "data"
SPLITS = ("train", "heldout", "pretrain")
ENTRY_POINT = "Solution().solve"
TRAIN_PER_TEMPLATE, HELDOUT_PER_TEMPLATE = 9, 4
TESTS_PER_PROBLEM = 12
_PROBES = 40


@dataclass(frozen=True)
class CodeProblem:
    """A problem as it is stored; `wrong_solutions` are for the corpus and are not written to the files."""

    id: str
    statement: str
    starter_code: str
    entry_point: str
    tests: list[dict[str, str]]
    canonical_solution: str
    difficulty: str
    split: str
    wrong_solutions: tuple[str, ...] = field(default=(), compare=False)

    def row(self) -> dict[str, object]:
        """The row of the JSONL file."""
        row = asdict(self)
        del row["wrong_solutions"]
        return row


def starter(arguments: str) -> str:
    """The class and the method's head, whose body the reply writes."""
    return f"class Solution:\n    def solve(self, {arguments}):"


def program(arguments: str, body: str) -> str:
    """A whole solution from the lines of its method."""
    return starter(arguments) + "\n" + "\n".join("        " + line for line in body.split("\n"))


def problems(split: str) -> list[CodeProblem]:
    """All problems of `train` or `heldout`, in a fixed order (by template, then by a stable hash)."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r}: the fixed sets are train and heldout; for pretrain use `pretrain_problems`")
    return [_problem(t, p, split, _rng(t.name, p, "wording")) for t, p in _splits()[split]]


def pretrain_problems(seed: int) -> Iterator[CodeProblem]:
    """Problems for the corpus, endlessly: template, parameters and wording drawn anew each time.

    Templates are equally likely however many parameters they have. The same seed gives the same stream.
    """
    by_template: dict[str, list[tuple[Template, Parameters]]] = {}
    for template, parameters in _splits()["pretrain"]:
        by_template.setdefault(template.name, []).append((template, parameters))
    pools = list(by_template.values())
    rng = random.Random(_digest("pretrain", seed))
    while True:
        template, parameters = rng.choice(rng.choice(pools))
        yield _problem(template, parameters, "pretrain", rng)


@functools.cache
def _splits() -> dict[str, list[tuple[Template, Parameters]]]:
    """Each (template, parameters) in its split, decided by stable hashes and by behaviour on the probe inputs."""
    split_of: dict[str, str] = {}
    found: dict[str, list[tuple[Template, Parameters]]] = {split: [] for split in SPLITS}
    for template in templates():
        room = {"heldout": HELDOUT_PER_TEMPLATE, "train": TRAIN_PER_TEMPLATE}
        for parameters in sorted(template.parameters(), key=lambda p: _digest(template.name, _spell(p))):
            behaviour = _behaviour(template, parameters)
            split = split_of.get(behaviour)
            if split is None:
                split = next((s for s, left in room.items() if left), "pretrain")
                if split in room:
                    room[split] -= 1
                split_of[behaviour] = split
            elif split != "pretrain":
                # The same function as a problem already chosen, under another description: used nowhere.
                continue
            found[split].append((template, parameters))
    return found


def _problem(template: Template, parameters: Parameters, split: str, rng: random.Random) -> CodeProblem:
    canonical = fill(template.body, parameters)
    tests = _tests(template, parameters, canonical)
    arguments = template.arguments
    solve = _compiled(arguments, canonical)
    wrong = [fill(body, parameters) for body in template.wrong]
    inputs = [value for value, _ in tests]
    wrong = [body for body in wrong if not _agree(solve, _compiled(arguments, body), inputs)]
    return CodeProblem(
        id=f"{template.name}-" + "-".join(_slug(v) for v in parameters.values()),
        statement=fill(rng.choice(template.wordings), parameters),
        starter_code=starter(arguments),
        entry_point=ENTRY_POINT,
        tests=[{"args": repr([value]), "expected": repr(expected)} for value, expected in tests],
        canonical_solution=program(arguments, canonical),
        difficulty=template.difficulty,
        split=split,
        wrong_solutions=tuple(program(arguments, body) for body in wrong),
    )


def _tests(template: Template, parameters: Parameters, canonical: str) -> list[tuple[object, object]]:
    """Inputs with the canonical solution's outputs: the edge cases first, then random ones, no input twice."""
    rng = _rng(template.name, parameters, "tests")
    solve = _compiled(template.arguments, canonical)
    chosen: dict[str, object] = {}
    candidates = _inputs(template.arguments, parameters, rng)
    while len(chosen) < TESTS_PER_PROBLEM:
        value = next(candidates)
        chosen.setdefault(repr(value), value)
    return [(value, solve(_copy(value))) for value in chosen.values()]


def _inputs(arguments: str, parameters: Parameters, rng: random.Random) -> Iterator[object]:
    """Endless inputs of the kind that `arguments` names: empty and boundary cases first."""
    numbers = [v for v in parameters.values() if isinstance(v, int)]
    letters = [v for v in parameters.values() if isinstance(v, str) and v in LETTERS] or ["a", "e"]
    near = sorted({max(v + d, -1) for v in numbers for d in (-1, 0, 1)}) or [0, 1]

    def number() -> int:
        pick = rng.random()
        if pick < 0.4:
            return rng.choice(near)
        if pick < 0.6 and numbers:
            return rng.choice(numbers) * rng.randint(0, 4)
        return rng.randint(-10, 60)

    def text(length: int) -> str:
        return "".join(rng.choice(letters if rng.random() < 0.4 else LETTERS) for _ in range(length))

    long = max([v for v in numbers if v <= 31], default=6) + 4
    if arguments == "xs":
        yield from ([], *([n] for n in numbers), list(near), [n * 2 for n in numbers] + numbers + numbers, [-5, 0, 5])
        yield [number() for _ in range(long)]
        while True:
            yield [number() for _ in range(rng.choice((1, 3, 6, long)))]
    elif arguments == "n":
        yield from (0, *near, *(n * 3 for n in numbers))
        while True:
            yield rng.choice((number(), rng.randint(0, 150)))
    elif arguments == "s":
        first, last = letters[0], letters[-1]
        yield from ("", first, last + first, first + text(4) + last, first + text(5), text(5) + last, text(long))
        while True:
            yield text(rng.choice((2, 6, long - 2, long + 2)))
    else:
        yield from ([], [letters[0]], ["b" + letters[0], letters[0] + "b"])
        while True:
            yield [text(rng.choice((1, 3, 5, long if long < 20 else 9))) for _ in range(rng.randint(2, 6))]


def _behaviour(template: Template, parameters: Parameters) -> str:
    """What the canonical solution answers on the probe inputs of its kind: equal for equal functions."""
    solve = _compiled(template.arguments, fill(template.body, parameters))
    outputs = [solve(_copy(value)) for value in _probes(template.arguments)]
    return _digest(template.arguments, repr(outputs))


@functools.cache
def _probes(arguments: str) -> tuple[object, ...]:
    """Fixed inputs, the same for all templates of a kind, that hold every number, letter and length parameters use."""
    rng = random.Random(_digest("probes", arguments))
    if arguments == "n":
        return tuple(range(-5, 160))
    if arguments == "xs":
        rows: list[object] = [[], list(range(-5, 110)), *([i] for i in range(-3, 60))]
        return tuple(rows + [[rng.randint(-5, 60) for _ in range(rng.randint(1, 40))] for _ in range(_PROBES)])
    words = ["".join(rng.choice(LETTERS) for _ in range(rng.randint(0, 40))) for _ in range(_PROBES * 20)]
    if arguments == "s":
        return ("", LETTERS, *(a + b for a in LETTERS for b in LETTERS), *words)
    return ([], list(LETTERS), words, [w[:i] for i, w in enumerate(words[:40])])


def _compiled(arguments: str, body: str):
    """The method as a function of its one argument. The code is this package's own, so it may run in this process."""
    namespace: dict[str, object] = {}
    lines = "\n".join("    " + line for line in body.split("\n"))
    exec(f"def solve({arguments}):\n{lines}", namespace)
    return namespace["solve"]


def _agree(first, second, inputs: list[object]) -> bool:
    """Whether two functions give equal values of equal types on all inputs."""
    for value in inputs:
        try:
            other = second(_copy(value))
        except Exception:
            return False
        if repr(first(_copy(value))) != repr(other):
            return False
    return True


def _copy(value: object) -> object:
    return list(value) if isinstance(value, list) else value


def _spell(parameters: Parameters) -> str:
    return json.dumps(parameters, sort_keys=True)


def _slug(value: object) -> str:
    names = {">": "gt", "<": "lt", ">=": "ge", "<=": "le"}
    text = names.get(str(value), str(value))
    return text if text.isalnum() else "u" + "".join(f"{ord(c):02x}" for c in text)


def _digest(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _rng(name: str, parameters: Parameters, purpose: str) -> random.Random:
    return random.Random(_digest(name, _spell(parameters), purpose))


def main() -> None:
    """Write the shipped files."""
    DATA.mkdir(exist_ok=True)
    for split in ("train", "heldout"):
        rows = [json.dumps(p.row(), ensure_ascii=False) for p in problems(split)]
        path = DATA / f"code_problems_{split}.jsonl"
        path.write_text("\n".join(rows) + "\n")
        print(f"{path}: {len(rows)} problems")


if __name__ == "__main__":
    main()
