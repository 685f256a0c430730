"""The coverage of a run goes in; its section of the page and its lines on a terminal come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lab.coverage.record import (
    Coverage,
    DiffHunk,
    DiffLine,
    LineState,
    PatchCoverage,
    of_run,
    sentence,
)
from lab.prose import printable

# What a reader acts on, and how it is called.
WORDS = {
    LineState.EXECUTED: "executed",
    LineState.INJECTED: "only under injected faults",
    LineState.NEVER: "never executed",
    LineState.NOT_COMPILED: "not compiled",
    LineState.UNKNOWN: "unknown",
    LineState.SUPERSEDED: "superseded by a later patch",
    LineState.NO_CODE: "no code",
}
_SIGNS = {
    LineState.EXECUTED: "✓",
    LineState.INJECTED: "!",
    LineState.NEVER: "✗",
    LineState.NOT_COMPILED: "-",
    LineState.UNKNOWN: "?",
    LineState.SUPERSEDED: "~",
    LineState.NO_CODE: " ",
}
_STYLES = {
    LineState.EXECUTED: "green",
    LineState.INJECTED: "magenta",
    LineState.NEVER: "bold red",
    LineState.NOT_COMPILED: "yellow",
    LineState.UNKNOWN: "yellow",
    LineState.SUPERSEDED: "dim",
    LineState.NO_CODE: "",
}
_LISTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What a report shows of one architecture."""

    coverage: Coverage
    several: bool  # architectures
    sentences: tuple[tuple[PatchCoverage, str], ...]
    doubts: tuple[str, ...]


def sections(folder: Path | None) -> tuple[Section, ...]:
    """Of every architecture that coverage was asked for; () without the run's folder."""
    found = of_run(folder) if folder is not None else ()
    return tuple(
        Section(
            coverage=one,
            several=len(found) > 1,
            sentences=tuple((patch, sentence(patch)) for patch in one.patches),
            doubts=doubts(one),
        )
        for one in found
    )


def doubts(one: Coverage) -> tuple[str, ...]:
    """What a reader must know before believing the figures."""
    told: list[str] = []
    if one.known and one.lost:
        told.append(
            f"{len(one.lost)} of {len(one.lost) + len(one.cases)} cases left no counters, so that "
            f"what only they reach counts as never executed: {_few(one.lost)}"
        )
    if one.failed:
        told.append(f"did not pass on this kernel, which is slower: {_few(one.failed)}")
    told += [f"printed by this kernel: {splat.title}" for splat in one.splats[:_LISTED]]
    return (*told, *one.notes)


def _few(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


# --- terminal ----------------------------------------------------------------------------------


def told(folder: Path) -> list[str]:
    """Lines for the summary of a run: one for each patch, of each architecture."""
    found = of_run(folder)
    return [
        f"{one.arch}: {line}" if len(found) > 1 else line for one in found for line in lines(one)
    ]


def lines(one: Coverage) -> list[str]:
    if not one.known:
        return [f"unknown: {one.why}", *doubts(one)]
    return [
        *(f"patch {patch.number}: {sentence(patch)}" for patch in one.patches),
        *doubts(one),
    ]


def show(found: Sequence[Coverage], console: Console, *, whole: bool) -> None:
    """Every patch in a line; or with `whole`, with its diff."""
    for one in found:
        heading = f"{one.arch}: {len(one.cases)} cases counted"
        _say(console, Text(printable(heading if one.known else one.arch), style="bold"))
        if not whole or not one.known:
            for line in lines(one):
                _say(console, Text(f"  {printable(line)}"))
            continue
        for patch in one.patches:
            _show_patch(patch, console)


def _show_patch(patch: PatchCoverage, console: Console) -> None:
    _say(console, Text(printable(f"patch {patch.number}: {patch.subject}"), style="bold"))
    _say(console, Text(f"  {printable(sentence(patch))}"))
    signs = ", ".join(f"{sign} {WORDS[state]}" for state, sign in _SIGNS.items() if sign.strip())
    _say(console, Text(f"  {signs}", style="dim"))
    for file in patch.files:
        if not file.has_code:
            _say(console, Text(f"{printable(file.path)}: no code", style="dim"))
            continue
        _say(console, Text(printable(file.path), style="bold"))
        for hunk in file.hunks:
            _say(console, Text(f"  {printable(hunk.header)}", style="cyan"))
            for line, suites in told_once(hunk):
                _say(console, _line(line, suites))
    if patch.cut:
        _say(console, Text(f"and {patch.cut} lines more: git show has them", style="dim"))


def told_once(hunk: DiffHunk) -> Iterator[tuple[DiffLine, tuple[str, ...]]]:
    """Each line with the suites under which it ran, where they differ from the line before."""
    for suites, run in groupby(hunk.lines, key=lambda line: line.suites):
        for place, line in enumerate(run):
            yield line, suites if place == 0 else ()


def _line(line: DiffLine, suites: tuple[str, ...]) -> Text:
    sign = _SIGNS[line.state] if line.state else " "
    style = _STYLES[line.state] if line.state else "dim"
    text = printable(line.text.expandtabs(8))
    note = f"   [{printable(', '.join(suites))}]" if suites else ""
    return Text.assemble((f"{sign} {line.mark}{text}", style), (note, "dim"))


def _say(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)
