"""The prompts of the imposter study: fill a gap, continue a prefix, and judge whether a continuation is real.

Each prompt is a builder of chat messages, a builder of the reply a model is taught to give, and a parser of what it
replied. A continuation's and a judge's turn open with a think tag: append `THINK_OPENING` after the chat template's
generation prompt, and parse what follows. The structure of the two-task prompts (a system turn that explains with an
example, the prefix in tags, the opened think tag) is the published one; the words are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Messages = list[dict[str, str]]

GAP_MARK = "____"
THINK_OPENING = "<think>\n"
THINK_CLOSING = "</think>\n"
REAL, GENERATED = "real", "generated"

FILL_SYSTEM = f"One sentence of the text is missing, marked {GAP_MARK}. Reply with that sentence and nothing else."

CONTINUE_SYSTEM = """You are a causal language model.
Example:
user: <prefix>
A text that breaks off in the middle of
</prefix>
assistant: </think>
a sentence, which you go on writing from its next word, without comment."""

EXPLAIN_SYSTEM = "Think aloud, in a few words, as the author did who continued the prefix so."

JUDGE_SYSTEM = f"""A continuation follows a prefix. Did the author of the prefix write it, or a machine?
Think, then answer {REAL} or {GENERATED}."""


@dataclass(frozen=True)
class Gap:
    """A removed sentence and the sentences around it, joined by spaces; either side may be empty, not both."""

    before: str
    sentence: str
    after: str


@dataclass(frozen=True)
class Thought:
    """What a model wrote after an opened think tag. closed: whether it closed the tag; there is no answer otherwise."""

    reasoning: str
    answer: str
    closed: bool


def gaps(
    sentences: Sequence[str], context: int = 3, min_words: int = 5, max_words: int = 40, min_context_words: int = 8
) -> Iterator[Gap]:
    """Every sentence of a document that can be removed, with up to `context` sentences on each side.

    A sentence qualifies by its length in words, by context enough to fill it from, and by not being repeated there.
    """
    for i, sentence in enumerate(sentences):
        before = " ".join(sentences[max(0, i - context) : i])
        after = " ".join(sentences[i + 1 : i + 1 + context])
        if not min_words <= len(sentence.split()) <= max_words or GAP_MARK in f"{before}{sentence}{after}":
            continue
        if len(before.split()) + len(after.split()) >= min_context_words and sentence not in f"{before} {after}":
            yield Gap(before, sentence, after)


def fill_messages(before: str, after: str) -> Messages:
    """Ask for the sentence between `before` and `after`; the answer is the sentence alone."""
    return [
        {"role": "system", "content": FILL_SYSTEM},
        {"role": "user", "content": " ".join(part for part in (before, GAP_MARK, after) if part)},
    ]


def parse_fill(reply: str) -> str:
    """The sentence in a reply, on one line: a think block, quotes around the whole and outer whitespace are dropped."""
    text = " ".join(reply.rpartition("</think>")[2].split())
    quoted = re.fullmatch(r'"([^"]*)"|“([^”]*)”', text)
    return (quoted[1] or quoted[2] or "").strip() if quoted else text


def continue_messages(prefix: str) -> Messages:
    """Ask for the text after `prefix`, which is wrapped in tags."""
    return [
        {"role": "system", "content": CONTINUE_SYSTEM},
        {"role": "user", "content": f"<prefix>\n{prefix}\n</prefix>"},
    ]


def explain_messages(prefix: str, completion: str) -> Messages:
    """Ask for the thoughts that lead from a prefix to its true continuation, which is shown."""
    return [
        {"role": "system", "content": EXPLAIN_SYSTEM},
        {"role": "user", "content": f"<prefix>\n{prefix}\n</prefix>\n<continuation>\n{completion}\n</continuation>"},
    ]


def judge_messages(prefix: str, completion: str) -> Messages:
    """Ask whether `completion` is the author's continuation of `prefix`: the discriminator as a reasoning task."""
    return [
        {"role": "system", "content": JUDGE_SYSTEM},
        {"role": "user", "content": f"<prefix>\n{prefix}\n</prefix>\n<continuation>\n{completion}\n</continuation>"},
    ]


def thought_reply(answer: str, reasoning: str = "") -> str:
    """What follows `THINK_OPENING` in a turn that reasons (perhaps not at all) and then answers."""
    return (f"{reasoning}\n" if reasoning else "") + THINK_CLOSING + answer


def parse_thought(reply: str) -> Thought:
    """Split what a model wrote after `THINK_OPENING`; drop a tag opened anew, keep an answer's inner whitespace."""
    reasoning, closing, answer = reply.partition("</think>")
    return Thought(reasoning.replace("<think>", "").strip(), answer.removeprefix("\n").rstrip(), bool(closing))


def parse_judgement(reply: str) -> str | None:
    """`REAL` or `GENERATED`, from the last of the two words after the think tag; None when it gives no answer."""
    thought = parse_thought(reply)
    answers = re.findall(rf"\b({REAL}|{GENERATED})\b", thought.answer.lower())
    return answers[-1] if thought.closed and answers else None


def sketch(completion: str, words: int = 4) -> str:
    """A short plan of a completion: its longest distinct words in their order, as reasoning to teach from."""
    distinct = list(dict.fromkeys(re.findall(r"[A-Za-z]{4,}", completion)))
    longest = set(sorted(distinct, key=len, reverse=True)[:words])
    return f"Next: {', '.join(word for word in distinct if word in longest)}."
