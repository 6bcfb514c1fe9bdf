"""What the imposter study measures: degenerate wins, gaps with their intervals, rewards, trajectories."""

import math

import pytest

from research.config import RunConfig
from research.errors import ConfigurationError
from research.tasks.imposter import evaluate, trajectory
from research.tasks.imposter.adversary import AdversarialReward, _transformed
from research.tasks.imposter.corpus import Span
from research.tasks.imposter.degenerate import flags
from research.tasks.imposter.discriminator import Scored
from research.tasks.imposter.evaluate import Document, Evaluation
from research.tasks.imposter.settings import DiscriminatorConfig
from research.tasks.imposter.task import Imposter
from research.tasks.imposter.writing import Writer, Written
from research.training.rollouts import Group, Prompt, Rollout

CONTEXT = Span(
    "d", "The quick brown fox jumps over the lazy dog.", "It sleeps all day long in its den.", "Nobody minds."
)
CLEAN = dict.fromkeys(("copied", "repeated", "empty", "overlong"), False)


@pytest.mark.parametrize(
    ("text", "cut", "kinds"),
    [
        ("A new sentence about something else.", False, []),
        ("The quick brown fox jumps over it.", False, ["copied"]),
        ("the lazy dog.", False, ["copied"]),
        ("go on go on go on go on", False, ["repeated"]),
        ("", False, ["empty"]),
        ("cut off in the", True, ["overlong"]),
        (" ".join(f"w{i}" for i in range(25)), False, ["overlong"]),  # 8 human words allow 24
    ],
)
def test_degenerate_wins_are_recognised(text, cut, kinds):
    assert [kind for kind, found in flags(CONTEXT, Written(text, cut)).items() if found] == kinds


def documents(*rows):
    return Evaluation([Document(CONTEXT, human, ["x"] * len(g), list(g), [CLEAN] * len(g)) for human, *g in rows])


def test_measures_by_hand():
    found = documents((13.0, 1.0, -1.0), (10.0, 12.0, 6.0), (4.0, -2.0, math.nan))
    e = {name: estimate.value for name, estimate in evaluate.estimates(found, before_gap=24.0).items()}
    assert [d.gap for d in found.documents] == [13.0, 1.0, 6.0]
    assert e["gap"] == pytest.approx(20 / 3) and e["human_logit"] == 9.0
    assert e["generated_logit"] == pytest.approx((0 + 9 - 2) / 3)  # the empty span is left out, not a zero
    assert e["positive_rate"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert e["above_human_rate"] == pytest.approx(0.5 / 3)
    assert e["gap_below_10"] == pytest.approx(2 / 3) and e["gap_below_5"] == pytest.approx(1 / 3)
    # With the published before-gap of 24, the thresholds in its units are the published ones.
    assert e["gap_below_0.42_of_before"] == e["gap_below_10"] and e["gap_below_0.21_of_before"] == e["gap_below_5"]
    assert evaluate.counts(found, "")["positive_rate"] == (3, 5)
    assert evaluate.counts(found, "_before")["degenerate_rate_before"] == (0, 6)


def test_the_same_words_for_several_documents_are_counted():
    texts = [["a", "b"], ["b", "c"], ["", "d"], ["", "d"]]  # b and d of two documents; an empty span is no text
    found = Evaluation([Document(CONTEXT, 0.0, pair, [1.0, 1.0], [CLEAN] * 2) for pair in texts])
    assert evaluate.estimates(found, 1.0)["duplicate_rate"].value == 0.5
    assert evaluate.counts(found, "")["duplicate_rate"] == (4, 8)
    twice = Evaluation(
        [Document(CONTEXT, 0.0, ["a", "a"], [1.0, 1.0], [CLEAN] * 2)]
    )  # of one document: no loss of context
    assert evaluate.counts(twice, "")["duplicate_rate"] == (0, 2)


def test_gap_change_is_paired_and_relative():
    before = documents(*((10.0 + i, 0.0) for i in range(20)))
    after = documents(*((10.0 + i, (10.0 + i) / 2) for i in range(20)))
    change = evaluate.gap_change(before, after)
    assert (change.value, change.low, change.high, change.n) == (pytest.approx(-0.5), *[pytest.approx(-0.5)] * 2, 20)
    noisy = documents(*((10.0 + i, (-1) ** i * 9.0) for i in range(20)))
    wide = evaluate.gap_change(before, noisy)
    assert wide.low < wide.value < wide.high


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("logit", [2.0, -1.0]), ("sigmoid", [1 / (1 + math.exp(-2)), 1 / (1 + math.e)]), ("rank", [1.0, 0.0])],
)
def test_reward_kinds(kind, expected):
    *known, unknown = _transformed([2.0, -1.0, math.nan], kind)
    assert known == pytest.approx(expected) and math.isnan(unknown)


class Table:
    """A discriminator whose logits are written down: by text, NaN for one it does not know."""

    config = DiscriminatorConfig()

    def __init__(self, logits):
        self.discriminator, self.logits = self, logits

    def score(self, spans):
        assert all(span.text for span in spans)
        return [Scored(self.logits.get(span.text, math.nan)) for span in spans]


def scored(judge, texts, reinforce=True, words=None):
    writer = Writer.__new__(Writer)
    writer.form, writer.words = "sentence", words
    rollouts = [Rollout([1], [0.0], text, "stop") for text in texts]
    group = Group(0, Prompt([1], {"span": CONTEXT}), rollouts)
    return AdversarialReward(judge, writer, "logit", reinforce)([group], step=1)


def test_what_cannot_be_judged_earns_no_reward_and_is_counted():
    judge = Table({CONTEXT.text: 3.0, "a good one": 1.0, "a bad one": -2.0})
    found = scored(judge, ["a good one", "  ", "an odd one", "a bad one"])
    good, empty, odd, bad = found.rewards[0]
    assert (good, bad) == (1.0, -2.0) and math.isnan(empty) and math.isnan(odd)  # no number, rather than a silent zero
    assert found.metrics["empty_rate"] == 1 / 4 and found.metrics["nan_rate"] == 1 / 5  # of 4 written and 1 human
    assert found.metrics["gap"] == 3.5 and found.metrics["generated_logit"] == -0.5
    assert found.metrics["positive_rate"] == 1 / 2 and found.metrics["negative_gap_rate"] == 0
    assert list(scored(judge, ["a good one", "a bad one"], reinforce=False).rewards[0]) == [0.0, 0.0]


def test_a_length_that_gives_a_span_away_is_not_shown_and_earns_less_than_any():
    good, bad, long, short = "one two three four five", "one two three four five six seven", "w " * 14, "one two"
    judge = Table({CONTEXT.text: 3.0, good: 1.0, bad: -2.0})  # the others are not in it: asking would give no number
    found = scored(judge, [good, long, bad, short], words=(4, 12))
    assert found.rewards == [[1.0, -3.5, -2.0, -3.5]]  # the standard deviation of what is shown is 1.5
    assert found.metrics["not_shown_rate"] == 1 / 2 and found.metrics["nan_rate"] == 0
    assert found.metrics["generated_logit"] == -0.5


def test_a_judge_without_any_number_stops_the_run():
    with pytest.raises(RuntimeError, match="no finite logit for 2 spans"):
        scored(Table({}), ["a good one", "a bad one"])


# Gap by thousand steps of the published run, and its co-training losses.
PUBLISHED = [23.3, 23.0, 20.2, 17.8, 19.6]


def test_trajectory_of_the_published_shape():
    lines = [
        {"step": s, "gap": PUBLISHED[(s - 1) // 1000], "generated_logit": -12.0 + (s > 2000) * 20}
        for s in range(1, 5001)
    ]
    for step, loss in ((2000, 0.079), (4000, 0.126)):
        lines[step - 1] |= {"cotrain/loss": loss, "cotrain/loss_before": loss, "cotrain/loss_after": loss}
    found = trajectory.trajectory(lines)
    assert found["split"] == 2000 and found["early"]["gap"] == pytest.approx((23.3 + 23.0) / 2)
    assert found["late"]["gap"] == pytest.approx((20.2 + 17.8 + 19.6) / 3) and found["late"]["positive_steps"] == 1.0
    assert [entry["loss"] for entry in found["cotrain"]] == [0.079, 0.126]
    assert len(found["bins"]) == 14 and found["bins"][0] == {"first": 1, "last": 358, "gap": pytest.approx(23.3)}
    assert found["window"] == 174 and len(found["steps"]) == trajectory.POINTS
    assert found["early"]["negative_steps"] == 0 and found["sync"]["count"] == 0


def test_negative_gaps_are_counted_and_nulls_left_out():
    lines = [{"step": i + 1, "gap": gap} for i, gap in enumerate([5.0, None, -1.0, -2.0, 12.0, 3.0, 4.0])]
    found = trajectory.trajectory(lines)
    assert (
        found["split"] == 1 and found["late"]["negative_steps"] == 2 and found["late"]["near"] == pytest.approx(4 / 5)
    )
    assert trajectory.trajectory([]) == {}


def config(**changes):
    found = RunConfig(lr=1e-4, steps=10, batch_size=8)
    found.task = Imposter(**changes)
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 3}, "batch_size=8 spans is not a multiple of task.candidates=3"),
        ({"prompts": 1}, "asks 2 prompts a step, more than task.prompts=1"),
        ({"save_at": [5, 11]}, r"task.save_at=\[11\] lies outside 1 to steps=10"),
        ({"bc": 0.0}, "task.bc is 0; use task.arm=rl_only"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    found = config(**changes)
    with pytest.raises(ConfigurationError, match=message):
        found.task.validate(found)
    config().task.validate(config())
