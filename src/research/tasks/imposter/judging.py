"""Training the discriminator on pairs: stage 1, and co-training with a replay buffer."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from research.cells import ranks
from research.cells.seeding import stable_seed
from research.tasks.imposter.corpus import Span
from research.tasks.imposter.discriminator import Discriminator
from research.tasks.imposter.settings import CotrainConfig, DiscriminatorConfig

WARMUP = 0.1


@dataclass(frozen=True)
class Pair:
    """A human span and what a generator wrote in its place."""

    human: Span
    generated: str

    @property
    def generated_span(self) -> Span:
        return replace(self.human, text=self.generated)


def pair_loss(discriminator: Discriminator, pairs: Sequence[Pair]) -> torch.Tensor:
    """Mean loss over pairs: logistic on both logits, or the hinge max(0, margin - (human - generated)).

    With a reader, the same loss on its sentences' logits is added.
    """
    logits_B, sentences = discriminator([p.human for p in pairs] + [p.generated_span for p in pairs])
    loss = _loss(discriminator, logits_B[: len(pairs)], logits_B[len(pairs) :])
    if sentences:
        means_B = torch.stack([row.mean() for row in sentences])
        loss = loss + _loss(discriminator, means_B[: len(pairs)], means_B[len(pairs) :])
    return loss


def chance_loss(config: DiscriminatorConfig) -> float:
    """`pair_loss` of a judge that gives every text the same logit 0: ln 2, or the margin; twice that with a reader."""
    one = config.margin if config.loss == "margin" else math.log(2)
    return 2 * one if config.reward_from == "sentences" else one


def _loss(discriminator: Discriminator, human_P: torch.Tensor, generated_P: torch.Tensor) -> torch.Tensor:
    if discriminator.config.loss == "margin":
        return (discriminator.config.margin - (human_P - generated_P)).clamp(min=0).mean()
    return (torch.nn.functional.softplus(-human_P).mean() + torch.nn.functional.softplus(generated_P).mean()) / 2


def train(
    discriminator: Discriminator,
    optimizer: torch.optim.Optimizer,
    pairs: Sequence[Pair],
    epochs: int,
    batch_size: int,
    seed: int,
    decay: bool = False,
) -> list[float]:
    """Optimise over pairs in a seeded order; returns each step's loss. Dropout is seeded too; no global state moves.

    decay: warm up over the first tenth of the steps and decay linearly to 0; else the rate is constant.

    Raises RuntimeError for a loss that is not finite: weights that went wrong must not go on judging.
    """
    losses: list[float] = []
    steps = epochs * math.ceil(len(pairs) / batch_size)
    full_rate = [group["lr"] for group in optimizer.param_groups]
    discriminator.train()
    with torch.random.fork_rng():
        for epoch in range(epochs):
            order = list(range(len(pairs)))
            random.Random(stable_seed(seed, "pairs", epoch)).shuffle(order)
            for start in range(0, len(order), batch_size):
                torch.manual_seed(stable_seed(seed, "dropout", len(losses)))
                loss = pair_loss(discriminator, [pairs[i] for i in order[start : start + batch_size]])
                if not torch.isfinite(loss):
                    raise RuntimeError(
                        f"the discriminator's loss is {loss.item()} at step {len(losses) + 1} of {steps}; its "
                        f"learning rate {full_rate[0]:g} may be too high"
                    )
                for group, rate in zip(optimizer.param_groups, full_rate, strict=True):
                    group["lr"] = rate * _schedule(len(losses), steps) if decay else rate
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(discriminator.parameters(), 1.0)
                optimizer.step()
                losses.append(loss.item())
    discriminator.eval()
    for group, rate in zip(optimizer.param_groups, full_rate, strict=True):
        group["lr"] = rate
    return losses


def _schedule(step: int, steps: int) -> float:
    return min((step + 1) / max(1.0, WARMUP * steps), (steps - step) / steps)


def stage1(discriminator: Discriminator, pairs: Sequence[Pair], seed: int) -> list[float]:
    """Train the whole discriminator from its configuration on human against the base generator's spans."""
    config = discriminator.config
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    seed = stable_seed(seed, "stage1")
    return train(discriminator, optimizer, pairs, config.epochs, config.batch_size, seed, decay=True)


def accuracy(discriminator: Discriminator, pairs: Sequence[Pair]) -> tuple[int, int]:
    """(right, judged): spans on their side of logit 0; under the margin loss, pairs in the right order."""
    human = [s.span for s in discriminator.score([p.human for p in pairs])]
    generated = [s.span for s in discriminator.score([p.generated_span for p in pairs])]
    if discriminator.config.loss == "margin":
        return sum(h > g for h, g in zip(human, generated, strict=True)), len(pairs)
    return sum(h > 0 for h in human) + sum(g < 0 for g in generated), 2 * len(pairs)


class Cotraining:
    """The discriminator that learns along: its optimizer, its replay buffer, and the rounds it went through."""

    def __init__(self, discriminator: Discriminator, config: CotrainConfig, batch_size: int, seed: int) -> None:
        self.discriminator, self.config, self.batch_size, self.seed = discriminator, config, batch_size, seed
        chosen = discriminator.head_parameters() if config.part == "head" else list(discriminator.parameters())
        for parameter in discriminator.parameters():
            parameter.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(chosen, lr=config.lr, weight_decay=discriminator.config.weight_decay)
        self.buffer: list[Pair] = []
        self.rounds = 0

    def remember(self, pairs: Iterable[Pair]) -> None:
        """Put pairs into the replay buffer; the oldest leave when it is full."""
        self.buffer = [*self.buffer, *pairs][-self.config.buffer :] if self.config.buffer else []

    def round(self, fresh: Sequence[Pair]) -> dict[str, float]:
        """One co-training round on fresh pairs and a draw from the buffer, which then takes the fresh ones in.

        loss_before: on the fresh pairs, before the round, without dropout; compare it with `chance_loss`.
        """
        seed = stable_seed(self.seed, "cotrain", self.rounds)
        draw = random.Random(seed)
        replayed = draw.sample(self.buffer, min(self.config.replay, len(self.buffer)))
        before = self.loss(fresh)
        losses = train(
            self.discriminator, self.optimizer, [*fresh, *replayed], self.config.epochs, self.batch_size, seed
        )
        self.remember(fresh)
        self.rounds += 1
        return {
            "cotrain/loss": sum(losses) / len(losses),
            "cotrain/loss_before": before,
            "cotrain/loss_after": self.loss(fresh),
            "cotrain/fresh": len(fresh),
            "cotrain/replayed": len(replayed),
            "cotrain/round": self.rounds,
        }

    def agree(self) -> None:
        """Every process takes the first one's weights: they learnt from the same pairs, but need not round alike."""
        weights = ranks.from_first({n: t.cpu() for n, t in self.discriminator.state_dict().items()})
        if ranks.rank() > 0:
            self.discriminator.load_state_dict(weights)

    @torch.inference_mode()
    def loss(self, pairs: Sequence[Pair]) -> float:
        """Mean loss over pairs, without dropout and without learning."""
        self.discriminator.eval()
        parts = [pairs[i : i + self.batch_size] for i in range(0, len(pairs), self.batch_size)]
        return sum(pair_loss(self.discriminator, part).item() * len(part) for part in parts) / len(pairs)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to go on bit by bit."""
        return {
            "discriminator": {name: tensor.clone() for name, tensor in self.discriminator.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "buffer": [{"human": asdict(pair.human), "generated": pair.generated} for pair in self.buffer],
            "rounds": self.rounds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffer = [Pair(Span(**row["human"]), row["generated"]) for row in state["buffer"]]
        self.rounds = state["rounds"]
