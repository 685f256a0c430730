"""The ledger's rows of a job's runs, tonight's and earlier ones -> what to compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lab.ledger import CaseRow, Ground, Ledger, SplatRow, Where
from lab.matrix import Job
from lab.model import Comparison, Side
from lab.night.compare import Past, Seen, Subject, merged
from lab.night.record import Count, JobResult, JobState, Night

_BOOT = "boot"  # the ledger's name for "does it boot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The nights that a job is compared with, newest first."""

    good: tuple[Night, ...]  # up to the last good one
    since: tuple[Night, ...]  # after it
    last: str  # id of the last good one; "" if none was: then every earlier night counts


def reference(job: Job, nights: Sequence[Night]) -> Reference:
    """What to compare that job with. `nights` come newest first.

    What was before a night that its user accepted counts no more.
    """
    ran = [night for night in nights if _ran(night, job.key)]
    accepted = next((n for n, night in enumerate(ran, 1) if night.accepted), len(ran))
    for number, night in enumerate(ran):
        if night.reference_for(job.key):
            return Reference(
                good=tuple(ran[number:accepted]),
                since=tuple(ran[:number]),
                last=night.record.id,
            )
    return Reference(good=tuple(ran), since=(), last="")


def _ran(night: Night, key: str) -> JobResult | None:
    result = night.record.result(key)
    return result if result and result.state is JobState.RAN and result.run else None


_Key = tuple[Ground, Side, str, str]  # ground, side, kind, name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    count: Count
    title: str
    regressed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run's rows, and how often anything could have been seen in it."""

    rows: Mapping[_Key, _Row]
    exposed: Mapping[tuple[Ground, Side], int]

    def count(self, key: _Key) -> Count:
        row = self.rows.get(key)
        if row is not None:
            return row.count
        # A splat that was not seen has no row: every repeat could have shown it.
        runs = self.exposed.get(key[:2], 0) if key[2] == "splat" else 0
        return Count(runs=runs)


_NOTHING = _Run(rows={}, exposed={})


def _read(book: Ledger, names: Iterable[str]) -> _Run:
    """The rows of some runs, their counts summed."""
    rows: dict[_Key, _Row] = {}
    exposed: dict[tuple[Ground, Side], int] = {}
    for name in names:
        here: dict[tuple[Ground, Side], int] = {}
        for case in book.cases(Where(run=name)):
            place = case.ground, case.side
            here[place] = max(here.get(place, 0), case.tally.decided)
            _add(rows, (*place, "case", case.name), _of_case(case))
        for splat in book.splats(Where(run=name)):
            if not splat.allowed:
                _add(rows, (splat.ground, splat.side, "splat", splat.key), _of_splat(splat))
        for place, runs in here.items():
            exposed[place] = exposed.get(place, 0) + runs
    return _Run(rows=rows, exposed=exposed)


def _add(rows: dict[_Key, _Row], key: _Key, row: _Row) -> None:
    old = rows.get(key)
    if old is not None:
        row = _Row(
            count=old.count + row.count,
            title=row.title,
            regressed=old.regressed or row.regressed,
        )
    rows[key] = row


def _of_case(row: CaseRow) -> _Row:
    return _Row(
        count=Count(bad=row.tally.failed, runs=row.tally.decided),
        title="booting" if row.name == _BOOT else row.name,
        regressed=row.comparison is Comparison.REGRESSED and row.side is Side.PATCHED,
    )


def _of_splat(row: SplatRow) -> _Row:
    return _Row(
        count=Count(bad=row.seen, runs=max(row.seen, row.exposed)),
        title=row.title,
        regressed=row.comparison is Comparison.REGRESSED and row.side is Side.PATCHED,
    )


def seen(book: Ledger, result: JobResult, against: Reference) -> tuple[Seen, ...]:
    """Every case and splat of that job tonight, with what earlier nights saw of it.

    Only results of one ground are ever compared: a night under KVM says nothing of one under TCG.
    """
    tonight = _read(book, [result.run])
    if not tonight.rows:
        return ()  # nothing booted: its verdict says why
    again = _read(book, result.again) if result.again else _NOTHING
    key = result.job.key
    good = [_read(book, [_run(night, key)]) for night in against.good]
    since = [(night.record.id, _read(book, [_run(night, key)])) for night in against.since]
    titles: dict[tuple[Ground, str, str], str] = {}
    for earlier in (*(run for _, run in since), *good, tonight):
        for (ground, _, kind, name), row in earlier.rows.items():
            if (ground, Side.BASE) in tonight.exposed or (ground, Side.PATCHED) in tonight.exposed:
                titles[ground, kind, name] = row.title
    found: list[Seen] = []
    for (ground, kind, name), title in titles.items():
        sides: dict[Side, Seen] = {}
        for side in Side:
            place: _Key = (ground, side, kind, name)
            if (ground, side) not in tonight.exposed or (
                kind == "case" and place not in tonight.rows
            ):
                continue  # not asked tonight
            if place != (boot := (ground, side, "case", _BOOT)) and _always(tonight.count(boot)):
                continue  # it does not boot: that says all
            mine = tonight.rows.get(place)
            sides[side] = Seen(
                subject=Subject(job=key, kind=kind, name=name, title=title),
                sides=(side,),
                tonight=tonight.count(place),
                # Of a case, runs that asked for it; of a splat, all of them.
                again=again.count(place),
                past=Past(
                    good=tuple(
                        _counted(night.reference_for(key) or not against.last, run.count(place))
                        for night, run in zip(against.good, good, strict=True)
                    ),
                    since=tuple((night, run.count(place)) for night, run in since),
                ),
                judged=mine is not None and mine.regressed and not _was(good[:1], place),
            )
        found += merged(sides)
    return tuple(found)


def _always(count: Count) -> bool:
    return 0 < count.runs == count.bad


def _counted(good: bool, count: Count) -> Count:
    """What a night adds to what is usual: of one that was not good, what failed in every run is
    what was broken then; what failed now and then is a flake."""
    return count if good or count.bad < count.runs else Count()


def _was(runs: Sequence[_Run], key: _Key) -> bool:
    """Whether the last good night's verdict said the same of it."""
    return any(row.regressed for run in runs if (row := run.rows.get(key)))


def _run(night: Night, key: str) -> str:
    result = _ran(night, key)
    assert result is not None
    return result.run
