"""A `LockDiff` goes in; its picture, its tables and its lines on a terminal come out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lab import host
from lab.lockdesk import ChainSeen
from lab.lockgraph import stored, svg
from lab.lockgraph.diff import ADDED, LOST, Change, EdgeDiff, LockDiff, Measure, StatDiff, diff
from lab.lockgraph.focus import WORDS, centre, counts_text, focus, plain, suggest
from lab.lockgraph.news import sentence
from lab.model import LabError, RunRecord
from lab.prose import printable
from lab.report import view

_TABLE_ROWS = 60
_STAT_ROWS = 12
_TERMINAL_ROWS = 40
_CHAINS = 12
_UNITS = ((1e6, "s"), (1e3, "ms"), (1.0, "µs"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What a report shows of one architecture's locks."""

    arch: str
    sentence: str
    around: str | None  # what the picture is about
    picture: str  # an SVG; "" if there is none
    no_picture: str  # why
    lost: tuple[EdgeDiff, ...]
    added: tuple[EdgeDiff, ...]
    more: int  # changed edges beyond those
    stats: tuple[StatRow, ...]
    diff: LockDiff


@dataclass(frozen=True, slots=True, kw_only=True)
class StatRow:
    """A lock's contention before and after, ready to show; medians, and ranges in `title`s."""

    label: str
    mode: str
    cells: tuple[tuple[str, str, str, bool], ...]  # base, patched, title, do the ranges overlap


def sections(record: RunRecord, folder: Path | None) -> tuple[Section, ...]:
    """Of every architecture whose trials kept their locks; () without the run's folder."""
    if folder is None:
        return ()
    archs = [
        arch
        for arch in record.manifest.archs
        if any(t.locks and t.locks.files for t in record.trials if t.cell.arch == arch)
    ]
    return tuple(
        section(diff(stored.of_run(record.trials, folder, arch)), arch, record.manifest.patch_names)
        for arch in archs
    )


def section(compared: LockDiff, arch: str, subjects: Sequence[str]) -> Section:
    around = suggest(compared, subjects)
    drawn, why = "", "no more changed than chance makes (lab lockgraph diff --around CLASS draws)"
    if around is not None:
        try:
            drawn = picture(compared, around, ids=f"lg-{arch}")
            why = ""
        except LabError as error:
            why = f"{error.message}{f' ({error.hint})' if error.hint else ''}"
    lost, added = ordered(compared, around, *LOST), ordered(compared, around, *ADDED)
    return Section(
        arch=arch,
        sentence=sentence(compared, around),
        around=around,
        picture=drawn,
        no_picture=why,
        lost=lost[:_TABLE_ROWS],
        added=added[:_TABLE_ROWS],
        more=max(0, len(lost) - _TABLE_ROWS) + max(0, len(added) - _TABLE_ROWS),
        stats=stat_rows(compared, around),
        diff=compared,
    )


def ordered(compared: LockDiff, around: str | None, *which: Change) -> tuple[EdgeDiff, ...]:
    """Edges with such a change: those of the class looked at first, then significant ones."""
    looked_at = set(centre(compared, around))
    return tuple(
        sorted(
            compared.changed(*which),
            key=lambda edge: (
                not looked_at & {edge.before, edge.after},
                edge.change not in (Change.GONE, Change.NEW),
                edge.before,
                edge.after,
            ),
        )
    )


def picture(
    compared: LockDiff, around: str, *, depth: int = 1, every: bool = False, ids: str = "lg"
) -> str:
    """The neighbourhood of a class as SVG.

    Raises `UserError` if there is no such class, or if Graphviz is not installed.
    """
    seen = focus(compared, around, depth=depth, every=every)
    laid_out = host.run(["dot", "-Tplain"], stdin=svg.dot_source(seen).encode(), timeout_s=60).text
    title = f"Lock dependencies around {plain(seen.centre[0])}"
    return svg.svg(seen, laid_out, title=title, ids=ids)


# --- contention --------------------------------------------------------------------------------

# Name of the measure, heading, is it a time.
COLUMNS = (
    ("contentions", "contentions", False),
    ("wait_total_us", "waited in all", True),
    ("wait_max_us", "longest wait", True),
    ("hold_mean_us", "held, mean", True),
    ("hold_max_us", "held longest", True),
)


def stat_rows(compared: LockDiff, around: str | None) -> tuple[StatRow, ...]:
    """The class looked at, then the locks whose waiting and holding changed most."""
    looked_at = set(centre(compared, around))
    ranked = sorted(
        compared.stats,
        key=lambda stat: (stat.label not in looked_at, -_weight(stat), stat.label),
    )
    among = len(compared.stats) * len(COLUMNS)
    return tuple(_stat_row(stat, among) for stat in ranked[:_STAT_ROWS] if _weight(stat) > 0)


def _weight(stat: StatDiff) -> float:
    """Microseconds by which waits and longest holds moved."""
    moved = {m.name: abs(_median(m.patched) - _median(m.base)) for m in stat.measures}
    return moved["wait_total_us"] + moved["hold_max_us"]


def _stat_row(stat: StatDiff, among: int) -> StatRow:
    named = {measure.name: measure for measure in stat.measures}
    return StatRow(
        label=stat.label,
        mode={"R": "readers", "W": "writers"}.get(stat.mode, ""),
        cells=tuple(_cell(named[name], timed, among) for name, _, timed in COLUMNS),
    )


def _cell(measure: Measure, timed: bool, among: int) -> tuple[str, str, str, bool]:
    shown = [_amount(_median(values), timed) for values in (measure.base, measure.patched)]
    ranges = [
        f"{_amount(values[0], timed)} to {_amount(values[-1], timed)}"
        for values in (measure.base, measure.patched)
    ]
    alike = not view.apart(measure.base, measure.patched, among)
    return shown[0], shown[1], f"base {ranges[0]}, patched {ranges[1]}", alike


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _amount(value: float, timed: bool) -> str:
    if not timed:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.2g} µs" if value else "0"


# --- terminal ----------------------------------------------------------------------------------


def lines(record: RunRecord, folder: Path) -> list[str]:
    """One line for each architecture, for the summary of a run."""
    return [f"{part.arch}: {part.sentence}" for part in sections(record, folder)]


def show_diff(compared: LockDiff, around: str | None, console: Console) -> None:
    """All that changed, the class looked at first."""
    _say(console, Text(printable(sentence(compared, around)), style="bold"))
    for doubt in compared.doubts:
        _say(console, Text(f"  {printable(doubt)}", style="yellow"))
    for cycle in compared.cycles:
        head = "new cycle" if cycle.certain else f"possible cycle ({printable(cycle.doubt)})"
        _say(console, Text.assemble((f"{head}: ", "bold red"), printable(cycle.text)))
        for step in cycle.steps:
            known = "" if step.on_base else ", in no run of the base"
            boots = printable(", ".join(step.boots))
            _say(
                console,
                Text(f"  {printable(step.before)} -> {printable(step.after)}: {boots}{known}"),
            )
    for mark, style, which in (("-", "red", LOST), ("+", "blue", ADDED)):
        edges = ordered(compared, around, *which)
        for edge in edges[:_TERMINAL_ROWS]:
            _say(console, _edge_line(mark, style, edge))
        if len(edges) > _TERMINAL_ROWS:
            _say(console, Text(f"{mark} and {len(edges) - _TERMINAL_ROWS} more (--json has all)"))
    for row in stat_rows(compared, around)[:6]:
        _say(console, _stat_line(row))


def _say(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)


def _arrow(before: str, after: str) -> str:
    return f"{printable(svg.short(before))} -> {printable(svg.short(after))}"


def _edge_line(mark: str, style: str, edge: EdgeDiff) -> Text:
    return Text.assemble(
        (
            f"{mark} {printable(svg.short(edge.before))} -> {printable(svg.short(edge.after))}",
            style,
        ),
        (f"  {WORDS[edge.change]}: {counts_text(edge)}", "dim"),
    )


def _stat_line(row: StatRow) -> Text:
    parts = [
        f"{heading} {before} -> {after}"
        for (_, heading, _), (before, after, _, _) in zip(COLUMNS, row.cells, strict=True)
    ]
    name = f"{svg.short(printable(row.label))} {row.mode}".strip()
    return Text.assemble((f"{name}: ", "bold"), ", ".join(parts))


def show_graph(whole: LockDiff, around: str | None, console: Console) -> None:
    """One side: how much there is, and what is before and after a class."""
    direct = [edge for edge in whole.edges if edge.direct]
    _say(
        console,
        Text(
            f"{len(whole.classes)} lock classes, {len(direct)} direct dependencies in the union of "
            f"{whole.runs.base} runs; {sum(e.change is Change.VARIES for e in direct)} are not in "
            "all of them",
            style="bold",
        ),
    )
    for doubt in whole.doubts:
        _say(console, Text(f"  {printable(doubt)}", style="yellow"))
    if around is None:
        _busiest(whole, console)
        return
    looked_at = centre(whole, around)
    names = printable(", ".join(looked_at))
    for title, mine in (
        ("taken while holding it", [e for e in direct if e.before in looked_at]),
        ("held when it is taken", [e for e in direct if e.after in looked_at]),
    ):
        _say(console, Text(f"{names}: {title}: {len(mine)}", style="bold"))
        for edge in mine:
            dim = "dim" if edge.change is Change.SAME else "yellow"
            text = f"  {_arrow(edge.before, edge.after)}"
            _say(console, Text.assemble(text, (f"  {counts_text(edge)}", dim)))


def _busiest(whole: LockDiff, console: Console) -> None:
    """Where to look first."""
    degrees: dict[str, int] = {}
    for edge in whole.changed(*Change):
        for label in (edge.before, edge.after):
            degrees[label] = degrees.get(label, 0) + 1
    for label in sorted(degrees, key=lambda name: (-degrees[name], name))[:20]:
        _say(console, Text(f"  {degrees[label]:5} {printable(svg.short(label))}"))


def show_chains(found: Sequence[ChainSeen], console: Console) -> None:
    """Who takes an edge: the stacks of locks."""
    if not found:
        _say(console, Text("no chain has these two next to each other"))
    for chain in found[:_CHAINS]:
        context = "" if chain.context == "0" else f" [{printable(chain.context)}]"
        stack = " -> ".join(printable(svg.short(label)) for label in chain.held)
        boots = "1 boot" if chain.boots == 1 else f"{chain.boots} boots"
        _say(console, Text.assemble((f"{boots}{context}: ", "dim"), stack))
    if len(found) > _CHAINS:
        _say(console, Text(f"and {len(found) - _CHAINS} more (--json has all)"))
