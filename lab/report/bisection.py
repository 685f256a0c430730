"""The record of a bisection goes in, what a terminal shows of it comes out: the answer first."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from lab.bisect import Ending, wording
from lab.culprit.hunt import LOG, Record
from lab.prose import printable, span

_STYLE = {
    Ending.FOUND: ("FOUND", "bold green"),
    Ending.RANGE: ("UNDECIDED", "bold yellow"),
    Ending.NO_DIFFERENCE: ("NO DIFFERENCE", "bold yellow"),
    Ending.SAME_KERNEL: ("SAME KERNEL", "bold yellow"),
    Ending.END_UNTESTABLE: ("UNTESTABLE", "bold yellow"),
}
_TITLE = 48  # characters of a title in the table


def summary(record: Record, console: Console) -> None:
    """Titles come from patches, notes from guests: printed as text, never as markup."""
    word, style = _STYLE[record.result.ending]
    console.print()
    answer = Text.assemble((word, style), "  ", printable(record.sentence))
    console.print(answer)
    console.print(Text(f"looked for: {printable(record.header.symptom)}", style="dim"))
    if said := wording.rates(record.result):
        console.print(Text(said, style="dim"))
    console.print()
    width = max(len(row.label) for row in record.rows)
    console.print(Text(f"{'':{width}}  {'failed':>9}  likely", style="dim"))
    for row in record.rows:
        counts = f"{row.failed} of {row.runs}" if row.runs else "-"
        likely = f"{row.suspicion:6.1%}" if row.suspicion >= 0.001 else " " * 6
        line = Text(f"{printable(row.label):{width}}  {counts:>9}  {likely}  ")
        line.append(printable(row.title)[:_TITLE])
        if row.note:
            line.append(f"  ({printable(row.note)})", style="yellow")
        console.print(line, soft_wrap=True)
    console.print()
    result = record.result
    console.print(Text(f"{span(result.seconds)} in {result.runs} runs and {result.builds} builds"))
    console.print(Text(f"log    {record.folder / LOG}"), soft_wrap=True)
