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
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import torch
from torch import nn

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
    """What became of one gradient; alignments are cosines, scalars left on the device: reading them waits for it."""

    kept_P: torch.Tensor
    removed_P: torch.Tensor
    cos_align: torch.Tensor
    cos_in: torch.Tensor
    cos_out: torch.Tensor


def project(
    g_P: torch.Tensor,
    V_KP: torch.Tensor,
    gate: str = "one_sided",
    overshoot: float = 1.0,
    restore_magnitude: bool = False,
) -> Projected:
    """Remove from `g_P` what points along the rows of `V_KP`; float32 inside, whatever comes in.

    cos_align: signed cosine of g with the rows' normalised sum. cos_in, cos_out: |relu(V g)| / |g| before and after.
    """
    g, V = g_P.float(), V_KP.float()
    norm = g.norm()
    c_K = V @ g
    used_K = {"one_sided": c_K.relu(), "no_gate": c_K, "reverse": 2 * c_K}[gate]
    removed = overshoot * (used_K @ V)
    kept = g - removed
    if restore_magnitude:
        left = kept.norm()
        kept = kept * torch.where(left > 1e-8 * norm, norm / left, 1.0)
    return Projected(
        kept.to(g_P.dtype),
        removed.to(g_P.dtype),
        cosine(g, V.sum(0)),
        positive_share(V, g),
        positive_share(V, kept),
    )


def positive_share(V_KP: torch.Tensor, g_P: torch.Tensor) -> torch.Tensor:
    """|relu(V g)| / |g|, a scalar; 0 for a zero gradient."""
    return _ratio((V_KP @ g_P).relu().norm(), g_P.norm())


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine of two vectors, a scalar; 0 when one is zero."""
    return _ratio(a @ b, a.norm() * b.norm())


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return torch.where(whole > 0, part / whole, 0.0)


def _columns(rows: Sequence[Sequence[torch.Tensor]]) -> list[tuple[float, ...]]:
    """Rows of scalars as columns of numbers, with one wait for the device."""
    return list(zip(*torch.stack([torch.stack(tuple(row)) for row in rows]).tolist(), strict=True))


@dataclass
class Constraint:
    """A projection applied to every knob that has directions; the others pass untouched.

    directions: knob name -> (K, P), P = the knob's number of elements. They may be replaced during training.
    """

    kind: str = "none"
    gate: str = "one_sided"
    overshoot: float = 1.0
    restore_magnitude: bool = False
    directions: Mapping[str, torch.Tensor] | None = None

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
        seen: list[Projected] = []
        for knob in knobs:
            gradient = knob.parameter.grad
            if knob.quarantine is not None:
                knob.quarantine.grad = (
                    None  # autograd gives both knobs the same gradient; only the removed part may enter
                )
            V = self._of(knob)
            if gradient is None or V is None:
                continue
            result = project(gradient.flatten(), V, self.gate, self.overshoot, self.restore_magnitude)
            seen.append(result)
            if self.kind in ("erase", "route"):
                gradient.copy_(result.kept_P.view_as(gradient))
            if self.kind == "route":
                assert knob.quarantine is not None, "checked in check()"
                knob.quarantine.grad = result.removed_P.view_as(knob.quarantine).clone()
        if not seen:
            return {}
        align, cos_in, cos_out = _columns([result[2:] for result in seen])
        # cos_out is of the gradient that goes on to the optimizer, which measure_only leaves as it came.
        return {
            "cos_align": fmean(align),
            "cos_in": fmean(cos_in),
            "cos_out": fmean(cos_in if self.kind == "measure_only" else cos_out),
            "fraction_fired": fmean(value > FIRED for value in cos_in),
        }

    def alignment(self, vectors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, float]:
        """cos_align and cos_in of any per-knob vectors (a gradient's parts, minus an update), under `prefix`."""
        pairs = [
            (V.float(), vectors[name].flatten().float())
            for name, V in (self.directions or {}).items()
            if name in vectors
        ]
        if not pairs:
            return {}
        align, cos_in = _columns([(cosine(v, V.sum(0)), positive_share(V, v)) for V, v in pairs])
        return {f"{prefix}cos_align": fmean(align), f"{prefix}cos_in": fmean(cos_in)}

    def _of(self, knob: Knob) -> torch.Tensor | None:
        V = (self.directions or {}).get(knob.name) if self.kind != "none" else None
        return V if V is None else V.to(knob.parameter.device)


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
