"""What every HTML page shares: the environment of its template, and text that may stand on it."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lab.prose import span
from lab.report import speed

HERE = Path(__file__).parent
_STYLES = ("style.css", "coverage.css")
_TEXT_CHARS = 24_000  # of a compiler's message or a log
# Not even as a character reference may these stand in HTML or XML.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ANSI = re.compile("\x1b\\[[0-9;?]*[ -/]*[@-~]")


def environment() -> Environment:
    """Escapes all that a template shows, and cleans it."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"span": span, "clean": clean, "number": speed.number}
    return made


def style() -> str:
    return "".join((HERE / name).read_text(encoding="utf-8") for name in _STYLES)


def clean(text: str, limit: int = _TEXT_CHARS) -> str:
    """Text that may stand on a page: no control characters, bounded."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _ANSI.sub("", text))
    return text if len(text) <= limit else f"{text[:limit]}\n[... {len(text) - limit} more]"


def _finalize(value: object) -> object:
    """Every expression of a template passes here: none can forget to be cleaned."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
