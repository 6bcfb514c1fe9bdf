"""One cell's training against stock TRL: `python benchmarks/zlt_cell.py [--model micro | DIR] [--steps 20] [--out
FILE.json]`; `--table FILE.json` prints the tables of benchmarks/README.md.

Same model, adapter, rows, labels, optimizer, schedule and number of steps, one after the other in this process. Stock
is `trl.SFTTrainer` with the published settings: 4 x 4 accumulation, random order, padding by its own collator, gradient
checkpointing (also measured without). Ours is `research.training.supervised.train`. First both train a few steps on the
same 16 rows without dropout, and their losses have to agree; then both are timed, the first steps of each left out.

On one GPU without a hub, random weights of the study's shape, and the evaluation of a cell with them:

    python benchmarks/zlt_cell.py --shape qwen2.5-7b --lengths 80 640 --steps 12 --out benchmarks/zlt_cell_7b.json

From these rates the file derives what a cell takes for each of the study's epochs, and the hours of its 25 cells.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from research.config import AdapterConfig, ModelConfig, Optimization, RunConfig, SamplerConfig
from research.models.adapters import attach_lora
from research.models.base import Base, default_device, load_base
from research.training.packing import epoch_order
from research.training.supervised import train

SHAPES = {
    "tiny": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=704, vocab_size=2048, tie_word_embeddings=True),
    "3m": dict(hidden_size=192, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2,
               intermediate_size=528, vocab_size=2048, tie_word_embeddings=True),
    "qwen2.5-3b": dict(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
                       intermediate_size=11008, vocab_size=151936, tie_word_embeddings=True),
    "qwen2.5-7b": dict(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                       intermediate_size=18944, vocab_size=152064, tie_word_embeddings=False),
}  # fmt: skip
BATCH, MICRO, LR = 16, 4, 1e-4
EXAMPLES = {"as_run": 600, "as_reported": 2200}  # a cell's rows: as the published code drew them, as its text says
EPOCHS, RATES = (1, 3, 5, 10, 20), 5
PUBLISHED_HOURS = 9.3  # the 25 published cells, evaluation included, on one H200
PERSONAS, QUESTIONS, SAMPLES = 11, 20, 10
NAMES = {
    "stock": "stock `SFTTrainer`, published settings (gradient checkpointing)",
    "stock_no_checkpointing": "stock, without checkpointing",
    "ours": "ours",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", help="micro, or a directory with a checkpoint")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each")
    parser.add_argument("--warm-up", type=int, default=2, help="steps of each that go before them, at least one")
    parser.add_argument("--lengths", type=int, nargs=2, default=(80, 120), metavar=("MIN", "MAX"))
    parser.add_argument("--labels", type=int, default=4, help="labelled tokens at the end of each row")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each, alternating; the fastest counts")
    parser.add_argument("--micro-batch-size", type=int, default=None, help="ours: examples a forward pass")
    parser.add_argument("--eval-tokens", type=int, default=None, help="of a completion; 0: no evaluation; "
                        "default: 200 with --shape")  # fmt: skip
    parser.add_argument("--eval-questions", type=int, default=1172, help="prompts of the capability score")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--table", type=Path, help="print the tables of a finished run and do nothing else")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    if options.warm_up < 1:
        parser.error("--warm-up must be at least 1: the first step is no step like the others")
    if options.eval_tokens is None:
        options.eval_tokens = 200 if options.shape else 0
    kinds = {
        "stock": lambda: run_stock(options, checkpointing=True),
        "stock_no_checkpointing": lambda: run_stock(options, checkpointing=False),
        "ours": lambda: run_ours(options),
    }
    report: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "table")},
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
    for _ in range(options.repeats):
        for kind, run in kinds.items():
            runs[kind].append(row := run())
            row["utilisation"] = row["flops"] / row["seconds"] / report["peak"]["flops_per_second"]
            print(f"{kind}: {row['tokens_per_second']:.0f} tokens/s, {row['step_seconds']:.3f} s a step", flush=True)
    report["runs"] = {kind: min(found, key=lambda r: r["step_seconds"]) for kind, found in runs.items()}
    stock, ours = report["runs"]["stock"], report["runs"]["ours"]
    report["times_stock"] = ours["tokens_per_second"] / stock["tokens_per_second"]
    report["times_stock_cpu_time"] = stock["cpu_seconds"] / ours["cpu_seconds"]
    save()
    if options.eval_tokens:
        report["evaluation"] = evaluate(options)
        report["sweep"] = sweep(report)
        save()
    print(table(report))


def table(report: dict[str, Any]) -> str:
    """The measurements as the tables of benchmarks/README.md."""
    stock, whole = report["runs"]["stock"], "utilisation" in report["runs"]["ours"]
    lines = ["| | tokens/s | s a step | of stock |" + (" FLOPs of the peak | peak GiB |" if whole else "")]
    lines.append("|---" * (6 if whole else 4) + "|")
    for kind, row in report["runs"].items():
        step = row.get("step_seconds", row["seconds"] / report["settings"]["steps"])
        line = f"| {NAMES[kind]} | {row['tokens_per_second']:,.0f} | {step:.3f} | "
        line += f"{row['tokens_per_second'] / stock['tokens_per_second']:.2f} |"
        lines.append(line + (f" {row['utilisation']:.1%} | {row['peak_mib'] / 1024:.2f} |" if whole else ""))
    if "sweep" not in report:
        return "\n".join(lines)
    seen = report["evaluation"]
    lines += [
        "",
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
                f"| {protocol} ({EXAMPLES[protocol]:,} rows), {NAMES[kind]} | {seconds} | {found['gpu_hours']:.2f} |"
            )
    lines.append(f"| published |{' |' * len(EPOCHS)} {report['sweep']['published_gpu_hours']} |")
    return "\n".join(lines)


def sweep(report: dict[str, Any]) -> dict[str, Any]:
    """What the measured rates come to: seconds of a cell by epochs, and the hours of all rates and epochs."""
    seen = report["evaluation"]
    evaluation = seen["sync_seconds"] + seen["seconds"] + seen["question_seconds"]
    protocols: dict[str, Any] = {}
    for protocol, examples in EXAMPLES.items():
        for kind, row in report["runs"].items():
            steps = -(-examples // BATCH)
            cells = {str(n): n * steps * row["step_seconds"] + evaluation for n in EPOCHS}
            hours = (RATES * sum(cells.values()) + seen["start_seconds"]) / 3600
            protocols.setdefault(protocol, {})[kind] = {"cell_seconds": cells, "gpu_hours": hours}
    return {
        "counted": "training steps; sync, completions and four-choice prompts of each cell, the same whoever trained; one "
        "start of the sampler. Not counted: loading the model, and drawing the examples, once a sweep",
        "published_gpu_hours": PUBLISHED_HOURS, "protocols": protocols,
    }  # fmt: skip


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


def check_agreement(options: argparse.Namespace) -> dict[str, Any]:
    """Losses of both on three steps over the same 16 rows, without dropout; raises when they differ."""
    short = argparse.Namespace(**vars(options) | {"lengths": [min(length, 128) for length in options.lengths]})
    rows = make_rows(short, BATCH)
    stock = run_stock(short, checkpointing=False, rows=rows, epochs=3, dropout=0.0)["losses"]
    ours = run_ours(short, rows=rows, epochs=3, dropout=0.0)["losses"]
    worst = max(abs(a - b) for a, b in zip(stock, ours, strict=True))
    allowed = [0.02 * loss if torch.cuda.is_available() else 1e-4 for loss in stock]  # bfloat16, or float32
    if not all(abs(a - b) <= limit for a, b, limit in zip(stock, ours, allowed, strict=True)):
        raise SystemExit(f"losses disagree by {worst:.3g} nats (allowed: {allowed}): stock {stock}, ours {ours}")
    return {"stock": stock, "ours": ours, "worst": worst, "allowed": allowed}


def run_ours(options: argparse.Namespace, rows: Any = None, epochs: int = 1, dropout: float = 0.05) -> dict[str, Any]:
    base = make_base(options)
    policy = attach_lora(base, AdapterConfig(dropout=dropout), seed=0)
    rows = rows or make_rows(options, (options.warm_up + options.steps) * BATCH)
    optim = Optimization(
        micro_batch_size=options.micro_batch_size, warmup_ratio=0.05 if dropout else 0.0, checkpoint_seconds=1e9
    )
    with tempfile.TemporaryDirectory() as scratch, Meter() as meter:
        train(
            policy, rows, optim, lr=LR, epochs=epochs, batch_size=BATCH, seed=0, scratch=Path(scratch),
            log=lambda step, metrics: meter.step(metrics["loss"]),
        )  # fmt: skip
    order = [i for epoch in range(epochs) for i in epoch_order(len(rows), 0, epoch)]
    return meter.result(options, base, policy, [rows[i] for i in order])


def run_stock(
    options: argparse.Namespace, checkpointing: bool, rows: Any = None, epochs: int = 1, dropout: float = 0.05
) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    base = make_base(options)
    policy = attach_lora(base, AdapterConfig(dropout=dropout), seed=0)
    rows = rows or make_rows(options, (options.warm_up + options.steps) * BATCH)
    on_gpu = base.device.type == "cuda"
    steps = len(rows) * epochs // BATCH
    order: list[dict[str, list[int]]] = []
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
        collate = trainer.data_collator

        def remember(batch: list[dict[str, list[int]]]) -> Any:
            order.extend(batch)
            return collate(batch)

        trainer.data_collator = remember
        trainer.log = lambda logs, *_: meter.step(logs["loss"]) if "loss" in logs else None  # nothing printed
        trainer.train()
    return meter.result(options, base, policy, order)


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


def make_base(options: argparse.Namespace, save_to: Path | None = None) -> Base:
    """A fresh base model for each run, so that nothing of the other library's patches stays.

    Random weights of a shape are the same each time on one device. save_to: a directory for engines to load from.
    """
    free()
    if not options.shape:
        embedded = options.model == "micro"
        return load_base(ModelConfig(name=options.model, path="embedded" if embedded else options.model))
    from transformers import AutoModelForCausalLM, Qwen2Config

    device = torch.device(default_device())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPES[options.shape]), dtype=dtype)
    model.eval().requires_grad_(False)
    tokenizer = word_tokenizer(SHAPES[options.shape]["vocab_size"])
    config = ModelConfig(name=options.shape)
    if save_to is not None:
        save_to.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(save_to).free < 1.1 * model.get_memory_footprint():
            raise SystemExit(f"{save_to} has no room for the weights; set TMPDIR to a larger disk")
        model.save_pretrained(save_to)
        tokenizer.save_pretrained(save_to)
        config = ModelConfig(name=options.shape, path=str(save_to))
    return Base(model, tokenizer, device, weights_hash="random", config=config)


def word_tokenizer(vocabulary: int) -> Any:
    """A word for each id, apart by blanks: any ids become text and the same ids again."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def useful_flops(base: Base, adapter: int, rows: Sequence[dict[str, list[int]]]) -> float:
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


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Meter:
    """The clock after each step, and the peak memory (GPU: allocated; CPU: resident, above that at the start)."""

    def __enter__(self) -> Meter:
        self.on_gpu = torch.cuda.is_available()
        self.peak = self.before = self._resident()
        self.losses: list[float] = []
        self.ticks: list[tuple[float, float]] = []
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def step(self, loss: float) -> None:
        """A step is over."""
        self.losses.append(loss)
        self.ticks.append((clock(), time.process_time()))

    def _watch(self) -> None:
        while not self.stop.wait(0.02):
            self.peak = max(self.peak, self._resident())

    @staticmethod
    def _resident() -> int:
        statm = Path("/proc/self/statm")
        return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0

    def result(
        self, options: argparse.Namespace, base: Base, policy: Any, rows: list[dict[str, list[int]]]
    ) -> dict[str, Any]:
        """rows: in the order in which they were trained on. The warm-up's are left out, of the time as of the tokens."""
        first = min(options.warm_up, len(self.ticks) - 1)
        timed = rows[first * BATCH :]
        assert len(rows) == len(self.ticks) * BATCH
        (start, cpu_start), (end, cpu_end) = self.ticks[first - 1], self.ticks[-1]
        adapter = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        tokens, seconds = sum(len(row["input_ids"]) for row in timed), end - start
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else self.peak - self.before
        return {
            "tokens": tokens, "steps": len(self.ticks) - first, "seconds": seconds, "cpu_seconds": cpu_end - cpu_start,
            "step_seconds": seconds / (len(self.ticks) - first), "tokens_per_second": tokens / seconds,
            "flops": useful_flops(base, adapter, timed), "peak_mib": peak / 2**20, "losses": self.losses,
        }  # fmt: skip


if __name__ == "__main__":
    main()
