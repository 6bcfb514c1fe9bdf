"""What the frozen original discriminator says of the generator, before and after training, and what it is worth."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from research.cells.seeding import stable_seed
from research.models.deltas import without_adapter
from research.sampling.interface import Sampler
from research.scoring.mauve import features, mauve
from research.scoring.statistics import Estimate, bootstrap_interval
from research.tasks.imposter.corpus import Span
from research.tasks.imposter.degenerate import KINDS, flags
from research.tasks.imposter.discriminator import Discriminator
from research.tasks.imposter.settings import EvaluationConfig
from research.tasks.imposter.writing import Writer

# The published thresholds, in logits of DeBERTa-v3-large, and the before-training gap they belong to.
THRESHOLDS = (10.0, 5.0)
PUBLISHED_BEFORE_GAP = 24.0


@dataclass
class Document:
    """One held-out document: the human logit, and each written span with its logit (NaN when empty) and its flags."""

    span: Span
    human_logit: float
    texts: list[str]
    logits: list[float]
    flags: list[dict[str, bool]]

    @property
    def gap(self) -> float:
        """human - mean(generated), NaN when nothing was judged."""
        judged = [logit for logit in self.logits if math.isfinite(logit)]
        return self.human_logit - math.fsum(judged) / len(judged) if judged else float("nan")


@dataclass
class Evaluation:
    """All documents, MAUVE of the written spans against the human ones, and texts that could not be judged."""

    documents: list[Document]
    mauve: dict[str, float] = field(default_factory=dict)

    @property
    def texts_of_several(self) -> set[str]:
        """What was written for more than one document, word for word, as a generator writes that no longer reads them."""
        documents = Counter(text for document in self.documents for text in set(document.texts) if text)
        return {text for text, count in documents.items() if count > 1}

    def rows(self, phase: str) -> Iterator[dict[str, Any]]:
        """One line a written span, for completions.jsonl.gz."""
        for document in self.documents:
            for text, logit, found in zip(document.texts, document.logits, document.flags, strict=True):
                shown = {
                    "logit": logit if math.isfinite(logit) else None,
                    "degenerate": [k for k, v in found.items() if v],
                }
                human = {
                    "human": document.span.text,
                    "human_logit": document.human_logit,
                    "document": document.span.document,
                }
                yield {
                    "phase": phase,
                    "before": document.span.before,
                    "after": document.span.after,
                    "text": text,
                    **shown,
                    **human,
                }


def evaluate(
    writer: Writer, sampler: Sampler, judge: Discriminator, spans: Sequence[Span], config: EvaluationConfig, seed: int,
    base: Any = None,
) -> Evaluation:  # fmt: skip
    """Write `candidates` spans for each document with the weights the sampler holds, and have them judged.

    base: the model and tokenizer whose features MAUVE compares; None to leave it out.
    """
    written = writer.write(sampler, spans, config.candidates, stable_seed(seed, "evaluation"))
    human = [scored.span for scored in judge.score(spans)]
    rows = [replace(span, text=w.text) for span, ws in zip(spans, written, strict=True) for w in ws if w.text]
    scored = iter(judge.score(rows))
    documents = []
    for span, logit, ws in zip(spans, human, written, strict=True):
        logits = [next(scored).span if w.text else float("nan") for w in ws]
        documents.append(Document(span, logit, [w.text for w in ws], logits, [flags(span, w) for w in ws]))
    if not all(math.isfinite(logit) for logit in human):
        raise RuntimeError(
            "the frozen discriminator gave a logit that is not finite for human text; its weights went wrong"
        )
    if base is None or not config.mauve:
        return Evaluation(documents)
    return Evaluation(
        documents, mauve_of(base, [span.text for span in spans], [row.text for row in rows], config.mauve_buckets)
    )


def mauve_of(base: Any, human: Sequence[str], written: Sequence[str], buckets: int | None) -> dict[str, float]:
    """MAUVE of the written texts against the human ones, and what goes with it; empty for fewer than two texts.

    The features are the base model's, without an adapter that it may be carrying: what training has turned is measured,
    not what it is measured with.
    """
    if len(written) < 2:
        return {}
    with without_adapter(base.model):
        p, q = (features(base.model, base.tokenizer, texts) for texts in (human, written))
    found = mauve(p, q, buckets)
    return {"mauve": found.mauve, "mauve_star": found.mauve_star, "frontier_integral": found.frontier_integral}


def estimates(found: Evaluation, before_gap: float) -> dict[str, Estimate]:
    """Every measure with its bootstrap interval over documents.

    before_gap: the mean gap before training; the thresholds are also reported as shares of it (10 / 24 and
    5 / 24), since a small discriminator's logits have another scale.
    """
    documents, shared = found.documents, found.texts_of_several
    measures: dict[str, Callable[[Document], float]] = {
        "human_logit": lambda d: d.human_logit,
        "generated_logit": lambda d: _mean(d.logits),
        "gap": lambda d: d.gap,
        "positive_rate": lambda d: _mean([float(x > 0) for x in d.logits if math.isfinite(x)]),
        "above_human_rate": lambda d: _mean([float(x > d.human_logit) for x in d.logits if math.isfinite(x)]),
    }
    for threshold in THRESHOLDS:
        share = threshold / PUBLISHED_BEFORE_GAP
        measures[f"gap_below_{threshold:g}"] = functools.partial(_below, threshold=threshold)
        measures[f"gap_below_{share:.2f}_of_before"] = functools.partial(_below, threshold=share * before_gap)
    for kind in KINDS:
        measures[f"{kind}_rate"] = functools.partial(_flagged, kind=kind)
    measures["degenerate_rate"] = lambda d: _mean([float(any(f.values())) for f in d.flags])
    measures["duplicate_rate"] = lambda d: _mean([float(text in shared) for text in d.texts])
    values = {name: [x for d in documents if math.isfinite(x := measure(d))] for name, measure in measures.items()}
    return {name: bootstrap_interval(column) for name, column in values.items() if column}


def gap_change(before: Evaluation, after: Evaluation, resamples: int = 9999, seed: int = 0) -> Estimate:
    """Relative change of the mean gap, paired by document, with its bootstrap interval; -0.2 is 20 % less."""
    pairs = [(b.gap, a.gap) for b, a in zip(before.documents, after.documents, strict=True)]
    table = np.array([pair for pair in pairs if all(map(math.isfinite, pair))])
    value = float(table[:, 1].mean() / table[:, 0].mean() - 1)
    draws = np.random.default_rng(seed).integers(len(table), size=(resamples, len(table)))
    means = table[draws].mean(1)
    low, high = np.quantile(means[:, 1] / means[:, 0] - 1, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(table))


def summary(found: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Estimates as JSON."""
    return {name: asdict(estimate) for name, estimate in found.items()}


def _below(document: Document, threshold: float) -> float:
    return float(document.gap < threshold) if math.isfinite(document.gap) else float("nan")


def _flagged(document: Document, kind: str) -> float:
    return _mean([float(found[kind]) for found in document.flags])


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else float("nan")


def counts(found: Evaluation, suffix: str) -> dict[str, tuple[int, int]]:
    """Hits and trials behind the rates over written spans, named as the metrics are."""
    judged = [(d, x) for d in found.documents for x in d.logits if math.isfinite(x)]
    written = [f for d in found.documents for f in d.flags]
    shared = found.texts_of_several
    hits = {
        "positive_rate": (sum(x > 0 for _, x in judged), len(judged)),
        "above_human_rate": (sum(x > d.human_logit for d, x in judged), len(judged)),
        "degenerate_rate": (sum(any(f.values()) for f in written), len(written)),
        "duplicate_rate": (sum(text in shared for d in found.documents for text in d.texts), len(written)),
    }
    return {
        f"{name}{suffix}": pair
        for name, pair in (hits | {f"{k}_rate": (sum(f[k] for f in written), len(written)) for k in KINDS}).items()
    }
