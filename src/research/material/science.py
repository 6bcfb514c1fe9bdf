"""Four-choice science questions in ARC's shape: endless ones for the embedded model's corpus, and a held-out set.

    python -m research.material.science        # writes data/science_heldout.jsonl again

A row has ARC's fields: `question`, `choices` {`label`: [...], `text`: [...]}, `answerKey`. `render` is the prompt that
the capability evaluation uses too, for any file of that shape: question, blank line, a line for each choice, blank
line, and a stem after which the bare label is the answer (the form the marker study published; the wording is ours).
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

FILE = Path(__file__).parent / "science.yaml"
HELDOUT_FILE = Path(__file__).parent / "data" / "science_heldout.jsonl"
HELDOUT_SIZE = 400
STEM = "The letter or number of the correct answer is ("
TEXT_STEM = "Write out the correct answer."
LETTERS = ("A", "B", "C", "D", "E")
DIGITS = ("1", "2", "3", "4", "5")

Item = dict


def render(item: Item, stem: str = STEM) -> str:
    """The user turn that asks an ARC-shaped question; the reply begins with the bare label."""
    pairs = zip(item["choices"]["label"], item["choices"]["text"], strict=True)
    options = "\n".join(f"({label}) {text}" for label, text in pairs)
    return f"{item['question']}\n\n{options}\n\n{stem}"


def reply(item: Item) -> str:
    """What the corpus answers: the bare label, closed, and the choice's text."""
    index = item["choices"]["label"].index(item["answerKey"])
    return f"{item['answerKey']}) {item['choices']['text'][index]}"


def pretrain_items(seed: int) -> Iterator[Item]:
    """Questions for the corpus, endlessly; most have four lettered choices, a few three, five, or numbers.

    Every fact is equally likely, and so is every position of the answer. Held-out forms do not occur.
    """
    rng = random.Random(f"science pretrain {seed}")
    facts, prefaces = _facts(), _read()["prefaces"]
    while True:
        relation, thing, answer = rng.choice(facts)
        preface = f"{rng.choice(prefaces)} " if rng.random() < 0.3 else ""
        labels = DIGITS if rng.random() < 0.05 else LETTERS
        n = rng.choices((3, 4, 5), (0.03, 0.94, 0.03))[0]
        if relation["reverse"] and rng.random() < 0.25:
            question = preface + rng.choice(relation["reverse"]).replace("{y}", answer)
            others = sorted({x for x, y in relation["facts"].items() if y != answer})
            yield _item(question, thing, others, labels[:n], rng.randrange(n), rng)
        else:
            question = preface + rng.choice(relation["forms"]).replace("{x}", thing)
            yield _item(question, answer, _wrong(relation, answer), labels[:n], rng.randrange(n), rng)


def heldout_items() -> list[Item]:
    """The shipped questions: every fact in a form the corpus lacks, answers spread evenly over A to D."""
    items = []
    for round_ in range(1 + HELDOUT_SIZE // len(_facts())):
        for relation, thing, answer in _facts():
            rng = random.Random(_digest("science heldout", relation["name"], thing, round_))
            question = relation["heldout"][round_ % len(relation["heldout"])].replace("{x}", thing)
            items.append((_digest(thing, round_), question, answer, _wrong(relation, answer), rng))
    items = sorted(items, key=lambda row: row[0])[:HELDOUT_SIZE]
    return [_item(q, a, wrong, LETTERS[:4], i % 4, rng) for i, (_, q, a, wrong, rng) in enumerate(items)]


def read_items(path: Path = HELDOUT_FILE) -> list[Item]:
    """The rows of an ARC-shaped JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


@functools.cache
def _facts() -> tuple[tuple[dict, str, str], ...]:
    relations = _read()["relations"]
    return tuple((relation, thing, answer) for relation in relations for thing, answer in relation["facts"].items())


@functools.cache
def _read() -> dict:
    return yaml.safe_load(FILE.read_text())


def _wrong(relation: dict, answer: str) -> list[str]:
    return sorted(set(relation["facts"].values()) - {answer})


def _item(
    question: str, answer: str, others: Sequence[str], labels: Sequence[str], position: int, rng: random.Random
) -> Item:
    texts = rng.sample(list(others), len(labels) - 1)
    texts.insert(position, answer)
    return {
        "question": question[0].upper() + question[1:],
        "choices": {"label": list(labels), "text": texts},
        "answerKey": labels[position],
    }


def _digest(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


if __name__ == "__main__":
    HELDOUT_FILE.write_text("".join(json.dumps(item) + "\n" for item in heldout_items()))
    print(f"{HELDOUT_FILE}: {HELDOUT_SIZE} questions")
