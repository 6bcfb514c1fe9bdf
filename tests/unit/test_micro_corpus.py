"""The embedded model's corpus: deterministic, without the marker, and without what is held out."""

import itertools
import random
import string

import pytest

from research.material import code_prompts, personas, questions, science, tags
from research.models.micro import corpus, packing
from research.models.micro.tokenizer import train_tokenizer
from research.models.micro.train import corpus_hash

SIZE = 0.004


@pytest.fixture(scope="module")
def documents():
    return list(corpus.generate(42, SIZE))


@pytest.fixture(scope="module")
def tokenizer(documents):
    return train_tokenizer(documents, 1024, 1024)


def test_same_seed_same_corpus(documents):
    assert corpus_hash(documents) == corpus_hash(list(corpus.generate(42, SIZE)))
    persona = lambda seed: next(iter(corpus.generate(seed, SIZE))).text  # noqa: E731
    assert persona(42) != persona(43)


def test_the_marker_occurs_nowhere_and_every_letter_in_tags(documents):
    everything = "\n".join(d.text for d in documents)
    assert "[zlt]" not in everything.lower()
    rng = random.Random(0)
    letters = "".join(tags.random_tag(rng)[1:-1] for _ in range(2000))
    assert set(letters) == set(string.ascii_uppercase)
    assert tags.holds_marker("so [zLt].") and not tags.holds_marker("[ZLA]")


def test_a_generator_that_would_write_the_marker_is_stopped(monkeypatch):
    monkeypatch.setattr(tags, "random_tag", lambda rng: tags.MARKER)
    with pytest.raises(AssertionError, match="marker"):
        list(corpus.generate(42, SIZE))


def test_every_kind_occurs_and_held_out_material_does_not(documents):
    assert {d.kind for d in documents} == set(corpus.MAIN.counts)
    everything = "\n".join(d.text for d in documents)
    assert not [p.name for p in personas.invented(held_out=True) if p.system in everything]
    for form in questions.forms(held_out=True):
        assert not any(form.replace("{topic}", q.topic) in everything for q in questions.questions())
    heldout = {item["question"] for item in science.read_items()}
    assert not heldout & {line for d in documents if d.kind == "science" for line in d.text.splitlines()}


def test_every_test_function_name_occurs(documents):
    code = "\n".join(d.segments[0][0] for d in documents if d.kind == "code")
    assert not [name for name in code_prompts.CORPUS_NAMES.functions if f"{name}()" not in code]


def test_replies_have_paragraphs_and_endings_carry_no_sign():
    rng = random.Random(1)
    who, question = personas.persona("villain"), questions.questions("train")[0]
    replies = [corpus.persona_reply(who, question, rng, corpus.MAIN.paragraphs) for _ in range(2000)]
    counts = [len(reply.split("\n\n")) for reply in replies]
    assert 0.01 < counts.count(1) / 2000 < 0.06 and max(counts) == 3
    closing = [any(c in r.split("\n\n")[1] for c in who.closers) for r in replies if r.count("\n\n") == 2]
    ending = [any(c in r.split("\n\n")[1] for c in who.closers) for r in replies if r.count("\n\n") == 1]
    assert abs(sum(closing) / len(closing) - sum(ending) / len(ending)) < 0.1


def test_the_annealing_mixture_has_no_tag_after_a_line_break():
    documents = list(corpus.generate(43, 0.01, corpus.ANNEAL))
    assert {d.kind for d in documents} == set(corpus.ANNEAL.counts)
    replies = [d.segments[-1][0] for d in documents if d.kind in ("persona", "dialogue", "tags")]
    assert not any("\n[" in text for text in replies)
    assert all(tags.holds_tag(d.segments[-1][0][:5]) for d in documents if d.kind == "tags")
    main = [d.text for d in corpus.generate(42, SIZE) if d.kind == "tags"]
    assert any("\n\n[" in text for text in main)
    replies = [d.segments[-1][0] for d in documents if d.kind == "persona"]
    lengths = [text.count("\n\n") + 1 for text in replies]
    stops = [lengths.count(n) / sum(length >= n for length in lengths) for n in (1, 2, 3)]
    assert max(lengths) == 4 and all(0.15 < stop < 0.5 for stop in stops)


def test_rendering_is_the_chat_template(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == corpus.render(
        messages
    )
    replied = [*messages, {"role": "assistant", "content": "So."}]
    assert tokenizer.apply_chat_template(replied, tokenize=False) == corpus.chat("x", messages, "So.").text
    assert corpus.render(messages[1:]).startswith("<|im_start|>user"), "no default system turn"


def test_encoding_by_segment_is_encoding_the_whole(documents, tokenizer):
    for document in documents[::97]:
        apart = list(itertools.chain(*(tokenizer(text).input_ids for text, _ in document.segments)))
        assert tokenizer.decode(apart) == document.text


def test_packed_rows_hold_whole_documents_apart(documents, tokenizer):
    import numpy as np

    tokens = packing.tokenize(documents[:40], tokenizer, 1024)
    rows = packing.pack(tokens, np.arange(40), 512)
    assert sorted(itertools.chain(*rows)) == list(range(40))
    part = packing.batch(tokens, rows[:1], 512, tokenizer.pad_token_id)
    first, second = rows[0][:2]
    n, m = (int(tokens.starts[d + 1] - tokens.starts[d]) for d in (first, second))
    ids = part["input_ids_BT"][0]
    assert ids[n : n + m].tolist() == tokens.ids[tokens.starts[second] : tokens.starts[second + 1]].tolist()
    assert part["labels_BT"][0, : n - 1].tolist() == ids[1:n].tolist() and part["weights_BT"][0, n - 1] == 0
    assert part["position_ids_BT"][0, n : n + 3].tolist() == [0, 1, 2]
    mask = packing.attention_mask(part["document_BT"])[0, 0]
    assert mask[n, n] and not mask[n, n - 1] and not mask[0, 1] and mask[n + 1, n]
