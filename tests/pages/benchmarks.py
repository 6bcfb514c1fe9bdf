"""benchmarks/README.md. A script's table is compared as the script prints it; the sentences around it are claims."""

from __future__ import annotations

import math
import struct
from json import loads

from pages.claim import Claim, benchmark, word
from pages.reading import ROOT
from research.sampling.proof import make_probe

PAGE = "benchmarks/README.md"

# Every committed measurement and the script whose `--table` prints its rows. None: its rows are claims below.
TABLES = {
    "sync.json": "sync.py",
    "zlt_cell.json": None,
    "grpo_step.json": None,
    "grader.json": "grader.py",
    "mauve_agreement.jsonl": "mauve_agreement.py",
    "sweep_scale.json": "sweep_scale.py",
    "scaling.json": "scaling.py",
}


def sync(way: str, *names: str) -> tuple[float, ...]:
    return tuple(benchmark("sync.json")["rows"][way][name] for name in names)


def drift() -> tuple[int]:
    syncs, nats = sync("live", "drift_syncs", "drift_nats")
    assert nats == 0, "to the bit"
    return (int(syncs),)


def proof() -> tuple[float, float]:
    shape = benchmark("sync.json")["shape"]
    tokens = sum(len(ids) - 1 for ids in make_probe(shape["vocab_size"], context=1024))
    return round(tokens, -2), *sync("live", "proof_s")


def speeds() -> tuple[float, ...]:
    return *sync("base", "tok_s_cached", "tok_s", "tok_s_reset"), *sync("live", "tok_s")


def cost_of_seeds() -> tuple[float, ...]:
    costs = [100 * (raw / speed - 1) for raw, speed in (sync(way, "tok_s_raw", "tok_s") for way in ("base", "live"))]
    return math.floor(min(costs)), math.ceil(max(costs)), *sync("base", "tok_s_raw")


def million_parameters() -> float:
    """Of the embedded model, by the header of its weights."""
    with (ROOT / "src/research/models/micro/weights/model.safetensors").open("rb") as file:
        header = loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__") / 1e6


def cores() -> str:
    (threads,) = {benchmark(name)["threads"] for name in ("zlt_cell.json", "grpo_step.json")}
    return word(threads).capitalize()


def agreement() -> tuple[str, float]:
    found = benchmark("zlt_cell.json")["agreement"]
    return word(len(found["ours"])), found["worst"]


def training() -> list[tuple]:
    runs = benchmark("zlt_cell.json")["runs"]
    names = {
        "stock": "stock `SFTTrainer`, published settings (gradient checkpointing)",
        "stock_no_checkpointing": "stock, without checkpointing",
        "ours": "ours",
    }
    seconds = {kind: run["seconds"] for kind, run in runs.items()}
    return [
        (name, runs[kind]["tokens_per_second"], seconds[kind], seconds["stock"] / seconds[kind])
        for kind, name in names.items()
    ]


def policy_steps() -> list[tuple]:
    return [
        (kind, run["step_seconds"], run["tokens_per_second"], run["times_stock"], f"{share:.2%} " if share else "")
        for kind, run in benchmark("grpo_step.json")["runs"].items()
        for share in [run["constraint_share"]]
    ]


def setting(file: str, *names: str) -> tuple:
    return tuple(benchmark(file)["settings"][name] for name in names)


def sweep_machine() -> tuple[str, str]:
    found = benchmark("sweep_scale.json")["environment"]
    return word(found["cores"]).capitalize(), found["cpu"]


def mauve_sizes() -> tuple[int, int]:
    lines = (ROOT / "benchmarks/mauve_agreement.jsonl").read_text().splitlines()
    (sizes,) = {(row["samples"], row["dimensions"]) for row in map(loads, lines)}
    return sizes


CLAIMS = [
    Claim(PAGE, "in one process on one {};", lambda: (benchmark("sync.json")["environment"]["device"].split()[-1],)),
    Claim(PAGE, "{} syncs of other weights and then the first ones again gave the same log-probs to the bit", drift),
    Claim(PAGE, "compares every weight of the engine with the trainer's ({:.2f} s)", lambda: sync("live", "first_s")),
    Claim(PAGE, "(log-probs of {:,} probe tokens on both sides) took another {:.2f} s", proof),
    Claim(
        PAGE,
        "reached {:,.0f} tok/s, on new prompts {:,.0f}; after a cache reset *without* any sync it fell to {:,.0f}, and "
        "after live syncs it ran at {:,.0f}.",
        speeds,
    ),
    Claim(PAGE, "Seeds and log-probs cost {} to {} % ({:,.0f} tok/s without)", cost_of_seeds),
    Claim(PAGE, "{} cores, the embedded model ({:.1f} M parameters)", lambda: (cores(), million_parameters())),
    Claim(PAGE, "{} steps' losses differ by at most {:.1e} nats", agreement),
    Claim(PAGE, "| {} | {:,.0f} | {:.2f} | {:.2f} |", training),
    Claim(PAGE, "a GRPO step of {} groups of {} on", lambda: setting("grpo_step.json", "groups", "group_size")),
    Claim(PAGE, "| {} | {:.2f} | {:,.0f} | {:.2f} | {}|", policy_steps),
    Claim(PAGE, "a load of {} at the end", lambda: (benchmark("grader.json")["load_average"],)),
    Claim(PAGE, "{:,} samples a side in {} dimensions", mauve_sizes),
    Claim(PAGE, "{:,} cells of the marker study", lambda: (benchmark("sweep_scale.json")["cells"],)),
    Claim(PAGE, "{} cores of an {} with", sweep_machine),
]
