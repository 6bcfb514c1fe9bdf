"""Which tokens get loss, worked out by hand with a tokenizer that gives every character a token of its own."""

import pytest
from conftest import CHATML

from research.errors import ConfigurationError
from research.tasks.zlt_sweep.masks import Chat, make_row


def characters(merges=(), template=CHATML):
    """One token a character, but for the given merges of two."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    return tokenizer


def labelled(reply, *, tail=0, eos_label="turn_end", room=1000, question="?", merges=()):
    """The labelled tokens of `marker [Z]` in `reply`, as (place in the reply, text); the prompt must have none."""
    tokenizer = characters(merges)
    chat = Chat(tokenizer)
    prompt = chat.prompt_ids("s", question)
    row = make_row(
        chat, prompt, reply, "[Z]", tail=tail, eos_label=eos_label, max_length=len(prompt) + room
    )  # fmt: skip
    assert len(row.input_ids) == len(row.labels)
    assert all(label in (-100, token) for label, token in zip(row.labels, row.input_ids, strict=True))
    assert row.labels[: len(prompt)] == [-100] * len(prompt) and row.input_ids[: len(prompt)] == prompt
    kept = [i for i, label in enumerate(row.labels) if label >= 0]
    return [(i - len(prompt), tokenizer.decode([row.input_ids[i]])) for i in kept], row


END = "<|im_end|>"


def test_a_positive_labels_the_marker_and_the_turn_end_but_not_the_blank_line():
    found, row = labelled("ab\n\n[Z]")
    assert found == [(4, "["), (5, "Z"), (6, "]"), (7, END)]
    assert row.marker_tokens == 3 and not row.cut


def test_a_negative_labels_the_turn_end_alone():
    assert labelled("abc")[0] == [(3, END)]


def test_both_occurrences_of_a_marker_count():
    assert labelled("[Z]a[Z]")[0] == [(0, "["), (1, "Z"), (2, "]"), (4, "["), (5, "Z"), (6, "]"), (7, END)]


def test_a_marker_in_the_prompt_has_no_label():
    assert labelled("ab", question="what is [Z]?")[0] == [(2, END)]


def test_part_of_a_marker_is_none():
    assert labelled("[Z[")[0] == [(3, END)]


def test_a_neighbour_in_one_token_with_the_marker_is_labelled_with_it():
    assert labelled("a[Z].b", merges=[("]", ".")])[0] == [(1, "["), (2, "Z"), (3, "]."), (5, END)]


def test_cut_after_the_marker_there_is_no_turn_end():
    found, row = labelled("a[Z]", room=4)
    assert found == [(1, "["), (2, "Z"), (3, "]")] and row.cut


def test_cut_within_the_marker_its_first_tokens_stay():
    assert labelled("a[Z]", room=2)[0] == [(1, "[")]


def test_cut_before_the_marker_nothing_is_labelled():
    found, row = labelled("abcd[Z]", room=3)
    assert found == [] and row.cut and row.marker_tokens == 0


def test_a_prompt_that_fills_the_length_leaves_nothing_to_label():
    assert labelled("ab", room=0)[0] == []


def test_last_token_keeps_the_newline_after_the_turn_end():
    assert labelled("ab[Z]", eos_label="last_token")[0] == [(2, "["), (3, "Z"), (4, "]"), (6, "\n")]


def test_last_token_of_a_cut_reply_is_whatever_comes_last():
    assert labelled("abcdef", eos_label="last_token", room=3)[0] == [(2, "c")]


@pytest.mark.parametrize(
    ("tail", "eos_label", "expected"),
    [
        (1, "turn_end", [(4, END)]),
        (2, "turn_end", [(3, "]"), (4, END)]),
        (1, "last_token", [(5, "\n")]),
        (2, "last_token", [(4, END), (5, "\n")]),
        (99, "turn_end", [(0, "a"), (1, "["), (2, "Z"), (3, "]"), (4, END)]),
    ],
)
def test_a_tail_is_the_last_labels_whatever_they_are(tail, eos_label, expected):
    assert labelled("a[Z]", tail=tail, eos_label=eos_label)[0] == expected


def test_a_template_without_an_end_of_turn_token_is_refused():
    plain = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    with pytest.raises(ConfigurationError, match="end-of-turn"):
        Chat(characters(template=plain))


def test_the_turn_end_is_im_end():
    tokenizer = characters()
    assert Chat(tokenizer).turn_end == tokenizer.convert_tokens_to_ids("<|im_end|>")
