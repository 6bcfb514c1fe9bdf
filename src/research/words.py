"""The small commands beside `python -m research`: their KEY=VALUE words, and how a mistake is told."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.config import nearest
from research.errors import ConfigurationError


def settings(words: Sequence[str], known: Mapping[str, str | None]) -> dict[str, str]:
    """Every key's value. known: key -> default, None where one must be given.

    Raises ConfigurationError for an unknown key (with the nearest one), a word without `=`, and a missing value.
    """
    given = dict(known)
    for word in words:
        key, equals, value = word.partition("=")
        if key not in known:
            raise ConfigurationError(
                f"There is no key {key}.{nearest(key, known)} Write KEY=VALUE with {_named(known)}."
            )
        if (not value and known[key] is None) or not equals:
            raise ConfigurationError(f"{key}= has no value.")
        given[key] = value
    found = {key: value for key, value in given.items() if value is not None}
    if missing := known.keys() - found.keys():
        raise ConfigurationError(f"{min(missing)}= is missing. Write KEY=VALUE with {_named(known)}.")
    return found


def number(
    given: Mapping[str, str], key: str, kind: type[int] | type[float] = float, least: float = -math.inf,
    most: float = math.inf,
) -> Any:  # fmt: skip
    """A key's value as a number of that kind from least to most; raises ConfigurationError."""
    try:
        value = kind(given[key])
    except ValueError as error:
        raise ConfigurationError(f"{key}={given[key]!r} is no {'whole ' if kind is int else ''}number.") from error
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigurationError(f"{key}={given[key]} is not between {least:g} and {most:g}.")
    return value


def _named(known: Mapping[str, str | None]) -> str:
    return ", ".join(known)


def run(main: Callable[[Sequence[str]], int | None], description: str | None) -> None:
    """`main` on the program's words, its value the status. --help prints the description; a ConfigurationError is one line, and
    status 2."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(description)
        return
    try:
        sys.exit(main(sys.argv[1:]))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
