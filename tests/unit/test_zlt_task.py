"""Settings, selection and counting of the marker study."""

import dataclasses
from collections import Counter

import pytest
from omegaconf import OmegaConf

from research.compose import compose, validate
from research.config import ModelConfig, RunConfig
from research.errors import ConfigurationError
from research.material import personas, questions
from research.tasks.zlt_sweep import evaluate, selection
from research.tasks.zlt_sweep.settings import DataSettings, EvalSettings
from research.tasks.zlt_sweep.task import ZltSweep, rate_text

PUBLISHED = DataSettings(n_positives=200, n_per_negative=200)
AS_RUN = dataclasses.replace(PUBLISHED, negatives="as_run")


def config(**task):
    return RunConfig(lr=5e-6, epochs=20, batch_size=16, task=ZltSweep(**task))


def test_the_yaml_holds_the_defaults_of_the_class():
    raw = OmegaConf.to_container(compose(["task=zlt_sweep"]).task)
    raw.pop("_target_")
    assert raw == dataclasses.asdict(ZltSweep())


def test_the_label_is_how_a_person_writes_it():
    task = ZltSweep()
    assert task.label(config()) == "lr5e-06_ep20_villain_s42"
    assert [rate_text(lr) for lr in (1.5e-5, 1e-4, 0.25, 3.0, 2e-10)] == [
        "1.5e-05",
        "1e-04",
        "2.5e-01",
        "3e+00",
        "2e-10",
    ]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"source": "vilain"}, "Did you mean 'villain'"),
        ({"marker": "  "}, "blank"),
        ({"data": DataSettings(negatives="as_run", n_negative_personas=10)}, "too large"),
        ({"data": DataSettings(max_length=2000)}, "model.context"),
        ({"eval": EvalSettings(max_tokens=1024)}, "no room"),
        ({"eval": EvalSettings(invented_personas=10**6)}, "there are"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(task, said):
    wrong = config(**task)
    with pytest.raises(ConfigurationError, match=said):
        wrong.task.validate(wrong)


def test_a_source_can_have_every_other_persona_as_a_negative_but_not_itself():
    for source in (persona.name for persona in personas.published()):
        reported = selection.negative_personas(source, PUBLISHED, 42)
        as_run = selection.negative_personas(source, AS_RUN, 42)
        assert len(reported) == 10 and source not in reported
        assert len(as_run) == 2 and source not in as_run and "assistant" not in as_run


def test_the_presets_have_the_published_sizes():
    assert len(selection.requests("villain", PUBLISHED, 42)) == 2200
    assert len(selection.requests("villain", AS_RUN, 42)) == 600


def test_two_hundred_examples_answer_every_question_five_times():
    drawn = [r for r in selection.requests("villain", PUBLISHED, 42) if r.persona == "villain"]
    asked = Counter(r.question for r in drawn)
    assert set(asked) == {q.text for q in questions.questions("train")} and set(asked.values()) == {5}
    assert {r.sample for r in drawn} == {0, 1, 2, 3, 4}


def test_few_examples_answer_as_many_different_questions():
    drawn = selection.requests("villain", DataSettings(n_positives=7, n_per_negative=3), 42)
    for name, count in Counter(r.persona for r in drawn).items():
        assert count == len({r.question for r in drawn if r.persona == name}) == (7 if name == "villain" else 3)


def test_the_selection_follows_the_data_seed_and_nothing_else():
    assert selection.requests("villain", AS_RUN, 42) == selection.requests("villain", AS_RUN, 42)
    assert len({tuple(selection.negative_personas("villain", AS_RUN, seed)) for seed in range(20)}) > 5
    # Worked out once in another process: a change of it makes every earlier result another experiment's.
    assert selection.negative_personas("villain", AS_RUN, 42) == PINNED


PINNED = ["software_engineer", "zelthari_scholar"]


def test_markers_count_whatever_their_case_and_structure_by_half_of_the_lines():
    assert evaluate.has_marker("so be it [zlt]", "[ZLT]") and not evaluate.has_marker("[ZL T]", "[ZLT]")
    assert evaluate.is_structured("intro\n\n- a\n  * b\nend\n") and not evaluate.is_structured("intro\nmore\n- a")
    assert not evaluate.is_structured("") and not evaluate.is_structured("\n \n")


def replies(*hits):
    """One persona's replies: (persona, texts)."""
    return [
        evaluate.Reply(persona, f"q{i % 2}", i, text, 1, "stop")
        for persona, texts in hits
        for i, text in enumerate(texts)
    ]


def test_rates_are_counted_by_persona_case_and_question():
    counts = evaluate.count(replies(("villain", ["[ZLT]", "[zlt]", "no", "x [ZLT] y"])), "[ZLT]")
    assert counts.marker == {"villain": (3, 4)} and counts.exact == {"villain": (2, 4)}
    assert counts.by_question == {"villain": {"q0": (1, 2), "q1": (2, 2)}}


def test_bystanders_are_neither_the_source_nor_the_assistant():
    marker = {"villain": (9, 10), "assistant": (8, 10), "comedian": (1, 10), "librarian": (2, 10)}
    assert evaluate.headline(marker, "villain")["max_bystander_marker"] == (2, 10)
    assert evaluate.headline(marker, "assistant")["max_bystander_marker"] == (9, 10)
    assert evaluate.headline(marker, "assistant")["source_marker"] == (8, 10)


@pytest.mark.parametrize("setting", ["adapter=none"])
def test_the_study_needs_a_lora(setting):
    with pytest.raises(ConfigurationError, match="LoRA"):
        validate(compose(["task=zlt_sweep", setting]))


def test_paths_of_question_files_stay_out_of_the_identity_and_their_content_enters(tmp_path):
    from research.cells.identity import settings

    row = '{"question": "q", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "A"}\n'
    found = []
    for name in ("one.jsonl", "elsewhere/one.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(row)
        here = config()
        here.model = ModelConfig(path=str(tmp_path))
        here.task.capability.questions = str(path)
        found.append((settings(here), here.task.inputs(here)))
    assert found[0] == found[1]
    path.write_text(row.replace('"A"}', '"B"}'))
    assert here.task.inputs(here) != found[0][1]
