"""MAUVE: how close generated text is to human text, by divergence frontiers in a quantised embedding space.

Pillutla et al. 2021 (arXiv 2102.01454); frontier integral and smoothing: Liu et al. 2021 (arXiv 2106.07898). Written
from the mathematics on numpy and scikit-learn. Letters: p is the human side, q the generated one.

Embeddings are cut into buckets by k-means (on both samples together, after L2 normalisation and PCA); with p and q the
two histograms over the buckets and r_w = w p + (1 - w) q, the frontier is the curve of

    ( exp(-c KL(q || r_w)), exp(-c KL(p || r_w)) ),   0 < w < 1,

and MAUVE the area under it: 1 for equal histograms, near 0 for disjoint ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The published evaluation leaves these as the reference implementation has them.
CURVE_POINTS = 25
CURVE_MARGIN = 1e-6
EXPLAINED_VARIANCE = 0.9
KMEANS_RESTARTS = 5
KMEANS_ITERATIONS = 500


@dataclass(frozen=True)
class Mauve:
    """mauve, mauve_star (smoothed): 0 to 1, higher is closer. frontier_integral (and smoothed): 0 to 1, lower is.

    buckets: how many were used. p_counts, q_counts: samples in each. curve: (points, 2), the frontier with its corners.
    """

    mauve: float
    mauve_star: float
    frontier_integral: float
    frontier_integral_star: float
    buckets: int
    p_counts: NDArray[np.int64]
    q_counts: NDArray[np.int64]
    curve: NDArray[np.float64]


def mauve(
    p_features: NDArray, q_features: NDArray, buckets: int | None = None, scaling: float = 5.0, seed: int = 25
) -> Mauve:
    """Compare two samples of embeddings, (n_p, d) and (n_q, d).

    buckets: clusters; None for a tenth of the smaller sample, at least 2. scaling: the c of the frontier. Raises
    ValueError for samples that are empty, of different width, not finite, or too few for the buckets.
    """
    for name, features in (("p_features", p_features), ("q_features", q_features)):
        if features.ndim != 2 or not len(features):
            raise ValueError(f"{name} must be (samples, dimensions) with at least one sample, not {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError(f"{name} holds {int((~np.isfinite(features)).sum())} values that are not finite")
    if p_features.shape[1] != q_features.shape[1]:
        raise ValueError(f"features differ in width: {p_features.shape[1]} and {q_features.shape[1]}")
    if buckets is None:
        buckets = max(2, round(min(len(p_features), len(q_features)) / 10))
    if not 2 <= buckets <= len(p_features) + len(q_features):
        raise ValueError(f"{buckets} buckets for {len(p_features)} + {len(q_features)} samples: choose 2 to their sum")
    labels = quantise(np.concatenate([q_features, p_features]).astype(np.float64), buckets, seed)
    q_labels, p_labels = labels[: len(q_features)], labels[len(q_features) :]
    return from_counts(np.bincount(p_labels, minlength=buckets), np.bincount(q_labels, minlength=buckets), scaling)


def from_counts(p_counts: NDArray, q_counts: NDArray, scaling: float = 5.0) -> Mauve:
    """MAUVE of two histograms of counts over the same buckets."""
    p, q = p_counts / p_counts.sum(), q_counts / q_counts.sum()
    p_star, q_star = _smooth(p_counts), _smooth(q_counts)
    curve = frontier(p, q, scaling)
    return Mauve(
        mauve=_area(curve),
        mauve_star=_area(frontier(p_star, q_star, scaling)),
        frontier_integral=frontier_integral(p, q),
        frontier_integral_star=frontier_integral(p_star, q_star),
        buckets=len(p_counts),
        p_counts=np.asarray(p_counts),
        q_counts=np.asarray(q_counts),
        curve=curve,
    )


def quantise(features: NDArray, buckets: int, seed: int) -> NDArray:
    """Cluster index of each row: L2 normalisation, PCA up to 0.9 of the variance, k-means."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    features = normalize(features)
    variance = features.var(axis=0).sum()
    if variance > 1e-12:  # else all rows are equal, and every projection is empty
        features = PCA(n_components=EXPLAINED_VARIANCE, svd_solver="full").fit_transform(features)
    distinct = len(np.unique(features, axis=0))
    clusters = min(buckets, distinct)  # equal texts share a bucket; the ones left over stay empty
    # Random starts, like the reference: k-means++ finds outlying clusters, and moves MAUVE by up to 3 of its spreads.
    kmeans = KMeans(clusters, init="random", n_init=KMEANS_RESTARTS, max_iter=KMEANS_ITERATIONS, random_state=seed)
    return kmeans.fit_predict(features).astype(np.int64)


def frontier(p: NDArray, q: NDArray, scaling: float = 5.0) -> NDArray:
    """The divergence curve of two histograms, corners (1, 0) and (0, 1) included: (CURVE_POINTS + 2, 2)."""
    points = [(1.0, 0.0)]
    for w in np.linspace(CURVE_MARGIN, 1 - CURVE_MARGIN, CURVE_POINTS):
        mixture = w * p + (1 - w) * q
        points.append((np.exp(-scaling * _kl(q, mixture)), np.exp(-scaling * _kl(p, mixture))))
    points.append((0.0, 1.0))
    return np.array(points)


def frontier_integral(p: NDArray, q: NDArray) -> float:
    """2 times the integral over w of w KL(p || r_w) + (1 - w) KL(q || r_w), in closed form: 0 equal, 1 disjoint."""
    both = (p > 0) & (q > 0) & (p != q)
    a, b = p[both], q[both]
    total = (p[p != q].sum() + q[p != q].sum()) / 2
    return float(total - (a * b / (a - b) * np.log(a / b)).sum())


def features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_tokens: int = 1024,
    batch_tokens: int = 16384,
) -> NDArray[np.float32]:
    """Final hidden state at each text's last token, (texts, hidden); any causal language model will do.

    Raises ValueError for a text without a token: an empty completion must be dropped, and counted, by the caller.
    """
    import torch

    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens] for text in texts]
    empty = [i for i, ids in enumerate(encoded) if not ids]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(texts)} texts are empty (the first: number {empty[0]}); drop them first"
        )
    body = getattr(model, model.base_model_prefix, model)  # without the head: no logits are made
    device = next(model.parameters()).device
    found: list[NDArray] = [np.empty(0)] * len(texts)
    was_training = model.training
    model.eval()
    for rows in _batches([len(ids) for ids in encoded], batch_tokens):
        width = max(len(encoded[i]) for i in rows)
        ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
        mask_BT = torch.zeros(len(rows), width, dtype=torch.long)
        for row, i in enumerate(rows):
            ids_BT[row, : len(encoded[i])] = torch.tensor(encoded[i])
            mask_BT[row, : len(encoded[i])] = 1
        with torch.inference_mode():
            hidden_BTH = body(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).last_hidden_state
        last_BH = hidden_BTH[torch.arange(len(rows)), mask_BT.sum(1) - 1].float().cpu().numpy()
        for row, i in enumerate(rows):
            found[i] = last_BH[row]
    model.train(was_training)
    return np.stack(found).astype(np.float32)


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, each within `batch_tokens` after padding."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return [batch for batch in batches if batch]


def _kl(a: NDArray, b: NDArray) -> float:
    """KL(a || b) in nats, for b > 0 wherever a > 0."""
    some = a > 0
    return float((a[some] * np.log(a[some] / b[some])).sum())


def _area(curve: NDArray) -> float:
    """Area under the curve, whose points run from (1, 0) to (0, 1) in the order of w.

    The mean of the areas over both axes is this same number: x y is 0 at both ends, so they are equal.
    """
    return float(-np.trapezoid(curve[:, 1], curve[:, 0]))


def _smooth(counts: NDArray) -> NDArray:
    """Krichevsky-Trofimov: half a count added to every bucket."""
    return (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
