"""TRL's GRPOTrainer with the suite's seams let in: who samples, what an advantage is, what a gradient may do.

The loss is TRL's own. What is overridden, and why:
    _prepare_inputs                   micro-batches hold whole groups; TRL shuffles a step's rows over them
    _generate_and_score_completions   rollouts come from the sampler or the teacher pool; advantages from the estimator
    _calculate_rewards                rewards are for all groups of the step at once
    _get_per_token_logps_...          a group's prompt computed once (`shared_prompts`)
    compute_loss                      teacher rows backpropagated apart; rows outside the loss dropped, padding trimmed
    _clip_grad_norm                   between the accumulated gradient and clipping (`update`); TRL's callbacks come only after it
    log, _save_checkpoint             one line a step in metrics.jsonl; checkpoints whole or absent, seams included
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from research.cells import ranks
from research.cells.seeding import stable_seed
from research.errors import ConfigurationError
from research.sampling.interface import Sampler
from research.training import advantages as advantage_estimators
from research.training import checkpoint, shared_prompts
from research.training.auxiliary import AuxiliaryLoss
from research.training.callbacks import Callback, Moment
from research.training.constraints import Constraint
from research.training.drawing import Drawing
from research.training.policy import SCREEN_EVERY, PolicyConfig
from research.training.probe import probe
from research.training.rollouts import Group, Prompt, Reward, TeacherPool
from research.training.steps import evaluating, finite, over_processes, screen_line, state_of, trimmed
from research.training.update import Update

# Normalisers that count rows: when rows without loss are dropped, the share that is left restores the denominator.
COUNTS_ROWS = ("grpo", "dr_grpo", "sapo", "luspo")
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Seams:
    """What the suite puts into TRL's loop; see `train_policy`."""

    reward: Reward
    sampler: Sampler
    advantages: str
    constraint: Constraint | None
    auxiliary: Sequence[AuxiliaryLoss]
    callbacks: Sequence[Callback]
    teacher: TeacherPool | None
    log: Callable[[int, Mapping[str, Any]], None]
    progress: Callable[[str], None]


class PolicyTrainer(GRPOTrainer):
    """One policy, one run. `last_row` is the line of metrics.jsonl written last; call `release` when done."""

    def __init__(
        self, policy: PeftModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt],
        order: Sequence[int], config: PolicyConfig, seams: Seams, arguments: GRPOConfig,
    ) -> None:  # fmt: skip
        if config.kl_beta and not isinstance(policy, PeftModel):
            raise ConfigurationError(
                "kl_beta > 0 takes the policy without its adapter as reference; this one has no adapter."
            )
        self.settings, self.seams = config, seams
        # What a checkpoint must share with the run that goes on from it.
        same = replace(config, optim=replace(config.optim, checkpoint_seconds=0.0), share_prompts=True)
        self.identity = asdict(same) | {
            "advantages": seams.advantages, "prompts": stable_seed([[*map(int,
            prompt.token_ids)] for prompt in prompts]),
            "constraint": None if seams.constraint is None else seams.constraint.kind,
        }  # fmt: skip
        self.last_row: dict[str, float | None] = {}
        self._estimate = advantage_estimators.estimator(seams.advantages)
        self._advantage_state: dict[str, Any] = {}
        self._groups: list[Group] = []
        self._micro_batches: list[dict[str, Any]] = []
        self._tokens_each = 0.0  # bnpo: tokens with loss a micro-batch, mean over the step's
        self.drawing = Drawing(prompts, seams.sampler, seams.teacher, tokenizer, config)
        plain = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        self._patched, self._had_forward = plain, plain.__dict__.get("forward")
        self._attention = plain.config._attn_implementation
        rows = Dataset.from_dict({"prompt": [""] * len(order), "row": list(order)})
        trained = {parameter: parameter.data for parameter in policy.parameters() if parameter.requires_grad}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rollout_func.*experimental.*")
            super().__init__(
                model=policy, reward_funcs=_placeholder, args=arguments, train_dataset=rows, processing_class=tokenizer,
                rollout_func=lambda _, trainer: trainer._rollout_fields(),
            )  # fmt: skip
        # TRL has rounded an adapter on a 4-bit base to bfloat16, where small steps are lost.
        for parameter, data in trained.items():
            if parameter.dtype != data.dtype:
                parameter.data = data
        self.beta = config.kl_beta  # set late: TRL would copy the adapter as a second, frozen one
        for default in (PrinterCallback, ProgressCallback):
            self.remove_callback(default)
        self.add_callback(_Hooks(self))
        self._trainable = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self._last_save = time.monotonic()
        self.update = Update(self.model, seams.constraint, seams.auxiliary, seams.teacher is not None)
        self.shares = config.share_prompts
        if self.shares:
            longest = max((len(prompt.token_ids) for prompt in prompts), default=0) + config.max_tokens
            if why_not := shared_prompts.obstacle(plain, longest):
                seams.progress(f"each completion computes its own prompt: {why_not}")
                self.shares = False
            else:
                plain.set_attn_implementation(shared_prompts.NAME)

    def release(self) -> None:
        """Take TRL's fused head and our attention off the model again: the base may serve other cells."""
        if self.shares:
            self._patched.set_attn_implementation(self._attention)
        if self._had_forward is None:
            self._patched.__dict__.pop("forward", None)
        else:
            self._patched.forward = self._had_forward

    # Rollouts, rewards, advantages

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch of the step's rows in the order of the groups, so that rows that share a prompt meet."""
        parts = self.args.steps_per_generation
        if self._step % parts == 0 or not self._micro_batches:
            batch = self._generate_and_score_completions(generation_batch)
            self._micro_batches = split_tensor_dict(batch, parts)
            if self.loss_type == "bnpo":
                tokens = _with_loss(batch).sum()
                self._tokens_each = float(gather(tokens).sum()) / (parts * self.accelerator.num_processes)
        return self._micro_batches[self._step % parts]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        G = self.settings.group_size
        with evaluating(self.model):
            rows, step = [row["row"] for row in inputs[::G]], self.state.global_step
            self._note(self.drawing.sync_if_due(self.model, step))
            self._groups, seconds = self.drawing.groups(rows, self.accelerator.process_index * len(rows), step)
            self._note({"sampling/seconds": seconds})
            start = time.perf_counter()
            found = probe(
                self.model, self._groups, self.settings.probe_rows, self.accelerator.autocast, self._reference
            )
            self._note(found | {"probe/seconds": time.perf_counter() - start})
        output = super()._generate_and_score_completions(inputs)
        self._restore_trainable()
        estimate = self._estimate(self._rewards.view(-1, G), self._advantage_state)
        mine = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        output["advantages"] = estimate.advantages_NG.flatten()[mine].to(output["advantages"])
        self._note({"groups_skipped": float(estimate.skipped_N.sum())})
        if estimate.skipped_N.any():
            kept_B = ~estimate.skipped_N.repeat_interleave(G)[mine]
            output["tool_mask"] = output["completion_mask"] * kept_B.unsqueeze(1).long()
        if self.seams.teacher is not None:
            teacher = [rollout.teacher for group in self._groups for rollout in group.rollouts]
            output["teacher"] = torch.tensor(teacher, device=output["advantages"].device)
        if self.settings.importance_sampling:
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        return output

    def _rollout_fields(self) -> dict[str, list[list[Any]]]:
        """The groups as TRL wants them: one entry a rollout."""
        flat = [(list(group.prompt.token_ids), rollout) for group in self._groups for rollout in group.rollouts]
        return {
            "prompt_ids": [prompt for prompt, _ in flat],
            "completion_ids": [list(rollout.token_ids) for _, rollout in flat],
            "logprobs": [list(r.logprobs) or [0.0] * len(r.token_ids) for _, r in flat],
        }

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        start = time.perf_counter()
        scores = self.seams.reward(self._groups, self.state.global_step + 1)
        self._note({"reward/seconds": time.perf_counter() - start})
        for i, group in enumerate(self._groups):
            group.rewards = [float(value) for value in scores.rewards[i]]
            group.records = list(scores.records[i]) if scores.records else [{} for _ in group.rollouts]
            if len(group.rewards) != len(group.rollouts):
                raise ValueError(f"The reward gave {len(group.rewards)} values for a group of {len(group.rollouts)}.")
        self._note(over_processes(scores.metrics))
        flat = [value for group in self._groups for value in group.rewards]
        self._rewards = gather(torch.tensor(flat, dtype=torch.float32, device=self.accelerator.device).unsqueeze(1))
        return self._rewards

    @contextlib.contextmanager
    def _reference(self) -> Iterator[None]:
        """The policy without its adapter."""
        with self.model.disable_adapter():
            yield
        self._restore_trainable()

    def _restore_trainable(self) -> None:
        """PEFT makes every adapter weight trainable when it switches adapters back on; a frozen A or dS_hack stays
        frozen."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable[name])

    # Loss and gradient

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        teacher_B = inputs.get("teacher")
        if teacher_B is None or not teacher_B.any():
            return self._loss_of(model, inputs, None)
        before = self.update.gradients()
        loss = self._loss_of(model, inputs, teacher_B)
        self.accelerator.backward(loss)
        self.update.taught(before)
        return loss.detach() + self._loss_of(model, inputs, ~teacher_B)

    def _loss_of(self, model: nn.Module, inputs: dict[str, Any], chosen_B: torch.Tensor | None) -> torch.Tensor:
        """TRL's loss over the chosen rows, as a share of what they are of the step; rows outside the loss are not
        computed, and count in no metric."""
        mask_BT = _with_loss(inputs)
        kept_B = mask_BT.any(1) if chosen_B is None else mask_BT.any(1) & chosen_B
        if not kept_B.any():  # one row keeps the graph connected
            metrics = {name: list(values) for name, values in self._metrics["train"].items()}
            kept_B = torch.arange(len(kept_B), device=kept_B.device) == 0
            nothing = super().compute_loss(model, trimmed(inputs, kept_B)) * 0.0
            self._metrics["train"].clear()
            self._metrics["train"].update(metrics)
            return nothing
        share = 1.0
        if self.loss_type in COUNTS_ROWS:
            share = float(kept_B.float().mean())
        elif self.loss_type == "bnpo":  # a mean over tokens: of the step's, however they are split
            share = float(mask_BT[kept_B].sum()) / self._tokens_each
        loss = super().compute_loss(model, trimmed(inputs, kept_B))
        return loss * share if share != 1.0 else loss

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int,
        batch_size: int | None = None, compute_entropy: bool = False, compute_aux_loss: bool = False, **images: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
        if not self.shares or compute_aux_loss:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, **images
            )  # fmt: skip
        with self.accelerator.autocast():
            logps, entropies = shared_prompts.score(
                model, input_ids, attention_mask, logits_to_keep, batch_size or len(input_ids)
            )
        return logps, entropies if compute_entropy else None, None

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        mean = partial(self.accelerator.reduce, reduction="mean")
        self._note(self.update.add_auxiliary(self._groups, self.compute_loss_context_manager, mean))
        self._note(self.update.project())
        return super()._clip_grad_norm(model)

    def after_update(self) -> None:
        self._note(self.update.moved())

    def after_step(self) -> None:
        """Run the callbacks that are due."""
        step = self.state.global_step
        moment = Moment(step, self.model, self._tokenizer, self.seams.sampler, self._groups, self.seams.constraint)
        for callback in self.seams.callbacks:
            if step % callback.every == 0:
                with evaluating(self.model):
                    found = callback(moment)
                self._restore_trainable()
                self.drawing.foreign = True  # it may have put other weights into the sampler
                self._note(found)

    # Log and checkpoint

    def _note(self, found: Mapping[str, float]) -> None:
        """Into this step's line of metrics.jsonl."""
        for name, value in found.items():
            self._metrics["train"][name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        del self.state.log_history[:-1]
        if "train_runtime" in logs or not self.accelerator.is_main_process:
            return
        row = {k: finite(v) for k, v in logs.items() if k != "epoch" and not k.startswith("rewards/")}
        step = self.state.global_step
        self.last_row = row
        self.seams.log(step, row)
        if step % SCREEN_EVERY == 0 or step in (1, self.state.max_steps):
            self.seams.progress(screen_line(step, self.state.max_steps, row))

    def checkpoint_due(self) -> bool:
        """Whether to save now: never between syncs, since a resumed sampler could not hold the older weights."""
        due = time.monotonic() - self._last_save >= self.settings.optim.checkpoint_seconds
        last = self.state.global_step >= self.state.max_steps
        return ranks.from_first(last or (due and self.drawing.due(self.state.global_step)))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Everything the next attempt needs, from all processes, written by the first."""
        generators = ranks.gathered(checkpoint.rng_state())
        if not self.is_world_process_zero():
            return
        constraint = self.seams.constraint
        state = {
            "run": self.identity,
            "step": self.state.global_step,
            "trained": {n: p.detach().cpu() for n, p in self.model.named_parameters() if p.requires_grad},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "generators": generators,
            "advantages": self._advantage_state,
            "seams": [state_of(part) for part in self._stateful()],
            "directions": None if constraint is None else dict(constraint.directions or {}),
            "last_row": self.last_row,
        }
        texts = {TRAINER_STATE: json.dumps(asdict(self.state))}
        checkpoint.save(Path(self.args.output_dir), self.state.global_step, state, texts)
        self._last_save = time.monotonic()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.resumed = state = checkpoint.load(Path(resume_from_checkpoint))
        checkpoint.check_same_run(state["run"], self.identity, Path(resume_from_checkpoint))
        if len(state["generators"]) != ranks.world_size():
            raise ConfigurationError(
                f"{resume_from_checkpoint} was written by {len(state['generators'])} processes, this run has "
                f"{ranks.world_size()}; continue with the same number"
            )
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["trained"].items():
                parameters[name].copy_(value)
        self._advantage_state, self.last_row = state["advantages"], state["last_row"]
        for part, remembered in zip(self._stateful(), state["seams"], strict=True):
            if remembered is not None:
                part.load_state_dict(remembered)
        if self.seams.constraint is not None:
            self.seams.constraint.directions = state["directions"] or None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.optimizer.load_state_dict(self.resumed["optimizer"])
            self.lr_scheduler.load_state_dict(self.resumed["scheduler"])

    def _load_rng_state(self, checkpoint_path: str | None) -> None:
        if checkpoint_path is not None:
            checkpoint.set_rng_state(self.resumed["generators"][self.accelerator.process_index])

    def _stateful(self) -> list[Any]:
        return [self.seams.reward, self.seams.teacher, *self.seams.callbacks]


class _Hooks(TrainerCallback):
    """Trainer's events, passed on."""

    def __init__(self, trainer: PolicyTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_step()
        control.should_save = self.trainer.checkpoint_due()


def _with_loss(inputs: Mapping[str, Any]) -> torch.Tensor:
    """(B, T): 1 at completion tokens that are in the loss."""
    return inputs["completion_mask"] * inputs.get("tool_mask", 1)


def _placeholder(*args: Any, **kwargs: Any) -> list[float]:
    raise AssertionError("rewards come from PolicyTrainer._calculate_rewards")
