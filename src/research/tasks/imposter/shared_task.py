"""One cell of the shared-model variant: generator and discriminator are two tasks of one model and one adapter.

python -m research task=imposter_shared
python -m research task=imposter_shared task.judge=reasoning
python -m research +experiment=imposter_ascent -m
python -m research +experiment=imposter_shared_paper
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

if TYPE_CHECKING:
    from research.cells.cell import Cell


@dataclass
class ImposterShared(BaseTask):
    """Can one model learn to write what it cannot tell from the truth, when it is also the judge?"""

    root_keys: ClassVar[frozenset[str]] = frozenset({"lr", "steps", "batch_size"})

    judge: str = key(
        "head", "a head on the last hidden states, or the earlier variant: a reasoning task with a value head",
        choices=("head", "reasoning"),
    )  # fmt: skip
    d_lr: float = key(
        2e-5, "Adam learning rate of the discriminator task, on the same adapter and on its head", above=0
    )
    d_scale: float = key(1.0, "weight of the discriminator task's loss, before clipping", above=0)
    value_threshold: float = key(0.125, "reasoning judge: the reward is 1 - value above it, else 0", min=0, max=1)
    reasoning_tokens: int = key(32, "tokens of reasoning at most", min=0)
    length_tolerance: float = key(0.75, "a completion earns a reward within this share of the truth's length", min=0)
    candidates: int = key(2, "completions written for a prompt; the baseline does not need groups", min=2)
    prompts: int = key(300, "windows of the training pool that are asked", min=1)
    kl: float = key(0.05, "weight of the k3 penalty toward the base model", min=0)
    temperature: float = key(1.0, "sampling temperature", above=0)
    last: int = key(2000, "sequences at the end of training that MAUVE is measured on", min=2)
    buckets: int | None = key(None, "MAUVE clusters; null: a tenth of the sequences", min=2)
    features: str | None = key(
        None, "directory or hub name of the model whose features MAUVE compares; null: the base model"
    )
    export: int = key(0, "windows for which reasoning traces are sampled, kept if they help, and written", min=0)
    corpus: CorpusConfig = key(CorpusConfig, "the human text; windows only")
    optim: Optimization = key(Optimization, "optimizer, schedule and memory")

    def validate(self, config: RunConfig) -> None:
        check_grpo_dtype(config.model.dtype, self.optim.bf16)
        assert config.batch_size is not None
        if config.batch_size % self.candidates:
            raise ConfigurationError(
                f"batch_size={config.batch_size} completions is not a multiple of task.candidates={self.candidates}."
            )
        if self.corpus.form != "window":
            raise ConfigurationError(
                f"task.corpus.form={self.corpus.form}: task=imposter_shared continues windows; use window."
            )
        if config.adapter.kind != "lora":
            raise ConfigurationError(
                f"adapter.kind={config.adapter.kind}: task=imposter_shared trains a LoRA; use adapter=lora."
            )
        if config.batch_size // self.candidates > self.prompts:
            raise ConfigurationError(
                f"batch_size={config.batch_size} asks more prompts a step than task.prompts={self.prompts}."
            )

    def label(self, config: RunConfig) -> str:
        return f"{self.judge}_g{config.lr:g}_d{self.d_lr:g}_x{self.d_scale:g}_st{config.steps}_s{config.seed}"

    def inputs(self, config: RunConfig) -> Mapping[str, str]:
        return content_hashes(self.corpus)

    def run(self, cell: Cell) -> Result:
        from research.tasks.imposter.shared_run import run

        return run(self, cell)

    def report(self, rows: Sequence[dict[str, Any]], out: Path) -> Sequence[Section]:
        from research.tasks.imposter.shared_report import report

        return report(rows, out)

    def max_tokens(self) -> int:
        """Of a reply: reasoning, the closing tag, and a completion as long as is still rewarded."""
        return self.reasoning_tokens + 8 + round(self.corpus.span_tokens * (1 + self.length_tolerance))
