"""benchmarks/scaling.py: the fit, the shapes, and one small run with its table and figure."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scaling():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import scaling

        yield scaling
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_power_law_is_found_again(scaling):
    sizes = [1, 10, 100, 1000]
    exact = scaling.power_law(sizes, [3 * size**1.5 for size in sizes])
    assert [exact[name] for name in ("exponent", "low", "high", "exponent_at_the_end")] == pytest.approx([1.5] * 4)
    assert exact["factor"] == pytest.approx(3)


def test_the_interval_of_an_exponent_is_polyfits(scaling):
    sizes, seconds = [1, 2, 4, 8, 16], [1.0, 2.2, 3.7, 8.5, 15.0]
    found = scaling.power_law(sizes, seconds)
    (slope, _), covariance = np.polyfit(np.log(sizes), np.log(seconds), 1, cov=True)
    half = 3.182446 * covariance[0, 0] ** 0.5  # Student's t, 3 degrees of freedom
    assert [found["low"], found["high"]] == pytest.approx([slope - half, slope + half], rel=1e-5)


@pytest.mark.parametrize("size", [3e5, 1e6, 3e7])
def test_random_models_have_about_the_size_asked_for(scaling, size):
    assert scaling.random_base(size).model.num_parameters() == pytest.approx(size, rel=0.25)


def test_a_small_run(scaling, tmp_path, monkeypatch, capsys):
    words = ["--axes", "step,sweep,generation", "--repeats", "1", "--steps", "1", "--sizes", "1e5", "3e5", "1e6"]
    words += ["--cells", "100", "200", "300", "--compiled-cells", "300", "--lengths", "2", "4", "8", "--prompts", "2"]
    out = tmp_path / "scaling.json"
    monkeypatch.setattr(sys, "argv", ["scaling.py", *words, "--generator", "3e5", "--out", str(out)])
    scaling.main()
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    series = {name: list(axis["series"]) for name, axis in found["axes"].items()}
    assert series == {"step": ["training step"], "sweep": ["plan", "compile"], "generation": ["generation"]}
    assert found["axes"]["sweep"]["series"]["compile"]["sizes"] == [100, 200, 300]
    assert all(len(readings) == 1 for readings in found["axes"]["step"]["series"]["training step"]["seconds"])

    monkeypatch.setattr(sys, "argv", ["scaling.py", "--table", str(out), "--figure", str(tmp_path)])
    scaling.main()
    assert capsys.readouterr().out.startswith(printed)  # the same table, from the file
    assert {path.name for path in tmp_path.iterdir()} == {"scaling.json", "scaling.png", "scaling.pdf"}
