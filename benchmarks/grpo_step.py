"""A GRPO step against stock TRL: `python benchmarks/grpo_step.py [--steps 6] [--kinds stock ours ...] [--out FILE]`;
`--table FILE` prints the table of benchmarks/README.md.

Same model, LoRA, prompts, groups, loss and number of steps, one after the other: `trl.GRPOTrainer` with its own
generation (`--sampler vllm`: its colocated vLLM), and `research.training.policy.train_policy`: as it is, in stock's
micro-batches, there also without a technique, with a gradient constraint, and with AntiPaSTO in place of LoRA. Rewards
are a function of the token ids, so that no grader is timed. The first step of each run is left out, and --repeats
alternates them (but for a colocated stock, which runs once). What is compared is completion tokens a second: generated,
rewarded and trained on; the runs draw their own completions.

On the embedded model the prompts are the reward-hacking study's. On one GPU without a hub, random weights and prompts,
and completions that all have the full length:

    python benchmarks/grpo_step.py --shape qwen2.5-3b --sampler vllm --steps 8 --repeats 2 --prompt-tokens 512 --max-tokens 256 \\
        --micro-batch-size 16 --own-micro-batch-size 32 --out benchmarks/grpo_step_3b.json

There AntiPaSTO's bases are random orthonormal ones: those of random weights are no others, and cost a step the same,
but a decomposition takes seconds a matrix. With vLLM, stock TRL runs in a process of its own, since its engine cannot
be closed, and ours share one engine, as cells do. What --out holds of the same settings and commit is kept: kinds may
be run apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import research  # noqa: F401  before torch: how its threads wait

# isort: split
import torch
from common import SHAPES, Meter, clock, free, make_base, origin, parsed
from stand_ins import random_directions, random_factors, unfused

from research.config import AdapterConfig, ModelConfig, Optimization, RunConfig, SamplerConfig
from research.models import antipasto
from research.models.adapters import attach_lora
from research.models.base import Base
from research.sampling.build import build_sampler
from research.sampling.interface import Sampler
from research.tasks.reward_hack.dataset import make_prompts
from research.tasks.reward_hack.pairs import Chat
from research.tasks.reward_hack.problems import load
from research.tasks.reward_hack.task import problem_file
from research.training import fused_lora
from research.training.constraints import Constraint
from research.training.policy import PolicyConfig, train_policy, trl_arguments
from research.training.rollouts import Group, Prompt, Scores

KINDS: dict[str, tuple[str, dict[str, Any]]] = {  # short name -> row's name, arguments of `run_ours`
    "stock": ("stock TRL", {}),
    "ours": ("ours", {"adapter": AdapterConfig()}),
    "narrow": ("ours, stock's micro-batches", {"adapter": AdapterConfig(), "narrow": True}),
    "unshared": (
        "ours, stock's micro-batches, prompts not shared",
        {"adapter": AdapterConfig(), "narrow": True, "share_prompts": False},
    ),
    "peft_layers": (
        "ours, stock's micro-batches, PEFT's LoRA layers",
        {"adapter": AdapterConfig(), "narrow": True, "fused": False},
    ),
    "cudnn": ("ours, cuDNN's attention", {"adapter": AdapterConfig(), "cudnn": True}),
    "erase": ("ours, erase on frozen A", {"adapter": AdapterConfig(freeze_a=True), "constraint": "erase"}),
    "antipasto": ("ours, AntiPaSTO", {"adapter": AdapterConfig(kind="antipasto", r=None)}),
    "antipasto_erase": (
        "ours, AntiPaSTO, erase", {"adapter": AdapterConfig(kind="antipasto", r=None), "constraint": "erase"}
    ),
}  # fmt: skip
STOCK = KINDS["stock"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", choices=KINDS, nargs="+", help="which rows to run; default: all that differ")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of the embedded model")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each; one more goes before them")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, alternating")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=16, help="rows a forward pass")
    parser.add_argument("--own-micro-batch-size", type=int, help="the same for ours; default: no other")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="with --shape")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--rank", type=int, default=32, help="of AntiPaSTO's basis; 0: full")
    parser.add_argument("--sampler", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--gpu-memory", type=float, default=0.2, help="share of the GPU that vLLM takes")
    parser.add_argument("--weights", type=Path, help="directory of --shape's weights for vLLM, made when it is not there; "
                        "default: a temporary one")  # fmt: skip
    options = parsed(parser, table)
    options.model = "micro"
    again = {}  # kinds that would be `ours` once more
    if options.own_micro_batch_size is None:
        again["narrow"] = "without --own-micro-batch-size"
    if not torch.cuda.is_available():
        again["cudnn"] = "without a GPU"
    for kind in options.kinds or ():
        if kind in again:
            parser.error(f"--kinds {kind}: {again[kind]} it is the same as ours")
    options.kinds = options.kinds or [kind for kind in KINDS if kind not in again]
    with contextlib.ExitStack() as stack:
        if options.shape and options.sampler == "vllm" and options.weights is None:
            options.weights = Path(stack.enter_context(tempfile.TemporaryDirectory())) / options.shape
        print(table(measure(options)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    apart = ("kinds", "out", "table", "weights")
    report: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if k not in apart},
        "provenance": origin(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: __import__(name).__version__ for name in ("torch", "trl", "transformers", "peft")},
        "runs": {},
    }  # fmt: skip
    before = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    same = all(before.get(part) == report[part] for part in ("settings", "device", "versions"))
    if same and before["provenance"]["git_commit"] == report["provenance"]["git_commit"]:
        report["runs"] = before["runs"]

    def keep(kind: str, row: dict[str, Any]) -> None:
        report["runs"] |= {KINDS[kind][0]: row}
        report["runs"] = {name: report["runs"][name] for name, _ in KINDS.values() if name in report["runs"]}
        stock = report["runs"].get(STOCK)
        for found in report["runs"].values():
            found["times_stock"] = stock and found["tokens_per_second"] / stock["tokens_per_second"]
        print(
            f"{KINDS[kind][0]}: {row['step_seconds']:.2f} s a step, {row['tokens_per_second']:.0f} tokens/s", flush=True
        )
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n")

    if options.sampler == "vllm":
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # TRL reaches into the engine, and so do we
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import LLM  # noqa: F401  here: it keeps the frames that import it first, and a policy in them, for good
    if options.weights and not (options.weights / "tokenizer.json").exists():  # which is written last
        make_base(options, save_to=options.weights)
        free()
    samplers = Samplers(options)
    rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in sorted(options.kinds, key=list(KINDS).index)}
    for _ in range(options.repeats):
        for kind, found in rounds.items():  # stock first, with the whole device
            if kind == "stock" and options.sampler == "vllm":
                if found:
                    continue
                run = run_apart(options, kind) if options.kinds != ["stock"] else run_stock(options)
            elif kind == "stock":
                run = run_stock(options)
            else:
                run = run_ours(options, samplers, **KINDS[kind][1])
            if options.sampler == "transformers":
                samplers.close()
            keep(kind, pooled([*found, run]))
            found.append(run)
    samplers.close()
    return report


def pooled(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the steps of all runs; of phases and of the constraint's seconds, medians of the runs' own.

    runs: what `Clock.result` gave of each.
    """
    seconds, tokens = ([value for run in runs for value in run[name]] for name in ("seconds", "tokens"))
    step = statistics.median(seconds)
    found = {
        "step_seconds": step, "tokens_per_second": statistics.median(t / s for t, s in zip(tokens, seconds, strict=True)),
        "seconds": seconds, "tokens": tokens,
        "constraint_seconds": statistics.median(run["constraint_seconds"] for run in runs),
        "peak_mib": max((run["peak_mib"] for run in runs if run["peak_mib"]), default=None),
        "device_allocations": runs[0]["device_allocations"],
    }  # fmt: skip
    found["constraint_share"] = found["constraint_seconds"] / step
    if phases := [run["phases"] for run in runs if "phases" in run]:
        found["phases"] = {name: statistics.median(each[name] for each in phases) for name in phases[0]}
    return found


def table(report: dict[str, Any]) -> str:
    """The measurements as the table of benchmarks/README.md."""
    memory = any(row.get("peak_mib") for row in report["runs"].values())
    lines = [
        "| | s a step | of each round | tokens/s | of stock | constraint's share |" + (" peak GiB |" if memory else "")
    ]
    lines.append("|---" * (7 if memory else 6) + "|")
    for kind, row in report["runs"].items():
        of_stock = f"{row['times_stock']:.2f}" if row["times_stock"] else ""
        share = f"{row['constraint_share']:.2%}" if row["constraint_share"] else ""
        each = ", ".join(f"{seconds:.2f}" for seconds in medians(row, report["settings"]["steps"]))
        line = (
            f"| {kind} | {row['step_seconds']:.2f} | {each} | {row['tokens_per_second']:,.0f} | {of_stock} | {share} |"
        )
        lines.append(line + (f" {row['peak_mib'] / 1024:.1f} |" if memory else ""))
    return re.sub(r"\| +(?=\|)", "| ", "\n".join(lines))


def medians(row: dict[str, Any], steps: int) -> list[float]:
    """Seconds a step of each round; `pooled` has put their steps in a line."""
    return [statistics.median(row["seconds"][i : i + steps]) for i in range(0, len(row["seconds"]), steps)]


def run_apart(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """One kind in a process of its own, which takes its engine with it."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "row.json"
        command = [sys.executable, __file__, "--kinds", kind, "--out", str(out)]
        for name, value in vars(options).items():
            if value is not None and name not in ("kinds", "out", "table", "model", "repeats"):
                command += [f"--{name.replace('_', '-')}", str(value)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())["runs"][KINDS[kind][0]]


class Samplers:
    """Each policy's sampler: one of its own, or the one vLLM engine with its weights synced in."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.held = options, None

    def of(self, policy: Any, base: Base) -> Sampler:
        options = self.options
        if self.held is not None:
            self.held.sync(policy)
            return self.held
        path = str(options.weights) if options.weights else base.config.path
        context = options.prompt_tokens + options.max_tokens if options.shape else base.config.context
        config = RunConfig(
            model=ModelConfig(name=base.config.name, path=path, context=context),
            sampler=SamplerConfig(kind=options.sampler, gpu_memory_utilization=options.gpu_memory),
        )
        self.held = build_sampler(config, policy, base.tokenizer)
        return self.held

    def close(self) -> None:
        if self.held is not None:
            self.held.close()
        self.held = None


def settings(options: argparse.Namespace, stop: int, micro: int, share_prompts: bool = True) -> PolicyConfig:
    """Random weights of a shape stop at no token: all completions have the same length, in every run."""
    optim = Optimization(micro_batch_size=micro, checkpoint_seconds=1e9)
    return PolicyConfig(
        steps=options.steps + 1, lr=1e-4, batch_size=options.groups * options.group_size, max_tokens=options.max_tokens,
        group_size=options.group_size, stop_token_ids=() if options.shape else (stop,), optim=optim, share_prompts=share_prompts,
    )  # fmt: skip


def even_ids(completions: list[list[int]]) -> list[float]:
    """Share of even token ids."""
    return [sum(token % 2 == 0 for token in ids) / max(1, len(ids)) for ids in completions]


class Clock:
    """Seconds and completion tokens of each step, from reward to reward."""

    def __init__(self) -> None:
        self.ticks: list[float] = []
        self.tokens: list[int] = []

    def __call__(self, completions: list[list[int]]) -> None:
        self.ticks.append(clock())
        self.tokens.append(sum(map(len, completions)))

    def result(self, meter: Meter, constraint_seconds: Sequence[float] = ()) -> dict[str, Any]:
        """The steps between two rewards: what is generated in a step is trained on before its reward and after it.

        constraint_seconds: of every step, the first one included; given back as the others' median.
        """
        steps = [b - a for a, b in zip(self.ticks[:-1], self.ticks[1:], strict=True)]
        constraint = statistics.median(constraint_seconds[1:]) if constraint_seconds else 0.0
        return {"seconds": steps, "tokens": self.tokens[1:], "constraint_seconds": constraint, **meter.memory()}


def run_stock(options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from trl import GRPOTrainer

    base = make_base(options, cudnn=True)
    policy = attach_lora(base, AdapterConfig(), seed=0)
    prompts, timer = make_prompts_for(options, base), Clock()

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        timer(completion_ids)
        return even_ids(completion_ids)

    meter = Meter()
    with tempfile.TemporaryDirectory() as scratch:
        config = settings(options, base.tokenizer.eos_token_id, options.micro_batch_size)
        arguments = trl_arguments(config, Path(scratch), policy)
        if options.sampler == "vllm":
            arguments.use_vllm, arguments.vllm_mode = True, "colocate"
            arguments.vllm_gpu_memory_utilization = options.gpu_memory
            arguments.vllm_importance_sampling_correction = False  # ours does without that forward pass as well
            base.model.name_or_path = str(options.weights) if options.weights else base.model.name_or_path
            if options.shape:
                arguments.vllm_max_model_length = options.prompt_tokens + options.max_tokens
        if options.shape:
            full = {"ignore_eos": True} if options.sampler == "vllm" else {"min_new_tokens": options.max_tokens}
            arguments.generation_kwargs = full
        texts = [base.tokenizer.decode(prompt.token_ids) for prompt in prompts]
        if any(base.tokenizer.encode(t) != list(p.token_ids) for t, p in zip(texts, prompts, strict=True)):
            raise SystemExit("TRL would read other prompts than ours")
        trainer = GRPOTrainer(
            policy, reward, arguments, Dataset.from_dict({"prompt": texts}), processing_class=base.tokenizer
        )
        trainer.log = lambda *_: None  # nothing printed
        trainer.train()
    return timer.result(meter)


def run_ours(
    options: argparse.Namespace, samplers: Samplers, adapter: AdapterConfig,
    constraint: str = "none", narrow: bool = False, share_prompts: bool = True, fused: bool = True,
    cudnn: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """narrow: in stock's micro-batches. share_prompts, fused: with this technique. cudnn: attention may be cuDNN's."""
    base = make_base(options, cudnn=cudnn)
    if adapter.kind == "antipasto":
        if options.shape:
            antipasto.decompose = random_factors
        policy = antipasto.attach(
            base.model, adapter.targets, options.rank or None, Path(tempfile.gettempdir()) / "svd"
        )
    else:
        policy = attach_lora(base, adapter, seed=0)
    timer, watched = Clock(), None
    if constraint != "none":
        watched = Timed(constraint, restore_magnitude=True, directions=random_directions(policy))

    def reward(groups: list[Group], step: int) -> Scores:
        rewards = [even_ids([list(r.token_ids) for r in group.rollouts]) for group in groups]
        timer([list(r.token_ids) for group in groups for r in group.rollouts])
        return Scores(rewards)

    sampler = samplers.of(policy, base)
    micro = options.micro_batch_size if narrow else options.own_micro_batch_size or options.micro_batch_size
    config = settings(options, base.tokenizer.eos_token_id, micro, share_prompts)
    said: list[str] = []
    rows: list[dict[str, float]] = []
    layers = contextlib.nullcontext() if fused else mock.patch.object(fused_lora, "fused_lora", unfused)
    meter = Meter()
    with tempfile.TemporaryDirectory() as scratch, layers:
        train_policy(
            policy, base.tokenizer, make_prompts_for(options, base), reward, sampler=sampler, config=config,
            scratch=Path(scratch), constraint=watched, progress=said.append, log=lambda _, row: rows.append(dict(row)),
        )  # fmt: skip
    for line in said:
        if "computes its own prompt" in line:
            print(line, flush=True)
    parts = ("sampling/seconds", "sync/seconds", "sync/proof_seconds", "probe/seconds")
    phases = {part: statistics.median(row[part] for row in rows[1:]) for part in parts}
    return timer.result(meter, [] if watched is None else watched.seconds) | {"phases": phases}


class Timed(Constraint):
    """A constraint that knows how long it took, each time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds: list[float] = []

    def apply(self, knobs: Any) -> dict[str, float]:
        start = clock()  # what the backward pass has queued is not the constraint's
        found = super().apply(knobs)  # its metrics are numbers: the device has caught up
        self.seconds.append(time.perf_counter() - start)
        return found


def make_prompts_for(options: argparse.Namespace, base: Base) -> list[Prompt]:
    count = options.groups * (options.steps + 1)
    if options.shape:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, 2000, (count, options.prompt_tokens), generator=generator)
        return [Prompt(row, {}) for row in ids.tolist()]
    problems = load(problem_file("shipped", "train"))[:count]
    return make_prompts(Chat(base.tokenizer, None), problems, ["run_tests"], "overwrite", 0, evaluation=False)


if __name__ == "__main__":
    main()
