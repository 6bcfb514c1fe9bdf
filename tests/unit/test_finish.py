"""The closing lines of a command that spans several sweeps speak of each by itself."""

import json
import multiprocessing
from pathlib import Path

from research.cells.cell import write_atomically
from research.cells.run import Outcome
from research.reporting.page import recompile
from research.sweep.finish import failed_cells, finish
from research.sweep.grid import expand, write_sweep
from research.sweep.slurm import compile_if_last

PLUGIN = str(Path(__file__).parents[1] / "conf_plugin")


def two_sweeps(root):
    """The cells a/1, a/2, b/1, b/2 in this order: equal names in both sweeps."""
    words = ["task=coin", f"results_root={root}", "name=a,b", "seed=1,2"]
    return expand(words, multirun=True, config_dir=PLUGIN)


def test_busy_cells_are_counted_where_they_are(tmp_path):
    grid = two_sweeps(tmp_path)
    outcomes = [Outcome(cell.name, "busy", cell.directory) for cell in grid.cells[:3]]
    failed, lines = finish(grid, outcomes, multirun=True)
    assert not failed
    assert lines == [
        "coin/a: 0 of 2 done, 2 run by another process",
        "coin/b: 0 of 2 done, 1 run by another process",
    ]


def test_a_cell_that_failed_in_both_sweeps_is_told_twice_and_one_told_by_its_outcome_once(tmp_path):
    grid = two_sweeps(tmp_path)
    here, elsewhere = grid.cells[0], grid.cells[2]
    assert here.name == elsewhere.name
    for cell in (here, elsewhere):
        cell.directory.mkdir(parents=True)
        (cell.directory / "error.txt").write_text("Traceback\nValueError: edge\n")
    outcomes = [Outcome(here.name, "failed", here.directory, "ValueError: edge")]
    assert failed_cells(grid, outcomes) == [(here.name, "ValueError: edge")] * 2


def test_of_cells_that_finish_together_each_compiles_and_the_files_are_whole(tmp_path):
    words = ["task=coin", f"results_root={tmp_path}", "seed=range(6)"]
    grid = expand(words, multirun=True, config_dir=PLUGIN)
    (launched,) = write_sweep(grid, "test")
    compiled = launched.with_name("all_results_compiled.json")
    for cell in grid.cells:
        cell.directory.mkdir()
    assert recompile  # imported once, before the fork
    context = multiprocessing.get_context("fork")
    together = context.Barrier(len(grid.cells))
    processes = [context.Process(target=_finish, args=(cell, together)) for cell in grid.cells]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert not compiled.exists() or len(json.loads(compiled.read_text())) == 6, "a reader never sees a part"
    assert [process.exitcode for process in processes] == [0] * 6
    rows = json.loads(compiled.read_text())
    assert [row["metrics"]["heads"] for row in rows] == [i / 6 for i in range(6)]
    page = tmp_path / "figures/coin/default/report.html"
    assert page.read_text().rstrip().endswith("</html>")
    assert not list(tmp_path.rglob("*.tmp"))


def _finish(cell, together):
    metrics = {"heads": cell.config.seed / 6}
    document = {"task": "coin", "cell": {"name": cell.name, "digest": cell.digest}, "metrics": metrics}
    together.wait()
    write_atomically(cell.result_path, json.dumps(document))
    compile_if_last(cell)
