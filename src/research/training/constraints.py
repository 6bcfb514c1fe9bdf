"""Which part of a gradient may pass: projections of the accumulated gradient, once per optimizer step, before clipping.

A module's gradient g (P numbers, flattened) meets its directions V (K rows, unit length, orthonormal when they come
from an SVD), oriented so that a positive coefficient c = V g means that descending along g moves toward the concept:

    c_used  = relu(c)   one_sided       only what points toward the concept
              c         no_gate         both senses
              2 c       reverse         reflected instead of removed
    removed = overshoot * c_used V      g' = g - removed, rescaled to |g| when the magnitude is restored

`measure_only` leaves gradients alone; `erase` writes g'; `route` writes g' and hands `removed` to the module's
quarantine knob, which evaluation ablates. Identities: one_sided with orthonormal V and overshoot 1 leaves cos_out =
0; no_gate leaves V g' = 0; reverse leaves V g' = -c. For one direction, cos_align is <g, v>/|g| and one_sided is the
single-vector form "g' = g - cos |g| v if cos > 0".

A random direction is not expected at zero: E[cos_in^2] = K / (2 P) for isotropic g.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from research.errors import ConfigurationError

KINDS = ("none", "measure_only", "erase", "route")
GATES = ("one_sided", "no_gate", "reverse")
FIRED = 1e-6  # cos_in above this counts as a module whose gradient pointed toward the concept


@dataclass
class Knob:
    """One trainable tensor of one adapted module, and the quarantine that may take what is routed away from it."""

    name: str
    parameter: nn.Parameter
    quarantine: nn.Parameter | None = None


class Projected(NamedTuple):
    """What became of M gradients. Alignments are cosines, (M,), left on the device: reading them waits for it."""

    kept: list[torch.Tensor]
    removed: list[torch.Tensor]
    cos_align_M: torch.Tensor
    cos_in_M: torch.Tensor
    cos_out_M: torch.Tensor


def project(
    gradients: Sequence[torch.Tensor],
    directions: Sequence[torch.Tensor],
    gate: str = "one_sided",
    overshoot: float = 1.0,
    restore_magnitude: bool = False,
) -> Projected:
    """Remove from each gradient (P,) what points along the rows of its directions (K, P); float32 inside.

    All modules together, since a kernel for each number of each module would cost more than the numbers do.
    cos_align: signed cosine of g with the rows' normalised sum. cos_in, cos_out: |relu(V g)| / |g| before and after.
    """
    gs, Vs = [g.float() for g in gradients], [V.float() for V in directions]
    norm_M, c_MK = norms_of(gs), _coefficients(Vs, gs)
    used_MK = overshoot * {"one_sided": c_MK.relu(), "no_gate": c_MK, "reverse": 2 * c_MK}[gate]
    # narrow, which is what slicing does, also works on the tests' tensors without numbers
    removed = [used_K.narrow(0, 0, len(V)).to(V.device) @ V for used_K, V in zip(used_MK, Vs, strict=True)]
    kept = list(torch._foreach_sub(gs, removed))
    if restore_magnitude:
        left_M = norms_of(kept)
        factor_M = torch.where(left_M > 1e-8 * norm_M, norm_M / left_M, 1.0)
        kept = [k * factor.to(k.device) for k, factor in zip(kept, factor_M, strict=True)]
    return Projected(
        [k.to(g.dtype) for k, g in zip(kept, gradients, strict=True)],
        [r.to(g.dtype) for r, g in zip(removed, gradients, strict=True)],
        *_alignment(c_MK, norm_M, Vs),
        _ratio(_coefficients(Vs, kept).relu().norm(dim=1), norms_of(kept)),
    )


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine of two vectors, a scalar; 0 when one is zero."""
    return _ratio(a @ b, a.norm() * b.norm())


def _coefficients(Vs: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """V v of each module, (M, K) with the largest K, zero where a module has fewer directions."""
    device = vectors[0].device  # of all of them but in a model that is spread over several
    return pad_sequence([(V @ v).to(device) for V, v in zip(Vs, vectors, strict=True)], batch_first=True)


def _alignment(
    c_MK: torch.Tensor, norm_M: torch.Tensor, Vs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos_align and cos_in of vectors from their coefficients and norms."""
    central_M = norms_of([V.sum(0) for V in Vs])
    return _ratio(c_MK.sum(1), norm_M * central_M), _ratio(c_MK.relu().norm(dim=1), norm_M)


def norms_of(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Euclidean norms (M,) on the first one's device, with one wait for it."""
    return torch.stack([norm.to(vectors[0].device) for norm in torch._foreach_norm(vectors)])


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """part / whole; 0 where whole is 0."""
    return torch.where(whole > 0, part / whole, 0.0)


def _means(**columns: torch.Tensor) -> dict[str, float]:
    """Mean of each column, with one wait for the device."""
    return dict(zip(columns, torch.stack(list(columns.values())).mean(1).tolist(), strict=True))


@dataclass
class Constraint:
    """A projection applied to every knob that has directions; the others pass untouched.

    directions: knob name -> (K, P), P = the knob's number of elements, on any device. They may be replaced, not edited,
    during training.
    """

    kind: str = "none"
    gate: str = "one_sided"
    overshoot: float = 1.0
    restore_magnitude: bool = False
    directions: Mapping[str, torch.Tensor] | None = None
    _placed: dict[tuple[str, torch.device], torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _placed_from: Mapping[str, torch.Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value, allowed in (("kind", self.kind, KINDS), ("gate", self.gate, GATES)):
            if value not in allowed:
                raise ConfigurationError(f"constraint {name}={value!r} is not one of {', '.join(allowed)}.")

    def check(self, knobs: list[Knob]) -> None:
        """Raise ConfigurationError for directions that do not fit the knobs, or a route without a quarantine."""
        if self.kind == "none":
            return
        by_name = {knob.name: knob for knob in knobs}
        if not self.directions:
            raise ConfigurationError(f"constraint={self.kind} needs directions; none were given.")
        for name, V in self.directions.items():
            if name not in by_name:
                raise ConfigurationError(
                    f"Directions for {name!r}, but the policy has no such knob: {sorted(by_name)[:3]}..."
                )
            if V.shape[1] != by_name[name].parameter.numel():
                raise ConfigurationError(
                    f"Directions for {name!r} have {V.shape[1]} entries, the knob has "
                    f"{by_name[name].parameter.numel()}."
                )
        if self.kind == "route" and any(by_name[name].quarantine is None for name in self.directions):
            raise ConfigurationError(
                "constraint=route parks gradients in a quarantine knob, which only adapter=antipasto has."
            )

    def apply(self, knobs: list[Knob]) -> dict[str, float]:
        """Edit the knobs' gradients in place; the step's alignments, averaged over modules."""
        met: list[tuple[Knob, torch.Tensor, torch.Tensor]] = []
        for knob in knobs:
            gradient = knob.parameter.grad
            if knob.quarantine is not None:
                knob.quarantine.grad = (
                    None  # autograd gives both knobs the same gradient; only the removed part may enter
                )
            if gradient is not None and self.kind != "none" and knob.name in (self.directions or {}):
                met.append((knob, gradient, self._at(gradient.device, knob.name)))
        if not met:
            return {}
        found = project(
            [gradient.flatten() for _, gradient, _ in met], [V for _, _, V in met],
            self.gate, self.overshoot, self.restore_magnitude,
        )  # fmt: skip
        for (knob, gradient, _), kept_P, removed_P in zip(met, found.kept, found.removed, strict=True):
            if self.kind in ("erase", "route"):
                gradient.copy_(kept_P.view_as(gradient))
            if self.kind == "route":
                assert knob.quarantine is not None, "checked in check()"
                knob.quarantine.grad = removed_P.view_as(knob.quarantine).clone()
        # cos_out is of the gradient that goes on to the optimizer, which measure_only leaves as it came.
        out_M = found.cos_in_M if self.kind == "measure_only" else found.cos_out_M
        fired_M = (found.cos_in_M > FIRED).float()
        return _means(cos_align=found.cos_align_M, cos_in=found.cos_in_M, cos_out=out_M, fraction_fired=fired_M)

    def alignment(self, vectors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, float]:
        """cos_align and cos_in of any per-knob vectors (a gradient's parts, minus an update), under `prefix`."""
        names = [name for name in self.directions or {} if name in vectors]
        if not names:
            return {}
        vs = [vectors[name].flatten().float() for name in names]
        Vs = [self._at(v.device, name) for name, v in zip(names, vs, strict=True)]
        align_M, in_M = _alignment(_coefficients(Vs, vs), norms_of(vs), Vs)
        return _means(**{f"{prefix}cos_align": align_M, f"{prefix}cos_in": in_M})

    def _at(self, device: torch.device, name: str) -> torch.Tensor:
        """A knob's directions, float32, where its numbers are: brought there once, not in every step."""
        assert self.directions is not None
        if self._placed_from is not self.directions:
            self._placed_from, self._placed = self.directions, {}
        if (name, device) not in self._placed:
            self._placed[name, device] = self.directions[name].to(device, torch.float32)
        return self._placed[name, device]


def knobs(policy: nn.Module) -> list[Knob]:
    """The trainable tensors of an adapted policy: dS (with its quarantine) of AntiPaSTO, A and B of LoRA, by name."""
    from research.models.antipasto import layers

    found = []
    quarantined = set()
    for name, layer in layers(policy).items():
        for adapter in layer.active_adapters:
            found.append(Knob(name, layer.lora_dS[adapter], layer.lora_dS_hack[adapter]))
            quarantined |= {id(layer.lora_dS[adapter]), id(layer.lora_dS_hack[adapter])}
    found += [
        Knob(name, parameter)
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and id(parameter) not in quarantined
    ]
    return found
