"""Shared prompts on a GPU: log-probs and LoRA gradients are those of separate rows, with grouped heads and ragged lengths."""

from __future__ import annotations

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from gpu.policies import factors, make_policy, save_model
from research.training import shared_prompts

pytestmark = pytest.mark.gpu
WIDTH = 50


def rows(groups: int, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups of `each` rows; prompts of 70 to 85 tokens, left-padded, completions of 20 to 50, right-padded."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 2000, (groups * each, 90 + WIDTH), generator=generator)
    seen = torch.ones_like(ids)
    for row in range(groups * each):
        group = row // each
        ids[row, :90] = ids[group * each, :90]
        seen[row, : 20 - 5 * (group % 5)] = 0
        seen[row, 90 + WIDTH - (row * 7) % 31 :] = 0
    return (ids * seen).cuda(), seen.cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [slice(None), [0, 5, 1, 9, 12, 2]], ids=["groups", "mixed"])
def test_scores_and_gradients(tmp_path, dtype, order):
    ids, seen = (part[order] for part in rows(groups=4, each=4))
    policy = make_policy(save_model(tmp_path / "model")).to(dtype)
    for parameter in factors(policy):
        parameter.data = parameter.data.float()
    plain = policy.get_base_model()
    add_fused_lm_head(plain, outputs=("log_probs", "entropy"))
    weights = torch.randn(len(ids), WIDTH, generator=torch.Generator().manual_seed(1)).cuda()
    scored = seen[:, -WIDTH:].bool()

    def separate() -> torch.Tensor:
        labels = ids.masked_fill(seen == 0, -100)
        labels[:, :-WIDTH] = -100
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        found = policy(input_ids=ids, attention_mask=seen, position_ids=positions, labels=labels, fused_lm_head=True)
        return found.log_probs[:, -WIDTH:].where(scored, 0.0)

    def together() -> torch.Tensor:
        plain.set_attn_implementation(shared_prompts.NAME)
        return shared_prompts.score(policy, ids, seen, WIDTH, len(ids))[0]

    found = []
    for score in (separate, together):
        policy.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logps = score()
        (logps * weights).sum().backward()
        found.append((logps.detach(), torch.cat([p.grad.flatten() for p in factors(policy)])))
    (logps, gradient), (ours, our_gradient) = found
    worst, off = float((logps - ours).abs().max()), float((our_gradient - gradient).norm() / gradient.norm())
    print(f"{dtype}: {worst:.2e} nats apart at most, gradients by {off:.2e} of their norm")
    assert worst < (1e-4 if dtype == torch.float32 else 0.1)
    assert off < (1e-3 if dtype == torch.float32 else 0.05)
