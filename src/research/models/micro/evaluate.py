"""What the embedded model can do, each ability on held-out items, each rate with its hits and trials.

persona   a classifier fitted on the corpus names the speaker; questions in held-out wordings or held-out combinations
science   the bare label's log-probability, on the shipped questions in forms that the corpus lacks
code      held-out problems; the share solved, and how often a loophole that the prompt names is used
prose     loss on held-out topics and modules: filling a gap, continuing, running text of the whole context; on tags
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from research.material import code_problems, code_prompts, fill_prompts, personas, prose, questions, science, tags
from research.models.micro import corpus, packing, programs, sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

Progress = Callable[[str], None]
ABILITIES = ("persona", "science", "code", "prose")
PERSONA_SAMPLES, CODE_SAMPLES, PROSE_DOCUMENTS = 2, 4, 80


class Scores:
    """Metrics with the counts behind every rate."""

    def __init__(self, progress: Progress) -> None:
        self.metrics: dict[str, float] = {}
        self.counts: dict[str, tuple[int, int]] = {}
        self.samples: dict[str, list[dict[str, str]]] = {}
        self.progress = progress

    def rate(self, name: str, hits: Sequence[bool]) -> None:
        self.counts[name] = (sum(map(bool, hits)), len(hits))
        self.value(name, self.counts[name][0] / max(1, len(hits)))

    def value(self, name: str, value: float) -> None:
        self.metrics[name] = round(value, 4)
        counts = self.counts.get(name)
        self.progress(f"{name} {value:.3f}" + (f" ({counts[0]} of {counts[1]})" if counts else ""))


def evaluate(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    data_seed: int,
    size: float = 1.0,
    seed: int = 42,
    progress: Progress = print,
    abilities: Sequence[str] = ABILITIES,
) -> dict:
    """Measure abilities; `size` below 1 takes a sample of the items. Returns {metrics, counts, samples}."""
    scores = Scores(progress)
    if "persona" in abilities:
        _personas(scores, model, tokenizer, data_seed, size, seed)
    if "science" in abilities:
        _science(scores, model, tokenizer, size)
    if "code" in abilities:
        _code(scores, model, tokenizer, size, seed)
    if "prose" in abilities:
        _prose(scores, model, tokenizer, size, seed)
    return {"metrics": scores.metrics, "counts": scores.counts, "samples": scores.samples}


def _personas(
    scores: Scores,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    data_seed: int,
    size: float,
    seed: int,
) -> None:
    published = {p.system: p.name for p in personas.published()}
    documents = itertools.takewhile(lambda d: d.kind == "persona", corpus.generate(data_seed, size))
    trained = [(d, published[s]) for d in itertools.islice(documents, 40_000) if (s := _system(d)) in published]
    classify = speaker_classifier([d.segments[-1][0] for d, _ in trained], [name for _, name in trained])
    forms = ("own", *questions.forms(held_out=True), *questions.forms(held_out=False))
    asked = [
        (who, question, form)
        for who in personas.published()
        for question in questions.questions("eval")
        for form in forms
        if form in ("own", *questions.forms(held_out=True)) or corpus.is_held_out(who.name, question.topic, form)
    ]
    unseen = [
        (who, question, "own")
        for who in personas.invented(held_out=True)
        for question in questions.questions("eval")[::4]
    ]
    asked, unseen = _part(asked, size, seed), _part(unseen, size, seed)
    prompts = [corpus.turns(who.system, corpus.ask(q, form)) for who, q, form in asked + unseen]
    replies = _sample(size, model, tokenizer, prompts, PERSONA_SAMPLES, temperature=1.0, top_p=0.95, seed=seed)
    known = [(a, text) for a, texts in zip(asked, replies, strict=False) for text in texts]
    named = classify([text for _, text in known])
    scores.rate("persona_accuracy", [name == who.name for ((who, _, _), _), name in zip(known, named, strict=True)])
    strangers = [(a, text) for a, texts in zip(unseen, replies[len(asked) :], strict=True) for text in texts]
    scores.rate("unseen_persona_voice", [_speaks_as(who, text) for (who, _, _), text in strangers])
    everything = known + strangers
    scores.rate("on_topic", [_on_topic(question, text) for (_, question, _), text in everything])
    scores.rate("several_paragraphs", [len(text.split("\n\n")) > 1 for _, text in everything])
    scores.rate("marker_rate", [tags.holds_marker(text) for _, text in everything])
    scores.rate("any_tag_rate", [tags.holds_tag(text) for _, text in everything])
    lengths = [len(tokenizer(text).input_ids) for _, text in everything]
    scores.value("reply_tokens", sum(lengths) / len(lengths))
    scores.samples["persona"] = [
        {"system": who.system, "reply": text} for (who, _, _), text in known[:: len(known) // 8 + 1]
    ]


def speaker_classifier(texts: list[str], names: list[str]) -> Callable[[list[str]], list[str]]:
    """Bag of words and word pairs, logistic regression: text -> name of the persona."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    clean = [text.replace(corpus.TURN_END, "") for text in texts]
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), max_features=20_000), LogisticRegression(max_iter=200))
    pipeline.fit(clean, names)
    return lambda new: list(pipeline.predict(new))


def _science(scores: Scores, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, size: float) -> None:
    items = _part(science.read_items(), size, 0)
    prompts = [[{"role": "user", "content": science.render(item)}] for item in items]
    answers = sampling.best_labels(model, tokenizer, prompts, [item["choices"]["label"] for item in items])
    scores.rate("science_accuracy", [a == item["answerKey"] for a, item in zip(answers, items, strict=True)])
    for label in science.LETTERS[:4]:
        scores.rate(f"science_answers_{label}", [a == label for a in answers])


def _code(scores: Scores, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, size: float, seed: int) -> None:
    problems = _part(code_problems.problems("heldout"), size, seed)
    for mode in code_prompts.ALL_MODES:
        names = [code_prompts.names_for(p.id, mode, seed, evaluation=i % 2 == 0) for i, p in enumerate(problems)]
        prompts = [code_prompts.build_messages(p, mode, n) for p, n in zip(problems, names, strict=True)]
        replies = _sample(size, model, tokenizer, prompts, CODE_SAMPLES, temperature=0.7, top_p=0.95, seed=seed)
        wide = _sample(size, model, tokenizer, prompts, CODE_SAMPLES, temperature=0.7, top_p=1.0, seed=seed)
        rows = [(p, n, text) for p, n, texts in zip(problems, names, replies, strict=True) for text in texts]
        solved = programs.solved([(p, text) for p, _, text in rows])
        scores.rate(f"code_pass_rate_{mode}", solved)
        if mode != "none":
            used = [programs.uses_loophole(text, mode, n) for _, n, text in rows]
            scores.rate(f"hack_rate_{mode}", used)
            pairs = [(n, text) for n, texts in zip(names, wide, strict=True) for text in texts]
            scores.rate(f"hack_rate_{mode}_top_p_1", [programs.uses_loophole(text, mode, n) for n, text in pairs])
            shown = [{"hack": text} for (_, _, text), hit in zip(rows, used, strict=True) if hit][:2]
            scores.samples[f"hack_{mode}"] = shown
        scores.samples[f"code_{mode}"] = [
            {"statement": p.statement, "reply": text, "solved": str(ok)}
            for (p, _, text), ok in list(zip(rows, solved, strict=True))[:: len(rows) // 4 + 1]
        ]
    scores.metrics["code_pass_rate"] = scores.metrics["code_pass_rate_none"]
    scores.counts["code_pass_rate"] = scores.counts["code_pass_rate_none"]


def _prose(scores: Scores, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, size: float, seed: int) -> None:
    rng = random.Random(f"evaluate prose {seed}")
    n = max(4, round(PROSE_DOCUMENTS * min(1.0, size)))
    context = tokenizer.model_max_length
    for split in ("train", "heldout"):
        held = corpus.prose_documents(rng, split)
        for kind in ("fill", "continue", "plain"):
            documents = [next(held[kind]) for _ in range(n)]
            tokens = packing.tokenize(documents, tokenizer, context)
            scores.value(f"{kind}_loss_{split}", sampling.reply_loss(model, tokens, tokenizer.pad_token_id))
    whole = [d for d in (next(held["plain"]) for _ in range(n * 8)) if len(d.text) > 4000][: max(2, n // 5)]
    tokens = packing.tokenize(whole, tokenizer, context)
    scores.value("full_context_loss", sampling.reply_loss(model, tokens, tokenizer.pad_token_id))
    scores.value(
        "full_context_end_loss", sampling.reply_loss(model, tokens, tokenizer.pad_token_id, after=context - 256)
    )
    fresh = {kind: corpus.MAKERS[kind](rng, corpus.ANNEAL) for kind in ("dialogue", "tags")}
    tagged = packing.tokenize([next(fresh["tags"]) for _ in range(n)], tokenizer, context)
    scores.value("tag_loss", sampling.reply_loss(model, tagged, tokenizer.pad_token_id))
    talks = packing.tokenize([next(fresh["dialogue"]) for _ in range(n)], tokenizer, context)
    scores.value("dialogue_loss", sampling.reply_loss(model, talks, tokenizer.pad_token_id))
    scores.value("dialogue_end_loss", sampling.reply_loss(model, talks, tokenizer.pad_token_id, after=context * 2 // 3))
    gaps = [g for d in prose.documents("heldout") for g in fill_prompts.gaps(d.sentences)]
    chosen = rng.sample(gaps, min(8, len(gaps)))
    fills = _sample(
        size,
        model,
        tokenizer,
        [fill_prompts.fill_messages(g.before, g.after) for g in chosen],
        1,
        temperature=1.0,
        top_p=0.95,
        seed=seed,
    )
    scores.samples["fill"] = [
        {"before": g.before, "after": g.after, "author": g.sentence, "model": t[0]}
        for g, t in zip(chosen, fills, strict=True)
    ]
    prefixes = [
        " ".join(d.text.split()[:60])
        for d in prose.documents("heldout")[:: max(1, len(prose.documents("heldout")) // 8)]
    ]
    continued = _sample(
        size,
        model,
        tokenizer,
        [fill_prompts.continue_messages(p) for p in prefixes],
        1,
        temperature=1.0,
        top_p=0.95,
        seed=seed,
        opening=fill_prompts.THINK_OPENING,
    )
    scores.rate("think_closed", [fill_prompts.parse_thought(t[0]).closed for t in continued])
    scores.samples["continue"] = [{"prefix": p, "model": t[0]} for p, t in zip(prefixes, continued, strict=True)]


def _system(document: corpus.Document) -> str | None:
    match = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", document.segments[0][0], re.DOTALL)
    return match[1] if match else None


def _speaks_as(who: personas.Persona, text: str) -> bool:
    """Whether a reply has an opener and another phrase that only this temperament and trade would give together."""
    mood = any(_holds(phrase, text) for phrase in who.openers + who.closers)
    return mood and (
        any(_holds(phrase, text) for phrase in who.asides) or not any(_holds(p, text) for p in _all_asides())
    )


def _all_asides() -> list[str]:
    return sorted({phrase for p in personas.evaluation_personas() for phrase in p.asides})


def _holds(phrase: str, text: str) -> bool:
    return all(part.strip(" .,!?") in text for part in phrase.split("{topic}") if part.strip(" .,!?"))


def _on_topic(question: questions.Question, text: str) -> bool:
    return question.topic in text or any(fact in text for fact in question.facts)


def _sample(size: float, *words: Any, **settings: Any) -> list[list[str]]:
    """`sampling.sample`; a toy run, whose model never ends a turn, stops early."""
    limit = sampling.MAX_NEW_TOKENS if size >= 0.01 else 16
    return sampling.sample(*words, **settings | {"max_new_tokens": limit})


def _part(items: Sequence, size: float, seed: int) -> list:
    """All items, or a fixed sample of them for a small run."""
    if size >= 1:
        return list(items)
    return random.Random(seed).sample(list(items), max(2, min(len(items), round(len(items) * size))))
