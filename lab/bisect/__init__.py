"""Revisions and a way to test one come in; the first bad one, and how sure that is, go out."""

from lab.bisect.log import VERSION, Header, header, line, replay
from lab.bisect.repeat import Rates, settled
from lab.bisect.search import (
    Bench,
    Ending,
    Pick,
    Result,
    Revision,
    Rules,
    State,
    Step,
    StepKind,
    after,
    begin,
    decide,
    search,
)

__all__ = [
    "VERSION",
    "Bench",
    "Ending",
    "Header",
    "Pick",
    "Rates",
    "Result",
    "Revision",
    "Rules",
    "State",
    "Step",
    "StepKind",
    "after",
    "begin",
    "decide",
    "header",
    "line",
    "replay",
    "search",
    "settled",
]
