"""The kernel's own crashes on demand (CONFIG_LKDTM): one type a case.

Not in the registry: every case of it is a planted fault, and `lab run` would find the same on both
sides. `lab selftest` plants them to see whether each is detected, named and charged to its case.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import assert_never

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState, UserError
from lab.splat.kinds import Kind
from lab.suites.protocol import Commands, Needs, PlannedCase, SuiteOptions

NAME = "lkdtm"
_DIRECT = "/sys/kernel/debug/provoke-crash/DIRECT"
_HUNG_TASK = "/proc/sys/kernel/hung_task_timeout_secs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """One type of drivers/misc/lkdtm/, and what the kernel must say about it."""

    kinds: tuple[Kind, ...]  # any of them
    wait_s: float = 60.0  # until the writer is back or the kernel has complained
    profile: str = "lockdep"
    settings: tuple[tuple[str, str], ...] = ()
    stock: bool = True  # False: a control's patch adds it


# Left out: what this kernel is not built to see (UBSAN, FORTIFY, CFI, VMAP_STACK, stack protector)
# and EXHAUST_STACK, which without guard pages tramples on whatever lies below.
CRASHES: dict[str, Crash] = {
    "WARNING": Crash(kinds=(Kind.WARNING,)),
    "WARNING_MESSAGE": Crash(kinds=(Kind.WARNING,)),
    "REFCOUNT_INC_ZERO": Crash(kinds=(Kind.REFCOUNT,)),
    "CORRUPT_LIST_ADD": Crash(kinds=(Kind.LIST_CORRUPTION,)),
    "CORRUPT_LIST_DEL": Crash(kinds=(Kind.LIST_CORRUPTION,)),
    "BUG": Crash(kinds=(Kind.BUG,)),
    "EXCEPTION": Crash(kinds=(Kind.NULL_DEREF,)),
    "WRITE_RO": Crash(kinds=(Kind.PAGE_FAULT,)),
    "PANIC": Crash(kinds=(Kind.PANIC,)),
    # It returns to user space with the lock held, which lockdep sees before anybody spins.
    "SPINLOCKUP": Crash(kinds=(Kind.LOCKDEP_HELD_LOCK, Kind.ATOMIC_SLEEP)),
    "HUNG_TASK": Crash(kinds=(Kind.HUNG_TASK,), wait_s=120.0, settings=((_HUNG_TASK, "10"),)),
    "SOFTLOCKUP": Crash(kinds=(Kind.SOFT_LOCKUP,), wait_s=180.0),
    # No NMI reaches an emulated processor: the others see that it no longer answers RCU.
    "HARDLOCKUP": Crash(kinds=(Kind.HARD_LOCKUP, Kind.RCU_STALL), wait_s=300.0),
    "READ_AFTER_FREE": Crash(kinds=(Kind.KASAN,), profile="kasan"),
    "WRITE_AFTER_FREE": Crash(kinds=(Kind.KASAN,), profile="kasan"),
    # Two mutexes, taken in both orders.
    "LOCK_INVERSION": Crash(kinds=(Kind.LOCKDEP_CIRCULAR,), stock=False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lkdtm:
    """A case passes if its crash could be asked for; what the kernel said of it makes it fail."""

    name: str = NAME
    one_line: str = "crashes on demand, for proving the detectors"

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        return Needs(symbols=("LKDTM", "DEBUG_FS"))

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        for name in options.scenarios:
            if name not in CRASHES:
                raise UserError(f"lkdtm has no type {name!r}", hint=f"known: {', '.join(CRASHES)}")
        chosen = options.scenarios or tuple(name for name, row in CRASHES.items() if row.stock)
        return tuple(
            PlannedCase(
                name=f"{NAME}/{name}", timeout_s=CRASHES[name].wait_s + 30.0, arguments=(name,)
            )
            for name in chosen
        )

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Down:
        began = time.monotonic()
        (crash,) = case.arguments
        answer = await guest.run(
            ("/bin/sh", "-c", 'printf "%s\\n" "$1" >"$2"', "sh", crash, _DIRECT),
            timeout_s=CRASHES[crash].wait_s,
        )
        match answer:
            case Down():
                return answer
            case TimedOut():
                state, message = CaseState.TIMEOUT, f"the writer of {crash} does not return"
            case Exited(signal=0) if answer.status != 0:
                # No such file, or no such type: nothing was provoked.
                said = answer.stderr.decode("utf-8", "replace").strip()
                state, message = CaseState.SKIPPED, f"{crash} could not be provoked: {said}"
            case Exited():
                state, message = CaseState.PASSED, ""
            case _:
                assert_never(answer)
        return CaseResult(
            name=case.name, state=state, message=message, duration_s=time.monotonic() - began
        )
