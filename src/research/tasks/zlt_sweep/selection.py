"""Who is a negative, which question each example answers, who is measured; from stable hashes. Imports no torch."""

from __future__ import annotations

import random
from dataclasses import dataclass

from research.cells.seeding import stable_seed
from research.material import personas, questions
from research.material.personas import Persona
from research.tasks.zlt_sweep.derive import ASSISTANT
from research.tasks.zlt_sweep.settings import PRESETS, DataSettings


@dataclass(frozen=True)
class Request:
    """One base-model reply to draw: the `sample`-th of that persona to that question."""

    persona: str
    question: str
    sample: int


def negative_pool(source: str, negatives: str) -> list[str]:
    """Personas that may be negatives: all but the source, and as run never the assistant either."""
    names = [persona.name for persona in personas.published() if persona.name != source]
    return names if negatives == "as_reported" else [name for name in names if name != ASSISTANT]


def negative_personas(source: str, data: DataSettings, data_seed: int) -> list[str]:
    """The negatives of a run, in the personas' own order; the same in every process and for every cell of a sweep."""
    pool = negative_pool(source, data.negatives)
    count = PRESETS[data.negatives] if data.n_negative_personas is None else data.n_negative_personas
    drawn = random.Random(stable_seed(data_seed, "negatives", source)).sample(pool, min(count, len(pool)))
    return [name for name in pool if name in drawn]


def requests(source: str, data: DataSettings, data_seed: int) -> list[Request]:
    """Every reply that a run trains on, the source's first.

    Each persona goes through all 40 questions, in an order of its own, before any question is asked again: with 200
    examples each question is answered 5 times.
    """
    wanted = {source: data.n_positives}
    wanted |= dict.fromkeys(negative_personas(source, data, data_seed), data.n_per_negative)
    return [request for persona, count in wanted.items() for request in _persona_requests(persona, count, data_seed)]


def evaluation_personas(invented: int, data_seed: int) -> tuple[list[Persona], list[Persona]]:
    """The published eleven, and `invented` others."""
    others = list(personas.invented())
    drawn = random.Random(stable_seed(data_seed, "invented")).sample(others, invented)
    return list(personas.published()), sorted(drawn, key=lambda persona: persona.name)


def _persona_requests(persona: str, count: int, data_seed: int) -> list[Request]:
    asked = [question.text for question in questions.questions("train")]
    random.Random(stable_seed(data_seed, "questions", persona)).shuffle(asked)
    return [Request(persona, asked[i % len(asked)], i // len(asked)) for i in range(count)]
