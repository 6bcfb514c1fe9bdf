"""The small commands beside `python -m research`: their KEY=VALUE words, and how a mistake is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.config import nearest
from research.errors import ConfigurationError


def settings(words: Sequence[str], known: Mapping[str, str | None]) -> dict[str, str]:
    """Every key's value. known: key -> default, None where one must be given.

    Raises ConfigurationError for a word without `=`, an unknown key (with the nearest one), and a missing value.
    """
    given = dict(known)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise ConfigurationError(
                f"There is no key {key}.{nearest(key, known)} Write KEY=VALUE with {_named(known)}."
            )
        given[key] = value
    found = {key: value for key, value in given.items() if value is not None}
    if missing := known.keys() - found.keys():
        raise ConfigurationError(f"{min(missing)}= is missing. Write KEY=VALUE with {_named(known)}.")
    return found


def number(given: Mapping[str, str], key: str, kind: type[int] | type[float] = float) -> Any:
    """A key's value as a number of that kind; raises ConfigurationError."""
    try:
        return kind(given[key])
    except ValueError as error:
        raise ConfigurationError(f"{key}={given[key]!r} is no {'whole ' if kind is int else ''}number.") from error


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
