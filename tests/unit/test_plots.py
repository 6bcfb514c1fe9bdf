"""The helpers behind the figures, on values worked out by hand; and every kind of figure once, saved twice alike."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from research.reporting.plots import Point, forest, pareto_front, rolling_mean, scatter, trajectories
from research.reporting.style import new_figure, save, styled
from research.reporting.tables import markdown, number, percent_interval, rate_label, span
from research.scoring.statistics import Estimate, wilson


def test_rolling_mean_looks_back_only():
    assert list(rolling_mean([1, 2, 3, 4], 2)) == [1, 1.5, 2.5, 3.5]
    assert list(rolling_mean([1, float("nan"), 3], 2)) == [1, 1, 3]
    assert np.isnan(rolling_mean([float("nan")], 3)).all()


def test_pareto_front_wants_low_x_and_high_y():
    assert pareto_front([(0.5, 0.5), (0.1, 0.2), (0.2, 0.1), (0.3, 0.4), (0.6, 0.5)]) == [
        (0.1, 0.2),
        (0.3, 0.4),
        (0.5, 0.5),
    ]


def test_numbers_as_people_read_them():
    assert [rate_label(lr) for lr in (1e-6, 5e-5, 2.5e-5, 1e-4)] == ["1e-06", "5e-05", "2.5e-05", "1e-04"]
    assert [number(value) for value in (None, True, 0.123456, 1e-5, [1, 2], "x")] == [
        "–",
        "yes",
        "0.1235",
        "1e-05",
        "1, 2",
        "x",
    ]
    assert percent_interval(wilson(129, 200)) == "64.5 [57.7, 70.8]"
    assert percent_interval(Estimate(0.5, float("nan"), float("nan"), 1)) == "50.0"
    assert span([0.02, 0.0]) == "0.0–2.0"
    assert markdown(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"


@pytest.mark.parametrize("kind", ["scatter", "trajectories", "forest"])
def test_figures_are_written_as_png_and_pdf_and_repeat(tmp_path, kind):
    def draw(path):
        with styled():
            figure, axes = new_figure(5, 3)
            if kind == "scatter":
                points = [Point(0.1, 0.4, "erase"), Point(0.6, 0.5, "vanilla", "seed 1")]
                scatter(axes, points, x_title="hack rate (%)", y_title="pass rate (%)")
                assert [text.get_text() for text in axes.get_legend().get_texts()] == [
                    "erase (n=1)",
                    "vanilla (n=1)",
                    "Pareto front",
                ]
            elif kind == "trajectories":
                trajectories(
                    axes,
                    {"gap": ([1, 2, 3], [3.0, 2.0, 1.0])},
                    x_title="step",
                    y_title="gap",
                    window=2,
                    events={"co-training": [2]},
                )
                assert axes.get_ylabel() == "gap (mean of the last 2)"
            else:
                forest(
                    axes,
                    {"erase": {"hack": wilson(3, 20)}, "vanilla": {"hack": wilson(12, 20)}},
                    x_title="hack rate (%)",
                    scale=100,
                )
                assert [label.get_text() for label in axes.get_yticklabels()] == ["erase", "vanilla"]
            return save(figure, path)

    digests = {hashlib.sha256(draw(tmp_path / name).read_bytes()).hexdigest() for name in ("one", "two")}
    assert len(digests) == 1
    assert (tmp_path / "one.pdf").read_bytes()[:4] == b"%PDF"


def test_no_two_of_many_series_look_alike():
    with styled():
        _, axes = new_figure(4, 3)
        scatter(axes, [Point(i, i, f"arm {i}") for i in range(20)], x_title="x", y_title="y", front=False)
        looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
        assert len(looks) == 20
        _, axes = new_figure(4, 3)
        trajectories(axes, {f"arm {i}": ([1, 2], [i, i]) for i in range(20)}, x_title="x", y_title="y")
        drawn = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in axes.lines}
        assert len(drawn) == 20


def test_a_figure_that_is_being_drawn_leaves_the_one_before_readable(tmp_path):
    class Halfway(Figure):
        def savefig(self, target, **options):
            Path(target).write_bytes(b"half a figure")
            raise KeyboardInterrupt

    with styled():
        figure, axes = new_figure(2, 2)
        axes.plot([0, 1], [0, 1])
        path = save(figure, tmp_path / "line")
        before = path.read_bytes()
        with pytest.raises(KeyboardInterrupt):
            save(Halfway(), tmp_path / "line")
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["line.pdf", "line.png"]
