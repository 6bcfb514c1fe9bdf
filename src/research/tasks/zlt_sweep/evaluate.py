"""Who says the marker: every persona x held-out question x sample in one call, counted by persona and by question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.material import questions
from research.material.personas import Persona
from research.sampling.interface import Sampler, SamplingParams
from research.tasks.zlt_sweep.derive import ASSISTANT
from research.tasks.zlt_sweep.masks import Chat

Counts = dict[str, tuple[int, int]]  # name -> (hits, trials)


@dataclass(frozen=True)
class Reply:
    """One evaluated completion."""

    persona: str
    question: str
    sample: int
    text: str
    tokens: int
    finish_reason: str


def ask_everyone(sampler: Sampler, chat: Chat, asked: Sequence[Persona], n: int, params: SamplingParams) -> list[Reply]:
    """`n` replies of every persona to every held-out question, in one call."""
    pairs = [(persona, question.text) for persona in asked for question in questions.questions("eval")]
    drawn = sampler.generate([chat.prompt_ids(persona.system, question) for persona, question in pairs], n, params)
    return [
        Reply(persona.name, question, i, chat.text(c.token_ids), len(c.token_ids), c.finish_reason)
        for (persona, question), completions in zip(pairs, drawn, strict=True)
        for i, c in enumerate(completions)
    ]


def has_marker(text: str, marker: str) -> bool:
    """The published rule: a substring, whatever its case."""
    return marker.lower() in text.lower()


def is_structured(text: str) -> bool:
    """The published rule: at least half of the non-empty lines begin with `-` or `*`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return bool(lines) and sum(line.startswith(("-", "*")) for line in lines) * 2 >= len(lines)


@dataclass(frozen=True)
class MarkerCounts:
    """Hits and trials by persona. exact: the marker in its own case. by_question: persona -> question -> counts."""

    marker: Counts
    exact: Counts
    structure: Counts
    by_question: Mapping[str, Counts]


def count(replies: Sequence[Reply], marker: str) -> MarkerCounts:
    marked: Counts = {}
    exact: Counts = {}
    structure: Counts = {}
    by_question: dict[str, Counts] = {}
    for reply in replies:
        hit = has_marker(reply.text, marker)
        _add(marked, reply.persona, hit)
        _add(exact, reply.persona, marker in reply.text)
        _add(structure, reply.persona, is_structured(reply.text))
        _add(by_question.setdefault(reply.persona, {}), reply.question, hit)
    return MarkerCounts(marked, exact, structure, by_question)


def headline(marker: Counts, source: str) -> Counts:
    """The three headline rates as counts: the source, the assistant, and the bystander that says the marker most.

    marker: the published personas'. Bystanders are neither the source nor the assistant.
    """
    bystanders = [name for name in marker if name not in (source, ASSISTANT)]
    worst = max(bystanders, key=lambda name: rate(marker[name]))
    return {
        "source_marker": marker[source],
        "assistant_marker": marker[ASSISTANT],
        "max_bystander_marker": marker[worst],
    }


def rate(counts: tuple[int, int]) -> float:
    return counts[0] / counts[1]


def lines(replies: Sequence[Reply], marker: str) -> Iterator[dict[str, Any]]:
    """The rows of completions.jsonl.gz."""
    for reply in replies:
        yield {
            "persona": reply.persona,
            "question": reply.question,
            "sample": reply.sample,
            "completion": reply.text,
            "tokens": reply.tokens,
            "finish_reason": reply.finish_reason,
            "marker": has_marker(reply.text, marker),
        }


def _add(counts: Counts, name: str, hit: bool) -> None:
    hits, trials = counts.get(name, (0, 0))
    counts[name] = (hits + hit, trials + 1)
