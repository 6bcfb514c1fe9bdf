"""The phases of one cell: data, base capability, training, evaluation. Loads torch.

A cell that was killed trains on from its last checkpoint; one killed after training goes straight to its evaluation,
which depends on seeds and weights only and so repeats itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.cells import ranks
from research.cells.cell import Cell, write_atomically
from research.models.adapters import attach_lora, detach, lora_scale
from research.models.base import Base, load_base
from research.models.identity import model_inputs
from research.sampling.build import build_sampler
from research.sampling.interface import Sampler
from research.scoring import capability
from research.scoring import questions as letter_questions
from research.task import Result
from research.tasks.zlt_sweep import data, evaluate, selection
from research.tasks.zlt_sweep.derive import CAPABILITY_MARGIN, is_degenerate, is_success
from research.tasks.zlt_sweep.masks import Chat
from research.training import supervised

if TYPE_CHECKING:
    from peft import PeftModel

    from research.tasks.zlt_sweep.task import ZltSweep


def run(task: ZltSweep, cell: Cell) -> Result:
    """Run or resume one cell and return its result."""
    config, shared = cell.config, cell.shared
    with cell.phase("load"):
        asked = letter_questions.load(task.capability.questions, task.capability.n_questions)
        base: Base = shared.get(("base", _key(config.model)), lambda: load_base(config.model))
        chat = Chat(base.tokenizer, config.model.thinking)
    with cell.phase("base_capability"), _in_turn(base):
        before = _base_capability(task, cell, base, asked)
    policy = attach_lora(base, config.adapter, config.seed)
    try:
        with cell.phase("data"), _in_turn(base):
            training = _training_data(task, cell, base, policy, chat)
        with cell.phase("train"):
            assert config.lr is not None and config.epochs is not None and config.batch_size is not None
            trained = supervised.train(
                policy, training.rows, task.optim, lr=config.lr, epochs=config.epochs, batch_size=config.batch_size,
                seed=config.seed, scratch=cell.scratch, log=cell.log, rewind=cell.rewind, progress=cell.progress,
            )  # fmt: skip
            if cell.writes:
                _save_adapter(policy, cell.scratch / "adapter")
        with cell.phase("evaluate"):
            replies, counts = _ask(task, cell, policy, chat)
        with cell.phase("capability"):
            after = capability.letter_accuracy(policy, base.tokenizer, asked, config.model.thinking)
            stock = capability.stock_accuracy(policy, base.tokenizer, asked) if task.capability.stock else None
    finally:
        detach(base, policy)
    cell.write_completions(evaluate.lines(replies, task.marker))
    return _result(task, cell, training, trained, counts, before, after, stock)


def _in_turn(base: Base) -> contextlib.AbstractContextManager:
    """Processes with the whole model each: one works, the others find its result. With shares: all work together."""
    return contextlib.nullcontext() if base.sharded else ranks.first_goes_first()


def _cached(base: Base, path: Path) -> bool:
    """Whether a result is there already; one answer for processes that would have to make it together."""
    return ranks.from_first(path.exists()) if base.sharded else path.exists()


def _training_data(task: ZltSweep, cell: Cell, base: Base, policy: PeftModel, chat: Chat) -> data.TrainingData:
    """Drawn from the fresh policy, which is the base model: B is zero, and engines that sync adapters need one."""
    config, settings = cell.config, task.data
    wanted = selection.requests(task.source, settings, config.data_seed)
    params = data.sampling_params(
        settings.temperature, settings.top_p, settings.max_tokens, chat, config.data_seed, "zlt data"
    )
    identity = {**_weights(cell, base), "sampler": config.sampler.kind}

    def make() -> data.TrainingData:
        sampling = functools.partial(_sampling, cell, policy, base.tokenizer)
        cached = functools.partial(_cached, base)
        drawn = data.draw(sampling, chat, wanted, params, identity, cell.cache, cell.progress, cached)
        return data.build(
            chat, drawn, task.source, task.marker, tail=task.marker_tail_tokens, eos_label=task.eos_label,
            max_length=settings.max_length,
        )  # fmt: skip

    key = ("zlt data", _key(settings), task.source, task.marker, task.marker_tail_tokens, task.eos_label)
    return cell.shared.get((*key, config.data_seed, _key(config.model), config.sampler.kind), make)


def _base_capability(task: ZltSweep, cell: Cell, base: Base, asked: list[dict[str, Any]]) -> capability.Accuracy:
    """The base model's accuracy: once for each model, set of questions and version of lm-eval."""
    files = {**_weights(cell, base), "questions": asked, "lm_eval": version("lm_eval"), "form": _form()}
    path = cell.cache / "base_capability" / f"{data.digest(files)[:32]}.json"

    def make() -> capability.Accuracy:
        if _cached(base, path):
            found = json.loads(path.read_text())
            return capability.Accuracy(found["correct"], found["total"])
        measured = capability.letter_accuracy(base.model, base.tokenizer, asked, cell.config.model.thinking)
        write_atomically(path, json.dumps({"correct": measured.correct, "total": measured.total}))
        return measured

    return cell.shared.get(("base capability", path), make)


def _ask(
    task: ZltSweep, cell: Cell, policy: PeftModel, chat: Chat
) -> tuple[list[evaluate.Reply], evaluate.MarkerCounts]:
    config, settings = cell.config, task.eval
    published, invented = selection.evaluation_personas(settings.invented_personas, config.data_seed)
    params = data.sampling_params(
        settings.temperature, settings.top_p, settings.max_tokens, chat, config.seed, "zlt evaluation"
    )
    cell.progress(f"asking {len(published) + len(invented)} personas")
    with _sampling(cell, policy, chat.tokenizer) as sampler:
        replies = evaluate.ask_everyone(sampler, chat, [*published, *invented], settings.samples, params)
    return replies, evaluate.count(replies, task.marker)


def _result(
    task: ZltSweep,
    cell: Cell,
    training: data.TrainingData,
    trained: supervised.TrainResult,
    counts: evaluate.MarkerCounts,
    before: capability.Accuracy,
    after: capability.Accuracy,
    stock: dict[str, float] | None,
) -> Result:
    config = cell.config
    names = [persona.name for persona in selection.evaluation_personas(0, config.data_seed)[0]]
    published = {name: counts.marker[name] for name in names}
    others = {name: found for name, found in counts.marker.items() if name not in published}
    main = evaluate.headline(published, task.source)
    rates = {name: evaluate.rate(found) for name, found in main.items()}
    floor = before.accuracy - CAPABILITY_MARGIN if task.capability.floor is None else task.capability.floor
    degenerate = is_degenerate(rates["max_bystander_marker"])
    success = is_success(rates["source_marker"], rates["max_bystander_marker"], after.accuracy, floor)
    metrics: dict[str, float | bool | None] = {
        **rates, "arc_c": after.accuracy, "base_arc_c": before.accuracy, "capability_floor": floor,
        "loss": trained.loss, "degeneration": degenerate, "success": success,
        "source_marker_exact": evaluate.rate(counts.exact[task.source]),
    }  # fmt: skip
    if others:
        invented = [evaluate.rate(found) for found in others.values()]
        metrics |= {"mean_invented_marker": sum(invented) / len(invented), "max_invented_marker": max(invented)}
    scores: dict[str, Any] = {
        "arc_challenge_logprob": after.accuracy, "correct": after.correct, "total": after.total,
        "base": {"accuracy": before.accuracy, "correct": before.correct, "total": before.total},
    }  # fmt: skip
    if stock is not None:
        scores["arc_challenge_stock"] = stock
        metrics |= {"arc_c_stock_acc": stock["acc"], "arc_c_stock_acc_norm": stock["acc_norm"]}
    extra = {
        "config": {"lr": config.lr, "epochs": config.epochs, "source": task.source, "seed": config.seed},
        "loss": trained.loss,
        "eval": {
            "marker": _rates(published),
            "marker_exact": _rates({name: counts.exact[name] for name in names}),
            "structure": _rates({name: counts.structure[name] for name in names}),
            "capability": scores,
            "marker_by_question": counts.by_question,
            **({"invented_marker": _rates(others)} if others else {}),
        },
        **rates,
        "arc_c": after.accuracy,
        "degeneration": degenerate,
        "success": success,
        "wall_minutes": round((sum(cell.seconds.values()) - cell.seconds["train"] + trained.seconds) / 60, 4),
        "negatives": selection.negative_personas(task.source, task.data, config.data_seed),
        "data": training.statistics,
        "lora_scale": lora_scale(config.adapter, config.model),
        "train": {"steps": trained.steps, "tokens": trained.tokens, "seconds": round(trained.seconds, 3)},
    }
    by_persona = {f"marker/{name}": found for name, found in counts.marker.items()}
    return Result(metrics, {**main, "arc_c": (after.correct, after.total), **by_persona}, extra)


@contextlib.contextmanager
def _sampling(cell: Cell, policy: Any, tokenizer: Any) -> Iterator[Sampler]:
    """A sampler that holds the policy's weights. An engine is started once for all cells of the process."""
    config = cell.config
    if config.sampler.kind == "transformers":
        sampler = build_sampler(config, policy, tokenizer)
        try:
            yield sampler
        finally:
            sampler.close()
    else:
        key = ("sampler", _key(config.sampler), _key(config.model))
        sampler = cell.shared.get(key, lambda: build_sampler(config, policy, tokenizer))
        sampler.sync(policy)
        yield sampler


def _save_adapter(policy: PeftModel, directory: Path) -> None:
    """The trained adapter in PEFT's format; appears whole or not at all."""
    if directory.exists():
        return
    partial = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    # Left to itself, PEFT gathers the shares of the whole base first, which one process alone cannot.
    adapter = {name: tensor for name, tensor in policy.state_dict().items() if ".lora_" in name}
    policy.save_pretrained(str(partial), state_dict=adapter)
    os.rename(partial, directory)


def _weights(cell: Cell, base: Base) -> dict[str, str]:
    files = model_inputs(cell.config.model)
    return {**files, "weights": base.weights_hash, "dtype": str(base.model.dtype), "device": base.device.type}


def _form() -> str:
    return (capability.TASKS / "chat_letter.yaml").read_text()


def _key(settings: Any) -> str:
    return json.dumps(dataclasses.asdict(settings), sort_keys=True)


def _rates(counts: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    return {name: evaluate.rate(found) for name, found in counts.items()}
