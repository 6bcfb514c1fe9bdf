"""A claim is held by one living process, and outlives none."""

import json
import multiprocessing
import os
import time

import pytest

from research.cells import claim as module
from research.cells.claim import AlreadyRunning, claim, holder


def test_the_second_claimant_is_turned_away_and_the_claim_vanishes(tmp_path):
    with claim(tmp_path):
        assert str(os.getpid()) in holder(tmp_path)
        with pytest.raises(AlreadyRunning, match=str(os.getpid())), claim(tmp_path):
            pass
    assert holder(tmp_path) is None and list(tmp_path.iterdir()) == []


def test_a_dead_process_of_this_machine_loses_its_claim_at_once(tmp_path):
    with claim(tmp_path):
        owner = json.loads((tmp_path / "claim.json").read_text())
    (tmp_path / "claim.json").write_text(json.dumps({**owner, "boot": "1"}))  # the same number, an earlier process
    with claim(tmp_path):
        assert holder(tmp_path)


def test_a_silent_process_of_another_machine_loses_it_after_a_while(tmp_path):
    path = tmp_path / "claim.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "boot": "1", "at": 0}))
    with pytest.raises(AlreadyRunning, match="elsewhere"), claim(tmp_path):
        pass
    long_ago = time.time() - module.STALE_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    with claim(tmp_path):
        assert str(os.getpid()) in holder(tmp_path)


@pytest.mark.parametrize(("attempt", "taken"), [("1", False), ("2", True)])
def test_a_requeued_job_takes_over_from_its_earlier_attempt_on_another_machine(tmp_path, monkeypatch, attempt, taken):
    owner = {"host": "elsewhere", "pid": 1, "boot": "1", "at": 0, "job": "77", "attempt": "1"}
    (tmp_path / "claim.json").write_text(json.dumps(owner))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", attempt)
    if taken:
        with claim(tmp_path):
            assert module.job_of(tmp_path) == "77" and str(os.getpid()) in holder(tmp_path)
    else:
        with pytest.raises(AlreadyRunning, match="elsewhere"), claim(tmp_path):
            pass


def test_where_nobody_can_say_that_a_job_is_over_its_claim_stands(tmp_path, monkeypatch):
    owner = {"host": "elsewhere", "pid": 1, "boot": "1", "at": 0, "job": "77", "attempt": "0"}
    (tmp_path / "claim.json").write_text(json.dumps(owner))
    monkeypatch.setenv("PATH", "")  # no squeue
    with pytest.raises(AlreadyRunning, match="elsewhere"), claim(tmp_path):
        pass


def _race(folder, start, won):
    start.wait()
    try:
        with claim(folder):
            with won.get_lock():
                won.value += 1
            time.sleep(0.5)
    except AlreadyRunning:
        pass


def test_of_many_that_take_over_a_stale_claim_one_wins(tmp_path):
    (tmp_path / "claim.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "boot": "1", "at": 0}))
    os.utime(tmp_path / "claim.json", (0, 0))
    context = multiprocessing.get_context("fork")
    start, won = context.Event(), context.Value("i", 0)
    racers = [context.Process(target=_race, args=(tmp_path, start, won)) for _ in range(8)]
    for racer in racers:
        racer.start()
    start.set()
    for racer in racers:
        racer.join(20)
    assert won.value == 1
