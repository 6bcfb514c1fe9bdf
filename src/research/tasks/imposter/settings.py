"""The keys that both imposter tasks nest, one dataclass a part. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from research.config import key


@dataclass
class DiscriminatorConfig:
    """Who judges the generator; a task nests it as `task.discriminator`."""

    path: str = key("small", "`small` (a DeBERTa-v2 built here), a directory or a hub name of an encoder")
    hidden: int = key(64, "`small`: width", min=32)
    layers: int = key(2, "`small`: layers", min=1)
    embeddings: str = key(
        "random", "`small`: token embeddings before stage 1: random, or the generator's on their leading axes",
        choices=("random", "generator"),
    )  # fmt: skip
    dropout: float = key(0.1, "`small`: dropout", min=0, max=0.9)
    max_length: int = key(128, "tokens of span and context together", min=16)
    loss: str = key(
        "logistic", "human against generated: on each logit, or on their difference", choices=("logistic", "margin")
    )
    margin: float = key(1.0, "margin loss: difference of logits past which a pair costs nothing", above=0)
    reward_from: str = key(
        "span", "the span's logit, or its sentences' read from hidden states", choices=("span", "sentences")
    )
    lr: float = key(2e-3, "AdamW learning rate of stage 1", above=0)
    weight_decay: float = key(0.01, "AdamW weight decay", min=0)
    epochs: int = key(2, "passes over the stage 1 pairs", min=1)
    batch_size: int = key(16, "pairs of human and generated text an optimizer step", min=1)
    pairs: int | None = key(1500, "stage 1: human spans; null: all that the pool has, up to 1500", min=2)
    per_span: int = key(2, "stage 1: generated spans for each human one", min=1)
    heldout_pairs: int | None = key(
        200, "pairs that held-out accuracy is measured on; null: one from each held-out document, up to 200", min=1
    )


@dataclass
class CotrainConfig:
    """How the discriminator learns along; a task nests it as `task.cotrain`."""

    every: int = key(20, "policy steps between two rounds; 0: never", min=0)
    part: str = key("whole", "what learns: the head, or the whole encoder", choices=("head", "whole"))
    pairs: int = key(64, "fresh pairs a round: spans of the co-training pool, each with one generated now", min=1)
    replay: int = key(64, "older pairs mixed into a round", min=0)
    buffer: int = key(1024, "pairs the replay buffer holds; the oldest leave first", min=0)
    epochs: int = key(1, "passes over a round's pairs", min=1)
    lr: float = key(3e-4, "AdamW learning rate of co-training", above=0)


@dataclass
class GenerationConfig:
    """How spans are written; a task nests it as `task.generation`."""

    temperature: float = key(1.0, "sampling temperature, in training and evaluation", above=0)
    top_p: float = key(1.0, "nucleus mass; below 1 the policy gradient is biased", above=0, max=1)
    max_tokens: int = key(48, "tokens of a written span at most", min=1)


@dataclass
class EvaluationConfig:
    """What the frozen original discriminator is asked, before and after; a task nests it as `task.eval`."""

    documents: int = key(100, "held-out documents, one removed span each", min=2)
    candidates: int = key(4, "spans written for each document", min=1)
    mauve: bool = key(True, "also measure MAUVE, on features of the base model")
    mauve_buckets: int | None = key(None, "clusters; null: a tenth of the smaller sample", min=2)


@dataclass(frozen=True)
class Arm:
    """What one arm of the study trains with."""

    reinforce: bool = True
    clone: bool = True
    sync: bool = True


ARMS = {
    "full": Arm(),
    "rl_only": Arm(clone=False),
    "bc_only": Arm(reinforce=False),
    "sync_disabled": Arm(sync=False),
}
