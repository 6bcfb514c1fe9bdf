"""Identities of the projection, and what a constraint does to real gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from research.errors import ConfigurationError
from research.training import constraints
from research.training.constraints import Constraint, Knob, cosine, project


def orthonormal(k: int, p: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(p, k, generator=torch.Generator().manual_seed(seed)))[0].T.contiguous()


def gradient(p: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(p, generator=torch.Generator().manual_seed(seed))


def one(g: torch.Tensor, V: torch.Tensor, *settings: Any, **more: Any) -> SimpleNamespace:
    """What becomes of one gradient."""
    found = project([g], [V], *settings, **more)
    cosines = dict(zip(("cos_align", "cos_in", "cos_out"), torch.cat(found[2:]).tolist(), strict=True))
    return SimpleNamespace(kept_P=found.kept[0], removed_P=found.removed[0], **cosines)


def test_one_direction_by_hand() -> None:
    # g = (3, 4), v = (1, 0): cos 0.6; erased (0, 4); magnitude restored (0, 5)
    g, V = torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0]])
    erased = one(g, V)
    assert erased.kept_P.tolist() == [0, 4] and erased.removed_P.tolist() == [3, 0]
    assert erased.cos_align == pytest.approx(0.6) and erased.cos_in == pytest.approx(0.6) and erased.cos_out == 0
    assert one(g, V, restore_magnitude=True).kept_P.tolist() == pytest.approx([0, 5])
    assert one(-g, V).kept_P.tolist() == [-3, -4]  # pointing away from the concept: left alone
    assert one(-g, V).cos_align == pytest.approx(-0.6) and one(-g, V).cos_in == 0
    assert one(g, V, overshoot=1.5).kept_P.tolist() == [-1.5, 4]


@pytest.mark.parametrize("seed", range(5))
def test_identities(seed: int) -> None:
    V, g = orthonormal(4, 32, seed), gradient(32, seed + 100)
    g /= g.norm()  # 1e-6 is then a few roundings in float32
    assert one(g, V).cos_out == pytest.approx(0, abs=1e-6)
    assert torch.allclose(V @ one(g, V, "no_gate").kept_P, torch.zeros(4), atol=1e-6)
    assert torch.allclose(V @ one(g, V, "reverse").kept_P, -(V @ g), atol=1e-6)
    for gate in ("one_sided", "no_gate", "reverse"):
        result = one(g, V, gate)
        assert torch.allclose(result.kept_P + result.removed_P, g, atol=1e-6)
    assert one(g, V, restore_magnitude=True).kept_P.norm() == pytest.approx(float(g.norm()), rel=1e-5)


def test_bf16_gradients_and_zero_gradients() -> None:
    V, g = orthonormal(4, 32), gradient(32).bfloat16()
    result = one(g, V)
    assert result.kept_P.dtype == torch.bfloat16 and result.cos_out < 1e-6
    zero = one(torch.zeros(32), V, restore_magnitude=True)
    assert zero.cos_in == zero.cos_out == zero.cos_align == 0 and not zero.kept_P.any()


def test_isotropic_null_of_the_positive_share() -> None:
    # E[|relu(V g)|^2 / |g|^2] = k / (2 p) for a random direction
    V = orthonormal(4, 64)
    shares = torch.tensor([one(gradient(64, s), V).cos_in ** 2 for s in range(4000)])
    assert float(shares.mean()) == pytest.approx(4 / 128, rel=0.05)


def test_modules_together_are_each_alone() -> None:
    sizes = [(1, 16), (3, 64), (2, 16)]
    gs, Vs = [gradient(p, i) for i, (_, p) in enumerate(sizes)], [orthonormal(*size, i) for i, size in enumerate(sizes)]
    together = project(gs, Vs, overshoot=1.3, restore_magnitude=True)
    for i, (g, V) in enumerate(zip(gs, Vs, strict=True)):
        alone = one(g, V, overshoot=1.3, restore_magnitude=True)
        assert torch.equal(together.kept[i], alone.kept_P) and torch.equal(together.removed[i], alone.removed_P)
        for name in ("cos_align", "cos_in", "cos_out"):
            assert float(getattr(together, name + "_M")[i]) == pytest.approx(getattr(alone, name), abs=1e-6)


def knob_with(g: torch.Tensor, quarantine: bool = True, name: str = "layer") -> Knob:
    knob = Knob(name, nn.Parameter(torch.zeros_like(g)), nn.Parameter(torch.zeros_like(g)) if quarantine else None)
    knob.parameter.grad = g.clone()
    if knob.quarantine is not None:
        knob.quarantine.grad = g.clone()  # autograd gives both the same
    return knob


@pytest.mark.parametrize("kind", ["none", "measure_only", "erase", "route"])
def test_what_each_kind_does_to_the_gradients(kind: str) -> None:
    V, g = orthonormal(2, 16), gradient(16)
    V = V * torch.sign(V @ g).unsqueeze(1)  # pointing toward the concept in both axes
    knob = knob_with(g)
    constraint = Constraint(kind, directions={"layer": V})
    constraint.check([knob])
    metrics = constraint.apply([knob])
    kept, quarantined = knob.parameter.grad, knob.quarantine.grad
    if kind in ("none", "measure_only"):
        assert torch.equal(kept, g) and quarantined is None
    else:
        assert torch.allclose(V @ kept, torch.zeros(2), atol=1e-6)
        assert (quarantined is None) == (kind == "erase")
    if kind == "route":
        assert torch.allclose(kept + quarantined, g, atol=1e-6)
    if kind == "none":
        assert metrics == {}
    else:
        assert metrics["fraction_fired"] == 1 and metrics["cos_in"] > 0.05
        assert metrics["cos_out"] == pytest.approx(metrics["cos_in"] if kind == "measure_only" else 0, abs=1e-6)


def test_modules_without_directions_pass_untouched() -> None:
    g = gradient(16)
    knob = knob_with(g, quarantine=False)
    assert Constraint("erase", directions={"other": orthonormal(2, 16)}).apply([knob]) == {}
    assert torch.equal(knob.parameter.grad, g)


def test_directions_come_from_the_cpu_and_gradients_from_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that have a device and no numbers; an operation across devices is refused as it is on a GPU."""
    monkeypatch.setattr(constraints, "_means", lambda **columns: dict.fromkeys(columns, 0.0))
    with FakeTensorMode():
        knobs = [knob_with(torch.empty(16, device="cuda"), name=name) for name in ("one", "two")]
        constraint = Constraint("measure_only", directions={knob.name: torch.empty(2, 16) for knob in knobs})
        assert constraint.apply(knobs) and constraint.alignment({"two": knobs[1].parameter.detach()}, "update_")
        brought = constraint._at(knobs[0].parameter.device, "one")
        assert brought is constraint._at(knobs[0].parameter.device, "one"), "brought once, not in every step"
        constraint.directions = {"one": torch.empty(3, 16)}
        assert constraint.apply(knobs) and len(constraint._at(knobs[0].parameter.device, "one")) == 3


def test_directions_that_do_not_fit_are_refused() -> None:
    knob = knob_with(gradient(16), quarantine=False)
    with pytest.raises(ConfigurationError, match="needs directions"):
        Constraint("erase").check([knob])
    with pytest.raises(ConfigurationError, match="no such knob"):
        Constraint("erase", directions={"other": orthonormal(2, 16)}).check([knob])
    with pytest.raises(ConfigurationError, match="12 entries"):
        Constraint("erase", directions={"layer": orthonormal(2, 12)}).check([knob])
    with pytest.raises(ConfigurationError, match="antipasto"):
        Constraint("route", directions={"layer": orthonormal(2, 16)}).check([knob])
    with pytest.raises(ConfigurationError, match="gate"):
        Constraint("erase", gate="both")


def test_adam_undoes_part_of_a_projection() -> None:
    """Per-coordinate normalisation turns a gradient orthogonal to V into an update that is not: why updates are
    logged."""
    V, g = orthonormal(1, 16), gradient(16)
    knob = knob_with(g * torch.logspace(-2, 2, 16))
    optimizer = torch.optim.AdamW([knob.parameter], lr=1e-2, weight_decay=0.0)
    constraint = Constraint("erase", gate="no_gate", directions={"layer": V})
    constraint.apply([knob])
    assert abs(cosine(knob.parameter.grad, V[0])) < 1e-6
    optimizer.step()
    update = constraint.alignment({"layer": -knob.parameter.detach()}, "update_")
    assert abs(update["update_cos_align"]) > 0.01
