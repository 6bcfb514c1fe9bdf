"""How PyTorch's threads wait for each other is said before torch is loaded, and the user's word goes before ours."""

import os
import subprocess
import sys

import pytest

import research

SPINS, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({SPINS: "7"}, "7"), ({POLICY: "ACTIVE"}, "None"), ({POLICY: "PASSIVE", SPINS: "7"}, "7")],
)
def test_threads_spin_a_little(given, spins):
    source = os.path.dirname(os.path.dirname(research.__file__))
    environment = {k: v for k, v in os.environ.items() if k not in (SPINS, POLICY)} | given | {"PYTHONPATH": source}
    code = f"import research, os, sys; assert 'torch' not in sys.modules; print(os.environ.get('{SPINS}'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spins
