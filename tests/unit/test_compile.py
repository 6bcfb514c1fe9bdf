"""From cell directories to rows: order, gaps, failures, several writers, ten thousand cells."""

import json
import multiprocessing
import time

import pytest

from research.errors import ConfigurationError
from research.reporting.compile import COMPILED, compile_sweep
from research.reporting.foreign import read_results


def make_cell(root, name, value, **more):
    folder = root / "eval_results" / "coin" / "s" / name
    folder.mkdir(parents=True)
    row = {
        "task": "coin",
        "cell": {"name": name, "digest": name * 2, "config": {"task.bias": value}},
        "metrics": {"heads": value},
    }
    (folder / "run_result.json").write_text(json.dumps(row | more))


def make_grid(root, names):
    folder = root / "eval_results" / "coin" / "s"
    folder.mkdir(parents=True, exist_ok=True)
    cells = [{"name": name, "digest": name * 2, "config": {"task.bias": i / 10}} for i, name in enumerate(names)]
    (folder / "sweep.json").write_text(json.dumps({"task": "coin", "name": "s", "axes": {}, "cells": cells}))
    return folder


def test_rows_come_in_grid_order_with_gaps_and_errors(tmp_path):
    folder = make_grid(tmp_path, ["d", "a", "c", "b"])
    make_cell(tmp_path, "a", 0.1)
    make_cell(tmp_path, "d", 0.0)
    (folder / "c").mkdir()
    (folder / "c" / "error.txt").write_text("Traceback ...\nValueError: on its edge\n")
    rows = compile_sweep("coin", "s", tmp_path)
    assert [row["cell"]["name"] for row in rows] == ["d", "a", "c", "b"]
    assert [row["status"] for row in rows] == ["done", "done", "failed", "missing"]
    assert rows[2]["error"] == "ValueError: on its edge"
    assert rows[3]["metrics"] == {"heads": None}
    assert rows[3]["cell"]["config"] == {"task.bias": 0.3}
    assert json.loads((folder / COMPILED).read_text()) == rows


def test_without_a_grid_the_cells_that_exist(tmp_path):
    make_cell(tmp_path, "b", 0.2)
    make_cell(tmp_path, "a", 0.1)
    (tmp_path / "eval_results/coin/s/notes").mkdir()
    assert [row["cell"]["name"] for row in compile_sweep("coin", "s", tmp_path)] == ["a", "b"]


def test_a_single_cell_is_added_to_an_earlier_grid(tmp_path):
    make_grid(tmp_path, ["a"])
    make_cell(tmp_path, "a", 0.1)
    make_cell(tmp_path, "z", 0.9)
    assert [row["cell"]["name"] for row in compile_sweep("coin", "s", tmp_path, also="z")] == ["a", "z"]


def test_unreadable_and_mismatched_results_are_failed_rows(tmp_path):
    folder = make_grid(tmp_path, ["a", "b"])
    make_cell(tmp_path, "a", 0.1, cell={"name": "a", "digest": "other", "config": {}})
    make_cell(tmp_path, "b", 0.1)
    (folder / "b" / "run_result.json").write_text('{"metrics": ')
    rows = compile_sweep("coin", "s", tmp_path)
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert "digest" in rows[0]["error"]
    assert "not JSON" in rows[1]["error"]


def test_a_sweep_that_is_not_there_names_the_nearest(tmp_path):
    make_cell(tmp_path, "a", 0.1)
    with pytest.raises(ConfigurationError, match="There is s"):
        compile_sweep("coin", "t", tmp_path)


def test_results_that_arrive_while_compiling_are_not_lost(tmp_path):
    make_grid(tmp_path, ["a", "b"])
    make_cell(tmp_path, "a", 0.1)

    def derive(row):  # the second cell finishes after it was looked for
        if not (tmp_path / "eval_results/coin/s/b").exists():
            make_cell(tmp_path, "b", 0.2)
        return row

    assert [row["status"] for row in compile_sweep("coin", "s", tmp_path, derive)] == ["done", "done"]


def _finish_one(root, name):
    make_cell(root, name, 0.5)
    compile_sweep("coin", "s", root)


def test_several_processes_finish_together(tmp_path):
    names = [f"c{i}" for i in range(6)]
    folder = make_grid(tmp_path, names)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_finish_one, args=(tmp_path, name)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert [row["status"] for row in json.loads((folder / COMPILED).read_text())] == ["done"] * 6
    assert not list(folder.glob("*.tmp"))


def test_ten_thousand_cells_in_ten_seconds(tmp_path):
    names = [f"c{i:05d}" for i in range(10_000)]
    make_grid(tmp_path, names)
    for name in names:
        make_cell(tmp_path, name, 0.5, padding={str(i): i / 7 for i in range(60)})
    start = time.perf_counter()
    assert len(compile_sweep("coin", "s", tmp_path)) == 10_000
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("{not json", "cannot be read as JSON"), ("[]", "empty list"), ("[3]", "not a result"), ('{"a": 1}', "no metrics"),
     ('{"task": "imposter", "metrics": {}}', "task=imposter")],
)  # fmt: skip
def test_foreign_files_are_refused_with_a_reason(tmp_path, content, complaint):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=complaint):
        read_results(path, "coin", dict)


def test_empty_and_absent_directories_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="holds no"):
        read_results(tmp_path, "coin", dict)
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_results(tmp_path / "no", "coin", dict)


def test_a_directory_of_results_is_read_in_natural_order(tmp_path):
    for name in ("lr1e-05_ep3", "lr1e-06_ep10", "lr1e-06_ep3"):
        make_cell(tmp_path, name, 0.5)
    rows = read_results(tmp_path, "coin", dict)
    assert [row["cell"]["name"] for row in rows] == ["lr1e-06_ep3", "lr1e-06_ep10", "lr1e-05_ep3"]
