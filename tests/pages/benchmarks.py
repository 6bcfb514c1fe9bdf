"""benchmarks/README.md. A script's table is compared as the script prints it; the sentences around it are claims."""

from __future__ import annotations

import math
import struct
from json import loads
from statistics import median

from pages.claim import Claim, benchmark, word
from pages.reading import ROOT
from research.sampling.proof import make_probe

PAGE = "benchmarks/README.md"
CELL, STEP = "zlt_cell_7b.json", "grpo_step_3b.json"
CPU_CELL, CPU_STEP = "zlt_cell.json", "grpo_step.json"
NARROW = "ours, stock's micro-batches"
UNSHARED = f"{NARROW}, prompts not shared"
PEFT_LAYERS = f"{NARROW}, PEFT's LoRA layers"

# Every committed measurement and the script whose `--table` prints its rows. None: its rows are claims below.
TABLES = {
    "sync.json": "sync.py",
    "sync_quiet.json": None,
    "sync_tp2.json": "sync.py",
    CPU_CELL: "zlt_cell.py",
    CELL: "zlt_cell.py",
    CPU_STEP: "grpo_step.py",
    STEP: "grpo_step.py",
    "plans.json": "plans.py",
    "grader.json": "grader.py",
    "mauve_agreement.json": "mauve_agreement.py",
    "sweep_scale.json": "sweep_scale.py",
    "scaling.json": "scaling.py",
    "demo.json": "demo.py",
}


def sync(way: str, *names: str, file: str = "sync.json") -> tuple[float, ...]:
    return tuple(benchmark(file)["rows"][way][name] for name in names)


def quiet(way: str, *names: str) -> tuple[float, ...]:
    return sync(way, *names, file="sync_quiet.json")


def drawn(what: str) -> list[float]:
    """Tokens a second of every reading with seeds and log-probs."""
    return [row["tok_s"] for row in benchmark("sync.json")["speed"] if row["what"] == what and not row["raw"]]


def wandering() -> tuple[float, ...]:
    """Readings lowest and highest: the base model, after TRL's sync, after a restart; without seeds; the adapter's engine."""
    found = [drawn(what) for what in ("base", "after TRL's sync", "after save and restart")]
    (bare,) = sync("hot_swap", "tok_s_without_adapter")
    spans = [value for each in found for value in (min(each), max(each))]
    return *spans, *sync("base", "tok_s_raw"), *sync("live", "tok_s_raw"), bare


def trl_changed() -> tuple[float]:
    assert len(benchmark("sync.json")["rows"]["trl"]["seconds_all"]) == 7
    return (100 * sync("trl", "base_weights_changed")[0],)


def drift() -> tuple[int]:
    syncs, nats = sync("live", "drift_syncs", "drift_nats")
    assert nats == 0, "to the bit"
    return (int(syncs),)


def proof() -> tuple[float, float]:
    shape = benchmark("sync.json")["shape"]
    tokens = sum(len(ids) - 1 for ids in make_probe(shape["vocab_size"], context=1024))
    return round(tokens, -2), *sync("live", "proof_s")


def speeds() -> tuple[float, ...]:
    return *quiet("base", "tok_s_cached", "tok_s", "tok_s_reset"), *quiet("live", "tok_s")


def million_parameters() -> float:
    """Of the embedded model, by the header of its weights."""
    with (ROOT / "src/research/models/micro/weights/model.safetensors").open("rb") as file:
        header = loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__") / 1e6


def cores() -> str:
    (threads,) = {benchmark(name)["threads"] for name in (CPU_CELL, CPU_STEP)}
    return word(threads).capitalize()


def agreement() -> tuple[str, float]:
    found = benchmark(CPU_CELL)["agreement"]
    return word(len(found["ours"])), found["worst"]


def setting(file: str, *names: str) -> tuple:
    return tuple(benchmark(file)["settings"][name] for name in names)


def sweep_machine() -> tuple[str, str, float]:
    found = benchmark("sweep_scale.json")["environment"]
    return word(found["cores"]).capitalize(), found["cpu"], found["load_at_end"]


def mauve_sizes() -> tuple[int, int]:
    (sizes,) = {(row["samples"], row["dimensions"]) for row in benchmark("mauve_agreement.json")["cases"]}
    return sizes


def runs(file: str, *names: str) -> list[dict]:
    return [benchmark(file)["runs"][name] for name in names]


def synced() -> tuple[float, ...]:
    """Seconds of TRL's sync, of ours, of ours with its proof; how many times; GiB beyond what both hold anyway."""
    (theirs, more), (ours, own) = (sync(way, "seconds", "peak_above_start_gib") for way in ("trl", "live"))
    return theirs, ours, ours + sync("live", "proof_s")[0], theirs / ours, more, own


def trained(before: str, after: str, file: str = CELL) -> tuple[float, ...]:
    """Tokens a second, how many times; on a GPU also GiB."""
    slow, fast = runs(file, before, after)
    speeds = [run["tokens_per_second"] for run in (slow, fast)]
    return *speeds, speeds[1] / speeds[0], *(run["peak_mib"] / 1024 for run in (slow, fast) if run["peak_mib"])


def stepped(before: str, after: str, file: str = CPU_STEP) -> tuple[float, ...]:
    """Seconds a step; how many times the tokens a second, for the runs draw their own completions; on a GPU also GiB."""
    slow, fast = runs(file, before, after)
    times = fast["tokens_per_second"] / slow["tokens_per_second"]
    memory = [run["peak_mib"] / 1024 for run in (slow, fast) if run["peak_mib"]]
    return slow["step_seconds"], fast["step_seconds"], times, *memory


def constraint_share(kind: str, file: str) -> tuple[float]:
    return (100 * runs(file, kind)[0]["constraint_share"],)


def rounds() -> tuple[int, str]:
    """Steps of each kind on a CPU, and rounds of them. Medians of ours lie close where prompts are shared."""
    found = benchmark(CPU_STEP)
    (steps,) = {len(run["seconds"]) for run in found["runs"].values()}
    alike = [run["step_seconds"] for kind, run in found["runs"].items() if kind not in ("stock TRL", UNSHARED)]
    assert max(alike) < 1.2 * min(alike)
    assert steps == found["settings"]["steps"] * found["settings"]["repeats"]
    return steps, word(found["settings"]["repeats"])


def demo() -> tuple[str, float]:
    found = benchmark("demo.json")
    assert " ".join(found["line"]) in (ROOT / "Makefile").read_text(), "what the demo runs today"
    return word(len(found["cells"])), found["seconds"]


def graded() -> tuple[float, ...]:
    names = ("process_per_program_per_second", "warm_per_second", "ratio")
    return tuple(benchmark("grader.json")[name] for name in names)


def mauve_seconds() -> tuple:
    """Medians over the cases."""
    cases = benchmark("mauve_agreement.json")["cases"]
    reference, ours = (median(row[side]["seconds"] for row in cases) for side in ("reference", "ours"))
    return mauve_sizes()[0], word(len(cases)), reference, ours, reference / ours


CLAIMS = [
    Claim(PAGE, "| the README's first line, {} cells | s, two CPU cores | | {:.0f} | | | |", demo),
    Claim(
        PAGE,
        "| s a sync, 7B shape | {:.3f} (TRL) | {:.3f}, with its proof {:.3f} | {:.1f} | {:.1f}, {:.1f} more |",
        synced,
    ),
    Claim(
        PAGE,
        "frozen A | share of its step, CPU | | {:.2f} % |",
        lambda: constraint_share("ours, erase on frozen A", CPU_STEP),
    ),
    Claim(PAGE, "| programs/s | {:.1f} | {:.1f} | {:.1f} |", graded),
    Claim(PAGE, "| MAUVE, {:,} samples a side, median of {} cases | s | {} (reference) | {} | {:.1f} |", mauve_seconds),
    Claim(PAGE, "in one process on one {};", lambda: (benchmark("sync.json")["environment"]["device"].split()[-1],)),
    Claim(PAGE, "{} syncs of other weights and then the first ones again gave the same log-probs to the bit", drift),
    Claim(
        PAGE,
        "compares every weight of the engine with the trainer's and compiles the kernel ({:.2f} s)",
        lambda: sync("live", "first_s"),
    ),
    Claim(PAGE, "(log-probs of {:,} probe tokens on both sides) took another {:.2f} s", proof),
    Claim(
        PAGE,
        "reached {:,.0f} tok/s, on new prompts {:,.0f}; after a cache reset *without* any sync it fell to {:,.0f}, and "
        "after live syncs it ran at {:,.0f}.",
        speeds,
    ),
    Claim(PAGE, "after seven of them {:.0f} % of the trainer's weights", trl_changed),
    Claim(
        PAGE,
        "the base model drew {:,.0f} to {:,.0f}, the engine after TRL's sync {:,.0f} to {:,.0f}, one started on merged weights {:,.0f} to "
        "{:,.0f}. Without seeds and log-probs it drew {:,.0f} before and {:,.0f} after the live syncs. The hot-swap's engine has adapter "
        "kernels; without an adapter it drew {:,.0f},",
        wandering,
    ),
    Claim(PAGE, "{} cores, the embedded model ({:.1f} M parameters)", lambda: (cores(), million_parameters())),
    Claim(PAGE, "{} steps' losses differ by at most {:.1e} nats", agreement),
    Claim(PAGE, "GRPO step of {} groups of {} on", lambda: setting(CPU_STEP, "groups", "group_size")),
    Claim(PAGE, "medians over {} steps in {} rounds", rounds),
    Claim(PAGE, "Micro-batches are stock's, {} rows.", lambda: setting(CPU_STEP, "micro_batch_size")),
    Claim(PAGE, "a load of {} at the end", lambda: (benchmark("grader.json")["load_average"],)),
    Claim(PAGE, "{:,} samples a side in {} dimensions", mauve_sizes),
    Claim(PAGE, "{:,} cells of the marker study", lambda: (benchmark("sweep_scale.json")["cells"],)),
    Claim(PAGE, "{} cores of an {} with a load of {} at the end", sweep_machine),
]
