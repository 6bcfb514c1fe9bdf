"""MAUVE of finished cells measured again, from the spans that they kept: for results of code that measured it otherwise.

    python -m research.tasks.imposter.remeasure results=eval_results/imposter/arms

Before and after training, with the embedded model's features in float32, as its cells run, on the human spans and the
written ones of each cell's completions.jsonl.gz. The cell's run_result.json is written anew with these numbers;
`provenance.remeasured` says by what. Nothing else of a result changes. `python -m research.report` then makes its page
again.
"""

from __future__ import annotations

import gzip
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.cells.cell import write_atomically
from research.cells.provenance import now, provenance
from research.config import ModelConfig
from research.errors import ConfigurationError
from research.models.base import Base, load_base
from research.tasks.imposter.evaluate import mauve_of
from research.words import run, settings


def remeasure(cell: Path, base: Base, command: str) -> tuple[dict[str, float], dict[str, float]]:
    """Write the cell's MAUVE anew, of before and after training; the cell's old numbers and the new ones.

    Raises ConfigurationError for a cell of another study, or of a model other than `base` in its precision.
    """
    result, kept = json.loads((cell / "run_result.json").read_text()), cell / "completions.jsonl.gz"
    if result["task"] != "imposter" or not kept.exists():
        raise ConfigurationError(f"{cell} is no cell of task=imposter that kept its spans.")
    dtype = str(base.model.dtype).removeprefix("torch.")
    made_with = result["provenance"]["inputs"]["weights"], result["cell"]["config"]["model.dtype"]
    if made_with != (base.weights_hash, dtype):
        raise ConfigurationError(f"{cell} was made with another model than the embedded one of this version.")
    with gzip.open(kept, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    buckets = result["cell"]["config"].get("task.eval.mauve_buckets")
    found: dict[str, float] = {}
    for phase, suffix in (("before", "_before"), ("after", "")):
        of_phase = [row for row in rows if row["phase"] == phase]
        human = list({row["document"]: row["human"] for row in of_phase}.values())
        measured = mauve_of(base, human, [row["text"] for row in of_phase if row["text"]], buckets)
        found |= {f"{name}{suffix}": value for name, value in measured.items()}
    old, result["metrics"] = result["metrics"], result["metrics"] | found
    by: dict[str, Any] = provenance(command)
    said = ("git_commit", "git_dirty", "python", "libraries", "cpu", "gpu", "command")
    result["provenance"]["remeasured"] = {**{name: by[name] for name in said}, "finished": now()}
    write_atomically(cell / "run_result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return old, found


def main(argv: Sequence[str]) -> None:
    """The command of the module's docstring."""
    folder = settings(argv, {"results": None})["results"]
    cells = sorted(path.parent for path in Path(folder).glob("*/run_result.json"))
    if not cells:
        raise ConfigurationError(f"results={folder} holds no cell with a result.")
    base = load_base(ModelConfig(dtype="float32"))
    for cell in cells:
        old, new = remeasure(cell, base, shlex.join(["python", "-m", "research.tasks.imposter.remeasure", *argv]))
        pairs = ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in ("mauve_before", "mauve"))
        print(f"{cell.name}: {pairs}", flush=True)


if __name__ == "__main__":
    run(main, __doc__)
