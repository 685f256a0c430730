"""Words for people: times, and texts from elsewhere that must not steer a terminal."""

from __future__ import annotations

import pytest

from lab import prose

EVIL = "a\x1b[2Jb\tc\u202ed\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (9.97, "10.0 s"), (41, "41 s"), (725, "12m 05s"), (12000, "3h 20m")],
)
def test_span(seconds: float, text: str) -> None:
    assert prose.span(seconds) == text


def test_texts_from_elsewhere_steer_nothing() -> None:
    assert prose.printable(EVIL) == "a\N{REPLACEMENT CHARACTER}[2Jb c\N{REPLACEMENT CHARACTER}d"
    assert prose.printable_line("  a\tb\x07") == "  a     b "
    assert prose.shown("a\x9bm\r") == "a\N{REPLACEMENT CHARACTER}m\N{REPLACEMENT CHARACTER}"
    assert prose.cut("  a\x1bbc\n", 3) == "a b"
