"""One kernel by hand: a tree is built, a built kernel is booted, a command runs in it."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from lab import kconfig, locks, prose, source, subject, trial
from lab.arch import arch as arch_row
from lab.build import build
from lab.config import Config
from lab.equipment import equip
from lab.guest import Down, TimedOut
from lab.machine import Machine, Timeouts
from lab.model import (
    BuildFailure,
    Emit,
    Event,
    EventKind,
    ExitCode,
    Kernel,
    MachineEnd,
    Side,
    UserError,
)
from lab.rig import Rig
from lab.snapshot import Shelf
from lab.store import Cache
from lab.suites import registry, scratch
from lab.suites.protocol import Needs
from lab.tree import checkout

Note = Callable[[str], None]
_PATIENCE_S = 7 * 86400.0
_SOCKET_PATH_MAX = 107  # bytes, of sockaddr_un


@dataclass(frozen=True, slots=True, kw_only=True)
class BootRequest:
    """What `lab boot` was asked for."""

    patch: str | None
    config: Config
    command: tuple[str, ...]
    shell: bool
    append: str
    timeout_s: float
    snapshot: bool = True  # begin from one, leave one
    gdb: bool = False  # wait for a debugger before the first instruction


def build_kernels(
    patch: str | None, config: Config, emit: Emit
) -> tuple[Kernel | BuildFailure, ...]:
    """Base of every architecture, and patched with a series; a patched failure names its patch.

    Raises `UserError` if the series does not apply or the configuration cannot be had.
    """
    cache = Cache(root=config.paths.cache_dir)
    if patch is not None:
        request = subject.Request(patch=patch, config=config)
        planned = subject.make_plan(subject.take(request, cache, emit), config)
        return tuple(
            result
            for name in planned.archs
            for result in subject.build_pair(name, planned, config, cache, emit)
        )
    name = config.kernel or subject.DEFAULT_KERNEL
    tree = checkout(source.open_source(name, cache=cache, emit=emit), (), cache=cache, emit=emit)
    return tuple(
        build(
            tree,
            arch=row.name,
            side=Side.BASE,
            fragments=(
                *kconfig.fragments(config.profile, row.name),
                *subject.own_fragments(config),
            ),
            cache=cache,
            emit=emit,
            jobs=config.build.job_count,
        )
        for row in map(arch_row, config.arch)
    )


def prepare(request: BootRequest, emit: Emit) -> Rig:
    """Everything up to the boot; what is not in the cache is built.

    Raises `UserError` with the compiler's first error if the kernel does not build.
    """
    config = request.config
    cache = Cache(root=config.paths.cache_dir)
    results = build_kernels(request.patch, config, emit)
    kernel = results[-1]
    if isinstance(kernel, BuildFailure):
        error = kernel.first_error
        raise UserError(
            f"the {kernel.side} kernel does not build: {error.file}:{error.line}: {error.message}",
            hint=f"the whole log: {kernel.log}",
        )
    equipment = asyncio.run(equip(kernel, config, cache, emit))
    chosen = equipment.accelerator
    limits = subject.timeouts(config, chosen, work_s=request.timeout_s)
    return Rig(
        kernel=kernel,
        initramfs=equipment.initramfs,
        image=equipment.image,
        accelerator=chosen,
        timeouts=limits,
        memory_bytes=config.machine.memory_bytes,
        cpus=config.machine.cpus,
        append=f"{locks.CMDLINE} {request.append}".strip(),  # as in a trial: one snapshot
        pmem=_wants_pmem(kernel) and subject.emulates_pmem(kernel.arch),
    )


def _wants_pmem(kernel: Kernel) -> bool:
    """Whether it would know what to do with a /dev/pmem0."""
    text = kernel.config.read_text(encoding="utf-8")
    return not registry.missing_symbols(Needs(symbols=scratch.DAX_SYMBOLS), text)


async def boot(
    request: BootRequest, rig: Rig, folder: Path, emit: Emit, out: BinaryIO, err: BinaryIO
) -> ExitCode:
    """Boot, run the command, pass on what it said. The console is in `folder`/console.log."""
    shelf = Shelf(Cache(root=request.config.paths.cache_dir)) if request.snapshot else None
    if request.gdb:
        shelf, rig = None, _for_gdb(rig, folder)
        err.write(gdb_command(rig).encode())
        err.flush()
    console = trial.Console()
    step = f"machine {rig.kernel.arch}"

    def note(text: str) -> None:
        emit(Event(kind=EventKind.NOTE, step=step, text=text))

    emit(Event(kind=EventKind.STARTED, step=step))
    async with rig.machine(
        folder, shelf=shelf, restore=True, note=note, on_line=console.on_line
    ) as box:
        if box.guest is None:
            err.write(_last_words(folder, box.end, box.detail))
            return ExitCode.INCONCLUSIVE
        if shelf is not None and not box.restored and not rig.restorable(shelf):
            await _keep(rig, box, shelf, console, folder, note)
        emit(Event(kind=EventKind.DONE, step=step, text=trial.began(box.boot_s, box.restored)))
        if request.shell:
            left = await box.guest.shell(0)
            if isinstance(left, Down):
                err.write(_last_words(folder, left.end, left.detail))
                return ExitCode.INCONCLUSIVE
            return ExitCode.CLEAN
        answer = await box.guest.run(
            list(request.command), timeout_s=request.timeout_s, cwd="/root"
        )
    if isinstance(answer, Down):
        err.write(_last_words(folder, answer.end, answer.detail))
        return ExitCode.INCONCLUSIVE
    out.write(answer.stdout)
    out.flush()
    err.write(answer.stderr)
    if isinstance(answer, TimedOut):
        err.write(f"lab: the command did not end within {request.timeout_s:.0f} s\n".encode())
        return ExitCode.INCONCLUSIVE
    if answer.status != 0:
        err.write(f"lab: the command ended with status {answer.status}\n".encode())
        return ExitCode.REGRESSED
    return ExitCode.CLEAN


def _for_gdb(rig: Rig, folder: Path) -> Rig:
    """The same, with a socket for gdb and with the patience that a person needs."""
    path = folder / "gdb"
    if len(str(path)) > _SOCKET_PATH_MAX:
        raise UserError(f"the path of gdb's socket is too long: {path}", hint="[paths] cache")
    never = Timeouts(boot_s=_PATIENCE_S, silence_s=_PATIENCE_S, wall_s=_PATIENCE_S)
    return replace(rig, gdb=path, timeouts=never)


def gdb_command(rig: Rig) -> str:
    """What to type in another terminal."""
    start = shlex.join(
        ["gdb", str(rig.kernel.vmlinux), "-ex", f"target remote {rig.gdb}"],
    )
    stop = "  hbreak start_kernel, then continue: software breakpoints work once the kernel runs"
    return f"lab: the machine waits for gdb:\n  {start}\n{stop}\n"


async def _keep(
    rig: Rig, box: Machine, shelf: Shelf, console: trial.Console, folder: Path, note: Note
) -> None:
    """Leave a snapshot of a machine that booted well, so that the next one need not."""
    assert box.guest is not None
    health = await trial.probe(box.guest, console, "boot")
    if isinstance(health, Down):
        return  # the command will say so
    if not trial.healthy(health, console):
        note("no snapshot: the kernel complained as it booted")
    elif reason := await rig.keep(box, shelf, folder):
        note(f"no snapshot: {reason}")


def _last_words(folder: Path, end: MachineEnd | None, detail: str, lines: int = 15) -> bytes:
    """Why there is no machine any more, and the end of its console."""
    console = folder / "console.log"
    tail = console.read_bytes().splitlines()[-lines:] if console.exists() else []
    shown = b"".join(
        b"  | " + prose.shown(line.decode("utf-8", "replace")).encode() + b"\n" for line in tail
    )
    return f"lab: the machine is gone ({end}): {detail}\n".encode() + shown
