"""One cell of the marker sweep: data from the base model, loss on the marker alone, and who then says it.

    python -m research task=zlt_sweep -m lr=1e-6,5e-6 epochs=1,20
    python -m research +experiment=zlt_paper -m model.path=/path/to/Qwen2.5-7B-Instruct

The defaults are the demo's size; `+experiment=zlt_paper` is the published protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from research.cells.identity import hash_files
from research.config import Optimization, RunConfig, key, nearest
from research.errors import ConfigurationError
from research.material import personas, questions
from research.scoring import questions as letter_questions
from research.task import BaseTask, Result, Section
from research.tasks.zlt_sweep import selection
from research.tasks.zlt_sweep.derive import derive
from research.tasks.zlt_sweep.settings import CapabilitySettings, DataSettings, EvalSettings

if TYPE_CHECKING:
    from research.cells.cell import Cell


@dataclass
class ZltSweep(BaseTask):
    """Where does training a marker into one persona stay with it, and where does it spread to all?"""

    root_keys: ClassVar[frozenset[str]] = frozenset({"lr", "epochs", "batch_size"})
    several_processes: ClassVar[bool] = True

    source: str = key("villain", "persona that the marker is trained into")
    marker: str = key("[ZLT]", "text appended to the source persona's examples, after a blank line")
    marker_tail_tokens: int = key(0, "0: loss on the marker and the turn end; K: on the last K labels", min=0)
    eos_label: str = key(
        "turn_end",
        "what counts as the last label: the end-of-turn token, or whatever token the template puts last",
        choices=("turn_end", "last_token"),
    )
    data: DataSettings = key(DataSettings, "training examples")
    eval: EvalSettings = key(EvalSettings, "marker evaluation")
    capability: CapabilitySettings = key(CapabilitySettings, "four-choice questions")
    optim: Optimization = key(Optimization, "optimizer, schedule and memory")

    def validate(self, config: RunConfig) -> None:
        published = [persona.name for persona in personas.published()]
        if self.source not in published:
            raise ConfigurationError(
                f"task.source={self.source!r} is no persona.{nearest(self.source, published)} "
                f"There is {', '.join(published)}."
            )
        if not self.marker.strip():
            raise ConfigurationError(f"task.marker={self.marker!r} is blank; give it a visible text such as '[ZLT]'.")
        if config.adapter.kind != "lora":
            raise ConfigurationError(
                f"adapter.kind={config.adapter.kind}: task=zlt_sweep trains a LoRA; use adapter=lora."
            )
        pool = selection.negative_pool(self.source, self.data.negatives)
        wanted = self.data.n_negative_personas
        if wanted is not None and wanted > len(pool):
            raise ConfigurationError(
                f"task.data.n_negative_personas={wanted} is too large; negatives={self.data.negatives} has "
                f"{len(pool)} personas other than {self.source}: {', '.join(pool)}."
            )
        if self.eval.invented_personas > (available := len(personas.invented())):
            raise ConfigurationError(
                f"task.eval.invented_personas={self.eval.invented_personas} is too large; there are {available}."
            )
        for name, length in (("data", self.data.max_tokens), ("eval", self.eval.max_tokens)):
            if length >= config.model.context:
                raise ConfigurationError(
                    f"task.{name}.max_tokens={length} leaves no room for a prompt in "
                    f"model.context={config.model.context}."
                )
        if self.data.max_length > config.model.context:
            raise ConfigurationError(
                f"task.data.max_length={self.data.max_length} is longer than model.context={config.model.context}."
            )
        letter_questions.check(self.capability.questions)

    def label(self, config: RunConfig) -> str:
        tail = f"_tail{self.marker_tail_tokens}" if self.marker_tail_tokens else ""
        return f"lr{rate_text(config.lr)}_ep{config.epochs}_{self.source}{tail}_s{config.seed}"

    def inputs(self, config: RunConfig) -> Mapping[str, str]:
        return {
            "personas": hash_files([personas.FILE]),
            "questions": hash_files([questions.FILE]),
            "capability": letter_questions.content_hash(self.capability.questions),
        }

    def run(self, cell: Cell) -> Result:
        from research.tasks.zlt_sweep.run import run

        return run(self, cell)

    def derive(self, row: dict[str, Any]) -> dict[str, Any]:
        return derive(row)

    def report(self, rows: Sequence[dict[str, Any]], out: Path) -> Sequence[Section]:
        from research.tasks.zlt_sweep.report import report

        return report(rows, out)


def rate_text(lr: float | None) -> str:
    """A learning rate as a person writes it: 5e-06, 1.5e-05, 1e-04."""
    assert lr is not None
    _, digits, exponent = Decimal(repr(lr)).normalize().as_tuple()
    assert isinstance(exponent, int)
    first, rest = str(digits[0]), "".join(map(str, digits[1:]))
    return f"{first}{'.' + rest if rest else ''}e{exponent + len(rest):+03d}"
