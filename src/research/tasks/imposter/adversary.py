"""The adversary in the training loop: rewards from the discriminator, and the rounds in which it learns along."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.cells import ranks
from research.cells.seeding import stable_seed
from research.tasks.imposter.corpus import Span
from research.tasks.imposter.degenerate import flags
from research.tasks.imposter.discriminator import Scored
from research.tasks.imposter.judging import Cotraining, Pair, chance_loss
from research.tasks.imposter.writing import Writer, Written
from research.training.callbacks import Moment
from research.training.rollouts import Group, Scores

NAN = float("nan")


class AdversarialReward:
    """The discriminator's logit of each written span: raw, squashed to (0, 1), or as a rank within its group.

    An empty span cannot be judged: its reward is NaN, so its advantage is 0, and it is counted. Where lengths must match,
    spans that the judge is not shown (`Writer.judgeable`) earn one standard deviation less than the lowest reward of the
    step: a judge gives most of what it recognises much the same logit, which must be better than none. Without
    `reinforce` every reward is 0, and the logits are only logged.
    """

    def __init__(self, judge: Cotraining, writer: Writer, kind: str, reinforce: bool) -> None:
        self.judge, self.writer, self.kind, self.reinforce = judge, writer, kind, reinforce

    def __call__(self, groups: Sequence[Group], step: int) -> Scores:
        human = [group.prompt.record["span"] for group in groups]
        written = [[self.writer.read(r.text, r.finish_reason) for r in group.rollouts] for group in groups]
        shown = [[self.writer.judgeable(w) for w in ws] for ws in written]
        logits = self._logits(human, written, shown)
        rewards = self._rewards(logits, shown)
        records = [
            [{"text": w.text, "logit": logit} for w, logit in zip(texts, row, strict=True)]
            for texts, row in zip(written, logits, strict=True)
        ]
        human_logits = [scored.span for scored in self.judge.discriminator.score(human)]
        return Scores(rewards, records, self._metrics(human, human_logits, written, logits, shown))

    def _logits(
        self, human: Sequence[Span], written: Sequence[Sequence[Written]], shown: Sequence[Sequence[bool]]
    ) -> list[list[float]]:
        rows = [
            replace(span, text=w.text)
            for span, ws, oks in zip(human, written, shown, strict=True)
            for w, ok in zip(ws, oks, strict=True)
            if ok
        ]
        scored = iter(self.judge.discriminator.score(rows)) if rows else iter(())
        return [[self._logit(next(scored)) if ok else NAN for ok in oks] for oks in shown]

    def _rewards(self, logits: Sequence[Sequence[float]], shown: Sequence[Sequence[bool]]) -> list[list[float]]:
        if not self.reinforce:
            return [[0.0] * len(row) for row in logits]
        rewards = [_transformed(row, self.kind) for row in logits]
        if self.writer.words is None:
            return rewards
        own = [x for row in rewards for x in row if math.isfinite(x)]
        finite = [x for part in ranks.gathered(own) for x in part]  # the step's, whoever scored them
        if not finite:
            return rewards
        floor = min(finite) - (statistics.pstdev(finite) or 1.0)
        return [
            [x if ok else floor for x, ok in zip(row, oks, strict=True)]
            for row, oks in zip(rewards, shown, strict=True)
        ]

    def _logit(self, scored: Scored) -> float:
        if self.judge.discriminator.config.reward_from == "sentences":
            return sum(scored.sentences) / len(scored.sentences)
        return scored.span

    def _metrics(
        self,
        human: Sequence[Span],
        human_logits: Sequence[float],
        written: Sequence[Sequence[Written]],
        logits: Sequence[Sequence[float]],
        shown: Sequence[Sequence[bool]],
    ) -> dict[str, float]:
        judged = [logit for row in logits for logit in row if math.isfinite(logit)]
        texts = [w for row in written for w in row]
        to_judge = [x for row, oks in zip(logits, shown, strict=True) for x, ok in zip(row, oks, strict=True) if ok]
        not_finite = sum(not math.isfinite(x) for x in [*human_logits, *to_judge])
        if not_finite and not judged:
            raise RuntimeError(f"the discriminator gave no finite logit for {len(texts)} spans; its weights went wrong")
        gaps = [h - _mean(row) for h, row in zip(human_logits, logits, strict=True) if math.isfinite(h)]
        gaps = [gap for gap in gaps if math.isfinite(gap)]
        degenerate = [flags(s, w) for s, ws in zip(human, written, strict=True) for w in ws]
        return {
            "gap": _mean(gaps),
            "negative_gap_rate": sum(gap < 0 for gap in gaps) / max(1, len(gaps)),
            "human_logit": _mean(human_logits),
            "generated_logit": _mean(judged),
            "positive_rate": sum(logit > 0 for logit in judged) / max(1, len(judged)),
            "empty_rate": sum(w.text == "" for w in texts) / max(1, len(texts)),
            "not_shown_rate": (len(texts) - len(to_judge)) / max(1, len(texts)),
            "nan_rate": not_finite / (len(human) + len(texts)),
            "degenerate_rate": sum(any(f.values()) for f in degenerate) / max(1, len(degenerate)),
        }


class CotrainRound:
    """Every N steps: fresh spans of the co-training pool from the current generator, and a round."""

    def __init__(self, judge: Cotraining, writer: Writer, pool: Sequence[Span], seed: int) -> None:
        self.judge, self.writer, self.pool, self.seed = judge, writer, pool, seed
        self.every = judge.config.every

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        moment.sampler.sync(moment.policy)
        start = self.judge.rounds * self.judge.config.pairs
        spans = [self.pool[(start + i) % len(self.pool)] for i in range(self.judge.config.pairs)]
        written = self.writer.write(moment.sampler, spans, 1, stable_seed(self.seed, "cotrain", moment.step))
        fresh = [
            Pair(span, row[0].text) for span, row in zip(spans, written, strict=True) if self.writer.judgeable(row[0])
        ]
        metrics = self.judge.round(fresh) if fresh else {"cotrain/fresh": 0}
        self.judge.agree()
        return {
            **metrics,
            "cotrain/dropped": len(spans) - len(fresh),
            "cotrain/chance_loss": chance_loss(self.judge.discriminator.config),
        }

    def state_dict(self) -> dict[str, Any]:
        return self.judge.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.judge.load_state_dict(state)


class SaveAt:
    """Adapter and discriminator as they stand after chosen steps, in formats that PEFT and transformers load."""

    every = 1

    def __init__(self, steps: Sequence[int], directory: Path, judge: Cotraining) -> None:
        self.steps, self.directory, self.judge = frozenset(steps), directory, judge

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        if moment.step in self.steps and ranks.rank() == 0:
            save(self.directory / f"step_{moment.step}", moment.policy, self.judge)
        return {}


def save(directory: Path, policy: Any, judge: Cotraining) -> None:
    """Write `generator/` (a PEFT adapter) and `discriminator/` (a sequence classifier with its tokenizer)."""
    policy.save_pretrained(directory / "generator")
    judge.discriminator.save(directory / "discriminator")


def _transformed(logits: Sequence[float], kind: str) -> list[float]:
    if kind == "sigmoid":
        return [1 / (1 + math.exp(-x)) if math.isfinite(x) else NAN for x in logits]
    if kind == "rank":
        return [float(sum(y < x for y in logits)) if math.isfinite(x) else NAN for x in logits]
    return list(logits)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else NAN
