"""A `SelftestRecord`, or the list of controls, goes in; what a terminal shows of it comes out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.control import Control
from lab.model import ControlResult, ExitCode, Grade, SelftestRecord
from lab.prose import printable, span

_STYLE = {
    Grade.CAUGHT: "green",
    Grade.QUIET: "green",
    Grade.MISSED: "bold red",
    Grade.NOISY: "bold red",
    Grade.INCONCLUSIVE: "yellow",
}


def summary(record: SelftestRecord, folder: Path, code: ExitCode, console: Console) -> None:
    """What was caught and what was not, those first; then a table of all."""
    counts = Counter(result.grade for result in record.results)
    said = ", ".join(f"{count} {grade}" for grade, count in counts.most_common()) or "nothing ran"
    word, style = {
        ExitCode.CLEAN: ("SOUND", "bold green"),
        ExitCode.REGRESSED: ("UNSOUND", "bold red"),
    }.get(code, ("INCONCLUSIVE", "bold yellow"))
    console.print()
    console.print(Text.assemble((word, style), f"  {len(record.results)} controls: {said}"))
    console.print()
    console.print(_table(record))
    for result in record.results:
        if result.grade is not Grade.CAUGHT:
            line = f"{result.name} [{result.arch}]: {printable(result.reason)}"
            console.print(Text(line, style=_STYLE[result.grade]), soft_wrap=True)
            for trial in result.trials[:1]:
                console.print(Text(f"  trials/{trial}/console.log", style="dim"), soft_wrap=True)
    console.print()
    console.print(Text(f"{span(record.wall_s)} in all, {len(record.trials)} machines"))
    console.print(Text(f"{'run':7}{folder}"), soft_wrap=True)
    console.print(Text(f"{'exit':7}{int(code)}"))


def _table(record: SelftestRecord) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("control", "on", "grade", "by", "in", "within", "of"):
        table.add_column(title, overflow="fold", no_wrap=title in ("control", "within", "of"))
    for result in record.results:
        table.add_row(
            f"{result.name} [{result.arch}]" if len(record.archs) > 1 else result.name,
            f"{result.on}, {result.profile}",
            Text(result.grade, style=_STYLE[result.grade]),
            result.detector or f"({' or '.join(result.expect)})",
            result.case,
            _within(result),
            span(result.limit_s),
        )
    return table


def _within(result: ControlResult) -> str:
    return span(result.within_s) if result.tries else "-"


def listing(controls: Sequence[Control], console: Console, *, as_json: bool) -> None:
    """What `lab selftest --list` shows."""
    rows = [
        {
            "name": one.name,
            "title": one.title,
            "on": one.on,
            "profile": one.profile,
            "expect": [each.text for each in one.expect],
            "match": one.match.pattern if one.match else "",
            "limit_s": one.limit_s,
            "why": one.why,
        }
        for one in controls
    ]
    if as_json:
        console.file.write(json.dumps(rows, indent=1) + "\n")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("control", "on", "profile", "must be seen as", "what is broken"):
        table.add_column(title, overflow="fold", no_wrap=title == "control")
    for one in controls:
        expect = " or ".join(each.text for each in one.expect)
        table.add_row(one.name, one.on, one.profile, expect, one.title)
    console.print(table)
