"""Policy-gradient training: GRPO on TRL's trainer, with the suite's seams.

    result = train_policy(policy, tokenizer, prompts, reward, sampler=sampler, config=PolicyConfig(steps=200, lr=7e-5,
    ...),
                          scratch=cell.scratch, advantages="group_mean", constraint=Constraint("erase", directions=...),
                          log=cell.log, rewind=cell.rewind, progress=cell.progress)

One call trains one policy; called again on the same `scratch` after a kill, it goes on and ends with the result it
would have had. Leaves out: multi-turn rollouts, tools, images.

Sampling at top_p < 1 draws from a truncated distribution while the loss uses the full one, which biases the gradient
by the mass cut off (TRL issue 6789); training therefore samples with top_p 1 unless told otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.cells import ranks
from research.config import Optimization, check_grpo_dtype
from research.errors import ConfigurationError
from research.training.rollouts import Prompt, Reward, TeacherPool, schedule

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig

    from research.sampling.interface import Sampler
    from research.training.auxiliary import AuxiliaryLoss
    from research.training.callbacks import Callback
    from research.training.constraints import Constraint

SCREEN_EVERY = 25


@dataclass(frozen=True)
class PolicyConfig:
    """How a policy is trained.

    batch_size: rollouts an optimizer step, a multiple of group_size. loss_type: TRL's name; `dr_grpo` divides by
    batch x max_tokens, whatever the lengths. kl_beta: weight of the k3 penalty toward the policy without its adapter.
    sync_every: steps between syncs of the sampler. importance_sampling: correct for a stale sampler with its own
    log-probs. probe_rows: rollouts on which KL drift and the gap to the sampler are measured each step; 0 for none.
    share_prompts: compute a group's prompt once where the model's attention allows it; the same up to rounding.
    """

    steps: int
    lr: float
    batch_size: int
    group_size: int
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    loss_type: str = "dr_grpo"
    kl_beta: float = 0.0
    clip_epsilon: float = 0.2
    sync_every: int = 1
    importance_sampling: bool = False
    probe_rows: int = 8
    share_prompts: bool = True
    seed: int = 42
    optim: Optimization = field(default_factory=Optimization)

    def check(self) -> None:
        """Raise ConfigurationError for numbers that do not fit together."""
        if self.group_size < 2:
            raise ConfigurationError(f"group_size={self.group_size}: a group needs at least 2 rollouts to be compared.")
        if self.batch_size % self.group_size:
            raise ConfigurationError(
                f"batch_size={self.batch_size} rollouts is not a multiple of group_size={self.group_size}."
            )
        micro = min(self.optim.micro_batch_size or self.batch_size, self.batch_size)
        if self.batch_size % micro:
            raise ConfigurationError(f"batch_size={self.batch_size} is not a multiple of micro_batch_size={micro}.")
        if self.importance_sampling and (self.temperature != 1.0 or self.top_p != 1.0):
            raise ConfigurationError(
                f"importance_sampling compares untempered log-probs: it needs temperature 1 and top_p 1, "
                f"not {self.temperature} and {self.top_p}."
            )


@dataclass(frozen=True)
class PolicyResult:
    """What training came to. metrics: the last step's line of metrics.jsonl. resumed_from: 0 for a fresh run."""

    steps: int
    resumed_from: int
    seconds: float
    metrics: Mapping[str, float | None]


def train_policy(
    policy: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    reward: Reward,
    *,
    sampler: Sampler,
    config: PolicyConfig,
    scratch: Path,
    advantages: str = "group_zscore",
    constraint: Constraint | None = None,
    auxiliary: Sequence[AuxiliaryLoss] = (),
    callbacks: Sequence[Callback] = (),
    teacher: TeacherPool | None = None,
    log: Callable[[int, Mapping[str, Any]], None] = lambda step, metrics: None,
    rewind: Callable[[int], None] = lambda step: None,
    progress: Callable[[str], None] = print,
) -> PolicyResult:
    """Train `policy` in place by GRPO; the sampler holds its final weights afterwards.

    prompts: asked in seeded permutations, see `schedule`. log, rewind: as `Cell.log` and `Cell.rewind`. A reward,
    callback or teacher pool with `state_dict` and `load_state_dict` is saved and resumed with everything else.
    Raises ConfigurationError for settings that do not fit together, StaleWeightsError when a sync cannot be proven.
    """
    from research.training import checkpoint
    from research.training.fused_lora import fused_lora
    from research.training.grpo import PolicyTrainer, Seams

    config.check()
    if teacher is not None and config.importance_sampling:
        raise ConfigurationError("A teacher pool fixes its tokens' ratio at 1; switch importance_sampling off.")
    start = time.perf_counter()
    per_step = config.batch_size // config.group_size
    order = schedule(len(prompts), per_step, config.steps, config.seed)
    seams = Seams(reward, sampler, advantages, constraint, tuple(auxiliary), tuple(callbacks), teacher, log, progress)
    arguments = trl_arguments(config, scratch / "policy", policy)
    found = checkpoint.last(scratch / "policy")
    resumed = checkpoint.load(found)["step"] if found else 0
    trainer = PolicyTrainer(policy, tokenizer, prompts, order, config, seams, arguments)
    try:
        rewind(resumed)
        with fused_lora(policy, autocast=arguments.bf16):
            trainer.train(resume_from_checkpoint=str(found) if found else None)
    finally:
        trainer.release()
    sampler.sync(policy)
    return PolicyResult(trainer.state.global_step, resumed, time.perf_counter() - start, trainer.last_row)


def trl_arguments(config: PolicyConfig, output: Path, policy: PreTrainedModel | PeftModel) -> GRPOConfig:
    """The same settings in TRL's words; saving, logging and the reference model are the suite's own."""
    from trl import GRPOConfig

    optim, processes = config.optim, ranks.world_size()
    micro = min(optim.micro_batch_size or config.batch_size, config.batch_size // processes)
    if config.batch_size % (micro * processes) or (config.batch_size // processes) % config.group_size:
        raise ConfigurationError(
            f"batch_size={config.batch_size} does not split into whole groups of {config.group_size} and "
            "micro-batches of "
            f"{micro} on {processes} processes."
        )
    return GRPOConfig(
        output_dir=str(output),
        max_steps=config.steps,
        learning_rate=config.lr,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * processes),
        num_generations=config.group_size,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        loss_type=config.loss_type,
        epsilon=config.clip_epsilon,
        beta=0.0,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        weight_decay=optim.weight_decay,
        lr_scheduler_type=optim.schedule,
        warmup_steps=optim.warmup_ratio,
        max_grad_norm=optim.max_grad_norm,
        gradient_checkpointing=optim.gradient_checkpointing,
        bf16=_bf16(optim.bf16, policy),
        use_cpu=policy.device.type == "cpu",
        seed=config.seed,
        shuffle_dataset=False,
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _bf16(choice: str, policy: PreTrainedModel | PeftModel) -> bool:
    """Whether to train under bfloat16 autocast: samplers here draw in the model's dtype, and have to agree with the trainer."""
    import torch

    check_grpo_dtype(str(policy.dtype).removeprefix("torch."), choice)
    if choice == "auto":
        return policy.dtype == torch.bfloat16 and policy.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return choice == "true"
