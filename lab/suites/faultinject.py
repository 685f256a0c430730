"""Failures injected while page faults race: profiles in, case results out (docs/faultinject.md).

The program is faultstress's. The lab arms the injection beside it, and looks afterwards for what an
error path may have left behind: lost data, a damaged file system, leaks, a mount that stays busy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState
from lab.splat.kinds import Kind as SplatKind
from lab.suites import faultstress, injection, scratch
from lab.suites.faultstress import Faultstress
from lab.suites.injection import Injection, Kind, Threads
from lab.suites.protocol import Commands, Needs, PlannedCase, SuiteOptions, Told

SCRIPT = Path(__file__).parent.parent.parent / "images" / "guest" / "faultinject.sh"
MAPPED = "/dev/mapper/lab-inject"
_STEP_S = 300.0  # of one step of the script, a scan for leaks included
_QUIET_S = 1.0  # of the run without failures
_LOG_BYTES = 64 << 10
_FORGIVEN = ("failed_calls", "failed_faults")  # counters of the program
_WITHOUT_LEAKS = "leaks were not looked for: this kernel has no kmemleak"


class Gone(Exception):
    """The machine ended under the case."""

    def __init__(self, down: Down) -> None:
        super().__init__(down.detail)
        self.down = down


@dataclass(slots=True)
class Findings:
    """What is known of a case while it runs."""

    wrong: list[str] = field(default_factory=list)  # each one alone makes it fail
    lacking: list[str] = field(default_factory=list)  # each one alone keeps it from being a pass
    notes: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    injected: int | None = None  # None: this kind has no counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Faultinject:
    """The suite. `environment` and the fields of `stress` move its places, so that it also runs
    elsewhere."""

    name: str = "faultinject"
    one_line: str = "the same under injected failures, and what they leave behind"
    stress: Faultstress = field(default_factory=lambda: Faultstress(mount_point="/mnt/faultinject"))
    environment: tuple[str, ...] = ()  # NAME=VALUE

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        """What a profile needs besides is needed by its cases."""
        return replace(
            self.stress.needs(),
            symbols=("MMU", "SHMEM", "ADVISE_SYSCALLS", "DEBUG_FS"),
            packages=("dmsetup", "e2fsprogs", "xfsprogs"),
            better={"DEBUG_KMEMLEAK": "memory that error paths leak is not looked for"},
        )

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        known = tuple(scratch.FILESYSTEMS)
        scratch.check_names(self.name, "file system", options.filesystems, known)
        cases: list[PlannedCase] = []
        for profile in injection.profiles(options.injections):
            where = f"profile {profile.name}"
            scratch.check_names(where, "scenario", (profile.scenario,), faultstress.SCENARIOS)
            scratch.check_names(where, "file system", profile.filesystems, known)
            cases += [
                self._case(profile, filesystem, options)
                for filesystem in profile.filesystems
                if filesystem in options.filesystems
            ]
        return tuple(cases)

    def _case(self, profile: Injection, filesystem: str, options: SuiteOptions) -> PlannedCase:
        limit_s = faultstress.run_limit_s(options.duration_s) + faultstress.run_limit_s(_QUIET_S)
        return PlannedCase(
            name=f"{self.name}/{profile.name}/{filesystem}",
            what=profile.what,
            timeout_s=limit_s + 8 * _STEP_S + 8 * scratch.LIMIT_S,
            filesystem=filesystem,
            arguments=(injection.to_text(profile), str(options.duration_s), str(options.threads)),
            # It reads what kmemleak found by itself: at a first look, it suspects too much.
            expects=(*profile.expects, SplatKind.KMEMLEAK),
            required=(*profile.kind.symbols, scratch.FILESYSTEMS[filesystem].symbol),
        )

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Told | Down:
        began = time.monotonic()
        profile = injection.from_text(case.arguments[0])
        one = _Case(suite=self, guest=guest, case=case, profile=profile, seed=seed)
        try:
            result = await one.run()
        except Gone as gone:
            return gone.down
        told = replace(result, duration_s=time.monotonic() - began)
        log = "".join(f"{line}\n" for line in one.found.log).encode()[-_LOG_BYTES:]
        return Told(result=told, files={"faultinject.log": log} if log else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One case on its way."""

    suite: Faultinject
    guest: Commands
    case: PlannedCase
    profile: Injection
    seed: int
    found: Findings = field(default_factory=Findings)

    @property
    def disk(self) -> str:
        return MAPPED if self.profile.kind.mapped else self.suite.stress.disk

    @property
    def mount_point(self) -> str:
        return self.suite.stress.mount_point

    @property
    def on_disk(self) -> bool:
        return bool(scratch.FILESYSTEMS[self.case.filesystem].mkfs)

    async def run(self) -> CaseResult:
        failed = await self._set_up()
        if failed is not None:
            await self._step("away")  # the next case may fare better
            return failed
        result = await self._under_injection()
        if result.state in (CaseState.TIMEOUT, CaseState.HUNG):
            return result  # nothing more can be asked of this machine; the trial gives it up
        await self._afterwards()
        await self._leaks()
        wrong = await self._step("away")
        if isinstance(wrong, str):
            self.found.wrong.append(wrong)
        return self._judged(result)

    async def _set_up(self) -> CaseResult | None:
        """The result of the case if it cannot begin."""
        kind = self.profile.kind
        await self._step("leaks", "clear")  # what an earlier case left is not charged to this one
        steps = [("device",)] if kind.mapped else [("group",)] if kind is Kind.MEMCG else []
        for words in steps:
            said = await self._step(*words)
            if isinstance(said, str):
                return self._failed(f"setting up: {said}")
        failed = await scratch.set_up(self.guest, self.case, self.disk, self.mount_point)
        if isinstance(failed, Down):
            raise Gone(failed)
        if failed is not None:
            return failed
        said = await self._step("keep", self.mount_point)
        if isinstance(said, str):
            await self._unmount()
            return self._failed(f"setting up: {said}")
        return None

    async def _under_injection(self) -> CaseResult:
        """What the program says, with the injection armed before it begins, or beside it."""
        _, duration_s, threads = self.case.arguments
        words = self._program(float(duration_s), int(threads))
        limit_s = faultstress.run_limit_s(float(duration_s))
        armed = None if self.profile.kind.beside else await self._arm()
        running = asyncio.ensure_future(self._run(words, limit_s))
        try:
            if armed is None:
                await asyncio.wait((running,), timeout=self.profile.after_s)
                # Nothing is armed beside a program that is not there any more.
                armed = None if running.done() else await self._arm()
            answer = await running
        finally:
            running.cancel()
            await asyncio.wait((running,))
        if isinstance(armed, str):
            self.found.wrong.append(f"arming: {armed}")
        elif armed is not None:
            await self._disarm()
        result = faultstress.judge(self.case.name, answer)
        forgiven = sum(int(result.metrics.get(name, 0)) for name in _FORGIVEN)
        self.found.log.append(f"the program met {forgiven} failures, and forgave them")
        if self.profile.kind is Kind.DM_FLAKEY:
            self.found.injected = forgiven  # nobody else counts them
        return result

    def _program(self, duration_s: float, threads: int) -> tuple[str, ...]:
        words = self.suite.stress.words(self.profile.scenario, duration_s, threads, self.seed)
        if self.profile.threads is not Threads.NONE:
            words = (*words, "--inject", str(self.profile.threads))
        if self.profile.pages:
            words = (*words, "--pages", str(self.profile.pages))
        return self._words("within", *words) if self.profile.kind is Kind.MEMCG else words

    async def _arm(self) -> str | bytes:
        words = self.profile.arguments(self.seed)
        self.found.log.append(f"armed {self.profile.kind}: {' '.join(words)}")
        return await self._step("arm", str(self.profile.kind), *words)

    async def _disarm(self) -> None:
        said = await self._step("disarm", str(self.profile.kind))
        if isinstance(said, str):
            self.found.wrong.append(f"disarming: {said}")
        else:
            self.found.injected = _number(said, "injected")

    async def _afterwards(self) -> None:
        """All that must be as if nothing had failed, now that nothing fails any more."""
        row = scratch.FILESYSTEMS[self.case.filesystem]
        if self.on_disk:
            # A file system that gave up is made to begin again: its journal is replayed.
            self._note("", await self._unmount())
            mount = scratch.mount_words(self.case.filesystem, self.disk, self.mount_point)
            if not await self._well("mounting again", mount):
                return
        kept = await self._step("kept", self.mount_point)
        self._note("data that was synced before is not what it was", kept)
        words = self.suite.stress.words("mixed", _QUIET_S, 2, self.seed)
        quiet = await self._run(words, faultstress.run_limit_s(_QUIET_S))
        again = faultstress.judge(self.case.name, quiet)
        if again.state is not CaseState.PASSED:
            self.found.wrong.append(f"without failures it does not pass: {again.message}")
        self._note("", await self._unmount())
        if row.check:
            await self._well("the file system is damaged", (*row.check, self.disk))

    async def _leaks(self) -> None:
        said = await self._step("leaks", "find")
        if isinstance(said, str):
            self.found.wrong.append(f"looking for leaks: {said}")
            return
        first, _, rest = said.decode("utf-8", "replace").partition("\n")
        if first == "kmemleak absent":
            self.found.notes.append(_WITHOUT_LEAKS)
        elif first == "kmemleak off":
            self.found.lacking.append("kmemleak has switched itself off")
        elif count := _number(said, "kmemleak"):
            self.found.wrong.append(f"{count} objects leaked: {_first_leak(rest)}")
            self.found.log.append(rest)

    def _judged(self, result: CaseResult) -> CaseResult:
        """The program's own result with all that was found besides."""
        found = self.found
        metrics = {name: value for name, value in result.metrics.items() if name in _FORGIVEN}
        if found.injected is not None:
            metrics["injected"] = float(found.injected)
        if not found.injected:
            found.lacking.append("not one failure was injected, so nothing was tested")
        state, told = result.state, [result.message] if result.message else []
        if found.wrong:
            state = CaseState.FAILED
            told += found.wrong
        elif state is CaseState.PASSED and found.lacking:
            state = CaseState.UNCOVERED
            told += found.lacking
        found.log += [*told, *found.notes, f"injected: {found.injected}"]
        return CaseResult(
            name=result.name,
            state=state,
            message="; ".join((*told, *found.notes)),
            metrics=metrics,
        )

    # --- single commands -------------------------------------------------------------------------

    def _words(self, *words: str) -> tuple[str, ...]:
        script = SCRIPT.read_text(encoding="utf-8")
        around = ("env", *self.suite.environment) if self.suite.environment else ()
        return (*around, "/bin/sh", "-c", script, SCRIPT.name, *words)

    async def _step(self, *words: str) -> str | bytes:
        """What the script printed, or as a string what went wrong."""
        answer = await self._run(self._words(*words), _STEP_S)
        said = scratch.complaint((SCRIPT.name, *words), answer)
        return said or answer.stdout

    async def _run(self, argv: Sequence[str], timeout_s: float) -> Exited | TimedOut:
        answer = await self.guest.run(argv, timeout_s=timeout_s)
        if isinstance(answer, Down):
            raise Gone(answer)
        return answer

    async def _well(self, what: str, argv: Sequence[str]) -> bool:
        """Whether the command ended well; if not, it is noted."""
        answer = await self._run(argv, _STEP_S)
        wrong = scratch.complaint(argv, answer)
        if wrong:
            self.found.wrong.append(f"{what}: {wrong}")
            self.found.log.append((answer.stdout + answer.stderr).decode("utf-8", "replace"))
        return not wrong

    async def _unmount(self) -> str:
        gone = await scratch.unmount(self.guest, self.mount_point)
        if isinstance(gone, Down):
            raise Gone(gone)
        return gone

    def _note(self, what: str, said: str | bytes) -> None:
        if isinstance(said, str) and said:
            self.found.wrong.append(f"{what}: {said}" if what else said)

    def _failed(self, message: str) -> CaseResult:
        return CaseResult(name=self.case.name, state=CaseState.FAILED, message=message)


def _number(said: bytes, word: str) -> int | None:
    """N of the line "WORD N"; None if there is none."""
    for line in said.decode("utf-8", "replace").splitlines():
        name, _, number = line.partition(" ")
        if name == word and number.isdigit():
            return int(number)
    return None


def _first_leak(text: str) -> str:
    """Whose memory the first one is, in one line: process and the innermost named frames."""
    lines = [line.strip() for line in text.splitlines()]
    who = next((line for line in lines if line.startswith("comm ")), "")
    frames = [line.split("] ", 1)[1] for line in lines if line.startswith("[<") and "] " in line]
    return f"{who.partition(',')[0]}: {' < '.join(frames[:6])}"[:400]
