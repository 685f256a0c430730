"""Counts of lines of the patched tree and the diffs of a series in; each patch, judged, out.

Pure. A patch's lines are looked up where they are in the tree that ran: later patches move them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from lab.counters import BOOTING
from lab.coverage.record import DiffFile, DiffHunk, DiffLine, LineState, PatchCoverage
from lab.symbols import history
from lab.symbols.history import FileDiff

INJECTED = "xfstests under injection"

_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_CALLED = re.compile(r"(\w+)\s*\(")  # the name in the head of a function
_TEXT_CHARS = 300  # of one line that is kept to be shown
_SHOWN_LINES = 4000  # of one patch's diff

# file -> line -> how often it ran
Counts = Mapping[str, Mapping[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was counted, of all cases together."""

    cases: tuple[str, ...] = ()
    # file -> line -> the cases (by their place) in which it ran; empty: it never did
    lines: Mapping[str, Mapping[int, frozenset[int]]] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()  # names of those that have counters

    def suites(self, file: str, line: int) -> tuple[str, ...]:
        ran = self.lines.get(file, {}).get(line, frozenset())
        return tuple(sorted({suite_of(self.cases[number]) for number in ran}))


def _function(text: str, line: int) -> str:
    """The name of the function that a line is in; "" if in none."""
    first, last = history.function_lines(text, line)
    named = _CALLED.search("\n".join(text.split("\n")[first - 1 : last]))
    return named[1] if named is not None and first != last else ""


def suite_of(case: str) -> str:
    """As it is shown; tests of xfstests under injection are a suite of their own."""
    if case == BOOTING:
        return case
    suite, _, rest = case.partition("/")
    return INJECTED if suite == "xfstests" and "+" in rest.partition("/")[0] else suite


def fold(by_case: Mapping[str, Counts], functions: Collection[str] = ()) -> Seen:
    """All cases as one."""
    lines: dict[str, dict[int, frozenset[int]]] = {}
    for number, counts in enumerate(by_case.values()):
        for file, counted in counts.items():
            mine = lines.setdefault(file, {})
            for line, count in counted.items():
                ran = mine.get(line, frozenset())
                mine[line] = ran | {number} if count else ran
    return Seen(cases=tuple(by_case), lines=lines, functions=frozenset(functions))


def carried(
    diffs: Sequence[Sequence[FileDiff]], number: int, file: str, line: int
) -> tuple[str, int] | None:
    """Where a line of the tree after patch `number` is after the last one; None: it is gone."""
    for later in diffs[number:]:
        change = next((one for one in later if one.old == file), None)
        if change is None:
            continue
        now = history.moved(line, change.hunks)
        if now is None or not change.new:
            return None
        file, line = change.new, now
    return file, line


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Decides what is known of single lines of the last tree."""

    seen: Seen
    left_out: Collection[str]  # .c files of which the kernel has no object
    injecting: Collection[str]  # suites
    text: Callable[[str], str]  # of a file of the last tree

    def state(self, file: str, line: int) -> LineState:
        counted = self.seen.lines.get(file, {})
        if line in counted:
            suites = self.seen.suites(file, line)
            if not suites:
                return LineState.NEVER
            injected = all(suite in self.injecting for suite in suites)
            return LineState.INJECTED if injected else LineState.EXECUTED
        suffix = PurePosixPath(file).suffix
        if suffix == ".S":
            return LineState.UNKNOWN
        if suffix not in (".c", ".h"):
            return LineState.NO_CODE
        if suffix == ".c" and file in self.left_out:
            return LineState.NOT_COMPILED
        text = self.text(file)
        first, last = history.function_lines(text, line)
        if first == last:  # outside of all functions
            return LineState.NO_CODE
        if any(one in counted for one in range(first, last + 1)):
            return LineState.NO_CODE
        # A function of which nothing was counted. In a file with counters the compiler had no use
        # for it; a header's may be in objects that have none, if it is not another of that name
        # that was compiled.
        unused = bool(counted) if suffix == ".c" else self._another(text, line, counted)
        return LineState.NOT_COMPILED if unused else LineState.UNKNOWN

    def _another(self, text: str, line: int, counted: Collection[int]) -> bool:
        """Whether another function of that name was counted: in this file, if it was inlined."""
        name = _function(text, line)
        if not name:
            return False
        return name in self.seen.functions or name in {_function(text, one) for one in counted}


def judged(
    number: int,
    subject: str,
    unified: str,
    diffs: Sequence[Sequence[FileDiff]],
    judge: Judge,
) -> PatchCoverage:
    """One patch; `unified` is its diff, `diffs` are those of the whole series without context."""
    counts: dict[LineState, int] = {}
    suites: dict[str, int] = {}
    files: list[DiffFile] = []
    shown = cut = 0
    for path, hunks in _files(unified):
        kept: list[DiffHunk] = []
        for header, first, raw in hunks:
            lines: list[DiffLine] = []
            place = first
            for mark, text in raw:
                one = DiffLine(mark=mark, text=text[:_TEXT_CHARS])
                if mark == "+":
                    one = _line(one, number, path, place, diffs, judge)
                    assert one.state is not None
                    counts[one.state] = counts.get(one.state, 0) + 1
                    for suite in one.suites:
                        suites[suite] = suites.get(suite, 0) + 1
                place += mark != "-"
                if shown < _SHOWN_LINES:
                    lines.append(one)
                    shown += 1
                else:
                    cut += 1
            kept.append(DiffHunk(header=header[:_TEXT_CHARS], lines=tuple(lines)))
        files.append(DiffFile(path=path, hunks=tuple(hunk for hunk in kept if hunk.lines)))
    return PatchCoverage(
        number=number,
        subject=subject,
        counts=counts,
        suites=suites,
        files=tuple(file for file in files if file.hunks),
        cut=cut,
    )


def _line(
    line: DiffLine,
    number: int,
    path: str,
    place: int,
    diffs: Sequence[Sequence[FileDiff]],
    judge: Judge,
) -> DiffLine:
    now = carried(diffs, number, path, place)
    if now is None:
        return DiffLine(mark=line.mark, text=line.text, state=LineState.SUPERSEDED)
    return DiffLine(
        mark=line.mark,
        text=line.text,
        state=judge.state(*now),
        suites=judge.seen.suites(*now),
    )


_Raw = list[tuple[str, str]]


def _files(unified: str) -> Iterator[tuple[str, list[tuple[str, int, _Raw]]]]:
    """(path, hunks) of what git diff --no-prefix printed; a hunk is header, first new line, lines.

    A file that goes has its old path.
    """
    path = old = ""
    hunks: list[tuple[str, int, _Raw]] = []
    lines = unified.split("\n")
    place = 0
    while place < len(lines):
        text = lines[place]
        place += 1
        match = _HUNK.match(text)
        if match is not None:
            before, after = (1 if match[group] is None else int(match[group]) for group in (1, 3))
            raw: _Raw = []
            # The counts say what is content: a line that goes may itself look like a header.
            while (before or after) and place < len(lines):
                mark, rest = lines[place][:1] or " ", lines[place][1:]
                place += 1
                if mark == "\\":
                    continue
                before -= mark in " -"
                after -= mark in " +"
                raw.append((mark, rest))
            hunks.append((text, int(match[2]), raw))
        elif text.startswith("diff --git "):
            if path:
                yield path, hunks
            path, old, hunks = "", "", []
        elif text.startswith("--- "):
            old = text[4:].rstrip("\t")
        elif text.startswith("+++ "):
            new = text[4:].rstrip("\t")
            path = old if new == "/dev/null" else new
    if path:
        yield path, hunks
