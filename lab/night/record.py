"""The nouns of a night, and where they are kept. Values, and their files.

A night is a folder `nights/ID/` below the runs: `night.json` before the first job, `jobs/KEY.json`
as each job ends, `record.json` at the end, `accepted` if its user said so.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lab import model
from lab.matrix import Job
from lab.model import Event, EventKind, LabFault, Outcome, Side, UserError

FOLDER = "nights"


class JobState(StrEnum):
    """What became of a job in a night."""

    RAN = "ran"  # to its end: it has a verdict
    LEFT_OUT = "left-out"  # it would not have fitted into what was left of the budget
    CUT_OFF = "cut-off"  # the budget ended while it ran; the next night takes it up
    REFUSED = "refused"  # its request cannot be carried out
    FAULT = "fault"  # the lab broke


class Change(StrEnum):
    """What a case or a splat of a job did, against the nights up to the last good one."""

    NEW = "new"  # fresh runs decided it
    SUSPECT = "suspect"  # it looks new; what ran does not decide it
    FIRST = "first"  # failing, and there is nothing to compare it with
    LOST = "lost"  # it gave answers, and gave none tonight
    FLAKY = "flaky"  # comes and goes, no more often than before
    FIXED = "fixed"
    QUIET = "quiet"  # not seen tonight, too few runs to call it fixed
    KNOWN = "known"  # as in the last good night


# What keeps a job's night from being a good one.
BAD_NEWS = frozenset({Change.NEW, Change.SUSPECT, Change.LOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Failures of runs: what a case or a splat did in one night, or in several."""

    bad: int = 0
    runs: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(bad=self.bad + other.bad, runs=self.runs + other.runs)

    @property
    def text(self) -> str:
        return f"{self.bad} of {self.runs}"


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """One case or splat of one job of which there is something to say."""

    job: str  # key
    kind: str  # "case" | "splat"
    name: str  # of the case, or the splat's key
    title: str
    sides: tuple[Side, ...]  # both: it is not the series that did it
    change: Change
    tonight: Count
    fresh: Count  # runs that did not raise the suspicion: they decide
    before: Count  # nights up to the last good one
    p: float | None = None
    since: str = ""  # id of the earlier night in which it began, if it is not tonight's


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A job in a night."""

    job: Job
    state: JobState
    command: tuple[str, ...] = ()
    run: str = ""  # name of its run
    again: tuple[str, ...] = ()  # runs of its suspects
    outcome: Outcome | None = None
    sentence: str = ""  # of its verdict
    reason: str = ""  # why there is none
    started: str = ""
    duration_s: float = 0.0  # builds included, suspects not
    reference: str = ""  # the night that it was compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class NightStart:
    """What is known before the first job."""

    id: str
    digest: str  # of the jobs
    started: str  # ISO 8601, UTC
    budget_s: float | None
    jobs: tuple[Job, ...]
    lab_version: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NightRecord:
    """A finished night, whole."""

    start: NightStart
    finished: str
    results: tuple[JobResult, ...]  # in the order of the matrix
    news: tuple[News, ...]
    outcome: Outcome
    sentence: str
    reasons: tuple[str, ...] = ()  # why it is not clean
    interrupted: int = 0  # how often it was taken up again

    @property
    def id(self) -> str:
        return self.start.id

    def result(self, key: str) -> JobResult | None:
        return next((one for one in self.results if one.job.key == key), None)

    def good_for(self, key: str) -> bool:
        """Whether that job ran, its verdict was clean, and it brought no bad news."""
        one = self.result(key)
        return (
            one is not None
            and one.state is JobState.RAN
            and one.outcome is Outcome.CLEAN
            and not any(news.job == key and news.change in BAD_NEWS for news in self.news)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """A kept night and what its user said of it."""

    record: NightRecord
    folder: Path
    accepted: bool = False  # good for all its jobs that ran, whatever they found

    def reference_for(self, key: str) -> bool:
        """Whether later nights may be measured by it."""
        one = self.record.result(key)
        ran = one is not None and one.state is JobState.RAN
        return ran and (self.accepted or self.record.good_for(key))


def folder_of(runs: Path) -> Path:
    return runs / FOLDER


def _files(runs: Path, name: str) -> list[Path]:
    """Those of all nights, newest first; `latest` is only another name of one of them."""
    found = folder_of(runs).glob(f"*/{name}")
    return sorted((path for path in found if not path.parent.is_symlink()), reverse=True)


def load(runs: Path, emit: model.Emit | None = None) -> tuple[Night, ...]:
    """All finished nights, newest first. One that cannot be read is told of, and left out."""
    found: list[Night] = []
    for path in _files(runs, "record.json"):
        try:
            record = model.decode(path.read_bytes(), NightRecord)
        except (LabFault, OSError) as error:
            if emit is not None:
                text = f"{path}: {error}; that night is not counted"
                emit(Event(kind=EventKind.WARNING, step="nights", text=text))
            continue
        found.append(
            Night(record=record, folder=path.parent, accepted=(path.parent / "accepted").exists())
        )
    return tuple(found)


def find(runs: Path, name: str | None) -> Night:
    """The night of that id, or beginning of one; None: the newest. Raises `UserError`."""
    nights = load(runs)
    if not nights:
        raise UserError(f"no finished night in {folder_of(runs)}", hint="lab nightly makes one")
    fitting = [night for night in nights if night.record.id.startswith(name or "")]
    if name is None or len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(night.record.id for night in fitting[:5])
        raise UserError(f"{name} fits {len(fitting)} nights", hint=names)
    raise UserError(f"no night {name}", hint=f"newest: {nights[0].record.id}")


def unfinished(runs: Path) -> tuple[tuple[Path, NightStart], ...]:
    """Nights without a record, newest first: cut off, or running."""
    found: list[tuple[Path, NightStart]] = []
    for path in _files(runs, "night.json"):
        if (path.parent / "record.json").exists():
            continue
        with contextlib.suppress(LabFault, OSError):
            found.append((path.parent, model.decode(path.read_bytes(), NightStart)))
    return tuple(found)


def job_results(folder: Path) -> dict[str, JobResult]:
    """Key -> result of the jobs of a night that have ended."""
    found: dict[str, JobResult] = {}
    for path in sorted((folder / "jobs").glob("*.json")):
        if re.fullmatch(r"[0-9a-f]{12}\.json", path.name):
            with contextlib.suppress(LabFault, OSError):
                found[path.stem] = model.decode(path.read_bytes(), JobResult)
    return found
