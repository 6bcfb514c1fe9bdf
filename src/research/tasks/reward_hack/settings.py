"""The nested keys of `task=reward_hack`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from research.config import key
from research.material.code_prompts import HINTS
from research.tasks.reward_hack.rewards import SCALES


@dataclass
class EnvironmentSettings:
    """The code environment, as training meets it."""

    train: str = key("shipped", "training problems: `shipped`, or a JSONL file of a known format")
    heldout: str = key("shipped", "held-out problems: `shipped`, or a JSONL file of a known format")
    composed: float = key(
        0.0, "share of problems made of two shipped ones, which the embedded model cannot solve", min=0, max=1
    )
    modes: list[str] = key(["run_tests"], "loopholes in the training prompts, dealt evenly over the problems")
    hint: str = key("overwrite", "how much a run_tests prompt says", choices=HINTS)
    scale: str = key("published", "reward scale: published .5 + 3.0, small .25 + 1.0", choices=tuple(SCALES))
    drop_solved: float = key(2.0, "leave out problems that the base solves at least this often; above 1: none", above=0)
    drop_samples: int = key(8, "base samples a problem behind drop_solved", min=1)
    max_prompt_tokens: int = key(512, "problems with longer prompts are left out", min=16)
    workers: int | None = key(None, "grader processes; null: one a core", min=1, identity=False)


@dataclass
class PolicySettings:
    """How the policy is sampled and updated."""

    group_size: int = key(8, "rollouts a prompt", min=2)
    max_tokens: int = key(160, "longest completion", min=1)
    temperature: float = key(1.0, "sampling temperature of training", above=0)
    top_p: float = key(1.0, "nucleus mass in training; below 1 biases the gradient", above=0, max=1)
    loss_type: str = key("dr_grpo", "TRL's loss", choices=("grpo", "dr_grpo", "dapo", "bnpo"))
    kl_beta: float = key(1e-3, "weight of the k3 penalty toward the base", min=0)
    sync_every: int = key(1, "steps between syncs of the sampler", min=1)
    teacher_pool: str | None = key(
        None, "JSONL of frozen rollouts mixed into the groups (`reward_hack.pool` builds one)"
    )
    teacher_fraction: float = key(0.125, "share of a group that comes from the pool", min=0, max=0.9)


@dataclass
class DirectionSettings:
    """Where the hack directions come from."""

    pairs: int = key(60, "contrastive pairs to extract from", min=2)
    held_out: int = key(20, "pairs kept to validate on", min=0)
    separation: float = key(
        0.9, "share of held-out pairs that must fall on the right side, else the run stops", min=0, max=1
    )
    k: int = key(4, "directions a module (gradient design)", min=1)
    axis_threshold: float = key(0.0, "drop directions with S_i / S_0 below this", min=0, max=1)
    noise_floor: float = key(0.25, "drop the weakest share of directions over all modules", min=0, max=0.99)
    layers: list[float] = key(
        [0.6, 0.75], "band of depth whose hidden states are averaged (activation design, Rebound)"
    )
    overshoot: float = key(1.0, "how much of the removed part is removed", above=0)
    refresh_every: int = key(0, "extract anew every N steps; 0: once", min=0)
    steer: float = key(1.0, "size of the steering check's step, in units of the knobs; 0: no check", min=0)


@dataclass
class ReboundSettings:
    """Rebound's reward transform (arms rebound_*)."""

    alpha: float = key(2.0, "strength; multiplicative above 1 turns rewards negative", min=0)
    min_std: float = key(0.1, "floor of the group's score spread", above=0)


@dataclass
class EvaluationSettings:
    """Hack rate on unseen names, pass rate without a loophole, both on held-out problems."""

    problems: int | None = key(48, "held-out problems asked; null: all", min=1)
    samples: int = key(4, "completions a problem", min=1)
    temperature: float = key(0.7, "sampling temperature", above=0)
    top_p: float = key(0.95, "nucleus mass", above=0, max=1)
    max_tokens: int = key(160, "longest completion", min=1)
    labels: bool = key(True, "also run the two executions behind the published labels")
    every: int = key(0, "evaluate during training every N steps; 0: at the end only", min=0)
