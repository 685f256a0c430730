"""Page faults against changing mappings, on each file system: JSON lines in, case results out.

The program is images/guest/faultstress.c; its exit status and its `end` event must agree.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, assert_never

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState, LabFault, UserError
from lab.suites import scratch
from lab.suites.protocol import Commands, Needs, PlannedCase, SuiteOptions
from lab.suites.scratch import DAX, FILESYSTEMS

# What images/guest/faultstress.c calls its scenarios; a test holds the two together.
SCENARIOS = (
    "munmap",
    "mapfixed",
    "mprotect",
    "truncate",
    "punch",
    "mremap",
    "dontneed",
    "fork",
    "mixed",
    "gup",
    "futex",
    "procmem",
    "odirect",
    "pagetables",
    "reopen",
    "umount",
    "freeze",
    "frozen",
    "mlock",
    "userfaultfd",
    "khugepaged",
    "memcg",
    "exit",
)
DEFAULT_SCENARIOS = SCENARIOS[:4]
# What a file system cannot do is no failure of the kernel under test.
UNSUPPORTED = {
    ("tmpfs", "freeze"): "tmpfs cannot be frozen",
    ("tmpfs", "frozen"): "tmpfs cannot be frozen",
    ("tmpfs", "odirect"): "tmpfs has no O_DIRECT",
    ("tmpfs", "memcg"): "pages of a tmpfs cannot be reclaimed without swap",
    ("ext4-dax", "memcg"): "there is no page cache to reclaim",
    ("xfs-dax", "memcg"): "there is no page cache to reclaim",
    ("ext4-dax", "mlock"): "mlock() leaves mappings of persistent memory alone",
    ("xfs-dax", "mlock"): "mlock() leaves mappings of persistent memory alone",
}
FREEZING = ("freeze", "frozen")

PROGRAM = "/lab/bin/faultstress"
_HANG_S = 60.0  # of one thread: longer than a busy emulator's worst fsync
_AT_MOST_S = 60.0  # an emulator on a busy host may not have raced once in the planned seconds
_TOLD = 3  # corruptions that make it into the message


class Status(IntEnum):
    """Exit statuses of the program."""

    PASS = 0
    CORRUPTION = 1
    USAGE = 2
    ENVIRONMENT = 3
    NOTHING = 4
    HANG = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the program said, as far as it can be read."""

    seed: int | None = None
    corruptions: tuple[str, ...] = ()  # one line each
    hangs: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None  # None: no end event
    status: int | None = None  # as the end event says
    reason: str = ""
    garbage: int = 0  # lines that are not events


@dataclass(frozen=True, slots=True, kw_only=True)
class Faultstress:
    """The suite. Its places in the guest are fields, so that it can also run elsewhere."""

    name: str = "faultstress"
    one_line: str = "page faults against changing mappings, every access checked"
    program: str = PROGRAM
    disk: str = scratch.DISK
    mount_point: str = "/mnt/faultstress"

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        names = options.filesystems if options else None
        return scratch.needs(names, ("MMU", "SHMEM", "ADVISE_SYSCALLS"), ())

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        scenarios = options.scenarios or DEFAULT_SCENARIOS
        scratch.check_names(self.name, "scenario", scenarios, SCENARIOS)
        known = (*FILESYSTEMS, *DAX)
        scratch.check_names(self.name, "file system", options.filesystems, known)
        if options.threads < 2:
            raise UserError("faultstress needs at least 2 threads: one faults, one changes")
        return tuple(
            PlannedCase(
                name=f"{self.name}/{filesystem}/{scenario}",
                timeout_s=run_limit_s(options.duration_s) + 4 * scratch.LIMIT_S,
                filesystem=filesystem,
                arguments=(scenario, str(options.duration_s), str(options.threads)),
                required=scratch.DAX_SYMBOLS if filesystem in DAX else (),
                pmem=filesystem in DAX,
            )
            for filesystem in options.filesystems
            for scenario in scenarios
        )

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Down:
        began = time.monotonic()
        scenario, duration_s, threads = case.arguments
        if reason := UNSUPPORTED.get((case.filesystem, scenario)):
            return CaseResult(name=case.name, state=CaseState.SKIPPED, message=reason)
        failed = await scratch.set_up(guest, case, self.disk, self.mount_point)
        if failed is not None:
            return failed if isinstance(failed, Down) else _timed(failed, began)
        argv = self.words(scenario, float(duration_s), int(threads), seed)
        answer = await guest.run(argv, timeout_s=run_limit_s(float(duration_s)))
        if isinstance(answer, Down):
            return answer
        result = judge(case.name, answer)
        if scenario in FREEZING:
            # It thaws by itself unless it died: then nothing could be unmounted.
            thawed = await guest.run(
                ("fsfreeze", "--unfreeze", self.mount_point), timeout_s=scratch.LIMIT_S
            )
            if isinstance(thawed, Down):
                return thawed
        gone = await scratch.unmount(guest, self.mount_point)
        if isinstance(gone, Down):
            return gone
        return _timed(scratch.spoiled(result, gone), began)

    def words(self, scenario: str, duration_s: float, threads: int, seed: int) -> tuple[str, ...]:
        """The command line of one run on what is mounted."""
        return (
            *(self.program, "--dir", self.mount_point, "--scenario", scenario),
            *("--duration", str(duration_s), "--threads", str(threads), "--seed", str(seed)),
            *("--at-most", str(_AT_MOST_S), "--hang", str(_HANG_S)),
        )


def run_limit_s(duration_s: float) -> float:
    """Of the program: its own watchdog must have the time to speak, in the run and at the join."""
    return max(duration_s, _AT_MOST_S) + 2 * _HANG_S + 30.0


def _timed(result: CaseResult, began: float) -> CaseResult:
    return CaseResult(
        name=result.name,
        state=result.state,
        message=result.message,
        metrics=result.metrics,
        duration_s=time.monotonic() - began,
    )


def judge(name: str, answer: Exited | TimedOut) -> CaseResult:
    """The result of a case from what its program said and how it ended.

    Passed only if status, end event and counters all say so. Raises `LabFault` if the program
    did not understand its arguments.
    """
    report = read(answer.stdout)
    match answer:
        case TimedOut():
            state, message = CaseState.TIMEOUT, "it did not end in its time"
            if report.hangs or report.corruptions:
                message += ": " + "; ".join((*report.hangs, *report.corruptions)[:_TOLD])
        case Exited():
            state, message = _state(report, answer)
        case _:
            assert_never(answer)
    metrics = report.metrics | _rates(report.metrics, answer.duration_s)
    return CaseResult(name=name, state=state, message=message, metrics=metrics)


def _rates(counted: dict[str, float], ran_s: float) -> dict[str, float]:
    """Throughput over the program's whole run.

    A thread's access to a page faults only if the page is not mapped: both are told.
    """
    if ran_s <= 0:
        return {}
    rates = {}
    if "faults" in counted:
        rates["faults_per_s"] = counted["faults"] / ran_s
    if "reads" in counted and "writes" in counted:
        rates["accesses_per_s"] = (counted["reads"] + counted["writes"]) / ran_s
    if "changes" in counted:
        rates["changes_per_s"] = counted["changes"] / ran_s
    return rates


def _state(report: Report, answer: Exited) -> tuple[CaseState, str]:
    if answer.status == Status.USAGE and report.verdict is None:
        raise LabFault(f"faultstress does not take its arguments: {scratch.last_line(answer)}")
    told = "; ".join(report.corruptions[:_TOLD])
    if answer.truncated:
        return CaseState.FAILED, f"it said more than the lab keeps; {told}"
    if report.verdict is None:
        end = f"status {answer.status}, and no word about its end"
        return CaseState.FAILED, f"{end}; {told}" if told else end
    if report.status != answer.status:
        return CaseState.FAILED, f"it ended with status {answer.status} after {report.verdict!r}"
    match report.status:
        case Status.PASS:
            if report.corruptions or report.garbage:
                return CaseState.FAILED, f"passed, it says, but: {told or 'lines of garbage'}"
            return CaseState.PASSED, ""
        case Status.CORRUPTION:
            return CaseState.FAILED, told or f"corruption: {report.reason}"
        case Status.ENVIRONMENT:
            return CaseState.FAILED, f"it could not run: {report.reason}"
        case Status.NOTHING:
            return CaseState.FAILED, f"it tested nothing: no {report.reason.replace(' ', ', no ')}"
        case Status.HANG:
            return CaseState.HUNG, "; ".join((*report.hangs[:_TOLD], *report.corruptions[:1]))
        case _:
            return CaseState.FAILED, f"unknown status {answer.status}"


def read(stdout: bytes) -> Report:
    """The events in the program's output. Never raises: what cannot be read is counted."""
    corruptions: list[str] = []
    hangs: list[str] = []
    metrics: dict[str, float] = {}
    end: dict[str, Any] = {}
    seed: int | None = None
    garbage = 0
    for line in stdout.decode("utf-8", "replace").splitlines():
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, TypeError, KeyError, RecursionError):
            garbage += 1
            continue
        if kind == "start" and isinstance(event.get("seed"), int):
            seed = event["seed"]
        elif kind == "corruption":
            corruptions.append(_corruption_line(event))
        elif kind == "hang":
            hangs.append(_hang_line(event))
        elif kind == "latency":
            metrics |= _latency(event)
        elif kind == "end":
            end = event
            metrics |= {name: float(v) for name, v in event.items() if _is_number(v)}
    metrics.pop("status", None)
    verdict, status = end.get("verdict"), end.get("status")
    return Report(
        seed=seed,
        corruptions=tuple(corruptions),
        hangs=tuple(hangs),
        metrics=metrics,
        verdict=verdict if isinstance(verdict, str) else None,
        status=status if isinstance(status, int) else None,
        reason=str(end.get("reason") or end.get("missing") or "")[:300],
        garbage=garbage,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _latency(event: dict[str, Any]) -> dict[str, float]:
    call = str(event.get("call"))
    return {
        f"{call}_{name}": float(event[name])
        for name in ("count", "p50_us", "p99_us", "max_us")
        if _is_number(event.get(name))
    }


def _corruption_line(event: dict[str, Any]) -> str:
    """One corruption as a sentence: what was mapped there, what was seen, and what stands now."""
    kind = str(event.get("kind"))
    if "seen" not in event:
        rest = {name: value for name, value in event.items() if name not in ("event", "kind")}
        return f"{kind}: " + ", ".join(f"{name} {value}" for name, value in rest.items())
    place = f"file {event.get('file')} page {event.get('page')} word {event.get('word')}"
    return (
        f"{kind}: {event.get('access')} of {place} (mapped for {event.get('mapped')}) saw "
        f"{event['seen']}; again: {event.get('again')}; page cache: {event.get('pread')}"
    )


def _hang_line(event: dict[str, Any]) -> str:
    where = str(event.get("stack", "")).split("\n", 1)[0] or str(event.get("wchan", ""))
    thread, operation, stuck_s = (event.get(name) for name in ("thread", "op", "stuck_s"))
    return f"thread {thread} stuck in {operation} for {stuck_s} s ({where})"
