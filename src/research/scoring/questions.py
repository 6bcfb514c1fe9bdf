"""Four-choice questions for the capability score: where they come from, and their content. Imports no torch.

Two shapes are read: ARC's own (`question`, `choices` {`label`, `text`}, `answerKey`) and the flat one of the published
marker study (`question`, `choice_labels`, `choices`, `correct_answer`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.cells.identity import hash_files
from research.errors import ConfigurationError
from research.material import science

SHIPPED, ARC = "shipped", "arc_challenge"
HUB_NAME = "allenai/ai2_arc"


def check(source: str) -> None:
    """Raise ConfigurationError for a source that is neither a known name nor a file."""
    if source not in (SHIPPED, ARC) and not Path(source).expanduser().is_file():
        raise ConfigurationError(
            f"task.capability.questions={source!r} is no file; give `{SHIPPED}`, `{ARC}`, or the path of a JSONL file."
        )


def content_hash(source: str) -> str:
    """What a cell's identity records: SHA-256 of the file, or the hub's name of the data."""
    return f"hub:{HUB_NAME}/ARC-Challenge/test" if source == ARC else hash_files([_file(source)])


def load(source: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The questions in ARC's shape, in the file's order.

    Raises ConfigurationError for a file that cannot be read so, and where the hub cannot be reached.
    """
    check(source)
    rows = _from_hub() if source == ARC else _from_file(_file(source))
    return rows[:limit]


def _file(source: str) -> Path:
    return science.HELDOUT_FILE if source == SHIPPED else Path(source).expanduser()


def _from_file(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            try:
                rows.append(_as_arc(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"{path}, line {number}: {type(error).__name__} {error}; a row has question, "
                    "choices (label, text) and answerKey, or question, choice_labels, choices and correct_answer."
                ) from error
    if not rows:
        raise ConfigurationError(f"{path} holds no question.")
    return rows


def _as_arc(row: Mapping[str, Any]) -> dict[str, Any]:
    if "choice_labels" in row:
        labels, texts, answer = row["choice_labels"], row["choices"], row["correct_answer"]
    else:
        labels, texts, answer = row["choices"]["label"], row["choices"]["text"], row["answerKey"]
    if len(labels) != len(texts) or len(set(labels)) != len(labels) or answer not in labels:
        raise ValueError(f"labels {labels} do not fit {len(texts)} choices and the answer {answer!r}")
    return {"question": row["question"], "choices": {"label": list(labels), "text": list(texts)}, "answerKey": answer}


def _from_hub() -> list[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(HUB_NAME, "ARC-Challenge", split="test")
    except Exception as error:  # whatever the hub's client raises, the user needs the same advice
        raise ConfigurationError(
            f"task.capability.questions={ARC}: {HUB_NAME} could not be loaded ({type(error).__name__}: {error}). "
            "Point it at a JSONL file with the questions: task.capability.questions=/path/to/arc_challenge_test.jsonl"
        ) from error
    return [_as_arc(row) for row in loaded]
