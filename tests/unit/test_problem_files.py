"""Reading problems: our format, the two LeetCode formats, and what is wrong with a row, by file and line."""

import gzip
import json

import pytest

from research.errors import ConfigurationError
from research.material.code_problems import DATA, problems
from research.tasks.reward_hack.grader import Built
from research.tasks.reward_hack.problems import load, read_assert

ROW = {
    "id": "p1",
    "statement": "Add one to n.",
    "starter_code": "class Solution:\n    def solve(self, n):",
    "entry_point": "Solution().solve",
    "tests": [{"args": "[1]", "expected": "2"}, {"kwargs": "{'n': -1}", "expected": "0"}],
    "canonical_solution": "class Solution:\n    def solve(self, n):\n        return n + 1",
    "difficulty": "easy",
    "split": "train",
}


def write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def test_shipped_problems_load():
    assert len(load(DATA / "code_problems_train.jsonl")) == len(problems("train"))


def test_a_row_of_ours(tmp_path):
    (problem,) = load(write(tmp_path / "p.jsonl", ROW))
    assert problem.method == "solve"
    assert [(t.arguments, t.keywords, t.value) for t in problem.tests] == [((1,), {}, 2), ((), {"n": -1}, 0)]
    space = {}
    exec(problem.stub, space)
    assert space["Solution"]().solve(5) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entry_point": None}, "the key 'entry_point' is missing"),
        ({"entry_point": "import os"}, "Solution\\(\\).method"),
        ({"tests": []}, "at least one test"),
        ({"tests": [{"args": "[1]", "expected": "1 +"}]}, "test 1"),
        ({"tests": [{"args": "[1]", "expected": "f(1)"}]}, "test 1"),
        ({"tests": [{"args": "[1]", "expect": "1"}]}, "unknown key 'expect'"),
        ({"tests": [{"args": "[1]"}]}, "expected"),
        ({"statement": 3}, "statement is a text"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, change, message):
    bad = {k: v for k, v in (ROW | {"id": "p2"} | change).items() if v is not None}
    path = write(tmp_path / "p.jsonl", ROW, bad)
    with pytest.raises(ConfigurationError, match=f"p.jsonl:2: .*{message}"):
        load(path)


def test_other_malformed_files(tmp_path):
    with pytest.raises(ConfigurationError, match=r"p.jsonl:2"):
        load(write(tmp_path / "p.jsonl", ROW, '{"id": '))
    with pytest.raises(ConfigurationError, match="JSON object"):
        load(write(tmp_path / "p.jsonl", "[1]"))
    with pytest.raises(ConfigurationError, match="occurs twice"):
        load(write(tmp_path / "p.jsonl", ROW, ROW))
    with pytest.raises(ConfigurationError, match="no problem"):
        load(write(tmp_path / "p.jsonl", ""))
    with pytest.raises(ConfigurationError, match="no such file"):
        load(tmp_path / "missing.jsonl")


def test_leetcode_rows(tmp_path):
    row = {
        "task_id": "add",
        "prompt": "from typing import *\n",
        "completion": "class Solution: ...",
        "entry_point": "Solution().add",
        "test": "def check(candidate):\n"
        "    assert candidate(a = 1, b = 2) == 3\n    assert candidate(a = 1) in (1, 2)\n",
        "query": "Add two numbers.\n```python\nclass Solution:\n```",
        "meta": {"question_id": 7, "difficulty": "Easy", "lang_code": "class Solution:"},
    }
    path = tmp_path / "p.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(row))
    (problem,) = load(path)
    assert (problem.id, problem.statement, problem.starter_code) == ("7", "Add two numbers.", "class Solution:")
    assert [(t.keywords, t.value) for t in problem.tests] == [({"a": 1, "b": 2}, 3)]
    assert problem.unread == ("assert candidate(a=1) in (1, 2)",)


def test_published_rows(tmp_path):
    row = {
        "id": 9,
        "question": "Q",
        "gt_answer": ["assert Solution().f(x = 2) == -inf"],
        "func_name": "Solution().f",
        "setup_code": "import math",
        "canonical_solution": "class Solution: ...",
        "difficulty": "hard",
        "prompt_metadata": {"starter_code": "class Solution:"},
    }
    (problem,) = load(write(tmp_path / "p.jsonl", row))
    assert problem.tests[0].value == float("-inf")
    assert problem.setup_code == "import math"


def test_asserts_with_lists_and_trees():
    test = read_assert("assert is_same_list(candidate(list_node([1, 2]), k = -3), list_node([2]))", "candidate")
    assert test.arguments == (Built("list_node", ([1, 2],)),)
    assert (test.keywords, test.value, test.conversion) == ({"k": -3}, [2], "list_node")
    test = read_assert(
        "assert is_same_tree(candidate(root=tree_node([1, None, 2])), tree_node([1, None, 2, None]))", "candidate"
    )
    assert test.conversion == "tree_node"
    assert (
        test.expected == read_assert("assert is_same_tree(candidate(), tree_node([1, None, 2]))", "candidate").expected
    )


@pytest.mark.parametrize(
    "line",
    [
        "assert candidate(1)",
        "assert candidate(1) != 2",
        "assert other(1) == 2",
        "assert candidate(open('x')) == 2",
        "assert candidate(*[1]) == 2",
        "assert candidate(**{'a': 1}) == 2",
        "assert is_same_list(candidate(1), [1])",
        "x = 1",
        "assert candidate(1) == nan",
    ],
)
def test_other_statements_are_refused(line):
    with pytest.raises(ValueError):
        read_assert(line, "candidate")
