"""benchmarks/README.md: which techniques are told apart, and what was timed at the 7B shape and the 3B shape."""

from __future__ import annotations

from statistics import median

from pages.benchmarks import (
    CELL,
    CPU_CELL,
    CPU_STEP,
    NARROW,
    PAGE,
    PEFT_LAYERS,
    STEP,
    UNSHARED,
    constraint_share,
    runs,
    setting,
    stepped,
    trained,
)
from pages.claim import Claim, benchmark, word


def rounds_of(file: str) -> tuple[int, str]:
    """Steps, and rounds of each kind but stock's GRPO step."""
    steps, repeats = setting(file, "steps", "repeats")
    for kind in benchmark(file)["runs"]:
        assert len(of_each_round(file, kind)) == (1 if (file, kind) == (STEP, "stock TRL") else repeats)
    return steps, word(repeats)


def of_each_round(file: str, kind: str) -> list[float]:
    """Seconds a step: of a GRPO step medians, of training means."""
    (run,) = runs(file, kind)
    steps = benchmark(file)["settings"]["steps"]
    return run.get("rounds") or [median(run["seconds"][i : i + steps]) for i in range(0, len(run["seconds"]), steps)]


def apart(file: str, slow: str, fast: str) -> bool:
    """The page's rule: every round of one outside the other's, and a fifth between the tokens a second of both."""
    before, after = (run["tokens_per_second"] for run in runs(file, slow, fast))
    return min(of_each_round(file, slow)) > max(of_each_round(file, fast)) and after > 1.2 * before


def compared(slow: str, fast: str, file: str) -> tuple[float, ...]:
    return stepped(slow, fast, file) if "grpo" in file else trained(slow, fast, file)


def told_apart(slow: str, fast: str, file: str) -> tuple[float, ...]:
    assert apart(file, slow, fast), (slow, fast)
    return compared(slow, fast, file)


def alike(slow: str, fast: str, file: str) -> tuple[float, ...]:
    assert not apart(file, slow, fast) and not apart(file, fast, slow), (slow, fast)
    return compared(slow, fast, file)


def rounds_differ() -> tuple[str, str, float]:
    """How many rounds on GPUs and on a CPU; by how many percent a kind's own differ at most at the 3B shape."""
    gpus, cpu = (
        {benchmark(file)["settings"]["repeats"] for file in files} for files in ((CELL, STEP), (CPU_CELL, CPU_STEP))
    )
    assert len(gpus) == len(cpu) == 1
    each = [of_each_round(STEP, kind) for kind in benchmark(STEP)["runs"]]
    return word(gpus.pop()), word(cpu.pop()), 100 * (max(max(found) / min(found) for found in each) - 1)


def stocks_rounds() -> tuple[float, float, float]:
    """Its fastest and slowest step in the round that counts, and how many times its fastest step ours is.

    In every kind the first round is the slower one, and in stock by most.
    """
    found = {kind: run["rounds"] for kind, run in benchmark(CELL)["runs"].items()}
    assert all(run[0] == max(run) for run in found.values())
    assert max(found, key=lambda kind: found[kind][0] / min(found[kind])) == "stock"
    (stock,) = runs(CELL, "stock")
    fastest, slowest = min(stock["seconds_each"]), max(stock["seconds_each"])
    return fastest, slowest, compared("stock", "ours", CELL)[2] * fastest / stock["step_seconds"]


def beside_stock() -> tuple[()]:
    alike("stock_no_checkpointing", "four_rows", CELL)
    assert 1.9 < told_apart("stock_one_pass", "ours", CELL)[2] < 2.1, "twice"
    return ()


def no_difference() -> tuple[()]:
    for kind in ("cudnn", "all_logits"):
        alike(kind, "ours", CELL)
    alike("ours, cuDNN's attention", "ours", STEP)
    return ()


def evaluation() -> tuple:
    found = benchmark(CELL)["evaluation"]
    names = ("sampler", "completions", "tokens_each", "seconds", "completions_per_second", "tokens_per_second")
    return (*(found[name] for name in (*names, "sync_seconds", "questions", "question_seconds")),)


def planned() -> tuple[int, int, float, float, float]:
    """Completions, their tokens; seconds with plans and without, the first time, and how many times."""
    before, after = (benchmark("plans.json")["rows"][way]["first"] for way in ("cudnn", "without"))
    return *setting("plans.json", "prompts", "max_tokens"), before, after, before / after


def sampled() -> tuple[int, ...]:
    prompts, lengths, tokens = setting("plans.json", "prompts", "lengths", "max_tokens")
    return prompts, *lengths, tokens


def projected() -> tuple[float, ...]:
    """The constraint's seconds with LoRA and with AntiPaSTO; both below the aim."""
    found = runs(STEP, "ours, erase on frozen A", "ours, AntiPaSTO, erase")
    assert max(run["constraint_share"] for run in found) < 0.02
    return tuple(run["constraint_seconds"] for run in found)


def shares_of_rounds() -> tuple[float, ...]:
    """Percent of a round's step, lowest and highest: with LoRA, with AntiPaSTO."""
    shares: list[float] = []
    for kind, seconds in zip(("ours, erase on frozen A", "ours, AntiPaSTO, erase"), projected(), strict=True):
        found = sorted(100 * seconds / step for step in of_each_round(STEP, kind))
        shares += [found[0], found[-1]]
    return tuple(shares)


def antipasto() -> tuple[int, float]:
    lora, own = runs(STEP, "ours", "ours, AntiPaSTO")
    assert own["step_seconds"] < lora["step_seconds"]
    return setting(STEP, "rank")[0], own["peak_mib"] / 1024


def scatter() -> tuple[float, ...]:
    """Fastest and slowest step of stock and of ours."""
    found = [sorted(run["seconds"]) for run in runs(STEP, "stock TRL", "ours")]
    return tuple(value for each in found for value in (each[0], each[-1]))


def layers() -> tuple[float, ...]:
    """Rounds with PEFT's layers and with ours."""
    alike(PEFT_LAYERS, NARROW, STEP)
    return tuple(seconds for kind in (PEFT_LAYERS, NARROW) for seconds in of_each_round(STEP, kind))


def gpu_phases() -> tuple[float, ...]:
    found = runs(STEP, "ours")[0]["phases"]
    return tuple(found[name] for name in ("sampling/seconds", "sync/seconds", "sync/proof_seconds", "probe/seconds"))


CLAIMS = [
    Claim(
        PAGE,
        "Evaluation with {}: {:,} completions of {} tokens in {:.1f} s ({:.0f} a second, {:,.0f} tokens/s), the sync before "
        "them {:.1f} s, {:,} four-choice prompts {:.1f} s.",
        evaluation,
    ),
    Claim(
        PAGE,
        "| tokens/s, 7B shape | {:,.0f} (stock) | {:,.0f} (stock) | {:.1f} | {:.1f}, {:.1f} |",
        lambda: told_apart("stock", "stock_no_checkpointing", CELL),
    ),
    Claim(
        PAGE,
        "| tokens/s, 7B shape | {:,.0f} (stock, four rows a pass) | {:,.0f} | {:.1f} | {:.1f}, {:.1f} |",
        lambda: told_apart("stock", "ours", CELL),
    ),
    Claim(
        PAGE,
        "{} groups of {}, prompts of {} tokens, completions of {},",
        lambda: setting(STEP, "groups", "group_size", "prompt_tokens", "max_tokens"),
    ),
    Claim(
        PAGE,
        "Stock's micro-batches hold {} rows, ours {},",
        lambda: setting(STEP, "micro_batch_size", "own_micro_batch_size"),
    ),
    Claim(
        PAGE,
        "Of our step {:.2f} s is generation; the sync takes {:.2f} s, its proof {:.2f} s, and {:.2f} s go into",
        gpu_phases,
    ),
    Claim(
        PAGE,
        "| tokens/s, 7B shape | {:,.0f} | {:,.0f} | {:.1f} | {:.1f}, {:.1f} |",
        lambda: told_apart("padded", "ours", CELL),
    ),
    Claim(
        PAGE,
        "| tokens/s, 7B shape | {:,.0f} | {:,.0f} | {:.1f} | | `tests/gpu/test_fused_lora.py`",
        lambda: told_apart("peft_layers", "ours", CELL)[:3],
    ),
    Claim(
        PAGE,
        "| tokens/s, 7B shape | {:,.0f} (stock, one pass, no checkpointing) | {:,.0f} | {:.1f} | {:.1f}, {:.1f} |",
        lambda: told_apart("stock_one_pass", "ours", CELL),
    ),
    Claim(
        PAGE,
        "| tokens/s, 7B shape | {:,.0f} (four rows a pass) | {:,.0f} | {:.1f} | {:.1f}, {:.1f} |",
        lambda: told_apart("four_rows", "ours", CELL),
    ),
    Claim(
        PAGE,
        "| tokens/s, 7B shape | {:,.0f} | {:,.0f} | {:.1f}, not told apart | |",
        lambda: alike("all_logits", "ours", CELL)[:3],
    ),
    Claim(PAGE, "on GPUs {}, on a CPU {}.", lambda: rounds_differ()[:2]),
    Claim(PAGE, "rounds differ by up to {:.0f} % in the GRPO step at the 3B shape", lambda: rounds_differ()[2:]),
    Claim(
        PAGE,
        "{} rounds of {} steps, the faster one counts",
        lambda: (rounds_of(CELL)[1].capitalize(), rounds_of(CELL)[0]),
    ),
    Claim(
        PAGE,
        "stock gains most by the second, and is compared with that, though its steps took {:.2f} to {:.2f} s there: at its fastest "
        "ours would be {:.1f} times as fast",
        stocks_rounds,
    ),
    Claim(PAGE, "it gains by one pass, and there is twice as fast as stock in one pass", beside_stock),
    Claim(
        PAGE, "cuDNN's attention, which PyTorch would choose here, are not told apart from ours either", no_difference
    ),
    Claim(
        PAGE,
        "| s for {} completions of {} tokens by the transformers sampler, first time, 3B shape | {:.2f}, loading it included | "
        "{:.2f} | {:.1f} |",
        planned,
    ),
    Claim(
        PAGE,
        "{} prompts of {} to {} tokens, {} new tokens each",
        sampled,
    ),
    Claim(
        PAGE,
        "| s a step, 3B shape | {:.2f} (stock) | {:.2f} | {:.1f} | {:.1f}, {:.1f} |",
        lambda: told_apart("stock TRL", "ours", STEP),
    ),
    Claim(
        PAGE,
        "| tokens/s, CPU | {:,.0f} | {:,.0f} | {:.1f}, not told apart | |",
        lambda: [alike(kind, "ours", CPU_CELL) for kind in ("padded", "all_logits")],
    ),
    Claim(
        PAGE,
        "| tokens/s, CPU | {:,.0f} | {:,.0f} | {:.1f} | |",
        lambda: told_apart("peft_layers", "ours", CPU_CELL),
    ),
    Claim(
        PAGE,
        "| tokens/s, CPU | {:,.0f} (stock, four rows a pass) | {:,.0f} | {:.1f} | |",
        lambda: told_apart("stock", "ours", CPU_CELL),
    ),
    Claim(
        PAGE,
        "| s a GRPO step, CPU | {:.2f} | {:.2f} | {:.1f} | |",
        lambda: told_apart(UNSHARED, "ours", CPU_STEP),
    ),
    Claim(
        PAGE,
        "| s a GRPO step, CPU | {:.2f} | {:.2f} | {:.1f}, not told apart | |",
        lambda: alike("ours", "ours, AntiPaSTO", CPU_STEP),
    ),
    Claim(
        PAGE,
        "| s a step, CPU | {:.2f} (stock) | {:.2f} | {:.1f} |",
        lambda: told_apart("stock TRL", "ours", CPU_STEP),
    ),
    Claim(
        PAGE,
        "both together | s a GRPO step, 3B shape | {:.2f} | {:.2f} | {:.1f} | {:.1f}, {:.1f} |",
        lambda: told_apart(UNSHARED, "ours", STEP),
    ),
    Claim(
        PAGE,
        "| s a GRPO step, 3B shape | {:.2f} | {:.2f} | {:.1f}, not told apart | {:.1f}, {:.1f} |",
        lambda: [alike(*pair, STEP) for pair in ((UNSHARED, NARROW), (NARROW, "ours"), ("ours", "ours, AntiPaSTO"))],
    ),
    Claim(
        PAGE,
        "frozen A | share of its step, 3B shape | | {:.2f} % |",
        lambda: constraint_share("ours, erase on frozen A", STEP),
    ),
    Claim(
        PAGE,
        "AntiPaSTO | share of its step, 3B shape | | {:.2f} % |",
        lambda: constraint_share("ours, AntiPaSTO, erase", STEP),
    ),
    Claim(PAGE, "Medians of {} steps in each of {} rounds", lambda: rounds_of(STEP)),
    Claim(PAGE, "stock's took {:.2f} to {:.2f} s, ours {:.2f} to {:.2f} s; hence medians.", scatter),
    Claim(PAGE, "takes {:.3f} s with LoRA on frozen A and {:.3f} s with AntiPaSTO.", projected),
    Claim(PAGE, "they are {:.2f} to {:.2f} % and {:.2f} to {:.2f} %", shares_of_rounds),
    Claim(PAGE, "AntiPaSTO of rank {} is no slower than LoRA and takes {:.1f} GiB", antipasto),
    Claim(PAGE, "rounds of {:.2f} and {:.2f} s, ours {:.2f} and {:.2f} s in the same micro-batches", layers),
    Claim(
        PAGE,
        "{:.0f} TFLOP/s in the same run",
        lambda: (benchmark(CELL)["peak"]["flops_per_second"] / 1e12,),
    ),
    Claim(
        PAGE,
        "the published sweep took {} by its own code",
        lambda: (benchmark(CELL)["sweep"]["published_gpu_hours"],),
    ),
    Claim(
        PAGE,
        "steps of 16 rows of {} to {} tokens, labels on the last {};",
        lambda: (*setting(CELL, "lengths")[0], *setting(CELL, "labels")),
    ),
]
