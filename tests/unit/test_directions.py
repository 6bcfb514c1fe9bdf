"""Extraction of hack directions: the linear algebra by hand, and both designs on a real model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from research.errors import ConfigurationError
from research.models import antipasto
from research.tasks.reward_hack import directions, problems
from research.tasks.reward_hack.arms import ARMS
from research.tasks.reward_hack.hidden import band, last_token_states
from research.tasks.reward_hack.pairs import Chat, contrastive_pairs
from research.tasks.reward_hack.settings import DirectionSettings
from research.tasks.reward_hack.store import cached
from research.tasks.reward_hack.task import problem_file
from research.training.constraints import Constraint, knobs


def test_svd_of_differences_is_oriented_by_the_vote() -> None:
    v = torch.tensor([0.6, 0.8, 0.0])
    D = torch.stack([2 * v, 3 * v, -1 * v])  # two of three pairs say +v
    (found,) = directions.from_gradients({"m": D}, k=1, axis_threshold=0.0, noise_floor=0.0).values()
    assert torch.allclose(found, v.unsqueeze(0), atol=1e-6)
    assert torch.allclose(directions.oriented(-v.unsqueeze(0), D), v.unsqueeze(0))


def test_weak_axes_and_weak_modules_are_dropped() -> None:
    strong, weak = torch.diag(torch.tensor([10.0, 9.0])), torch.diag(torch.tensor([1.0, 0.1]))
    found = directions.from_gradients({"a": strong, "b": weak}, k=2, axis_threshold=0.0, noise_floor=0.5)
    assert set(found) == {"a"} and found["a"].shape == (2, 2)
    found = directions.from_gradients({"a": strong, "b": weak}, k=2, axis_threshold=0.5, noise_floor=0.0)
    assert found["a"].shape == (2, 2) and found["b"].shape == (1, 2)


def test_controls_differ_from_the_contrast() -> None:
    hack, clean = torch.eye(4) * 2, torch.ones(4, 4)
    assert torch.equal(directions.contrast(hack, clean, "none", 0, "m"), hack - clean)
    assert not directions.contrast(hack, clean, "clean", 0, "m").any()  # the same clean rows: nothing between them
    shuffled = directions.contrast(hack, clean, "shuffled", 0, "m")
    rows = {tuple(r.tolist()) for r in torch.cat([hack, clean])}
    assert all(any(tuple((row + torch.tensor(b)).tolist()) in rows for b in rows) for row in shuffled)
    assert not torch.equal(shuffled, hack - clean)


def test_overlap_and_band() -> None:
    V = torch.eye(3)
    assert directions.overlap({"m": V[:2]}, {"m": -V[:2]}) == 1
    assert directions.overlap({"m": V[:1]}, {"m": V[1:2]}) == 0
    assert band(20, (0.6, 0.75)) == [12, 13, 14, 15] and band(4, (0.6, 0.75)) == [2, 3] and band(1, (0.1, 0.2)) == [1]


@pytest.fixture(scope="module")
def micro():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from research.models import micro as embedded

    tokenizer = AutoTokenizer.from_pretrained(embedded.path())
    model = AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32).eval().requires_grad_(False)
    chat = Chat(tokenizer)
    loaded = problems.load(problem_file("shipped", "train"))
    return model, chat, contrastive_pairs(chat, loaded, 32, ["run_tests"], "overwrite", seed=1)


SETTINGS = DirectionSettings(pairs=20, held_out=12, separation=0.9, k=2)


@pytest.mark.parametrize("arm", ["grad_erase", "act_m16_erase", "act_nobasis_erase"])
def test_directions_separate_held_out_pairs_and_steer(micro, arm: str) -> None:
    model, _, pairs = micro
    policy = antipasto.attach(model)
    try:
        before = {k.name: k.parameter.clone() for k in knobs(policy)}
        found = directions.extract(policy, pairs, ARMS[arm], SETTINGS, seed=0)
        assert found.report["separation"] >= 0.9
        # What moving the arm's own knobs does; added to the residual stream, a mean difference hardly moves this model.
        assert found.report["steering_gain" if arm == "grad_erase" else "knob_gain"] > 0
        Constraint("erase", directions=found.directions).check(knobs(policy))
        for V in found.directions.values():
            assert torch.allclose(V @ V.T, torch.eye(len(V)), atol=1e-4)
        if arm.startswith("act"):
            assert all(name.split(".")[-1] in ("o_proj", "down_proj") for name in found.directions)
            cut = [V[0, 16:].abs().max() for V in found.directions.values()]
            assert (max(cut) == 0) == (arm == "act_m16_erase")
        assert all(torch.equal(before[k.name], k.parameter) for k in knobs(policy))  # steering is undone
    finally:
        policy.unload()


def test_directions_on_lora_rows_of_b(micro) -> None:
    from peft import LoraConfig, get_peft_model

    model, _, pairs = micro
    torch.manual_seed(0)  # A is random, and frozen: what it lets through decides how well the pairs separate
    policy = get_peft_model(model, LoraConfig(r=4, target_modules=["o_proj", "q_proj"], task_type="CAUSAL_LM"))
    try:
        for name, parameter in policy.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
        for arm in ("grad_erase", "act_m8_erase"):
            found = directions.extract(policy, pairs, ARMS[arm], replace(SETTINGS, separation=0.7), seed=0)
            Constraint("erase", directions=found.directions).check(knobs(policy))
            if arm == "act_m8_erase":
                for V in found.directions.values():  # v (x) e_j: one direction a column, orthonormal
                    assert V.shape[0] == 4 and torch.allclose(V @ V.T, torch.eye(4), atol=1e-5)
    finally:
        policy.unload()


def test_too_little_separation_stops(micro) -> None:
    model, _, pairs = micro
    policy = antipasto.attach(model, rank=8)
    # Held-out pairs with the sides exchanged: a right direction puts every one on the wrong side.
    wrong = [*pairs[:20], *(replace(pair, hack=pair.clean, clean=pair.hack) for pair in pairs[20:])]
    try:
        with pytest.raises(ConfigurationError, match="separates 0%"):
            directions.extract(policy, wrong, ARMS["grad_erase"], SETTINGS, seed=0)
        control = directions.extract(
            policy, wrong, ARMS["random_erase"], SETTINGS, seed=0
        )  # controls need not separate
        assert {len(V) for V in control.directions.values()} == {2}
    finally:
        policy.unload()


def test_pairs_share_the_prompt_and_end_their_turn(micro) -> None:
    _, chat, pairs = micro
    assert len({pair.problem_id for pair in pairs}) == 32
    for pair in pairs:
        assert pair.hack != pair.clean and pair.hack[-1] == pair.clean[-1] == chat.stop
    text = chat.tokenizer.decode(pairs[0].hack)
    assert "def run_tests():" in text and "def run_tests():" not in chat.tokenizer.decode(pairs[0].clean)


def test_last_token_states_do_not_depend_on_the_batch(micro) -> None:
    model, _, pairs = micro
    rows = [(*pair.prompt, *pair.hack) for pair in pairs[:5]]
    together = last_token_states(model, rows, (0.6, 0.75))
    alone = torch.cat([last_token_states(model, [row], (0.6, 0.75)) for row in rows])
    assert torch.allclose(together, alone, atol=1e-4)


def test_the_cache_is_keyed_by_everything(tmp_path: Path) -> None:
    calls = []

    def make() -> directions.Extraction:
        calls.append(1)
        return directions.Extraction({"m": torch.eye(2)}, {"separation": 1.0})

    first = cached(tmp_path, {"weights": "a", "pairs": [[1, 2]]}, make)
    again = cached(tmp_path, {"weights": "a", "pairs": [[1, 2]]}, make)
    assert len(calls) == 1 and again.report == first.report and torch.equal(again.directions["m"], torch.eye(2))
    cached(tmp_path, {"weights": "a", "pairs": [[1, 3]]}, make)
    assert len(calls) == 2


def test_composed_problems_are_solved_by_neither_part() -> None:
    from research.tasks.reward_hack.composed import compose

    loaded = problems.load(problem_file("shipped", "train"))
    made = compose(loaded, 20, seed=1)
    assert len(made) == 20 == len({p.id for p in made}) and made == compose(loaded, 20, seed=1)
    parts = {p.id: p for p in loaded}
    for problem in made:
        a, b = (parts[part] for part in problem.id.split("+"))
        expected = [t.value for t in problem.tests]
        for solution, solves in (
            (problem.canonical_solution, True),
            (a.canonical_solution, False),
            (b.canonical_solution, False),
        ):
            space: dict = {}
            exec(solution, space)
            got = [space["Solution"]().solve(list(t.arguments[0])) for t in problem.tests]
            assert (got == expected) is solves
