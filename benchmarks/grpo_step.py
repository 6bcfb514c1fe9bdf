"""A GRPO step against stock TRL: `python benchmarks/grpo_step.py [--steps 6] [--sampler transformers] [--out FILE]`.

Same model, LoRA, prompts, groups, loss and number of steps, one after the other in this process: `trl.GRPOTrainer` with
its own generation (`--sampler vllm`: its colocated vLLM), and `research.training.policy.train_policy`, with and without
a gradient constraint, and with AntiPaSTO in place of the LoRA. Rewards are a function of the token ids, so that no
grader is timed. The first step of each is left out. What is compared is completion tokens a second: generated,
rewarded and trained on; the runs draw their own completions.

On the embedded model the prompts are the reward-hacking study's. --shape qwen2.5-7b and --prompt-tokens: random weights
and prompts, for machines with a GPU and no hub.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from zlt_cell import SHAPES, Meter, make_base

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
from research.training.constraints import Constraint, knobs
from research.training.policy import PolicyConfig, train_policy, trl_arguments
from research.training.rollouts import Group, Prompt, Scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of the embedded model")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each; one more goes before them")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=512, help="with --shape")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--sampler", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    options.model = "micro"
    lora, erase = AdapterConfig(), {"constraint": "erase"}
    kinds = {
        "stock TRL": lambda: run_stock(options),
        "ours": lambda: run_ours(options, lora),
        "ours, prompts not shared": lambda: run_ours(options, lora, share_prompts=False),
        "ours, erase on frozen A": lambda: run_ours(options, AdapterConfig(freeze_a=True), **erase),
        "ours, AntiPaSTO": lambda: run_ours(options, AdapterConfig(kind="antipasto")),
        "ours, AntiPaSTO, erase": lambda: run_ours(options, AdapterConfig(kind="antipasto"), **erase),
    }
    report: dict[str, Any] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: __import__(name).__version__ for name in ("torch", "trl", "transformers", "peft")},
        "runs": {},
    }  # fmt: skip
    print(f"{'':26}{'s a step':>10}{'tokens/s':>10}{'of stock':>10}{'constraint':>12}{'peak MiB':>10}")
    for kind, run in kinds.items():
        row = report["runs"][kind] = run()
        row["times_stock"] = row["tokens_per_second"] / report["runs"]["stock TRL"]["tokens_per_second"]
        print(
            f"{kind:26}{row['step_seconds']:>10.2f}{row['tokens_per_second']:>10.0f}{row['times_stock']:>10.2f}"
            f"{row['constraint_share']:>12.2%}{row['peak_mib'] or float('nan'):>10.0f}",
            flush=True,
        )
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def settings(options: argparse.Namespace, stop: int, share_prompts: bool = True) -> PolicyConfig:
    optim = Optimization(micro_batch_size=options.micro_batch_size, checkpoint_seconds=1e9)
    return PolicyConfig(
        steps=options.steps + 1, lr=1e-4, batch_size=options.groups * options.group_size, max_tokens=options.max_tokens,
        group_size=options.group_size, stop_token_ids=(stop,), optim=optim, share_prompts=share_prompts,
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
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())
        self.tokens.append(sum(map(len, completions)))

    def result(self, meter: Meter, constraint_seconds: float = 0.0) -> dict[str, Any]:
        """Medians over the steps between two rewards: what is generated in a step is trained on before its reward
        and after it."""
        steps = [b - a for a, b in zip(self.ticks[:-1], self.ticks[1:], strict=True)]
        rates = [tokens / s for tokens, s in zip(self.tokens[1:], steps, strict=True)]
        peak = torch.cuda.max_memory_allocated() / 2**20 if meter.on_gpu else None  # what is resident outlives a run
        return {
            "step_seconds": statistics.median(steps), "tokens_per_second": statistics.median(rates), "seconds": steps,
            "tokens": self.tokens[1:], "constraint_share": constraint_seconds / len(self.ticks) / statistics.median(steps),
            "peak_mib": peak,
        }  # fmt: skip


def run_stock(options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from trl import GRPOTrainer

    base = make_base(options)
    policy = attach_lora(base, AdapterConfig(), seed=0)
    prompts, clock = make_prompts_for(options, base), Clock()

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        clock(completion_ids)
        return even_ids(completion_ids)

    with tempfile.TemporaryDirectory() as scratch, Meter() as meter:
        arguments = trl_arguments(settings(options, base.tokenizer.eos_token_id), Path(scratch), base.device.type)
        if options.sampler == "vllm":
            arguments.use_vllm, arguments.vllm_mode = True, "colocate"
            arguments.vllm_gpu_memory_utilization = 0.3
        texts = [base.tokenizer.decode(prompt.token_ids) for prompt in prompts]
        if any(len(base.tokenizer.encode(t)) != len(p.token_ids) for t, p in zip(texts, prompts, strict=True)):
            raise SystemExit("TRL would read prompts of other lengths than ours")
        trainer = GRPOTrainer(
            policy, reward, arguments, Dataset.from_dict({"prompt": texts}), processing_class=base.tokenizer
        )
        trainer.log = lambda *_: None  # nothing printed
        trainer.train()
    return clock.result(meter)


def run_ours(
    options: argparse.Namespace, adapter: AdapterConfig, constraint: str = "none", share_prompts: bool = True
) -> dict[str, Any]:
    base = make_base(options)
    if adapter.kind == "antipasto":
        policy = antipasto.attach(base.model, adapter.targets, adapter.r, Path(tempfile.gettempdir()) / "svd")
    else:
        policy = attach_lora(base, adapter, seed=0)
    clock, watched = Clock(), None
    if constraint != "none":
        watched = Timed(constraint, restore_magnitude=True, directions=random_directions(policy))

    def reward(groups: list[Group], step: int) -> Scores:
        rewards = [even_ids([list(r.token_ids) for r in group.rollouts]) for group in groups]
        clock([list(r.token_ids) for group in groups for r in group.rollouts])
        return Scores(rewards)

    model = ModelConfig(name="micro") if not options.shape else base.config
    sampler: Sampler = build_sampler(
        RunConfig(model=model, sampler=SamplerConfig(kind=options.sampler)), policy, base.tokenizer
    )
    config = settings(options, base.tokenizer.eos_token_id, share_prompts)
    with tempfile.TemporaryDirectory() as scratch, Meter() as meter:
        train_policy(
            policy, base.tokenizer, make_prompts_for(options, base), reward, sampler=sampler, config=config,
            scratch=Path(scratch), constraint=watched, progress=lambda line: None,
        )  # fmt: skip
    sampler.close()
    return clock.result(meter, 0.0 if watched is None else watched.seconds)


class Timed(Constraint):
    """A constraint that knows how long it took."""

    seconds = 0.0

    def apply(self, knobs: Any) -> dict[str, float]:
        start = time.perf_counter()
        found = super().apply(knobs)  # its metrics are numbers: the device has caught up
        self.seconds += time.perf_counter() - start
        return found


def random_directions(policy: Any, rows: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for knob in knobs(policy):
        drawn = torch.randn(knob.parameter.numel(), rows, generator=generator)
        found[knob.name] = torch.linalg.qr(drawn).Q.T.contiguous()
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
