"""Hack directions for the knobs of a policy, from contrastive pairs, in both published designs.

gradient     Per module, the SVD of paired differences D = g(hack) - g(clean) of mean NLL gradients; the top k
             right singular vectors, oriented by the pairs' majority vote. Descending along +v lowers NLL(hack)
             relative to NLL(clean). Mean NLL divides by length while the live loss does not, which favours short
             hacks: a bias of the published method.
activation   v = mean difference of last-token hidden states (hack - clean) over a band of layers. A writer to the
             residual stream (o_proj, down_proj, out_proj: W = U S Vh) meets it as U^T v on dS, cut to the top m axes
             and normalised; on LoRA as the output rows of B, v (x) e_j for each of its columns. The sign that descends
             toward the hack is the pairs' vote as well.

Controls: `random` orthonormal rows of the same number; `shuffled`, differences between gradients drawn from hack and
clean alike; `clean`, differences between clean completions of different prompts. (Flipping pairs' signs would not do:
D's right singular vectors stay the same.)

Shapes: N pairs, P numbers of a knob, K directions of a knob, d residual stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from research.errors import ConfigurationError
from research.models.antipasto import AntipastoLinear
from research.models.quantization import dense_weight
from research.models.svd import decompose
from research.tasks.reward_hack.arms import Arm
from research.tasks.reward_hack.hidden import band, band_states
from research.tasks.reward_hack.pairs import Pair
from research.tasks.reward_hack.settings import DirectionSettings
from research.training.auxiliary import token_logprobs
from research.training.constraints import Knob, cosine, knobs
from research.training.steps import evaluating

WRITERS = ("o_proj", "down_proj", "out_proj")
STEER_SHARE = 0.03  # a steering step of 1 changes each adapted weight by this share of its Frobenius norm

Directions = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Extraction:
    """directions: knob name -> (K, P), float32, on the CPU. report: how well they separate and steer."""

    directions: Directions
    report: dict[str, float]


def extract(
    policy: nn.Module,
    pairs: Sequence[Pair],
    arm: Arm,
    settings: DirectionSettings,
    seed: int,
    svd_cache: Path | None = None,
) -> Extraction:
    """Directions of the arm's design and control, validated on the held-out pairs (the last `settings.held_out`).

    Raises ConfigurationError when too few held-out pairs fall on the right side; controls are not held to that.
    """
    used, held = pairs[: settings.pairs], pairs[settings.pairs :]
    found = knobs(policy)
    hack, clean = (gradients(policy, found, pairs, side) for side in ("hack", "clean"))
    D_train = {
        name: contrast(hack[name][: len(used)], clean[name][: len(used)], arm.control, seed, name) for name in hack
    }
    if arm.control == "random":
        directions = random_directions(D_train, settings.k, seed)
    elif arm.design == "gradient":
        directions = from_gradients(D_train, settings.k, settings.axis_threshold, settings.noise_floor)
    else:
        states_hack, states_clean = (band_states(policy, pairs, side, settings.layers) for side in ("hack", "clean"))
        v_d = (states_hack - states_clean)[: len(used)].mean(0)
        directions = from_activations(policy, found, v_d, arm.m, D_train, svd_cache)
    if not directions:
        raise ConfigurationError("No direction is left; lower task.directions.noise_floor or axis_threshold.")
    report = {"modules": float(len(directions)), "rows": float(sum(len(V) for V in directions.values()))}
    if held:
        D_held = {name: hack[name][len(used) :] - clean[name][len(used) :] for name in directions}
        if arm.design == "activation":
            right = (states_hack - states_clean)[len(used) :] @ v_d > 0
        else:
            right = scores(D_held, directions) > 0
        report["separation"] = float(right.float().mean())
        if arm.control == "none" and report["separation"] < settings.separation:
            raise ConfigurationError(
                f"The {arm.design} direction separates {report['separation']:.0%} of {len(held)} held-out pairs, "
                "fewer than "
                f"task.directions.separation={settings.separation:.0%}: look at the layers, the pairs or the "
                "truncation first."
            )
        if settings.steer:
            before = margin(policy, held)
            with steered(policy, found, directions, settings.steer):
                report["steering_gain"] = margin(policy, held) - before
            if (
                arm.design == "activation" and arm.control == "none"
            ):  # added to the residual stream, as it was found there
                report["knob_gain"] = report["steering_gain"]
                with added(policy, settings.steer * v_d, settings.layers):
                    report["steering_gain"] = margin(policy, held) - before
    return Extraction(directions, report)


def gradients(policy: nn.Module, found: Sequence[Knob], pairs: Sequence[Pair], side: str) -> Directions:
    """Knob name -> (N, P), on the CPU: gradients of each completion's mean token NLL; ValueError if not finite."""
    rows: dict[str, list[torch.Tensor]] = {knob.name: [] for knob in found}
    parameters = [knob.parameter for knob in found]
    with evaluating(policy):
        for pair in pairs:
            logps_BT, _ = token_logprobs(policy, [pair.prompt], [getattr(pair, side)])
            for knob, gradient in zip(found, torch.autograd.grad(-logps_BT.mean(), parameters), strict=True):
                if not torch.isfinite(gradient).all():
                    raise ValueError(f"The {side} gradient of {knob.name} on problem {pair.problem_id} is not finite.")
                rows[knob.name].append(gradient.detach().float().flatten().cpu())
    return {name: torch.stack(values) for name, values in rows.items()}


def contrast(hack_NP: torch.Tensor, clean_NP: torch.Tensor, control: str, seed: int, name: str) -> torch.Tensor:
    """D, (N, P); the same rows are paired in every module."""
    generator = torch.Generator().manual_seed(seed)
    n = len(hack_NP)
    if control == "shuffled":
        both = torch.cat([hack_NP, clean_NP])[torch.randperm(2 * n, generator=generator)]
        return both[:n] - both[n:]
    if control == "clean":
        order = torch.randperm(n, generator=generator)
        return clean_NP[order] - clean_NP[order.roll(1)]
    return hack_NP - clean_NP


def from_gradients(D: Mapping[str, torch.Tensor], k: int, axis_threshold: float, noise_floor: float) -> Directions:
    """Top-k right singular vectors of each module's D, oriented, the weak ones dropped.

    axis_threshold: rows with S_i / S_0 below it go. noise_floor: of all modules' kept S together, the lowest share
    goes.
    """
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, D_NP in D.items():
        _, S, Vh = torch.linalg.svd(D_NP, full_matrices=False)
        strong = S[:k] >= max(axis_threshold * float(S[0]), 1e-12)
        if strong.any():
            found[name] = (S[:k][strong], oriented(Vh[:k][strong], D_NP))
    if not found:
        return {}
    floor = torch.quantile(torch.cat([S for S, _ in found.values()]), noise_floor) if noise_floor else torch.tensor(0.0)
    return {name: V[floor <= S] for name, (S, V) in found.items() if (floor <= S).any()}


def from_activations(
    policy: nn.Module, found: Sequence[Knob], v_d: torch.Tensor, m: int | None, D: Mapping[str, torch.Tensor],
    svd_cache: Path | None = None,
) -> Directions:  # fmt: skip
    """`v_d` in the coordinates of every writer's knob. m: axes of W's singular basis kept; None for all."""
    modules = dict(policy.named_modules())
    directions: Directions = {}
    for knob in found:
        parts = knob.name.split(".")
        leaf = next((part for part in parts if part in WRITERS), None)
        if leaf is None:
            continue
        layer = modules[".".join(parts[: parts.index(leaf) + 1])]
        if isinstance(layer, AntipastoLinear):
            coordinates = layer.U.float().cpu().T @ v_d
            if m is not None:
                coordinates[m:] = 0
            rows = coordinates.unsqueeze(0)
        else:
            v = v_d
            if m is not None:
                U = decompose(dense_weight(layer.get_base_layer()), m, svd_cache).U.float().cpu()
                v = U @ (U.T @ v_d)
            width = knob.parameter.shape[1]
            rows = torch.einsum("d,jk->jdk", v, torch.eye(width)).reshape(width, -1)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        directions[knob.name] = oriented(rows, D[knob.name])
    return directions


def random_directions(D: Mapping[str, torch.Tensor], k: int, seed: int) -> Directions:
    """k orthonormal rows a module, uniform (Haar), oriented by nothing."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, D_NP in sorted(D.items()):
        p = D_NP.shape[1]
        found[name] = torch.linalg.qr(torch.randn(p, min(k, p), generator=generator))[0].T.contiguous()
    return found


def oriented(V_KP: torch.Tensor, D_NP: torch.Tensor) -> torch.Tensor:
    """Rows turned so that most pairs' differences have a positive coefficient; a tie stays as it is."""
    votes_K = torch.sign(D_NP @ V_KP.T).sum(0)
    return V_KP * torch.where(votes_K < 0, -1.0, 1.0).unsqueeze(1)


def scores(D: Mapping[str, torch.Tensor], directions: Directions) -> torch.Tensor:
    """(N,): each pair's mean cosine, over modules, with the directions' normalised sum."""
    per_module = [
        torch.stack([cosine(row, V.sum(0)) for row in D[name]]) for name, V in directions.items() if len(D[name])
    ]
    return torch.stack(per_module).mean(0)


def overlap(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> float:
    """Mean |<v_new, v_old>| over rows of the same rank: 1 for the same directions, near 0 when they rotated off."""
    values = [
        (a * b).sum(1).abs()
        for name, V in new.items()
        if name in old
        for a, b in [(V[: len(old[name])], old[name][: len(V)])]
    ]
    return float(torch.cat(values).mean()) if values else 0.0


@torch.no_grad()
def margin(policy: nn.Module, pairs: Sequence[Pair]) -> float:
    """Mean over pairs of the mean token log-prob of the hack minus that of the clean completion, in nats."""
    total = 0.0
    with evaluating(policy):
        for pair in pairs:
            hack, _ = token_logprobs(policy, [pair.prompt], [pair.hack])
            clean, _ = token_logprobs(policy, [pair.prompt], [pair.clean])
            total += float(hack.mean() - clean.mean())
    return total / len(pairs)


@contextlib.contextmanager
def steered(policy: nn.Module, found: Sequence[Knob], directions: Directions, step: float) -> Iterator[None]:
    """Inside the block every knob has moved one step toward the hack; put back exactly afterwards."""
    modules = dict(policy.named_modules())
    kept = {knob.name: knob.parameter.detach().clone() for knob in found}
    with torch.no_grad():
        for knob in found:
            if knob.name in directions:
                central = directions[knob.name].sum(0).to(knob.parameter.device).view_as(knob.parameter)
                size = step * STEER_SHARE * _unit(knob, central, modules)
                knob.parameter.sub_(size * central)
    try:
        yield
    finally:
        with torch.no_grad():
            for knob in found:
                knob.parameter.copy_(kept[knob.name])


@contextlib.contextmanager
def added(policy: nn.Module, v_d: torch.Tensor, depth: Sequence[float]) -> Iterator[None]:
    """Inside the block `v_d` is added to the residual stream, an equal part after each layer of the band."""
    layers = policy.get_base_model().get_decoder().layers  # type: ignore[operator, union-attr]
    places = band(len(layers), depth)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden + (v_d / len(places)).to(hidden)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handles = [layers[place - 1].register_forward_hook(hook) for place in places]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unit(knob: Knob, change: torch.Tensor, modules: Mapping[str, Any]) -> float:
    """The factor at which `change` of the knob changes its weight matrix by that matrix's Frobenius norm."""
    name = knob.name.split(".lora_B.")[0]
    layer = modules[name]
    weight = float(dense_weight(layer.get_base_layer()).float().norm())
    if isinstance(layer, AntipastoLinear):
        return weight / max(float(change.norm()), 1e-12)
    adapter = layer.active_adapters[0]
    delta = change.float() @ layer.lora_A[adapter].weight.float() * layer.scaling[adapter]
    return weight / max(float(delta.norm()), 1e-12)
