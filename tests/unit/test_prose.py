"""The embedded prose: cleaning, sentences, and splits that never overlap."""

import itertools
import re

import pytest

from research.errors import ConfigurationError
from research.material import prose


def test_sentences_end_where_a_reader_ends_them():
    text = (
        'Use it, e.g. In a loop, as in RFC 2. It gives 3.5 (see J. Smith et al. Later). "Is it?" Yes! (Perhaps.) End.'
    )
    assert prose.sentences_of(text) == [
        "Use it, e.g. In a loop, as in RFC 2.", "It gives 3.5 (see J. Smith et al. Later).",
        '"Is it?"', "Yes!", "(Perhaps.)", "End.",
    ]  # fmt: skip
    assert prose.sentences_of("") == []


def test_cleaning_keeps_prose_and_drops_code_tables_and_signatures():
    docstring = """frobnicate(a, b=2) -> int

    Return the sum of both arguments,
    which must be *positive* integers.  The default of ``b`` suits
    most callers.

    >>> frobnicate(1)
    3

    Name    Value
    ======  =====
    one     1

    - The first rule is that nothing is ever
      returned twice.
    - too short

    Example::

        x = frobnicate(1)

    term
        A definition is kept without the term that it defines.

    The “quoted” words — like these — end up as plain characters.
    """
    assert prose.paragraphs_of(docstring) == [
        "Return the sum of both arguments, which must be positive integers. The default of b suits most callers.",
        "The first rule is that nothing is ever returned twice.",
        "A definition is kept without the term that it defines.",
        'The "quoted" words - like these - end up as plain characters.',
    ]


def test_splits_share_neither_source_nor_sentence():
    for one, other in itertools.combinations(prose.SPLITS, 2):
        a, b = prose.documents(one), prose.documents(other)
        assert not {d.source for d in a} & {d.source for d in b}
        words = [{re.sub(r"\W+", " ", s).lower() for s in prose.iter_sentences(split)} for split in (a, b)]
        assert not words[0] & words[1]


def test_there_is_prose_enough_for_every_split():
    words = {split: sum(len(d.text.split()) for d in prose.documents(split)) for split in prose.SPLITS}
    assert words["train"] > 30_000 and words["cotrain"] > 15_000 and words["heldout"] > 15_000, words
    assert sum(words.values()) == sum(len(d.text.split()) for d in prose.documents())


def test_documents_read_as_prose():
    for document in prose.documents():
        assert document.text.isascii() and ">>>" not in document.text and "____" not in document.text
        assert len(document.sentences) >= 2 and all(s and s == " ".join(s.split()) for s in document.sentences)


def test_order_and_hash_are_a_function_of_the_text_alone():
    everything = prose.documents()
    assert list(everything) == sorted(everything, key=lambda d: (d.source, d.paragraphs))
    before = {split: prose.content_hash(split) for split in prose.SPLITS}
    prose.documents.cache_clear()
    prose._all_documents.cache_clear()
    assert {split: prose.content_hash(split) for split in prose.SPLITS} == before
    assert len(set(before.values())) == 3


def test_the_split_of_a_source_never_moves():
    assert [prose.split_of(s) for s in ("topic:if", "topic:class", "module:argparse", "module:os")] == [
        "train",
        "train",
        "heldout",
        "train",
    ]
    with pytest.raises(ConfigurationError, match="no prose split 'test'"):
        prose.documents("test")
