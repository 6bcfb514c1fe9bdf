"""The closing lines of a command that spans several sweeps speak of each by itself."""

from pathlib import Path

from research.cells.run import Outcome
from research.sweep.finish import failed_cells, finish
from research.sweep.grid import expand

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
