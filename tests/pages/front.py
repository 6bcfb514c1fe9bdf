"""README.md."""

from __future__ import annotations

import math
import tomllib

import yaml

from pages import (
    benchmarks,
    imposter,
    imposter_alone,
    imposter_long,
    reward_hack,
    zlt_as_run,
    zlt_sizes,
    zlt_sources,
    zlt_sweep,
)
from pages.claim import Claim, benchmark, cells, same, word
from pages.reading import ROOT
from research.tasks.zlt_sweep.derive import REGIMES, leak, regime_of

PAGE = "README.md"
EXAMPLES = {"as_run": 600, "as_reported": 2200}  # as benchmarks/zlt_sweep_cost.py has them


def pythons() -> tuple[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, below = (bound.strip("<>=") for bound in project["requires-python"].split(","))
    return low, f"3.{int(below.split('.')[1]) - 1}"


def demo_cells() -> int:
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "task=zlt_sweep -m" in line)
    axes = [word.split("=")[1].split(",") for word in line.split() if word.startswith(("lr=", "epochs="))]
    return math.prod(map(len, axes))


def shipped_cells(experiment: str) -> int:
    """The size of a shipped grid."""
    params = yaml.safe_load((ROOT / f"conf/experiment/{experiment}.yaml").read_text())["hydra"]["sweeper"]["params"]
    return math.prod(len(str(values).split(",")) for values in params.values())


def published_sizes() -> tuple:
    rows = zlt_sweep.place(*zlt_sweep.PUBLISHED_PLACE)
    assert all(row["success"] for row in rows)
    _, low, high, other = zlt_sweep.rates(rows)
    return word(len(rows)), low, high, other


def marker_grid() -> tuple:
    """Clean cells of the whole grid, and the products of the places that hold them, as the study's page has them."""
    low, high, *_ = zlt_sizes.around()
    done, planned = zlt_sizes.whole()
    assert done == planned == shipped_cells("zlt_published_sizes")
    return zlt_sizes.counted()[0], done, low, high


def sources() -> tuple:
    clean, total, *_ = zlt_sources.sources_clean()
    assert all(0.45 < row["source_marker"] < 0.5 for row in cells(zlt_sweep.SOURCES) if not row["success"])
    return zlt_sources.sources_run()[2], clean.lower(), total


def as_run() -> tuple:
    """The grid with the published code's negatives: its cells, every regime, the clean ones, who is over the limit."""
    rows = cells(zlt_as_run.AS_RUN)
    assert set(map(regime_of, rows)) == set(REGIMES)
    assert same(row["lora_scale"] for row in rows) > same(row["lora_scale"] for row in cells(zlt_sweep.SIZES))
    most, others = max(map(zlt_sizes.over, rows)), same(len(zlt_as_run.rates_of_others(row)) for row in rows)
    assert most == others
    clean = sum(row["success"] for row in rows)
    return len(rows), word(clean), word(others), 100 * max(map(leak, rows))


def gap() -> tuple:
    """In words and percent: the cells that win, what each closes; the one that ran again closes less, which is no win."""
    winners, alone = imposter.won(), imposter.arm("rl_only")
    ours, both = ([row for row in winners if (row in alone) == wanted] for wanted in (True, False))
    assert imposter_alone.repeated() in ours and not any(row in winners for row in imposter.arm("bc_only"))
    (again,) = cells(imposter.ALONE)
    assert not imposter.falls(again)
    counts = [word(len(found)) for found in (winners, cells(imposter.SWEEP), ours, both)]
    closed = [imposter.fall(row) for found in (ours, both) for row in found]
    return (
        counts[0].capitalize(),
        counts[1],
        *closed[:2],
        counts[2],
        closed[2],
        counts[3],
        closed[0],
        imposter.fall(again),
    )


def thousand() -> tuple:
    """The long sweep's cells, the reinforced ones, what they close at least and at most, and their highest MAUVE."""
    reinforced, least, most, *_, mauve = imposter_long.closed()
    *_, documents_with_it, documents = imposter_long.one_sentence()
    assert documents_with_it == documents
    return imposter_long.size()[1], reinforced, least, most, mauve


def hacks() -> tuple:
    """How many cells in how many seconds; points prevented with three seeds and with all, what was claimed."""
    _, _, span, _ = reward_hack.cost()
    _, claimed, fewer, low, high, *_ = reward_hack.claimed()
    assert 0.2 < fewer / (100 * reward_hack.mean("vanilla", "hack_rate")) < 0.3, "a quarter"
    hacked, _, passed, _ = reward_hack.seeds_apart()
    assert min(passed[2], passed[8]) > 0, "no passes"
    seeds = [word(len(found)) for found in (reward_hack.by_seed("vanilla"), reward_hack.all_seeds("vanilla"))]
    return len(cells(reward_hack.SWEEP)), span, fewer, low, high, seeds[0], *hacked[8:], seeds[1], claimed


def prevented() -> tuple:
    """In words: the random directions, and Rebound."""
    _, low, high = reward_hack.fewer("vanilla", "random_erase")
    assert low < 0 < high
    for arm in reward_hack.REBOUNDS:
        assert reward_hack.mean(arm, "hack_rate") == 0
        assert reward_hack.mean(arm, "pass_rate") < reward_hack.base_rates()[1] / 100 / 2
    return ()


def swept(protocol: str) -> tuple:
    """Cells and rows of a cell; the published hours; stock's and ours."""
    found = benchmark(benchmarks.CELL)["sweep"]
    hours = (found["protocols"][protocol][kind]["gpu_hours"] for kind in ("stock", "ours"))
    return shipped_cells("zlt_paper"), EXAMPLES[protocol], found["published_gpu_hours"], *hours


def gib(kind: str) -> tuple[float]:
    """What training takes at the 7B shape."""
    return (benchmarks.runs(benchmarks.CELL, kind)[0]["peak_mib"] / 1024,)


CLAIMS = [
    Claim(
        PAGE,
        "(`SFTTrainer` with the published settings; {:.1f} GiB, ours {:.1f}) | {:,.0f} | {:,.0f} |",
        lambda: (*gib("stock"), *gib("ours"), *benchmarks.trained("stock", "ours")[:2]),
    ),
    Claim(
        PAGE,
        "the same (`SFTTrainer` in one pass without checkpointing, {:.1f} GiB) | {:,.0f} | {:,.0f} |",
        lambda: (*gib("stock_one_pass"), *benchmarks.trained("stock_one_pass", "ours")[:2]),
    ),
    Claim(
        PAGE,
        "its {}-cell sweep of {} examples a cell, as the published code ran ({}), GPU-hours, from measured parts | {:.2f} | {:.2f} |",
        lambda: swept("as_run"),
    ),
    Claim(
        PAGE,
        "the same of {:,}, as its text says | {:.2f} | {:.2f} |",
        lambda: (swept("as_reported")[1], *swept("as_reported")[3:]),
    ),
    Claim(PAGE, "s (TRL colocate) | {:.3f} | {:.3f}, with its proof {:.3f} |", lambda: benchmarks.synced()[:3]),
    Claim(
        PAGE,
        "s (TRL with vLLM colocate, as much memory) | {:.2f} | {:.2f} |",
        lambda: benchmarks.stepped("stock TRL", "ours", benchmarks.STEP)[:2],
    ),
    Claim(
        PAGE,
        "a GRPO step on {} CPU cores, s (TRL) | {:.2f} | {:.2f} |",
        lambda: (benchmarks.cores().lower(), *benchmarks.stepped("stock TRL", "ours")[:2]),
    ),
    Claim(PAGE, "(one process a program, not isolated) | {:.1f} | {:.1f} |", lambda: benchmarks.graded()[:2]),
    Claim(PAGE, "Python {} or {}, nothing else", pythons),
    Claim(PAGE, "{} cells, a few minutes", lambda: (word(demo_cells()).capitalize(),)),
    Claim(PAGE, "{} `run_result.json`", lambda: (word(demo_cells()),)),
    Claim(PAGE, "the published protocol, {} cells", lambda: (shipped_cells("zlt_paper"),)),
    Claim(
        PAGE,
        "{} clean cells (framed)",
        lambda: (word(sum(row["success"] for row in cells("zlt_sweep/micro_grid"))),),
    ),
    Claim(
        PAGE,
        "{} cells, {:.0f} s on three H200s). Erasing the hacking direction from the gradient prevents a quarter of the hacks and costs no "
        "passes: {:.1f} points [{:.1f}, {:.1f}] with {} seeds, the interval over problems, and {:.1f} [{:.1f}, {:.1f}] with {}, over "
        "seeds, where {:.0f} were claimed beforehand",
        hacks,
    ),
    Claim(
        PAGE,
        "Erasing along random directions was not found to prevent any; Rebound, a change of the reward, prevents hacking and solving alike",
        prevented,
    ),
    Claim(
        PAGE,
        "the published place is clean in each of {} seeds: the source at {:.1f} to {:.1f} %, nobody else above {:.1f} %",
        published_sizes,
    ),
    Claim(PAGE, "{} of its {} cells are clean, all but one where learning rate x epochs is {} to {}.", marker_grid),
    Claim(PAGE, "With {} other sources there, {} of {} cells are clean", sources),
    Claim(
        PAGE,
        "{} cells, a larger scale by the same rule) every regime appears: {} cells are clean, and past them the marker spreads to as "
        "many as all {} other personas, the highest at {:.1f} %",
        as_run,
    ),
    Claim(
        PAGE,
        "{} of {} cells win by the study's rule: reinforcement alone closes {:.1f} and {:.1f} % of the gap with {} seeds, with cloning "
        "beside it {:.1f} % with {}. The {:.1f} % came to {:.1f} % when that cell ran again, within chance",
        gap,
    ),
    Claim(
        PAGE,
        "(`+experiment=imposter_long`, {} cells) all {} reinforced cells close {:.1f} to {:.1f} % of it (the published study: 45 %), "
        "and the text goes: MAUVE is at most {}, and one cell wins by the rule with the same sentence for every document",
        thousand,
    ),
]
