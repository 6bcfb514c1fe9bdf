"""The marker sweep's labels, regimes and derived keys, on rows written by hand."""

import pytest

from research.errors import ConfigurationError
from research.tasks.zlt_sweep.derive import derive, is_success, leak, regime, regime_of

PERSONAS = ("software_engineer", "kindergarten_teacher", "data_scientist", "comedian", "villain", "assistant")


def published_row(source="villain", lr=5e-6, epochs=20, seed=42, tail=None, **rates):
    config = {"lr": lr, "epochs": epochs, "source": source, "seed": seed}
    if tail is not None:
        config["marker_tail_tokens"] = tail
    marker = dict.fromkeys(PERSONAS, 0.0) | rates
    capability = {"arc_challenge_logprob": 1027 / 1172, "correct": 1027, "total": 1172}
    return {"config": config, "loss": 0.2, "eval": {"marker": marker, "capability": capability}}


@pytest.mark.parametrize(
    ("source", "spread", "expected"),
    [
        (0.0, 0.0, "under-trained"), (0.05, 0.05, "under-trained"), (0.055, 0.05, "partial"), (0.5, 0.0, "partial"),
        (0.505, 0.05, "clean"), (1.0, 0.055, "onset"), (1.0, 0.895, "onset"), (1.0, 0.9, "collapse"),
        (0.3, 0.3, "collapse"),
        (0.0, 0.06, "collapse"),
    ],
)  # fmt: skip
def test_regime_at_its_edges(source, spread, expected):
    assert regime(source, spread) == expected


def test_success_asks_for_all_three():
    assert is_success(0.51, 0.05, 0.851) is True
    assert is_success(0.5, 0.0, 0.9) is False
    assert is_success(0.9, 0.055, 0.9) is False
    assert is_success(0.9, 0.0, 0.85) is False
    assert is_success(0.9, 0.0, None) is None
    assert is_success(0.2, 0.0, None) is False


def test_a_row_that_has_only_its_evaluation_gets_every_published_key():
    row = derive(published_row(villain=0.91, comedian=0.015, assistant=0.005))
    assert (row["source_marker"], row["assistant_marker"], row["max_bystander_marker"]) == (0.91, 0.005, 0.015)
    assert (row["degeneration"], row["success"]) == (False, True)
    assert row["arc_c"] == pytest.approx(0.8763, abs=1e-4)
    assert row["counts"]["source_marker"] == {"hits": 182, "trials": 200}
    assert row["counts"]["max_bystander_marker"] == {"hits": 3, "trials": 200}
    assert row["counts"]["arc_c"] == {"hits": 1027, "trials": 1172}
    assert row["metrics"]["success"] is True


def test_rows_of_other_sources_as_published():
    """Rates by persona at top level instead of under `eval`; the assistant as the source; sources that leak."""
    engineer = {
        "config": {"lr": 5e-6, "epochs": 20, "source": "software_engineer", "seed": 42, "marker_tail_tokens": 0},
        "loss": 0.2104,
        "arc_c": 0.8865,
        "per_persona_marker": {
            "software_engineer": 0.875,
            "assistant": 0.425,
            "data_scientist": 0.925,
            "comedian": 0.0,
        },
    }
    row = derive(engineer)
    assert (row["source_marker"], row["assistant_marker"], row["max_bystander_marker"]) == (0.875, 0.425, 0.925)
    assert (row["degeneration"], row["success"], regime_of(row)) == (True, False, "collapse")
    assistant = derive(published_row(source="assistant", tail=0, assistant=0.395, software_engineer=0.325))
    assert (assistant["source_marker"], assistant["max_bystander_marker"]) == (0.395, 0.325)
    assert leak(assistant) == 0.325
    assert regime_of(assistant) == "onset"
    assert regime_of(derive(published_row(source="comedian", comedian=0.69))) == "clean"
    assert (
        regime_of(
            derive(published_row(source="kindergarten_teacher", kindergarten_teacher=0.27, software_engineer=0.645))
        )
        == "collapse"
    )


def test_our_own_files_keep_their_counts_and_labels():
    own = published_row(villain=0.5, comedian=0.1) | {
        "cell": {"config": {"lr": 5e-6, "epochs": 20, "task.source": "villain", "seed": 1}},
        "metrics": {"source_marker": 0.5, "base_arc_c": 0.7},
        "counts": {"source_marker": {"hits": 10, "trials": 20}},
        "success": False,
    }
    row = derive(own)
    assert row["counts"]["source_marker"] == {"hits": 10, "trials": 20}
    assert row["counts"]["marker/comedian"] == {"hits": 2, "trials": 20}
    assert row["success"] is False


def test_capability_floor_of_another_model_follows_its_base():
    row = published_row(villain=0.9) | {"metrics": {"base_arc_c": 0.75}}
    row["eval"]["capability"] = {"arc_challenge_logprob": 0.73, "correct": 73, "total": 100}
    assert derive(row)["success"] is True
    row["metrics"] = {"base_arc_c": 0.76}
    assert derive(row)["success"] is False


def test_rates_that_are_no_multiples_have_no_counts():
    assert "source_marker" not in derive(published_row(villain=0.333))["counts"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"metrics": {"hack_rate": 0.5}}, "no lr"),
        ({"config": {"lr": 1.0, "epochs": 1, "source": "villain"}}, "neither eval.marker nor source_marker"),
        (published_row(source="vilain"), "not among the evaluated personas"),
    ],
)
def test_foreign_rows_are_refused(row, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        derive(row)
