"""The published 25 cells through our code: numbers, labels, regimes, the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.reporting.foreign import read_results
from research.tasks.zlt_sweep.derive import derive
from research.tasks.zlt_sweep.lattice import groups

pytestmark = pytest.mark.reference

LRS, EPOCHS = (1e-6, 5e-6, 1e-5, 5e-5, 1e-4), (1, 3, 5, 10, 20)
# As the published figure shows them, rows by learning rate.
SOURCE = [[0, 0, 0, 1, 2], [2, 28, 41, 64, 91], [34, 100, 100, 100, 100], [100] * 5, [100] * 5]
ASSISTANT = [[0] * 5, [0] * 5, [0, 2, 10, 26, 6], [98, 100, 100, 100, 90], [100] * 5]
BYSTANDER = [[0] * 5, [0, 1, 2, 2, 2], [2, 54, 84, 96, 25], [100] * 5, [100] * 5]
U, P, C, N, X = "under-trained", "partial", "clean", "onset", "collapse"
REGIMES = [[U] * 5, [U, P, P, C, C], [P, N, N, X, N], [X] * 5, [X] * 5]


@pytest.fixture
def source():
    return Path(os.environ["RESEARCH_REFERENCE_DATA"]) / "zlt_reference_25_cells.json"


def test_numbers_labels_and_regimes(source):
    (group,) = groups(read_results(source, "zlt_sweep", derive))
    places = [[group.places[lr, epochs] for epochs in EPOCHS] for lr in LRS]

    def shown(name):
        return [[int(format(100 * place.mean(name), ".0f")) for place in line] for line in places]

    assert shown("source_marker") == SOURCE
    assert shown("assistant_marker") == ASSISTANT
    assert shown("max_bystander_marker") == BYSTANDER
    assert [[place.regime for place in line] for line in places] == REGIMES
    assert group.trials == [200]
    assert group.places[5e-6, 10].worst() == "french_person, comedian"
    assert group.places[5e-5, 1].worst() == "8 tied"


def test_derived_keys_equal_the_published_ones(source):
    for row in json.loads(source.read_text()):
        bare = {name: row[name] for name in ("config", "loss", "eval", "wall_minutes")}
        derived = derive(bare)
        assert {name: derived[name] for name in row} == row


def test_the_command(source, tmp_path):
    words = ["-m", "research.report", "zlt_sweep", f"results={source}", f"out={tmp_path / 'out'}"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
    )
    assert done.returncode == 0, done.stderr
    assert "25 of 25 cells with a result: 2 successes, 14 degenerate" in done.stdout
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "report.html",
        "clean_result.md",
        "lr_epoch_heatmap.png",
        "lr_epoch_heatmap.pdf",
        "personas.png",
        "all_results_compiled.json",
    } <= written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
