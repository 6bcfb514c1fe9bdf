"""The letter score against a forward pass of our own; question files of both shapes."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from research.errors import ConfigurationError
from research.material import science
from research.scoring import capability, questions

ARC_ROW = {"question": "Up?", "choices": {"label": ["1", "2", "3"], "text": ["a", "b", "c"]}, "answerKey": "2"}
FLAT_ROW = {"question": "Up?", "choice_labels": ["1", "2", "3"], "choices": ["a", "b", "c"], "correct_answer": "2"}


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval(), AutoTokenizer.from_pretrained(tiny_model_dir)


def test_the_score_is_the_log_prob_of_the_bare_letter_after_the_generation_prompt(tiny):
    import torch

    model, tokenizer = tiny
    rows = [*questions.load("shipped", 30), ARC_ROW]
    picked = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": science.render(row)}], add_generation_prompt=True, tokenize=False
        )
        with torch.no_grad():
            logits_V = model(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1]
        letters = [tokenizer.encode(label)[0] for label in row["choices"]["label"]]
        picked.append(int(logits_V[letters].argmax()))
    found = capability.letter_accuracy(model, tokenizer, rows)
    assert list(found.choices) == picked and len(set(picked)) > 1
    right = [
        row["choices"]["label"].index(row["answerKey"]) == choice for row, choice in zip(rows, picked, strict=True)
    ]
    assert (found.correct, found.total) == (sum(right), 31)


def test_what_lm_eval_scores_is_prompt_plus_letter_and_nothing_else(tiny):
    model, tokenizer = tiny
    lm = capability._letter_lm(model, tokenizer, {})
    context = "<|im_start|>user\nUp?<|im_end|>\n<|im_start|>assistant\n"
    assert lm._encode_pair(context, "B") == (tokenizer.encode(context), tokenizer.encode("B"))


def test_scoring_leaves_the_random_generators_and_the_screen_alone(tiny, capsys):
    import torch

    model, tokenizer = tiny
    before = torch.random.get_rng_state()
    capability.letter_accuracy(model, tokenizer, [ARC_ROW])
    assert torch.equal(before, torch.random.get_rng_state())
    assert capsys.readouterr() == ("", "")


def test_the_stock_form_gives_both_its_accuracies(tiny):
    found = capability.stock_accuracy(*tiny, questions.load("shipped", 12))
    assert set(found) == {"acc", "acc_norm"} and all(0 <= value <= 1 for value in found.values())


def test_our_stock_form_is_lm_evals():
    import lm_eval
    import yaml

    theirs = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/arc/arc_easy.yaml").read_text())
    ours = yaml.safe_load((capability.TASKS / "arc_challenge_stock.yaml").read_text())
    for name in ("output_type", "doc_to_text", "doc_to_choice", "doc_to_target", "metric_list"):
        assert ours[name] == theirs[name]


def test_both_shapes_are_read(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(ARC_ROW) + "\n\n" + json.dumps(FLAT_ROW) + "\n")
    assert questions.load(str(path)) == [ARC_ROW, ARC_ROW]


@pytest.mark.parametrize("text", ["", "{}", '{"question": "q"', json.dumps({**ARC_ROW, "answerKey": "D"})])
def test_a_file_that_is_none_is_refused_with_its_place(tmp_path, text):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"q\.jsonl"):
        questions.load(str(path))


def test_a_missing_file_is_refused():
    with pytest.raises(ConfigurationError, match="no file"):
        questions.check("nowhere.jsonl")


@pytest.mark.reference
def test_all_published_questions_are_read():
    rows = questions.load(str(Path(os.environ["RESEARCH_REFERENCE_DATA"]) / "arc_challenge_test.jsonl"))
    labels = Counter("".join(row["choices"]["label"]) for row in rows)
    assert len(rows) == 1172 and labels == {"ABCD": 1144, "1234": 21, "ABC": 3, "ABCDE": 3, "123": 1}
    assert all(science.render(row).endswith("(") for row in rows)
