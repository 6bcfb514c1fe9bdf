"""What the benchmarks share: base models, also of random weights, a clock, a meter, and how a file came about."""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import research  # noqa: F401  before torch: how its threads wait

# isort: split
import torch

from research.cells.provenance import now, provenance
from research.config import ModelConfig
from research.models.base import Base, default_device, load_base

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


def make_base(options: argparse.Namespace, save_to: Path | None = None, cudnn: bool = False) -> Base:
    """A fresh base model for each run, so that nothing of the other library's patches stays.

    Random weights of a shape are the same each time on one device. save_to: a directory for engines to load from.
    cudnn: whether attention may be cuDNN's, as PyTorch has it unless `load_base` tells it otherwise.
    """
    free()
    if not options.shape:
        embedded = options.model == "micro"
        base = load_base(ModelConfig(name=options.model, path="embedded" if embedded else options.model))
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        return base
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
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


def origin() -> dict[str, Any]:
    """Date, commit, libraries, hardware and command of a measurement; absolute paths in the command become names."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv]
    return {"date": now(), **provenance(shlex.join(["python", *words]))}


def parsed(parser: argparse.ArgumentParser, table: Callable[[dict[str, Any]], str]) -> argparse.Namespace:
    """The options, with --out and --table; --table prints a finished run and ends the process."""
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--table", type=Path, help="print the tables of a finished run and do nothing else")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        raise SystemExit
    return options


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Meter:
    """The clock after each step, and what a GPU's memory came to meanwhile."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ticks: list[tuple[float, float]] = []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.allocations = _allocations()

    def step(self, loss: float) -> None:
        """A step is over."""
        self.losses.append(loss)
        self.ticks.append((clock(), time.process_time()))

    def memory(self) -> dict[str, Any]:
        """peak_mib: allocated at once, what was resident before included. device_allocations: requests to the driver,
        each of which waits for the GPU. Null on a CPU."""
        if not torch.cuda.is_available():
            return {"peak_mib": None, "device_allocations": None}
        peak = torch.cuda.max_memory_allocated() / 2**20
        return {"peak_mib": peak, "device_allocations": _allocations() - self.allocations}


def _allocations() -> int:
    return torch.cuda.memory_stats().get("num_device_alloc", 0) if torch.cuda.is_available() else 0
