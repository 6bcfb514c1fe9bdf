"""A GRPO step's gradient between its accumulation and the optimizer, and what the optimizer then did with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from research.training.auxiliary import AuxiliaryLoss
from research.training.constraints import Constraint, Knob, knobs, norms_of
from research.training.rollouts import Group
from research.training.steps import over_processes

QUARANTINE = "/quarantine"  # marks a quarantine knob among tensors by name


class Update:
    """One run's. Every method that returns numbers returns them for the step's line of metrics.jsonl, by name.

    teaching: whether some rollouts are a teacher's, whose part of the gradient is then measured apart. Raises
    ConfigurationError for a constraint that does not fit the policy's knobs.
    """

    def __init__(
        self, model: nn.Module, constraint: Constraint | None, auxiliary: Sequence[AuxiliaryLoss], teaching: bool
    ) -> None:
        self.model, self.constraint, self.auxiliary, self.teaching = model, constraint, auxiliary, teaching
        self.knobs = knobs(model)
        if constraint is not None:
            constraint.check(self.knobs)
        self._teacher: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}

    def gradients(self) -> dict[str, torch.Tensor]:
        """What has been accumulated so far, by knob."""
        return {k.name: k.parameter.grad.detach().clone() for k in self.knobs if k.parameter.grad is not None}

    def taught(self, before: dict[str, torch.Tensor]) -> None:
        """What was added since `before` came from a teacher's rows."""
        for name, gradient in self.gradients().items():
            part = gradient - before[name] if name in before else gradient
            self._teacher[name] = self._teacher.get(name, 0) + part

    def add_auxiliary(
        self,
        groups: Sequence[Group],
        autocast: Callable[[], AbstractContextManager],
        mean: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, float]:
        """The auxiliary losses' gradients go to the accumulated one; apart from DDP's hooks, hence `mean` over processes."""
        found: dict[str, float] = {}
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for loss in self.auxiliary:
            total = 0.0
            with autocast():
                for part in loss(self.model, groups):  # type: ignore[arg-type]
                    gradients = torch.autograd.grad(loss.weight * part, parameters, allow_unused=True)
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        if gradient is not None:
                            gradient = mean(gradient)
                            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                    total += float(part.detach())
            found |= over_processes({f"auxiliary/{loss.name}": total})
        return found

    def project(self) -> dict[str, float]:
        """The constraint edits the accumulated gradient; alignments before and after, the teacher's part apart."""
        found: dict[str, float] = {}
        if self.constraint is not None and self.teaching:
            taught = self._teacher
            student = {name: g - taught[name] if name in taught else g for name, g in self.gradients().items()}
            for prefix, part in (("student/", student), ("teacher/", taught)):
                found |= self.constraint.alignment(part, prefix)
        self._teacher = {}
        for knob in self.knobs:
            if knob.quarantine is not None and not knob.quarantine.requires_grad:
                knob.quarantine.grad = None
        if self.constraint is not None:
            found |= self.constraint.apply(self.knobs)
        self._before = {name: p.detach().clone() for name, p in self._tensors()}
        return found

    def moved(self) -> dict[str, float]:
        """Norm of what the optimizer did to each kind of knob, and whether it points where the projection forbade."""
        moved = {name: self._before[name] - tensor.detach() for name, tensor in self._tensors()}
        kinds = [kind_of(name, self.knobs) for name in moved]
        norms = norms_of(list(moved.values())).tolist()
        found = {
            f"update_norm/{kind}": math.hypot(*(n for n, k in zip(norms, kinds, strict=True) if k == kind))
            for kind in dict.fromkeys(kinds)
        }
        if self.constraint is not None:
            found |= self.constraint.alignment(moved, "update_")
        self._before = {}
        return found

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for knob in self.knobs:
            yield knob.name, knob.parameter
            if knob.quarantine is not None:
                yield knob.name + QUARANTINE, knob.quarantine


def kind_of(name: str, found: Sequence[Knob]) -> str:
    """What sort of knob a tensor is: dS, dS_hack, lora_A, lora_B or weights."""
    if name.endswith(QUARANTINE):
        return "dS_hack"
    if "lora_A" in name or "lora_B" in name:
        return "lora_A" if "lora_A" in name else "lora_B"
    return "dS" if any(knob.name == name and knob.quarantine is not None for knob in found) else "weights"
