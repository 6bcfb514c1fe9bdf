"""The imposter study's prompts: what is asked, and how replies are read."""

import pytest

from research.material import fill_prompts as prompts
from research.material import prose

SENTENCES = [
    "The first sentence says what it is about.", "Too short.", "The third one is removed here.",
    "The fourth one closes the text again.",
]  # fmt: skip


def test_gaps_have_their_context_and_nothing_of_the_sentence():
    found = list(prompts.gaps(SENTENCES, context=1))
    assert [g.sentence for g in found] == [SENTENCES[2]]  # others: too short, or too little context in one neighbour
    assert (found[0].before, found[0].after) == (SENTENCES[1], SENTENCES[3])
    assert len(list(prompts.gaps(SENTENCES, context=3))) == 3
    assert list(prompts.gaps([SENTENCES[0]] * 3)) == []  # repeated in its own context
    assert list(prompts.gaps([])) == []


def test_fill_prompt_shows_the_gap_once_and_the_reply_is_the_sentence():
    user = prompts.fill_messages("Before it.", "After it.")[1]["content"]
    assert user == "Before it. ____ After it."
    assert prompts.fill_messages("", "After it.")[1]["content"] == "____ After it."
    assert prompts.parse_fill("<think>\nhm\n</think>\n The\n sentence. ") == "The sentence."
    assert prompts.parse_fill('"A quoted one."') == "A quoted one."
    assert prompts.parse_fill('"One," he said, "two."') == '"One," he said, "two."'
    assert prompts.parse_fill(" \n") == ""


@pytest.mark.parametrize("reasoning", ["", "It goes on."])
def test_continuation_survives_the_round_trip(reasoning):
    reply = prompts.thought_reply("and so on,\n  indented", reasoning)
    assert prompts.parse_thought(reply) == prompts.Thought(reasoning, "and so on,\n  indented", True)


def test_reply_without_a_closed_tag_has_no_answer():
    assert prompts.parse_thought("I go on thinking") == prompts.Thought("I go on thinking", "", False)


def test_judgement():
    assert prompts.parse_judgement("It is real, no?\n</think>\ngenerated") == "generated"
    assert prompts.parse_judgement("</think>\nReal.") == "real"
    assert prompts.parse_judgement("real") is None
    assert prompts.parse_judgement("</think>\nwho knows") is None


def test_sketch_names_the_longest_words_in_order():
    assert (
        prompts.sketch("The interpreter evaluates a condition and then it stops", 2) == "Next: interpreter, evaluates."
    )


def test_the_embedded_prose_gives_gaps_enough():
    assert sum(1 for d in prose.documents("train") for _ in prompts.gaps(d.sentences)) > 1000
