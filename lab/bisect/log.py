"""Steps of a search go in, lines of JSON come out, and the other way round: a log that replays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lab.bisect.search import Revision, State, Step, after, begin
from lab.model import LabFault

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first line: what is searched, and in what."""

    version: int
    created: str
    lab_version: str
    command: tuple[str, ...]
    question: str  # digest of all that the answers depend on: equal questions share a log
    what: str  # "series", "history", "fragments"
    symptom: str  # what counts as bad, for people
    revisions: tuple[Revision, ...]


def header(value: Header) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def line(step: Step) -> bytes:
    """A step as it is appended to the log."""
    return msgspec.json.encode(step) + b"\n"


def replay(raw: bytes) -> tuple[Header, State, int]:
    """What a log says: header, state, and how many of its bytes are whole lines.

    A last line without its end was cut off while it was written, and does not count. Raises
    `LabFault` for anything else that cannot be read.
    """
    whole = raw.rfind(b"\n") + 1
    lines = raw[:whole].splitlines()
    if not lines:
        raise LabFault("the log of this bisection is empty", hint="remove it")
    try:
        first = msgspec.json.decode(lines[0], type=Header)
        if first.version != VERSION:
            raise LabFault(
                f"the log of this bisection is of version {first.version}, not {VERSION}",
                hint="another version of the lab wrote it: --fresh starts anew",
            )
        steps = [msgspec.json.decode(one, type=Step) for one in lines[1:]]
    except msgspec.MsgspecError as error:
        raise LabFault(
            f"the log of this bisection cannot be read: {error}", hint="--fresh starts anew"
        ) from error
    return first, _folded(first.revisions, steps), whole


def _folded(revisions: Sequence[Revision], steps: Sequence[Step]) -> State:
    state = begin(revisions)
    for step in steps:
        if not 0 <= step.revision <= state.last:
            raise LabFault(f"the log of this bisection names revision {step.revision}")
        state = after(state, step)
    return state
