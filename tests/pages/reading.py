"""Pages as text: what is swept for numbers, what stands in code, which numbers nobody has accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Not part of a name: float32, H200, W0 and H1 have their digits behind a letter.
NUMBER = re.compile(r"(?<![\w.])(?:\d[\d,]*)?\.?\d+(?:e-?\d+)?")
_COMMAND = re.compile(r"(?m)^(?: {4}|)(?:make|torchrun|python) .*?(?=  |\s#|$)")
_NOT_PROSE = (r"```", r"`[^`]*`", r"\]\([^)]*\)")  # what is left of fences, code, the address of a link


def text(page: str, section: str | None = None) -> str:
    """A page, or one `##` section of it ("" where it has none), on one line."""
    found = (ROOT / page).read_text()
    if section is not None:
        found = found.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return flat(_COMMAND.sub("", found))


def flat(lines: str) -> str:
    """However its lines are broken."""
    return " ".join(lines.split())


def unaccounted(page_text: str, sentences: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Numbers outside of the sentences, of what the patterns match and of code: `1,000 in "... of 1,000 cells ..."`."""
    covered = [match.span() for pattern in (*patterns, *_NOT_PROSE) for match in re.finditer(pattern, page_text)]
    for sentence in filter(None, sentences):
        covered += [match.span() for match in re.finditer(re.escape(sentence), page_text)]
    return [
        f'{match.group()} in "{page_text[max(0, match.start() - 40) : match.end() + 40]}"'
        for match in NUMBER.finditer(page_text)
        if not any(start <= match.start() and match.end() <= end for start, end in covered)
    ]


def table_rows(lines: str) -> dict[str, str]:
    """The rows of the tables in a text, without the spaces around their cells -> as they stand, on one line."""
    rows = [line for line in lines.splitlines() if line.startswith("|") and not set(line) <= set("|-: ")]
    return {re.sub(r" *\| *", "|", flat(row)): flat(row) for row in rows}


def commands(page: str, start: str) -> list[str]:
    """The commands of a page that begin with `start`, from code within lines and from blocks."""
    return [found.strip() for found in re.findall(rf"{re.escape(start)}[^`\n]*?(?=`|\n|&&|  |\s#)", _read(page))]


def links(page: str) -> list[Path]:
    """Files beside the page that it links to or shows."""
    found = re.findall(r"\]\(([^)#]+)\)", _read(page))
    return [(ROOT / page).parent / link for link in found if "://" not in link]


def results(page: str) -> list[Path]:
    """What it names under eval_results/; not what a command reads or writes, for that is the reader's own."""
    return [ROOT / name for name in re.findall(r"(?<![=\w/])eval_results/[\w./-]*\w", _read(page))]


def _read(page: str) -> str:
    return (ROOT / page).read_text()
