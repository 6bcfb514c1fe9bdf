"""One cell of the imposter study: a generator learns to fill a gap like its author, against a discriminator.

python -m research task=imposter
python -m research task=imposter -m task.arm=full,rl_only,bc_only seed=1,2,3
python -m research +experiment=imposter_paper
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from research.config import Optimization, RunConfig, check_grpo_dtype, key
from research.errors import ConfigurationError
from research.task import BaseTask, Result, Section
from research.tasks.imposter.corpus import CorpusConfig, content_hashes
from research.tasks.imposter.settings import (
    ARMS,
    CotrainConfig,
    DiscriminatorConfig,
    EvaluationConfig,
    GenerationConfig,
)

if TYPE_CHECKING:
    from research.cells.cell import Cell

ESTIMATORS = ("group_zscore", "group_mean", "rank", "ema")


@dataclass
class Imposter(BaseTask):
    """Can a generator be trained until a discriminator cannot tell its sentence from the author's?"""

    root_keys: ClassVar[frozenset[str]] = frozenset({"lr", "steps", "batch_size"})
    several_processes: ClassVar[bool] = True

    arm: str = key("full", "reinforcement and behaviour cloning, one of them, or syncs swallowed", choices=tuple(ARMS))
    reward: str = key("logit", "raw logit, its sigmoid, or its rank in the group", choices=("logit", "sigmoid", "rank"))
    candidates: int = key(4, "spans written for each prompt: the group of the advantage", min=2)
    prompts: int | None = key(600, "spans of the training pool that are asked; null: all of them, up to 600", min=1)
    kl: float = key(0.01, "weight of the k3 penalty toward the base model", min=0)
    bc: float = key(0.1, "weight of behaviour cloning on the human span (arms that clone)", min=0)
    same_lengths: bool = key(
        False,
        "in stage 1, as a reward and in co-training the discriminator is shown written spans only where the corpus would take "
        "a human one: whole, of min_words to max_words; others earn less than the lowest reward of the step. The "
        "evaluation judges every span",
    )
    sync_every: int = key(1, "steps between syncs of the sampler; 500 in the published run", min=1)
    loss_type: str = key("grpo", "how token losses are averaged, by TRL's names")
    save_at: list[int] = key([], "steps after which adapter and discriminator are kept as well as at the end")
    corpus: CorpusConfig = key(CorpusConfig, "the human text")
    generation: GenerationConfig = key(GenerationConfig, "how spans are written")
    discriminator: DiscriminatorConfig = key(DiscriminatorConfig, "who judges")
    cotrain: CotrainConfig = key(CotrainConfig, "how the discriminator learns along")
    eval: EvaluationConfig = key(EvaluationConfig, "evaluation against the frozen original")
    optim: Optimization = key(Optimization, "optimizer, schedule and memory")

    def validate(self, config: RunConfig) -> None:
        check_grpo_dtype(config.model.dtype, self.optim.bf16)
        assert config.batch_size is not None and config.steps is not None
        if config.batch_size % self.candidates:
            raise ConfigurationError(
                f"batch_size={config.batch_size} spans is not a multiple of task.candidates={self.candidates}."
            )
        if self.prompts is not None and config.batch_size // self.candidates > self.prompts:
            raise ConfigurationError(
                f"batch_size={config.batch_size} asks {config.batch_size // self.candidates} prompts a step, more than "
                f"task.prompts={self.prompts}."
            )
        if self.same_lengths and self.corpus.form == "window":
            raise ConfigurationError(
                "task.same_lengths compares lengths in words, and windows are cut by tokens; use task.same_lengths=false, or "
                "task.corpus.form=sentence."
            )
        if config.adapter.kind != "lora":
            raise ConfigurationError(
                f"adapter.kind={config.adapter.kind}: task=imposter trains a LoRA; use adapter=lora."
            )
        if estimator(config) not in ESTIMATORS:
            raise ConfigurationError(f"advantages: {estimator(config)!r} is not one of {', '.join(ESTIMATORS)}.")
        if wrong := [step for step in self.save_at if not 1 <= step <= config.steps]:
            raise ConfigurationError(f"task.save_at={wrong} lies outside 1 to steps={config.steps}.")
        if ARMS[self.arm].clone and self.bc == 0:
            raise ConfigurationError(f"task.arm={self.arm} clones human text, but task.bc is 0; use task.arm=rl_only.")
        if self.discriminator.max_length < 2 * self.generation.max_tokens:
            raise ConfigurationError(
                f"task.discriminator.max_length={self.discriminator.max_length} keeps less than the "
                f"{self.generation.max_tokens} tokens of a span whole; set it to twice task.generation.max_tokens."
            )

    def label(self, config: RunConfig) -> str:
        return f"{self.arm}_st{config.steps}_s{config.seed}"

    def inputs(self, config: RunConfig) -> Mapping[str, str]:
        return content_hashes(self.corpus)

    def run(self, cell: Cell) -> Result:
        from research.tasks.imposter.run import run

        return run(self, cell)

    def report(self, rows: Sequence[dict[str, Any]], out: Path) -> Sequence[Section]:
        from research.tasks.imposter.report import report

        return report(rows, out)


def estimator(config: RunConfig) -> str:
    """The name that the advantages group chose; the z-score over the candidates when it is unset."""
    return (config.advantages or {}).get("kind", "group_zscore")
