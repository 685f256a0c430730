"""What the user asked to run goes in; suites, their cases and what these need come out.

`SUITE` and `SUITE:GROUP` choose suites and parts of them; `only` names single cases. What cannot
run here at all is said in one line and kept: a run that lacks what was asked for is never clean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from lab.machine import Disk
from lab.model import Event, EventKind, Side, UserError
from lab.suites import registry
from lab.suites.protocol import Ground, PlannedCase, Suite, SuiteOptions, Supplied, Supplies


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One suite, and which parts of it; no group: its default."""

    suite: Suite
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What will run."""

    suites: tuple[Suite, ...]
    cases: tuple[PlannedCase, ...]
    disks: Mapping[tuple[str, Side], tuple[Disk, ...]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()  # one line for each suite that was asked for and cannot run


def parse(words: Sequence[str]) -> tuple[Wanted, ...]:
    """ "boot", "xfstests:quick" -> suites with their groups, each once, in that order.

    Raises `UserError` for a suite that nobody knows.
    """
    groups: dict[str, list[str]] = {}
    for word in words:
        name, colon, group = word.partition(":")
        mine = groups.setdefault(name, [])
        if colon and not group:
            raise UserError(f"suite {word!r} names no group", hint=f"{name} alone is its default")
        if group and group not in mine:
            mine.append(group)
    suites = registry.find(tuple(groups))
    return tuple(Wanted(suite=suite, groups=tuple(groups[suite.name])) for suite in suites)


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` means that case: its name, the end of it, or a shell pattern for these."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")


def select(
    wanted: Sequence[Wanted],
    options: SuiteOptions,
    *,
    only: Sequence[str] = (),
    ground: Ground | None = None,
) -> Selection:
    """The suites with a case to run, and their cases.

    Without `ground`, suites that bring their own programs are left out: whoever only builds needs
    none. Raises `UserError` for what names nothing, and if nothing that was asked for can run.
    """
    suites: list[Suite] = []
    cases: list[PlannedCase] = []
    disks: dict[tuple[str, Side], tuple[Disk, ...]] = {}
    absent: list[str] = []
    for one in wanted:
        if isinstance(one.suite, Supplied):
            if ground is None:
                continue
            supplies = _supplied(one, one.suite, ground, only)
            mine = supplies.cases
            if supplies.absent:
                absent.append(f"{one.suite.name} does not run: {supplies.absent}")
            for key, more in supplies.disks.items():
                disks[key] = (*disks.get(key, ()), *more)
        else:
            mine = _grouped(one, one.suite.plan(options))
            mine = tuple(case for case in mine if _chosen(case.name, only))
        if mine:
            suites.append(one.suite)
            cases += mine
    _check_only(only, cases, wanted, absent)
    if only:
        absent.clear()  # every case that was asked for is there
    if not cases and absent:
        raise UserError("; ".join(absent), hint="nothing else was asked for: lab suites")
    return Selection(suites=tuple(suites), cases=tuple(cases), disks=disks, absent=tuple(absent))


def _supplied(one: Wanted, suite: Supplied, ground: Ground, only: Sequence[str]) -> Supplies:
    supplies = suite.supply(replace(ground, groups=one.groups, only=tuple(only)))
    for note in supplies.notes:
        ground.emit(Event(kind=EventKind.NOTE, step=suite.name, text=note))
    if supplies.absent and not only:
        text = f"skipped: {supplies.absent}"
        ground.emit(Event(kind=EventKind.WARNING, step=suite.name, text=text))
    kept = tuple(case for case in supplies.cases if _chosen(case.name, only))
    return replace(supplies, cases=kept, disks=supplies.disks if kept else {})


def _chosen(name: str, only: Sequence[str]) -> bool:
    return not only or any(matches(name, pattern) for pattern in only)


def _grouped(one: Wanted, cases: Sequence[PlannedCase]) -> tuple[PlannedCase, ...]:
    """The cases of those groups; a group of such a suite is a part of its cases' names."""
    parts = {case.name: set(case.name.split("/")[1:]) for case in cases}
    for group in one.groups:
        if not any(group in mine for mine in parts.values()):
            known = sorted(set().union(*parts.values()))
            raise UserError(
                f"suite {one.suite.name} has no group {group!r}", hint=f"known: {', '.join(known)}"
            )
    return tuple(case for case in cases if not one.groups or parts[case.name] & set(one.groups))


def _check_only(
    only: Sequence[str], cases: Sequence[PlannedCase], wanted: Sequence[Wanted], absent: list[str]
) -> None:
    for pattern in only:
        if any(matches(case.name, pattern) for case in cases):
            continue
        names = ", ".join(one.suite.name for one in wanted)
        why = f" ({'; '.join(absent)})" if absent else ""
        raise UserError(
            f"--only {pattern}: no such case in {names}{why}",
            hint="a name, the end of one, or a shell pattern: generic/247, xfs/*",
        )
