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


def result(epochs, **seconds):
    return {"cell": {"config": {"epochs": epochs}}, "wall_seconds": seconds}


@pytest.mark.parametrize(
    ("results", "units", "seconds"),
    [
        ([result(1, train=2.0, total=12.0), result(20, train=40.0, total=50.0)], 10, 30.0),  # 10 s + 2 s an epoch
        ([result(5, train=20.0, total=24.0), result(5, train=22.0, total=24.0)], 20, 87.0),  # 3 s + 4.2 s an epoch
        ([result(1, total=2.0), result(10, total=30.0)], 10, 302 / 101 * 10),  # no such phase: sum xy / sum xx
        ([result(None, total=9.0), result(None, total=3.0)], 1, 6.0),  # nothing that a cell grows with: the mean
    ],
)
def test_cost_is_training_by_size_and_the_rest(results, units, seconds):
    assert fit_cost(results).seconds(units) == pytest.approx(seconds)


def test_no_earlier_result_no_cost():
    assert fit_cost([]) is None
