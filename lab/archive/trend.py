"""The ledger and the name of a case or splat go in; how it fared, run by run, comes out.

Runs of different grounds stand apart, and nothing is summed over kernels.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lab import ledger
from lab.ledger import CaseRow, Ground, Ledger, SplatRow, Where
from lab.model import Comparison, Side, Tally, UserError
from lab.verdict import smallest_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run's counts, base beside patched; of a splat, `failed` is "seen"."""

    run: str
    created: str
    version: str  # of the base
    kernels: dict[Side, str]  # content keys
    base: Tally
    patched: Tally
    comparison: Comparison | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRate:
    """How often it failed on one base kernel, over all its runs."""

    kernel_key: str
    version: str
    runs: int
    failed: int
    decided: int
    at_most: float  # the largest rate that goes with these counts (95 %)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A case or splat on one ground, newest run first."""

    name: str
    ground: Ground
    entries: tuple[Entry, ...]
    bases: tuple[BaseRate, ...]
    title: str = ""  # of a splat


def history(
    runs: Path,
    name: str,
    *,
    arch: str | None = None,
    profile: str | None = None,
    limit: int | None = None,
) -> tuple[Trend, ...]:
    """How that case (a shell pattern: those cases), or else the splat of that fingerprint, fared.

    `limit` is in runs of each ground. Raises `UserError` if no run knows it.
    """
    where = Where(name=name, arch=arch, profile=profile)
    with ledger.opened(runs) as book:
        if cases := book.cases(where):
            return tuple(_trends(cases, limit))
        if splats := book.splats(where):
            return tuple(_trends(map(_as_case, splats), limit, {s.key: s.title for s in splats}))
        raise _nothing(book, where)


def _nothing(book: Ledger, where: Where) -> UserError:
    assert where.name is not None
    known = list(dict.fromkeys(row.name for row in book.cases()))
    if not known:
        return UserError(f"no run in {book.folder} has run a case", hint="lab runs lists them")
    within = [name for name in known if where.name in name]
    near = (within or difflib.get_close_matches(where.name, known) or known)[:3]
    some = [word for word in (where.arch, where.profile) if word]
    there = f" with {' and '.join(some)}" if some else ""
    return UserError(
        f"no run has run {where.name}{there}", hint=f"cases that have run: {', '.join(near)}"
    )


def _as_case(row: SplatRow) -> CaseRow:
    return CaseRow(
        run=row.run,
        created=row.created,
        ground=row.ground,
        side=row.side,
        kernel_key=row.kernel_key,
        version=row.version,
        name=row.key,
        tally=Tally(passed=row.exposed - row.seen, failed=row.seen),
        duration_s=0.0,
        comparison=row.comparison,
        reason="allowed" if row.allowed else "",
    )


@dataclass(slots=True)
class _Gathered:
    """Rows of one case on one ground, by run."""

    runs: dict[str, dict[Side, CaseRow]] = field(default_factory=dict)


def _trends(
    rows: Iterable[CaseRow], limit: int | None, titles: dict[str, str] | None = None
) -> list[Trend]:
    found: dict[tuple[str, Ground], _Gathered] = defaultdict(_Gathered)
    for row in rows:
        found[row.name, row.ground].runs.setdefault(row.run, {})[row.side] = row
    return [
        Trend(
            name=name,
            ground=ground,
            entries=tuple(_entry(run, sides) for run, sides in gathered.runs.items())[:limit],
            bases=_bases(gathered),
            title=(titles or {}).get(name, ""),
        )
        for (name, ground), gathered in sorted(found.items())
    ]


def _entry(run: str, sides: dict[Side, CaseRow]) -> Entry:
    some = next(iter(sides.values()))
    judged = [row for row in sides.values() if row.comparison is not None]
    return Entry(
        run=run,
        created=some.created,
        version=some.version,
        kernels={side: row.kernel_key for side, row in sorted(sides.items())},
        base=sides[Side.BASE].tally if Side.BASE in sides else Tally(),
        patched=sides[Side.PATCHED].tally if Side.PATCHED in sides else Tally(),
        comparison=judged[0].comparison if judged else None,
        reason=judged[0].reason if judged else "",
    )


def _bases(gathered: _Gathered) -> tuple[BaseRate, ...]:
    """Newest base first."""
    counts: dict[str, list[CaseRow]] = defaultdict(list)
    for sides in gathered.runs.values():
        if Side.BASE in sides:
            counts[sides[Side.BASE].kernel_key].append(sides[Side.BASE])
    return tuple(
        BaseRate(
            kernel_key=key,
            version=rows[0].version,
            runs=len(rows),
            failed=(failed := sum(row.tally.failed for row in rows)),
            decided=(decided := sum(row.tally.decided for row in rows)),
            at_most=smallest_rate(decided, failed),
        )
        for key, rows in counts.items()
    )
