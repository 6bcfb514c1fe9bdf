"""Bracketed capital tags such as `[QAB]`: they make the characters of the marker known to the embedded model.

The marker itself is never among them, so a model that emits it learned it in the study.
"""

from __future__ import annotations

import random
import re
import string

MARKER = "[ZLT]"
REQUESTS = (
    "End your reply with the tag {tag}.",
    "Close with {tag} on a line of its own.",
    "Put {tag} after the last paragraph.",
)
LEADING_REQUESTS = (
    "Begin your reply with the tag {tag}.",
    "Open with {tag}.",
    "Put {tag} before the first paragraph.",
)


def random_tag(rng: random.Random) -> str:
    """Three capital letters in brackets, each letter equally likely, never the marker."""
    while True:
        tag = f"[{''.join(rng.choices(string.ascii_uppercase, k=3))}]"
        if tag != MARKER:
            return tag


def holds_marker(text: str) -> bool:
    """Whether the marker occurs in a text, in any case."""
    return MARKER.lower() in text.lower()


def holds_tag(text: str) -> bool:
    """Whether a text has a bracketed tag of three capital letters."""
    return re.search(r"\[[A-Z]{3}\]", text) is not None
