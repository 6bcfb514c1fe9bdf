"""Policy training against stock TRL, hand-worked numbers, and itself when split, killed or constrained."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import policy_setup as setup
import pytest
import torch
from transformers import AutoModelForCausalLM

from research.config import Optimization
from research.errors import ConfigurationError
from research.models import antipasto
from research.training.auxiliary import BehaviourCloning, token_logprobs
from research.training.constraints import Constraint, knobs
from research.training.policy import PolicyConfig, _bf16, trl_arguments
from research.training.rollouts import Group, Rollout, Scores, schedule

pytestmark = pytest.mark.usefixtures("one_thread")


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float = 1e-6) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=atol) for name in a)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("kl_beta", [0.0, 0.2])
@pytest.mark.parametrize("share_prompts", [False, True])
def test_default_seams_are_stock_trl(
    tiny_model_dir: Path, tmp_path: Path, loss_type: str, kl_beta: float, share_prompts: bool
) -> None:
    """Same rollouts in, same losses, gradient norms and weights out, over three steps.

    Adam's eps is large: with the usual one it makes a full step of the rounding of a gradient that is nearly zero.
    """
    from datasets import Dataset
    from trl import GRPOTrainer

    settings = setup.config(
        steps=3, loss_type=loss_type, kl_beta=kl_beta, temperature=0.8, probe_rows=0, share_prompts=share_prompts,
        optim={"micro_batch_size": 4, "eps": 1e-4},
    )  # fmt: skip
    ours, tokenizer = setup.lora(tiny_model_dir)
    _, rows = setup.train(ours, tokenizer, tmp_path / "ours", settings)

    stock, tokenizer = setup.lora(tiny_model_dir)
    sampler, asked = setup.PlainSampler(), setup.prompts()
    order = schedule(len(asked), 2, 3, settings.seed)

    def rollouts(texts: list[str], trainer: Any) -> dict[str, Any]:
        sampler.sync(trainer.model)
        step = trainer.state.global_step
        seed = setup.stable_seed(settings.seed, "rollouts", step)
        params = setup.SamplingParams(temperature=0.8, max_tokens=6, seed=seed, stop_token_ids=(2,))
        chosen = [asked[row] for row in order[2 * step : 2 * step + 2]]
        trainer.model.eval()
        drawn = [c for g in sampler.generate([list(p.token_ids) for p in chosen], 4, params) for c in g]
        trainer.model.train()
        return {
            "prompt_ids": [list(p.token_ids) for p in chosen for _ in range(4)],
            "completion_ids": [c.token_ids for c in drawn],
            "logprobs": [c.logprobs for c in drawn],
        }

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(t < 128 for t in ids) / len(ids) for ids in completion_ids]

    arguments = trl_arguments(settings, tmp_path / "stock", stock)
    arguments.beta = kl_beta
    trainer = GRPOTrainer(
        stock,
        reward,
        arguments,
        Dataset.from_dict({"prompt": [""] * 6}),
        processing_class=tokenizer,
        rollout_func=rollouts,
    )
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    assert len(history) == len(rows) == 3
    for theirs, mine in zip(history, rows, strict=True):
        for name in (
            "loss",
            "grad_norm",
            "reward",
            "reward_std",
            "entropy",
            "completions/mean_length",
            "frac_reward_zero_std",
        ):
            assert mine[name] == pytest.approx(theirs[name], abs=2e-5), name
        assert ("kl" in mine) == bool(kl_beta)
    trained = {n: p.detach() for n, p in stock.named_parameters() if ".default." in n}
    assert close(setup.adapter_weights(ours), trained, 1e-5)


def test_a_micro_batch_holds_whole_groups(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that share a prompt meet, or each would compute a prompt of its own."""
    from research.training import shared_prompts

    prefixes = []

    def pack(*args: Any) -> Any:
        batch = original(*args)
        prefixes.append(batch.layout.prefixes)
        return batch

    original = shared_prompts.pack
    policy, tokenizer = setup.lora(tiny_model_dir)
    monkeypatch.setattr(shared_prompts, "pack", pack)
    setup.train(policy, tokenizer, tmp_path, setup.config(steps=3, batch_size=16, optim={"micro_batch_size": 4}))
    assert prefixes[1:] == [1] * 12  # the first is the trial of whether prompts can be shared


def test_lora_layers_are_fused_in_training_and_plain_after_it(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from research.training.fused_lora import LoraLinear

    policy, tokenizer = setup.lora(tiny_model_dir)
    calls = []
    original = LoraLinear.apply
    monkeypatch.setattr(LoraLinear, "apply", lambda *args: calls.append(1) or original(*args))
    setup.train(policy, tokenizer, tmp_path, setup.config(steps=1))
    assert len(calls) >= 6 and not any("forward" in vars(m) for m in policy.modules() if hasattr(m, "lora_A"))


def test_dr_grpo_loss_by_hand(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Gradient: -sum of (r - mean) d log p over batch x max_tokens; a group of ties adds nothing."""
    policy, tokenizer = setup.lora(tiny_model_dir)
    seen: list[Group] = []
    table = [[0.5, 3.5, 0.5, 0.5], [3.5, 3.5, 3.5, 3.5]]

    def reward(groups: list[Group], step: int) -> Scores:
        seen.extend(copy.deepcopy(groups))
        return Scores(table)

    start = copy.deepcopy(policy)
    _, rows = setup.train(
        policy,
        tokenizer,
        tmp_path,
        setup.config(steps=1, optim={"max_grad_norm": 1e9}),
        reward,
        advantages="group_mean",
    )
    group = seen[0]
    advantages = torch.tensor([-0.75, 2.25, -0.75, -0.75])
    logps, mask = token_logprobs(start, [group.prompt.token_ids] * 4, [r.token_ids for r in group.rollouts])
    loss = -(advantages.unsqueeze(1) * logps * mask).sum() / (8 * 6)
    gradients = torch.autograd.grad(loss, [p for p in start.parameters() if p.requires_grad])
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert rows[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert rows[0]["groups_skipped"] == 1
    # The ratio is 1 at the first update, so the loss is minus the mean advantage weighted by lengths.
    lengths = torch.tensor([float(len(r.token_ids)) for r in group.rollouts])
    assert rows[0]["loss"] == pytest.approx(float(-(advantages * lengths).sum() / 48), abs=1e-6)


@pytest.mark.parametrize("advantages", ["group_zscore", "group_mean"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "bnpo"])
def test_accumulated_equals_whole(tiny_model_dir: Path, tmp_path: Path, advantages: str, loss_type: str) -> None:
    """Batch 1 x accumulate 8 and 4 x 2 equal 8 x 1, skipped groups included, which are in no metric."""

    def reward(groups: list[Group], step: int) -> Scores:
        scores = setup.low_ids(groups, step)
        return Scores([[1.0] * 4 if i == 0 else list(row) for i, row in enumerate(scores.rewards)])

    found = {}
    for micro in (8, 4, 1):
        policy, tokenizer = setup.lora(tiny_model_dir)
        settings = setup.config(steps=3, loss_type=loss_type, optim={"micro_batch_size": micro})
        _, rows = setup.train(policy, tokenizer, tmp_path / str(micro), settings, reward, advantages=advantages)
        columns = {name: [row[name] for row in rows] for name in ("loss", "grad_norm", "entropy")}
        found[micro] = setup.adapter_weights(policy), columns
    (weights, whole) = found[8]
    for micro in (4, 1):
        assert close(weights, found[micro][0], 2e-5)
        assert whole["grad_norm"] == pytest.approx(found[micro][1]["grad_norm"], rel=1e-4)
        assert whole["loss"] == pytest.approx(found[micro][1]["loss"], abs=1e-6)
    assert whole["entropy"] == pytest.approx(found[4][1]["entropy"], abs=1e-5)  # one group of two is skipped


class Killed(RuntimeError):
    pass


class Counting:
    """A callback with a memory, which dies once."""

    every = 1

    def __init__(self, die_at: int | None) -> None:
        self.die_at, self.total = die_at, 0.0

    def __call__(self, moment: Any) -> dict[str, float]:
        if moment.step == self.die_at:
            raise Killed
        self.total += moment.step * sum(map(sum, [g.rewards for g in moment.groups]))
        return {"total": self.total}

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "tensor": torch.tensor([self.total])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


@pytest.mark.parametrize("kind", ["lora", "antipasto"])
def test_killed_and_resumed_is_uninterrupted(tiny_model_dir: Path, tmp_path: Path, kind: str) -> None:
    def build() -> tuple[Any, Any, dict[str, Any]]:
        if kind == "lora":
            policy, tokenizer = setup.lora(tiny_model_dir, dropout=0.1)
            return policy, tokenizer, {}
        model, tokenizer = setup.load(tiny_model_dir)
        policy = antipasto.attach(model)
        antipasto.train_quarantine(policy)
        V = {k.name: torch.linalg.qr(torch.randn(k.parameter.numel(), 2))[0].T for k in knobs(policy)}
        return policy, tokenizer, {"constraint": Constraint("route", directions=V)}

    settings = setup.config(steps=5, kl_beta=0.1, optim={"micro_batch_size": 4, "schedule": "cosine"})

    def run(scratch: Path, die_at: int | None) -> tuple[Any, list[dict[str, Any]], Any]:
        torch.manual_seed(1)
        policy, tokenizer, seams = build()
        rows: list[dict[str, Any]] = getattr(run, "rows", {}).setdefault(scratch, [])
        result = setup.train_policy(
            policy, tokenizer, setup.prompts(), setup.low_ids, sampler=setup.PlainSampler(), config=settings,
            scratch=scratch, advantages="ema", callbacks=[Counting(die_at)], progress=lambda line: None,
            log=lambda step, metrics: rows.append({"step": step, **metrics}),
            rewind=lambda step: rows.__setitem__(slice(None), [r for r in rows if r["step"] <= step]), **seams,
        )  # fmt: skip
        return policy, rows, result

    run.rows = {}  # type: ignore[attr-defined]
    whole, expected, _ = run(tmp_path / "whole", None)
    with pytest.raises(Killed):
        run(tmp_path / "killed", 4)
    resumed, rows, result = run(tmp_path / "killed", None)
    assert result.resumed_from == 3 and result.steps == 5
    untimed = [{k: v for k, v in row.items() if "second" not in k and "time" not in k} for row in rows]
    assert untimed == [{k: v for k, v in row.items() if "second" not in k and "time" not in k} for row in expected]
    final, again = setup.adapter_weights(whole), setup.adapter_weights(resumed)
    assert all(torch.equal(final[name], again[name]) for name in final)
    assert any(weight.any() for name, weight in final.items() if "lora_B" in name or "dS" in name)
    _, _, repeated = run(tmp_path / "whole", None)  # a finished run is not trained again
    assert repeated.resumed_from == repeated.steps == 5


def test_the_policy_learns(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = setup.lora(tiny_model_dir)
    _, rows = setup.train(
        policy, tokenizer, tmp_path, setup.config(steps=50, batch_size=16, lr=3e-2), advantages="group_mean"
    )
    first, last = (sum(row["reward"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 0.2
    assert rows[-1]["kl_drift"] > 10 * rows[1]["kl_drift"] > 0
    assert all(row["sampler_gap"] < 1e-4 for row in rows)  # trainer and sampler agree on every sampled token
    for name in (
        "update_norm/lora_A",
        "update_norm/lora_B",
        "completions/mean_length",
        "frac_reward_zero_std",
        "low_ids",
    ):
        assert name in rows[-1], name


def test_constraint_sees_the_accumulated_gradient_before_clipping(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Erased along V, the update under SGD-like conditions has no part along V, although clipping rescales it."""
    model, tokenizer = setup.load(tiny_model_dir)
    policy = antipasto.attach(model)
    torch.manual_seed(0)
    V = {k.name: torch.linalg.qr(torch.randn(k.parameter.numel(), 3))[0].T for k in knobs(policy)}
    constraint = Constraint("erase", gate="no_gate", directions=V)
    applied: list[dict[str, torch.Tensor]] = []
    original = constraint.apply

    def spy(found: list[Any]) -> dict[str, float]:
        metrics = original(found)
        applied.append({k.name: k.parameter.grad.clone() for k in found})
        return metrics

    constraint.apply = spy  # type: ignore[method-assign]
    # Adam's epsilon far above the gradient makes its update proportional to it.
    settings = setup.config(steps=1, lr=1.0, optim={"micro_batch_size": 2, "max_grad_norm": 1e-3, "eps": 1e3})
    _, rows = setup.train(policy, tokenizer, tmp_path, settings, constraint=constraint)
    assert len(applied) == 1  # once a step, not once a micro-batch
    norm = torch.cat([g.flatten() for g in applied[0].values()]).norm()
    assert rows[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)  # what is clipped is what was left
    assert rows[0]["cos_out"] == pytest.approx(0, abs=1e-5) and rows[0]["cos_in"] > 0
    assert rows[0]["update_cos_in"] < 1e-3
    for knob in knobs(policy):
        assert (V[knob.name] @ knob.parameter).norm() < 1e-3 * knob.parameter.norm()


def test_route_moves_the_removed_part_into_the_quarantine(tiny_model_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = setup.load(tiny_model_dir)
    policy = antipasto.attach(model)
    antipasto.train_quarantine(policy)
    torch.manual_seed(0)
    V = {k.name: torch.linalg.qr(torch.randn(k.parameter.numel(), 3))[0].T for k in knobs(policy)}
    _, rows = setup.train(
        policy, tokenizer, tmp_path, setup.config(steps=2), constraint=Constraint("route", directions=V)
    )
    assert rows[-1]["update_norm/dS"] > 0 and rows[-1]["update_norm/dS_hack"] > 0
    fresh, tokenizer = setup.load(tiny_model_dir)
    vanilla = antipasto.attach(fresh)
    _, rows = setup.train(vanilla, tokenizer, tmp_path / "vanilla", setup.config(steps=2))
    assert rows[-1]["update_norm/dS_hack"] == 0
    assert all(not knob.quarantine.any() for knob in knobs(vanilla))


def test_behaviour_cloning_gradient_is_added_once_a_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = setup.lora(tiny_model_dir)
    target = [50, 51, 52, 2]
    start = copy.deepcopy(policy)
    loss = BehaviourCloning(lambda group: target, weight=0.5, rows=1)

    def flat(groups: list[Group], step: int) -> Scores:
        return Scores([[1.0] * 4 for _ in groups])  # no policy gradient: the auxiliary loss acts alone

    settings = setup.config(steps=1, optim={"micro_batch_size": 2, "max_grad_norm": 1e9})
    _, rows = setup.train(policy, tokenizer, tmp_path, settings, flat, advantages="group_mean", auxiliary=[loss])
    asked = [setup.prompts()[row] for row in schedule(6, 2, 1, settings.seed)]
    logps, mask = token_logprobs(start, [p.token_ids for p in asked], [target] * 2)
    expected = -((logps * mask).sum(1) / mask.sum(1)).mean()
    gradients = torch.autograd.grad(0.5 * expected, [p for p in start.parameters() if p.requires_grad])
    assert rows[0]["auxiliary/behaviour_cloning"] == pytest.approx(float(expected.detach()), rel=1e-5)
    norm = float(torch.cat([g.flatten() for g in gradients]).norm())
    assert rows[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


class Pool:
    fraction = 0.5

    def draw(self, prompt: Any, n: int, seed: int) -> list[Rollout]:
        return [Rollout([60 + i, 61, 2], [], "", "stop", teacher=True) for i in range(n)]


def test_teacher_rollouts_join_the_group_and_their_gradient_is_told_apart(tiny_model_dir: Path, tmp_path: Path) -> None:
    seen: list[Group] = []

    def reward(groups: list[Group], step: int) -> Scores:
        seen.extend(groups)
        return setup.low_ids(groups, step)

    def run(micro: int) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        model, tokenizer = setup.load(tiny_model_dir)
        policy = antipasto.attach(model)
        torch.manual_seed(0)
        V = {k.name: torch.linalg.qr(torch.randn(k.parameter.numel(), 3))[0].T for k in knobs(policy)}
        settings = setup.config(steps=2, optim={"micro_batch_size": micro})
        _, rows = setup.train(
            policy, tokenizer, tmp_path / str(micro), settings, reward, teacher=Pool(),
            constraint=Constraint("measure_only", directions=V),
        )  # fmt: skip
        return setup.adapter_weights(policy), rows

    weights, rows = run(8)
    assert [r.teacher for r in seen[0].rollouts] == [True, True, False, False]
    assert {"student/cos_in", "teacher/cos_in", "cos_in"} <= rows[0].keys()
    assert rows[0]["student/cos_in"] != rows[0]["teacher/cos_in"]
    assert close(weights, run(2)[0], 2e-5)  # splitting rows by origin changes nothing in the sum


def test_a_stale_sampler_is_synced_on_schedule(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = setup.lora(tiny_model_dir)
    sampler = setup.PlainSampler()
    setup.train(policy, tokenizer, tmp_path, setup.config(steps=7, sync_every=3), sampler=sampler)
    assert sampler.version == 4  # before steps 1, 4 and 7, and at the end


def test_impossible_settings_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = setup.lora(tiny_model_dir)

    def attempt(**changes: Any) -> None:
        setup.train(policy, tokenizer, tmp_path, setup.config(**changes))

    for changes, words in (
        ({"group_size": 1}, "at least 2"),
        ({"batch_size": 6}, "multiple of group_size"),
        ({"optim": {"micro_batch_size": 3}}, "micro_batch_size=3"),
        ({"batch_size": 32}, "only 6"),
        ({"importance_sampling": True, "temperature": 0.7}, "temperature 1"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            attempt(**changes)


def test_a_policy_trains_in_the_dtype_that_it_is_sampled_in(tiny_model_dir, tmp_path, monkeypatch):
    """Under bfloat16 autocast a float32 model's log-probs are another's than its sampler's."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    on_gpu = [SimpleNamespace(dtype=dtype, device=torch.device("cuda")) for dtype in (torch.float32, torch.float16)]
    assert not any(_bf16("auto", policy) for policy in on_gpu)
    assert _bf16("auto", SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda")))

    def chosen(dtype, choice):
        policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype)
        settings = PolicyConfig(1, 1e-3, 8, 4, 16, optim=Optimization(bf16=choice, micro_batch_size=8))
        return trl_arguments(settings, tmp_path, policy).bf16

    assert not chosen(torch.float32, "auto") and not chosen(torch.bfloat16, "false") and chosen(torch.bfloat16, "true")
    with pytest.raises(ConfigurationError, match=r"model\.dtype=bfloat16"):
        chosen(torch.float32, "true")
