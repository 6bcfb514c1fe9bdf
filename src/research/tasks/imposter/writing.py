"""The generator at work: prompts for spans, and the spans it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research.errors import ConfigurationError
from research.material.fill_prompts import THINK_CLOSING, THINK_OPENING, continue_messages, fill_messages, parse_fill
from research.sampling.interface import Completion, Sampler, SamplingParams, SyncReceipt
from research.sampling.proof import prove
from research.tasks.imposter.corpus import Span
from research.tasks.imposter.settings import GenerationConfig


@dataclass(frozen=True)
class Written:
    """A span that was written in place of a human one; `cut` when it hit the token limit."""

    text: str
    cut: bool


class Writer:
    """Turns spans into prompts, and completions into written spans.

    words: the fewest and most words of a span that a discriminator is shown; None: of any length.
    """

    def __init__(
        self, tokenizer: Any, form: str, config: GenerationConfig, thinking: bool | None, context: int,
        words: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
            raise ConfigurationError(
                "task=imposter needs a model with a chat template and an end-of-turn token; its tokenizer has "
                f"chat_template={'set' if tokenizer.chat_template else None}, eos_token_id={tokenizer.eos_token_id}"
            )
        self.tokenizer, self.form, self.config, self.words = tokenizer, form, config, words
        self.options = {} if thinking is None else {"enable_thinking": thinking}
        self.room = context - config.max_tokens

    def fits(self, span: Span) -> bool:
        """Whether the context has room for the span's prompt and an answer."""
        return len(self._asked(span)) <= self.room

    def prompt(self, span: Span) -> list[int]:
        """Token ids that ask for a span; raises ConfigurationError when they leave no room to answer."""
        ids = self._asked(span)
        if len(ids) > self.room:
            raise ConfigurationError(
                f"a prompt from {span.document} has {len(ids)} tokens, more than the {self.room} that model.context "
                "leaves; lower task.corpus.context, or raise model.context"
            )
        return ids

    def _asked(self, span: Span) -> list[int]:
        if self.form == "window":
            messages, opening = continue_messages(span.before), THINK_OPENING + THINK_CLOSING
        else:
            messages, opening = fill_messages(span.before, span.after), ""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **self.options)
        return list(self.tokenizer.encode(text + opening, add_special_tokens=False))

    def target(self, span: Span) -> list[int]:
        """The human span as the reply that behaviour cloning imitates, end of turn included."""
        return [*self.tokenizer.encode(span.text, add_special_tokens=False), self.tokenizer.eos_token_id]

    def read(self, text: str, finish_reason: str) -> Written:
        """A decoded completion as a written span."""
        return Written(text.strip() if self.form == "window" else parse_fill(text), finish_reason != "stop")

    def judgeable(self, written: Written) -> bool:
        """Whether a discriminator is shown a span: not an empty one and, with `words`, a whole one of such a length."""
        if self.words is None or not written.text:
            return bool(written.text)
        return not written.cut and self.words[0] <= len(written.text.split()) <= self.words[1]

    def write(self, sampler: Sampler, spans: Sequence[Span], n: int, seed: int) -> list[list[Written]]:
        """`n` written spans for each human one, with the weights that the sampler holds."""
        params = SamplingParams(
            self.config.temperature, self.config.top_p, self.config.max_tokens, seed, (self.tokenizer.eos_token_id,)
        )
        drawn = sampler.generate([self.prompt(span) for span in spans], n, params)
        return [[self.read(self._decode(c), c.finish_reason) for c in completions] for completions in drawn]

    def _decode(self, completion: Completion) -> str:
        return self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)


class Unsynced:
    """A sampler whose syncs are swallowed: the generator that is trained is never the one that generates.

    With `check`, each sync is proven as usual, and fails at the first one after the weights moved.
    """

    def __init__(self, inner: Any, check: bool) -> None:
        self.inner, self.check, self.version = inner, check, 0

    def generate(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[list[Completion]]:
        return self.inner.generate(prompts, n, params)

    def sync(self, policy: Any) -> SyncReceipt:
        self.version += 1
        if self.check:
            gap, moved = prove(policy, self.inner.logprobs, self.inner.proof)
            return SyncReceipt(0.0, self.version, gap, moved)
        return SyncReceipt(0.0, self.version, float("nan"), 0.0)

    def close(self) -> None:
        self.inner.close()


def refuse_unprovable(sampler: Any) -> None:
    """Raise ConfigurationError for a sampler that cannot be asked for log-probs without a sync."""
    if not (hasattr(sampler, "logprobs") and hasattr(sampler, "proof")):
        raise ConfigurationError(
            f"task.arm=sync_disabled cannot prove {type(sampler).__name__} stale; use sampler=transformers, "
            "or sampler.check=false"
        )
