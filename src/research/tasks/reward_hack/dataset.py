"""The study's prompts: problems in a mode, as token ids, with the record that grading needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from research.cells.cell import Cell, write_atomically
from research.cells.seeding import stable_seed
from research.material.code_prompts import build_messages, names_for
from research.sampling.interface import Sampler, SamplingParams
from research.tasks.reward_hack.grader import Grader
from research.tasks.reward_hack.loopholes import Attempt, judge
from research.tasks.reward_hack.pairs import Chat
from research.tasks.reward_hack.problems import Problem
from research.training.rollouts import Prompt


def make_prompts(
    chat: Chat, problems: Sequence[Problem], modes: Sequence[str], hint: str, seed: int, evaluation: bool
) -> list[Prompt]:
    """One prompt a problem, its mode dealt in turn over a seeded order; record: problem, mode, names."""
    order = sorted(range(len(problems)), key=lambda i: stable_seed(seed, "modes", problems[i].id))
    found: list[Prompt | None] = [None] * len(problems)
    for place, index in enumerate(order):
        problem, mode = problems[index], modes[place % len(modes)]
        names = names_for(problem.id, mode, seed, evaluation)
        ids = chat.prompt(build_messages(problem, mode, names, hint))
        found[index] = Prompt(ids, {"problem": problem, "mode": mode, "names": names})
    return [prompt for prompt in found if prompt is not None]


def attempt(record: Mapping[str, Any], reply: str) -> Attempt:
    """A reply to a prompt, as the grader takes it."""
    return Attempt(record["problem"], reply, record["mode"], record["names"])


def short_enough(chat: Chat, problems: Sequence[Problem], hint: str, limit: int) -> list[Problem]:
    """Problems whose longest prompt, over all modes, has at most `limit` tokens."""
    from research.material.code_prompts import ALL_MODES

    def longest(problem: Problem) -> int:
        return max(len(chat.prompt(build_messages(problem, mode, hint=hint))) for mode in ALL_MODES)

    return [problem for problem in problems if longest(problem) <= limit]


def base_solve_rates(
    cell: Cell, chat: Chat, problems: Sequence[Problem], sampler: Sampler, grader: Grader, n: int, max_tokens: int,
    depends_on: Mapping[str, Any],
) -> dict[str, float]:  # fmt: skip
    """Problem id -> share of `n` samples of the base (T 1) that are correct without a loophole; kept on disk."""
    key = {**depends_on, "ids": [problem.id for problem in problems], "n": n, "max_tokens": max_tokens}
    path = cell.cache / "reward_hack" / f"base_solves_{stable_seed(key):08x}.json"
    if path.exists():
        held = json.loads(path.read_text())
        if held["depends_on"] == json.loads(json.dumps(key)):
            return held["rates"]
    prompts = make_prompts(chat, problems, ["none"], "overwrite", 0, evaluation=False)
    params = SamplingParams(max_tokens=max_tokens, seed=stable_seed("base solves"), stop_token_ids=(chat.stop,))
    drawn = sampler.generate([list(prompt.token_ids) for prompt in prompts], n, params)
    texts = [chat.tokenizer.batch_decode([c.token_ids for c in group], skip_special_tokens=True) for group in drawn]
    attempts = [attempt(p.record, text) for p, group in zip(prompts, texts, strict=True) for text in group]
    outcomes = judge(grader, attempts)
    rates = {p.id: sum(o.correct for o in outcomes[i * n : (i + 1) * n]) / n for i, p in enumerate(problems)}
    write_atomically(path, json.dumps({"depends_on": key, "rates": rates}))
    return rates
