"""What goes to the process that reads debug information, and what comes back: plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One place, as a log names it."""

    function: str
    offset: int
    size: int
    module: str  # "" in the kernel proper
    exact: bool  # False: a return address, so the call is just before it


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLine:
    function: str
    file: str  # relative to the kernel tree
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Innermost inlined function first; empty with a note that says why."""

    lines: tuple[SourceLine, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    vmlinux: str
    modules: dict[str, str]  # name as logs have it -> file
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    answers: tuple[Answer, ...]  # one for each query, in their order
    complaint: str = ""  # why none could be given
