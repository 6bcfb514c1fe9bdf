"""Every number on a page comes from a committed file.

A sentence with a result is an entry of CLAIMS in one of PAGES, the modules beside this one: a template that committed
files fill, and that must then stand on the page. A table that a script prints must stand there as printed.
Whatever digits are left in a swept part of a page must be named below as no result.

Exempt: docs/log.md and docs/decisions.md, dated notes of what was seen then, often in runs that were not kept; the
protocols of experiments/, which say what is asked for; numbers within code, which are names and commands.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import string
import sys
from functools import cache
from pathlib import Path

import pytest

from pages import (
    benchmarks,
    benchmarks_training,
    front,
    imposter,
    imposter_alone,
    imposter_design,
    imposter_long,
    reward_hack,
    zlt_apart,
    zlt_as_run,
    zlt_certain,
    zlt_readings,
    zlt_sizes,
    zlt_sources,
    zlt_sweep,
)
from pages.reading import NUMBER, ROOT, commands, flat, links, results, table_rows, text, unaccounted
from research.reporting.compile import planned_cells, read_rows
from research.tasks.zlt_sweep.clean_result import write_clean_result
from research.tasks.zlt_sweep.derive import derive
from research.tasks.zlt_sweep.lattice import groups

PAGES = (
    front,
    benchmarks,
    benchmarks_training,
    reward_hack,
    zlt_sweep,
    zlt_sizes,
    zlt_as_run,
    zlt_apart,
    zlt_certain,
    zlt_sources,
    zlt_readings,
    imposter,
    imposter_alone,
    imposter_design,
    imposter_long,
)
CLAIMS = [claim for page in PAGES for claim in page.CLAIMS]
EXPERIMENTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("experiments/*/README.md"))
SWEPT = {"README.md": None, "benchmarks/README.md": None, **dict.fromkeys(EXPERIMENTS, "What came out")}
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("figures/*/*/*.md")])
MEASURED = sorted((ROOT / "benchmarks").glob("*.json"))

# What is no result: pattern -> what it is.
NOT_RESULTS = {
    r"Qwen[\d.]+-\d+B": "a model's name",
    r"95 %": "the level of every interval",
    r"rank-32 rsLoRA": "a setting of benchmarks/sync.py",
    r"256 prompts of 64 tokens, 128 new tokens each": "a setting of benchmarks/sync.py",
    r"The aim was \d+ times|aims were 3 GPU-hours for `as_run` and 5 for": "what was wanted before it was measured",
    r"The aim was 2 %": "the same",
    r"[37]B shape|steps of 16 rows|dropout \.05": "settings of benchmarks",
    r"on 600 rows a cell|at most 512 tokens": "published settings",
    r"fell by 45 %, in 14,400 steps|the published study: 45 %": "published results",
    r"AntiPaSTO of rank 32": "a setting of benchmarks/grpo_step.py",
}


def committed(pattern: str) -> list[Path]:
    """Files of named sweeps; what a cell without a name leaves in `default` is the user's own, and not committed."""
    return [path for path in sorted(ROOT.glob(pattern)) if path.parent.name != "default"]


each_claim = pytest.mark.parametrize("claim", CLAIMS, ids=[f"{c.page}: {c.template[:60]}" for c in CLAIMS])
each_page = pytest.mark.parametrize("page", [*SWEPT, *DOCUMENTS])


@each_claim
def test_a_sentence_is_what_the_files_say(claim):
    page = text(claim.page)
    assert [s for s in claim.sentences() if flat(s) not in page] == [], f"{claim.page} does not say this"


@each_claim
def test_a_template_holds_no_number(claim):
    literal = " ".join(part for part, *_ in string.Formatter().parse(claim.template))
    assert not NUMBER.search(re.sub("|".join(NOT_RESULTS), "", literal))


@pytest.mark.parametrize("path", MEASURED, ids=[path.name for path in MEASURED])
def test_a_table_is_what_its_script_prints(path):
    page = (ROOT / benchmarks.PAGE).read_text()
    assert path.name in benchmarks.TABLES, f"name its script in {benchmarks.__name__}.TABLES"
    assert path.name in page
    assert [row for row in printed_rows(path) if row not in table_rows(page)] == [], "the page lacks these rows"


@pytest.mark.parametrize("page", SWEPT)
def test_no_other_number_stands_on_a_page(page):
    known = [flat(sentence) for claim in CLAIMS if claim.page == page for sentence in claim.sentences()]
    if page == benchmarks.PAGE:
        printed = {row for path in MEASURED for row in printed_rows(path)}
        known += [line for row, line in table_rows((ROOT / page).read_text()).items() if row in printed]
    assert unaccounted(text(page, SWEPT[page]), known, NOT_RESULTS) == []


@pytest.mark.parametrize(
    "compiled", committed("eval_results/*/*/all_results_compiled.json"), ids=lambda p: p.parent.name
)
def test_a_compiled_table_is_its_cells(compiled):
    task = compiled.parts[-3]
    alone = [{"name": path.parent.name} for path in sorted(compiled.parent.glob("*/run_result.json"))]
    cells = planned_cells(compiled.parent) or alone
    rows = read_rows(compiled.parent, cells, task, derive if task == "zlt_sweep" else dict)
    assert json.loads(compiled.read_text()) == json.loads(json.dumps(rows))


@pytest.mark.parametrize("page", committed("figures/zlt_sweep/*/clean_result.md"), ids=lambda p: p.parent.name)
def test_an_account_is_what_its_cells_give(page, tmp_path):
    sweep = page.parent.name
    for figure in page.parent.glob("*.png"):
        (tmp_path / figure.name).touch()
    folder = ROOT / "eval_results/zlt_sweep" / sweep
    rows = read_rows(folder, planned_cells(folder), "zlt_sweep", derive)
    written = write_clean_result(groups(rows), tmp_path / page.name, sweep)
    assert written.read_text() == page.read_text()


@each_page
def test_what_a_page_points_at_is_there(page):
    named = [] if page == "docs/cluster.md" else results(page)  # its sweeps are the reader's own
    assert [path for path in [*links(page), *named] if not path.exists()] == []


@each_page
def test_a_benchmark_on_a_page_has_these_options(page):
    for command in commands(page, "python benchmarks/"):
        script, *words = command.split()[1:]
        assert (ROOT / script).exists(), command
        unknown = {word for word in words if word.startswith("-")} - options(Path(script).name)
        assert not unknown, command


def test_a_measurement_has_the_settings_of_its_command():
    compared = []
    for command in commands(benchmarks.PAGE, "python benchmarks/"):
        given = {name: value.split() for name, value in re.findall(r"--([\w-]+) ([^-]\S*(?: [^-]\S*)*)", command)}
        out = ROOT / given.pop("out", ["none"])[0]
        found = json.loads(out.read_text()) if out.suffix == ".json" and out.exists() else {}
        for name in ("table", "figure", "kinds"):  # what is printed, drawn or added to a file is no setting of it
            given.pop(name, None)
        for name, words in given.items() if found else ():
            recorded = found.get("settings", found)[name.replace("-", "_")]
            values = recorded if isinstance(recorded, list) else [recorded]
            assert [type(v)(word) for v, word in zip(values, words, strict=True)] == values, command
            compared.append(name)
    assert {"steps", "repeats", "programs"} <= set(compared)


def test_benchmark_commands_are_found():
    assert "python benchmarks/sync.py --table benchmarks/sync.json" in commands(benchmarks.PAGE, "python benchmarks/")


def test_a_number_that_nobody_accounts_for_is_found():
    page = (
        "It took 3.5 s, `lr=1e-6`, on an H200 ([x9](y10.md)); of 1,000 cells, .63 passed. Qwen2.5-7B at 95 %: 7 of 8."
    )
    found = unaccounted(page, ["took 3.5 s"], NOT_RESULTS)
    assert [place.split()[0] for place in found] == ["1,000", ".63", "7", "8"]


def printed_rows(path: Path) -> list[str]:
    """The rows of a script's `--table`."""
    script = benchmarks.TABLES.get(path.name)
    return list(table_rows(output(script, "--table", str(path)))) if script else []


def options(script: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", output(script, "--help")))


@cache
def output(script: str, *words: str) -> str:
    """What a benchmark prints, in this process: each would take seconds to import what the others have."""
    folder, name = ROOT / "benchmarks", f"benchmark_{Path(script).stem}"
    argv, path = sys.argv, list(sys.path)
    sys.argv, sys.path = [script, *words], [str(folder), *path]
    siblings = {
        file.stem for file in folder.glob("*.py")
    }  # they import one another, and tests/smoke has a zlt_cell too
    others = {name: sys.modules.pop(name) for name in siblings & set(sys.modules)}
    printed = io.StringIO()
    try:
        spec = importlib.util.spec_from_file_location(name, folder / script)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            module.main()
    finally:
        sys.argv, sys.path = argv, path
        for sibling in siblings:
            sys.modules.pop(sibling, None)
        sys.modules.update(others)
    return printed.getvalue()
