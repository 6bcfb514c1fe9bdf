"""One cell's training against stock TRL: `python benchmarks/zlt_cell.py [--model micro | DIR] [--steps 20] [--out
FILE.json]`.

Same model, adapter, rows, labels, optimizer, schedule and number of steps, one after the other in this process. Stock
is `trl.SFTTrainer` with the published settings: 4 x 4 accumulation, random order, padding by its own collator, gradient
checkpointing (also measured without). Ours is `research.training.supervised.train`. First both train a few steps on the
same 16 rows without dropout, and their losses have to agree; then both are timed.

--shape qwen2.5-7b: random weights of that shape, made on the device, for machines with a GPU and no hub; --lengths as
published.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from research.config import AdapterConfig, ModelConfig, Optimization
from research.models.adapters import attach_lora
from research.models.base import Base, default_device, load_base
from research.training.supervised import train

SHAPES = {
    "3m": dict(hidden_size=192, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2,
               intermediate_size=528, vocab_size=2048, tie_word_embeddings=True),
    "qwen2.5-7b": dict(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                       intermediate_size=18944, vocab_size=152064, tie_word_embeddings=False),
}  # fmt: skip
BATCH, MICRO, LR = 16, 4, 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", help="micro, or a directory with a checkpoint")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lengths", type=int, nargs=2, default=(80, 120), metavar=("MIN", "MAX"))
    parser.add_argument("--labels", type=int, default=4, help="labelled tokens at the end of each row")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each, alternating; the fastest counts")
    parser.add_argument("--micro-batch-size", type=int, default=None, help="ours: examples a forward pass")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    agreement = check_agreement(options)
    kinds = {
        "stock": lambda: run_stock(options, checkpointing=True),
        "stock_no_checkpointing": lambda: run_stock(options, checkpointing=False),
        "ours": lambda: run_ours(options),
    }
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(options.repeats):
        for kind, run in kinds.items():
            runs[kind].append(run())
    best = {kind: min(found, key=lambda r: r["seconds"]) for kind, found in runs.items()}
    report = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "trl": __import__("trl").__version__},
        "agreement": agreement,
        "runs": best,
        "times_stock": best["stock"]["seconds"] / best["ours"]["seconds"],
        "times_stock_cpu_time": best["stock"]["cpu_seconds"] / best["ours"]["cpu_seconds"],
    }  # fmt: skip
    print(f"losses over {len(agreement['ours'])} common steps differ by at most {agreement['worst']:.2e} nats")
    print(f"{'':24}{'tokens/s':>10}{'seconds':>10}{'CPU s':>9}{'peak MiB':>10}")
    for kind, row in best.items():
        print(
            f"{kind:24}{row['tokens_per_second']:>10.0f}{row['seconds']:>10.2f}{row['cpu_seconds']:>9.2f}{row['peak_mib']:>10.0f}"
        )
    print(
        f"ours: {report['times_stock']:.2f} times stock by the clock, {report['times_stock_cpu_time']:.2f} by CPU time"
    )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def check_agreement(options: argparse.Namespace) -> dict[str, Any]:
    """Losses of both on three steps over the same 16 rows, without dropout; raises when they differ."""
    rows = make_rows(options, BATCH)
    stock = run_stock(options, checkpointing=False, rows=rows, epochs=3, dropout=0.0)["losses"]
    ours = run_ours(options, rows=rows, epochs=3, dropout=0.0)["losses"]
    worst = max(abs(a - b) for a, b in zip(stock, ours, strict=True))
    allowed = 0.05 if torch.cuda.is_available() else 1e-4  # bfloat16 against float32
    if worst > allowed:
        raise SystemExit(f"losses disagree by {worst:.3g} nats (allowed: {allowed}): stock {stock}, ours {ours}")
    return {"stock": stock, "ours": ours, "worst": worst, "allowed": allowed}


def run_ours(options: argparse.Namespace, rows: Any = None, epochs: int = 1, dropout: float = 0.05) -> dict[str, Any]:
    base = make_base(options)
    policy = attach_lora(base, AdapterConfig(dropout=dropout), seed=0)
    rows = rows or make_rows(options, options.steps * BATCH)
    losses: list[float] = []
    optim = Optimization(micro_batch_size=options.micro_batch_size, warmup_ratio=0.05 if dropout else 0.0)
    with tempfile.TemporaryDirectory() as scratch, Meter() as meter:
        train(
            policy, rows, optim, lr=LR, epochs=epochs,
            batch_size=BATCH, seed=0, scratch=Path(scratch), log=lambda step, metrics: losses.append(metrics["loss"]),
        )  # fmt: skip
    return meter.result(rows, epochs) | {"losses": losses}


def run_stock(
    options: argparse.Namespace, checkpointing: bool, rows: Any = None, epochs: int = 1, dropout: float = 0.05
) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    base = make_base(options)
    policy = attach_lora(base, AdapterConfig(dropout=dropout), seed=0)
    rows = rows or make_rows(options, options.steps * BATCH)
    on_gpu = base.device.type == "cuda"
    steps = len(rows) * epochs // BATCH
    with tempfile.TemporaryDirectory() as scratch, Meter() as meter:
        arguments = SFTConfig(
            output_dir=scratch, per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH // MICRO,
            num_train_epochs=epochs, learning_rate=LR, lr_scheduler_type="cosine",
            warmup_steps=-(-steps // 20) if dropout else 0,
            weight_decay=0.0, max_grad_norm=1.0, max_length=1024, gradient_checkpointing=checkpointing, bf16=on_gpu,
            use_cpu=not on_gpu, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        trainer = SFTTrainer(
            model=policy, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=base.tokenizer
        )
        trainer.log = lambda logs, *_: trainer.state.log_history.append(dict(logs))  # nothing printed
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return meter.result(rows, epochs) | {"losses": losses}


def make_rows(options: argparse.Namespace, count: int) -> list[dict[str, list[int]]]:
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


def make_base(options: argparse.Namespace) -> Base:
    """A fresh base model for each run, so that nothing of the other library's patches stays."""
    gc.collect()
    if not options.shape:
        embedded = options.model == "micro"
        return load_base(ModelConfig(name=options.model, path="embedded" if embedded else options.model))
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    device = torch.device(default_device())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPES[options.shape]), dtype=dtype)
    model.eval().requires_grad_(False)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>", unk_token="<unk>")
    return Base(model, tokenizer, device, weights_hash="random", config=ModelConfig(name=options.shape))


class Meter:
    """Seconds, CPU seconds and the peak memory above that at the start (GPU: allocated; CPU: resident)."""

    def __enter__(self) -> Meter:
        self.on_gpu = torch.cuda.is_available()
        self.peak = self.before = self._resident()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        self.start, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self.seconds, self.cpu_seconds = time.perf_counter() - self.start, time.process_time() - self.cpu
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.stop.wait(0.02):
            self.peak = max(self.peak, self._resident())

    @staticmethod
    def _resident() -> int:
        statm = Path("/proc/self/statm")
        return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0

    def result(self, rows: list[dict[str, list[int]]], epochs: int) -> dict[str, Any]:
        tokens = epochs * sum(len(row["input_ids"]) for row in rows)
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else self.peak - self.before
        return {
            "tokens": tokens, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds,
            "tokens_per_second": tokens / self.seconds, "peak_mib": peak / 2**20,
        }  # fmt: skip


if __name__ == "__main__":
    main()
