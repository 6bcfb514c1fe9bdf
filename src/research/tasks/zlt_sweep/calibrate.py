"""Find the LoRA scale at which a small base model's regimes lie on the published learning-rate axis.

    python -m research.tasks.zlt_sweep.calibrate --scales 20,40,60 --out calibration

A marker is learned by learning rate x steps x LoRA scale. The demo has a tenth of the published steps and a model a
thousand times smaller, so that only the scale is free to bring the regimes back to the published learning rates. It is
calibrated once, on source personas that no shipped experiment reports, and then held fixed: `conf/model/micro.yaml`.

Rule: a scale fits when, for every source, the under-trained cell (1e-6, 1 epoch) has source <= .05, and the clean cell
(5e-6, 20 epochs) has source >= .5 and every other persona <= .05. Chosen is the geometric middle of the first and last
scale that fit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.cells import run
from research.cells.cell import Shared, write_atomically
from research.cells.progress import Progress
from research.config import AdapterConfig, ModelConfig, RunConfig
from research.errors import ConfigurationError
from research.material import questions
from research.models.identity import model_inputs
from research.tasks.zlt_sweep.derive import LEAK_LIMIT, SOURCE_LIMIT, leak, regime_of
from research.tasks.zlt_sweep.task import ZltSweep

UNDER_TRAINED, CLEAN = (1e-6, 1), (5e-6, 20)
SOURCES = ("librarian", "police_officer")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scales", type=scales, default="20,40,60", help="LoRA scales to try")
    parser.add_argument("--sources", default=",".join(SOURCES), help="source personas; none that is reported")
    parser.add_argument(
        "--cells", type=places, default="1e-6:1,5e-6:20", help="lr:epochs to run; the rule's two are always run"
    )
    parser.add_argument("--model", default="embedded", help="the base model: `embedded` or a directory")
    # The demo's 2 make 40 completions a persona, of which one hit in ten and one in twenty are hard to tell apart.
    parser.add_argument("--samples", type=int, default=10, help="completions a question")
    parser.add_argument("--examples", type=int, help="training examples of every persona (default: the demo's)")
    parser.add_argument("--out", type=Path, default=Path("calibration"), help="results root, and calibration.json")
    words = parser.parse_args(argv)
    if words.examples is not None and words.examples < 1:
        parser.error(f"--examples {words.examples}: at least 1")
    progress, shared = Progress(), Shared()
    rows = [
        {"source": source, "scale": scale} | measure(configuration(words, source, scale, *place), shared, progress)
        for source in words.sources.split(",")
        for scale in words.scales
        for place in sorted({UNDER_TRAINED, CLEAN, *words.cells})
    ]
    document = {
        "rule": (__doc__ or "").split("Rule: ")[1].strip(),
        "sources": words.sources.split(","),
        "completions": words.samples * len(questions.questions("eval")),
        "examples": words.examples,
        "model": model_inputs(ModelConfig(path=words.model)),
        "cells": rows,
        "fitting": fitting(rows),
        "chosen": choose(rows),
    }
    write_atomically(words.out / "calibration.json", json.dumps(document, indent=1) + "\n")
    progress(f"chosen scale: {document['chosen']}; {words.out / 'calibration.json'}")


def scales(text: str) -> list[float]:
    return sorted(map(float, text.split(",")))


def places(text: str) -> list[tuple[float, int]]:
    """lr:epochs, apart by commas; raises ValueError."""
    return [(float(lr), int(epochs)) for lr, _, epochs in (word.partition(":") for word in text.split(","))]


def configuration(words: argparse.Namespace, source: str, scale: float, lr: float, epochs: int) -> RunConfig:
    """The demo's cell with another source, scale and number of examples."""
    task = ZltSweep(source=source)
    task.eval.samples = words.samples
    if words.examples is not None:
        task.data.n_positives = task.data.n_per_negative = words.examples
    config = RunConfig(
        model=ModelConfig(path=words.model), adapter=AdapterConfig(scale=scale), task=task, name="calibration",
        lr=lr, epochs=epochs, batch_size=16, results_root=str(words.out),
    )  # fmt: skip
    task.validate(config)
    return config


def measure(config: RunConfig, shared: Shared, progress: Progress) -> dict[str, Any]:
    """Run one cell, unless it is done, and keep what the rule needs."""
    cell = run.plan("zlt_sweep", config, model_inputs(config.model))
    outcome = run.run(cell, shared, progress)
    if outcome.status == "failed":
        raise ConfigurationError(f"{outcome.name}: {outcome.message}")
    row = json.loads(cell.result_path.read_text())
    found = {
        "lr": config.lr, "epochs": config.epochs, "source_marker": row["source_marker"], "highest_other": leak(row),
        "regime": regime_of(row), "arc_c": row["arc_c"], "wall_seconds": row["wall_seconds"],
        "git_commit": row["provenance"]["git_commit"], "gpu": row["provenance"]["gpu"],
    }  # fmt: skip
    progress(f"{config.task.source} scale {config.adapter.scale:g} {found}")
    return found


def fitting(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The scales that fit every source, ascending."""

    def holds(row: Mapping[str, Any]) -> bool:
        place = (row["lr"], row["epochs"])
        if place == UNDER_TRAINED:
            return row["source_marker"] <= LEAK_LIMIT
        return place != CLEAN or (row["source_marker"] >= SOURCE_LIMIT and row["highest_other"] <= LEAK_LIMIT)

    return [s for s in sorted({row["scale"] for row in rows}) if all(holds(row) for row in rows if row["scale"] == s)]


def choose(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The geometric middle of the scales that fit, to two digits; None when none does."""
    found = fitting(rows)
    return float(f"{math.sqrt(found[0] * found[-1]):.2g}") if found else None


if __name__ == "__main__":
    main(sys.argv[1:])
