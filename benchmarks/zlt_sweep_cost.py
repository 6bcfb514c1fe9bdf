"""What the study's 25 cells come to, for benchmarks/zlt_cell.py: a cell's evaluation, measured, and GPU-hours of all."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import clock, make_base

from research.config import AdapterConfig, RunConfig, SamplerConfig
from research.models.adapters import attach_lora

EXAMPLES = {"as_run": 600, "as_reported": 2200}  # a cell's rows: as the published code drew them, as its text says
EPOCHS, RATES = (1, 3, 5, 10, 20), 5
PUBLISHED_HOURS = 9.3  # the 25 published cells, evaluation included, on one H200
PERSONAS, QUESTIONS, SAMPLES = 11, 20, 10


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """A cell's evaluation: sync, every persona x question x sample at a fixed length, and the capability prompts.

    With vLLM where it is installed, started on the same weights saved to disk; else with transformers.
    """
    from research.sampling.build import build_sampler
    from research.sampling.interface import SamplingParams

    kind = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    prompts = evaluation_prompts()
    params = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=options.eval_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        base = make_base(options, save_to=Path(scratch) / "model")
        policy = attach_lora(base, AdapterConfig(), seed=0).eval()
        start = clock()
        sampler = build_sampler(RunConfig(model=base.config, sampler=SamplerConfig(kind=kind)), policy, base.tokenizer)
        start_seconds = clock() - start
        sampler.generate(prompts[::8], 1, params)
        start = clock()
        sampler.sync(policy)  # with its proof; empties the prefix cache
        synced = clock()
        drawn = sampler.generate(prompts, SAMPLES, params)
        seconds = clock() - synced
        sampler.close()
    lengths = {len(completion.token_ids) for group in drawn for completion in group}
    assert lengths == {options.eval_tokens}, f"completions of {lengths} tokens: random weights should never stop"
    count = len(prompts) * SAMPLES
    return {
        "sampler": kind, "start_seconds": start_seconds, "sync_seconds": synced - start, "seconds": seconds,
        "completions": count, "tokens_each": options.eval_tokens, "prompt_tokens": len(prompts[0]),
        "completions_per_second": count / seconds, "tokens_per_second": count * options.eval_tokens / seconds,
        "questions": options.eval_questions, "question_seconds": capability_seconds(policy, options.eval_questions),
    }  # fmt: skip


def evaluation_prompts(persona: int = 40, question: int = 24) -> list[list[int]]:
    """Every persona before every question: prompts share a persona's tokens, as the study's system prompts are."""
    generator = torch.Generator().manual_seed(1)
    personas = torch.randint(5, 2000, (PERSONAS, persona), generator=generator).tolist()
    questions = torch.randint(5, 2000, (QUESTIONS, question), generator=generator).tolist()
    return [[*who, *what] for who in personas for what in questions]


@torch.no_grad()
def capability_seconds(policy: Any, count: int, tokens: int = 120, at_once: int = 32) -> float:
    """Scoring the next token of `count` prompts of a four-choice question's length, in lm-eval's way: all logits."""
    ids = torch.randint(5, 2000, (count + at_once, tokens), generator=torch.Generator().manual_seed(2)).to(
        policy.device
    )
    start = 0.0
    for number, part in enumerate(ids.split(at_once)):
        if number == 1:  # the first is the warm-up
            start = clock()
        policy(input_ids=part, use_cache=False).logits.float().log_softmax(-1)[:, -1].cpu()
    return clock() - start if start else 0.0


def sweep(runs: dict[str, Any], seen: dict[str, Any], batch: int) -> dict[str, Any]:
    """What the measured rates come to: seconds of a cell by epochs, and the hours of all rates and epochs.

    runs: how each kind trained. seen: what `evaluate` returned. batch: rows a step.
    """
    evaluation = seen["sync_seconds"] + seen["seconds"] + seen["question_seconds"]
    protocols: dict[str, Any] = {}
    for protocol, examples in EXAMPLES.items():
        for kind, row in runs.items():
            steps = -(-examples // batch)
            cells = {str(n): n * steps * row["step_seconds"] + evaluation for n in EPOCHS}
            hours = (RATES * sum(cells.values()) + seen["start_seconds"]) / 3600
            protocols.setdefault(protocol, {})[kind] = {"cell_seconds": cells, "gpu_hours": hours}
    return {
        "counted": "training steps; sync, completions and four-choice prompts of each cell, the same whoever trained; one "
        "start of the sampler. Not counted: loading the model, and drawing the examples, once a sweep",
        "published_gpu_hours": PUBLISHED_HOURS, "protocols": protocols,
    }  # fmt: skip


def sweep_lines(report: dict[str, Any], names: dict[str, str]) -> list[str]:
    """The evaluation in a sentence and the sweep as a table. names: of the kinds of training."""
    seen = report["evaluation"]
    lines = [
        f"Evaluation with {seen['sampler']}: {seen['completions']:,} completions of {seen['tokens_each']} tokens in "
        f"{seen['seconds']:.1f} s ({seen['completions_per_second']:.0f} a second, {seen['tokens_per_second']:,.0f} "
        f"tokens/s), the sync before them {seen['sync_seconds']:.1f} s, {seen['questions']:,} four-choice prompts "
        f"{seen['question_seconds']:.1f} s.",
        "",
        f"| seconds a cell, epochs: | {' | '.join(map(str, EPOCHS))} | {RATES * len(EPOCHS)} cells, GPU-hours |",
        "|---" * (len(EPOCHS) + 2) + "|",
    ]
    for protocol, kinds in report["sweep"]["protocols"].items():
        for kind, found in kinds.items():
            seconds = " | ".join(f"{value:,.0f}" for value in found["cell_seconds"].values())
            lines.append(
                f"| {protocol} ({EXAMPLES[protocol]:,} rows), {names[kind]} | {seconds} | {found['gpu_hours']:.2f} |"
            )
    return [*lines, f"| published |{' |' * len(EPOCHS)} {report['sweep']['published_gpu_hours']} |"]
