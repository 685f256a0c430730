"""One request goes in, a finished night comes out: jobs within the budget, suspects, comparison.

A night that was cut off is taken up where it stopped, until its time is over.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lab
from lab import ledger, matrix, model
from lab.archive import listing
from lab.ledger import Ledger
from lab.matrix import Job
from lab.model import Emit, Event, EventKind, LabFault, RunRecord, UserError, case_of
from lab.night import budget, compare, history, process, record, sentence
from lab.night.budget import Prospect
from lab.night.compare import Seen
from lab.night.process import Program
from lab.night.record import JobResult, JobState, Night, NightRecord, NightStart
from lab.prose import span
from lab.store import is_locked, locked, sweep_temporaries, write_atomically
from lab.verdict.observe import splat_key

_WHOLE_DAY_S = 24 * 3600.0  # a night without a budget that is older is not taken up


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `lab nightly` was asked for."""

    jobs: tuple[Job, ...]
    runs: Path
    budget_s: float | None
    program: Program
    command: tuple[str, ...] = ()
    fresh: bool = False  # do not go on with a night that was cut off
    again: int = 16  # repeats of a suspect on each side: [run] max_repeats


async def run(request: Request, emit: Emit) -> Night:
    """Carry the night out. Raises `UserError` if another one is running here."""
    root = record.folder_of(request.runs)
    if is_locked(root / "lock"):
        raise UserError("another night is running here", hint=f"its folder is in {root}")
    with locked(root / "lock"):
        _close_old(request, emit)
        folder, start = _open(request, emit)
        sweep_temporaries(folder)
        sweep_temporaries(folder / "jobs")
        with (folder / "starts").open("a") as stream:
            stream.write(f"{_now()}\n")
        state = _State(request=request, folder=folder, start=start, emit=emit)
        await state.run_jobs()
        await state.ask_again()
        return state.finish()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _end(start: NightStart) -> float | None:
    """When its budget ends, as `time.time`."""
    if start.budget_s is None:
        return None
    return datetime.fromisoformat(start.started).timestamp() + start.budget_s


def _over(start: NightStart) -> bool:
    began = datetime.fromisoformat(start.started).timestamp()
    span_s = _WHOLE_DAY_S if start.budget_s is None else start.budget_s
    return time.time() >= began + span_s


def _close_old(request: Request, emit: Emit) -> None:
    """Nights that were cut off and whose time is over get their record from what they have."""
    for folder, start in record.unfinished(request.runs):
        if not (request.fresh or _over(start)):
            continue
        text = f"the night {start.id} was cut off, and its time is over: closed as it stands"
        emit(Event(kind=EventKind.NOTE, step="night", text=text))
        _State(request=request, folder=folder, start=start, emit=emit).finish()


def _open(request: Request, emit: Emit) -> tuple[Path, NightStart]:
    """The night that was cut off, if it was the same one, else a new one."""
    wanted = matrix.digest(request.jobs)
    for folder, start in record.unfinished(request.runs):
        if (start.digest, start.budget_s) == (wanted, request.budget_s):
            done = len(record.job_results(folder))
            text = f"going on with the night {start.id}: {done} of {len(start.jobs)} jobs are done"
            emit(Event(kind=EventKind.NOTE, step="night", text=text))
            return folder, start
    began = datetime.now(UTC)
    folder = _new_folder(record.folder_of(request.runs), began)
    start = NightStart(
        id=folder.name,
        digest=wanted,
        started=began.isoformat(timespec="seconds"),
        budget_s=request.budget_s,
        jobs=request.jobs,
        lab_version=lab.__version__,
        command=request.command,
    )
    write_atomically(folder / "night.json", model.encode(start))
    return folder, start


def _new_folder(root: Path, began: datetime) -> Path:
    for seconds in range(1000):
        folder = root / f"{began + timedelta(seconds=seconds):%Y%m%d-%H%M%S}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise LabFault(f"no room for a night in {root}")


class _State:
    """A night while it runs."""

    def __init__(self, *, request: Request, folder: Path, start: NightStart, emit: Emit) -> None:
        self._request = request
        self._folder = folder
        self._start = start
        self._emit = emit
        self._nights = tuple(
            night for night in record.load(request.runs, emit) if night.record.id < start.id
        )
        self._results = record.job_results(folder)
        self._unfit: dict[str, JobResult] = {}  # not kept: a night that goes on asks anew
        end = _end(start)
        # Taking a machine down takes a moment, and belongs to the budget.
        reserve_s = min(60.0, 0.02 * (start.budget_s or 0.0))
        self._stop_at = None if end is None else end - reserve_s

    def _left_s(self) -> float | None:
        return None if self._stop_at is None else self._stop_at - time.time()

    def _keep(self, result: JobResult) -> None:
        self._results[result.job.key] = result
        write_atomically(self._jobs / f"{result.job.key}.json", model.encode(result))

    @property
    def _jobs(self) -> Path:
        return self._folder / "jobs"

    # --- jobs ---

    async def run_jobs(self) -> None:
        """Whatever fits, the most telling first."""
        earlier = [night.record for night in self._nights]
        every = budget.prospects(self._start.jobs, earlier)
        waiting = [one for one in every if one.job.key not in self._results]
        total = len(every)
        while waiting:
            chosen = budget.next_job(waiting, self._left_s())
            if chosen is None:
                self._unfit = {one.job.key: self._left_out(one) for one in waiting}
                break
            waiting.remove(chosen)
            number = total - len(waiting)
            result = await process.run(
                self._request.program,
                chosen.job,
                self._jobs,
                stop_at=self._stop_at,
                emit=self._emit,
                label=f"{number}/{total} {chosen.job.name}",
            )
            self._keep(result)

    def _left_out(self, one: Prospect) -> JobResult:
        left_s = self._left_s() or 0.0
        left = f"{span(left_s)} were left" if left_s > 0 else "nothing was left"
        takes = "" if one.expected_s is None else f"it takes {span(one.expected_s)}, and "
        return JobResult(job=one.job, state=JobState.LEFT_OUT, reason=takes + left)

    # --- suspects ---

    async def ask_again(self) -> None:
        """More runs of what looks new, as long as the budget lasts: they decide."""
        with ledger.opened(self._request.runs) as book:
            asked = [
                (result, compare.suspects(self._seen(book, result)))
                for result in self._results.values()
                if result.state is JobState.RAN and not result.again
            ]
        for result, suspects in asked:
            left_s = self._left_s()
            if not suspects or (left_s is not None and left_s < result.duration_s):
                continue
            await self._ask_job_again(result, suspects)

    async def _ask_job_again(self, result: JobResult, suspects: Sequence[Seen]) -> None:
        repeats = self._request.again
        cases = _cases_of(self._request.runs / result.run, suspects)
        if not cases:
            return
        words = [word for case in cases for word in ("--only", case)]
        words += ["--repeats", str(repeats), "--max-repeats", str(repeats)]
        done = await process.run(
            self._request.program,
            result.job,
            self._jobs,
            stop_at=self._stop_at,
            emit=self._emit,
            more=words,
            label=f"again {result.job.name}: {', '.join(cases[:3])}",
        )
        if done.state is JobState.RAN:
            self._keep(replace(result, again=(done.run,)))

    def _seen(self, book: Ledger, result: JobResult) -> tuple[Seen, ...]:
        return history.seen(book, result, history.reference(result.job, self._nights))

    # --- the end ---

    def finish(self) -> Night:
        """Compare, and write the record."""
        results: list[JobResult] = []
        every: list[Seen] = []
        with ledger.opened(self._request.runs) as book:
            for job in self._start.jobs:
                result = self._results.get(job.key) or self._unfit.get(job.key) or _never(job)
                if result.state is JobState.RAN:
                    against = history.reference(job, self._nights)
                    every += history.seen(book, result, against)
                    result = replace(result, reference=against.last)
                results.append(result)
        news = compare.news(every)
        outcome, reasons = sentence.outcome(results, news)
        starts = (self._folder / "starts").read_text().splitlines() if self._started() else []
        done = NightRecord(
            start=self._start,
            finished=_now(),
            results=tuple(results),
            news=news,
            outcome=outcome,
            sentence=sentence.sentence(outcome, results, news),
            reasons=reasons,
            interrupted=max(0, len(starts) - 1),
        )
        write_atomically(self._folder / "record.json", model.encode(done))
        _point(self._folder)
        return Night(record=done, folder=self._folder)

    def _started(self) -> bool:
        return (self._folder / "starts").exists()


def _never(job: Job) -> JobResult:
    reason = "the night was cut off before it"
    return JobResult(job=job, state=JobState.LEFT_OUT, reason=reason)


def _point(folder: Path) -> None:
    """`latest` is the newest night that has ended."""
    link = folder.parent / ".latest"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(folder.parent / "latest")


def _cases_of(folder: Path, suspects: Sequence[Seen]) -> tuple[str, ...]:
    """The cases to run again: of a splat those that it was charged to, of the boot any."""
    run_ = listing.read_record(folder)
    planned = set(run_.manifest.cases)
    found: dict[str, None] = {}
    for one in suspects:
        names = [one.subject.name]
        if one.subject.kind == "splat":
            names = list(_charged(run_, one.subject.name))
        wanted = [case_of(name) for name in names if case_of(name) in planned]
        found |= dict.fromkeys(wanted or run_.manifest.cases[:1])
    return tuple(found)


def _charged(run_: RunRecord, key: str) -> Iterator[str]:
    for trial in run_.trials:
        for result in trial.results:
            if any(splat_key(splat) == key for splat in result.splats):
                yield result.name
