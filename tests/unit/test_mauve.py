"""MAUVE against values worked out by hand and against the reference implementation's recorded output."""

import importlib.util
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from research.scoring import mauve as m

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_equal_histograms_score_one():
    result = m.from_counts(np.array([3, 5, 2]), np.array([30, 50, 20]))
    assert result.mauve == pytest.approx(1.0, abs=1e-9) and result.frontier_integral == pytest.approx(0.0, abs=1e-12)


def test_disjoint_histograms_follow_the_direct_formula():
    result = m.from_counts(np.array([4, 0]), np.array([0, 7]), scaling=5)
    # r = (w, 1 - w), so KL(q || r) = -ln(1 - w) and KL(p || r) = -ln w: the curve is ((1 - w)^5, w^5).
    w = np.linspace(1e-6, 1 - 1e-6, 25)
    x, y = np.concatenate([[1], (1 - w) ** 5, [0]]), np.concatenate([[0], w**5, [1]])
    assert result.curve == pytest.approx(np.stack([x, y], 1))
    assert result.mauve == pytest.approx(-np.trapezoid(y, x))
    assert result.mauve == pytest.approx(5 * 120 * 24 / 3628800, rel=0.05)  # the integral: 5 B(6, 5)
    assert result.frontier_integral == pytest.approx(1.0)


def test_two_bins_by_direct_formula():
    p, q, c = np.array([0.75, 0.25]), np.array([0.5, 0.5]), 5.0
    middle = m.frontier(p, q, c)[13]  # w = 1/2, after the corner: r = (5/8, 3/8)
    kl_q = 0.5 * np.log(0.5 / 0.625) + 0.5 * np.log(0.5 / 0.375)
    kl_p = 0.75 * np.log(0.75 / 0.625) + 0.25 * np.log(0.25 / 0.375)
    assert middle == pytest.approx([np.exp(-c * kl_q), np.exp(-c * kl_p)])
    grid = (np.arange(20000) + 0.5) / 20000
    r = grid[:, None] * p + (1 - grid[:, None]) * q
    integrand = grid * (p * np.log(p / r)).sum(1) + (1 - grid) * (q * np.log(q / r)).sum(1)
    assert m.frontier_integral(p, q) == pytest.approx(2 * integrand.mean(), abs=1e-9)


def test_smoothing_adds_half_a_count():
    smoothed, exact = (
        m.from_counts(np.array([2, 0]), np.array([0, 2])),
        m.from_counts(np.array([5, 1]), np.array([1, 5])),
    )
    assert smoothed.mauve_star == pytest.approx(exact.mauve)  # (2.5, .5) / 3 = (5, 1) / 6
    assert smoothed.frontier_integral_star == pytest.approx(exact.frontier_integral)


def test_features_are_told_apart_or_not():
    rng = np.random.default_rng(0)
    a, b, far = rng.normal(size=(200, 8)), rng.normal(size=(200, 8)), rng.normal(size=(200, 8)) + 20
    assert m.mauve(a, b, buckets=10).mauve > 0.9
    assert m.mauve(a, far, buckets=10).mauve < 0.01
    assert m.mauve(a, a, buckets=10).mauve == pytest.approx(1.0)
    assert m.mauve(a, b, buckets=10).mauve == m.mauve(a, b, buckets=10).mauve
    assert m.mauve(a, b).buckets == 20


def test_equal_rows_do_not_need_as_many_buckets():
    a, b = np.ones((30, 4)), np.ones((30, 4))
    assert m.mauve(a, b, buckets=5).mauve == pytest.approx(1.0)


def test_bad_features_are_refused():
    good = np.ones((4, 3))
    for bad, message in (
        (np.empty((0, 3)), "at least one sample"),
        (np.ones((4, 2)), "differ in width: 4|differ in width: 3 and 2"),
        (np.full((4, 3), np.nan), "12 values that are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            m.mauve(good, bad, buckets=2)
    with pytest.raises(ValueError, match="9 buckets for 4 \\+ 4 samples"):
        m.mauve(good, good, buckets=9)


@pytest.mark.parametrize("case", ["equal", "wider", "collapsed"])
def test_we_agree_with_the_reference_within_its_own_spread(case):
    recorded = {row["case"]: row for row in json.loads((BENCHMARKS / "mauve_agreement.json").read_text())["cases"]}[
        case
    ]
    benchmark = runpy.run_path(str(BENCHMARKS / "mauve_agreement.py"))
    p, q = benchmark["features"](case, recorded["samples"], recorded["dimensions"])
    ours = np.mean([benchmark["ours"](p, q, recorded["buckets"], seed) for seed in range(8)], axis=0)
    for value, (mean, spread) in zip(ours, recorded["reference"].values(), strict=False):
        assert abs(value - mean) < spread


if importlib.util.find_spec("mauve"):

    def test_live_reference_agrees_within_its_spread():
        benchmark = runpy.run_path(str(BENCHMARKS / "mauve_agreement.py"))
        p, q = benchmark["features"]("near", 1000, 32)
        ours, theirs = (np.array([benchmark[side](p, q, 100, s) for s in range(8)]).T for side in ("ours", "reference"))
        assert (abs(ours.mean(1) - theirs.mean(1)) < theirs.std(1, ddof=1)).all()


def test_features_are_the_hidden_state_at_the_last_token():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    class Letters:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [ord(c) - 97 for c in text]}

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=26, n_positions=32))
    texts = ["abc", "hello", "z", "abcdefghij"]
    found = m.features(model, Letters(), texts, max_tokens=8, batch_tokens=12)
    assert model.training
    model.eval()
    for text, row in zip(texts, found, strict=True):
        ids = torch.tensor([[ord(c) - 97 for c in text[:8]]])
        assert row == pytest.approx(
            model(ids, output_hidden_states=True).hidden_states[-1][0, -1].detach().numpy(), abs=1e-5
        )
    with pytest.raises(ValueError, match="2 of 3 texts are empty"):
        m.features(model, Letters(), ["", "a", ""])
