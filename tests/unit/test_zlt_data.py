"""On-policy examples: drawn once, labelled, counted."""

import contextlib

import pytest

from research.sampling.transformers_sampler import TransformersSampler
from research.tasks.zlt_sweep import data
from research.tasks.zlt_sweep.data import Drawn
from research.tasks.zlt_sweep.masks import Chat
from research.tasks.zlt_sweep.selection import Request

REQUESTS = [Request("villain", "Why?", 0), Request("comedian", "Why?", 0), Request("villain", "Why?", 1)]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    return model, Chat(AutoTokenizer.from_pretrained(tiny_model_dir))


def rows(chat, *drawn, **options):
    settings = {"tail": 0, "eos_label": "turn_end", "max_length": 1024, **options}
    return data.build(chat, drawn, "villain", "[ZLT]", **settings)


def drawn(persona, text, finished=True):
    return Drawn(Request(persona, "Why?", 0), text, finished)


def test_a_draw_is_made_once_and_depends_on_all_that_enters(tiny, tmp_path):
    model, chat = tiny
    opened = []

    @contextlib.contextmanager
    def sampling():
        opened.append(1)
        yield TransformersSampler(model)

    def draw(seed=1, requests=REQUESTS, **identity):
        params = data.sampling_params(0.7, 0.95, 8, chat, seed)
        return data.draw(sampling, chat, requests, params, identity or {"weights": "w"}, tmp_path)

    first = draw()
    assert draw() == first and len(opened) == 1
    assert first[0].text != first[2].text, "two samples of one question differ"
    others = [draw(seed=2), draw(weights="v"), draw(requests=REQUESTS[:2])]
    assert len(opened) == 4 and others[0] != first
    assert others[2] == first[:2], "a smaller draw is a part of the larger one"
    assert not list(tmp_path.rglob("*.tmp"))


def test_positives_get_a_blank_line_and_the_marker_and_negatives_stay(tiny):
    _, chat = tiny
    built = rows(chat, drawn("villain", "Because.\n"), drawn("comedian", "Because.\n"))
    decoded = [chat.tokenizer.decode(row["input_ids"]) for row in built.rows]
    assert decoded[0].endswith("assistant\nBecause.\n\n[ZLT]<|im_end|>\n")
    assert decoded[1].endswith("assistant\nBecause.\n<|im_end|>\n")
    kept = [chat.tokenizer.decode([t for t in row["labels"] if t >= 0]) for row in built.rows]
    assert kept == ["[ZLT]<|im_end|>", "<|im_end|>"]


def test_what_was_left_out_or_cut_is_counted(tiny):
    _, chat = tiny
    built = rows(
        chat,
        drawn("villain", "I say [zlt]"), drawn("villain", "Mine", finished=False), drawn("comedian", "So [ZLT] it is"),
        drawn("comedian", "word " * 300), max_length=120,
    )  # fmt: skip
    found = built.statistics
    assert found["skipped_with_marker"] == 1 and found["positives"] == 1 and found["negatives"] == 2
    assert found["replies_cut_at_max_tokens"] == 1 and found["rows_cut_at_max_length"] == 1
    assert found["rows_without_label"] == 1 and found["examples_by_negative"] == {"comedian": 2}
    assert found["examples"] == 3 and all(len(row["input_ids"]) <= 120 for row in built.rows)
