"""Where a step's rollouts come from: the sampler, brought up to date when it is due, and the teacher's pool."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from research.cells.seeding import stable_seed
from research.sampling.interface import Sampler, SamplingParams
from research.training.policy import PolicyConfig
from research.training.rollouts import Group, Prompt, Rollout, TeacherPool


@dataclass
class Drawing:
    """Draws groups for a policy that is trained along; knows at which step the sampler last took its weights."""

    prompts: Sequence[Prompt]
    sampler: Sampler
    teacher: TeacherPool | None
    tokenizer: Any
    config: PolicyConfig
    last_sync: int = 0
    foreign: bool = True  # the sampler may hold weights that are not the policy's of any step

    def due(self, step: int) -> bool:
        """Whether drawing after `step` optimizer steps syncs first, or goes on with older weights on purpose."""
        return self.foreign or step - self.last_sync >= self.config.sync_every

    def sync_if_due(self, policy: nn.Module, step: int) -> dict[str, float]:
        """Sync when it is due; the sync's seconds, its proof's, and the probe's gap in nats, or nothing."""
        if not self.due(step):
            return {}
        start = time.perf_counter()
        receipt = self.sampler.sync(policy)
        self.foreign, self.last_sync = False, step
        proving = time.perf_counter() - start - receipt.seconds
        return {
            "sync/seconds": receipt.seconds, "sync/proof_seconds": proving, "sync/probe_gap": receipt.probe_gap,
        }  # fmt: skip

    def groups(self, rows: Sequence[int], first: int, step: int) -> tuple[list[Group], float]:
        """A group for each of these prompts, by number, and the seconds of sampling.

        first: the place in the whole step of the first of them. A draw depends on its place and prompt, so several
        processes draw together what one would.
        """
        config = self.config
        seed = stable_seed(config.seed, "rollouts", step)
        prompts = [self.prompts[row] for row in rows]
        taught = [self._teach(prompt, stable_seed(seed, place)) for place, prompt in enumerate(prompts, first)]
        params = SamplingParams(
            temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens, seed=seed,
            stop_token_ids=config.stop_token_ids,
        )  # fmt: skip
        start = time.perf_counter()
        drawn = self.sampler.generate([list(prompt.token_ids) for prompt in prompts], config.group_size, params)
        seconds = time.perf_counter() - start
        groups = []
        for row, prompt, teacher, completions in zip(rows, prompts, taught, drawn, strict=True):
            texts = self.tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
            students = [
                Rollout(c.token_ids, c.logprobs, text, c.finish_reason)
                for c, text in zip(completions, texts, strict=True)
            ]
            groups.append(Group(row, prompt, [*teacher, *students[: config.group_size - len(teacher)]]))
        return groups, seconds

    def _teach(self, prompt: Prompt, seed: int) -> list[Rollout]:
        pool = self.teacher
        return [] if pool is None else pool.draw(prompt, round(pool.fraction * self.config.group_size), seed)
