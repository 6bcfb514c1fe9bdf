"""Each study's cell on a GPU, small, with the settings that the command line gives it: it ends with a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

SRC = Path(__file__).parents[2] / "src"
CELLS = {
    "zlt_sweep": "task=zlt_sweep lr=5e-6 epochs=1 task.data.n_positives=8 task.data.n_per_negative=2 task.eval.samples=1 "
    "task.capability.n_questions=8",
    "reward_hack": "+experiment=reward_hack_smoke",
    "imposter": "task=imposter steps=2 batch_size=8 task.prompts=16 task.discriminator.pairs=64 "
    "task.discriminator.heldout_pairs=32 task.cotrain.every=1 task.cotrain.pairs=8 task.eval.documents=8 task.eval.mauve=false",
    "imposter_shared": "task=imposter_shared steps=2 task.prompts=16 task.last=16 task.buckets=4",
}


@pytest.mark.parametrize("task", CELLS)
def test_a_cell_runs(task, tmp_path):
    command = [sys.executable, "-m", "research", *CELLS[task].split(), f"results_root={tmp_path}"]
    paths = os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = tmp_path.glob(f"eval_results/{task}/*/*/run_result.json")
    assert json.loads(path.read_text())["peak_memory"]["gpu_bytes"] > 0
