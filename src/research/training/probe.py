"""What each step measures on a few of its fresh rollouts: the gap to the sampler, and the drift from the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from peft import PeftModel
from torch import nn

from research.training.auxiliary import token_logprobs
from research.training.rollouts import Group

ELEMENTS, ON_GPU = 1 << 26, 1 << 30  # logits at once, each in the model's dtype


def probe(
    model: nn.Module,
    groups: Sequence[Group],
    n_rows: int,
    autocast: Callable[[], AbstractContextManager],
    reference: Callable[[], AbstractContextManager],
) -> dict[str, float]:
    """Gap to the sampler (mean and largest) and KL drift from the base (k3), untempered, in nats a token.

    At most `n_rows` rollouts are looked at, the first of every group before the second; a teacher's are left out.
    reference: a block within which the model is the policy without its adapter. Empty without a rollout to look at.
    Tensor shapes: B rows, T tokens.
    """
    ranked = [(j, i) for i, group in enumerate(groups) for j, r in enumerate(group.rollouts) if not r.teacher]
    chosen = [(groups[i], groups[i].rollouts[j]) for j, i in sorted(ranked)[:n_rows]]
    if not chosen:
        return {}
    gaps, kls = [], []
    width = max(len(r.token_ids) for _, r in chosen) + 1
    held = ON_GPU if next(model.parameters()).is_cuda else ELEMENTS
    rows = max(1, held // (width * model.config.get_text_config().vocab_size))  # type: ignore[union-attr, operator]
    for start in range(0, len(chosen), rows):
        part = chosen[start : start + rows]
        prompts, completions = [g.prompt.token_ids for g, _ in part], [r.token_ids for _, r in part]
        with torch.no_grad(), autocast():
            logps_BT, mask_BT = token_logprobs(model, prompts, completions)
            sampled_BT = torch.zeros(logps_BT.shape)
            for row, (_, rollout) in enumerate(part):
                sampled_BT[row, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
            gaps.append((logps_BT - sampled_BT.to(logps_BT)).abs()[mask_BT.bool()])
            if isinstance(model, PeftModel):
                with reference():
                    log_ratio_BT = token_logprobs(model, prompts, completions)[0] - logps_BT
                kls.append((log_ratio_BT.exp() - log_ratio_BT - 1)[mask_BT.bool()])
    gap = torch.cat(gaps)
    found = {"sampler_gap": float(gap.mean()), "sampler_gap/max": float(gap.max())}
    return found | ({"kl_drift": float(torch.cat(kls).mean())} if kls else {})
