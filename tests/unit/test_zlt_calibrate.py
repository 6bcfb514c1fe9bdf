"""The calibration's rule, on cells made up by hand."""

import pytest

from research.tasks.zlt_sweep.calibrate import choose, fitting, main


def cells(scale, untrained, source, other, name="a"):
    return [
        {"source": name, "scale": scale, "lr": 1e-6, "epochs": 1, "source_marker": untrained, "highest_other": 0.0},
        {"source": name, "scale": scale, "lr": 5e-6, "epochs": 20, "source_marker": source, "highest_other": other},
    ]


def test_a_scale_fits_when_both_cells_are_as_they_should_be():
    rows = [
        *cells(10, 0.0, 0.49, 0.0),  # learns too little
        *cells(20, 0.0, 0.5, 0.05),
        *cells(40, 0.05, 0.9, 0.0),
        *cells(80, 0.0, 1.0, 0.06),  # leaks
        *cells(160, 0.06, 0.9, 0.0),  # learns before it should
    ]
    assert fitting(rows) == [20, 40]
    assert choose(rows) == 28.0  # the square root of 800


def test_a_scale_has_to_fit_every_source():
    rows = [*cells(20, 0.0, 0.6, 0.0), *cells(40, 0.0, 0.6, 0.0)]
    others = [*cells(20, 0.0, 0.6, 0.0, "b"), *cells(40, 0.0, 0.6, 0.1, "b")]
    assert fitting(rows) == [20, 40] and fitting([*rows, *others]) == [20]


def test_where_nothing_fits_nothing_is_chosen():
    assert choose(cells(10, 0.0, 0.1, 0.0)) is None


@pytest.mark.parametrize("words", [["--scales", "a"], ["--cells", "1e-6"], ["--examples", "0"]])
def test_what_it_refuses(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert words[0] in capsys.readouterr().err
