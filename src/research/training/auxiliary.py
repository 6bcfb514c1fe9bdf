"""Losses added to the policy gradient, once per optimizer step.

An auxiliary loss yields its terms part by part, so that memory stays bounded; their sum is the loss. The k3 KL
penalty is not here: it shares the policy's forward pass and is the trainer's `kl_beta`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from research.training.rollouts import Group


class AuxiliaryLoss(Protocol):
    """name: its key in metrics.jsonl. weight: its coefficient. Called, it yields parts that add up to the loss."""

    name: str
    weight: float

    def __call__(self, policy: PreTrainedModel, groups: Sequence[Group]) -> Iterator[torch.Tensor]: ...


class BehaviourCloning:
    """Mean over the step's prompts of the mean token negative log-likelihood of a given target reply.

    target: from a prompt to the target's token ids, end of turn included. rows: sequences a forward pass.
    """

    def __init__(
        self, target: Callable[[Group], Sequence[int]], weight: float, rows: int = 8, name: str = "behaviour_cloning"
    ) -> None:
        self.target, self.weight, self.rows, self.name = target, weight, rows, name

    def __call__(self, policy: PreTrainedModel, groups: Sequence[Group]) -> Iterator[torch.Tensor]:
        for start in range(0, len(groups), self.rows):
            part = groups[start : start + self.rows]
            targets = [list(self.target(group)) for group in part]
            logps_BT, mask_BT = token_logprobs(policy, [group.prompt.token_ids for group in part], targets)
            yield -((logps_BT * mask_BT).sum(1) / mask_BT.sum(1)).sum() / len(groups)


def token_logprobs(
    policy: PreTrainedModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Natural-log probabilities of completion tokens given their prompts, untempered, float32.

    Returns (logps_BT, mask_BT), T the longest completion, padded on the right; differentiable unless under no_grad.
    Shapes: B rows, T completion tokens.
    """
    device = next(policy.parameters()).device
    longest = max(map(len, prompts))
    T = max(map(len, completions))
    ids_BL = torch.zeros(len(prompts), longest + T, dtype=torch.long)
    attention_BL = torch.zeros_like(ids_BL)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start = longest - len(prompt)
        end = longest + len(completion)
        ids_BL[row, start:end] = torch.tensor([*prompt, *completion])
        attention_BL[row, start:end] = 1
    positions_BL = (attention_BL.cumsum(1) - 1).clamp(min=0)
    ids_BL, attention_BL, positions_BL = (tensor.to(device) for tensor in (ids_BL, attention_BL, positions_BL))
    output = policy(input_ids=ids_BL, attention_mask=attention_BL, position_ids=positions_BL, logits_to_keep=T + 1)
    of_each = zip(output.logits[:, :-1], ids_BL[:, longest:, None], strict=True)  # float32 of one row at a time
    logps_BT = torch.stack([logits_TV.float().log_softmax(-1).gather(1, ids_T1)[:, 0] for logits_TV, ids_T1 in of_each])
    return logps_BT, attention_BL[:, longest:]
