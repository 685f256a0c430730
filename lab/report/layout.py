"""Parts of a text and a console go in; headings, paragraphs and columns are printed.

Reads the same at 80 columns, without colour and through a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

Cell = str | tuple[str, str]  # a text, or one with its style


def heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def item(console: Console, *parts: Cell, indent: int = 2) -> None:
    """A paragraph, indented as a block and without the blanks at line ends that pads leave."""
    for line in Text.assemble(*parts).wrap(console, max(20, console.width - indent)):
        line.rstrip()
        console.print(Text.assemble(" " * indent, line), soft_wrap=True)


def grid(console: Console, rows: Sequence[Sequence[Cell]], indent: int) -> None:
    """Columns as wide as they must be, closer together if need be; the first row is the heading."""
    cells = [[Text(*((cell, "") if isinstance(cell, str) else cell)) for cell in r] for r in rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*cells, strict=True)]
    gap = 2 if indent + sum(widths) + 2 * (len(widths) - 1) <= console.width else 1
    for number, row in enumerate(cells):
        line = Text(" " * indent)
        for cell, width in zip(row, widths, strict=True):
            line.append_text(cell)
            line.append(" " * (width - cell.cell_len + gap))
        line.rstrip()
        if number == 0:
            line.stylize("dim")
        console.print(line, soft_wrap=True)
