"""report.html: one self-contained file, its figures embedded; no network, no scripts."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from research.cells.cell import write_atomically
from research.task import Section

TEMPLATES = Path(__file__).with_name("templates")


def write_page(
    path: Path,
    *,
    title: str,
    subtitle: str,
    cards: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    details: Sequence[Section],
    links: Sequence[tuple[str, str]],
    provenance: str,
) -> Path:
    """Write the page.

    details: sections that start folded. links: (text, relative address). provenance: the closing line.
    """
    page = _environment().get_template("page.html.j2")
    text = page.render(
        title=title,
        subtitle=subtitle,
        cards=cards,
        sections=sections,
        details=details,
        links=links,
        provenance=provenance,
    )
    write_atomically(path, text)
    return path


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": inline, "embed": embed, "is_wide": is_wide, "is_number": is_number}
    environment.tests["item"] = lambda text: str(text).startswith("- ")
    return environment


def inline(text: str) -> Markup:
    """Escaped text with `code` and **bold** understood."""
    safe = str(escape(text))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe))


def embed(path: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def is_wide(path: Path) -> bool:
    """Whether a PNG is so wide that a phone should scroll it rather than shrink it."""
    header = Path(path).read_bytes()[16:24]
    return int.from_bytes(header[:4], "big") > 1.8 * int.from_bytes(header[4:], "big")


def is_number(value: Any) -> bool:
    """Whether a table's entry reads as a number, a range or a value with its interval, and is set to the right."""
    return bool(re.fullmatch(r"[-+−]?\d[\d.,e+\-–−%/ ]*(\[.*\])?|–", str(value)))
