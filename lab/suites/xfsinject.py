"""A test of xfstests while something fails: the configuration is named ext4-4k+failslab, after a
profile of the suite faultinject (docs/faultinject.md).

What the test says of itself is forgiven: it was not written for failures. What counts is what a
sound kernel must keep up under them: no splat, no hang, no leak, and file systems that are whole
once nothing fails any more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState, UserError
from lab.splat.kinds import Kind as Splat
from lab.suites import armed, injection, xfsguest
from lab.suites.armed import Gone, Injector, mapped
from lab.suites.injection import Injection
from lab.suites.protocol import PlannedCase, Told
from lab.suites.xfsconfig import SCRATCH_DISK, TEST_DISK, FsConfig
from lab.suites.xfsguest import Script

MARK = "+"  # between the configuration and the profile
STEPS_S = 6 * armed.STEP_S  # what a case takes longer than one without failures, at most
# Programs that work on the file systems under test. A shell that cannot fork tests nothing.
_STRUCK = "/lab/xfstests/:/usr/sbin/xfs_io"
_BY_SERIAL = "/dev/disk/by-lab/"


def parse(label: str, profiles: Mapping[str, Injection]) -> tuple[str, Injection | None]:
    """ "ext4-4k+failslab" -> the configuration's name and the profile. Raises `UserError`."""
    name, mark, wanted = label.partition(MARK)
    if not mark:
        return name, None
    if wanted not in profiles:
        raise UserError(
            f"xfstests: {label}: no profile {wanted!r}", hint=f"known: {', '.join(profiles)}"
        )
    return name, profiles[wanted]


def check(label: str, config: FsConfig, profile: Injection) -> None:
    """Raises `UserError` if the profile has nothing to strike on that file system."""
    if injection.on_disk(profile.kind) and not config.made:
        raise UserError(f"xfstests: {label}: {config.filesystem} has no disk that could fail")


def expects(profile: Injection) -> tuple[Splat, ...]:
    """Reports that a sound kernel makes under it. A file system says that it got no memory, too.
    What kmemleak found is read by the case itself: at a first look, it suspects too much."""
    return (*map(Splat, profile.expects), Splat.FS_ERROR, Splat.IO_ERROR, Splat.KMEMLEAK)


async def run(
    script: Script, profile: Injection, case: PlannedCase, seed: int
) -> CaseResult | Told | Down:
    """The case: its test, once, under that profile."""
    began = time.monotonic()
    disks = " ".join(f"{_BY_SERIAL}{serial}" for serial in (TEST_DISK, SCRATCH_DISK))
    injector = Injector(
        guest=script.guest,
        profile=profile,
        seed=seed,
        environment=(f"LAB_FAILING={disks}", *script.environment),
    )
    one = _Case(script=_prepared(script, profile), case=case, injector=injector)
    try:
        result = await one.run()
    except Gone as gone:
        return gone.down
    files = {**one.files, **injector.found.files()}
    return Told(result=replace(result, duration_s=time.monotonic() - began), files=files)


def _prepared(script: Script, profile: Injection) -> Script:
    """The script with the disks that can fail, or that preloads what asks to be struck."""
    if profile.kind.mapped:
        before = mapped("")
        section = script.test.section.replace(_BY_SERIAL, before)
        return replace(
            script,
            test=msgspec.structs.replace(script.test, section=section),
            environment=(*script.environment, f"LAB_DISKS={before}"),
        )
    if profile.kind.attribute:
        return replace(script, environment=(*script.environment, f"LAB_STRIKE={_STRUCK}"))
    return script


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One case on its way. Every method raises `Gone`."""

    script: Script
    case: PlannedCase
    injector: Injector
    files: dict[str, bytes] = field(default_factory=dict)  # that the test left

    async def run(self) -> CaseResult:
        failed = await self._set_up()
        if failed is not None:
            await self.injector.step("away")  # the next case may fare better
            return failed
        checked = await self._under_injection()
        state, message = await self._judged(checked)
        if state is CaseState.TIMEOUT:
            return self._result(state, message)  # nothing more can be asked of this machine
        await self._sound()
        await self.injector.leaks()
        await self.injector.away()
        if state is CaseState.SKIPPED and not self.injector.found.wrong:
            return self._result(state, message)
        return self.injector.found.judged(self._result(state, message))

    async def _set_up(self) -> CaseResult | None:
        """The result of the case if it cannot begin."""
        wrong = await self.injector.set_up()
        if wrong:
            return self._result(CaseState.FAILED, f"setting up: {wrong}")
        ready = await self.injector.run(self.script.set_up(), self.script.within(xfsguest.SETUP_S))
        return xfsguest.not_ready(self.case.name, ready)

    async def _under_injection(self) -> Exited | TimedOut:
        """How `check` ended. Things fail from the test's own first step: what `check` does before
        that is not under test."""
        limit_s = self.script.within(self.script.test.limit_s)

        async def begun() -> bool:
            waiting = self.script.argv("begun", self.script.test.test)
            answer = await self.injector.run(waiting, limit_s)
            return isinstance(answer, Exited) and answer.status == 0

        return await self.injector.under(self.script.check(), limit_s, begun)

    async def _judged(self, checked: Exited | TimedOut) -> tuple[CaseState, str]:
        """State and message of the test, its own failure forgiven."""
        if isinstance(checked, TimedOut):
            self.files["check.log"] = xfsguest.said_by(checked)
            return CaseState.TIMEOUT, "it did not end in its time"
        shown = await self.injector.run(self.script.show(), self.script.within(xfsguest.SHOW_S))
        left = xfsguest.unpack(shown.stdout)
        state, message = xfsguest.judge(self.script.test.test, checked, left)
        if state is not CaseState.FAILED:
            return state, message
        self.files.update({"check.log": xfsguest.said_by(checked), **left})
        if "result.xml" not in left:
            return CaseState.MISSING, message  # `check` itself was hit; the test says nothing
        self.injector.found.log.append(f"the test failed under it, as it may: {message}")
        return CaseState.PASSED, ""

    async def _sound(self) -> None:
        """Whether its file systems are whole."""
        test = self.script.test
        if test.made:
            words = ("sound", test.made, "test", *(() if test.spoils else ("scratch",)))
            shown = (xfsguest.SCRIPT.name, *words)
            await self.injector.well("afterwards", self.script.argv(*words), shown)

    def _result(self, state: CaseState, message: str) -> CaseResult:
        return CaseResult(name=self.case.name, state=state, message=message)
