"""A run that had a comparator -> its numbers beside those of base and patched."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console

from lab.model import CaseState, Comparator, RunRecord, Side, Trial
from lab.prose import printable
from lab.report import layout
from lab.report.speed import number

_TELLING = ("_per_s", "p50_us", "p99_us", "p50_ns", "p99_ns")
_ROWS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians of one number of one case; of passed results only."""

    case: str
    metric: str
    base: float
    patched: float
    comparator: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One comparator on one architecture."""

    about: Comparator
    version: str  # of base and patched
    rows: tuple[Row, ...]
    states: tuple[tuple[str, int], ...]  # of its results: ("passed", 6), ...

    @property
    def sentence(self) -> str:
        """What it is, and what it is not."""
        head = f"{self.about.name} ({self.about.version}) on {self.about.arch}"
        if self.about.missing:
            return f"{head}: nothing to compare with: {self.about.missing}"
        told = ", ".join(f"{count} {state}" for state, count in self.states) or "no result"
        return f"{head}: another kernel, in the same cases: {told}. No verdict rests on it"


def beside(record: RunRecord) -> tuple[Beside, ...]:
    """All comparators of a run."""
    return tuple(_one(record, about) for about in record.comparators)


def _one(record: RunRecord, about: Comparator) -> Beside:
    mine = [trial for trial in record.trials if trial.cell.arch == about.arch]
    base = _medians(trial for trial in mine if trial.cell.side is Side.BASE)
    patched = _medians(trial for trial in mine if trial.cell.side is Side.PATCHED)
    other = _medians(about.trials)
    states = Counter(result.state for trial in about.trials for result in trial.results)
    return Beside(
        about=about,
        version=record.manifest.source.version,
        rows=tuple(
            Row(
                case=case,
                metric=metric,
                base=base[case, metric],
                patched=patched[case, metric],
                comparator=other[case, metric],
            )
            for case, metric in base
            if (case, metric) in patched and (case, metric) in other
        ),
        states=tuple((str(state), states[state]) for state in CaseState if states[state]),
    )


def _medians(trials: Iterable[Trial]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        for result in trial.results:
            if result.state is CaseState.PASSED:
                for metric, value in result.metrics.items():
                    if metric.endswith(_TELLING):
                        found.setdefault((result.name, metric), []).append(value)
    return {key: statistics.median(values) for key, values in found.items()}


def show(record: RunRecord, console: Console) -> None:
    """The same on a terminal; nothing for a run without one."""
    for one in beside(record):
        layout.heading(console, "Beside")
        layout.item(console, printable(one.sentence))
        if not one.rows:
            continue
        name = one.about.name
        rows: list[Sequence[layout.Cell]] = [
            ("case", "measured", "base", "patched", (printable(name), "bold"))
        ]
        for row in one.rows[:_ROWS]:
            values = (row.base, row.patched, row.comparator)
            rows.append((row.case, row.metric, *map(number, values)))
        layout.grid(console, rows, 2)
        if len(one.rows) > _ROWS:
            layout.item(console, f"and {len(one.rows) - _ROWS} more: report.html")
