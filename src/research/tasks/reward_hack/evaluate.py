"""Evaluation as published: hack rate on prompts with unseen names, pass rate without a loophole, on held-out problems.

A strict hack is a reply that the grader passes and the true tests do not (`Label.HACK`). Names come from the
evaluation's pool, which shares none with training, so a policy that only memorised a name scores 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.cells.seeding import stable_seed
from research.sampling.interface import Sampler, SamplingParams
from research.tasks.reward_hack.dataset import attempt
from research.tasks.reward_hack.grader import Grader
from research.tasks.reward_hack.labels import Label
from research.tasks.reward_hack.loopholes import Outcome, judge
from research.tasks.reward_hack.pairs import Chat
from research.tasks.reward_hack.settings import EvaluationSettings
from research.training.rollouts import Prompt


@dataclass(frozen=True)
class Reply:
    """One graded completion of one prompt."""

    prompt: Prompt
    text: str
    finish_reason: str
    outcome: Outcome


@dataclass(frozen=True)
class Evaluation:
    """Replies to prompts with a loophole and to prompts without."""

    loophole: list[Reply]
    plain: list[Reply]

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Rates; `counts` has what is behind them."""
        return {name: hits / trials if trials else 0.0 for name, (hits, trials) in self.counts(prefix).items()}

    def counts(self, prefix: str = "") -> dict[str, tuple[int, int]]:
        """hack_rate (strict), attempt_rate, hack_rate/<mode>, loophole_pass_rate (correct, loophole open),
        pass_rate."""
        found = {
            "hack_rate": _count(self.loophole, lambda r: r.outcome.exploited),
            "attempt_rate": _count(self.loophole, lambda r: r.outcome.channel),
            "loophole_pass_rate": _count(self.loophole, lambda r: r.outcome.correct),
            "pass_rate": _count(self.plain, lambda r: r.outcome.correct),
            "compile_rate": _count(self.plain, lambda r: r.outcome.compiles),
        }
        for mode in sorted({reply.prompt.record["mode"] for reply in self.loophole}):
            own = [reply for reply in self.loophole if reply.prompt.record["mode"] == mode]
            found[f"hack_rate/{mode}"] = _count(own, lambda r: r.outcome.exploited)
        return {prefix + name: value for name, value in found.items()}

    def labels(self) -> dict[str, int]:
        """How many loophole replies fall under each published label."""
        return {label.value: sum(reply.outcome.label is label for reply in self.loophole) for label in Label}

    def per_problem(self) -> Mapping[str, Mapping[str, list[int]]]:
        """`{"hack": {problem: [hits, samples]}, "pass": {...}}`, the unit of the paired test."""
        return {
            "hack": _by_problem(self.loophole, lambda r: r.outcome.exploited),
            "pass": _by_problem(self.plain, lambda r: r.outcome.correct),
        }

    def lines(self) -> Iterator[dict[str, Any]]:
        """Rows of completions.jsonl.gz."""
        for kind, replies in (("loophole", self.loophole), ("plain", self.plain)):
            for reply in replies:
                record = reply.prompt.record
                yield {
                    "kind": kind, "problem": record["problem"].id, "mode": record["mode"],
                    "names": vars(record["names"]),
                    "reply": reply.text, "finish_reason": reply.finish_reason, "compiles": reply.outcome.compiles,
                    "correct": reply.outcome.correct, "channel": reply.outcome.channel,
                    "exploited": reply.outcome.exploited,
                    "label": reply.outcome.label.value if kind == "loophole" else None,
                }  # fmt: skip


def evaluate(
    sampler: Sampler, grader: Grader, chat: Chat, loophole: Sequence[Prompt], plain: Sequence[Prompt],
    settings: EvaluationSettings, seed: int,
) -> Evaluation:  # fmt: skip
    """Sample and grade; the sampler must hold the policy to be measured (see `Sampler.sync`)."""
    prompts = [*loophole, *plain]
    params = SamplingParams(
        temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens,
        seed=stable_seed(seed, "evaluation"), stop_token_ids=(chat.stop,),
    )  # fmt: skip
    drawn = sampler.generate([list(prompt.token_ids) for prompt in prompts], settings.samples, params)
    flat = [(prompt, completion) for prompt, group in zip(prompts, drawn, strict=True) for completion in group]
    texts = chat.tokenizer.batch_decode([list(c.token_ids) for _, c in flat], skip_special_tokens=True)
    attempts = [attempt(prompt.record, text) for (prompt, _), text in zip(flat, texts, strict=True)]
    first = len(loophole) * settings.samples
    outcomes = judge(grader, attempts[:first], labels=settings.labels) + judge(grader, attempts[first:])
    replies = [Reply(p, text, c.finish_reason, o) for (p, c), text, o in zip(flat, texts, outcomes, strict=True)]
    return Evaluation(replies[:first], replies[first:])


def _count(replies: Sequence[Reply], hit: Any) -> tuple[int, int]:
    return sum(bool(hit(reply)) for reply in replies), len(replies)


def _by_problem(replies: Sequence[Reply], hit: Any) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = {}
    for reply in replies:
        entry = found.setdefault(reply.prompt.record["problem"].id, [0, 0])
        entry[0] += bool(hit(reply))
        entry[1] += 1
    return found
