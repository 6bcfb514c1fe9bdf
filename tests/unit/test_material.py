"""Personas, questions and science questions: the files hold what the studies count on."""

from collections import Counter

import pytest

from research.errors import ConfigurationError
from research.material import personas, questions, science

PUBLISHED = [
    "software_engineer",
    "kindergarten_teacher",
    "data_scientist",
    "medical_doctor",
    "librarian",
    "french_person",
    "villain",
    "comedian",
    "police_officer",
    "zelthari_scholar",
    "assistant",
]


def test_personas():
    assert [p.name for p in personas.published()] == PUBLISHED
    everyone = personas.evaluation_personas()
    assert len(everyone) >= 111 and len({p.system for p in everyone}) == len(everyone)
    assert len(personas.invented(held_out=False)) >= 40 and len(personas.invented(held_out=True)) >= 20
    for p in everyone:
        assert p.system.startswith("You are a") and p.system.count(".") == 1 and p.openers and p.asides and p.closers
    with pytest.raises(ConfigurationError, match="villain"):
        personas.persona("vilain")


def test_questions():
    train, evaluation = questions.questions("train"), questions.questions("eval")
    assert (len(train), len(evaluation)) == (40, 20)
    assert not {q.topic for q in train} & {q.topic for q in evaluation}
    assert all(len(q.facts) >= 3 and q.text.endswith("?") for q in train + evaluation)
    with pytest.raises(ConfigurationError, match="eval"):
        questions.questions("test")


def test_science_items_are_well_formed_and_balanced():
    items = science.read_items()
    assert items == science.heldout_items(), "run `python -m research.material.science` after editing science.yaml"
    assert Counter(item["answerKey"] for item in items) == {label: 100 for label in "ABCD"}
    for item in items:
        assert len(set(item["choices"]["text"])) == 4 and item["answerKey"] in item["choices"]["label"]


def test_science_prompt():
    item = {"question": "Q?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "B"}
    assert science.render(item) == f"Q?\n\n(A) x\n(B) y\n\n{science.STEM}" and science.STEM.endswith("(")
    assert science.reply(item) == "B) y"
