"""What each step measures on a few rollouts: the gap to the sampler and the drift from the base."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from research.training import probe as module
from research.training.auxiliary import token_logprobs
from research.training.rollouts import Group, Prompt, Rollout

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
COMPLETIONS = [[[20, 21], [22, 23, 24, 25]], [[26], [27, 28, 29]]]
OFF = 0.25  # nats between each logged log-prob and the model's own


@pytest.fixture
def policy(tiny_model_dir):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    policy = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
    return policy.eval()


def groups_of(policy):
    found = []
    for index, (prompt, completions) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        with torch.no_grad():
            logps, mask = token_logprobs(policy, [prompt] * len(completions), completions)
        own = [row[seen.bool()].tolist() for row, seen in zip(logps, mask, strict=True)]
        rollouts = [
            Rollout(ids, [value + OFF for value in row], "", "stop") for ids, row in zip(completions, own, strict=True)
        ]
        found.append(Group(index, Prompt(prompt), rollouts))
    return found


def measured(policy, n_rows=4):
    return module.probe(policy, groups_of(policy), n_rows, nullcontext, policy.disable_adapter)


def test_the_gap_is_to_what_the_sampler_logged_and_the_drift_from_the_base(policy):
    found = measured(policy)
    assert found["sampler_gap"] == pytest.approx(OFF, abs=1e-4)
    assert found["sampler_gap/max"] == pytest.approx(OFF, abs=1e-4)
    ratios = []
    for prompt, completions in zip(PROMPTS, COMPLETIONS, strict=True):
        for ids in completions:
            with torch.no_grad(), policy.disable_adapter():
                base, _ = token_logprobs(policy, [prompt], [ids])
            with torch.no_grad():
                own, _ = token_logprobs(policy, [prompt], [ids])
            ratios.append((base - own)[0])
    log_ratio = torch.cat(ratios)
    k3 = float((log_ratio.exp() - log_ratio - 1).mean())
    assert found["kl_drift"] == pytest.approx(k3, rel=1e-3) and k3 > 1e-4


def test_several_passes_measure_what_one_does(policy, monkeypatch):
    whole, passes = measured(policy), []
    forward = policy.forward
    monkeypatch.setattr(policy, "forward", lambda *a, **k: passes.append(len(k["input_ids"])) or forward(*a, **k))
    monkeypatch.setattr(module, "ELEMENTS", 1)
    groups = groups_of(policy)
    passes.clear()
    one_by_one = module.probe(policy, groups, 4, nullcontext, policy.disable_adapter)
    assert passes == [1] * 8  # each row with the adapter and without
    assert one_by_one == pytest.approx(whole, rel=1e-3)


def test_the_first_rollout_of_every_group_comes_before_a_second(policy):
    groups = groups_of(policy)
    groups[0].rollouts[1] = Rollout(COMPLETIONS[0][1], [50.0] * 4, "", "stop")
    two = module.probe(policy, groups, 2, nullcontext, policy.disable_adapter)
    assert two["sampler_gap/max"] == pytest.approx(OFF, abs=1e-4)
    four = module.probe(policy, groups, 4, nullcontext, policy.disable_adapter)
    assert four["sampler_gap/max"] > 50


def test_a_teachers_rollouts_are_not_looked_at(policy):
    groups = groups_of(policy)
    for group in groups:
        group.rollouts = [Rollout(r.token_ids, r.logprobs, "", "stop", teacher=True) for r in group.rollouts]
    assert module.probe(policy, groups, 4, nullcontext, policy.disable_adapter) == {}
