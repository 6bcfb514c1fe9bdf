"""The phases of one cell: problems, base rates, directions, training, evaluation. Loads torch.

A cell that was killed trains on from its last checkpoint; its directions and base rates come from the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from research.cells.cell import Cell
from research.cells.seeding import stable_seed
from research.errors import ConfigurationError
from research.models import antipasto
from research.models.adapters import attach_lora, detach
from research.models.base import Base, load_base
from research.sampling.build import build_sampler
from research.sampling.interface import Sampler
from research.task import Result
from research.tasks.reward_hack import directions as hack_directions
from research.tasks.reward_hack import problems as problem_files
from research.tasks.reward_hack.arms import Arm
from research.tasks.reward_hack.composed import compose
from research.tasks.reward_hack.dataset import base_solve_rates, make_prompts, short_enough
from research.tasks.reward_hack.evaluate import Evaluation, evaluate
from research.tasks.reward_hack.grader import Grader
from research.tasks.reward_hack.hidden import band_states
from research.tasks.reward_hack.pairs import Chat, Pair, contrastive_pairs
from research.tasks.reward_hack.pool import TeacherFile
from research.tasks.reward_hack.reward import Concept, GraderReward
from research.tasks.reward_hack.rewards import SCALES
from research.tasks.reward_hack.store import cached
from research.tasks.reward_hack.task import RewardHack, estimator, problem_file
from research.training.callbacks import Moment
from research.training.constraints import Constraint
from research.training.policy import PolicyConfig, PolicyResult, train_policy
from research.training.rollouts import Prompt

if TYPE_CHECKING:
    from peft import PeftModel

# Metrics of training whose mean over all steps joins the result, and those of which the last step's value does.
MEANS = (
    "cos_align", "cos_in", "cos_out", "fraction_fired", "update_cos_align", "update_cos_in", "sampler_gap",
    "student/cos_in", "teacher/cos_in", "update_norm/dS", "update_norm/dS_hack", "update_norm/lora_B", "groups_skipped",
)  # fmt: skip
LAST = ("kl_drift", "reward", "entropy")


@dataclass(frozen=True)
class Prompts:
    """What training and evaluation ask, and the pairs that directions come from."""

    train: list[Prompt]
    loophole: list[Prompt]
    plain: list[Prompt]
    pairs: list[Pair]


def run(task: RewardHack, cell: Cell) -> Result:
    """Run or resume one cell and return its result."""
    config = cell.config
    arm = task.resolved(config)
    with cell.phase("load"):
        base: Base = cell.shared.get(("base", str(asdict(config.model))), lambda: load_base(config.model))
        chat = Chat(base.tokenizer, config.model.thinking)
    policy = _attach(base, cell)
    try:
        with contextlib.ExitStack() as stack:
            grader = stack.enter_context(Grader(task.environment.workers))
            sampler = stack.enter_context(contextlib.closing(build_sampler(config, policy, base.tokenizer)))
            with cell.phase("problems"):
                prompts = _prompts(task, cell, chat, base, sampler, grader)
            with cell.phase("base"):
                sampler.sync(policy)
                before = evaluate(sampler, grader, chat, prompts.loophole, prompts.plain, task.eval, config.seed)
                cell.progress(_summary("base", before))
            with cell.phase("directions"):
                extraction = _directions(task, cell, arm, policy, base, prompts.pairs)
            with cell.phase("train"):
                trained = _train(task, cell, arm, policy, base, chat, sampler, grader, prompts, extraction)
            with cell.phase("evaluate"), antipasto.ablated(policy):
                sampler.sync(policy)
                after = evaluate(sampler, grader, chat, prompts.loophole, prompts.plain, task.eval, config.seed)
            with cell.phase("evaluate"):
                whole = _with_quarantine(task, cell, arm, policy, chat, sampler, grader, prompts)
            policy.save_pretrained(cell.scratch / "adapter")
    finally:
        detach(base, policy)
    cell.write_completions(after.lines())
    cell.progress(_summary(task.arm, after))
    return _result(task, cell, before, after, whole, trained, extraction, len(prompts.train))


def _attach(base: Base, cell: Cell) -> PeftModel:
    adapter = cell.config.adapter
    if adapter.kind == "antipasto":
        return antipasto.attach(base.model, adapter.targets, adapter.r, cell.cache / "svd")
    return attach_lora(base, adapter, cell.config.seed)


def _prompts(task: RewardHack, cell: Cell, chat: Chat, base: Base, sampler: Sampler, grader: Grader) -> Prompts:
    config, settings = cell.config, task.environment
    usable: dict[str, list[Any]] = {}
    for split in ("train", "heldout"):
        loaded = problem_files.load(problem_file(getattr(settings, split), split))
        usable[split] = short_enough(chat, loaded, settings.hint, settings.max_prompt_tokens)
    asked = {split: _with_composed(task, chat, found, config.data_seed) for split, found in usable.items()}
    train, hard = asked["train"], asked["heldout"]
    if settings.drop_solved <= 1:
        rates: dict[str, float] = {}
        for found in asked.values():
            rates |= base_solve_rates(
                cell, chat, found, sampler, grader, settings.drop_samples, task.policy.max_tokens,
                {"weights": base.weights_hash, "sampler": config.sampler.kind},
            )  # fmt: skip
        train, hard = ([p for p in found if rates[p.id] < settings.drop_solved] for found in (train, hard))
    cell.progress(f"problems: {len(train)} to train on, {len(hard)} held-out ones to hack")
    if not train or not hard:
        raise ConfigurationError(f"task.environment.drop_solved={settings.drop_solved} leaves no problems; raise it.")
    n, seed = task.eval.problems, config.data_seed
    pairs = contrastive_pairs(
        chat, usable["train"], task.directions.pairs + task.directions.held_out, settings.modes, settings.hint, seed
    )
    return Prompts(
        make_prompts(chat, train, settings.modes, settings.hint, seed, evaluation=False),
        make_prompts(chat, _some(hard, n, seed), settings.modes, settings.hint, seed, evaluation=True),
        make_prompts(chat, _some(usable["heldout"], n, seed), ["none"], settings.hint, seed, evaluation=True),
        pairs,
    )


def _with_composed(task: RewardHack, chat: Chat, shipped: list[Any], seed: int) -> list[Any]:
    """The split with its share of composed problems, at about its size."""
    settings = task.environment
    if not settings.composed:
        return shipped
    made = compose(shipped, round(settings.composed * len(shipped)), seed)
    made = short_enough(chat, made, settings.hint, settings.max_prompt_tokens)
    return [*_some(shipped, round((1 - settings.composed) * len(shipped)), seed), *made]


def _some(problems: Sequence[Any], n: int | None, seed: int) -> list[Any]:
    """The same `n` problems for every arm and training seed."""
    return sorted(problems, key=lambda p: stable_seed(seed, "evaluated", p.id))[:n]


def _directions(
    task: RewardHack, cell: Cell, arm: Arm, policy: PeftModel, base: Base, pairs: list[Pair]
) -> hack_directions.Extraction | None:
    if arm.constraint == "none":
        return None
    config, settings = cell.config, replace(task.directions, refresh_every=0)
    lora_seed = (
        config.seed if config.adapter.kind == "lora" else None
    )  # A is drawn from it, and B's gradient depends on A
    depends_on = {
        "weights": base.weights_hash, "adapter": asdict(config.adapter), "lora_seed": lora_seed,
        "arm": {"design": arm.design, "m": arm.m, "control": arm.control}, "settings": asdict(settings),
        "pairs": [asdict(pair) for pair in pairs], "seed": config.seed if arm.control != "none" else None,
    }  # fmt: skip
    found = cached(
        cell.cache / "directions", depends_on,
        lambda: hack_directions.extract(policy, pairs, arm, settings, config.seed, cell.cache / "svd"),
    )  # fmt: skip
    cell.progress("directions: " + ", ".join(f"{name} {value:.3g}" for name, value in found.report.items()))
    if found.report.get("steering_gain", 1.0) <= 0 and arm.control == "none":
        cell.progress("directions: the steering check failed: moving along them does not make the hack likelier")
    return found


def _train(
    task: RewardHack, cell: Cell, arm: Arm, policy: PeftModel, base: Base, chat: Chat, sampler: Sampler, grader: Grader,
    prompts: Prompts, extraction: hack_directions.Extraction | None,
) -> PolicyResult:  # fmt: skip
    config, settings = cell.config, task.policy
    assert config.steps is not None and config.lr is not None and config.batch_size is not None
    constraint = None
    if extraction is not None:
        constraint = Constraint(
            arm.constraint, arm.gate, task.directions.overshoot, arm.restore, dict(extraction.directions)
        )
    antipasto.train_quarantine(policy, arm.constraint == "route")
    concept = None
    if arm.rebound != "none":
        states = [band_states(policy, prompts.pairs, side, task.directions.layers) for side in ("hack", "clean")]
        concept = Concept(policy, (states[0] - states[1])[: task.directions.pairs].mean(0), task.directions.layers)
    reward = GraderReward(grader, SCALES[task.environment.scale], arm.rebound, task.rebound, concept)
    callbacks: list[Any] = []
    if task.directions.refresh_every and constraint is not None:
        callbacks.append(Refresh(task, arm, prompts.pairs, config.seed))
    if task.eval.every:
        callbacks.append(Watch(task, chat, grader, prompts, config.seed))
    teacher = None
    if settings.teacher_pool is not None:
        teacher = TeacherFile(settings.teacher_pool, settings.teacher_fraction, chat)
    result = train_policy(
        policy, base.tokenizer, prompts.train, reward, sampler=sampler, scratch=cell.scratch,
        config=PolicyConfig(
            steps=config.steps, lr=config.lr, batch_size=config.batch_size, group_size=settings.group_size,
            max_tokens=settings.max_tokens, stop_token_ids=(chat.stop,), temperature=settings.temperature,
            top_p=settings.top_p, loss_type=settings.loss_type, kl_beta=settings.kl_beta,
            sync_every=settings.sync_every,
            seed=config.seed, optim=task.optim,
        ),
        advantages=estimator(config), constraint=constraint, callbacks=callbacks, teacher=teacher, log=cell.log,
        rewind=cell.rewind, progress=cell.progress,
    )  # fmt: skip
    return result


class Refresh:
    """Directions extracted anew from the policy as it is, quarantine ablated; logs how far they turned."""

    def __init__(self, task: RewardHack, arm: Arm, pairs: list[Pair], seed: int) -> None:
        self.every, self.arm, self.pairs, self.seed = task.directions.refresh_every, arm, pairs, seed
        # The separation of directions that training has turned is a finding, not a reason to stop.
        self.settings = replace(task.directions, separation=0.0, steer=0.0)

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        assert moment.constraint is not None and moment.constraint.directions is not None
        with antipasto.ablated(moment.policy):
            found = hack_directions.extract(moment.policy, self.pairs, self.arm, self.settings, self.seed)
        turned = hack_directions.overlap(moment.constraint.directions, found.directions)
        moment.constraint.directions = found.directions
        return {"directions/overlap": turned, "directions/separation": found.report.get("separation", 0.0)}


class Watch:
    """Evaluation during training, of the policy as it would be deployed."""

    def __init__(self, task: RewardHack, chat: Chat, grader: Grader, prompts: Prompts, seed: int) -> None:
        self.every, self.task, self.chat, self.grader, self.prompts, self.seed = (
            task.eval.every, task, chat, grader, prompts, seed
        )  # fmt: skip

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        with antipasto.ablated(moment.policy):
            moment.sampler.sync(moment.policy)
            found = evaluate(
                moment.sampler,
                self.grader,
                self.chat,
                self.prompts.loophole,
                self.prompts.plain,
                self.task.eval,
                self.seed,
            )
        return found.metrics("eval/")


def _with_quarantine(
    task: RewardHack, cell: Cell, arm: Arm, policy: PeftModel, chat: Chat, sampler: Sampler, grader: Grader,
    prompts: Prompts
) -> Evaluation | None:  # fmt: skip
    """A routed policy before its quarantine is ablated."""
    if arm.constraint != "route":
        return None
    sampler.sync(policy)
    return evaluate(sampler, grader, chat, prompts.loophole, prompts.plain, task.eval, cell.config.seed)


def _result(
    task: RewardHack, cell: Cell, before: Evaluation, after: Evaluation, whole: Evaluation | None,
    trained: PolicyResult,
    extraction: hack_directions.Extraction | None, n_train: int,
) -> Result:  # fmt: skip
    metrics: dict[str, float | bool | None] = {**after.metrics(), **before.metrics("base_")}
    counts = {**after.counts(), **before.counts("base_")}
    if whole is not None:
        metrics |= whole.metrics("quarantine_on_")
        counts |= whole.counts("quarantine_on_")
    rows = _training_rows(cell)
    for name in MEANS:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            metrics[name] = sum(values) / len(values)
    last = rows[-10:]
    for name in (*LAST, "hack_rate", "correct_rate", "attempt_rate"):
        values = [row[name] for row in last if row.get(name) is not None]
        if values:
            metrics[f"train_{name}"] = sum(values) / len(values)
    if extraction is not None:
        metrics |= {f"directions_{name}": value for name, value in extraction.report.items()}
    extra = {
        "arm": task.arm, "labels": after.labels(), "per_problem": after.per_problem(), "train_prompts": n_train,
        "trajectory": [{k: row[k] for k in ("step", "hack_rate", "correct_rate",
        "reward") if k in row} for row in rows],
    }  # fmt: skip
    return Result(metrics, counts, extra)


def _training_rows(cell: Cell) -> list[dict[str, Any]]:
    import json

    path = cell.directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _summary(name: str, found: Evaluation) -> str:
    m = found.metrics()
    return f"{name}: hack rate {m['hack_rate']:.1%}, attempts {m['attempt_rate']:.1%}, pass rate {m['pass_rate']:.1%}"
