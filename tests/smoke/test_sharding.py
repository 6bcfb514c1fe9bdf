"""A base of which each of two processes holds a share computes, generates and is checked as a whole one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_tiny_model
from smoke.test_processes import ENVIRONMENT, TORCHRUN

SCRIPT = Path(__file__).with_name("sharded_base.py")


@pytest.fixture(scope="module", params=["tied", "untied"])
def found(request, tmp_path_factory):
    """What each of two processes saw. 513 rows of the embedding are not dealt out evenly."""
    out = tmp_path_factory.mktemp("sharding") / request.param
    model = make_tiny_model(out / "model", vocab=513, tied=request.param == "tied")
    command = [sys.executable, *TORCHRUN, str(SCRIPT), str(model), str(out)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_each_process_holds_its_share_only_and_the_shares_are_the_files(found):
    for seen in found:
        whole, share = seen["bytes"]
        assert 0.49 < share / whole < 0.51 and seen["bytes_after_training"] == share
        assert seen["fingerprints"][0] == seen["fingerprints"][1]  # bit by bit, of the shares together
        assert seen["buffers_equal"]
    assert sum(seen["bytes"][1] for seen in found) < 1.01 * found[0]["bytes"][0]


def test_logits_and_adapter_gradients_are_those_of_a_whole_base(found):
    for seen in found:
        assert max(max(pair) for pair in seen["differences"]) < 1e-6


def test_generates_the_same_and_trains_on_afterwards(found):
    for seen in found:
        for key in ("replies", "replies_after_training"):
            whole, shared = seen[key]
            assert whole == shared and len({len(reply) for reply in whole}) > 3
        assert seen["sync_gap"] < 1e-4


def test_all_processes_take_the_first_ones_draws(found):
    """Also where they would draw otherwise, by another seed here and by a rounding elsewhere."""
    first, second = (seen["replies_to_own_seed"] for seen in found)
    assert first == second == found[0]["replies_after_training"][1]


def test_every_process_notices_one_bit_in_one_share(found):
    assert [seen["noticed"] for seen in found] == [True, True]
