"""Splats, what was expected of them and the kernel's taint in; what a case's state must be out.

A known splat is let pass and stays visible. A taint without a report is a missed splat: the case
that it came in is never green.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lab.model import CaseResult, CaseState, Splat
from lab.splat import allow, taint
from lab.splat.allow import Allowed
from lab.splat.kinds import ENDS_LOCKDEP, Kind

BOOT = "boot"  # the key of the taint that the machine had when it was up


def excused(
    splats: Sequence[Splat], entries: Sequence[Allowed], *, arch: str, today: datetime.date
) -> list[Splat]:
    """The splats; those that the list lets pass carry its reason."""
    return [
        splat if entry is None else replace(splat, allowed=f"{entry.reason} ({entry.link})")
        for splat, entry in allow.excuse(splats, entries, arch=arch, today=today)
    ]


def expected(splats: Sequence[Splat], awaited: Sequence[str]) -> tuple[Splat, ...]:
    """A case's splats; those that it itself makes of a sound kernel are let pass. They are
    `awaited` by kind, or by KIND:TITLE."""
    return tuple(
        replace(splat, allowed="what this case causes")
        if not splat.allowed and {splat.kind, f"{splat.kind}:{splat.title}"} & {*awaited}
        else splat
        for splat in splats
    )


def charged(result: CaseResult, splats: Sequence[Splat]) -> CaseResult:
    """The result with its splats: it ended well only if all of them are let pass."""
    mine = tuple(splats)
    result = replace(result, splats=mine)
    new = [splat for splat in mine if not splat.allowed]
    bugs = [splat for splat in new if splat.kind != Kind.LOCKDEP_LIMIT]
    if not mine or result.state not in (CaseState.PASSED, CaseState.UNCOVERED):
        return result
    if bugs:
        return replace(result, state=CaseState.FAILED, message=f"ended well, but: {bugs[0].title}")
    if new:
        # No fault of the kernel's: lockdep gave up, and what came after was not checked.
        message = f"lockdep ran out of room while it ran: {new[0].title}"
        return replace(result, state=CaseState.UNCOVERED, message=message)
    known = "; ".join(dict.fromkeys(f"{splat.title}: {splat.allowed}" for splat in mine))
    if result.state is CaseState.UNCOVERED and any(each.kind in ENDS_LOCKDEP for each in mine):
        return replace(result, message=f"a known splat switched lockdep off: {known}")
    said = f"{result.message}; " if result.message else ""
    return replace(result, message=f"{said}allowed: {known}")


def cross_checked(
    results: Sequence[CaseResult],
    boot_splats: Sequence[Splat],
    taints: Mapping[str, tuple[int, int]],
) -> tuple[CaseResult, ...]:
    """The results; a case whose taint rose without a report has failed.

    `taints` are values of /proc/sys/kernel/tainted before and after a case, by its name; `BOOT`
    for the boot, which is charged to the first case. A report may begin just before a case ends
    and its taint be seen after the next one, so a case's reports serve the next one too.
    """
    checked: list[CaseResult] = []
    before: tuple[Splat, ...] = tuple(boot_splats)
    missed = _missed(taints.get(BOOT, (0, 0)), before)
    for number, result in enumerate(results):
        missed += _missed(taints.get(result.name, (0, 0)), (*before, *result.splats))
        if missed:
            when = " at boot" if not number and _missed(taints.get(BOOT, (0, 0)), before) else ""
            message = f"tainted ({missed}){when} without a report: a missed splat"
            joined = f"{result.message}; {message}" if result.message else message
            fine = result.state in (CaseState.PASSED, CaseState.UNCOVERED, CaseState.SKIPPED)
            state = CaseState.FAILED if fine else result.state
            checked.append(replace(result, state=state, message=joined))
        else:
            checked.append(result)
        before, missed = result.splats, ""
    return tuple(checked)


def _missed(change: tuple[int, int], splats: Sequence[Splat]) -> str:
    """Letters of the taints that came and that no splat accounts for."""
    return "".join(each.letter for each in taint.unexplained(change[1], splats, before=change[0]))
