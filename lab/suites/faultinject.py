"""Failures injected while page faults race: profiles in, case results out (docs/faultinject.md).

The program is faultstress's. The lab arms the injection beside it, and looks afterwards for what an
error path may have left behind: lost data, a damaged file system, leaks, a mount that stays busy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from lab.guest import Down
from lab.model import CaseResult, CaseState
from lab.splat.kinds import Kind as SplatKind
from lab.suites import faultstress, injection, scratch
from lab.suites.armed import STEP_S, Gone, Injector, mapped
from lab.suites.faultstress import Faultstress
from lab.suites.injection import Injection, Threads
from lab.suites.protocol import Commands, Needs, PlannedCase, SuiteOptions, Told

_QUIET_S = 1.0  # of the run without failures
_FORGIVEN = ("failed_calls", "failed_faults")  # counters of the program


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
            timeout_s=limit_s + 8 * STEP_S + 8 * scratch.LIMIT_S,
            filesystem=filesystem,
            arguments=(injection.to_text(profile), str(options.duration_s), str(options.threads)),
            # It reads what kmemleak found by itself: at a first look, it suspects too much.
            expects=(*profile.expects, SplatKind.KMEMLEAK),
            required=(*profile.kind.symbols, scratch.FILESYSTEMS[filesystem].symbol),
        )

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Told | Down:
        began = time.monotonic()
        profile = injection.from_text(case.arguments[0])
        injector = Injector(guest=guest, profile=profile, seed=seed, environment=self.environment)
        try:
            result = await _Case(suite=self, case=case, injector=injector).run()
        except Gone as gone:
            return gone.down
        told = replace(result, duration_s=time.monotonic() - began)
        return Told(result=told, files=injector.found.files())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One case on its way."""

    suite: Faultinject
    case: PlannedCase
    injector: Injector

    @property
    def profile(self) -> Injection:
        return self.injector.profile

    @property
    def disk(self) -> str:
        return mapped(scratch.SERIAL) if self.profile.kind.mapped else self.suite.stress.disk

    @property
    def mount_point(self) -> str:
        return self.suite.stress.mount_point

    @property
    def on_disk(self) -> bool:
        return bool(scratch.FILESYSTEMS[self.case.filesystem].mkfs)

    async def run(self) -> CaseResult:
        failed = await self._set_up()
        if failed is not None:
            await self.injector.step("away")  # the next case may fare better
            return failed
        result = await self._under_injection()
        if result.state in (CaseState.TIMEOUT, CaseState.HUNG):
            return result  # nothing more can be asked of this machine; the trial gives it up
        await self._afterwards()
        await self.injector.leaks()
        await self.injector.away()
        kept = {name: value for name, value in result.metrics.items() if name in _FORGIVEN}
        return self.injector.found.judged(replace(result, metrics=kept))

    async def _set_up(self) -> CaseResult | None:
        """The result of the case if it cannot begin."""
        wrong = await self.injector.set_up()
        if wrong:
            return self._failed(f"setting up: {wrong}")
        failed = await scratch.set_up(self.injector.guest, self.case, self.disk, self.mount_point)
        if isinstance(failed, Down):
            raise Gone(failed)
        if failed is not None:
            return failed
        said = await self.injector.step("keep", self.mount_point)
        if isinstance(said, str):
            await self._unmount()
            return self._failed(f"setting up: {said}")
        return None

    async def _under_injection(self) -> CaseResult:
        """What the program says, with the injection armed before it begins, or beside it."""
        _, duration_s, threads = self.case.arguments
        words = self._program(float(duration_s), int(threads))
        limit_s = faultstress.run_limit_s(float(duration_s))
        answer = await self.injector.under(words, limit_s)
        result = faultstress.judge(self.case.name, answer)
        forgiven = sum(int(result.metrics.get(name, 0)) for name in _FORGIVEN)
        self.injector.found.log.append(f"the program met {forgiven} failures, and forgave them")
        if self.profile.kind.beside:
            # What the program met is exact. The kernel's log tells of a part of it.
            self.injector.found.injected = forgiven
        return result

    def _program(self, duration_s: float, threads: int) -> tuple[str, ...]:
        seed = self.injector.seed
        words = self.suite.stress.words(self.profile.scenario, duration_s, threads, seed)
        if self.profile.threads is not Threads.NONE:
            words = (*words, "--inject", str(self.profile.threads))
        if self.profile.pages:
            words = (*words, "--pages", str(self.profile.pages))
        return words

    async def _afterwards(self) -> None:
        """All that must be as if nothing had failed, now that nothing fails any more."""
        injector, found = self.injector, self.injector.found
        row = scratch.FILESYSTEMS[self.case.filesystem]
        if self.on_disk:
            # A file system that gave up is made to begin again: its journal is replayed.
            found.note("", await self._unmount())
            mount = scratch.mount_words(self.case.filesystem, self.disk, self.mount_point)
            if not await injector.well("mounting again", mount):
                return
        kept = await injector.step("kept", self.mount_point)
        found.note("data that was synced before is not what it was", kept)
        words = self.suite.stress.words("mixed", _QUIET_S, 2, injector.seed)
        quiet = await injector.run(words, faultstress.run_limit_s(_QUIET_S))
        again = faultstress.judge(self.case.name, quiet)
        if again.state is not CaseState.PASSED:
            found.note("without failures it does not pass", again.message)
        found.note("", await self._unmount())
        if row.check:
            await injector.well("the file system is damaged", (*row.check, self.disk))

    async def _unmount(self) -> str:
        gone = await scratch.unmount(self.injector.guest, self.mount_point)
        if isinstance(gone, Down):
            raise Gone(gone)
        return gone

    def _failed(self, message: str) -> CaseResult:
        return CaseResult(name=self.case.name, state=CaseState.FAILED, message=message)
