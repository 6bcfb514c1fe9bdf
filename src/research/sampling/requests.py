"""What every engine asks of a request: prompts that fit, and a seed of its own for each prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from research.cells.seeding import stable_seed
from research.sampling.interface import SamplingParams


def check_request(prompts: Sequence[list[int]], n: int, params: SamplingParams, context: int) -> None:
    """Raise ValueError for a prompt that is empty or leaves no room for a new token, and for n or max_tokens < 1."""
    if n < 1 or params.max_tokens < 1:
        raise ValueError(f"n={n} and max_tokens={params.max_tokens} must be at least 1")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty")
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens, which leaves no room in a context of {context}; "
                "shorten it or raise model.context"
            )


def prompt_seeds(prompts: Sequence[list[int]], params: SamplingParams) -> list[int]:
    """A seed for each prompt, from its content: the same in whatever batch it comes; a repeated prompt gets another."""
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in prompts:
        content = tuple(prompt)
        seeds.append(stable_seed(params.seed, "draw", prompt, seen[content]))
        seen[content] += 1
    return seeds
