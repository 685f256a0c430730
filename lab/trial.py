"""One cell and its artefacts go in, a `Trial` comes out.

The only room that knows kernel, image, machine, guest and suites together.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path

from lab import counters, locks, model, plan, symbols
from lab.guest import Down, Exited, Guest
from lab.machine import Disk, Timeouts
from lab.model import (
    Accelerator,
    CaseResult,
    CaseState,
    Cell,
    Emit,
    Event,
    EventKind,
    Kernel,
    LabError,
    LabFault,
    LockFiles,
    MachineEnd,
    RootImage,
    Splat,
    Trial,
)
from lab.rig import SCRATCH_SERIAL, Rig
from lab.snapshot import Shelf
from lab.splat import account
from lab.splat.allow import Allowed
from lab.splat.detector import Detector
from lab.store import write_atomically
from lab.suites import registry
from lab.suites.protocol import Needs, PlannedCase, Suite, Told

RECORD = "trial.json"
PROBE = Path(__file__).parent.parent / "images" / "guest" / "probe.sh"
_MARK_LIMIT_S = 10.0
_PROBE_LIMIT_S = 30.0
# What belongs to a report follows it: other tasks' stacks, the oops after a KASAN report.
_LAST_WORDS_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """The artefacts that the cells of one side and architecture share."""

    kernel: Kernel
    initramfs: Path
    image: RootImage
    accelerator: Accelerator
    timeouts: Timeouts
    suites: tuple[Suite, ...]
    cases: Mapping[str, PlannedCase]
    scratch_bytes: int
    # Kinds of splats after which there is nothing more to learn: the case ends as failed, and the
    # machine goes.
    enough: frozenset[str] = frozenset()
    history: symbols.History | None = None  # of the series, on the side that has it
    allowed: tuple[Allowed, ...] = ()  # splats that are known
    today: date = date.max  # decides which of them have expired
    disks: tuple[Disk, ...] = ()  # read-only, with the suites' own programs
    shelf: Shelf | None = None  # None: every machine boots
    restore: bool = False  # begin from a snapshot of the kernel, if there is one that works
    dump: bool = False  # keep the memory of a machine that panics or hangs
    counters: bool = False  # keep what the kernel, built for that, counts of its lines in each case

    def rig(self, *, memory_bytes: int, cpus: int) -> Rig:
        """The machines that these artefacts make."""
        blank: dict[str, int] = {}
        for needs in (suite.needs() for suite in self.suites):
            blank |= dict.fromkeys(needs.disks, needs.disk_bytes or self.scratch_bytes)
        return Rig(
            kernel=self.kernel,
            initramfs=self.initramfs,
            image=self.image,
            accelerator=self.accelerator,
            timeouts=self.timeouts,
            memory_bytes=memory_bytes,
            cpus=cpus,
            blank={SCRATCH_SERIAL: self.scratch_bytes} | blank,
            pmem=any(case.pmem for case in self.cases.values()),
            payloads=self.disks,
            append=locks.CMDLINE,
            dump=self.dump,
        )


@dataclass(slots=True)
class Console:
    """What the trial knows of the console while it grows."""

    detector: Detector = field(default_factory=Detector)
    splats: list[Splat] = field(default_factory=list)
    line: int = 0
    marks: dict[str, int] = field(default_factory=dict)  # mark -> line
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    enough: frozenset[str] = frozenset()
    seen_enough: asyncio.Event = field(default_factory=asyncio.Event)

    def on_line(self, number: int, text: str) -> None:
        self.line = number
        _, found, mark = text.rpartition("lab: mark ")
        if found:
            self.marks[mark.strip()] = number
            self.grown.set()
        splats = self.detector.feed(text)
        self.splats += splats
        if any(splat.kind in self.enough for splat in splats):
            self.seen_enough.set()

    def look_again(self, line: int) -> int:
        """A report is known to be whole when something follows it; after it, a kernel may have
        nothing to say for long. So one that has not grown since `line` is enough, too."""
        if self.line == line and self.enough.intersection(self.detector.opened):
            self.seen_enough.set()
        return self.line

    async def wait_mark(self, mark: str) -> bool:
        """Whether the console showed `mark` in time: all that came before it is then here."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MARK_LIMIT_S):
                while mark not in self.marks:
                    self.grown.clear()
                    await self.grown.wait()
        return mark in self.marks


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The kernel's own word on its state, between two cases."""

    taint: int  # /proc/sys/kernel/tainted
    lockdep_alive: bool | None  # None: no lockdep in this kernel


@dataclass(slots=True)
class Progress:
    """What is known of a trial while its machine lives."""

    results: list[CaseResult] = field(default_factory=list)
    parts: list[CaseResult] = field(default_factory=list)  # of the results
    begun: dict[str, int] = field(default_factory=dict)  # case -> console line at its start
    ended: dict[str, int] = field(default_factory=dict)
    health: Health | None = None
    taints: dict[str, tuple[int, int]] = field(default_factory=dict)  # before and after each case
    vmstat: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    locks: LockFiles = field(
        default_factory=lambda: locks.none("the machine ended before its locks were read")
    )


async def relay(cell: Cell, run_one: Callable[[Cell], Awaitable[Trial]]) -> AsyncIterator[Trial]:
    """The trials of a cell, in as many machines as it takes: each takes up what is left.

    A machine that goes down is charged to one case, so this ends; also after a machine that got to
    no case at all. Whoever has seen enough leaves.
    """
    todo: Cell | None = cell
    while todo is not None:
        one = await run_one(todo)
        yield one
        if not one.results:
            return
        todo = plan.remaining(todo, [result.name for result in one.results])


async def run(cell: Cell, kit: Kit, folder: Path, emit: Emit) -> Trial:
    """Run the cell's cases in one machine, until they are done or the machine is.

    A healthy machine that booted leaves a snapshot on the kit's shelf.

    Cases that the machine did not get to are absent from the results: the caller decides whether
    a fresh machine takes them up (`relay`). The record is on disk when this returns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    console, progress = Console(enough=kit.enough), Progress()
    rig = kit.rig(memory_bytes=cell.memory_bytes, cpus=cell.cpus)

    def note(text: str) -> None:
        progress.notes.append(text)
        emit(Event(kind=EventKind.NOTE, step=step_name(cell), text=text))

    began = time.monotonic()
    async with rig.machine(
        folder, shelf=kit.shelf, restore=kit.restore, note=note, on_line=console.on_line
    ) as box:
        health = None if box.guest is None else await probe(box.guest, console, "boot")
        if isinstance(health, Health):
            progress.health = health
            if kit.shelf is not None and not box.restored and healthy(health, console):
                unsaved = await rig.keep(box, kit.shelf, folder)
                if unsaved:
                    note(f"no snapshot: {unsaved}")
            assert box.guest is not None
            if box.running:  # else it was lost as it was saved: no case has to answer for that
                await _use(cell, kit, box.guest, console, progress, emit, folder)
    wall_s = time.monotonic() - began
    console.splats += console.detector.finish()
    await _symbolise(kit, console, progress)
    console.splats = account.excused(console.splats, kit.allowed, arch=cell.arch, today=kit.today)
    results, others = _charge(progress, console, kit.cases)
    results = account.cross_checked(results, others, progress.taints)
    results += tuple(progress.parts)  # splats and taints are charged to the whole case
    trial = Trial(
        id=folder.name,
        cell=cell,
        end=box.end,
        accelerator=kit.accelerator,
        started=started,
        boot_s=box.boot_s,
        guest_s=max(0.0, wall_s - (box.boot_s or 0.0)),
        wall_s=wall_s,
        results=results,
        boot_splats=others,
        vmstat=progress.vmstat,
        lockdep_alive=progress.health.lockdep_alive if progress.health else None,
        note="; ".join([*progress.notes, *([box.detail] if box.detail else [])]),
        locks=progress.locks,
        restored=box.restored,
        dump=box.dump.name if box.dump else "",
    )
    write_atomically(folder / RECORD, model.encode(trial))
    return trial


async def _use(
    cell: Cell,
    kit: Kit,
    guest: Guest,
    console: Console,
    progress: Progress,
    emit: Emit,
    folder: Path,
) -> None:
    """Run the cases one after the other, with a look at the kernel's health after each."""
    health = progress.health
    assert health is not None
    progress.taints[account.BOOT] = (0, health.taint)
    if health.lockdep_alive is not None:
        await locks.start(guest)
    refused = await _set(cell.settings, guest)
    if refused:
        progress.notes.append(refused)
        return
    if kit.counters:
        await _count(guest, folder, counters.BOOTING, progress)
    config = kit.kernel.config.read_text()
    for number, name in enumerate(cell.cases):
        fraction = number / len(cell.cases)
        step = step_name(cell)
        emit(Event(kind=EventKind.PROGRESS, step=step, text=name, fraction=fraction))
        progress.begun[name] = console.line + 1
        if why := _not_to_run(kit.cases[name], config):
            progress.ended[name] = console.line
            skipped = CaseResult(name=name, state=CaseState.SKIPPED, message=why)
            progress.results.append(skipped)
            continue
        if not await _run_case(name, cell.seed, kit, guest, console, progress, folder):
            return
        if number + 1 < len(cell.cases) and (why := _spent(progress.results[-1], health, progress)):
            progress.notes.append(f"{why}; the rest runs afresh")
            break
    progress.vmstat = await _vmstat(guest)
    if health.lockdep_alive is None:
        progress.locks = locks.none("this kernel has no lockdep")
    else:
        progress.locks = await locks.collect(guest, kit.kernel.vmlinux, folder)


async def _run_case(
    name: str,
    seed: int,
    kit: Kit,
    guest: Guest,
    console: Console,
    progress: Progress,
    folder: Path,
) -> bool:
    """Run one case and look at the kernel's health. False: there is nothing more to do in this
    machine, which is down, or has shown enough."""
    suites = {suite.name: suite for suite in kit.suites}
    suite, case = suites[name.partition("/")[0]], kit.cases[name]
    told = await _unless_enough(suite.run(guest, case, seed), name, console)
    if isinstance(told, Down):
        progress.results.append(_down(name, told))
        return False
    if console.seen_enough.is_set():
        progress.results.append(_keep(told, folder)[0])
        return False
    result, parts = _keep(told, folder)
    after = await probe(guest, console, name)
    progress.ended[name] = console.line
    if isinstance(after, Down):
        progress.results.append(_down(name, after))
        return False
    before = progress.health
    assert before is not None
    progress.results.append(_with_health(result, before, after))
    progress.taints[name] = (before.taint, after.taint)
    progress.parts += [_with_cover(part, before) for part in parts]
    progress.health = after
    if kit.counters:
        await _count(guest, folder, name, progress)
    return True


def _spent(last: CaseResult, at_first: Health, progress: Progress) -> str:
    """Why no other case should run in this machine; "" if one can."""
    if last.state in (CaseState.TIMEOUT, CaseState.HUNG):
        # What it left behind cannot be known: processes, mounts, locks.
        return f"{last.name} did not end by itself"
    now = progress.health
    if at_first.lockdep_alive and now is not None and now.lockdep_alive is False:
        return f"lockdep switched itself off in {last.name}"
    return ""


async def _count(guest: Guest, folder: Path, case: str, progress: Progress) -> None:
    if problem := await counters.take(guest, folder, case):
        progress.notes.append(problem)


async def _unless_enough(
    running: Awaitable[CaseResult | Told | Down], name: str, console: Console
) -> CaseResult | Told | Down:
    """The case's own result, or a failure as soon as the console has shown enough."""
    began = time.monotonic()
    case = asyncio.ensure_future(running)
    seen = asyncio.ensure_future(console.seen_enough.wait())
    line = -1
    try:
        while not case.done() and not seen.done():
            await asyncio.wait(
                (case, seen), timeout=_LAST_WORDS_S, return_when=asyncio.FIRST_COMPLETED
            )
            line = console.look_again(line)
        if seen.done() and not case.done():
            duration_s = time.monotonic() - began
            await asyncio.wait((case,), timeout=_LAST_WORDS_S)
            if not case.done():
                return CaseResult(
                    name=name,
                    state=CaseState.FAILED,
                    duration_s=duration_s,
                    message="ended by the lab: its console had shown enough",
                )
        return await case
    finally:
        for task in (case, seen):
            task.cancel()
        await asyncio.wait((case, seen))


async def _set(settings: Mapping[str, str], guest: Guest) -> str:
    """Write each value into its file; why one could not be, or ""."""
    for path, value in settings.items():
        answer = await guest.run(
            ["/bin/sh", "-c", 'printf "%s\n" "$2" >"$1"', "sh", path, value],
            timeout_s=_PROBE_LIMIT_S,
        )
        if isinstance(answer, Exited) and answer.status == 0:
            continue
        if isinstance(answer, Down):
            said = f"machine {answer.end}"
        else:
            said = answer.stderr.decode("utf-8", "replace").strip() or "no answer"
        return f"the setting {path} = {value} could not be made: {said}"
    return ""


def _not_to_run(case: PlannedCase, config: str) -> str:
    """Why the case is skipped on this kernel; "" if it runs."""
    if case.skip:
        return case.skip
    lacking = registry.missing_symbols(Needs(symbols=case.symbols), config)
    named = ", ".join(f"CONFIG_{symbol}" for symbol in lacking)
    return f"this kernel lacks {named}" if lacking else ""


def _keep(told: CaseResult | Told, folder: Path) -> tuple[CaseResult, tuple[CaseResult, ...]]:
    """The result and its parts; the files that came with it are in the trial's folder then."""
    if isinstance(told, CaseResult):
        return told, ()
    place = Path("cases") / told.result.name.replace("/", "_")
    for name, content in told.files.items():
        write_atomically(folder / place / Path(name).name, content)
    log = str(place) if told.files else ""
    return replace(told.result, log=told.result.log or log), told.parts


async def probe(guest: Guest, console: Console, about: str) -> Health | Down:
    """Ask the kernel how it is, and wait until the console has caught up.

    Raises `LabFault` if a living guest does not answer as the probe script must.
    """
    mark = f"{about} {len(console.marks)}"
    answer = await guest.run(
        ["/bin/sh", "-s", "--", f"mark {mark}"],
        timeout_s=_PROBE_LIMIT_S * 4,
        stdin=PROBE.read_bytes(),
    )
    if isinstance(answer, Down):
        return answer
    if not isinstance(answer, Exited):
        return Down(end=MachineEnd.HUNG_SILENT, detail=f"the guest's shell hangs after {about}")
    words = dict(line.split(maxsplit=1) for line in answer.stdout.decode().splitlines())
    if answer.status != 0 or not words.get("taint", "").isdigit():
        raise LabFault(
            f"the probe after {about} ended with status {answer.status}: "
            f"{answer.stderr.decode('utf-8', 'replace').strip()}"
        )
    await console.wait_mark(mark)
    debug_locks = words.get("debug_locks")
    return Health(
        taint=int(words["taint"]),
        lockdep_alive=None if debug_locks is None else debug_locks.strip() == "1",
    )


def healthy(health: Health, console: Console) -> bool:
    """Whether a kernel that has just booted is fit to be begun from again and again."""
    return not console.splats and health.taint == 0 and health.lockdep_alive is not False


def _down(name: str, down: Down) -> CaseResult:
    """The case during which the machine was lost."""
    hung = down.end in (MachineEnd.HUNG_SILENT, MachineEnd.HUNG_BOOT, MachineEnd.WALL_CLOCK)
    return CaseResult(
        name=name,
        state=CaseState.HUNG if hung else CaseState.CRASHED,
        message=f"machine {down.end}: {down.detail}",
    )


def _with_health(result: CaseResult, before: Health, after: Health) -> CaseResult:
    """The result, doubted where the kernel's state says so."""
    result = _with_cover(result, before)
    if result.state is CaseState.PASSED and before.lockdep_alive and not after.lockdep_alive:
        # A report, if there is one, says more: it is charged to the case later.
        message = "lockdep switched itself off while it ran, and no report was found that says why"
        result = replace(result, state=CaseState.UNCOVERED, message=message)
    return result


async def _symbolise(kit: Kit, console: Console, progress: Progress) -> None:
    """Source lines for the splats; a kernel that cannot be read is no reason to lose a trial."""

    def work() -> list[Splat]:
        found = symbols.symbolise(console.splats, kit.kernel.vmlinux)
        return list(symbols.mark(found, kit.history) if kit.history else found)

    try:
        if console.splats:
            console.splats = await asyncio.to_thread(work)
    except LabError as error:
        progress.notes.append(f"no source lines: {error.message}")


def _with_cover(result: CaseResult, before: Health) -> CaseResult:
    """A pass counts only if lockdep was watching."""
    if result.state is CaseState.PASSED and before.lockdep_alive is False:
        return replace(result, state=CaseState.UNCOVERED, message="lockdep was off before it began")
    return result


def _charge(
    progress: Progress, console: Console, cases: Mapping[str, PlannedCase]
) -> tuple[tuple[CaseResult, ...], tuple[Splat, ...]]:
    """Give each splat to the case in whose span of the console it began; the rest to the boot."""
    rest = sorted(console.splats, key=lambda splat: splat.first_line)
    charged: list[CaseResult] = []
    for result in progress.results:
        first = progress.begun[result.name]
        last = progress.ended.get(result.name, console.line)
        mine = tuple(splat for splat in rest if first <= splat.first_line <= last)
        rest = [splat for splat in rest if splat not in mine]
        expects = cases[result.name].expects if result.name in cases else ()
        charged.append(account.charged(result, account.expected(mine, expects)))
    return tuple(charged), tuple(rest)


async def _vmstat(guest: Guest) -> dict[str, int]:
    """/proc/vmstat; empty if the machine is gone."""
    answer = await guest.run(["/bin/cat", "/proc/vmstat"], timeout_s=_PROBE_LIMIT_S)
    if not isinstance(answer, Exited) or answer.status != 0:
        return {}
    pairs = (line.split() for line in answer.stdout.decode("ascii", "replace").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def step_name(cell: Cell) -> str:
    """The step of progress that this cell's events belong to."""
    part = f" {cell.shard + 1}/{cell.shards}" if cell.shards > 1 else ""
    return f"test {cell.side} {cell.arch} #{cell.repeat + 1}{part}"


def began(boot_s: float | None, restored: bool) -> str:
    """How a machine came to be: "boot 7.1 s", "restore 0.4 s", "did not boot"."""
    if boot_s is None:
        return "did not boot"
    return f"{'restore' if restored else 'boot'} {boot_s:.1f} s"
