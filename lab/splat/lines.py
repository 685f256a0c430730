"""One raw console line in; its text, the printk caller and signs of tearing out."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Everything that may stand before the message: a login prompt, a syslog header, <level>,
# "** n printk messages dropped **", the time stamp, the caller (CONFIG_PRINTK_CALLER).
_STAMP = re.compile(
    r"(?P<lead>.{0,90}?)\[ *(?P<time>\d{1,9}\.\d{3,6})\](?:\[ *(?P<caller>[TC]\d+)\])? ?"
)
# printk's own lines end at 1 KiB; a console that lost its line ends must not cost a search of each.
_LONGEST = 8192
_LEVEL = re.compile(r"^<\d{1,3}>")
_TORN = re.compile(r"\[ *\d{1,6}\.\d{6}\](?:\[ *[TC]\d+\])? ")
_DROPPED = re.compile(r"\*\* \d+ printk messages? dropped")
# printk's own text before a stamp is no reason to doubt the stamp.
_TIMESTAMPED_TOOL = re.compile(r"^(?:\w{3} +\d+ [\d:]+|\d{4}[-/]\d\d[-/]\d\d)\S* ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A console line taken apart."""

    number: int  # 1-based
    text: str  # without stamp and caller
    caller: str  # "T123", "C0"; "" if the line names none
    stamped: bool  # it has a printk time stamp
    time_s: float | None
    torn: bool  # another line's stamp in the middle of it


def parse(number: int, raw: str) -> Line:
    """The parts of one raw line. Never fails: what is not understood is text."""
    raw = raw[:_LONGEST].rstrip("\r\n")
    match = _STAMP.match(raw)
    if match is None:
        text = _TIMESTAMPED_TOOL.sub("", _LEVEL.sub("", raw))
        return Line(number=number, text=text, caller="", stamped=False, time_s=None, torn=False)
    lead = _LEVEL.sub("", match["lead"]).strip()
    text = raw[match.end() :]
    torn = bool(_TORN.search(text))
    return Line(
        number=number,
        text=text,
        caller=match["caller"] or "",
        stamped=True,
        time_s=float(match["time"]),
        torn=torn or bool(lead and _looks_like_report(lead)),
    )


def _looks_like_report(lead: str) -> bool:
    """Half a kernel message before the stamp: two printers shared the line."""
    return bool(re.search(r"\+0x[0-9a-f]+/0x|Call Trace|WARNING: CPU|BUG: ", lead))


def dropped(raw: str) -> bool:
    """Did printk say that it lost messages here?"""
    return bool(_DROPPED.search(raw))
