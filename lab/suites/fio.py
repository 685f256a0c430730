"""fio's mmap engine on fresh file systems: job files in, speeds as metrics out.

A job is lab/suites/data/fio/NAME.fio; what all of them share is put before it here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

import msgspec

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState
from lab.suites import scratch
from lab.suites.protocol import Commands, Needs, PlannedCase, SuiteOptions, Told

JOBS = Path(__file__).parent / "data" / "fio"
_SLACK_S = 180.0  # laying the files out, and fio's own clearing up, on an emulator
_PROCESSES = 2
_FILE = "16m"  # of each: tmpfs has room for them, and the page cache for all
_RUN = (
    'printf "%s" "$1" >/tmp/lab.fio; fio --output-format=json --output=/tmp/lab-fio.json '
    "/tmp/lab.fio; status=$?; cat /tmp/lab-fio.json; exit $status"
)
_UNITS = 1000.0  # ns in a µs


class Latency(msgspec.Struct, kw_only=True):
    percentile: dict[str, float] = {}  # "50.000000" -> ns


class Direction(msgspec.Struct, kw_only=True):
    total_ios: int = 0
    iops: float = 0.0
    clat_ns: Latency = msgspec.field(default_factory=Latency)


class Job(msgspec.Struct, kw_only=True):
    """What fio says of one group of jobs, as far as it is used here."""

    error: int = 0
    read: Direction = msgspec.field(default_factory=Direction)
    write: Direction = msgspec.field(default_factory=Direction)
    majf: int = 0
    minf: int = 0


class Output(msgspec.Struct, kw_only=True):
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fio:
    """The suite."""

    name: str = "fio"
    one_line: str = (
        "loads and stores through mappings of files: how fast, and is it what was stored"
    )
    disk: str = scratch.DISK
    mount_point: str = "/mnt/fio"

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        names = options.filesystems if options else None
        # Its processes share memory by System V segments.
        return scratch.needs(names, ("MMU", "SHMEM", "SYSVIPC"), ("fio",))

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        known = tuple(scratch.FILESYSTEMS)
        scratch.check_names(self.name, "file system", options.filesystems, known)
        return tuple(
            PlannedCase(
                name=f"{self.name}/{filesystem}/{path.stem}",
                what=path.read_text(encoding="utf-8").splitlines()[0].lstrip("# "),
                timeout_s=options.duration_s + _SLACK_S + 4 * scratch.LIMIT_S,
                filesystem=filesystem,
                arguments=(path.stem, str(options.duration_s)),
            )
            for filesystem in options.filesystems
            for path in sorted(JOBS.glob("*.fio"))
        )

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Told | Down:
        job, duration_s = case.arguments
        text = job_file(job, self.mount_point, float(duration_s), seed)
        return await scratch.judged(
            guest,
            case,
            ("/bin/sh", "-c", _RUN, "fio", text),
            disk=self.disk,
            mount_point=self.mount_point,
            timeout_s=float(duration_s) + _SLACK_S,
            judge=judge,
        )


def job_file(job: str, directory: str, duration_s: float, seed: int) -> str:
    """The whole job file: what all jobs share, then the job's own."""
    shared = (
        "[global]",
        "ioengine=mmap",
        f"directory={directory}",
        f"size={_FILE}",
        "bs=4k",
        f"numjobs={_PROCESSES}",
        "group_reporting=1",
        "time_based=1",
        f"runtime={max(1, round(duration_s))}",
        f"randseed={seed}",
        "allrandrepeat=1",
        # Each run begins with an empty page cache of its files.
        "invalidate=1",
        "",
    )
    return "\n".join(shared) + (JOBS / f"{job}.fio").read_text(encoding="utf-8")


def judge(name: str, answer: Exited | TimedOut) -> CaseResult:
    """The result of a job: passed only if fio ended well, reports no error and did something."""
    match answer:
        case TimedOut():
            message = "fio did not end in its time"
            return CaseResult(name=name, state=CaseState.TIMEOUT, message=message)
        case Exited():
            pass
        case _:
            assert_never(answer)
    job = read(answer.stdout)
    said = scratch.last_line(replace(answer, stdout=b"") if answer.stderr else answer)
    if answer.status != 0:
        error = f", error {job.error}" if job and job.error else ""
        message = f"fio ended with status {answer.status}{error}: {said}"
        return CaseResult(name=name, state=CaseState.FAILED, message=message)
    if job is None or answer.truncated:
        message = f"fio ended well, but its output is none: {said}"
        return CaseResult(name=name, state=CaseState.FAILED, message=message)
    if job.error:
        message = f"fio reports error {job.error}: {said}"
        return CaseResult(name=name, state=CaseState.FAILED, message=message)
    if not job.read.total_ios + job.write.total_ios:
        message = "fio did nothing: not one read or write"
        return CaseResult(name=name, state=CaseState.UNCOVERED, message=message)
    return CaseResult(name=name, state=CaseState.PASSED, metrics=metrics(job))


def read(stdout: bytes) -> Job | None:
    """What fio's JSON says of its only group; None if it is none."""
    try:
        # It may be preceded by notes.
        output = msgspec.json.decode(stdout[max(0, stdout.find(b"{")) :], type=Output, strict=False)
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError):
        return None
    return output.jobs[0] if len(output.jobs) == 1 else None


def metrics(job: Job) -> dict[str, float]:
    found = {"major_faults": float(job.majf), "minor_faults": float(job.minf)}
    for name, direction in (("read", job.read), ("write", job.write)):
        if not direction.total_ios:
            continue
        found[f"{name}_per_s"] = direction.iops
        for percent in (50, 99):
            latency_ns = direction.clat_ns.percentile.get(f"{percent}.000000")
            if latency_ns is not None:
                found[f"{name}_p{percent}_us"] = latency_ns / _UNITS
    return found
