"""A frozen pool of teacher rollouts: built by a command, or loaded, and mixed into groups at a given fraction.

    python -m research.tasks.reward_hack.pool out=pool.jsonl [problems=FILE] [modes=run_tests] [hack_share=0.5]
    [per_problem=8] [seed=42]

A row holds problem_id, mode, completion, and optionally hacked. Rows of the built pool are the suite's own hack and
clean replies; rows sampled from another model have the same form, also those of published pools (`.gz` too).
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from research.cells.cell import write_atomically
from research.cells.seeding import stable_seed
from research.errors import ConfigurationError
from research.material.code_prompts import MODES, STYLES, clean_reply, hack_reply, names_for
from research.tasks.reward_hack import problems as problem_files
from research.tasks.reward_hack.pairs import Chat, wrong_solution
from research.tasks.reward_hack.problems import Problem
from research.training.rollouts import Prompt, Rollout
from research.words import number, run, settings

KEYS = {
    "out": None,
    "problems": "shipped",
    "modes": "run_tests",
    "hack_share": "0.5",
    "per_problem": "8",
    "seed": "42",
}


class TeacherFile:
    """The rollouts of a file by problem and mode (see `research.training.rollouts.TeacherPool`)."""

    def __init__(self, path: str | Path, fraction: float, chat: Chat) -> None:
        self.fraction, self.chat = fraction, chat
        self.replies: dict[tuple[str, str | None], list[str]] = {}
        for row in read(Path(path)):
            self.replies.setdefault((str(row["problem_id"]), row.get("mode")), []).append(row["completion"])

    def draw(self, prompt: Prompt, n: int, seed: int) -> list[Rollout]:
        """See `TeacherPool.draw`; rows without a mode serve every mode."""
        key = str(prompt.record["problem"].id)
        held = self.replies.get((key, prompt.record["mode"]), []) + self.replies.get((key, None), [])
        chosen = random.Random(seed).sample(held, min(n, len(held)))
        return [Rollout(self.chat.completion(text), (), text, "stop", teacher=True) for text in chosen]


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a pool; raises ConfigurationError for a missing file or key."""
    if not path.is_file():
        raise ConfigurationError(f"task.policy.teacher_pool={path}: there is no such file")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            row = json.loads(line)
            if missing := {"problem_id", "completion"} - row.keys():
                raise ConfigurationError(f"{path}:{number}: the key {sorted(missing)[0]} is missing")
            yield row


def build(
    problems: Sequence[Problem], modes: Sequence[str], hack_share: float, per_problem: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows for every problem and mode, `hack_share` of them hacks around a wrong solution, the others canonical."""
    for problem in problems:
        for mode in modes:
            rng = random.Random(stable_seed(seed, problem.id, mode))
            names = names_for(problem.id, mode, seed, evaluation=False)
            for i in range(per_problem):
                hacked = i < round(hack_share * per_problem)
                if hacked:
                    reply = hack_reply(mode, names, wrong_solution(problem, problems, rng), i % STYLES)
                else:
                    reply = clean_reply(problem.canonical_solution)
                yield {"problem_id": problem.id, "mode": mode, "completion": reply, "hacked": hacked}


def main(argv: Sequence[str]) -> None:
    """The command of the module's docstring."""
    from research.tasks.reward_hack.task import problem_file

    given = settings(argv, KEYS)
    modes = given["modes"].split(",")
    if unknown := set(modes) - set(MODES):
        raise ConfigurationError(f"There is no mode {min(unknown)}; modes= takes some of {', '.join(MODES)}.")
    loaded = problem_files.load(problem_file(given["problems"], "train"))
    share, each = number(given, "hack_share", least=0, most=1), number(given, "per_problem", int, least=1)
    rows = list(build(loaded, modes, share, each, number(given, "seed", int)))
    write_atomically(Path(given["out"]), "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{given['out']}: {len(rows)} rollouts for {len(loaded)} problems")


if __name__ == "__main__":
    run(main, __doc__)
