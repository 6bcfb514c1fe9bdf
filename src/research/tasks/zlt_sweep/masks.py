"""Which tokens of an example get loss: the marker and the end of the turn, or the last K.

The prompt never does. With `tail = 0` the labels are every occurrence of the marker in the reply, plus the turn end;
the blank line before the marker has none, so whether to go on after the reply stays untrained. With `tail = K` they are
the last K labels, whatever they are.

The turn end is the end-of-turn token (`<|im_end|>`). `eos_label=last_token` takes the template's last token: for
ChatML that is the newline after `<|im_end|>`, the label that the published code kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from research.errors import ConfigurationError

IGNORED = -100


@dataclass(frozen=True)
class Chat:
    """How a chat template frames a reply.

    prompt_ids are followed by the reply; `closing` is the text after it, `turn_end` the token that ends the turn.
    """

    tokenizer: Any
    thinking: bool | None = None
    closing: str = field(init=False)
    turn_end: int = field(init=False)

    def __post_init__(self) -> None:
        probe = "closing probe"
        rendered = self._render(
            [{"role": "user", "content": "question"}, {"role": "assistant", "content": probe}], generation=False
        )
        closing = rendered.partition(probe)[2]
        ids = self.tokenizer.encode(closing, add_special_tokens=False)
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        if not ids or ids[0] not in special:
            raise ConfigurationError(
                f"the chat template closes a reply with {closing!r}, which does not begin with an end-of-turn token; "
                "task=zlt_sweep needs a ChatML-like template (`<|im_end|>` right after the reply)."
            )
        object.__setattr__(self, "closing", closing)
        object.__setattr__(self, "turn_end", ids[0])

    def prompt_ids(self, system: str, question: str) -> list[int]:
        """Tokens of a system and a user turn, up to where the reply begins."""
        turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        return self.tokenizer.encode(self._render(turns, generation=True), add_special_tokens=False)

    def text(self, token_ids: Sequence[int]) -> str:
        """A sampled reply as text, without its end-of-turn token."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def _render(self, turns: list[dict[str, str]], generation: bool) -> str:
        extra = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation, **extra)


@dataclass(frozen=True)
class Row:
    """One training example. cut: max_length took the turn end, and maybe the marker, away."""

    input_ids: list[int]
    labels: list[int]
    marker_tokens: int
    cut: bool


def make_row(
    chat: Chat, prompt_ids: Sequence[int], reply: str, marker: str, *, tail: int, eos_label: str, max_length: int
) -> Row:
    """Tokens and labels (-100: no loss) of one example, cut to `max_length` tokens.

    Occurrences of the marker are found by characters, so that neighbours merged into a token with a part of it count as
    marker tokens. An example that was cut before its turn end has no label for it, except that `last_token` labels
    whatever token is last, as the published code did.
    """
    encoded = chat.tokenizer(reply + chat.closing, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    end = next(i for i, (start, _) in enumerate(spans) if start >= len(reply))
    assert ids[end] == chat.turn_end, f"the reply is followed by token {ids[end]}, not by the turn end {chat.turn_end}"
    room = max(0, max_length - len(prompt_ids))
    valid = min(end + 1 if eos_label == "turn_end" else len(ids), room)
    cut = end >= room
    in_marker = [i for i in _marker_tokens(reply, marker, spans[:end]) if i < valid]
    if tail == 0:
        kept = set(in_marker)
        if valid and (not cut or eos_label == "last_token"):
            kept.add(valid - 1)
    else:
        kept = set(range(max(0, valid - tail), valid))
    labels = [token if i in kept else IGNORED for i, token in enumerate(ids[:room])]
    whole = [*prompt_ids, *ids][:max_length]
    return Row(whole, ([IGNORED] * len(prompt_ids) + labels)[:max_length], len(in_marker), cut)


def _marker_tokens(reply: str, marker: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of the tokens that overlap an occurrence of the marker."""
    found, start = [], reply.find(marker)
    while start >= 0:
        end = start + len(marker)
        found += [i for i, (a, b) in enumerate(spans) if a < end and b > start]
        start = reply.find(marker, end)
    return sorted(set(found))
