"""Output of a kernel self-test goes in, its parts and their states come out. Pure.

Three dialects: KTAP and TAP ("ok 1 name # SKIP why"), also nested and behind the "# " that
run_kselftest.sh puts before every line; the lines of a test's own that run_kselftest.sh adds
("ok 1 selftests: vm: madv_populate"); and vm's run_vmtests.sh ("running ./x", then "[PASS]").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from lab import prose
from lab.model import CaseState

_OUTER = re.compile(r"(not )?ok \d+ selftests: ([\w./-]+): ([\w./+-]+)(?: # (.*))?")
_RESULT = re.compile(r"(\s*)(not )?ok +(\d+)\b(?: *-)? ?([^#]*)(?:# *(.*))?")
_PLAN = re.compile(r"(\s*)1\.\.(\d{1,6})(?:\s*#\s*(.*))?")
_PROTOCOL = re.compile(r"#|(?:not )?ok\b|\d+\.\.\d")
_RUNNING = re.compile(r"running (\S.*)")
_RULE = re.compile(r"-+")
_BRACKET = re.compile(r"\[(PASS|FAIL|SKIP)\]")
_NAME_MAX = 100
_MESSAGE_MAX = 300
_PARTS_MAX = 2000
_EXPECTED = ("TODO", "XFAIL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One result inside of a test."""

    name: str
    state: CaseState
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """What run_kselftest.sh says of a whole test."""

    state: CaseState
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that could be read."""

    outer: Outer | None  # None: no word on the end of the test
    parts: tuple[Part, ...]
    planned: int | None  # parts, as the outermost plan says; None: there is no plan
    seen: int  # results at the level of that plan
    bail: str = ""  # why the test gave up


def read(output: str, test: str) -> Report:
    """The report of one test ("madv_populate"). Never raises, whatever a guest may print."""
    outer: Outer | None = None
    inner: list[str] = []
    for line in output.splitlines():
        found = _OUTER.fullmatch(line.rstrip())
        if found and found[3] == test:
            outer = _outer(bool(found[1]), found[4] or "", plain(inner[-1]) if inner else "")
        elif line.startswith("# ") and not line.startswith("# selftests: "):
            inner.append(line[2:])
    sections = _sections(inner)
    if sections:
        parts = [part for name, lines in sections for part in _section(name, lines)]
        return Report(
            outer=outer, parts=tuple(_unique(parts[:_PARTS_MAX])), planned=None, seen=len(sections)
        )
    planned, seen, results, bail = _tap(inner)
    parts = _unique(results[:_PARTS_MAX])
    return Report(outer=outer, parts=tuple(parts), planned=planned, seen=seen, bail=bail)


def _outer(failed: bool, note: str, last: str) -> Outer:
    """`last`: what the test said last, where nothing says more."""
    word = note.split(" ", 1)[0].upper()
    if word == "SKIP":
        if (plan := _PLAN.fullmatch(last)) and (plan[3] or "").upper().startswith("SKIP"):
            last = plain(plan[3][4:])
        return Outer(
            state=CaseState.SKIPPED, message=plain(note[4:]) or last or "the test skips itself"
        )
    if word == "TIMEOUT":
        return Outer(state=CaseState.TIMEOUT, message=plain(note))
    if failed:
        # "exit=1" is all that run_kselftest.sh knows; results the test reported come as parts.
        words = "" if _PROTOCOL.match(last) else last
        said = (plain(note) or "the test failed", words)
        return Outer(state=CaseState.FAILED, message=plain(": ".join(filter(None, said))))
    return Outer(state=CaseState.PASSED, message="")


def _tap(lines: Sequence[str]) -> tuple[int | None, int, list[Part], str]:
    """Plan, results at its level, all results, and why it bailed out."""
    planned: int | None = None
    level = 0
    seen = 0
    bail = ""
    results: list[tuple[int, Part]] = []
    for line in lines:
        if (plan := _PLAN.fullmatch(line.rstrip())) and (planned is None or len(plan[1]) <= level):
            planned, level = int(plan[2]), len(plan[1])
        elif line.lstrip().startswith("Bail out!"):
            bail = plain(line.partition("!")[2]) or "without a reason"
        elif (result := _RESULT.fullmatch(line.rstrip())) is not None:
            depth = len(result[1])
            part = _result(result)
            # What came before it, further in, is what it consists of.
            at = len(results)
            while at and results[at - 1][0] > depth:
                at -= 1
            results[at:] = [
                (deeper, replace(one, name=plain(f"{part.name}/{one.name}", _NAME_MAX)))
                for deeper, one in results[at:]
            ]
            results.append((depth, part))
            seen += depth <= level
    return planned, seen, [part for _, part in results], bail


def _result(found: re.Match[str]) -> Part:
    failed, note = bool(found[2]), (found[5] or "").strip()
    name = plain(found[4], _NAME_MAX) or f"test {found[3]}"
    word = note.split(" ", 1)[0].upper().rstrip(":")
    if word.startswith("SKIP"):
        return Part(
            name=name, state=CaseState.SKIPPED, message=plain(note[4:]) or "no reason given"
        )
    if word == "XFAIL" or (failed and word in _EXPECTED):
        # It fails, and its author knew: neither a pass nor news.
        return Part(name=name, state=CaseState.SKIPPED, message=f"expected to fail: {plain(note)}")
    state = CaseState.FAILED if failed else CaseState.PASSED
    return Part(name=name, state=state, message=plain(note) if failed else "")


def _sections(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The programs that run_vmtests.sh starts, each with what it said until the next.

    What it starts is underlined; programs say "running" of themselves, too.
    """
    sections: list[tuple[str, list[str]]] = []
    for line, below in zip_longest(lines, lines[1:], fillvalue=""):
        begun = _RUNNING.fullmatch(line.strip())
        if begun and _RULE.fullmatch(below.strip()):
            sections.append((plain(begun[1], _NAME_MAX), []))
        elif sections:
            sections[-1][1].append(line)
    return sections


def _section(name: str, lines: Sequence[str]) -> list[Part]:
    """One program, and behind it the results that it reported itself."""
    planned, seen, results, bail = _tap(lines)
    inner = [replace(one, name=plain(f"{name}/{one.name}", _NAME_MAX)) for one in results]
    ends = [found[1] for line in lines if (found := _BRACKET.fullmatch(line.strip()))]
    if not ends:
        whole = Part(name=name, state=CaseState.MISSING, message="it began, and has no result")
    elif ends[-1] == "FAIL":
        whole = Part(name=name, state=CaseState.FAILED, message=bail or "it says [FAIL]")
    elif ends[-1] == "SKIP":
        whole = Part(name=name, state=CaseState.SKIPPED, message=bail or "it says [SKIP]")
    elif planned is not None and seen != planned:
        message = f"{planned} results were planned, {seen} reported"
        whole = Part(name=name, state=CaseState.MISSING, message=message)
    else:
        whole = Part(name=name, state=CaseState.PASSED)
    return [whole, *inner]


def _unique(parts: Sequence[Part]) -> list[Part]:
    """The same with a number behind names that come more than once."""
    counts: dict[str, int] = {}
    named: list[Part] = []
    for part in parts:
        count = counts[part.name] = counts.get(part.name, 0) + 1
        named.append(part if count == 1 else replace(part, name=f"{part.name} #{count}"))
    return named


def judge(report: Report) -> tuple[CaseState, str]:
    """The state of the whole test. A pass needs all its parts to say so too."""
    failed = [part.name for part in report.parts if part.state is CaseState.FAILED]
    silent = [part.name for part in report.parts if part.state is CaseState.MISSING]
    told = f"{len(failed)} of {len(report.parts)} parts fail: {', '.join(failed[:4])}"
    if report.outer is None:
        return CaseState.MISSING, "; ".join(
            ["nothing was heard of its end", *([told] if failed else [])]
        )
    state, message = report.outer.state, report.outer.message
    if state is CaseState.PASSED and failed:
        return CaseState.FAILED, f"it ended well, but {told}"
    if state is CaseState.FAILED and failed:
        return state, f"{told} ({message})"
    if state is CaseState.PASSED and report.bail:
        return CaseState.FAILED, f"it gave up: {report.bail}"
    if state is CaseState.PASSED and silent:
        return CaseState.MISSING, f"no result of {', '.join(silent[:4])}"
    if state is CaseState.PASSED and report.planned is not None and report.seen != report.planned:
        return CaseState.MISSING, f"{report.planned} parts were planned, {report.seen} reported"
    return state, message


def plain(text: str, limit: int = _MESSAGE_MAX) -> str:
    """Text of a guest as one harmless line."""
    return prose.cut(text, limit)
