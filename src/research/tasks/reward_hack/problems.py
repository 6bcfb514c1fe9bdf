"""Problems of the code environment: our own format, LeetCodeDataset's, and the published test file's.

`load(path)` tells the three apart by their keys, `.gz` or not:

    ours               research.material.code_problems says what a row holds
    LeetCodeDataset    task_id, query, completion, entry_point, test (`check(candidate)` with asserts), prompt (imports)
    published tests    question, gt_answer (assert strings), func_name, setup_code, canonical_solution, prompt_metadata

Assert strings are read, never run: `assert entry(arguments) == value`, or `assert is_same_list(entry(...),
list_node([...]))` and the same with trees. What cannot be read is kept in `Problem.unread`, so that it is counted and
reported.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from research.errors import ConfigurationError
from research.tasks.reward_hack.grader.encode import NotPlainError
from research.tasks.reward_hack.grader.program import Built, Test

HELPERS = ("list_node", "tree_node")
_SAME = {"is_same_list": "list_node", "is_same_tree": "tree_node"}
_ENTRY = re.compile(r"(?:[A-Za-z_]\w*\(\)\.)?[A-Za-z_]\w*")


@dataclass(frozen=True)
class Problem:
    """One problem. `unread`: tests of the source that could not be read."""

    id: str
    statement: str
    starter_code: str
    entry_point: str
    tests: tuple[Test, ...]
    canonical_solution: str
    difficulty: str
    split: str = ""
    setup_code: str = ""
    unread: tuple[str, ...] = field(default=())

    @property
    def method(self) -> str:
        """What the reply must define: the last part of the entry point."""
        return self.entry_point.rsplit(".", 1)[-1]

    @property
    def stub(self) -> str:
        """A solution of the right shape that returns 0 whatever it is given."""
        body = f"def {self.method}(*arguments, **keywords):\n    return 0"
        owner, separator, _ = self.entry_point.rpartition("().")
        return f"class {owner}:\n    " + body.replace("\n", "\n    ") if separator else body


class _Unreadable(ValueError):
    """A test that is not of a known form."""


def load(path: str | Path) -> list[Problem]:
    """All problems of a JSONL file (`.gz` too). Raises ConfigurationError with file and line for a malformed row."""
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"problems={path}: there is no such file")
    opener = gzip.open if path.suffix == ".gz" else open
    problems: list[Problem] = []
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                problems.append(_read_row(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
                what = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
                raise ConfigurationError(
                    f"{path}:{number}: {what}; research.material.code_problems says what a row holds"
                ) from None
    if not problems:
        raise ConfigurationError(f"problems={path}: the file holds no problem")
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise ConfigurationError(f"{path}: the id {problem.id!r} occurs twice")
        seen.add(problem.id)
    return problems


def _read_row(row: object) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"a row is a JSON object, not {type(row).__name__}")
    if "gt_answer" in row:
        return _published(row)
    if "task_id" in row and "test" in row:
        return _leetcode(row)
    return _ours(row)


def _ours(row: dict) -> Problem:
    entry_point = _entry_point(row["entry_point"])
    tests = []
    for number, test in enumerate(row["tests"], 1):
        unknown = set(test) - {"args", "kwargs", "expected"}
        if unknown:
            raise ValueError(f"test {number}: unknown key {sorted(unknown)[0]!r}")
        try:
            args = ast.literal_eval(test.get("args", "[]"))
            keywords = ast.literal_eval(test.get("kwargs", "{}"))
            tests.append(_checked(Test(tuple(args), dict(keywords), ast.literal_eval(test["expected"]))))
        except (ValueError, SyntaxError, TypeError) as error:
            raise ValueError(f"test {number}: {error}") from None
    if not tests:
        raise ValueError("a problem needs at least one test")
    for name in ("statement", "starter_code", "canonical_solution", "difficulty", "split"):
        if not isinstance(row[name], str):
            raise ValueError(f"{name} is a text, not {row[name]!r}")
    return Problem(
        id=str(row["id"]),
        statement=row["statement"],
        starter_code=row["starter_code"],
        entry_point=entry_point,
        tests=tuple(tests),
        canonical_solution=row["canonical_solution"],
        difficulty=row["difficulty"],
        split=row["split"],
        setup_code=row.get("setup_code") or "",
    )


def _published(row: dict) -> Problem:
    tests, unread = _read_asserts(row["gt_answer"], row["func_name"])
    return Problem(
        id=str(row["id"]),
        statement=row["question"],
        starter_code=row["prompt_metadata"]["starter_code"],
        entry_point=_entry_point(row["func_name"]),
        tests=tests,
        canonical_solution=row["canonical_solution"],
        difficulty=row["difficulty"],
        split="test",
        setup_code=row["setup_code"],
        unread=unread,
    )


def _leetcode(row: dict) -> Problem:
    check = ast.parse(row["test"]).body[0]
    if not isinstance(check, ast.FunctionDef):
        raise ValueError("`test` does not define check(candidate)")
    meta = row.get("meta") or row
    tests, unread = _read_asserts([ast.unparse(node) for node in check.body], "candidate")
    statement, _, starter = row["query"].partition("```python\n")
    return Problem(
        id=str(meta["question_id"]),
        statement=row.get("problem_description") or statement.strip(),
        starter_code=row.get("starter_code") or meta.get("lang_code") or starter.partition("```")[0],
        entry_point=_entry_point(row["entry_point"]),
        tests=tests,
        canonical_solution=row["completion"],
        difficulty=str(meta.get("difficulty", "")).lower(),
        split="train",
        setup_code=row["prompt"],
        unread=unread,
    )


def _entry_point(text: str) -> str:
    if not isinstance(text, str) or not _ENTRY.fullmatch(text):
        raise ValueError(f"entry_point={text!r}: write `Solution().method` or `function`")
    return text


def _read_asserts(lines: Sequence[str], entry: str) -> tuple[tuple[Test, ...], tuple[str, ...]]:
    """Tests from assert statements, and those statements that are of no known form."""
    tests, unread = [], []
    for line in lines:
        try:
            tests.append(read_assert(line, entry))
        except (_Unreadable, SyntaxError, NotPlainError):
            unread.append(line)
    return tuple(tests), tuple(unread)


def read_assert(line: str, entry: str) -> Test:
    """One assert statement as a test. Raises ValueError when it is of no known form."""
    body = ast.parse(line).body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise _Unreadable(line)
    test = body[0].test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        call, value, conversion = test.left, _value(test.comparators[0]), None
    elif (
        isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id in _SAME and len(test.args) == 2
    ):
        call, value, conversion = test.args[0], _value(test.args[1]), _SAME[test.func.id]
        if not isinstance(value, Built) or value.helper != conversion or not isinstance(value.arguments[0], list):
            raise _Unreadable(line)
        value = value.arguments[0]
    else:
        raise _Unreadable(line)
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != entry or any(k.arg is None for k in call.keywords):
        raise _Unreadable(line)
    arguments = tuple(_value(a) for a in call.args)
    return _checked(Test(arguments, {str(k.arg): _value(k.value) for k in call.keywords}, value, conversion))


def _value(node: ast.expr) -> object:
    """A literal, `inf`, or a call of one of the setup code's helpers with such values."""
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        if isinstance(value, int | float):
            return -value
        raise _Unreadable(ast.unparse(node))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        values = tuple(_value(a) for a in node.args)
        if node.func.id in HELPERS and len(values) == 1:
            return Built(node.func.id, values)
        if node.func.id == "float" and values and isinstance(values[0], str):
            return float(values[0])
        if node.func.id == "set" and not values:
            return set()
        raise _Unreadable(ast.unparse(node))
    if isinstance(node, ast.List):
        return [_plain(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_plain(item) for item in node.elts)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise _Unreadable(str(error)) from None


def _plain(node: ast.expr) -> object:
    value = _value(node)
    if isinstance(value, Built):
        raise _Unreadable(f"{value.helper} inside a list")
    return value


def _checked(test: Test) -> Test:
    """The test, its value spelled once, so that one that nothing can equal is found at loading."""
    _ = test.expected
    _ = test.message
    return test
