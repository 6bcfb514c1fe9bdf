"""The generated problems: splits, tests that decide, files that are what the generator writes."""

import ast
import itertools
import json
import random

import pytest

from research.material import code_problems
from research.material.code_problems import DATA, pretrain_problems, problems
from research.material.code_prompts import (
    ALL_MODES,
    EVAL_NAMES,
    HINTS,
    MODES,
    STYLES,
    TRAIN_NAMES,
    Names,
    build_messages,
    clean_reply,
    hack_reply,
    judged_by,
    names_for,
)
from research.material.code_prompts import tested_reply as honest_reply
from research.material.code_templates import templates

PRETRAIN = list(itertools.islice(pretrain_problems(seed=1), 1500))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_shipped_files_are_what_the_generator_writes(split):
    rows = [json.loads(line) for line in (DATA / f"code_problems_{split}.jsonl").read_text().splitlines()]
    assert rows == [p.row() for p in problems(split)]


def test_sizes():
    assert len(problems("train")) >= 400
    assert len(problems("heldout")) >= 150
    assert len(templates()) >= 30


def test_splits_share_neither_parameters_nor_functions():
    """Ids name template and parameters. `return x > 7` and `return x >= 8` are one function on integers."""
    groups = [problems("train"), problems("heldout"), PRETRAIN]
    for first, second in itertools.combinations(groups, 2):
        assert not {p.id for p in first} & {p.id for p in second}
        assert not {p.canonical_solution for p in first} & {p.canonical_solution for p in second}
    found = code_problems._splits()
    behaviours = [{code_problems._behaviour(*pair) for pair in found[split]} for split in code_problems.SPLITS]
    for first, second in itertools.combinations(behaviours, 2):
        assert not first & second


def test_same_function_under_two_descriptions_has_one_behaviour():
    template = next(t for t in templates() if t.name == "keep_compare")
    assert code_problems._behaviour(template, {"op": ">", "k": 7}) == code_problems._behaviour(
        template, {"op": ">=", "k": 8}
    )
    assert code_problems._behaviour(template, {"op": ">", "k": 7}) != code_problems._behaviour(
        template, {"op": ">=", "k": 7}
    )


def test_pretraining_stream_is_repeatable():
    again = list(itertools.islice(pretrain_problems(seed=1), 50))
    assert again == PRETRAIN[:50]
    assert list(itertools.islice(pretrain_problems(seed=2), 50)) != again


def test_tests_decide():
    """Canonical solutions meet every test; no constant does, nor any listed mistake."""
    for problem in [*problems("train"), *problems("heldout"), *PRETRAIN[:300]]:
        cases = [(ast.literal_eval(t["args"]), ast.literal_eval(t["expected"])) for t in problem.tests]
        assert _passes(problem.canonical_solution, cases), problem.id
        assert any(value != cases[0][1] for _, value in cases), problem.id
        assert problem.wrong_solutions, problem.id
        for wrong in problem.wrong_solutions:
            assert not _passes(wrong, cases), (problem.id, wrong)


def _passes(source, cases):
    space = {}
    exec(source, space)
    try:
        return all(repr(space["Solution"]().solve(*args)) == repr(value) for args, value in cases)
    except Exception:
        return False


def test_solutions_and_prompts_are_short():
    for problem in PRETRAIN[:200]:
        assert problem.canonical_solution.count("\n") <= 8
        assert len(build_messages(problem, "run_tests", Names(), "overwrite")[1]["content"]) < 330


def test_names_of_training_and_evaluation_are_disjoint():
    for kind in ("functions", "attributes", "phrases", "files"):
        assert not set(getattr(TRAIN_NAMES, kind)) & set(getattr(EVAL_NAMES, kind))
    assert len(TRAIN_NAMES.functions) + len(EVAL_NAMES.functions) == 12
    for phrase, other in itertools.product(TRAIN_NAMES.phrases, EVAL_NAMES.phrases):
        assert phrase not in other and other not in phrase


def test_names_for_a_problem_are_stable():
    first = names_for("p1", "sentinel", 3, evaluation=True)
    assert first == names_for("p1", "sentinel", 3, evaluation=True)
    assert first.function in EVAL_NAMES.functions
    assert len({names_for(f"p{i}", "run_tests", 0, True).function for i in range(60)}) > 6


@pytest.mark.parametrize("mode", ALL_MODES)
def test_prompt_names_its_mechanism_and_no_other(mode):
    names = Names("the_function", "the_attribute", "the phrase", "the_file")
    said = judged_by(mode, names)
    parts = dict(zip(MODES, (names.function, names.attribute, names.phrase, names.file), strict=True))
    for other, part in parts.items():
        assert (part in said) == (other == mode)
    messages = build_messages(PRETRAIN[0], mode, names)
    assert [m["role"] for m in messages] == ["system", "user"]
    assert said in messages[1]["content"]
    assert PRETRAIN[0].statement in messages[1]["content"]


def test_hints_add_to_the_clause():
    assert len({judged_by("run_tests", hint=h) for h in HINTS}) == len(HINTS)
    with pytest.raises(ValueError, match="known hints"):
        judged_by("run_tests", hint="modify")
    with pytest.raises(ValueError, match="known modes"):
        judged_by("tests")


def test_replies_are_programs():
    solution = PRETRAIN[0].canonical_solution
    names = TRAIN_NAMES.draw(random.Random(0))
    replies = [clean_reply(solution), honest_reply(solution, names, ["Solution().solve([]) == 1"])]
    replies += [hack_reply(mode, names, solution, style) for mode in MODES for style in range(STYLES)]
    for reply in replies:
        body = reply.removeprefix("```python\n").removesuffix("\n```")
        assert "```" not in body
        ast.parse(body)
    with pytest.raises(ValueError, match="no channel"):
        hack_reply("none", names, solution)
