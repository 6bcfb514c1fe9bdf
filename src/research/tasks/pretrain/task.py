"""`task=pretrain`: make the embedded base model, from corpus to model card.

    python -m research task=pretrain                       # minutes on a GPU, hours on a CPU
    python -m research +experiment=pretrain_smoke          # seconds: shows that the recipe works, learns little

The checkpoint lands in `runs/pretrain/<name>/<cell>/model/` and is used with `model.path=<that directory>`. To ship it,
copy it to `research/models/micro/weights/`. A run that was killed starts over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from research.config import RunConfig, key
from research.errors import ConfigurationError
from research.task import BaseTask, Result

if TYPE_CHECKING:
    from research.cells.cell import Cell
    from research.models.micro.train import Recipe


@dataclass
class Anneal:
    """The second phase, on the mixture that settles how replies break and end."""

    steps: int = key(700, "optimizer steps", min=1)
    lr: float = key(8e-4, "peak learning rate", above=0)
    warmup: int = key(30, "steps of linear warm-up", min=1)
    width: int = key(256, "tokens of a packed row", min=16)
    rows: int = key(32, "packed rows a step", min=1)
    long_rows: int = key(3, "rows of `context` tokens in the steps that read longer documents", min=1)


@dataclass
class Pretrain(BaseTask):
    """Train the embedded base model from scratch on generated and found text, and measure every ability."""

    hidden: int = key(192, "width of the residual stream", min=8)
    layers: int = key(5, "transformer blocks", min=1)
    heads: int = key(6, "query heads; the head dimension is hidden / heads", min=1)
    kv_heads: int = key(2, "key and value heads", min=1)
    mlp: int = key(576, "inner width of the MLP", min=8)
    vocabulary: int = key(2048, "tokens of the byte-level BPE, special ones included", min=300)
    context: int = key(1024, "longest document, in tokens", min=64)
    size: float = key(1.0, "of corpus and evaluation, relative to the shipped model's", above=0, max=1)
    weight_decay: float = key(0.1, "AdamW weight decay of the matrices", min=0)
    warmup: int = key(200, "steps of linear warm-up", min=1)
    width: int = key(512, "tokens of a packed row (batch_size rows a step)", min=16)
    long_rows: int = key(16, "rows of `context` tokens in the steps that read longer documents", min=1)
    compile: bool = key(True, "torch.compile on a GPU")
    anneal: Anneal = field(default_factory=Anneal)

    root_keys: ClassVar[frozenset[str]] = frozenset({"lr", "steps", "batch_size"})

    def validate(self, config: RunConfig) -> None:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ConfigurationError(f"task.hidden={self.hidden} must be an even multiple of task.heads={self.heads}")
        if self.heads % self.kv_heads:
            raise ConfigurationError(f"task.heads={self.heads} must be a multiple of task.kv_heads={self.kv_heads}")
        for name, width in (("width", self.width), ("anneal.width", self.anneal.width)):
            if width > self.context:
                raise ConfigurationError(f"task.{name}={width} must be at most task.context={self.context}")
        if config.model.path != "embedded":
            raise ConfigurationError(
                f"task=pretrain starts from nothing; model.path={config.model.path} would be ignored"
            )
        if config.model.quantization != "none":
            raise ConfigurationError(
                f"task=pretrain trains all weights; model.quantization={config.model.quantization} would be ignored"
            )

    def label(self, config: RunConfig) -> str:
        return f"h{self.hidden}_l{self.layers}_steps{config.steps}_s{config.seed}"

    def inputs(self, config: RunConfig) -> Mapping[str, str]:
        """The prose of this Python and every file of the corpus's material."""
        from research import material
        from research.material import prose

        digest = hashlib.sha256()
        folder = Path(material.__file__).parent
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".yaml", ".jsonl")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
        return {"prose": prose.content_hash(), "material": digest.hexdigest()}

    def recipe(self, config: RunConfig) -> Recipe:
        """The settings as the recipe takes them."""
        from research.models.micro.train import Phase, Recipe

        assert config.lr is not None and config.steps is not None and config.batch_size is not None
        return Recipe(
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            mlp=self.mlp,
            vocabulary=self.vocabulary,
            context=self.context,
            size=self.size,
            weight_decay=self.weight_decay,
            compile=self.compile,
            seed=config.seed,
            data_seed=config.data_seed,
            phases=(
                Phase("main", config.steps, config.lr, self.warmup, self.width, config.batch_size, self.long_rows),
                Phase("anneal", **asdict(self.anneal)),
            ),
        )

    def run(self, cell: Cell) -> Result:
        from research.models.micro.train import run

        out = cell.scratch / "model"
        with cell.phase("pretrain"):
            results = run(out, self.recipe(cell.config), cell.progress, "python -m research task=pretrain")
        cell.rewind(-1)
        done = 0
        for phase, made in zip(results["recipe"]["phases"], results["phases"], strict=True):
            for step, loss in made["losses"]:
                cell.log(done + step, {"loss": loss, "phase": phase["mixture"]})
            done += phase["steps"]
        cell.write_completions(
            {"ability": ability, **sample} for ability, samples in results["samples"].items() for sample in samples
        )
        cell.progress(f"checkpoint: {out}")
        return Result(
            metrics={**results["metrics"], "loss": results["phases"][-1]["losses"][-1][1]},
            counts={name: (hits, trials) for name, (hits, trials) in results["counts"].items()},
            extra={name: results[name] for name in ("recipe", "phases", "measured", "parameters")},
        )
