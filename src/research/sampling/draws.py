"""Drawing tokens: one uniform number a token, from a stream that belongs to the completion.

The stream depends on the seed, the prompt's tokens, how many equal prompts came before it, and the sample's index; not
on the batch in which it is drawn, nor on its order.

Legend: S rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy
import torch

_CANDIDATES = (
    64  # tokens looked at first when only the nucleus counts; the whole row is sorted where that is not enough
)


def uniforms(seed: int, prompt: Sequence[int], occurrence: int, sample: int, count: int) -> numpy.ndarray:
    """`count` numbers in [0, 1) of a completion's own counter-based stream (Philox)."""
    content = f"{seed}|{occurrence}|{sample}|{','.join(map(str, prompt))}".encode()
    key = numpy.frombuffer(hashlib.sha256(content).digest()[:16], dtype=numpy.uint64)
    return numpy.random.Generator(numpy.random.Philox(key=key)).random(count)


def draw(
    logits_SV: torch.Tensor, uniform_S: torch.Tensor, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (S,) and the natural log of their probability under the untempered, untruncated distribution (S,).

    temperature 0 takes the likeliest token. top_p keeps the smallest set of likeliest tokens whose mass reaches it
    (Holtzman et al. 2020, arXiv:1904.09751), after tempering.
    """
    logits_SV = logits_SV.float()
    if temperature == 0:
        ids_S = logits_SV.argmax(-1)
    elif top_p < 1:
        ids_S = _from_nucleus((logits_SV / temperature).softmax(-1), uniform_S, top_p)
    else:
        ids_S = _from_all((logits_SV / temperature).softmax(-1), uniform_S)
    chosen_S = logits_SV.gather(-1, ids_S[:, None])[:, 0]
    return ids_S, chosen_S - logits_SV.logsumexp(-1)


def _from_all(probabilities_SV: torch.Tensor, uniform_S: torch.Tensor) -> torch.Tensor:
    cumulative_SV = probabilities_SV.double().cumsum(-1)
    return _invert(cumulative_SV, uniform_S * cumulative_SV[:, -1])


def _from_nucleus(probabilities_SV: torch.Tensor, uniform_S: torch.Tensor, top_p: float) -> torch.Tensor:
    few = min(_CANDIDATES, probabilities_SV.shape[1])
    ids_S, enough_S = _from_candidates(*probabilities_SV.topk(few), uniform_S, top_p)
    if not bool(enough_S.all()):
        rows = (~enough_S).nonzero()[:, 0]
        sorted_all = probabilities_SV[rows].sort(dim=-1, descending=True, stable=True)
        ids_S[rows] = _from_candidates(*sorted_all, uniform_S[rows], top_p)[0]
    return ids_S


def _from_candidates(
    likeliest: torch.Tensor, ids: torch.Tensor, uniform_S: torch.Tensor, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw among descending probabilities; the second result says for which rows these held the whole nucleus."""
    cumulative = likeliest.double().cumsum(-1)
    inside = cumulative - likeliest < top_p  # the token that crosses top_p belongs to the nucleus
    mass_S = torch.where(inside, likeliest.double(), 0).sum(-1)
    chosen = _invert(cumulative, uniform_S * mass_S)
    return ids.gather(-1, chosen[:, None])[:, 0], cumulative[:, -1] >= top_p


def _invert(cumulative: torch.Tensor, height_S: torch.Tensor) -> torch.Tensor:
    """The first position whose cumulative mass exceeds the height: never one of mass zero."""
    return torch.searchsorted(cumulative, height_S[:, None], right=True)[:, 0].clamp_(max=cumulative.shape[1] - 1)
