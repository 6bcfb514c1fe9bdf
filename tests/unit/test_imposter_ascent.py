"""Steepest ascent: the published table as exact fractions, and tables that have no answer."""

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import pytest

from research.errors import ConfigurationError
from research.tasks.imposter import ascent

# (g_lr, d_lr, d_scale, mauve): runs 00-04 of the published table; the last is the centre.
TABLE = [
    (2e-5, 1e-4, 10.0, 0.119), (2e-5, 5e-6, 0.1, 0.073), (5e-6, 1e-4, 0.1, 0.072), (5e-6, 5e-6, 10.0, 0.075),
    (1e-5, 2e-5, 1.0, 0.09),
]  # fmt: skip
ROWS = [dict(zip(("g_lr", "d_lr", "d_scale", "mauve"), row, strict=True)) for row in TABLE]
ROOT = Path(__file__).parents[2]


def test_published_effects_are_exact():
    design = ascent.find_design(ROWS)
    y = [Fraction(n, 1000) for n in (119, 73, 72, 75)]
    expected = [
        (y[0] + y[i] - sum(y) + y[0] + y[i]) / 2 for i in (1, 2, 3)
    ]  # E = mean of the two high - of the two low
    assert expected == [Fraction(225, 10000), Fraction(215, 10000), Fraction(245, 10000)]
    result = ascent.climb(design, 1.5)
    assert result.effects == pytest.approx([float(e) for e in expected], abs=1e-12)
    assert design.signs == ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
    assert design.centre == (1e-5, 2e-5, 1.0) and design.centre_response == 0.09


def test_published_next_cell():
    design = ascent.find_design(ROWS)
    result = ascent.climb(design, 1.5)
    assert result.rounded == (3e-5, 2e-4, 30.0)
    assert result.exact[0] == pytest.approx(10 ** (-5 + 1.5 * 225 / 245 * math.log10(2)))
    assert result.exact[1] == pytest.approx(2e-5 * 5 ** (1.5 * 215 / 245))
    assert result.exact[2] == pytest.approx(10**1.5)
    assert result.prediction == pytest.approx(0.08475 + 1.5 * (0.01125**2 + 0.01075**2 + 0.01225**2) / 0.01225)


@pytest.mark.parametrize(("t", "hit"), [(1.439, False), (1.441, True), (1.543, True), (1.545, False)])
def test_window_of_t_that_gives_the_published_run(t, hit):
    assert (ascent.climb(ascent.find_design(ROWS), t).rounded == (3e-5, 2e-4, 30.0)) == hit


def test_centre_is_found_in_any_order():
    designs = {(d.low, d.centre, d.high) for d in map(ascent.find_design, itertools.permutations(ROWS))}
    assert designs == {((5e-6, 5e-6, 0.1), (1e-5, 2e-5, 1.0), (2e-5, 1e-4, 10.0))}


def test_a_followed_up_run_is_no_corner():
    design = ascent.find_design([*ROWS, dict(ROWS[0], g_lr=3e-5, d_lr=2e-4, d_scale=30.0, mauve=0.375)])
    assert design.ignored == 1 and ascent.climb(design).rounded == (3e-5, 2e-4, 30.0)


def test_replicates_are_averaged():
    doubled = [dict(row, mauve=row["mauve"] + d) for row in ROWS[:4] for d in (-0.01, 0.01)] + ROWS[4:]
    design = ascent.find_design(doubled)
    assert ascent.climb(design).effects == pytest.approx(ascent.climb(ascent.find_design(ROWS)).effects)
    assert not any("No replicates" in line for line in ascent.caveats(design, doubled))


def test_negative_slope_goes_down_by_the_lower_interval():
    flipped = [dict(row, mauve=-row["mauve"]) for row in ROWS]  # every slope negative: max b <= 0
    result = ascent.climb(ascent.find_design(flipped), 1.0)
    assert result.exact[1] == pytest.approx(2e-5 * (5e-6 / 2e-5) ** (215 / 245))  # .602 decades, not .699
    assert result.exact[2] == pytest.approx(0.1)


def test_ties_move_all_factors_by_their_whole_interval():
    rows = [dict(row, mauve=m) for row, m in zip(ROWS, (4.0, 0.0, 0.0, 0.0, 1.0), strict=True)]
    assert ascent.climb(ascent.find_design(rows), 1.0).exact == pytest.approx((2e-5, 1e-4, 10.0))


def test_no_effect_is_no_direction():
    flat = [dict(row, mauve=0.1) for row in ROWS]
    with pytest.raises(ConfigurationError, match="every effect is zero"):
        ascent.climb(ascent.find_design(flat))


@pytest.mark.parametrize("missing", range(4))
def test_missing_corner_is_named(missing):
    with pytest.raises(ConfigurationError, match=r"unbalanced|no two-level design"):
        ascent.find_design([row for i, row in enumerate(ROWS) if i != missing])
    unmeasured = [dict(row, mauve=None) if i == missing else row for i, row in enumerate(ROWS)]
    with pytest.raises(ConfigurationError, match=r"1 run\(s\) have no mauve: g_lr="):
        ascent.find_design(unmeasured)


def test_centre_may_lack_a_response_but_not_its_place():
    assert ascent.find_design([*ROWS[:4], dict(ROWS[4], mauve=None)]).centre_response is None
    with pytest.raises(ConfigurationError, match="no two-level design around a centre among 4 rows"):
        ascent.find_design(ROWS[:4])


def test_impossible_levels():
    with pytest.raises(ConfigurationError, match="d_scale is 0"):
        ascent.find_design([*ROWS[:4], dict(ROWS[4], d_scale=0.0)])
    with pytest.raises(ConfigurationError, match="none vary"):
        ascent.find_design([])


def test_clean_values():
    assert [ascent.clean(v) for v in (2.6e-5, 1.66e-4, 31.6, 0.95, 9.6)] == [3e-5, 2e-4, 30.0, 0.9, 10.0]


def test_command_line_on_the_published_list(tmp_path, capsys):
    ascent.main([f"results={table(tmp_path)}", f"out={tmp_path / 'out'}"])
    command = "python -m research task=imposter_shared lr=3e-05 task.d_lr=0.0002 task.d_scale=30"
    printed = capsys.readouterr().out
    assert command in printed and (tmp_path / "out/next_cell.sh").read_text() == command + "\n"
    for word in ("Aliasing", "d_scale with g_lr x d_lr", "No replicates", "Steps are confounded"):
        assert word in printed
    assert json.loads((tmp_path / "out/ascent.json").read_text())["ascent"]["rounded"] == [3e-5, 2e-4, 30.0]


def test_command_line_on_our_own_results(tmp_path):
    for i, (g_lr, d_lr, d_scale, mauve) in enumerate(TABLE):
        cell = {
            "config": {"lr": g_lr, "steps": 800, "task": {"d_lr": d_lr, "d_scale": d_scale}, "model": {"name": "m"}}
        }
        (tmp_path / f"c{i}").mkdir()
        (tmp_path / f"c{i}/run_result.json").write_text(json.dumps({"cell": cell, "metrics": {"mauve": mauve}}))
    (tmp_path / "all_results_compiled.json").write_text("[]")  # a sweep's table, without a cell that was run after it
    rows, ours = ascent.read_rows(tmp_path)
    assert ours
    design = ascent.find_design(rows)
    assert design.factors == ("lr", "task.d_lr", "task.d_scale")
    where = "lr=3e-05 task.d_lr=0.0002 task.d_scale=30"
    assert ascent.command(design, ascent.climb(design)) == f"python -m research task=imposter_shared {where}"
    line = "python -m research +experiment=imposter_ascent -m steps=100 ++task.d_lr=5e-6,1e-4 seed=1,2 name=mine"
    (tmp_path / "sweep.json").write_text(json.dumps({"command": line}))
    ascent.main([f"results={tmp_path}", f"out={tmp_path / 'out'}"])
    expected = f"python -m research +experiment=imposter_ascent steps=100 name={tmp_path.name}_next {where}\n"
    assert (tmp_path / "out/next_cell.sh").read_text() == expected


@pytest.mark.parametrize("sweep", ["ascent", "ascent_high"])
def test_the_shipped_next_cells_are_what_the_command_gives(sweep, tmp_path):
    """From cells alone: nothing else of the sweep was kept."""
    ascent.main([f"results={ROOT / 'eval_results/imposter_shared' / sweep}", f"out={tmp_path}"])
    for name in ("next_cell.sh", "ascent.json"):
        assert (tmp_path / name).read_text() == (ROOT / "figures/imposter_shared" / sweep / name).read_text()


def table(folder):
    path = folder / "table.json"
    path.write_text(json.dumps(ROWS))
    return path


def test_bad_arguments(tmp_path):
    for argv, message in (
        ([], "results= is missing"),
        ([f"results={tmp_path / 'none.json'}"], "no results at"),
        (["result=x"], "no key result. Did you mean 'results'"),
        ([f"results={table(tmp_path)}", "t=far"], "t='far' is no number"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ascent.main(argv)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigurationError, match="is not JSON"):
        ascent.main([f"results={tmp_path / 'bad.json'}"])
