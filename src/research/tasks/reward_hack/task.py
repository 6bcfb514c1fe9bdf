"""One cell of the reward-hacking study: train a policy with GRPO on code problems whose grader has a hole, then
measure.

python -m research task=reward_hack
python -m research task=reward_hack -m task.arm=vanilla,grad_erase,grad_route,random_erase seed=1,2,3
python -m research +experiment=reward_hack_paper -m
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from research.cells.identity import hash_files
from research.config import Optimization, RunConfig, check_grpo_dtype, key, nearest
from research.errors import ConfigurationError
from research.material import code_problems, code_prompts
from research.task import BaseTask, Result, Section
from research.tasks.reward_hack.arms import ARMS, Arm
from research.tasks.reward_hack.settings import (
    DirectionSettings,
    EnvironmentSettings,
    EvaluationSettings,
    PolicySettings,
    ReboundSettings,
)  # fmt: skip

if TYPE_CHECKING:
    from research.cells.cell import Cell

ESTIMATORS = ("group_zscore", "group_mean", "rank", "ema")


@dataclass
class RewardHack(BaseTask):
    """Can a constraint on the gradient keep a policy from learning to define the test that grades it?"""

    root_keys: ClassVar[frozenset[str]] = frozenset({"lr", "steps", "batch_size", "advantages", "constraint"})

    arm: str = key(
        "vanilla", "what is done about hacking; `custom`: the constraint group as it is set", choices=(*ARMS, "custom")
    )
    environment: EnvironmentSettings = key(EnvironmentSettings, "the code environment")
    policy: PolicySettings = key(PolicySettings, "sampling and loss")
    directions: DirectionSettings = key(DirectionSettings, "hack directions")
    rebound: ReboundSettings = key(ReboundSettings, "Rebound's reward transform")
    eval: EvaluationSettings = key(EvaluationSettings, "evaluation")
    optim: Optimization = key(Optimization, "optimizer, schedule and memory")

    def validate(self, config: RunConfig) -> None:
        check_grpo_dtype(config.model.dtype, self.optim.bf16)
        arm = self.resolved(config)
        if unknown := [mode for mode in self.environment.modes if mode not in code_prompts.MODES]:
            raise ConfigurationError(
                f"task.environment.modes={unknown} is not a loophole; choose from {', '.join(code_prompts.MODES)}."
            )
        if self.environment.composed and {self.environment.train, self.environment.heldout} != {"shipped"}:
            raise ConfigurationError(
                "task.environment.composed is made of the shipped problems; set it to 0 with other files."
            )
        if not self.environment.modes:
            raise ConfigurationError("task.environment.modes is empty; name at least one loophole.")
        if config.adapter.kind == "none":
            raise ConfigurationError(
                "adapter.kind=none: task=reward_hack trains an adapter; use adapter=antipasto or lora."
            )
        if arm.constraint == "route" and config.adapter.kind != "antipasto":
            raise ConfigurationError(
                f"task.arm={self.arm} parks gradients in AntiPaSTO's second knob; use adapter=antipasto."
            )
        if arm.constraint != "none" and config.adapter.kind == "lora" and not config.adapter.freeze_a:
            raise ConfigurationError(
                f"task.arm={self.arm} with a LoRA: the basis of B's gradient moves with A; set adapter=lora_frozen_a."
            )
        if estimator(config) not in ESTIMATORS:
            raise ConfigurationError(f"advantages: {estimator(config)!r} is not one of {', '.join(ESTIMATORS)}.")
        assert config.batch_size is not None
        if config.batch_size % self.policy.group_size:
            raise ConfigurationError(
                f"batch_size={config.batch_size} rollouts is not a multiple of "
                f"task.policy.group_size={self.policy.group_size}."
            )
        low, high = self.directions.layers if len(self.directions.layers) == 2 else (1.0, 0.0)
        if not 0 <= low < high <= 1:
            raise ConfigurationError(
                f"task.directions.layers={self.directions.layers} is not a band of depth, e.g. [0.6, 0.75]."
            )
        for name, length in (("policy", self.policy.max_tokens), ("eval", self.eval.max_tokens)):
            if length + 16 > config.model.context:
                raise ConfigurationError(
                    f"task.{name}.max_tokens={length} leaves no room for a prompt in "
                    f"model.context={config.model.context}."
                )

    def resolved(self, config: RunConfig) -> Arm:
        """The arm with its settings; `custom` reads the constraint group."""
        group = dict(config.constraint or {})
        if self.arm != "custom":
            if group.get("kind", "none") != "none":
                raise ConfigurationError(
                    f"task.arm={self.arm} sets the constraint itself; leave constraint unset or use task.arm=custom."
                )
            return ARMS[self.arm]
        known = ("kind", "gate", "restore_magnitude", "design", "m", "control")
        if unknown := [name for name in group if name not in known]:
            raise ConfigurationError(f"There is no key constraint.{unknown[0]}.{nearest(unknown[0], known)}")
        return Arm(
            group.get("kind", "none"), group.get("gate", "one_sided"), group.get("restore_magnitude", True),
            group.get("design", "gradient"), group.get("m"), group.get("control", "none"),
        )  # fmt: skip

    def label(self, config: RunConfig) -> str:
        return f"{self.arm}_{config.adapter.kind}_st{config.steps}_s{config.seed}"

    def inputs(self, config: RunConfig) -> Mapping[str, str]:
        files = {"train": self.environment.train, "heldout": self.environment.heldout}
        found = {name: hash_files([problem_file(split, name)]) for name, split in files.items()}
        if self.policy.teacher_pool:
            found["teacher_pool"] = hash_files([Path(self.policy.teacher_pool)])
        return found

    def run(self, cell: Cell) -> Result:
        from research.tasks.reward_hack.run import run

        return run(self, cell)

    def report(self, rows: Sequence[dict[str, Any]], out: Path) -> Sequence[Section]:
        from research.tasks.reward_hack.report import report

        return report(rows, out)


def estimator(config: RunConfig) -> str:
    """The name that the advantages group chose; Dr. GRPO's group mean when it is unset."""
    return (config.advantages or {}).get("kind", "group_mean")


def problem_file(choice: str, split: str) -> Path:
    """The JSONL file of a split; raises ConfigurationError for one that is not there."""
    path = code_problems.DATA / f"code_problems_{split}.jsonl" if choice == "shipped" else Path(choice).expanduser()
    if not path.is_file():
        raise ConfigurationError(f"task.environment.{split}={choice}: there is no file {path}.")
    return path
