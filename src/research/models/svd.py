"""Singular value decompositions of weight matrices, kept on disk under the hash of the weight they belong to."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from research.errors import ConfigurationError

# Largest relative error of a cached decomposition on a probe vector; bf16 factors round at 2^-8 an entry.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Factors:
    """W = U diag(S) Vh, thin or truncated. U (d_out, r), Vh (r, d_in) in W's dtype; S (r,) float32, descending."""

    U: torch.Tensor
    S: torch.Tensor
    Vh: torch.Tensor


def decompose(weight: torch.Tensor, rank: int | None = None, cache: Path | None = None) -> Factors:
    """The leading `rank` singular triplets of `weight` (all when None), computed in float32, signs fixed.

    cache: a folder; the file's name is the SHA-256 of the weight's bytes and its shape, so another weight never meets
    it. Raises ConfigurationError for a cached file that does not fit the weight it is named after.
    """
    r = min(weight.shape) if rank is None else min(rank, *weight.shape)
    if cache is None:
        return _compute(weight, r)
    path = cache / f"{weight_hash(weight)}_{r}.safetensors"
    if not path.exists():
        factors = _compute(weight, r)
        _save(path, factors)
        return factors
    return _load(path, weight, r)


def weight_hash(weight: torch.Tensor) -> str:
    """SHA-256 (hex) over dtype, shape and bytes; bfloat16 is read as bytes, since numpy lacks it."""
    data = weight.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _compute(weight: torch.Tensor, r: int) -> Factors:
    U, S, Vh = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    U, S, Vh = U[:, :r], S[:r], Vh[:r]
    # Singular vectors are defined up to a sign; the largest entry of each left one is made positive.
    sign = torch.sign(U.gather(0, U.abs().argmax(0, keepdim=True)))
    return Factors(
        (U * sign).to(weight.dtype).contiguous(), S.contiguous(), (Vh * sign.T).to(weight.dtype).contiguous()
    )


def _save(path: Path, factors: Factors) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({"U": factors.U.cpu(), "S": factors.S.cpu(), "Vh": factors.Vh.cpu()}, partial)
    os.replace(partial, path)


def _load(path: Path, weight: torch.Tensor, r: int) -> Factors:
    from safetensors.torch import load_file

    try:
        held = {name: tensor.to(weight.device) for name, tensor in load_file(path).items()}
        factors = Factors(**held)
        fits = factors.U.shape == (weight.shape[0], r) and factors.Vh.shape == (r, weight.shape[1])
        error = _probe_error(weight, factors) if fits else float("inf")
    except Exception as problem:
        raise ConfigurationError(f"The cached decomposition {path} cannot be read ({problem}); delete it.") from problem
    if not error <= TOLERANCE.get(weight.dtype, 5e-2):
        raise ConfigurationError(
            f"The cached decomposition {path} does not belong to its weight (relative error {error:.2g}); delete it."
        )
    return factors


def _probe_error(weight: torch.Tensor, factors: Factors) -> float:
    """|U^T W x - S Vh x| / |S Vh x| for a fixed x: zero for the right factors, truncated or not."""
    x = torch.linspace(-1, 1, weight.shape[1], device=weight.device).cos()
    expected = factors.S * (factors.Vh.float() @ x)
    found = factors.U.float().T @ (weight.detach().float() @ x)
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))
