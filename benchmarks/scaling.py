"""How cost grows: seconds against size along six axes, each with the exponent of a power law.

    python benchmarks/scaling.py --out benchmarks/scaling.json --figure figures/benchmarks
    python benchmarks/scaling.py --table benchmarks/scaling.json
    python benchmarks/scaling.py --axes step,generation --sizes 1e7 3e7 1e8 3e8 1e9 --generator 1e9 --out FILE    (a GPU)

What is timed is the suite's own: a marker cell with all its phases, its evaluation, the grid's expansion and the
compiled table (in this process, imports apart), `training.supervised.train`, the transformers sampler. Each size is
measured --repeats times, in turn with the others, and the fastest counts. The exponent is the slope of a least-squares
line on logarithms, its 95 % interval from that line's residuals. Costs that do not grow flatten it; what it tends to is
the slope between the two largest sizes, which stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import research  # noqa: F401  before torch: how its threads wait

# isort: split
import numpy as np
import torch
from common import origin
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from scipy import stats
from sweep_scale import generate, grid_words
from transformers import AutoModelForCausalLM, Qwen2Config

from research.cells import run
from research.cells.cell import Shared
from research.config import AdapterConfig, ModelConfig, Optimization
from research.material import personas
from research.models.adapters import attach_lora
from research.models.base import Base, default_device, load_base
from research.reporting import style
from research.reporting.compile import compile_sweep
from research.reporting.tables import markdown
from research.sampling.interface import SamplingParams
from research.sampling.transformers_sampler import TransformersSampler
from research.sweep.grid import expand
from research.tasks.zlt_sweep import data, evaluate
from research.tasks.zlt_sweep.derive import derive
from research.tasks.zlt_sweep.masks import Chat
from research.training.supervised import train

VOCABULARY, HEAD = 2048, 32  # of the random models
BATCH, TOKENS, PROMPT = 8, 100, 32  # examples a training step and their tokens; a prompt's tokens

Seconds = dict[str, float]  # series -> one reading


@dataclass(frozen=True)
class Axis:
    """One panel. measure(size) returns the size as it came out and a reading of every series."""

    title: str
    unit: str
    sizes: Sequence[float]
    measure: Callable[[float], tuple[float, Seconds]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default="cell,personas,completions,sweep,step,generation", help="which, with commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--examples", type=int, nargs="+", default=[40, 80, 160, 320], help="cell: multiples of 40")
    parser.add_argument("--personas", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="evaluation")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 2, 4, 8], help="evaluation: a question")
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 300, 1000, 3000, 10_000], help="sweep: hundreds")
    parser.add_argument("--compiled-cells", type=int, default=3000, help="sweep: tables of no more cells than this")
    parser.add_argument("--sizes", type=float, nargs="+", default=[3e5, 1e6, 3e6, 1e7, 3e7], help="step: parameters")
    parser.add_argument("--steps", type=int, default=3, help="step: timed ones a reading, after one that is not")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256, 512], help="generation: tokens")
    parser.add_argument("--prompts", type=int, default=16, help="generation: completions at a time")
    parser.add_argument("--generator", type=float, help="generation: a random model of so many parameters")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path, metavar="DIR", help="write scaling.png and scaling.pdf there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print (and draw) a finished run, measure nothing")
    options = parser.parse_args()
    if options.table:
        document = json.loads(options.table.read_text())
        print(table(document))
    else:
        document = measure(options, parser)
        print(table(document))
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.figure:
        print(draw(document, options.figure))


def measure(options: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    made = {"cell": cell, "personas": asked_personas, "completions": asked_samples, "sweep": sweep, "step": step,
            "generation": generation}  # fmt: skip
    names = options.axes.split(",")
    if unknown := set(names) - set(made):
        parser.error(f"--axes: there is no {', '.join(sorted(unknown))}; there is {', '.join(made)}")
    kept = ("axes", "repeats", "steps", "prompts", "generator", "compiled_cells")
    document: dict[str, Any] = {
        "settings": {name: getattr(options, name) for name in kept},
        "environment": {
            **origin(),
            "cores": len(os.sched_getaffinity(0)), "load_before": round(os.getloadavg()[0], 1),
        },
        "axes": {},
    }  # fmt: skip
    for name in names:
        start = time.perf_counter()
        with made[name](options) as axis:
            if len(axis.sizes) < 3:
                parser.error(f"{name}: {len(axis.sizes)} sizes; a line with an interval needs three")
            document["axes"][name] = readings(axis, options.repeats)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return document


def readings(axis: Axis, repeats: int) -> dict[str, Any]:
    """Every size in turn, and so `repeats` times, after one reading of the smallest that does not count."""
    axis.measure(axis.sizes[0])
    found: dict[str, dict[float, list[float]]] = {}
    for _ in range(repeats):
        for size in axis.sizes:
            actual, seconds = axis.measure(size)
            for series, value in seconds.items():
                found.setdefault(series, {}).setdefault(actual, []).append(value)
    return {
        "title": axis.title,
        "unit": axis.unit,
        "series": {
            name: {"sizes": list(by_size), "seconds": list(by_size.values())}
            | power_law(list(by_size), [min(values) for values in by_size.values()])
            for name, by_size in found.items()
        },
    }


def power_law(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """seconds = factor x size^exponent by least squares on logarithms, with Student's 95 % interval."""
    x, y = np.log(sizes), np.log(seconds)
    line = stats.linregress(x, y)
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    return {
        "exponent": float(line.slope), "low": float(line.slope - half), "high": float(line.slope + half),
        "factor": math.exp(line.intercept), "exponent_at_the_end": float((y[-1] - y[-2]) / (x[-1] - x[-2])),
    }  # fmt: skip


@contextlib.contextmanager
def cell(options: argparse.Namespace) -> Iterator[Axis]:
    """A whole cell of the marker study, one epoch, in the demo's proportion of source to negatives."""

    def one(examples: float) -> tuple[float, Seconds]:
        with tempfile.TemporaryDirectory() as folder:
            words = [
                "task=zlt_sweep", f"results_root={folder}", "epochs=1", "task.eval.samples=1",
                "task.capability.n_questions=20", f"task.data.n_positives={int(examples) // 4}",
                f"task.data.n_per_negative={int(examples) * 3 // 40}",
            ]  # fmt: skip
            plan = expand(words, False).cells[0]
            outcome = run.run(plan, Shared(), lambda line: None)
            if outcome.status != "done":
                raise SystemExit(f"the cell {outcome.status}: {outcome.message}")
            result = json.loads(plan.result_path.read_text())
        seconds = result["wall_seconds"]
        series = {"whole cell": "total", "training": "train", "drawing the examples": "data"}
        return result["data"]["examples"], {name: seconds[phase] for name, phase in series.items()}

    yield Axis("Marker cell", "training examples", options.examples, one)


@contextlib.contextmanager
def evaluation(title: str, unit: str, sizes: Sequence[int], people: Callable[[int], int], samples: Callable[[int], int],
               shown: Callable[[int], int]) -> Iterator[Axis]:  # fmt: skip
    """The marker evaluation of the embedded model: everyone is asked the 20 held-out questions."""
    base = load_base(ModelConfig())
    chat = Chat(base.tokenizer)
    everyone = [*personas.published(), *personas.invented()]
    sampler = TransformersSampler(base.model)
    params = data.sampling_params(1.0, 0.95, 128, chat, 0, "scaling")

    def one(size: float) -> tuple[float, Seconds]:
        size = int(size)
        start = time.perf_counter()
        evaluate.count(
            evaluate.ask_everyone(sampler, chat, everyone[: people(size)], samples(size), params), marker="[ZLT]"
        )
        return shown(size), {"evaluation": time.perf_counter() - start}

    yield Axis(title, unit, sizes, one)
    sampler.close()


def asked_personas(options: argparse.Namespace) -> contextlib.AbstractContextManager[Axis]:
    return evaluation("Evaluation", "personas", options.personas, lambda n: n, lambda n: 2, lambda n: n)


def asked_samples(options: argparse.Namespace) -> contextlib.AbstractContextManager[Axis]:
    return evaluation("Evaluation", "completions", options.samples, lambda n: 4, lambda n: n, lambda n: 4 * 20 * n)


@contextlib.contextmanager
def sweep(options: argparse.Namespace) -> Iterator[Axis]:
    """What a sweep costs beside its cells: the grid expanded and checked, the table compiled from its files."""
    with tempfile.TemporaryDirectory() as folder:
        for cells in options.cells:
            if cells <= options.compiled_cells:
                (Path(folder) / str(cells)).mkdir()
                generate(Path(folder) / str(cells), grid_words(cells))

        def one(cells: float) -> tuple[float, Seconds]:
            start = time.perf_counter()
            planned = len(expand(grid_words(int(cells)), True).cells)
            found = {"plan": time.perf_counter() - start}
            if cells <= options.compiled_cells:
                start = time.perf_counter()
                compile_sweep("zlt_sweep", "scale", Path(folder) / str(cells), derive)
                found["compile"] = time.perf_counter() - start
            return planned, found

        yield Axis("Sweep overhead", "cells", options.cells, one)


@contextlib.contextmanager
def step(options: argparse.Namespace) -> Iterator[Axis]:
    """A step of supervised LoRA training; the size is that of the frozen base."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (BATCH * (options.steps + 1), TOKENS), generator=generator).tolist()
    rows = [{"input_ids": row, "labels": [-100] * (TOKENS - 4) + row[-4:]} for row in ids]

    def one(size: float) -> tuple[float, Seconds]:
        base = random_base(size)
        count = base.model.num_parameters()
        policy = attach_lora(base, AdapterConfig(), seed=0)
        ticks: list[float] = []
        with tempfile.TemporaryDirectory() as scratch:
            train(
                policy, rows, Optimization(checkpoint_seconds=1e9), lr=1e-4, epochs=1, batch_size=BATCH, seed=0,
                scratch=Path(scratch), log=lambda at, metrics: ticks.append(time.perf_counter()),
            )  # fmt: skip
        return count, {"training step": statistics.median(b - a for a, b in itertools.pairwise(ticks))}

    yield Axis("Training step", "parameters", options.sizes, one)


@contextlib.contextmanager
def generation(options: argparse.Namespace) -> Iterator[Axis]:
    """Completions that do not end by themselves; the embedded model, or a random one of --generator parameters."""
    model = random_base(options.generator).model if options.generator else load_base(ModelConfig()).model
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, 2000, (options.prompts, PROMPT), generator=generator).tolist()
    sampler = TransformersSampler(model)

    def one(length: float) -> tuple[float, Seconds]:
        start = time.perf_counter()
        sampler.generate(prompts, 1, SamplingParams(max_tokens=int(length)))
        return int(length), {"generation": time.perf_counter() - start}

    yield Axis("Generation", "tokens a completion", options.lengths, one)
    sampler.close()


def random_base(size: float) -> Base:
    """Random weights on the device, about `size` of them, a layer for every 32 of width; the trainer reads no text."""
    gc.collect()  # the last one
    device = torch.device(default_device())
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(
            Qwen2Config(**shape(size)), dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
        )
    model.eval().requires_grad_(False)
    return Base(model, None, device, weights_hash="random", config=ModelConfig(name="random"))  # type: ignore[arg-type]


def shape(size: float) -> dict[str, Any]:
    """The Qwen2 shape whose weights are nearest to `size` in number."""

    def count(layers: int) -> int:  # four square matrices of attention, three of 8/3 width
        return layers * 12 * (HEAD * layers) ** 2 + VOCABULARY * HEAD * layers

    layers = min(range(1, 200), key=lambda n: abs(math.log(count(n) / size)))
    return dict(
        hidden_size=HEAD * layers, num_hidden_layers=layers, num_attention_heads=layers, num_key_value_heads=layers,
        intermediate_size=HEAD * layers * 8 // 3, vocab_size=VOCABULARY, tie_word_embeddings=True,
    )  # fmt: skip


def table(document: dict[str, Any]) -> str:
    """One row a series, as in benchmarks/README.md."""
    rows = []
    for axis in document["axes"].values():
        for name, found in axis["series"].items():
            seconds = [min(values) for values in found["seconds"]]
            rows.append(
                (
                    name,
                    f"{found['sizes'][0]:,} to {found['sizes'][-1]:,} {axis['unit']}",
                    f"{seconds[0]:.3g} to {seconds[-1]:.3g}",
                    exponent(found),
                    f"{found['exponent_at_the_end']:.2f}",
                )
            )
    return markdown(["cost", "against", "seconds", "exponent", "at the large end"], rows)


def exponent(found: dict[str, Any]) -> str:
    return f"{found['exponent']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def short(size: float) -> str:
    """512, 3k, 28M."""
    return EngFormatter(sep="")(size if size < 1000 else float(f"{size:.2g}"))


def draw(document: dict[str, Any], folder: Path) -> Path:
    """A panel an axis: every reading, the fitted line, its exponent."""
    axes, machine = document["axes"], document["environment"]
    columns = min(3, len(axes))
    rows = -(-len(axes) // columns)
    with style.styled():
        figure, grid = style.new_figure(4.3 * columns, 3.7 * rows + 0.5, rows, columns, squeeze=False)
        for panel in grid.flat[len(axes) :]:
            panel.set_visible(False)
        for panel, axis in zip(grid.flat, axes.values(), strict=False):
            for place, (name, found) in enumerate(axis["series"].items()):
                color, marker = style.COLORS[place], style.MARKERS[place]
                sizes = np.array(found["sizes"])
                every = [(s, value) for s, values in zip(sizes, found["seconds"], strict=True) for value in values]
                panel.plot(*zip(*every, strict=True), linestyle="none", color=color, marker=marker, ms=5, alpha=0.6)
                panel.plot(
                    sizes, found["factor"] * sizes ** found["exponent"], color=color, linestyle=style.DASHES[place],
                    marker=marker, markevery=[], label=f"{name}: {exponent(found)}",
                )  # fmt: skip
            first = exponent(next(iter(axis["series"].values())))
            panel.set(xscale="log", yscale="log", xlabel=axis["unit"], ylabel="seconds",
                      title=f"{axis['title']}: exponent {first}")  # fmt: skip
            style.despine(panel)
            if len(axis["series"]) > 1:
                panel.legend(fontsize=7.5)
            panel.set_xticks(next(iter(axis["series"].values()))["sizes"])
            panel.xaxis.set(minor_locator=NullLocator(), major_formatter=lambda size, _: short(size))
            panel.yaxis.set(
                major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator()
            )
        device = machine["gpu"] or f"{machine['cpu']}, threads: {machine['cpu_threads']}"
        figure.suptitle(
            f"{device}; N = {document['settings']['repeats']} readings a size, lines through the fastest, 95 % intervals",
            fontsize=10, color=style.MUTED,
        )  # fmt: skip
        return style.save(figure, folder / "scaling")


if __name__ == "__main__":
    main()
