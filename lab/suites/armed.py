"""A profile of injection and a guest go in; it is armed and disarmed there, and what it did and
left behind comes out. For the suites that let things fail on purpose (docs/faultinject.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState
from lab.suites import scratch
from lab.suites.injection import Injection, Kind
from lab.suites.protocol import Commands

SCRIPT = Path(__file__).parent.parent.parent / "images" / "guest" / "faultinject.sh"
MAPPED = "/dev/mapper"
STEP_S = 300.0  # of one step of the script, a scan for leaks included
LOG_BYTES = 64 << 10
_WITHOUT_LEAKS = "leaks were not looked for: this kernel has no kmemleak"


class Gone(Exception):
    """The machine ended under the case."""

    def __init__(self, down: Down) -> None:
        super().__init__(down.detail)
        self.down = down


def mapped(serial: str) -> str:
    """The device-mapper device over the disk of that serial, for `Kind.mapped`."""
    return f"{MAPPED}/lab-{serial}"


@dataclass(slots=True)
class Findings:
    """What is known of a case while it runs."""

    wrong: list[str] = field(default_factory=list)  # each one alone makes it fail
    lacking: list[str] = field(default_factory=list)  # each one alone keeps it from being a pass
    notes: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    injected: int | None = None  # None: this kind has no counter

    def note(self, what: str, said: str | bytes) -> None:
        """Take up what went wrong, if `said` is a complaint."""
        if isinstance(said, str) and said:
            self.wrong.append(f"{what}: {said}" if what else said)

    def judged(self, result: CaseResult) -> CaseResult:
        """A case's own result with all that was found besides."""
        if not self.injected:
            self.lacking.append("not one failure was injected, so nothing was tested")
        state, told = result.state, [result.message] if result.message else []
        if self.wrong:
            state = CaseState.FAILED
            told += self.wrong
        elif state is CaseState.PASSED and self.lacking:
            state = CaseState.UNCOVERED
            told += self.lacking
        self.log += [*told, *self.notes, f"injected: {self.injected}"]
        counted = {} if self.injected is None else {"injected": float(self.injected)}
        return CaseResult(
            name=result.name,
            state=state,
            message="; ".join((*told, *self.notes)),
            metrics={**result.metrics, **counted},
        )

    def files(self) -> dict[str, bytes]:
        """For the trial's folder."""
        log = "".join(f"{line}\n" for line in self.log).encode()[-LOG_BYTES:]
        return {"faultinject.log": log} if log else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Injector:
    """One profile in one guest, for one case. Every method raises `Gone`."""

    guest: Commands
    profile: Injection
    seed: int
    environment: tuple[str, ...] = ()  # NAME=VALUE, of the script
    found: Findings = field(default_factory=Findings)

    async def set_up(self) -> str:
        """Make what this kind needs, and forget older leaks. What went wrong, or ""."""
        await self.step("leaks", "clear")  # what an earlier case left is not charged to this one
        kind = self.profile.kind
        steps = [("device",)] if kind.mapped else [("group",)] if kind is Kind.MEMCG else []
        for words in steps:
            said = await self.step(*words)
            if isinstance(said, str):
                return said
        return ""

    async def under(
        self,
        argv: Sequence[str],
        limit_s: float,
        begun: Callable[[], Awaitable[bool]] | None = None,
    ) -> Exited | TimedOut:
        """How a command ended under the injection. That is armed before it starts, or, if `begun`
        is given, once that is true; false: not at all. A device fails `after_s` later."""
        kind = self.profile.kind
        at_once = begun is None and not kind.beside
        armed = at_once and await self.arm()
        words = self._words("within", *argv) if kind is Kind.MEMCG else argv
        running = asyncio.ensure_future(self.run(words, limit_s))
        try:
            if not at_once and (begun is None or await begun()):
                if kind.beside:
                    await asyncio.wait((running,), timeout=self.profile.after_s)
                # Nothing is armed beside a program that is not there any more.
                armed = not running.done() and await self.arm()
            answer = await running
        finally:
            running.cancel()
            await asyncio.wait((running,))
        if armed:
            await self.disarm()
        return answer

    async def arm(self) -> bool:
        """From here on things fail; whether that could be done is also found."""
        words = self.profile.arguments(self.seed)
        self.found.log.append(f"armed {self.profile.kind}: {' '.join(words)}")
        said = await self.step("arm", str(self.profile.kind), *words)
        self.found.note("arming", said)
        return not isinstance(said, str)

    async def disarm(self) -> None:
        said = await self.step("disarm", str(self.profile.kind))
        if isinstance(said, str):
            self.found.note("disarming", said)
        else:
            self.found.injected = number(said, "injected")

    async def leaks(self) -> None:
        said = await self.step("leaks", "find")
        if isinstance(said, str):
            self.found.note("looking for leaks", said)
            return
        first, _, rest = said.decode("utf-8", "replace").partition("\n")
        if first == "kmemleak absent":
            self.found.notes.append(_WITHOUT_LEAKS)
        elif first == "kmemleak off":
            self.found.lacking.append("kmemleak has switched itself off")
        elif count := number(said, "kmemleak"):
            self.found.wrong.append(f"{count} objects leaked: {_first_leak(rest)}")
            self.found.log.append(rest)

    async def away(self) -> None:
        """Take away what `set_up` made."""
        self.found.note("", await self.step("away"))

    # --- single commands -------------------------------------------------------------------------

    def _words(self, *words: str) -> tuple[str, ...]:
        script = SCRIPT.read_text(encoding="utf-8")
        around = ("env", *self.environment) if self.environment else ()
        return (*around, "/bin/sh", "-c", script, SCRIPT.name, *words)

    async def step(self, *words: str) -> str | bytes:
        """What the script printed, or as a string what went wrong."""
        answer = await self.run(self._words(*words), STEP_S)
        said = scratch.complaint((SCRIPT.name, *words), answer)
        return said or answer.stdout

    async def run(self, argv: Sequence[str], timeout_s: float) -> Exited | TimedOut:
        answer = await self.guest.run(argv, timeout_s=timeout_s)
        if isinstance(answer, Down):
            raise Gone(answer)
        return answer

    async def well(self, what: str, argv: Sequence[str], shown: Sequence[str] = ()) -> bool:
        """Whether the command ended well; if not, it is noted, by its words or as `shown`."""
        answer = await self.run(argv, STEP_S)
        wrong = scratch.complaint(shown or argv, answer)
        if wrong:
            self.found.note(what, wrong)
            self.found.log.append((answer.stdout + answer.stderr).decode("utf-8", "replace"))
        return not wrong


def number(said: bytes, word: str) -> int | None:
    """N of the line "WORD N"; None if there is none."""
    for line in said.decode("utf-8", "replace").splitlines():
        name, _, counted = line.partition(" ")
        if name == word and counted.isdigit():
            return int(counted)
    return None


def _first_leak(text: str) -> str:
    """Whose memory the first one is, in one line: process and the innermost named frames."""
    lines = [line.strip() for line in text.splitlines()]
    who = next((line for line in lines if line.startswith("comm ")), "")
    frames = [line.split("] ", 1)[1] for line in lines if line.startswith("[<") and "] " in line]
    return f"{who.partition(',')[0]}: {' < '.join(frames[:6])}"[:400]
