"""The discriminator task of the shared model: its heads, its own Adam on the same adapter, its rewards.

Two judges. `HeadJudge`: LayerNorm and a linear map to two classes on the last token's final hidden
state, cross-entropy.
`ReasoningJudge`, the earlier variant: the model thinks and answers real or generated, is rewarded for being right
(REINFORCE with a learned value as baseline), and the value, read from the state before the answer, pays the generator.
Shapes: B rows, T tokens, H hidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from research.cells.seeding import stable_seed
from research.material.fill_prompts import GENERATED, REAL, THINK_OPENING, judge_messages, parse_judgement
from research.sampling.interface import Sampler, SamplingParams
from research.training.auxiliary import token_logprobs

MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Sample:
    """A completion of a prefix, and whether the author wrote it."""

    prefix: str
    completion: str
    real: bool


class Judge:
    """What both judges share: a head, and an Adam of their own over head and adapter, decayed linearly to 0."""

    def __init__(
        self, policy: Any, tokenizer: Any, outputs: int, lr: float, scale: float, betas: Sequence[float], steps: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.policy, self.tokenizer, self.scale, self.steps, self.seed = policy, tokenizer, scale, steps, seed
        hidden = policy.config.get_text_config().hidden_size
        with torch.random.fork_rng():
            torch.manual_seed(stable_seed(seed, "judge"))
            self.head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, outputs)).to(self.device)
        self.adapter = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam([*self.adapter, *self.head.parameters()], lr=lr, betas=(betas[0], betas[1]))
        self.lr, self.updates = lr, 0

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device

    def states(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Final hidden state at each row's last token, (B, H), float32; differentiable unless under no_grad."""
        width = max(map(len, rows))
        ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for i, row in enumerate(rows):
            ids_BT[i, : len(row)] = torch.tensor(list(row))
            mask_BT[i, : len(row)] = 1
        body = self.policy.get_base_model().get_decoder()
        hidden_BTH = body(input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device)).last_hidden_state
        return hidden_BTH[torch.arange(len(rows)), mask_BT.sum(1) - 1].float()

    def update(self, loss: torch.Tensor) -> float:
        """One step of the discriminator task: `scale` times the loss, clipped to norm 1. Returns the norm."""
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"the discriminator task's loss is {loss.item()} at update {self.updates + 1}; lower task.d_lr"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * max(0.0, 1 - self.updates / self.steps)
        parameters = [*self.adapter, *self.head.parameters()]
        kept = [p.grad for p in parameters]  # the generator's own gradients are not this task's
        gradients = torch.autograd.grad(self.scale * loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM))
        self.optimizer.step()
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient
        self.updates += 1
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {
            "head": {name: tensor.clone() for name, tensor in self.head.state_dict().items()},
            "optimizer": self.optimizer.state_dict(), "updates": self.updates,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]


class HeadJudge(Judge):
    """Class 1 is real. The reward of a completion is the probability of that class."""

    def __init__(
        self, policy: Any, tokenizer: Any, lr: float, scale: float, betas: Sequence[float], steps: int, seed: int
    ):
        super().__init__(policy, tokenizer, 2, lr, scale, betas, steps, seed)

    def rewards(self, samples: Sequence[Sample], sampler: Sampler, step: int) -> list[float]:
        """P(real) of each completion."""
        with torch.no_grad():
            return self.head(self.states([self._row(s) for s in samples])).softmax(1)[:, 1].tolist()

    def learn(self, samples: Sequence[Sample], sampler: Sampler, step: int) -> Mapping[str, float]:
        """One update on real and generated completions; each class weighs the same, however many there are."""
        real_B = torch.tensor([s.real for s in samples], device=self.device)
        logits_BC = self.head(self.states([self._row(s) for s in samples]))
        losses_B = nn.functional.cross_entropy(logits_BC, real_B.long(), reduction="none")
        loss = torch.stack([losses_B[real_B == side].mean() for side in (True, False) if (real_B == side).any()]).mean()
        right = float(((logits_BC[:, 1] > logits_BC[:, 0]) == real_B).float().mean())
        return {"judge/loss": loss.item(), "judge/accuracy": right, "judge/grad_norm": self.update(loss)}

    def _row(self, sample: Sample) -> list[int]:
        text = sample.prefix + sample.completion
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]


@dataclass(frozen=True)
class Verdict:
    """A judge's reply to a sample: prompt and reply tokens, where the answer begins in the reply, and its reward."""

    sample: Sample
    prompt: list[int]
    reply: list[int]
    answer_at: int
    reward: float


class ReasoningJudge(Judge):
    """Thinks, answers, is paid 1 for being right. value: expected pay, from the state before the answer."""

    def __init__(
        self, policy: Any, tokenizer: Any, lr: float, scale: float, betas: Sequence[float], steps: int, seed: int,
        threshold: float, max_tokens: int, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(policy, tokenizer, 1, lr, scale, betas, steps, seed)
        self.threshold, self.max_tokens, self.options = threshold, max_tokens, dict(options)
        self.pending: list[Verdict] = []

    def rewards(self, samples: Sequence[Sample], sampler: Sampler, step: int) -> list[float]:
        """1 - value where the value exceeds the threshold, else 0: a judge that is never right gives no signal."""
        verdicts = self._judge(samples, sampler, stable_seed(self.seed, "judge generated", step))
        self.pending = verdicts
        with torch.no_grad():
            values = self._values(verdicts).tolist()
        return [1 - value if value > self.threshold else 0.0 for value in values]

    def learn(self, samples: Sequence[Sample], sampler: Sampler, step: int) -> Mapping[str, float]:
        """REINFORCE on the judge's own replies with its value as baseline, and the value's squared error."""
        real = [s for s in samples if s.real]
        verdicts = [*self.pending, *self._judge(real, sampler, stable_seed(self.seed, "judge real", step))]
        self.pending = []
        pay_B = torch.tensor([v.reward for v in verdicts], device=self.device)
        values_B = self._values(verdicts)
        logps_BT, mask_BT = token_logprobs(self.policy, [v.prompt for v in verdicts], [v.reply for v in verdicts])
        advantages_B = pay_B - values_B.detach()
        policy_loss = -(advantages_B * (logps_BT * mask_BT).sum(1) / mask_BT.sum(1)).mean()
        value_loss = nn.functional.mse_loss(values_B, pay_B)
        norm = self.update(policy_loss + value_loss)
        reasoned = [v.answer_at > 4 for v in verdicts]
        return {
            "judge/loss": policy_loss.item(), "judge/value_loss": value_loss.item(), "judge/grad_norm": norm,
            "judge/accuracy": pay_B.mean().item(), "judge/value": values_B.mean().item(),
            "judge/reasoned": sum(reasoned) / len(reasoned),
        }  # fmt: skip

    def _judge(self, samples: Sequence[Sample], sampler: Sampler, seed: int) -> list[Verdict]:
        prompts = [self._prompt(sample) for sample in samples]
        if not prompts:
            return []
        params = SamplingParams(1.0, 1.0, self.max_tokens, seed, (self.tokenizer.eos_token_id,))
        replies = [row[0].token_ids for row in sampler.generate(prompts, 1, params)]
        return [self._verdict(*triple) for triple in zip(samples, prompts, replies, strict=True)]

    def _verdict(self, sample: Sample, prompt: list[int], reply: list[int]) -> Verdict:
        answer = parse_judgement(self.tokenizer.decode(reply, skip_special_tokens=True))
        pieces = [self.tokenizer.decode([token]) for token in reply]
        written = itertools.accumulate(pieces)
        closed = next((i + 1 for i, text in enumerate(written) if "</think>" in text), len(reply))
        right = answer == (REAL if sample.real else GENERATED)
        return Verdict(sample, prompt, reply, closed, float(right))

    def _values(self, verdicts: Sequence[Verdict]) -> torch.Tensor:
        rows = [[*v.prompt, *v.reply[: v.answer_at]] for v in verdicts]
        return self.head(self.states(rows)).squeeze(1).sigmoid()

    def _prompt(self, sample: Sample) -> list[int]:
        messages = judge_messages(sample.prefix, sample.completion)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **self.options)
        return self.tokenizer.encode(text + THINK_OPENING, add_special_tokens=False)
