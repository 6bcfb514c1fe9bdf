"""What the marker study's configuration groups under `task.data`, `task.eval` and `task.capability`."""

from __future__ import annotations

from dataclasses import dataclass

from research.config import key

# Personas among the negatives: every other one as the study reports, two as its code ran.
PRESETS = {"as_reported": 10, "as_run": 2}


@dataclass
class DataSettings:
    """Training examples, drawn from the base model under study."""

    negatives: str = key(
        "as_reported",
        "as_reported: all 10 other personas; as_run: 2 drawn by data_seed, never the assistant",
        choices=tuple(PRESETS),
    )
    n_negative_personas: int | None = key(
        None, "how many personas of the preset's pool; null: the preset's number", min=0
    )
    n_positives: int = key(40, "examples of the source persona, the marker appended (published: 200)", min=1)
    n_per_negative: int = key(12, "examples of each negative persona, unmodified (published: 200)", min=1)
    temperature: float = key(0.7, "sampling temperature of the examples", min=0)
    top_p: float = key(0.95, "nucleus mass of the examples", above=0, max=1)
    max_tokens: int = key(128, "longest drawn example, in tokens (published: 512)", min=1)
    max_length: int = key(1024, "prompt and completion are cut to this many tokens", min=8)


@dataclass
class EvalSettings:
    """Marker evaluation: every persona x every held-out question x `samples`."""

    samples: int = key(10, "completions a persona and question", min=1)
    temperature: float = key(1.0, "sampling temperature", min=0)
    top_p: float = key(0.95, "nucleus mass", above=0, max=1)
    max_tokens: int = key(128, "longest completion, in tokens (published: 512)", min=1)
    invented_personas: int = key(0, "further personas measured beside the published eleven", min=0)


@dataclass
class CapabilitySettings:
    """Four-choice questions scored by the log-prob of the bare letter."""

    questions: str = key(
        "shipped", "`shipped`, `arc_challenge` (from the model hub), or an ARC-shaped JSONL file", identity=False
    )
    n_questions: int | None = key(200, "the first so many; null: all", min=1)
    floor: float | None = key(
        None, "success needs more than this; null: the base model's own accuracy minus .026", min=0
    )
    stock: bool = key(False, "lm-eval's own arc_challenge on the same questions, reported beside ours")
