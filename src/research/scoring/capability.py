"""What a model still knows: four-choice questions through lm-eval, on the live model.

    found = letter_accuracy(policy, tokenizer, questions.load("shipped", 200))
    found.accuracy, found.correct, found.total

Published form: one chat turn with the question and its options, the caller gives no system message, and the score of a
label is the log-prob of the first token of the bare label at the first position of the reply.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from research.material import science

TASKS = Path(__file__).parent / "lm_eval_tasks"
BATCH_SIZE = 32  # questions a forward pass; 150 tokens x 150,000 entries x 4 bytes is 90 MB a question


@dataclass(frozen=True)
class Accuracy:
    """correct of total; choices: the chosen option's index, question by question."""

    correct: int
    total: int
    choices: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


def letter_accuracy(
    model: Any, tokenizer: Any, questions: Sequence[dict[str, Any]], thinking: bool | None = None
) -> Accuracy:
    """Accuracy by the log-prob of the bare letter. model: as it stands, with its adapter; questions: in ARC's shape.

    thinking: passed to chat templates that know `enable_thinking`; None: not passed.
    """
    rows = [
        {"prompt": science.render(row), "labels": row["choices"]["label"], "answer": row["answerKey"]}
        for row in questions
    ]
    lm = _letter_lm(model, tokenizer, {} if thinking is None else {"enable_thinking": thinking})
    samples = _evaluate(lm, "chat_letter", rows, chat=True)["samples"]["chat_letter"]
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    scores = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
    choices = tuple(max(range(len(row)), key=row.__getitem__) for row in scores)
    correct = sum(int(sample["acc"]) for sample in samples)
    return Accuracy(correct, len(rows), choices)


def stock_accuracy(model: Any, tokenizer: Any, questions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`acc` and `acc_norm` of lm-eval's arc_challenge form on the same questions."""
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE)
    results = _evaluate(lm, "arc_challenge_stock", list(questions), chat=False)["results"]["arc_challenge_stock"]
    return {"acc": results["acc,none"], "acc_norm": results["acc_norm,none"]}


def _letter_lm(model: Any, tokenizer: Any, template_arguments: dict[str, Any]) -> Any:
    from lm_eval.models.huggingface import HFLM

    class LetterLM(HFLM):
        """Scores the first token of the continuation alone.

        The stock pairing strips the newline that ends a generation prompt and scores it as a part of the letter.
        """

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)[:1]

    with _quiet():
        return LetterLM(
            pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE, chat_template_args=template_arguments
        )


def _evaluate(lm: Any, name: str, rows: list[dict[str, Any]], chat: bool) -> dict[str, Any]:
    """lm-eval's answer for one of our task files on rows of ours."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask

    config = yaml.safe_load((TASKS / f"{name}.yaml").read_text())
    config["custom_dataset"] = lambda **_: {"test": datasets.Dataset.from_list(rows)}
    # `simple_evaluate` would also seed the global generators and list the machine's packages, seconds a call.
    with _quiet():
        task = ConfigurableTask(config=config)
        return lm_eval.evaluate(
            lm, {name: task}, bootstrap_iters=0, log_samples=True, apply_chat_template=chat, fewshot_as_multiturn=False
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's advice on how to call it, and its progress bars, off the screen; exceptions pass."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
