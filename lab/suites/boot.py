"""One case: does the guest run commands and tell the truth about how they ended?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import assert_never

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState
from lab.suites.protocol import Commands, Needs, PlannedCase, SuiteOptions

CASE = "boot/hello"
_STEP_LIMIT_S = 30.0
# An odd status: a wire that makes 0 or 1 of everything is found out.
_ODD_STATUS = 43


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    argv: tuple[str, ...]
    status: int
    expect: bytes  # in stdout


_STEPS = (
    _Step(argv=("/bin/sh", "-c", "echo hello"), status=0, expect=b"hello\n"),
    _Step(argv=("/bin/sh", "-c", f"exit {_ODD_STATUS}"), status=_ODD_STATUS, expect=b""),
    _Step(argv=("/bin/cat", "/proc/vmstat"), status=0, expect=b"\npgfault "),
    _Step(
        argv=("/bin/sh", "-c", 'test "$(uname -r)" = "$(cat /proc/sys/kernel/osrelease)"'),
        status=0,
        expect=b"",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """That the kernel boots is shown by every trial; this says it as a case of its own."""

    name: str = "boot"
    one_line: str = "the kernel boots and runs commands"

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        return Needs(symbols=("PROC_FS", "VM_EVENT_COUNTERS"))

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        return (PlannedCase(name=CASE, timeout_s=_STEP_LIMIT_S * len(_STEPS)),)

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Down:
        began = time.monotonic()
        limit_s = case.timeout_s / len(_STEPS)  # stretched for a slow machine
        for step in _STEPS:
            answer = await guest.run(step.argv, timeout_s=limit_s)
            match answer:
                case Down():
                    return answer
                case TimedOut():
                    return CaseResult(
                        name=CASE,
                        state=CaseState.TIMEOUT,
                        duration_s=time.monotonic() - began,
                        message=f"{' '.join(step.argv)} did not end in {limit_s:.0f} s",
                    )
                case Exited():
                    complaint = _complaint(step, answer)
                case _:
                    assert_never(answer)
            if complaint:
                return CaseResult(
                    name=CASE,
                    state=CaseState.FAILED,
                    duration_s=time.monotonic() - began,
                    message=complaint,
                )
        return CaseResult(name=CASE, state=CaseState.PASSED, duration_s=time.monotonic() - began)


def _complaint(step: _Step, answer: Exited) -> str:
    """What is wrong with the answer; "" if nothing is."""
    command = " ".join(step.argv)
    if answer.status != step.status:
        return f"{command} ended with status {answer.status}, not {step.status}"
    if step.expect not in answer.stdout:
        return f"{command} did not print {step.expect!r}"
    return ""
