"""Jobs and earlier nights go in; what to run next, and what does not fit, comes out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab.matrix import Job
from lab.night.record import JobState, NightRecord

_REMEMBERED = 3  # nights: a kernel that moves is built anew, and the longest of them counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What earlier nights say of a job."""

    job: Job
    failed: bool  # when it last ran, its verdict was not clean, or it brought bad news
    idle: int  # nights since it last ran to its end; -1: it never did
    expected_s: float | None  # None: it never ran


def prospects(jobs: Sequence[Job], nights: Sequence[NightRecord]) -> tuple[Prospect, ...]:
    """The jobs in the order of what they are worth: those that failed last, those that never ran,
    then those that have not run longest. `nights` come newest first."""
    every = [_prospect(job, nights) for job in jobs]

    def worth(one: Prospect) -> tuple[bool, bool, int]:
        return (not one.failed, one.idle >= 0, -one.idle)

    return tuple(sorted(every, key=worth))  # stable: else in the order of the matrix


def _prospect(job: Job, nights: Sequence[NightRecord]) -> Prospect:
    idle, failed = -1, False
    took: list[float] = []
    for age, night in enumerate(nights):
        result = night.result(job.key)
        if result is None:
            continue
        if result.state is JobState.RAN:
            if not took:
                idle, failed = age, not night.good_for(job.key)
            took.append(result.duration_s)
    return Prospect(
        job=job,
        failed=failed,
        idle=idle,
        expected_s=max(took[:_REMEMBERED]) if took else None,
    )


def next_job(waiting: Sequence[Prospect], left_s: float | None) -> Prospect | None:
    """The first that fits into `left_s` (None: no end); None if none does.

    One that never ran is given the chance: what it takes is not known, and the budget ends it.
    """
    if left_s is None:
        return waiting[0] if waiting else None
    return next((one for one in waiting if 0 < left_s >= (one.expected_s or 0.0)), None)
