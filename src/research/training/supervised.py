"""Supervised training of an adapter: transformers' Trainer, without the work that cannot change the result.

    result = train(policy, rows, optim, lr=1e-5, epochs=20, batch_size=16, seed=42, scratch=cell.scratch, log=cell.log,
                   rewind=cell.rewind, progress=cell.progress)

Optimizer, schedule, clipping, accumulation, bf16 autocast, gradient checkpointing and several processes are the
Trainer's and accelerate's. Ours: which examples form a micro-batch and how they are packed (`packing`), the loss at
labelled positions only, and checkpoints that survive a kill (`checkpoint`). A run that was killed and called again ends
with the adapter that an uninterrupted run gives, bit for bit on a CPU.

Several GPUs: start the process with `accelerate launch` or `torchrun`; the examples of a step are dealt to the
processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from research.cells import ranks
from research.cells.seeding import seed_everything, stable_seed
from research.config import Optimization
from research.errors import ConfigurationError
from research.models.merge import unwrapped
from research.training import checkpoint
from research.training.attention import can_pack, packed
from research.training.fused_lora import fused_lora
from research.training.losses import label_loss
from research.training.packing import Example, StepSampler, collate, prepare

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_MAX_SAVING_SHARE = 0.03  # of the training time
_TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class TrainResult:
    """loss: mean over the steps, nats per label. tokens: forwarded, by all processes. seconds: over all attempts."""

    loss: float
    steps: int
    tokens: int
    seconds: float


def train(
    policy: PeftModel | PreTrainedModel,
    dataset: Iterable[Mapping[str, Sequence[int]]],
    optim: Optimization,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int,
    scratch: Path,
    log: Callable[[int, dict[str, Any]], None] = lambda step, metrics: None,
    rewind: Callable[[int], None] = lambda step: None,
    progress: Callable[[str], None] = lambda message: None,
) -> TrainResult:
    """Minimise the mean cross-entropy over a step's kept labels, in place, for `epochs` passes.

    dataset: rows of `input_ids` and `labels` (same length; -100: no loss). Rows without a label are left out. The mean
    is over all labels of the `batch_size` examples of an optimizer step, however they are split and packed.
    log(step, metrics): after every step: `loss`, `grad_norm`, `learning_rate`, `epoch`. rewind(step): called on
    resume, before the steps after `step` are logged again. Raises ValueError when no row has a label.
    """
    examples = [example for row in dataset if (example := prepare(row)) is not None]
    if not examples:
        raise ValueError("no row of the dataset has a label: nothing can be learned; check the label mask")
    run = {
        "lr": lr, "epochs": epochs, "batch_size": batch_size, "seed": seed, "examples": len(examples),
        "data": _content_hash(examples),
        "optim": {k: v for k, v in vars(optim).items() if k != "checkpoint_seconds"},
    }  # fmt: skip
    first = os.environ.get("RANK", "0") == "0"  # of several processes, this one writes the files
    found = checkpoint.last(scratch / "checkpoints")
    if found is not None:
        state = checkpoint.load(found)
        checkpoint.check_same_run(state["run"], run, found)
        if first:
            rewind(state["step"])
        if state["step"] == state["total_steps"]:
            _load_trained(policy, state["trained"])
            return TrainResult(**state["result"])
        progress(f"training resumes from step {state['step']} of {state['total_steps']}")
    elif first:
        rewind(0)
    seed_everything(stable_seed(seed, "training"))
    trainer = SupervisedTrainer(policy, examples, optim, run, scratch, log, progress)
    with trainer.prepared_model():
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    return trainer.result()


class SupervisedTrainer(Trainer):
    """The Trainer with our micro-batches, loss at the labels, and checkpoints."""

    def __init__(
        self,
        policy: PeftModel | PreTrainedModel,
        examples: list[Example],
        optim: Optimization,
        run: dict[str, Any],
        scratch: Path,
        log: Callable[[int, dict[str, Any]], None],
        progress: Callable[[str], None],
    ) -> None:
        world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        share = -(-run["batch_size"] // world)
        micro = min(optim.micro_batch_size or share, share)
        self.examples, self.optim, self.run, self.report, self.progress = examples, optim, run, log, progress
        self.sampler = StepSampler(examples, run["batch_size"], micro, run["seed"], rank, world)
        self.directory = scratch / "checkpoints"
        self.policy: Any = policy
        self.base: Any = unwrapped(policy)
        self.packs = can_pack(self.base, max(len(example.input_ids) for example in examples))
        self.total_steps = self.sampler.steps * run["epochs"]
        self.loss_sum, self.tokens, self.seconds_before = 0.0, 0, 0.0
        self.started = time.perf_counter()
        super().__init__(
            model=policy,
            args=_arguments(optim, run, scratch, self.sampler.accumulation, next(policy.parameters()).device),
            train_dataset=examples,  # type: ignore[arg-type]
            callbacks=[_Pace(self)],
        )
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the labels of the whole step

    @contextlib.contextmanager
    def prepared_model(self):
        """Packed attention and fused LoRA during training, and the model as it was afterwards."""
        was_training = self.policy.training
        attention = packed(self.base) if self.packs else contextlib.nullcontext()
        with attention, fused_lora(self.base, autocast=self.args.bf16):
            try:
                yield
            finally:
                self.accelerator.unwrap_model(self.policy, keep_fp32_wrapper=False)
                self.policy.train(was_training)
                if self.optim.gradient_checkpointing:
                    self.base.gradient_checkpointing_disable()

    def get_train_dataloader(self) -> DataLoader:
        def collate_rows(rows: list[tuple[Example, int]]) -> dict[str, Any]:
            return collate(rows, packed=self.packs)

        pinned = self.args.device.type == "cuda"
        return DataLoader(
            _WithTotals(self.examples),  # type: ignore[arg-type]
            batch_sampler=self.sampler, collate_fn=collate_rows, pin_memory=pinned,
            generator=torch.Generator(),  # so that iterating draws nothing from the generator of dropout
        )  # fmt: skip

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> int:
        return 1  # every micro-batch knows its step's labels; a number keeps the Trainer from averaging micro-batches

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.tokens += inputs["input_ids"].numel() if self.packs else int(inputs["attention_mask"].sum())
        # DistributedDataParallel averages gradients over processes; the sum of their shares is wanted.
        loss = label_loss(model, inputs) * self.args.world_size
        return (loss, None) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counting them walks over all parameters at every step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return  # the Trainer's summary at the end
        self.loss_sum += logs["loss"]
        if self.is_world_process_zero():
            epoch = self.state.global_step / self.sampler.steps
            self.report(self.state.global_step, {**logs, "epoch": round(epoch, 6)})

    def result(self) -> TrainResult:
        """Totals over all attempts; written into the last checkpoint."""
        tokens = self.accelerator.reduce(torch.tensor(self.tokens, device=self.args.device)).item()
        seconds = self.seconds_before + time.perf_counter() - self.started
        steps = self.state.global_step
        return TrainResult(self.loss_sum / max(steps, 1), steps, int(tokens), seconds)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Everything the next attempt needs, from all processes, written by the first."""
        result = vars(self.result()) if self.args.world_size > 1 or self.is_world_process_zero() else {}
        generators = ranks.gathered(checkpoint.rng_state())
        tokens = ranks.gathered(self.tokens)
        if not self.is_world_process_zero():
            return
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        state = {
            "run": self.run,
            "step": self.state.global_step,
            "total_steps": self.total_steps,
            "trained": {n: p.detach().cpu() for n, p in self.policy.named_parameters() if p.requires_grad},
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "generators": generators,
            "tokens": tokens,
            "loss_sum": self.loss_sum,
            "seconds": result["seconds"],
            "result": result,
        }  # fmt: skip
        checkpoint.save(self.directory, self.state.global_step, state, {_TRAINER_STATE: json.dumps(asdict(self.state))})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = checkpoint.load(Path(resume_from_checkpoint))
        _load_trained(self.policy, state["trained"])
        rank = self.args.process_index
        if len(state["generators"]) != self.args.world_size:
            raise ConfigurationError(
                f"{resume_from_checkpoint} was written by {len(state['generators'])} processes, this run has "
                f"{self.args.world_size}; continue with the same number"
            )
        self.resumed = state
        self.loss_sum, self.seconds_before, self.tokens = state["loss_sum"], state["seconds"], state["tokens"][rank]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            optimizer: Any = self.optimizer
            scheduler: Any = self.lr_scheduler
            optimizer.load_state_dict(self.resumed["optimizer"])
            scheduler.load_state_dict(self.resumed["scheduler"])

    def _load_rng_state(self, checkpoint_path: str | None) -> None:
        if checkpoint_path is not None:
            checkpoint.set_rng_state(self.resumed["generators"][self.args.process_index])


class _Pace(TrainerCallback):
    """Sets the epoch of the data order, and decides when to save and what to show."""

    def __init__(self, trainer: SupervisedTrainer) -> None:
        self.trainer = trainer
        self.saved = self.shown = time.perf_counter()
        self.saving = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.sampler.epoch = state.global_step // self.trainer.sampler.steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now, every = time.perf_counter(), self.trainer.optim.checkpoint_seconds
        due = now - self.saved >= max(every, self.saving / _MAX_SAVING_SHARE if every else 0.0)
        control.should_save = ranks.from_first(due) or state.global_step == self.trainer.total_steps
        control.should_log = True
        self.before = now
        if now - self.shown > 10:
            self.shown = now
            self.trainer.progress(f"training step {state.global_step} of {self.trainer.total_steps}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = time.perf_counter()
        self.saving = self.saved - self.before


class _WithTotals:
    """Examples, indexed by what the sampler yields: (index, labels of the whole step)."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Example, int]:
        return self.examples[key[0]], key[1]


def _arguments(
    optim: Optimization, run: dict[str, Any], scratch: Path, accumulation: int, device: torch.device
) -> TrainingArguments:
    if optim.bf16 == "true" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigurationError("task.optim.bf16=true: this GPU has no bfloat16; use auto or false")
    bf16 = optim.bf16 == "true" or (optim.bf16 == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return TrainingArguments(
        output_dir=str(scratch),
        learning_rate=run["lr"],
        num_train_epochs=run["epochs"],
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        lr_scheduler_type=optim.schedule,
        warmup_steps=math.ceil(optim.warmup_ratio * _total_steps(run)),
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        max_grad_norm=optim.max_grad_norm,
        bf16=bf16,
        gradient_checkpointing=optim.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if optim.gradient_checkpointing else None,
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=run["seed"],
    )


def _total_steps(run: dict[str, Any]) -> int:
    return run["epochs"] * -(-run["examples"] // run["batch_size"])


def _load_trained(policy: Any, trained: dict[str, torch.Tensor]) -> None:
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        for name, value in trained.items():
            parameters[name].copy_(value)


def _content_hash(examples: list[Example]) -> str:
    content = json.dumps([[e.input_ids, e.positions, e.targets] for e in examples])
    return hashlib.sha256(content.encode()).hexdigest()
