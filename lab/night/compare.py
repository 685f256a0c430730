"""Counts of tonight and of earlier nights go in; what is new, fixed, flaky or open comes out. Pure.

Two nights differ by chance all the time. So a difference raises a suspicion only; runs that did
not raise it decide, by Fisher's exact test against the nights up to the last good one, and all
suspicions of a night share one error level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lab.model import Side
from lab.night.record import Change, Count, News
from lab.verdict.chance import LEVEL, RESOLUTION, discoveries, fisher, smallest_rate

WINDOW = 14  # nights up to the last good one that count together


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A case or a splat of a job."""

    job: str
    kind: str  # "case" | "splat"
    name: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What earlier nights saw of one subject on one side, newest first."""

    # The last good night and those before it.
    good: tuple[Count, ...] = ()
    # Those after it, with their ids.
    since: tuple[tuple[str, Count], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A subject tonight, on one side or (`sides`) the same on both."""

    subject: Subject
    sides: tuple[Side, ...]
    tonight: Count
    again: Count = field(default_factory=Count)  # of runs for suspects alone
    past: Past = field(default_factory=Past)
    judged: bool = False  # fresh runs within its own run say that the series did it

    @property
    def before(self) -> Count:
        return sum(self.past.good[:WINDOW], Count())

    @property
    def raised(self) -> bool:
        """An earlier night had seen it already: all of tonight's runs are fresh."""
        return any(count.bad for _, count in self.past.since)

    @property
    def fresh(self) -> Count:
        return self.again + self.tonight if self.raised else self.again

    @property
    def since(self) -> str:
        """The first of the nights just before tonight, without a gap, in which it was seen."""
        first = ""
        for night, count in self.past.since:
            if count.runs and not count.bad:
                break
            first = night if count.bad else first
        return first


def both_sides(base: Seen, patched: Seen) -> tuple[Seen, ...]:
    """One, if both sides fail alike tonight or none does: then it is not the series, and all runs
    count. Two, if they differ."""
    if bool(base.tonight.bad) != bool(patched.tonight.bad) or patched.judged:
        return base, patched
    nights = dict(base.past.since), dict(patched.past.since)
    since = tuple(
        (night, nights[0].get(night, Count()) + nights[1].get(night, Count()))
        for night in sorted({*nights[0], *nights[1]}, reverse=True)
    )
    good = tuple(one + two for one, two in zip(base.past.good, patched.past.good, strict=True))
    both = Seen(
        subject=base.subject,
        sides=(*base.sides, *patched.sides),
        tonight=base.tonight + patched.tonight,
        again=base.again + patched.again,
        past=Past(good=good, since=since),
    )
    return (both,)


def news(every: Sequence[Seen]) -> tuple[News, ...]:
    """What there is to say, bad news first; what passes as ever is left out."""
    asked = [(seen, _suspicion(seen)) for seen in every]
    weighed = [(seen, p) for seen, p in asked if p is not None]
    held = discoveries([p / LEVEL for _, p in weighed], max(1, len(weighed)))
    decided = {id(seen): (p, sure) for (seen, p), sure in zip(weighed, held, strict=True)}
    found: list[News] = []
    for seen in every:
        p, sure = decided.get(id(seen), (None, False))
        change = _change(seen, sure)
        if change is None:
            continue
        found.append(
            News(
                job=seen.subject.job,
                kind=seen.subject.kind,
                name=seen.subject.name,
                title=seen.subject.title,
                sides=seen.sides,
                change=change,
                tonight=seen.tonight + seen.again,
                fresh=seen.fresh,
                before=seen.before,
                p=p,
                since=seen.since,
            )
        )
    order = list(Change)
    return tuple(sorted(found, key=lambda one: (order.index(one.change), one.job, one.name)))


def _suspicion(seen: Seen) -> float | None:
    """p of what fresh runs say about the difference that tonight shows; None: they say nothing."""
    before, fresh = seen.before, seen.fresh
    if not (before.runs and fresh.runs):
        return None
    if seen.tonight.bad:
        if fresh.bad * before.runs <= before.bad * fresh.runs:
            return None
        return fisher(fresh.bad, fresh.runs, before.bad, before.runs)
    if before.bad:
        return fisher(before.bad, before.runs, fresh.bad, fresh.runs)
    return None


def _change(seen: Seen, sure: bool) -> Change | None:
    before, tonight = seen.before, seen.tonight
    if not tonight.runs:
        return Change.LOST if seen.past.good and seen.past.good[0].runs else None
    if tonight.bad:
        return _worse(seen, sure)
    if before.bad:
        if sure:
            return Change.FIXED
        return Change.FLAKY if before.bad < before.runs else Change.QUIET
    if not seen.raised:
        return None
    # It began after the last good night, and is gone.
    bad = sum((count for _, count in seen.past.since), Count())
    p = fisher(bad.bad, bad.runs, 0, tonight.runs)
    return Change.FIXED if p <= LEVEL else Change.FLAKY


def _worse(seen: Seen, sure: bool) -> Change:
    before, every = seen.before, seen.tonight + seen.again
    if seen.judged or sure:
        return Change.NEW
    if not before.runs:
        return Change.FIRST
    if _dismissed(seen):
        return Change.FLAKY
    if not before.bad:
        return Change.SUSPECT
    always = before.bad == before.runs and every.bad == every.runs
    return Change.KNOWN if always else Change.FLAKY


def _dismissed(seen: Seen) -> bool:
    """Fresh runs rule out that it fails much more often than it did: as a run's judge has it."""
    before, fresh = seen.before, seen.fresh
    if not (before.runs and fresh.runs):
        return False
    most = smallest_rate(fresh.runs, fresh.bad, 1 - LEVEL)
    return most < before.bad / before.runs + RESOLUTION


def suspects(every: Sequence[Seen]) -> tuple[Seen, ...]:
    """What more runs tonight could decide."""
    return tuple(seen for seen in every if not seen.again.runs and _open(seen))


def _open(seen: Seen) -> bool:
    change = _change(seen, sure=False)
    return change in (Change.SUSPECT, Change.QUIET) or (
        change is Change.FLAKY and _much_worse(seen)
    )


def _much_worse(seen: Seen) -> bool:
    """It failed in every run tonight and used to pass now and then."""
    return seen.tonight.bad == seen.tonight.runs > 0 and 0 < seen.before.bad < seen.before.runs


def merged(sides: Mapping[Side, Seen]) -> tuple[Seen, ...]:
    """`both_sides`, where both were heard of."""
    if len(sides) == len(Side):
        return both_sides(sides[Side.BASE], sides[Side.PATCHED])
    return tuple(sides.values())
