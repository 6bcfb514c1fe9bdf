"""The phases of one cell of the shared-model variant: corpus, training of both tasks in turn, MAUVE. Loads torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from research.cells.cell import Cell
from research.config import ModelConfig
from research.material.fill_prompts import THINK_OPENING, continue_messages, parse_thought
from research.models.adapters import attach_lora, detach
from research.models.base import Base, load_base
from research.sampling.build import build_sampler
from research.task import Result
from research.tasks.imposter import corpus as corpora
from research.tasks.imposter.corpus import Span
from research.tasks.imposter.evaluate import mauve_of
from research.tasks.imposter.shared_judge import HeadJudge, ReasoningJudge, Sample
from research.tasks.imposter.shared_task import ImposterShared
from research.tasks.imposter.traces import export_traces
from research.tasks.imposter.trajectory import read
from research.training.callbacks import Moment
from research.training.policy import PolicyConfig, train_policy
from research.training.rollouts import Group, Prompt, Scores

if TYPE_CHECKING:
    from research.sampling.interface import Sampler


def run(task: ImposterShared, cell: Cell) -> Result:
    """Run or resume one cell and return its result."""
    config = cell.config
    assert config.steps is not None and config.lr is not None and config.batch_size is not None
    with cell.phase("load"):
        base: Base = cell.shared.get(("base", str(asdict(config.model))), lambda: load_base(config.model))
        options = {} if config.model.thinking is None else {"enable_thinking": config.model.thinking}
    with cell.phase("corpus"):
        need = {"train": task.prompts, **({"evaluation": task.export} if task.export else {})}
        corpus = corpora.build(task.corpus, need, config.data_seed, base.tokenizer)
        prompts = [Prompt(prompt_ids(base.tokenizer, s, options), {"span": s}) for s in corpus.spans["train"]]
    policy = attach_lora(base, config.adapter, config.seed)
    try:
        with contextlib.closing(build_sampler(config, policy, base.tokenizer)) as sampler:
            common = (policy, base.tokenizer, task.d_lr, task.d_scale, task.optim.betas, config.steps, config.seed)
            judge = (
                HeadJudge(*common) if task.judge == "head"
                else ReasoningJudge(*common, task.value_threshold, task.reasoning_tokens + 12, options)
            )  # fmt: skip
            reward = SharedReward(task, judge, sampler, base.tokenizer)
            with cell.phase("train"):
                trained = train_policy(
                    policy, base.tokenizer, prompts, reward, sampler=sampler,
                    config=PolicyConfig(
                        steps=config.steps, lr=config.lr, batch_size=config.batch_size, group_size=task.candidates,
                        max_tokens=task.max_tokens(), stop_token_ids=(base.tokenizer.eos_token_id,),
                        temperature=task.temperature, loss_type="grpo", kl_beta=task.kl, seed=config.seed,
                        optim=task.optim,
                    ),
                    scratch=cell.scratch, advantages=(config.advantages or {}).get("kind", "ema"),
                    callbacks=[JudgeTurn(judge, reward)], log=cell.log, rewind=cell.rewind, progress=cell.progress,
                )  # fmt: skip
            exported = {}
            if task.export:
                with cell.phase("export"):
                    exported = export_traces(
                        policy, base.tokenizer, sampler, corpus.spans["evaluation"], options, task.reasoning_tokens,
                        config.seed, cell.directory / "traces.jsonl",
                    )  # fmt: skip
            policy.save_pretrained(str(cell.scratch / "final/adapter"))
            torch.save(judge.head.state_dict(), cell.scratch / "final/discriminator_head.pt")
    finally:
        detach(base, policy)
    with cell.phase("mauve"):
        measured = measure(task, base, reward.written)
    cell.write_completions({"truth": truth, "text": text} for truth, text in reward.written)
    rows = read(cell.directory / "metrics.jsonl")
    tail = rows[-max(1, len(rows) // 10) :]
    means = {
        name: sum(values) / len(values)
        for name in ("reward", "judge/loss", "judge/accuracy", "judge/value", "p_real", "gated_rate", "unclosed_rate")
        if (values := [row[name] for row in tail if row.get(name) is not None])
    }
    cell.progress(f"mauve {measured['mauve']} over {int(measured['sequences'] or 0)} sequences")
    return Result(
        {
            **measured,
            **{n.replace("judge/", "judge_"): v for n, v in means.items()},
            "kl_drift": trained.metrics.get("kl_drift"),
        },
        extra={"skipped": dict(corpus.skipped), "exported": exported},
    )


def prompt_ids(tokenizer: Any, span: Span, options: Mapping[str, Any]) -> list[int]:
    """The continuation prompt, its assistant turn opened with a think tag."""
    messages = continue_messages(span.before)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return tokenizer.encode(text + THINK_OPENING, add_special_tokens=False)


class SharedReward:
    """The judge's pay for each completion, 0 outside the desired length; the last sequences are kept for MAUVE.

    A reply that never closes its think tag, or writes nothing after it, has no completion: it earns 0 and is counted.
    """

    def __init__(self, task: ImposterShared, judge: Any, sampler: Sampler, tokenizer: Any) -> None:
        self.task, self.judge, self.sampler, self.tokenizer = task, judge, sampler, tokenizer
        self.written: list[tuple[str, str]] = []
        self.samples: list[Sample] = []

    def __call__(self, groups: Sequence[Group], step: int) -> Scores:
        spans = [group.prompt.record["span"] for group in groups for _ in group.rollouts]
        thoughts = [parse_thought(rollout.text) for group in groups for rollout in group.rollouts]
        texts = [t.answer if t.closed and t.answer.strip() else "" for t in thoughts]
        generated = [
            Sample(s.before, _joined(s.before, text), False) for s, text in zip(spans, texts, strict=True) if text
        ]
        paid = iter(self.judge.rewards(generated, self.sampler, step)) if generated else iter(())
        pay = [next(paid) if text else 0.0 for text in texts]
        fits = [bool(text) and self._fits(s, text) for s, text in zip(spans, texts, strict=True)]
        flat = iter([p if fit else 0.0 for p, fit in zip(pay, fits, strict=True)])
        self.samples = [
            *generated,
            *(Sample(g.prompt.record["span"].before, g.prompt.record["span"].text, True) for g in groups),
        ]
        self.written = [*self.written, *((s.text, t) for s, t in zip(spans, texts, strict=True) if t)][
            -self.task.last :
        ]
        metrics = {
            "p_real": sum(pay) / max(1, len(generated)),
            "gated_rate": sum(bool(t) and not fit for t, fit in zip(texts, fits, strict=True)) / len(texts),
            "unclosed_rate": sum(not t.closed for t in thoughts) / len(thoughts),
            "empty_rate": sum(t.closed and not text for t, text in zip(thoughts, texts, strict=True)) / len(texts),
            "reasoning_words": sum(len(t.reasoning.split()) for t in thoughts) / len(thoughts),
        }
        return Scores([[next(flat) for _ in group.rollouts] for group in groups], metrics=metrics)

    def _fits(self, span: Span, text: str) -> bool:
        truth, written = (len(self.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (span.text, text))
        return abs(written - truth) <= self.task.length_tolerance * truth

    def state_dict(self) -> dict[str, Any]:
        return {"written": list(self.written)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.written = [tuple(pair) for pair in state["written"]]


class JudgeTurn:
    """After each step of the generator task, one of the discriminator task, on the same adapter and the same text."""

    every = 1

    def __init__(self, judge: Any, reward: SharedReward) -> None:
        self.judge, self.reward = judge, reward

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        return self.judge.learn(self.reward.samples, moment.sampler, moment.step)

    def state_dict(self) -> dict[str, Any]:
        return self.judge.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.judge.load_state_dict(state)


def measure(task: ImposterShared, base: Base, written: Sequence[tuple[str, str]]) -> dict[str, float | bool | None]:
    """MAUVE of the last sequences against the truths of the same prompts; null when fewer than 4 could be compared."""
    if len(written) < 4:
        return {"mauve": None, "mauve_star": None, "frontier_integral": None, "sequences": float(len(written))}
    model = base
    if task.features is not None:
        model = load_base(replace(ModelConfig(), name="features", path=task.features), base.device)
    truths, texts = zip(*written, strict=True)
    buckets = task.buckets or max(2, len(written) // 10)
    counts = {"mauve_buckets": float(buckets), "sequences": float(len(written))}
    return {**mauve_of(model, truths, texts, buckets), **counts}


def _joined(prefix: str, completion: str) -> str:
    """A completion as it continues its prefix: with the space that a model leaves out after its think tag."""
    return completion if completion[0].isspace() or not completion[0].isalnum() else f" {completion}"
