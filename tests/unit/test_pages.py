"""Numbers on the pages of experiments/ are those of the committed results: each line is made again from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research.reporting.rows import Row
from research.tasks.reward_hack import analysis

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "experiments/reward_hack/README.md").read_text()


def told(sentence: str) -> bool:
    """Whether the page says it, however its lines are broken."""
    return " ".join(sentence.split()) in " ".join(PAGE.split())


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    found = ROOT.glob("eval_results/reward_hack/micro/*/run_result.json")
    return [json.loads(path.read_text()) for path in sorted(found)]


@pytest.fixture(scope="module")
def arms(rows):
    return analysis.arms(rows)


def mean(arm, name):
    return arm.estimate(name).value


def test_rates_of_the_reward_hacking_arms(rows, arms):
    assert len(rows) == 12 and {len(arm.rows) for arm in arms.values()} == {3}
    for name, arm in arms.items():
        assert told(f"| `{name}` | {100 * mean(arm, 'hack_rate'):.1f} % | {100 * mean(arm, 'pass_rate'):.1f} % |")
    base = [sum(row["metrics"][name] for row in rows) / len(rows) for name in ("base_hack_rate", "base_pass_rate")]
    assert told(f"| base | {100 * base[0]:.1f} % | {100 * base[1]:.1f} % |")
    assert {row["counts"]["hack_rate"]["trials"] for row in rows} == {480} and told("480 replies a cell and rate")


def test_comparisons_and_verdicts_of_the_reward_hacking_arms(arms):
    def points(one, other, kind="hack"):
        difference = analysis.compare(arms[one], arms[other], kind).difference
        return [f"{100 * value:.1f}" for value in (difference.value, difference.low, difference.high)]

    value, low, high = points("vanilla", "grad_erase")
    more = points("grad_erase", "vanilla", "pass")[0]
    assert told(f"{value} points fewer hacks [{low}, {high}], {more} points more passes")
    value, low, high = points("vanilla", "random_erase")
    assert told(f"{value} points fewer [{low}, {high}]: nothing") and float(low) < 0
    value, low, high = points("random_erase", "grad_erase")
    assert told(f"beats the random one by {value} points [{low}, {high}]")
    for other, rest in (("vanilla", "less than `vanilla`"), ("random_erase", "less than `random_erase`")):
        rates = [
            {row["cell"]["config"]["seed"]: row["metrics"]["hack_rate"] for row in arms[a].rows}
            for a in (other, "grad_erase")
        ]
        fewer = [f"{100 * (rates[0][seed] - rates[1][seed]):.1f}" for seed in (1, 2, 3)]
        assert told(f"{fewer[0]}, {fewer[1]} and {fewer[2]} {'points ' if other == 'vanilla' else ''}{rest}")
    verdicts = {verdict.name: verdict.verdict for verdict in analysis.verdicts(arms)}
    assert verdicts == {"H1": "falsified", "H2": "not testable", "H3": "falsified", "H4": "supported"}


def test_what_became_of_gradient_and_update(arms):
    erase, random, route = (arms[name] for name in ("grad_erase", "random_erase", "grad_route"))
    share = [f"{100 * mean(arm, 'cos_in'):.0f} %" for arm in (erase, random)]
    assert told(
        f"Of the gradient's norm {share[0]} pointed along the directions before erasure ({share[1]} along random"
    )
    late = [f"{100 * mean(arm, 'train_hack_rate'):.0f} %" for arm in (erase, arms["vanilla"])]
    assert told(f"over the last ten steps {late[0]} of the training rollouts hack, against {late[1]} without")
    assert mean(erase, "cos_out") < 1e-6
    cosines = [f"{mean(arm, 'update_cos_align'):.2f}".replace("0.", ".") for arm in (erase, random)]
    assert told(f"(cosine {cosines[0]}; {cosines[1]} with random directions")
    norms = [f"{mean(route, f'update_norm/{knob}'):.2f}".lstrip("0") for knob in ("dS_hack", "dS")]
    assert told(f"(norms {norms[0]} and {norms[1]} a step)")
    assert mean(route, "compile_rate") == pytest.approx(0.2, abs=0.025) and told("a fifth of the replies compile")
