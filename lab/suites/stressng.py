"""stress-ng's stressors of page faults: their own checks and speeds come out.

Its YAML is read line by line: it comes from a guest, and only numbers are wanted of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState
from lab.suites import scratch
from lab.suites.protocol import Commands, Needs, PlannedCase, SuiteOptions, Told

_SLACK_S = 180.0
_RUN = (
    'stress-ng "$@" --yaml /tmp/lab-stress-ng.yaml >&2; status=$?; '
    "cat /tmp/lab-stress-ng.yaml; exit $status"
)
_SECTION = re.compile(r"^([\w-]+):")
_NUMBER = re.compile(r"^[ -]+([A-Za-z][^:]{0,80}): (-?\d+(?:\.\d+)?)$")
_PROCESSES = 2
_BYTES = "1m"  # of each: one operation goes over all pages several times


class Status(IntEnum):
    """Exit statuses of stress-ng."""

    SUCCESS = 0
    FAILURE = 1  # of stress-ng itself, bad arguments included
    NOT_SUCCESS = 2  # a stressor failed
    NO_RESOURCE = 3
    NOT_IMPLEMENTED = 4
    SIGNALED = 5
    BY_SYS_EXIT = 6
    METRICS_UNTRUSTWORTHY = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Stressor:
    what: str
    words: tuple[str, ...]
    symbol: str = ""  # Kconfig


STRESSORS: dict[str, Stressor] = {
    "fault": Stressor(
        what="minor and major faults on fresh mappings of a file",
        words=("--fault", str(_PROCESSES)),
    ),
    "mmap": Stressor(
        what="map, protect, sync and unmap a file page by page, in random order",
        words=("--mmap", str(_PROCESSES), "--mmap-file", "--mmap-bytes", _BYTES),
    ),
    "page-in": Stressor(
        what="the same, with pages that were thrown out and are touched again",
        words=("--mmap", str(_PROCESSES), "--mmap-file", "--mmap-bytes", _BYTES, "--page-in"),
    ),
    "userfaultfd": Stressor(
        what="faults that user space resolves",
        words=("--userfaultfd", str(_PROCESSES), "--userfaultfd-bytes", "16m"),
        symbol="USERFAULTFD",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StressNg:
    """The suite."""

    name: str = "stress-ng"
    one_line: str = "stressors of page faults, with their own checks: how fast"
    disk: str = scratch.DISK
    mount_point: str = "/mnt/stress-ng"

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        names = options.filesystems if options else None
        return scratch.needs(names, ("MMU", "SHMEM"), ("stress-ng",))

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        known = tuple(scratch.FILESYSTEMS)
        scratch.check_names(self.name, "file system", options.filesystems, known)
        return tuple(
            PlannedCase(
                name=f"{self.name}/{filesystem}/{stressor}",
                what=row.what,
                timeout_s=options.duration_s + _SLACK_S + 4 * scratch.LIMIT_S,
                filesystem=filesystem,
                arguments=(stressor, str(options.duration_s)),
                symbols=(row.symbol,) if row.symbol else (),
            )
            for filesystem in options.filesystems
            for stressor, row in STRESSORS.items()
        )

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Told | Down:
        stressor, duration_s = case.arguments
        words = (
            *(*STRESSORS[stressor].words, "--timeout", f"{max(1, round(float(duration_s)))}s"),
            *("--temp-path", self.mount_point, "--seed", str(seed), "--verify", "--metrics"),
        )
        return await scratch.judged(
            guest,
            case,
            ("/bin/sh", "-c", _RUN, "stress-ng", *words),
            disk=self.disk,
            mount_point=self.mount_point,
            timeout_s=float(duration_s) + _SLACK_S,
            judge=judge,
        )


def judge(name: str, answer: Exited | TimedOut) -> CaseResult:
    """The result of a stressor: passed only if it says so and did something."""
    match answer:
        case TimedOut():
            message = "stress-ng did not end in its time"
            return CaseResult(name=name, state=CaseState.TIMEOUT, message=message)
        case Exited():
            numbers = read(answer.stdout)
            state, message = _state(answer, numbers)
        case _:
            assert_never(answer)
    found = metrics(numbers) if state is CaseState.PASSED else {}
    return CaseResult(name=name, state=state, message=message, metrics=found)


def _state(answer: Exited, numbers: dict[str, float]) -> tuple[CaseState, str]:
    said = complaint(answer)
    match answer.status:
        case Status.SUCCESS if not numbers.get("bogo-ops"):
            return CaseState.UNCOVERED, f"it did nothing in its time: {said}"
        case Status.SUCCESS:
            return CaseState.PASSED, ""
        case Status.NO_RESOURCE | Status.NOT_IMPLEMENTED:
            return CaseState.SKIPPED, f"it cannot run here: {said}"
        case Status.NOT_SUCCESS:
            return CaseState.FAILED, f"its own checks failed: {said}"
        case _:
            return CaseState.FAILED, f"stress-ng ended with status {answer.status}: {said}"


def complaint(answer: Exited) -> str:
    """The first line of its log that is a failure; else the last one."""
    lines = answer.stderr.decode("utf-8", "replace").splitlines()
    bad = [line for line in lines if re.search(r": (?:fail|error): ", line)]
    return bad[0].strip()[:300] if bad else scratch.last_line(answer)


def read(stdout: bytes) -> dict[str, float]:
    """The numbers of the section "metrics"; {} if there are none."""
    numbers: dict[str, float] = {}
    inside = False
    for line in stdout.decode("utf-8", "replace").splitlines():
        if section := _SECTION.match(line):
            inside = section[1] == "metrics"
        elif inside and (number := _NUMBER.match(line.rstrip())):
            numbers[number[1].strip()] = float(number[2])
    return numbers


def metrics(numbers: dict[str, float]) -> dict[str, float]:
    """Bogo operations a second of real time and of CPU time, and what the stressor adds."""
    known = {
        "bogo-ops-per-second-real-time": "operations_per_s",
        "bogo-ops-per-second-usr-sys-time": "cpu_operations_per_s",
        "bogo-ops": "operations",
    }
    own = ("wall-clock-time", "user-time", "system-time", "cpu-usage-per-instance", "max-rss")
    return {
        known.get(name) or _metric(name): value
        for name, value in numbers.items()
        if name not in own
    }


def _metric(name: str) -> str:
    """ "nanosecs-per-page-fault" -> "page_fault_ns": the end says the unit."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if found := re.fullmatch(r"nanosecs_per_(\w+)", plain):
        return f"{found[1]}_ns"
    return re.sub(r"_per_sec$", "_per_s", plain)
