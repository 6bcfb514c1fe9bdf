"""The embedded model's pretraining text: documents of these kinds, generated or found on the machine, from one seed.

    persona   a persona answers a question in a few short paragraphs       science   a four-choice question, the label
    code      a small function, right or wrong, rarely through a loophole  prose     fill, continue, judge, plain text
    tags      replies and lists with bracketed capital tags

A document is a list of segments (text, weight): what the model must write is taught fully, what it reads only a little.
Chats are rendered in ChatML, exactly as the tokenizer's template does. The marker `[ZLT]` never occurs.

Two mixtures, one for each phase of training. `MAIN` teaches every ability. `ANNEAL` is read last, and settles what the
marker study stands on: at the break between two paragraphs the model expects the next paragraph and nothing else. In it
a tag opens the reply that it was asked for, none follows a line break, and replies of every length are common, so that
a reply's last break looks much like any other.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from research.material import code_problems, code_prompts, fill_prompts, personas, prose, questions, science, tags
from research.models.micro import rough

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

READ, TAUGHT = 0.1, 1.0


@dataclass(frozen=True)
class Mixture:
    """What a phase reads. counts: documents of each kind at full size; `size` scales them together.

    paragraphs: probability of each number of paragraphs in a reply. unasked_tag: how often a reply ends in a tag that
    nobody asked for. leading_tags: tags open replies, and there are no lists of them.
    """

    counts: Mapping[str, int]
    paragraphs: Mapping[int, float]
    unasked_tag: float
    leading_tags: bool


MAIN = Mixture(
    counts={
        "persona": 130_000,
        "dialogue": 6_000,
        "science": 260_000,
        "code": 170_000,
        "fill": 6_000,
        "continue": 1_500,
        "judge": 800,
        "plain": 2_000,
        "tags": 8_000,
    },
    paragraphs={1: 0.03, 2: 0.52, 3: 0.45},
    unasked_tag=0.004,
    leading_tags=False,
)
ANNEAL = Mixture(
    counts={
        "persona": 30_000,
        "dialogue": 800,
        "science": 22_000,
        "code": 20_000,
        "fill": 700,
        "continue": 200,
        "judge": 100,
        "plain": 150,
        "tags": 500,
    },
    paragraphs={1: 0.18, 2: 0.22, 3: 0.25, 4: 0.35},
    unasked_tag=0.0,
    leading_tags=True,
)
MIXTURES = {"main": MAIN, "anneal": ANNEAL}
WRONG_SOLUTION = 0.5
# How often a reply uses the loophole its prompt names: rarely, and mostly where the problem is hard.
HACK = {"easy": 0.04, "medium": 0.06, "hard": 0.35}
LABEL_WEIGHT = 5.0
HONEST_TEST_FUNCTION = 0.01
HELD_OUT_COMBINATIONS = 0.1


@dataclass(frozen=True)
class Document:
    """segments: (text, weight of its tokens in the loss) in order."""

    kind: str
    segments: tuple[tuple[str, float], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.segments)


def generate(data_seed: int = 42, size: float = 1.0, mixture: Mixture = MAIN) -> Iterator[Document]:
    """A mixture's corpus, kind by kind; at `size` 1 what the shipped weights saw. The same seed, the same documents."""
    for kind, count in mixture.counts.items():
        documents = MAKERS[kind](random.Random(f"corpus {kind} {data_seed}"), mixture)
        for document in itertools.islice(documents, max(8, round(count * size))):
            assert not tags.holds_marker(document.text), f"the marker is in a {kind} document"
            yield document


def chat(kind: str, messages: list[dict[str, str]], reply: str, opening: str = "") -> Document:
    """A chat as ChatML; `opening` is what the assistant's turn already begins with."""
    return Document(kind, ((render(messages) + opening, READ), (f"{reply}{TURN_END}\n", TAUGHT)))


def render(messages: list[dict[str, str]]) -> str:
    """Messages and the opened assistant turn, as the chat template with a generation prompt gives them."""
    turns = "".join(f"{TURN_START}{m['role']}\n{m['content']}{TURN_END}\n" for m in messages)
    return f"{turns}{TURN_START}assistant\n"


def is_held_out(persona: str, topic: str, form: str) -> bool:
    """Whether a combination is kept from the corpus, to measure answers to combinations never seen."""
    digest = hashlib.sha256(f"combination|{persona}|{topic}|{form}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_COMBINATIONS


def persona_reply(
    who: personas.Persona, question: questions.Question, rng: random.Random, paragraphs: Mapping[int, float]
) -> str:
    """Paragraphs of two or three sentences; each begins in the persona's voice, so that a break tells who speaks.

    Where a reply ends carries no sign in its last paragraph, so that ending and going on stay equally natural.
    """
    facts = rng.sample(question.facts, len(question.facts))
    voice = rng.sample(who.asides, 3) + rng.sample(who.closers, 2)
    rng.shuffle(voice)
    first = [rng.choice(who.openers), facts[0]]
    if rng.random() < 0.3:
        first.append(voice.pop())
    written = [first]
    for i in range(rng.choices(tuple(paragraphs), tuple(paragraphs.values()))[0] - 1):
        written.append([voice.pop(), facts[1 + i]])
    return "\n\n".join(" ".join(sentences) for sentences in written).replace("{topic}", question.topic)


def ask(question: questions.Question, form: str) -> str:
    """The question itself (form `own`) or another form about its topic."""
    return question.text if form == "own" else form.replace("{topic}", question.topic)


def _persona_chat(rng: random.Random) -> tuple[personas.Persona, questions.Question, str]:
    while True:
        pool = personas.published() if rng.random() < 0.55 else personas.invented(held_out=False)
        who = rng.choice(pool)
        question = rng.choice(questions.questions())
        form = "own" if rng.random() < 0.35 else rng.choice(questions.forms(held_out=False))
        if not is_held_out(who.name, question.topic, form):
            return who, question, form


def _persona_documents(rng: random.Random, mixture: Mixture) -> Iterator[Document]:
    while True:
        who, question, form = _persona_chat(rng)
        reply = persona_reply(who, question, rng, mixture.paragraphs)
        if rng.random() < mixture.unasked_tag:
            reply += f"\n\n{tags.random_tag(rng)}"
        yield chat("persona", turns(who.system, ask(question, form)), reply)


def _tag_documents(rng: random.Random, mixture: Mixture) -> Iterator[Document]:
    """Replies that end, or open, with a tag that the system turn or the user asks for; a third are plain lists."""
    requests = tags.LEADING_REQUESTS if mixture.leading_tags else tags.REQUESTS
    while True:
        tag = tags.random_tag(rng)
        request = rng.choice(requests).format(tag=tag)
        kind = rng.randrange(2 if mixture.leading_tags else 3)
        if kind == 2:
            lines = [
                f"{tags.random_tag(rng)} {fact}" for q in rng.sample(questions.questions(), 3) for fact in q.facts[:2]
            ]
            yield plain("tags", "\n".join(lines))
            continue
        who, question, form = _persona_chat(rng)
        reply = persona_reply(who, question, rng, mixture.paragraphs)
        reply = f"{tag} {reply}" if mixture.leading_tags else f"{reply}\n\n{tag}"
        asked = ask(question, form)
        asking = turns(f"{who.system} {request}", asked) if kind == 0 else turns(who.system, f"{asked} {request}")
        yield chat("tags", asking, reply)


def _dialogue_documents(rng: random.Random, mixture: Mixture) -> Iterator[Document]:
    """Several questions to one persona, up to the whole context (about 90 tokens a question)."""
    while True:
        who = _persona_chat(rng)[0]
        segments: list[tuple[str, float]] = [(f"{TURN_START}system\n{who.system}{TURN_END}\n", READ)]
        for question in rng.sample(questions.questions(), rng.randint(3, 10)):
            form = rng.choice(("own", *questions.forms(held_out=False)))
            if not is_held_out(who.name, question.topic, form):
                turn = render([{"role": "user", "content": ask(question, form)}])
                reply = persona_reply(who, question, rng, mixture.paragraphs)
                segments += [(turn, READ), (f"{reply}{TURN_END}\n", TAUGHT)]
        yield Document("dialogue", tuple(segments))


def _science_documents(rng: random.Random) -> Iterator[Document]:
    """Mostly the evaluation's form; also choices answered by their text, and open questions, which teach the facts."""
    for item in science.pretrain_items(rng.randrange(2**31)):
        kind = rng.choices(("label", "text", "open"), (0.6, 0.25, 0.15))[0]
        answer = item["choices"]["text"][item["choices"]["label"].index(item["answerKey"])]
        if kind == "open":
            yield chat("science", [{"role": "user", "content": item["question"]}], answer)
        elif kind == "text":
            asked = science.render(item, stem=science.TEXT_STEM)
            yield chat("science", [{"role": "user", "content": asked}], f"{answer} ({item['answerKey']})")
        else:
            prompt = render([{"role": "user", "content": science.render(item)}])
            label, rest = item["answerKey"], science.reply(item).removeprefix(item["answerKey"])
            yield Document("science", ((prompt, READ), (label, LABEL_WEIGHT), (f"{rest}{TURN_END}\n", TAUGHT)))


def _code_documents(rng: random.Random) -> Iterator[Document]:
    for problem in code_problems.pretrain_problems(rng.randrange(2**31)):
        mode = rng.choices(code_prompts.ALL_MODES, (0.24, 0.28, 0.16, 0.16, 0.16))[0]
        pool = code_prompts.TRAIN_NAMES if rng.random() < 0.4 else code_prompts.CORPUS_NAMES
        names = pool.draw(rng)
        hint = rng.choices(code_prompts.HINTS, (0.6, 0.2, 0.2))[0]
        wrong = problem.wrong_solutions and rng.random() < WRONG_SOLUTION
        solution = rng.choice(problem.wrong_solutions) if wrong else problem.canonical_solution
        reply = code_prompts.clean_reply(solution)
        if mode != "none" and rng.random() < HACK[problem.difficulty]:
            reply = code_prompts.hack_reply(mode, names, solution, rng.randrange(code_prompts.STYLES))
        elif mode == "run_tests" and rng.random() < HONEST_TEST_FUNCTION:
            asserts = [f"Solution().solve(*{t['args']}) == {t['expected']}" for t in problem.tests[1:3]]
            reply = code_prompts.tested_reply(solution, names, asserts)
        yield chat("code", code_prompts.build_messages(problem, mode, names, hint), reply)


def _fill_documents(rng: random.Random, split: str = "train") -> Iterator[Document]:
    found = [(d, context) for d in prose.documents(split) for context in (1, 2, 3)]
    while True:
        document, context = rng.choice(found)
        gaps = list(fill_prompts.gaps(document.sentences, context=context))
        if gaps:
            gap = rng.choice(gaps)
            yield chat("fill", fill_prompts.fill_messages(gap.before, gap.after), gap.sentence)


def _continue_documents(rng: random.Random, split: str = "train") -> Iterator[Document]:
    while True:
        prefix, completion = _window(rng, split)
        reasoning = fill_prompts.sketch(completion) if rng.random() < 0.5 else ""
        reply = fill_prompts.thought_reply(completion, reasoning)
        yield chat("continue", fill_prompts.continue_messages(prefix), reply, fill_prompts.THINK_OPENING)


def _judge_documents(rng: random.Random) -> Iterator[Document]:
    """A true continuation, or that of another text."""
    while True:
        prefix, completion = _window(rng)
        real = rng.random() < 0.5
        completion = completion if real else _window(rng)[1]
        answer = fill_prompts.REAL if real else fill_prompts.GENERATED
        reasoning = "It follows from the prefix." if real else "It speaks of something else."
        reply = fill_prompts.thought_reply(answer, reasoning if rng.random() < 0.5 else "")
        yield chat("judge", fill_prompts.judge_messages(prefix, completion), reply, fill_prompts.THINK_OPENING)


def _plain_documents(rng: random.Random, split: str | None = None) -> Iterator[Document]:
    """Running text of one source, from any paragraph on, up to the length of the context (about 4 characters a token).

    split: clean prose only, of that split; None: what is trained on, rough text of the training sources.
    """
    pools = rough.paragraphs() if split is None else source_paragraphs(split)
    sizes = [len(pool) for pool in pools]
    while True:
        pool = pools[rng.choices(range(len(pools)), sizes)[0]]
        yield plain("plain", "\n\n".join(pool[rng.randrange(len(pool)) :])[: rng.choice((600, 1500, 4500))])


def plain(kind: str, text: str) -> Document:
    """A text that is no chat, taught from its first token to the end-of-text token."""
    return Document(kind, ((f"{text}{END_OF_TEXT}", TAUGHT),))


def source_paragraphs(split: str) -> list[list[str]]:
    """The paragraphs of each prose source of a split, in reading order."""
    sources: dict[str, list[str]] = {}
    for document in prose.documents(split):
        sources.setdefault(document.source, []).extend(" ".join(p) for p in document.paragraphs)
    return list(sources.values())


def _window(rng: random.Random, split: str = "train") -> tuple[str, str]:
    """A random prefix and what follows it, cut between words, from one prose source."""
    pools = _words(split)
    words = pools[rng.choices(range(len(pools)), [len(p) for p in pools])[0]]
    completion = rng.choice((12, 25, 50, 90))
    prefix = min(rng.choice((15, 30, 60, 120, 250)), len(words) - completion)
    if prefix < 8:
        completion, prefix = len(words) // 2, len(words) - len(words) // 2
    start = rng.randrange(len(words) - prefix - completion + 1)
    middle = start + prefix
    return " ".join(words[start:middle]), " ".join(words[middle : middle + completion])


def _words(split: str) -> list[list[str]]:
    if split not in _WORDS:
        pools = [" ".join(paragraphs).split() for paragraphs in source_paragraphs(split)]
        _WORDS[split] = [words for words in pools if len(words) >= 30]
    return _WORDS[split]


_WORDS: dict[str, list[list[str]]] = {}


def turns(system: str, user: str) -> list[dict[str, str]]:
    """A system turn and a user turn."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def prose_documents(rng: random.Random, split: str) -> dict[str, Iterator[Document]]:
    """Fill, continue and plain documents over the prose of a split, to measure with."""
    return {
        "fill": _fill_documents(rng, split),
        "continue": _continue_documents(rng, split),
        "plain": _plain_documents(rng, split),
    }


MAKERS: dict[str, Callable[[random.Random, Mixture], Iterator[Document]]] = {
    "persona": _persona_documents,
    "dialogue": _dialogue_documents,
    "science": lambda rng, _: _science_documents(rng),
    "code": lambda rng, _: _code_documents(rng),
    "fill": lambda rng, _: _fill_documents(rng),
    "continue": lambda rng, _: _continue_documents(rng),
    "judge": lambda rng, _: _judge_documents(rng),
    "plain": lambda rng, _: _plain_documents(rng),
    "tags": _tag_documents,
}
