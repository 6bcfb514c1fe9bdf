"""What benchmarks/sync.py measures: ways of getting trained weights into a running engine, one function each.

Each takes the bench that keeps the readings, an engine or where to make one, and the policy.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import clock, free

from research.models.deltas import WeightDelta, weight_deltas
from research.sampling.interface import SamplingParams
from research.sampling.proof import ProofState, make_probe, prove, trainer_logprobs
from research.sampling.vllm_engine import VLLMSampler

if TYPE_CHECKING:
    from sync import Bench

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONTEXT, PROMPT, NEW = 1024, 64, 128


def move(policy: Any, seed: int) -> None:
    """As a training step would: B away from where it was, to a delta of a few percent of the weights."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, device=parameter.device) * 1e-3


def timed(call: Callable[[], Any]) -> float:
    start = clock()
    call()
    return clock() - start


def prompts(seed: int, count: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (count, PROMPT), generator=generator).tolist()


def new_engine(directory: Path, ranks: int = 1, **options: Any) -> VLLMSampler:
    """ranks: GPUs; each takes the same share of its memory as one alone would of weights and cache."""
    return VLLMSampler(
        directory, dtype="bfloat16", context=CONTEXT, gpu_memory_utilization=0.25 if ranks == 1 else 0.15,
        max_num_seqs=512, tensor_parallel_size=ranks, **options,
    )  # fmt: skip


def mean_gap(policy: Any, engine: VLLMSampler) -> float:
    probe = engine.proof.probe or make_probe(2000, CONTEXT)
    a, b = trainer_logprobs(policy, probe), engine.logprobs(probe)
    pairs = [(x, y) for r, s in zip(a, b, strict=True) for x, y in zip(r, s, strict=True)]
    return sum(abs(x - y) for x, y in pairs) / len(pairs)


def in_process(bench: Bench, policy: Any, directory: Path) -> None:
    """Base speed, then live sync, full-rank sync and, with one rank, TRL's sync in one engine."""
    start = clock()
    engine = new_engine(directory, bench.ranks)
    base(bench, engine, clock() - start)
    bench.mark()
    live(bench, engine, policy)
    if (
        engine.path == "in_place"
    ):  # a CPU's engine packs its weights: there is nothing to write into, nor for TRL to load
        bench.mark()
        full_rank(bench, engine, policy)
        free()
        if bench.ranks == 1:  # TRL colocates an engine of one rank with each trainer process
            bench.mark()
            trl(bench, engine, policy)
    engine.close()
    del engine
    free()


def base(bench: Bench, engine: VLLMSampler, start_seconds: float) -> None:
    """Speed on new prompts, on prompts that the prefix cache knows, and after the cache was emptied."""
    for _ in range(2):
        bench.speed(engine, "warm-up")
    fresh = bench.speeds(engine, "base")
    raw = bench.speeds(engine, "base", raw=True)
    again = prompts(1, bench.sequences, bench.vocabulary)
    bench.speed(engine, "base, prompts seen once", repeat=again)
    cached = bench.speeds(engine, "base, prefix cache full of these prompts", repeat=again)
    engine._reset_cache()
    emptied = bench.speed(engine, "base, same prompts after a reset, no sync", repeat=again)
    bench.row(
        "base", engine_start_s=start_seconds, tok_s=fresh, tok_s_raw=raw, tok_s_cached=cached, tok_s_reset=emptied
    )


def live(bench: Bench, engine: VLLMSampler, policy: Any) -> None:
    """Ours, in place."""
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
    after = bench.speeds(engine, "after live sync")
    after_raw = bench.speeds(engine, "after live sync", raw=True)
    several_or_slow = bench.ranks > 1 or DEVICE == "cpu"
    measured = drift(engine, policy, 50 if several_or_slow else 200 if bench.shape == "7b" else 1000)
    bench.row("live", seconds=statistics.median(seconds), seconds_all=seconds, first_s=first.seconds,
              proof_s=statistics.median(proofs), gap=max(gaps), gap_mean=mean_gap(policy, engine), tok_s=after,
              tok_s_raw=after_raw, **measured)  # fmt: skip


def drift(engine: VLLMSampler, policy: Any, syncs: int) -> dict[str, Any]:
    """Log-probs after one sync of some weights, and after `syncs` of others and the same weights again."""
    move(policy, 50)
    engine.sync(policy)
    once = engine.logprobs(engine.proof.probe)
    start = clock()
    for index in range(syncs):
        if index % 20 == 0:
            move(policy, 100 + index)
        engine._write(policy)
    per_sync = (clock() - start) / syncs
    move(policy, 50)
    engine.sync(policy)
    again = engine.logprobs(engine.proof.probe)
    worst = max(abs(a - b) for x, y in zip(once, again, strict=True) for a, b in zip(x, y, strict=True))
    return {"drift_syncs": syncs, "drift_nats": worst, "seconds_back_to_back": per_sync}


def full_rank(bench: Bench, engine: VLLMSampler, policy: Any) -> None:
    """Factors as wide as the matrices allow, in float32; random ones cost what an SVD's cost."""
    deltas = []
    for delta in weight_deltas(policy):
        rows, columns = delta.base_OI.shape
        rank = min(rows, columns)
        left = torch.randn(rows, rank, device=DEVICE).mul_(1e-4)
        right = torch.randn(rank, columns, device=DEVICE).mul_(1e-2)
        deltas.append(WeightDelta(delta.module, delta.base_OI, left, right, 1.0))
    seconds = [timed(lambda: engine._write_in_place(deltas)) for _ in range(3)]
    one = deltas[-1]
    exact = one.base_OI.double() + one.left_OK.double() @ one.right_KI.double()
    wrong = (one.merged().double() - exact).abs().max().item() / exact.abs().max().item()
    bench.row("live_full_rank", seconds=statistics.median(seconds), seconds_all=seconds, largest_relative_error=wrong)


def trl(bench: Bench, engine: VLLMSampler, policy: Any) -> None:
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
    after = bench.speeds(engine, "after TRL's sync")
    bench.row("trl", seconds=statistics.median(seconds), seconds_all=seconds, gap=max(gaps),
              gap_mean=mean_gap(policy, engine), tok_s=after,
              base_weights_changed=statistics.mean(changed))  # fmt: skip
    for delta in weight_deltas(policy):
        delta.base_OI.copy_(pristine[delta.module])


def hot_swap(bench: Bench, policy: Any, directory: Path, scratch: Path) -> None:
    """vLLM's own adapter kernels; every version saved and loaded under a new name."""
    from research.sampling.vllm_engine import lora_request

    engine = new_engine(directory, adapters=1, adapter_rank=32)
    for _ in range(2):
        bench.speed(engine, "warm-up, adapter engine")
    bare = bench.speeds(engine, "adapter engine, no adapter in use")
    bench.mark()
    seconds, gap, request = [], float("nan"), None
    for seed in range(20, 25):
        move(policy, seed)
        start = clock()
        policy.save_pretrained(scratch / str(seed))
        request = lora_request(scratch / str(seed))
        engine.llm.llm_engine.add_lora(request)
        seconds.append(clock() - start)
    after = bench.speeds(engine, "after hot-swap", lora=request)
    asked = prompts(7, 4, 2000)
    drawn = engine._generate(asked, 1, SamplingParams(max_tokens=32), [request] * 4)
    trainer = trainer_logprobs(policy, [p + g[0].token_ids for p, g in zip(asked, drawn, strict=True)])
    pairs = [
        (t, s)
        for row, g in zip(trainer, drawn, strict=True)
        for t, s in zip(row[PROMPT - 1 :], g[0].logprobs, strict=True)
    ]
    gap = max(abs(t - s) for t, s in pairs)
    bench.row("hot_swap", seconds=statistics.median(seconds), seconds_all=seconds, gap_sampled=gap, tok_s=after,
              tok_s_without_adapter=bare)  # fmt: skip
    engine.close()
    free()


def restart(bench: Bench, policy: Any, scratch: Path) -> None:
    """Save the merged model, start an engine on it."""
    from research.models.merge import save_merged

    move(policy, 30)
    bench.mark()
    save = timed(lambda: save_merged(policy, scratch / "merged"))
    start = clock()
    engine = new_engine(scratch / "merged")
    load = clock() - start
    bench.speed(engine, "warm-up, restarted")
    after = bench.speeds(engine, "after save and restart")
    gap = prove(policy, engine.logprobs, ProofState(context=CONTEXT, dtype=torch.bfloat16))[0]
    bench.row("restart", seconds=save + load, save_s=save, start_s=load, gap=gap, gap_mean=mean_gap(policy, engine),
              tok_s=after)  # fmt: skip
    engine.close()
    free()
