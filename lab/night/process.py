"""A job goes in, `lab run` is started for it as a process of its own, what came of it comes out.

A process, so that a bug or a crash of one job ends that job alone, and so that the end of the
budget is what any user could do: ask it to stop. It hangs on a leash: nothing of it outlives us.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lab import host, model
from lab.matrix import Job
from lab.model import Emit, Event, EventKind, ExitCode, LabFault, RunRecord
from lab.night.record import JobResult, JobState

_TICK_S = 1.0
_GRACE_S = 45.0  # to take machines down by itself
_TOLD_BYTES = 4096  # of its log, for a message
_VERDICTS = (ExitCode.CLEAN, ExitCode.REGRESSED, ExitCode.INCONCLUSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How the lab is called; the words of the job follow."""

    argv: tuple[str, ...]

    def command(self, job: Job, more: Sequence[str] = ()) -> tuple[str, ...]:
        return (*self.argv, *job.words, *more, "--json")


async def run(
    program: Program,
    job: Job,
    folder: Path,
    *,
    stop_at: float | None,
    emit: Emit,
    more: Sequence[str] = (),
    label: str = "",
) -> JobResult:
    """Run the job to its end, or until `stop_at` (as `time.time`): then it is asked to end.

    Its log is kept in `folder`.
    """
    command = program.command(job, more)
    name = f"{job.key}{'-again' if more else ''}"
    log, out = folder / f"{name}.log", folder / f"{name}.out"
    step = label or job.name
    emit(Event(kind=EventKind.STARTED, step=step, text="started"))
    started, began = datetime.now(UTC), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as stdout, log.open("ab") as stderr:
        async with host.spawn(command, stdout=stdout.fileno(), stderr=stderr.fileno()) as process:
            cut = await _watch(process, stop_at, log, step, emit)
        status = process.returncode
    result = _result(job, command, status, cut, out, log)
    out.unlink(missing_ok=True)
    emit(Event(kind=EventKind.DONE, step=step, text=result.sentence or result.reason))
    return replace(
        result,
        started=started.isoformat(timespec="seconds"),
        duration_s=time.monotonic() - began,
    )


async def _watch(
    process: asyncio.subprocess.Process, stop_at: float | None, log: Path, step: str, emit: Emit
) -> bool:
    """Wait for its end; True if it had to be asked for it."""
    told = ""
    while process.returncode is None:
        left_s = _TICK_S if stop_at is None else stop_at - time.time()
        if left_s <= 0:
            emit(Event(kind=EventKind.NOTE, step=step, text="the budget ends: taking it down"))
            host.ask_to_end(process)
            try:
                await asyncio.wait_for(process.wait(), _GRACE_S)
            except TimeoutError:
                text = f"did not end within {_GRACE_S:.0f} s: killed"
                emit(Event(kind=EventKind.WARNING, step=step, text=text))
            return True
        try:
            await asyncio.wait_for(process.wait(), min(_TICK_S, left_s))
        except TimeoutError:
            last = (_end_of(log).splitlines() or [""])[-1].strip()
            if last != told:
                told = last
                emit(Event(kind=EventKind.PROGRESS, step=step, text=last))
    return False


def _end_of(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - _TOLD_BYTES))
        return stream.read().decode("utf-8", "replace")


def _result(
    job: Job, command: Sequence[str], status: int | None, cut: bool, out: Path, log: Path
) -> JobResult:
    """What its exit status and its record say; a status alone says nothing of kernels."""
    bare = JobResult(job=job, state=JobState.FAULT, command=tuple(command))
    if status in _VERDICTS:
        try:
            record = model.decode(out.read_bytes(), RunRecord)
        except LabFault as error:
            return replace(bare, reason=f"exit {status}, and no record: {error.message}")
        return replace(
            bare,
            state=JobState.RAN,
            run=record.manifest.run,
            outcome=record.verdict.outcome,
            sentence=record.verdict.sentence,
        )
    if cut:
        reason = "the budget ended while it ran; the next night takes it up"
        return replace(bare, state=JobState.CUT_OFF, reason=reason)
    said = _complaint(log) or f"it ended with status {status}"
    state = JobState.REFUSED if status == ExitCode.USAGE else JobState.FAULT
    return replace(bare, state=state, reason=said)


def _complaint(log: Path) -> str:
    """The message that the lab ends with: `lab: what`, and below it `hint: way out`."""
    lines = _end_of(log).splitlines()
    at = max((n for n, line in enumerate(lines) if line.startswith("lab: ")), default=None)
    if at is None:
        return " ".join(lines[-1:]).strip()
    hints = [line.removeprefix("hint: ") for line in lines[at + 1 :] if line.startswith("hint: ")]
    return "; ".join([lines[at].removeprefix("lab: "), *hints[:1]])
