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
EARLIER, FOUR_STEPS = "grpo_step_3b_earlier.json", "grpo_step_3b_four_steps.json"
NARROW = "ours, stock's micro-batches"
UNSHARED = f"{NARROW}, prompts not shared"

# Every committed measurement and the script whose `--table` prints its rows. None: its rows are claims below.
TABLES = {
    "sync.json": "sync.py",
    "sync_quiet.json": None,
    "sync_tp2.json": "sync.py",
    "zlt_cell.json": "zlt_cell.py",
    "zlt_cell_7b.json": "zlt_cell.py",
    "grpo_step.json": "grpo_step.py",
    "grpo_step_3b.json": "grpo_step.py",
    FOUR_STEPS: None,
    EARLIER: None,
    "grpo_step_3b_8_rows.json": None,
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


def evaluation() -> tuple:
    found = benchmark("zlt_cell_7b.json")["evaluation"]
    names = ("sampler", "completions", "tokens_each", "seconds", "completions_per_second", "tokens_per_second")
    return (*(found[name] for name in (*names, "sync_seconds", "questions", "question_seconds")),)


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


def trained(before: str, after: str, file: str = "zlt_cell_7b.json") -> tuple[float, ...]:
    """Tokens a second, how many times; on a GPU also GiB."""
    slow, fast = runs(file, before, after)
    speeds = [run["tokens_per_second"] for run in (slow, fast)]
    return *speeds, speeds[1] / speeds[0], *(run["peak_mib"] / 1024 for run in (slow, fast) if run["peak_mib"])


def stepped(before: str, after: str, file: str = "grpo_step.json") -> tuple[float, ...]:
    """Seconds a step; how many times the tokens a second, for the runs draw their own completions; on a GPU also GiB."""
    slow, fast = runs(file, before, after)
    times = fast["tokens_per_second"] / slow["tokens_per_second"]
    memory = [run["peak_mib"] / 1024 for run in (slow, fast) if run["peak_mib"]]
    return slow["step_seconds"], fast["step_seconds"], times, *memory


def on_gpu(before: str, after: str, file: str = "grpo_step_3b.json") -> tuple[float, ...]:
    """The same at the 3B shape, where it has GiB."""
    found = stepped(before, after, file)
    assert len(found) == 5
    return found


def seconds_of(kind: str, file: str = "grpo_step_3b.json") -> float:
    return runs(file, kind)[0]["step_seconds"]


def rounds() -> tuple[int, str]:
    """Steps of each kind on a CPU, and rounds of them. Medians of ours lie close where prompts are shared."""
    found = benchmark("grpo_step.json")
    (steps,) = {len(run["seconds"]) for run in found["runs"].values()}
    alike = [run["step_seconds"] for kind, run in found["runs"].items() if kind not in ("stock TRL", UNSHARED)]
    assert max(alike) < 1.2 * min(alike)
    assert steps == found["settings"]["steps"] * found["settings"]["repeats"]
    return steps, word(found["settings"]["repeats"])


def constraint_share(file: str) -> tuple[float]:
    return (100 * runs(file, "ours, erase on frozen A")[0]["constraint_share"],)


def projected() -> tuple[float, ...]:
    """The constraint's seconds, module by module and all together, and how many times."""
    apart, together = (
        run["constraint_share"] * run["step_seconds"]
        for file in (EARLIER, FOUR_STEPS)
        for run in runs(file, "ours, erase on frozen A")
    )
    return apart, together, apart / together


def adapters() -> tuple[float, ...]:
    """LoRA and AntiPaSTO in both runs of four steps, lowest and highest; GiB of the later run."""
    found = [on_gpu("ours", "ours, AntiPaSTO", file) for file in (EARLIER, FOUR_STEPS)]
    ranges = [value for column in list(zip(*found, strict=True))[:3] for value in (min(column), max(column))]
    return *ranges, *found[1][3:]


def three_runs() -> tuple[float, ...]:
    files = EARLIER, FOUR_STEPS, "grpo_step_3b.json"
    found = [seconds_of("ours", file) for file in files]
    assert max(found) < 1.25 * min(found)
    assert {benchmark(file)["settings"]["steps"] for file in files[:2]} == {4}
    return tuple(found)


def at_the_limit() -> tuple[float, ...]:
    """AntiPaSTO's GiB; the projection's seconds in both runs; its share of its own step and of a later one, percent."""
    apart, together, _ = projected()
    share = constraint_share(FOUR_STEPS)
    return adapters()[-1], apart, together, *share, 100 * together / seconds_of("ours")


def scatter() -> tuple[float, ...]:
    """Fastest and slowest step of stock and of ours; the medians with PEFT's layers and with ours."""
    found = [sorted(run["seconds"]) for run in runs("grpo_step_3b.json", "stock TRL", "ours")]
    narrow = [seconds_of(kind) for kind in (f"{NARROW}, PEFT's LoRA layers", NARROW)]
    assert narrow[0] < narrow[1]
    return *(value for each in found for value in (each[0], each[-1])), *narrow


def not_shown() -> tuple[float, ...]:
    """GiB of what was no slower than ours at the 7B shape."""
    without = [benchmark("zlt_cell_7b.json")["runs"][kind] for kind in ("all_logits", "peft_layers")]
    (ours,) = runs("zlt_cell_7b.json", "ours")
    assert all(run["tokens_per_second"] > ours["tokens_per_second"] for run in without)
    assert runs("zlt_cell_7b.json", "four_rows")[0]["tokens_per_second"] < trained("stock", "stock_no_checkpointing")[1]
    on_a_cpu = benchmark("zlt_cell.json")["runs"]
    assert all(
        on_a_cpu[k]["tokens_per_second"] < on_a_cpu["ours"]["tokens_per_second"] for k in ("all_logits", "peft_layers")
    )
    return tuple(run["peak_mib"] / 1024 for run in without)


def eight_rows() -> tuple[float, ...]:
    stock, ours, unshared = runs("grpo_step_3b_8_rows.json", "stock TRL", "ours", "ours, prompts not shared")
    return stock["step_seconds"], ours["step_seconds"], ours["peak_mib"] / 1024, unshared["step_seconds"]


def demo() -> tuple[str, float]:
    found = benchmark("demo.json")
    assert " ".join(found["line"]) in (ROOT / "Makefile").read_text(), "what the demo runs today"
    return word(len(found["cells"])), found["seconds"]


def gpu_phases() -> tuple[float, ...]:
    found = runs("grpo_step_3b.json", "ours")[0]["phases"]
    return tuple(found[name] for name in ("sampling/seconds", "sync/seconds", "sync/proof_seconds", "probe/seconds"))


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
        "| tokens/s, 7B shape | {:,.0f} (stock) | {:,.0f} (stock) | {:.1f} | {:.1f}, {:.1f} |",
        lambda: trained("stock", "stock_no_checkpointing"),
    ),
    Claim(
        PAGE,
        "| tokens/s, 7B shape | {:,.0f} (stock, four rows a pass) | {:,.0f} | {:.1f} | {:.1f}, {:.1f} |",
        lambda: trained("stock", "ours"),
    ),
    Claim(PAGE, "each row is one run of {} steps", lambda: setting("zlt_cell_7b.json", "steps")),
    Claim(PAGE, "our GRPO step at the 3B shape was {:.2f}, {:.2f} and {:.2f} s in three of them.", three_runs),
    Claim(
        PAGE, "| tokens/s, 7B shape | {:,.0f} | {:,.0f} | {:.1f} | {:.1f}, {:.1f} |", lambda: trained("padded", "ours")
    ),
    Claim(
        PAGE,
        "| tokens/s, 7B shape | {:,.0f} (four rows a pass) | {:,.0f} | {:.1f} | {:.1f}, {:.1f} |",
        lambda: trained("four_rows", "ours"),
    ),
    Claim(
        PAGE,
        "| tokens/s, CPU | {:,.0f} | {:,.0f} | {:.1f} | |",
        lambda: [trained(kind, "ours", "zlt_cell.json") for kind in ("padded", "all_logits", "peft_layers")],
    ),
    Claim(
        PAGE,
        "| tokens/s, CPU | {:,.0f} (stock, four rows a pass) | {:,.0f} | {:.1f} | |",
        lambda: trained("stock", "ours", "zlt_cell.json"),
    ),
    Claim(PAGE, "(their memory is {:.1f} and {:.1f} GiB)", not_shown),
    Claim(
        PAGE,
        "| s a GRPO step, CPU | {:.2f} | {:.2f} | {:.1f} |",
        lambda: [stepped(UNSHARED, "ours"), stepped("ours", "ours, AntiPaSTO")],
    ),
    Claim(PAGE, "| s a step, CPU | {:.2f} (stock) | {:.2f} | {:.1f} |", lambda: stepped("stock TRL", "ours")),
    Claim(PAGE, "| share of its step, CPU | | {:.2f} % |", lambda: constraint_share("grpo_step.json")),
    Claim(PAGE, "| s of a GRPO step, 3B shape; two runs | {:.3f} (module by module) | {:.3f} | {:.1f} |", projected),
    Claim(
        PAGE,
        "| s a step, 3B shape | {:.2f} (stock) | {:.2f} | {:.1f} | {:.1f}, {:.1f} |",
        lambda: on_gpu("stock TRL", "ours"),
    ),
    Claim(
        PAGE,
        "| s a GRPO step, 3B shape | {:.2f} | {:.2f} | {:.1f}, not told apart | {:.1f}, {:.1f} |",
        lambda: [on_gpu(UNSHARED, NARROW), on_gpu(NARROW, "ours")],
    ),
    Claim(
        PAGE,
        "| s a GRPO step, 3B shape; two runs | {:.2f} to {:.2f} | {:.2f} to {:.2f} | {:.1f} to {:.1f} | {:.1f}, {:.1f} |",
        adapters,
    ),
    Claim(
        PAGE,
        "{} groups of {}, prompts of {} tokens, completions of {},",
        lambda: setting("grpo_step_3b.json", "groups", "group_size", "prompt_tokens", "max_tokens"),
    ),
    Claim(
        PAGE,
        "Stock's micro-batches hold {} rows, ours {},",
        lambda: setting("grpo_step_3b.json", "micro_batch_size", "own_micro_batch_size"),
    ),
    Claim(PAGE, "Medians of {} steps", lambda: setting("grpo_step_3b.json", "steps")),
    Claim(
        PAGE,
        "stock's took {:.2f} to {:.2f} s, ours {:.2f} to {:.2f} s; hence medians. With PEFT's layers the median was {:.2f} s "
        "beside {:.2f} s",
        scatter,
    ),
    Claim(
        PAGE,
        "AntiPaSTO is no slower than LoRA and takes {:.1f} GiB. The earlier one projected module by module, which a GPU waits for: "
        "{:.3f} s. Now all are projected together: {:.3f} s, {:.2f} % of that run's step with erase and {:.2f} % of our step above.",
        at_the_limit,
    ),
    Claim(
        PAGE,
        "Of our step {:.2f} s is generation; the sync takes {:.2f} s, its proof {:.2f} s, and {:.2f} s go into",
        gpu_phases,
    ),
    Claim(
        PAGE,
        "With {} rows in every micro-batch",
        lambda: setting("grpo_step_3b_8_rows.json", "micro_batch_size"),
    ),
    Claim(
        PAGE,
        "stock took {:.2f} s a step, ours {:.2f} s in {:.1f} GiB, and without sharing prompts {:.2f} s",
        eight_rows,
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
    Claim(
        PAGE,
        "Evaluation with {}: {:,} completions of {} tokens in {:.1f} s ({:.0f} a second, {:,.0f} tokens/s), the sync before "
        "them {:.1f} s, {:,} four-choice prompts {:.1f} s.",
        evaluation,
    ),
    Claim(
        PAGE,
        "{:.0f} TFLOP/s in the same run",
        lambda: (benchmark("zlt_cell_7b.json")["peak"]["flops_per_second"] / 1e12,),
    ),
    Claim(
        PAGE,
        "the published sweep took {} by its own code",
        lambda: (benchmark("zlt_cell_7b.json")["sweep"]["published_gpu_hours"],),
    ),
    Claim(
        PAGE,
        "steps of 16 rows of {} to {} tokens, labels on the last {};",
        lambda: (
            *benchmark("zlt_cell_7b.json")["settings"]["lengths"],
            benchmark("zlt_cell_7b.json")["settings"]["labels"],
        ),
    ),
    Claim(PAGE, "{} cores, the embedded model ({:.1f} M parameters)", lambda: (cores(), million_parameters())),
    Claim(PAGE, "{} steps' losses differ by at most {:.1e} nats", agreement),
    Claim(PAGE, "GRPO step of {} groups of {} on", lambda: setting("grpo_step.json", "groups", "group_size")),
    Claim(PAGE, "medians over {} steps in {} rounds", rounds),
    Claim(PAGE, "Micro-batches are stock's, {} rows.", lambda: setting("grpo_step.json", "micro_batch_size")),
    Claim(PAGE, "a load of {} at the end", lambda: (benchmark("grader.json")["load_average"],)),
    Claim(PAGE, "{:,} samples a side in {} dimensions", mauve_sizes),
    Claim(PAGE, "{:,} cells of the marker study", lambda: (benchmark("sweep_scale.json")["cells"],)),
    Claim(PAGE, "{} cores of an {} with a load of {} at the end", sweep_machine),
]
