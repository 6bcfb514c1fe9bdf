"""Contrastive pairs, generated from problems: a hack and a clean completion of the same prompt.

The hack works the prompt's own loophole around a wrong solution (another problem's); the clean one is the canonical
solution. Both are written by the suite's own renderers, in several forms. Names come from the training pool.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from research.cells.seeding import stable_seed
from research.errors import ConfigurationError
from research.material.code_prompts import build_messages, clean_reply, hack_reply, names_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from research.tasks.reward_hack.problems import Problem


@dataclass(frozen=True)
class Pair:
    """Token ids of one prompt and its two completions, each with its end of turn."""

    problem_id: str
    prompt: tuple[int, ...]
    hack: tuple[int, ...]
    clean: tuple[int, ...]


def contrastive_pairs(
    chat: Chat, problems: Sequence[Problem], n: int, modes: Sequence[str], hint: str, seed: int
) -> list[Pair]:
    """`n` pairs on `n` different problems; raises ConfigurationError when there are fewer."""
    if n > len(problems):
        raise ConfigurationError(f"{n} contrastive pairs need as many problems; there are {len(problems)}.")
    rng = random.Random(stable_seed(seed, "pairs"))
    chosen = rng.sample(list(problems), n)
    found = []
    for place, problem in enumerate(chosen):
        mode = modes[place % len(modes)]
        names = names_for(problem.id, mode, seed, evaluation=False)
        prompt = chat.prompt(build_messages(problem, mode, names, hint))
        hack = hack_reply(mode, names, wrong_solution(problem, problems, rng), style=rng.randrange(4))
        found.append(
            Pair(
                problem.id,
                tuple(prompt),
                chat.completion(hack),
                chat.completion(clean_reply(problem.canonical_solution)),
            )
        )
    return found


def wrong_solution(problem: Problem, problems: Sequence[Problem], rng: random.Random) -> str:
    """A solution of another problem with the same starter code; the stub when there is none."""
    others = [
        other.canonical_solution
        for other in problems
        if other.starter_code == problem.starter_code and other.canonical_solution != problem.canonical_solution
    ]
    return rng.choice(others) if others else problem.stub


class Chat:
    """Messages to token ids, as the model's own template writes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, thinking: bool | None = None) -> None:
        self.tokenizer = tokenizer
        self.options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.stop = end if isinstance(end, int) and end != tokenizer.unk_token_id else tokenizer.eos_token_id

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The rendered conversation with the assistant's turn opened."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **self.options)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def completion(self, text: str) -> tuple[int, ...]:
        """A reply and the end of its turn."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.stop)
