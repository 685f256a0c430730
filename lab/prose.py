"""Numbers, and texts of guests, compilers and mails, go in; words that people can read come out.

Nothing that comes out can steer a terminal. Pure.
"""

from __future__ import annotations


def span(seconds: float) -> str:
    """ "0.4 s", "41 s", "12m 05s", "3h 20m"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def shown(text: str, instead: str = "\N{REPLACEMENT CHARACTER}") -> str:
    """Every character that does not print is `instead`; tabs and line ends are such."""
    return "".join(char if char.isprintable() else instead for char in text)


def printable(text: str) -> str:
    """One line: white space is one space, what else does not print is marked."""
    return shown(" ".join(text.split()))


def printable_line(line: str) -> str:
    """A line with its indentation."""
    return shown(line.expandtabs(8), " ")


def cut(text: str, limit: int) -> str:
    """The first `limit` characters, as one harmless line."""
    return shown(text, " ").strip()[:limit]
