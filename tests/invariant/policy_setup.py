"""A tiny policy-gradient run for the invariants: real model, real sampling, a reward that needs no grader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from research.cells.seeding import stable_seed
from research.config import Optimization
from research.sampling.interface import Completion, SamplingParams, SyncReceipt
from research.training.policy import PolicyConfig, PolicyResult, train_policy
from research.training.rollouts import Group, Prompt, Scores


class PlainSampler:
    """Token by token from the live policy: slow, obvious, and independent of any engine."""

    def __init__(self) -> None:
        self.policy: Any = None
        self.version = 0

    def sync(self, policy: Any) -> SyncReceipt:
        self.policy, self.version = policy, self.version + 1
        return SyncReceipt(0.0, self.version, 0.0, 0.0)

    def close(self) -> None:
        self.policy = None

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[list[Completion]]:
        return [
            [self._one(list(prompt), params, stable_seed(params.seed, list(prompt), i)) for i in range(n)]
            for prompt in prompts
        ]

    def _one(self, prompt: list[int], params: SamplingParams, seed: int) -> Completion:
        generator = torch.Generator().manual_seed(seed)
        ids, logprobs = list(prompt), []
        while len(logprobs) < params.max_tokens:
            logits = self.policy(input_ids=torch.tensor([ids])).logits[0, -1].float()
            token = int(torch.multinomial((logits / params.temperature).softmax(-1), 1, generator=generator))
            logprobs.append(float(logits.log_softmax(-1)[token]))
            ids.append(token)
            if token in params.stop_token_ids:
                return Completion(ids[len(prompt) :], logprobs, "stop")
        return Completion(ids[len(prompt) :], logprobs, "length")


def low_ids(groups: Sequence[Group], step: int) -> Scores:
    """Reward: share of tokens with a small id, a thing the policy can learn."""
    rewards = [[sum(t < 128 for t in r.token_ids) / len(r.token_ids) for r in group.rollouts] for group in groups]
    return Scores(rewards, metrics={"low_ids": sum(map(sum, rewards)) / sum(map(len, rewards))})


def load(tiny: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(tiny)


def lora(tiny: Path, dropout: float = 0.0) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load(tiny)
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config), tokenizer


def prompts(n: int = 6) -> list[Prompt]:
    return [Prompt([300 + i, 17, *range(40, 43 + i)], {"number": i}) for i in range(n)]


def config(**changes: Any) -> PolicyConfig:
    optim = {"checkpoint_seconds": 0.0, "warmup_ratio": 0.0, "schedule": "constant"} | changes.pop("optim", {})
    settings: dict[str, Any] = {
        "steps": 2, "lr": 1e-2, "batch_size": 8, "group_size": 4, "max_tokens": 6, "stop_token_ids": (2,), "seed": 3
    }  # fmt: skip
    return PolicyConfig(**(settings | changes), optim=Optimization(**optim))


def train(
    policy: Any, tokenizer: Any, scratch: Path, settings: PolicyConfig, reward: Any = low_ids,
    into: list[dict[str, Any]] | None = None, **seams: Any,
) -> tuple[PolicyResult, list[dict[str, Any]]]:  # fmt: skip
    """Train; the lines of metrics.jsonl come back, and go `into` a list that may hold those of an earlier attempt."""
    rows = [] if into is None else into

    def rewind(step: int) -> None:
        rows[:] = [row for row in rows if row["step"] <= step]

    result = train_policy(
        policy, tokenizer, prompts(), reward, sampler=seams.pop("sampler", None) or PlainSampler(), config=settings,
        scratch=scratch, log=lambda step, metrics: rows.append({"step": step, **metrics}), rewind=rewind,
        progress=lambda line: None, **seams,
    )  # fmt: skip
    return result, rows


def adapter_weights(policy: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters() if "lora_" in name}
