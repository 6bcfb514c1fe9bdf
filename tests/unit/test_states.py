"""What became of a cell is told by its files; what it will cost, by earlier results."""

import pytest

from research.cells.claim import claim
from research.sweep.states import count, fit_cost, state_of


def test_each_state(tmp_path):
    folder, scratch = tmp_path / "cell", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    assert state_of(folder, scratch).state == "to do"
    (folder / "error.txt").write_text("Traceback\nValueError: edge\n")
    assert (state_of(folder, scratch).state, state_of(folder, scratch).reason) == ("failed", "ValueError: edge")
    with claim(scratch):
        assert state_of(folder, scratch).state == "running"
    (folder / "run_result.json").write_text("{}")
    assert state_of(folder, scratch).state == "done"
    assert count([state_of(folder, scratch)])["done"] == 1


def result(epochs, seconds):
    return {"cell": {"config": {"epochs": epochs}}, "wall_seconds": {"total": seconds}}


@pytest.mark.parametrize(
    ("points", "units", "seconds"),
    [
        ([(1, 12.0), (20, 50.0)], 10, 30.0),  # 10 s + 2 s an epoch
        ([(5, 20.0), (5, 24.0)], 20, 22.0),  # one size seen: the mean
        ([(1, 2.0), (10, 30.0)], 10, 302 / 101 * 10),  # a line below zero is drawn through it: sum xy / sum xx
        ([(1, 9.0), (10, 3.0)], 5, 6.0),  # a falling line is none
    ],
)
def test_cost_is_a_line_through_earlier_results(points, units, seconds):
    assert fit_cost([result(*p) for p in points]).seconds(units) == pytest.approx(seconds)


def test_no_earlier_result_no_cost():
    assert fit_cost([]) is None
