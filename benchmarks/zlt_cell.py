"""One cell's training against stock TRL: `python benchmarks/zlt_cell.py [--model micro | DIR] [--steps 20] [--out
FILE.json]`; `--table FILE.json` prints the tables of benchmarks/README.md.

Same model, adapter, rows, labels, optimizer, schedule and number of steps, one after the other in this process. Stock
is `trl.SFTTrainer` with the published settings: 4 x 4 accumulation, random order, padding by its own collator, gradient
checkpointing; also without, and then with all 16 rows in one pass. Ours is `research.training.supervised.train`, as it
is, and with each of its techniques left out. First both train a few steps on the same 16 rows without dropout, and
their losses have to agree; then all are timed, the first steps of each left out. Each has the rows in an order of its
own, hence mostly other batches than those before it; with --repeats the next round has the same ones again. On a GPU
also with the attention that PyTorch prefers there, which is stock's.

On one GPU without a hub, random weights of the study's shape, and the evaluation of a cell with them:

    python benchmarks/zlt_cell.py --shape qwen2.5-7b --lengths 80 640 --steps 12 --repeats 2 --out benchmarks/zlt_cell_7b.json

From these rates the file derives what a cell takes for each of the study's epochs, and the hours of its 25 cells.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import research  # noqa: F401  before torch: how its threads wait

# isort: split
import torch
from common import SHAPES, Meter, clock, make_base, origin, parsed
from stand_ins import unfused
from torch.nn.functional import cross_entropy
from zlt_sweep_cost import evaluate, sweep, sweep_lines

from research.config import AdapterConfig, Optimization
from research.models.adapters import attach_lora
from research.models.base import Base, default_device
from research.training import supervised
from research.training.packing import IGNORED, epoch_order

Rows = list[dict[str, list[int]]]
BATCH, MICRO, LR = 16, 4, 1e-4
WHOLE = {
    "stock": "stock `SFTTrainer`, published settings (gradient checkpointing)",
    "stock_no_checkpointing": "stock, without checkpointing",
    "ours": "ours",
}  # fmt: skip
NAMES = WHOLE | {
    "stock_one_pass": "stock, without checkpointing, all rows in one pass",
    "four_rows": "ours, four rows a pass",
    "padded": "ours, rows padded",
    "all_logits": "ours, logits of every token",
    "peft_layers": "ours, PEFT's LoRA layers",
    "cudnn": "ours, cuDNN's attention",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", help="micro, or a directory with a checkpoint")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each")
    parser.add_argument(
        "--kinds", choices=NAMES, nargs="+", help="which rows; the first three are always run; default: all that differ"
    )
    parser.add_argument("--warm-up", type=int, default=2, help="steps of each that go before them, at least one")
    parser.add_argument("--lengths", type=int, nargs=2, default=(80, 120), metavar=("MIN", "MAX"))
    parser.add_argument("--labels", type=int, default=4, help="labelled tokens at the end of each row")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each, alternating; the fastest counts")
    parser.add_argument("--micro-batch-size", type=int, default=None, help="ours: examples a forward pass")
    parser.add_argument("--eval-tokens", type=int, default=None, help="of a completion; 0: no evaluation; "
                        "default: 200 with --shape")  # fmt: skip
    parser.add_argument("--eval-questions", type=int, default=1172, help="prompts of the capability score")
    options = parsed(parser, table)
    if options.warm_up < 1:
        parser.error("--warm-up must be at least 1: the first step is no step like the others")
    on_gpu = torch.cuda.is_available()
    if "cudnn" in (options.kinds or ()) and not on_gpu:
        parser.error("--kinds cudnn: without a GPU it is the same as ours")
    options.kinds = options.kinds or [kind for kind in NAMES if on_gpu or kind != "cudnn"]
    if options.eval_tokens is None:
        options.eval_tokens = 200 if options.shape else 0
    four = argparse.Namespace(**vars(options) | {"micro_batch_size": MICRO})
    kinds: dict[str, Callable[[Rows], dict[str, Any]]] = {
        "stock": lambda rows: run_stock(options, rows, checkpointing=True),
        "stock_no_checkpointing": lambda rows: run_stock(options, rows, checkpointing=False),
        "ours": lambda rows: run_ours(options, rows),
        "stock_one_pass": lambda rows: run_stock(options, rows, checkpointing=False, micro=BATCH),
        "four_rows": lambda rows: run_ours(four, rows),
        "padded": lambda rows: run_ours(options, rows, can_pack=lambda *_: False),
        "all_logits": lambda rows: run_ours(options, rows, label_loss=loss_of_all_logits),
        "peft_layers": lambda rows: run_ours(options, rows, fused_lora=unfused),
        "cudnn": lambda rows: run_ours(options, rows, cudnn=True),
    }
    kinds = {kind: kinds[kind] for kind in NAMES if kind in (*WHOLE, *options.kinds)}
    report: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("kinds", "out", "table")},
        "provenance": origin(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: __import__(name).__version__ for name in ("torch", "trl", "transformers", "peft")},
        "peak": matmul_peak(),
        "flops": "useful ones: 4 a frozen weight of a layer and token, 6 an adapter weight and token, 4 a weight of the "
        "head and label, 6 x layers x width x length^2 of causal attention a row; recomputation is not counted",
    }  # fmt: skip

    def save() -> None:
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")

    agreement = report["agreement"] = check_agreement(options)
    print(f"losses over {len(agreement['ours'])} common steps differ by at most {agreement['worst']:.2e} nats")
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    rows = make_rows(options, (options.warm_up + options.steps) * BATCH)
    for _ in range(options.repeats):
        for kind in list(runs):
            own = random.Random(kind).sample(rows, len(rows))
            try:
                runs[kind].append(row := kinds[kind](own))
            except torch.OutOfMemoryError:
                print(f"{kind}: more memory than this GPU has", flush=True)
                del runs[kind]
                continue
            row["utilisation"] = row["flops"] / row["seconds"] / report["peak"]["flops_per_second"]
            print(f"{kind}: {row['tokens_per_second']:.0f} tokens/s, {row['step_seconds']:.3f} s a step", flush=True)
    report["runs"] = {
        kind: min(found, key=lambda r: r["step_seconds"]) | {"rounds": [row["step_seconds"] for row in found]}
        for kind, found in runs.items()
    }
    stock, ours = report["runs"]["stock"], report["runs"]["ours"]
    report["times_stock"] = ours["tokens_per_second"] / stock["tokens_per_second"]
    report["times_stock_cpu_time"] = stock["cpu_seconds"] / ours["cpu_seconds"]
    save()
    if options.eval_tokens:
        report["evaluation"] = evaluate(options)
        report["sweep"] = sweep({kind: report["runs"][kind] for kind in WHOLE}, report["evaluation"], BATCH)
        save()
    print(table(report))


def table(report: dict[str, Any]) -> str:
    """The measurements as the tables of benchmarks/README.md."""
    stock, whole = report["runs"]["stock"], report["device"].startswith("NVIDIA")
    lines = [
        "| | tokens/s | s a step | of stock |"
        + (" s a step, first round | FLOPs of the peak | peak GiB |" if whole else "")
    ]
    lines.append("|---" * (7 if whole else 4) + "|")
    for kind, row in report["runs"].items():
        line = f"| {NAMES[kind]} | {row['tokens_per_second']:,.0f} | {row['step_seconds']:.3f} | "
        line += f"{row['tokens_per_second'] / stock['tokens_per_second']:.2f} |"
        if whole:
            line += f" {row['rounds'][0]:.3f} | {row['utilisation']:.1%} | {row['peak_mib'] / 1024:.2f} |"
        lines.append(line)
    if "sweep" in report:
        lines += ["", *sweep_lines(report, NAMES)]
    return "\n".join(lines)


def matmul_peak() -> dict[str, Any]:
    """FLOPs a second of one large matrix product in the precision that is trained in: the peak of this machine."""
    on_gpu = torch.cuda.is_available()
    size, times = (8192, 50) if on_gpu else (1024, 5)
    a, b = (
        torch.randn(size, size, device=default_device()).to(torch.bfloat16 if on_gpu else torch.float32) for _ in "ab"
    )
    for _ in range(times):
        a @ b
    start = clock()
    for _ in range(times):
        a @ b
    return {"size": size, "dtype": str(a.dtype), "flops_per_second": 2 * size**3 * times / (clock() - start)}


def check_agreement(options: argparse.Namespace) -> dict[str, Any]:
    """Losses of both on three steps over the same 16 rows, without dropout; raises when they differ."""
    short = argparse.Namespace(**vars(options) | {"lengths": [min(length, 128) for length in options.lengths]})
    rows = make_rows(short, BATCH)
    stock = run_stock(short, rows, checkpointing=False, epochs=3, dropout=0.0)["losses"]
    ours = run_ours(short, rows, epochs=3, dropout=0.0)["losses"]
    worst = max(abs(a - b) for a, b in zip(stock, ours, strict=True))
    allowed = [0.02 * loss if torch.cuda.is_available() else 1e-4 for loss in stock]  # bfloat16, or float32
    if not all(abs(a - b) <= limit for a, b, limit in zip(stock, ours, allowed, strict=True)):
        raise SystemExit(f"losses disagree by {worst:.3g} nats (allowed: {allowed}): stock {stock}, ours {ours}")
    return {"stock": stock, "ours": ours, "worst": worst, "allowed": allowed}


def run_ours(
    options: argparse.Namespace, rows: Rows, epochs: int = 1, dropout: float = 0.05, cudnn: bool = False, **instead: Any
) -> dict[str, Any]:
    """cudnn: attention may be cuDNN's. instead: what stands in the place of a function of
    `research.training.supervised`, so that a technique is out."""
    base = make_base(options, cudnn=cudnn)
    policy = attach_lora(base, AdapterConfig(dropout=dropout), seed=0)
    optim = Optimization(
        micro_batch_size=options.micro_batch_size, warmup_ratio=0.05 if dropout else 0.0, checkpoint_seconds=1e9
    )
    out = mock.patch.multiple(supervised, **instead) if instead else contextlib.nullcontext()
    meter = Meter()
    with tempfile.TemporaryDirectory() as scratch, out:
        supervised.train(
            policy, rows, optim, lr=LR, epochs=epochs, batch_size=BATCH, seed=0, scratch=Path(scratch),
            log=lambda step, metrics: meter.step(metrics["loss"]),
        )  # fmt: skip
    order = [i for epoch in range(epochs) for i in epoch_order(len(rows), 0, epoch)]
    return measured(meter, options, base, policy, [rows[i] for i in order])


def loss_of_all_logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """`label_loss` without its technique: logits of every token, in float32 as of a model's own loss."""
    batch = dict(batch)
    kept, targets, weight = (batch.pop(name) for name in ("logits_to_keep", "targets_K", "weight"))
    logits = model(**batch, use_cache=False).logits.float()[:, kept].flatten(0, 1)
    return cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum") * weight


def run_stock(
    options: argparse.Namespace, rows: Rows, checkpointing: bool, epochs: int = 1, dropout: float = 0.05,
    micro: int = MICRO,
) -> dict[str, Any]:  # fmt: skip
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    base = make_base(options, cudnn=True)
    policy = attach_lora(base, AdapterConfig(dropout=dropout), seed=0)
    on_gpu = base.device.type == "cuda"
    steps = len(rows) * epochs // BATCH
    order: list[dict[str, list[int]]] = []
    meter = Meter()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch, per_device_train_batch_size=micro, gradient_accumulation_steps=BATCH // micro,
            num_train_epochs=epochs, learning_rate=LR, lr_scheduler_type="cosine",
            warmup_steps=-(-steps // 20) if dropout else 0,
            weight_decay=0.0, max_grad_norm=1.0, max_length=1024, gradient_checkpointing=checkpointing, bf16=on_gpu,
            use_cpu=not on_gpu, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        trainer = SFTTrainer(
            model=policy, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=base.tokenizer
        )
        collate = trainer.data_collator

        def remember(batch: list[dict[str, list[int]]]) -> Any:
            order.extend(batch)
            return collate(batch)

        trainer.data_collator = remember
        trainer.log = lambda logs, *_: meter.step(logs["loss"]) if "loss" in logs else None  # nothing printed
        trainer.train()
    return measured(meter, options, base, policy, order)


def make_rows(options: argparse.Namespace, count: int) -> Rows:
    """Random tokens of the lengths asked for, the last few of each labelled."""
    generator = torch.Generator().manual_seed(0)
    low, high = options.lengths
    rows = []
    for _ in range(count):
        length = int(torch.randint(low, high + 1, (), generator=generator))
        ids = torch.randint(5, 2000, (length,), generator=generator).tolist()
        labels = [-100] * (length - options.labels) + ids[length - options.labels :]
        rows.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * length})
    return rows


def measured(meter: Meter, options: argparse.Namespace, base: Base, policy: Any, rows: Rows) -> dict[str, Any]:
    """What the meter read of a run; the warm-up is left out, of the time as of the tokens.

    rows: in the order in which they were trained on.
    """
    first = min(options.warm_up, len(meter.ticks) - 1)
    timed = rows[first * BATCH :]
    assert len(rows) == len(meter.ticks) * BATCH
    (start, cpu_start), (end, cpu_end) = meter.ticks[first - 1], meter.ticks[-1]
    adapter = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    tokens, seconds = sum(len(row["input_ids"]) for row in timed), end - start
    each = [later - before for (before, _), (later, _) in pairwise(meter.ticks[first - 1 :])]
    return {
        "tokens": tokens, "steps": len(meter.ticks) - first, "seconds": seconds, "cpu_seconds": cpu_end - cpu_start,
        "step_seconds": seconds / (len(meter.ticks) - first), "tokens_per_second": tokens / seconds,
        "seconds_each": each, "flops": useful_flops(base, adapter, timed), "losses": meter.losses, **meter.memory(),
    }  # fmt: skip


def useful_flops(base: Base, adapter: int, rows: Rows) -> float:
    """FLOPs that training on these rows needs, forward and backward, while the base is frozen; see the report."""
    config = base.model.config
    head = base.model.get_output_embeddings()
    frozen = sum(
        module.weight.numel()
        for module in base.model.modules()
        if isinstance(module, torch.nn.Linear)
        and module.weight.shape != head.weight.shape
        and not module.weight.requires_grad
    )
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    total = 0.0
    for row in rows:
        length, labels = len(row["input_ids"]), sum(label != -100 for label in row["labels"])
        total += (4 * frozen + 6 * adapter) * length + 4 * head.weight.numel() * labels
        total += 6 * config.num_hidden_layers * width * length**2
    return total


if __name__ == "__main__":
    main()
