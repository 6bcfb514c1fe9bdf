"""The embedded model's tokenizer: byte-level BPE trained on the corpus, with the ChatML template of the Qwen family."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from research.models.micro.corpus import END_OF_TEXT, TAUGHT, TURN_END, TURN_START, Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
SAMPLE = 60_000
# Words, single digits, punctuation runs and line breaks apart, as Qwen's and GPT-4's tokenizers split them.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def train_tokenizer(documents: list[Document], context: int, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Fit the BPE merges on a fixed sample of the corpus; the vocabulary counts the three special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_sample(documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _sample(documents: list[Document]) -> Iterable[str]:
    """Taught text only: prompts repeat a few sentences and would take merges from what is written."""
    chosen = random.Random("tokenizer").sample(documents, min(SAMPLE, len(documents)))
    for document in chosen:
        for text, weight in document.segments:
            if weight >= TAUGHT:
                yield text.replace(TURN_END, "").replace(END_OF_TEXT, "")
