"""The phases of one cell: corpus, stage 1, evaluation, training, evaluation. Loads torch.

Stage 1 depends on no arm, so its result is kept in the cache and shared by the cells that agree on it. A cell that was
killed trains on from its last checkpoint; what comes before is repeated, or read from the cache, with the same result.

Several processes share the rollouts of each step and the gradient; the rest each of them does, and the first writes.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.cells import ranks
from research.cells.cell import Cell
from research.cells.seeding import stable_seed
from research.errors import ConfigurationError
from research.models.adapters import attach_lora, detach
from research.models.base import Base, load_base
from research.sampling.build import build_sampler
from research.sampling.interface import Sampler
from research.task import Result
from research.tasks.imposter import corpus as corpora
from research.tasks.imposter import discriminator as discriminators
from research.tasks.imposter import evaluate as evaluation
from research.tasks.imposter.adversary import AdversarialReward, CotrainRound, SaveAt, save
from research.tasks.imposter.corpus import Corpus, Span
from research.tasks.imposter.discriminator import Discriminator
from research.tasks.imposter.judging import Cotraining, Pair, accuracy, stage1
from research.tasks.imposter.settings import ARMS
from research.tasks.imposter.task import Imposter, estimator
from research.tasks.imposter.trajectory import read, trajectory
from research.tasks.imposter.writing import Unsynced, Writer, refuse_unprovable
from research.training.auxiliary import BehaviourCloning
from research.training.policy import PolicyConfig, PolicyResult, train_policy
from research.training.rollouts import Prompt

if TYPE_CHECKING:
    from peft import PeftModel

AT_MOST = {"stage1": 1500, "train": 600, "evaluation": 200}  # spans of a pool whose size is left open


@dataclass
class Stage1:
    """The original discriminator, what it was trained on, and how well it tells held-out spans apart."""

    discriminator: Discriminator
    pairs: list[Pair]
    right: int
    judged: int
    final_loss: float
    dropped: int


def run(task: Imposter, cell: Cell) -> Result:
    """Run or resume one cell and return its result."""
    config, arm = cell.config, ARMS[task.arm]
    if ranks.world_size() > 1 and config.sampler.kind == "vllm_server":
        raise ConfigurationError(
            f"sampler=vllm_server takes its weights from one process, and {ranks.world_size()} were started; use "
            "sampler=transformers or sampler=vllm."
        )
    with cell.phase("load"):
        base: Base = cell.shared.get(("base", str(asdict(config.model))), lambda: load_base(config.model))
        writer = Writer(
            base.tokenizer, task.corpus.form, task.generation, config.model.thinking, config.model.context,
            (task.corpus.min_words, task.corpus.max_words) if task.same_lengths else None,
        )  # fmt: skip
    with cell.phase("corpus"):
        corpus = read_corpus(task, cell, base, writer)
    policy = attach_lora(base, config.adapter, config.seed)
    try:
        with contextlib.closing(build_sampler(config, policy, base.tokenizer)) as sampler:
            with cell.phase("stage1"), ranks.first_goes_first():
                original = first_stage(task, cell, base, corpus, writer, sampler)
            held_out = corpus.spans["evaluation"][: task.eval.documents]
            with cell.phase("evaluate"):
                before = evaluation.evaluate(
                    writer, sampler, original.discriminator, held_out, task.eval, config.seed, base
                )
            judge = Cotraining(
                copy.deepcopy(original.discriminator), task.cotrain, task.discriminator.batch_size, config.seed
            )
            judge.remember(original.pairs)
            used: Any = sampler
            if not arm.sync:
                if config.sampler.check:
                    refuse_unprovable(sampler)
                used = Unsynced(sampler, config.sampler.check)
            with cell.phase("train"):
                trained = _train(task, cell, policy, base, corpus, writer, used, judge)
            with cell.phase("evaluate"):
                after = evaluation.evaluate(
                    writer, used, original.discriminator, held_out, task.eval, config.seed, base
                )
            if cell.writes:
                save(cell.scratch / "final", policy, judge)
    finally:
        detach(base, policy)
    ranks.from_first(None)  # the first process has written its last line of metrics.jsonl
    cell.write_completions([*before.rows("before"), *after.rows("after")])
    return _result(task, cell, corpus, original, before, after, judge, trained)


def read_corpus(task: Imposter, cell: Cell, base: Base, writer: Writer) -> Corpus:
    """The pools, each as large as the task needs, of spans that the generator has room to be asked for."""
    asked, config = task.discriminator, cell.config
    assert config.batch_size is not None
    need = {
        "stage1": asked.pairs or 2,
        "train": task.prompts or config.batch_size // task.candidates,
        "cotrain": task.cotrain.pairs if task.cotrain.every else 0,
        "evaluation": max(task.eval.documents, asked.heldout_pairs or 1),
    }
    sizes = {"train": task.prompts, "cotrain": None, "stage1": asked.pairs, "evaluation": asked.heldout_pairs}
    whole = [pool for pool, size in sizes.items() if size is None]
    found = corpora.build(task.corpus, need, config.data_seed, base.tokenizer, whole, writer.fits)
    for pool, most in AT_MOST.items():
        if pool in whole:
            found.spans[pool] = found.spans[pool][: max(most, need[pool])]
    counted = ", ".join(f"{pool} {len(spans)}" for pool, spans in found.spans.items())
    skipped = ", ".join(f"{reason} {n}" for reason, n in sorted(found.skipped.items())) or "none"
    cell.progress(f"corpus: {counted} spans; skipped: {skipped}")
    return found


def first_stage(task: Imposter, cell: Cell, base: Base, corpus: Corpus, writer: Writer, sampler: Sampler) -> Stage1:
    """Train the original discriminator on human spans against the base generator's, or read it from the cache."""
    config = cell.config
    depends_on = {
        "weights": base.weights_hash, "sampler": config.sampler.kind, "seed": config.seed, "form": task.corpus.form,
        "discriminator": asdict(task.discriminator), "generation": asdict(task.generation),
        "words": writer.words,
        "spans": [[asdict(span) for span in corpus.spans[pool]] for pool in ("stage1", "evaluation")],
    }  # fmt: skip
    directory = cell.cache / "imposter_stage1" / _digest(depends_on)
    if not (directory / "pairs.json").exists():
        _make_stage1(task, cell, corpus, writer, sampler, base, directory)
    record = json.loads((directory / "pairs.json").read_text())
    judge = discriminators.load(directory / "discriminator", task.discriminator, base.device)
    pairs = [Pair(Span(**row["human"]), row["generated"]) for row in record["pairs"]]
    found = Stage1(judge, pairs, record["right"], record["judged"], record["final_loss"], record["dropped"])
    cell.progress(f"stage 1: held-out accuracy {found.right / found.judged:.3f} ({found.right} of {found.judged})")
    return found


def _make_stage1(
    task: Imposter, cell: Cell, corpus: Corpus, writer: Writer, sampler: Sampler, base: Base, directory: Path
) -> None:
    settings, seed = task.discriminator, cell.config.seed
    judge = discriminators.build(
        settings, base.tokenizer, corpus.spans["stage1"][:100], seed, base.device,
        base.model.get_input_embeddings().weight,
    )  # fmt: skip
    pairs, dropped = _base_pairs(
        writer, sampler, corpus.spans["stage1"], settings.per_span, stable_seed(seed, "stage1")
    )
    held_out, _ = _base_pairs(
        writer, sampler, corpus.spans["evaluation"][: settings.heldout_pairs], 1, stable_seed(seed, "held out")
    )
    cell.progress(f"stage 1: {len(pairs)} pairs written, {dropped} spans dropped: empty, or of other lengths")
    losses = stage1(judge, pairs, seed)
    right, judged = accuracy(judge, held_out)
    partial = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    judge.save(partial / "discriminator")
    record = {
        "right": right, "judged": judged, "final_loss": sum(losses[-20:]) / len(losses[-20:]), "dropped": dropped,
        "pairs": [{"human": asdict(pair.human), "generated": pair.generated} for pair in pairs],
    }  # fmt: skip
    (partial / "pairs.json").write_text(json.dumps(record))
    if directory.exists():  # another process was faster
        shutil.rmtree(partial)
    else:
        os.rename(partial, directory)


def _digest(depends_on: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]


def _base_pairs(writer: Writer, sampler: Sampler, spans: list[Span], n: int, seed: int) -> tuple[list[Pair], int]:
    """Human spans with what the base generator writes in their place; what no judge is shown is dropped and counted.

    Raises ConfigurationError when nothing is left.
    """
    written = writer.write(sampler, spans, n, seed)
    pairs = [Pair(span, w.text) for span, ws in zip(spans, written, strict=True) for w in ws if writer.judgeable(w)]
    if not pairs:
        raise ConfigurationError(
            f"of {n * len(spans)} spans that the generator wrote none can be shown to the discriminator: all are empty, "
            "or longer or shorter than task.same_lengths allows. Raise task.generation.max_tokens, or lower task.corpus.min_words"
        )
    return pairs, n * len(spans) - len(pairs)


def _train(
    task: Imposter,
    cell: Cell,
    policy: PeftModel,
    base: Base,
    corpus: Corpus,
    writer: Writer,
    sampler: Any,
    judge: Cotraining,
) -> PolicyResult:
    config, arm = cell.config, ARMS[task.arm]
    assert config.steps is not None and config.lr is not None and config.batch_size is not None
    prompts = [Prompt(writer.prompt(span), {"span": span}) for span in corpus.spans["train"]]
    cloning = BehaviourCloning(lambda group: writer.target(group.prompt.record["span"]), task.bc, rows=16)
    callbacks: list[Any] = []
    if task.cotrain.every:
        callbacks.append(CotrainRound(judge, writer, corpus.spans["cotrain"], config.seed))
    if task.save_at:
        callbacks.append(SaveAt(task.save_at, cell.scratch / "checkpoints", judge))
    return train_policy(
        policy, base.tokenizer, prompts, AdversarialReward(judge, writer, task.reward, arm.reinforce),
        sampler=sampler,
        config=PolicyConfig(
            steps=config.steps, lr=config.lr, batch_size=config.batch_size, group_size=task.candidates,
            max_tokens=task.generation.max_tokens, stop_token_ids=(base.tokenizer.eos_token_id,),
            temperature=task.generation.temperature, top_p=task.generation.top_p, loss_type=task.loss_type,
            kl_beta=task.kl, sync_every=task.sync_every, seed=config.seed, optim=task.optim,
        ),
        scratch=cell.scratch, advantages=estimator(config), auxiliary=[cloning] if arm.clone else [],
        callbacks=callbacks, log=cell.log, rewind=cell.rewind, progress=cell.progress,
    )  # fmt: skip


def _result(
    task: Imposter, cell: Cell, corpus: Corpus, original: Stage1, before: evaluation.Evaluation,
    after: evaluation.Evaluation, judge: Cotraining, trained: PolicyResult,
) -> Result:  # fmt: skip
    before_gap = evaluation.estimates(before, 0.0)["gap"].value
    found = {name: evaluation.estimates(e, before_gap) for name, e in (("before", before), ("after", after))}
    change = evaluation.gap_change(before, after)
    metrics: dict[str, float | bool | None] = {name: estimate.value for name, estimate in found["after"].items()}
    metrics |= {f"{name}_before": estimate.value for name, estimate in found["before"].items()}
    metrics |= {**after.mauve, **{f"{name}_before": value for name, value in before.mauve.items()}}
    metrics |= {
        "discriminator_accuracy": original.right / original.judged,
        "gap_change": change.value, "gap_change_low": change.low, "gap_change_high": change.high,
        "cotrain_rounds": float(judge.rounds), "kl_drift": trained.metrics.get("kl_drift"),
    }  # fmt: skip
    counts = {"discriminator_accuracy": (original.right, original.judged)}
    counts |= evaluation.counts(after, "") | evaluation.counts(before, "_before")
    cell.progress(
        f"{task.arm}: gap {before_gap:.3g} -> {metrics['gap']:.3g} ({100 * change.value:+.1f} %, "
        f"{100 * change.low:+.1f} to {100 * change.high:+.1f}), degenerate {metrics['degenerate_rate_before']:.3f} -> "
        f"{metrics['degenerate_rate']:.3f}"
    )
    return Result(
        metrics, counts,
        {
            "evaluation": {name: evaluation.summary(e) for name, e in found.items()},
            "training": trajectory(read(cell.directory / "metrics.jsonl")), "gap_change": asdict(change),
            "skipped": dict(corpus.skipped),
            "stage1": {"pairs": len(original.pairs), "dropped": original.dropped, "final_loss": original.final_loss},
        },
    )  # fmt: skip
