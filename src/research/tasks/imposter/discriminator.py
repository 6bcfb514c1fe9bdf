"""The discriminator: a sequence-classification encoder with one logit, over a span in its context. High means human.

    [CLS] before [SEP] span [SEP] after [SEP]

Any encoder that `AutoModelForSequenceClassification` loads will do. `small` is a DeBERTa-v2 built from a configuration,
on the generator's own tokenizer: it needs no download, and what the generator writes is tokenised as human text is.
Logits are natural-log odds of "human" under the logistic loss; under the margin loss only differences mean something.
Tensor shapes: B rows, T tokens, H hidden, S sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from research.cells.seeding import stable_seed
from research.errors import ConfigurationError
from research.material.prose import sentences_of
from research.tasks.imposter.corpus import Span
from research.tasks.imposter.settings import DiscriminatorConfig

WORD = re.compile(r"[A-Za-z_]{3,}")
HEAD_FILE = "sentence_head.pt"
MAX_UNKNOWN = 0.05  # share of unknown tokens in human text past which a tokenizer does not fit


@dataclass(frozen=True)
class Scored:
    """span: the logit of the span as a whole. sentences: one a sentence, from hidden states; empty without a reader."""

    span: float
    sentences: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """One input: token ids and types, where the span starts, and the lengths of its sentences in tokens."""

    ids: list[int]
    types: list[int]
    start: int
    parts: list[int]


class Discriminator(nn.Module):
    """The encoder with its head, and the optional reader of sentences: LayerNorm and a linear map of mean states."""

    def __init__(self, encoder: Any, tokenizer: Any, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.config = encoder, tokenizer, config
        hidden = encoder.config.hidden_size
        self.types = getattr(encoder.config, "type_vocab_size", 0)
        self.reader = (
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 1)) if config.reward_from == "sentences" else None
        )
        self.cls, self.sep, self.pad = _special_ids(tokenizer, strict=config.path != "small")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def head_parameters(self) -> list[nn.Parameter]:
        """Everything but the encoder's body: what head-only co-training moves."""
        body = {id(p) for p in self.encoder.base_model.parameters()}
        return [p for p in self.parameters() if id(p) not in body]

    def forward(self, spans: Sequence[Span]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Span logits (B,), and for each row its sentences' logits (S,); the list is empty without a reader.

        Raises ValueError for an empty span: it cannot be judged, and must be dropped and counted by the caller.
        """
        rows = [self.encode(span) for span in spans]
        width = max(len(row.ids) for row in rows)
        ids_BT = torch.full((len(rows), width), self.pad)
        mask_BT, type_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
        for i, row in enumerate(rows):
            ids_BT[i, : len(row.ids)] = torch.tensor(row.ids)
            type_BT[i, : len(row.ids)] = torch.tensor(row.types)
            mask_BT[i, : len(row.ids)] = 1
        inputs = {"input_ids": ids_BT.to(self.device), "attention_mask": mask_BT.to(self.device)}
        if self.types > 1:
            inputs["token_type_ids"] = type_BT.to(self.device)
        output = self.encoder(**inputs, output_hidden_states=self.reader is not None)
        if self.reader is None:
            return output.logits.float().squeeze(1), []
        hidden_BTH = output.hidden_states[-1]
        sentences = []
        for i, row in enumerate(rows):
            of_span_TH = hidden_BTH[i, row.start : row.start + sum(row.parts)]
            pooled_SH = torch.stack([part.mean(0) for part in of_span_TH.split(row.parts)])
            sentences.append(self.reader(pooled_SH).float().squeeze(1))
        return output.logits.float().squeeze(1), sentences

    def encode(self, span: Span) -> Row:
        """Tokens of a span in its context: the span whole up to half the length, the context cut far from the span.

        An encoder with four token types is told which words span and context share (2 in the span, 3 in the context): a
        small one does not learn to match words from a few thousand pairs.
        """
        around = _words(f"{span.before} {span.after}")
        sentences = [self._tokens(s, around, 1) for s in _parts(span.text, self.reader is not None)]
        sentences = [tokens for tokens in sentences if tokens]
        if not sentences:
            raise ValueError(f"the span from {span.document} is empty, so there is nothing to judge")
        room = self.config.max_length - 4
        sentences = _shortened(sentences, room // 2)
        inside = _words(span.text)
        before, after = self._tokens(span.before, inside, 0), self._tokens(span.after, inside, 0)
        room -= sum(map(len, sentences))
        keep_before = min(len(before), max(room // 2, room - len(after)))
        before, after = before[len(before) - keep_before :], after[: room - keep_before]
        text = [token for tokens in sentences for token in tokens]
        tokens = [(self.cls, 0), *before, (self.sep, 0), *text, (self.sep, 0), *after, (self.sep, 0)]
        return Row([i for i, _ in tokens], [t for _, t in tokens], len(before) + 2, [len(part) for part in sentences])

    def _tokens(self, text: str, shared: frozenset[str], kind: int) -> list[tuple[int, int]]:
        """(token id, token type) of a text; `kind` is 1 in the span, 0 in the context."""
        if not text.strip():
            return []
        if self.types < 4 or not self.tokenizer.is_fast:
            return [(i, kind) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spots = [m.span() for m in WORD.finditer(text) if m[0].lower() in shared]
        marked = {position for start, end in spots for position in range(start, end)}
        return [
            (i, 3 - kind if end - 1 in marked else kind)
            for i, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    @torch.inference_mode()
    def score(self, spans: Sequence[Span], rows: int = 64) -> list[Scored]:
        """Judge spans without dropout; logits may be NaN if the weights are, which callers count or refuse."""
        was_training = self.training
        self.eval()
        found = []
        for start in range(0, len(spans), rows):
            logits_B, sentences = self(spans[start : start + rows])
            by_row = [tuple(s.tolist()) for s in sentences] or [()] * len(logits_B)
            found += [Scored(logit, s) for logit, s in zip(logits_B.tolist(), by_row, strict=True)]
        self.train(was_training)
        return found

    def save(self, directory: Path) -> None:
        """Write the encoder as any library loads it, with its tokenizer, and the reader beside it."""
        self.encoder.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        if self.reader is not None:
            torch.save(self.reader.state_dict(), directory / HEAD_FILE)


def build(
    config: DiscriminatorConfig,
    generator_tokenizer: Any,
    human: Sequence[Span],
    seed: int,
    device: Any,
    embeddings_VH: torch.Tensor | None = None,
) -> Discriminator:
    """A discriminator before its training.

    human: a sample of the text it will judge. embeddings: the generator's token embeddings, which `small` starts from
    if its configuration says so; a few thousand spans teach it the meaning of few words.
    Raises ConfigurationError when the tokenizer does not fit model or text.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(stable_seed(seed, "discriminator"))
        if config.path == "small":
            encoder, tokenizer = _small(config, generator_tokenizer), generator_tokenizer
            if config.embeddings == "generator" and embeddings_VH is not None:
                _lend(embeddings_VH, encoder)
        else:
            try:
                tokenizer = AutoTokenizer.from_pretrained(config.path)
                encoder = AutoModelForSequenceClassification.from_pretrained(
                    config.path, num_labels=1, dtype=torch.float32
                )
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"task.discriminator.path={config.path!r} could not be loaded as a sequence classifier: {error}"
                ) from error
        discriminator = Discriminator(encoder, tokenizer, config)
    _check_tokenizer(discriminator, human)
    return discriminator.to(device)


def load(directory: Path, config: DiscriminatorConfig, device: Any) -> Discriminator:
    """A discriminator that `save` wrote."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    encoder = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=torch.float32)
    for parameter in encoder.parameters():  # out of the mapped file, where they lie unaligned and sums round otherwise
        parameter.data = parameter.data.clone()
    discriminator = Discriminator(encoder, AutoTokenizer.from_pretrained(directory), config)
    if discriminator.reader is not None:
        discriminator.reader.load_state_dict(torch.load(directory / HEAD_FILE, weights_only=True))
    return discriminator.to(device).eval()


def _small(config: DiscriminatorConfig, tokenizer: Any) -> Any:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "pooler_dropout": config.dropout,
        "num_hidden_layers": config.layers,
        "num_attention_heads": max(1, config.hidden // 32),
        "intermediate_size": 4 * config.hidden,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": 4,
        "relative_attention": True,
        "position_biased_input": False,
        "position_buckets": 64,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["p2c", "c2p"],
        "pad_token_id": _special_ids(tokenizer, strict=False)[2],
        "num_labels": 1,
    }
    return DebertaV2ForSequenceClassification(DebertaV2Config(**settings))


def _lend(embeddings_VH: torch.Tensor, encoder: Any) -> None:
    """Start an encoder's token embeddings from another model's: their leading principal axes, at the encoder's scale.

    Where the encoder is wider, the other axes stay as they were drawn.
    """
    own_VH = encoder.get_input_embeddings().weight
    lent_VH = embeddings_VH.detach().to("cpu", torch.float64)  # axes of nearly equal length turn with a rounding
    left_VK, values_K, _ = torch.linalg.svd(lent_VH - lent_VH.mean(0), full_matrices=False)
    axes_VK = (left_VK * values_K)[:, : own_VH.shape[1]]
    with torch.no_grad():
        own_VH[: len(axes_VK), : axes_VK.shape[1]] = axes_VK * (encoder.config.initializer_range / axes_VK.std())


def _special_ids(tokenizer: Any, strict: bool) -> tuple[int, int, int]:
    """Ids that open a row, separate its parts and pad it; a causal model's tokenizer lends its own special tokens."""
    pad = tokenizer.pad_token_id
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if not strict:
        sep = tokenizer.eos_token_id if sep is None else sep
        cls = (sep if tokenizer.bos_token_id is None else tokenizer.bos_token_id) if cls is None else cls
        pad = sep if pad is None else pad
    if None in (cls, sep, pad):
        raise ConfigurationError(
            f"the discriminator's tokenizer does not fit: {type(tokenizer).__name__} has cls={cls}, sep={sep}, "
            f"pad={pad}. Use an encoder such as DeBERTa, whose tokenizer has all three"
        )
    return cls, sep, pad


def _check_tokenizer(discriminator: Discriminator, human: Sequence[Span]) -> None:
    rows = discriminator.encoder.get_input_embeddings().weight.shape[0]
    if len(discriminator.tokenizer) > rows:
        raise ConfigurationError(
            f"the discriminator's tokenizer does not fit: it has {len(discriminator.tokenizer)} entries, "
            f"the model {rows}"
        )
    tokens = [token for span in human for token, _ in discriminator._tokens(span.text, frozenset(), 1)]
    unknown = sum(token == discriminator.tokenizer.unk_token_id for token in tokens)
    if not tokens or unknown > MAX_UNKNOWN * len(tokens):
        raise ConfigurationError(
            f"the discriminator's tokenizer does not fit the corpus: {unknown} of {len(tokens)} tokens are "
            "unknown to it"
        )


def _parts(text: str, by_sentence: bool) -> Iterator[str]:
    """The whole text, or its sentences with the whitespace between them left out."""
    yield from sentences_of(" ".join(text.split())) if by_sentence else [text]


def _words(text: str) -> frozenset[str]:
    return frozenset(word.lower() for word in WORD.findall(text))


def _shortened(parts: list[list[Any]], room: int) -> list[list[Any]]:
    """The first `room` tokens of the parts, in the same parts."""
    kept = []
    for part in parts:
        if room > 0:
            kept.append(part[:room])
            room -= len(part)
    return kept
