"""A kernel and an initramfs go in, the accelerator that boots them here comes out, and why.

A /dev/kvm that opens proves nothing: on some hosts QEMU then aborts, on others the guest spins
for ever. So each candidate is proven by a timed boot of a real kernel up to the agent's hello.
The outcome is cached for this host, QEMU, board and CPU model.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lab import arch as architectures
from lab import host, machine, model
from lab.arch import Arch
from lab.model import (
    Accelerator,
    Emit,
    Event,
    EventKind,
    LabFault,
    MachineEnd,
    UserError,
)
from lab.store import Cache, recall, write_atomically

KVM_DEVICE: Final = Path("/dev/kvm")
# KVM boots a lean kernel in a second or two; emulation may take a loaded machine a minute.
KVM_BOOT_S: Final = 20.0
TCG_BOOT_S: Final = 120.0
_MEMORY_BYTES = 512 << 20
_CPUS = 2
_FORMAT = "2"  # of the cache's entries: raised when the way of probing changes


class AcceleratorLost(LabFault):
    """What was proven before does not work any more; nothing is said about any kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    name: str  # "kvm" | "tcg"
    cpu: str
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a candidate's boot went."""

    boot_s: float | None  # None: it did not
    reason: str = ""
    end: MachineEnd | None = None


def kvm_obstacle(row: Arch, device: Path, host_machine: str) -> str:
    """Why KVM cannot even be tried; "" if it can."""
    if host_machine != row.machine:
        return f"this host is {host_machine}"
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"no permission for {device}"
    return ""


def candidates(row: Arch, *, force: str | None, obstacle: str) -> tuple[Candidate, ...]:
    """What to try, best first."""
    kvm = tuple(Candidate(name="kvm", cpu=cpu, limit_s=KVM_BOOT_S) for cpu in ("host", "max"))
    tcg = (Candidate(name="tcg", cpu=row.tcg_cpu, limit_s=TCG_BOOT_S),)
    if force == "tcg":
        return tcg
    if force == "kvm":
        return () if obstacle else kvm
    return tcg if obstacle else kvm + tcg


def choose(
    arch: str,
    *,
    kernel: Path,
    initramfs: Path,
    cache: Cache,
    emit: Emit,
    force: str | None = None,
    device: Path = KVM_DEVICE,
) -> Accelerator:
    """The first candidate that boots `kernel` to the agent's hello, from the cache if known.

    If none does though QEMU runs, the fault may be the kernel's: then it is TCG, unproven, with
    its limit as `boot_s`, not cached, and `tried` says so. Raises `UserError` for a missing QEMU
    and for a forced accelerator that does not work, `LabFault` if QEMU's TCG does not run.
    In a running event loop `choose_async` is the one to call.
    """
    return asyncio.run(
        choose_async(
            arch,
            kernel=kernel,
            initramfs=initramfs,
            cache=cache,
            emit=emit,
            force=force,
            device=device,
        )
    )


async def choose_async(
    arch: str,
    *,
    kernel: Path,
    initramfs: Path,
    cache: Cache,
    emit: Emit,
    force: str | None = None,
    device: Path = KVM_DEVICE,
) -> Accelerator:
    """As `choose`."""
    if force not in (None, "kvm", "tcg"):
        raise UserError(f"unknown accelerator {force!r}", hint="one of kvm, tcg")
    row = architectures.arch(arch)
    step = f"accelerator {row.name}"
    obstacle = kvm_obstacle(row, device, platform.machine())
    entry = cache.sub("accel") / f"{row.name}-{_key(row, device, obstacle, force)}.json"
    with cache.lock(f"accel {entry.name}", emit=emit, step=step):
        known = recall(entry, Accelerator)
        if known is not None:
            emit(
                Event(kind=EventKind.DONE, step=step, text=f"{describe(known)}, as measured before")
            )
            return known
        emit(Event(kind=EventKind.STARTED, step=step))
        chosen, proven = await _search(row, force, obstacle, (kernel, initramfs), cache, emit)
        if proven:
            write_atomically(entry, model.encode(chosen))
    kind = EventKind.DONE if proven else EventKind.WARNING
    emit(Event(kind=kind, step=step, text=describe(chosen)))
    return chosen


async def fall_back(
    arch: str, *, kernel: Path, initramfs: Path, cache: Cache, emit: Emit, reason: str
) -> Accelerator:
    """TCG, after KVM was lost in the middle of a run. What was remembered is forgotten, so that
    the next run tries again."""
    for entry in cache.sub("accel").glob(f"{architectures.arch(arch).name}-*.json"):
        entry.unlink(missing_ok=True)
    chosen = await choose_async(
        arch, kernel=kernel, initramfs=initramfs, cache=cache, emit=emit, force="tcg"
    )
    return replace(chosen, tried=(f"KVM: lost in the middle of a run: {reason}",))


def describe(accelerator: Accelerator) -> str:
    """One line: "TCG, boots in 6.1 s (KVM host: no hello within 20 s; ...)"."""
    because = f" ({'; '.join(accelerator.tried)})" if accelerator.tried else ""
    return f"{accelerator.name.upper()}, boots in {accelerator.boot_s:.1f} s{because}"


async def _search(
    row: Arch,
    force: str | None,
    obstacle: str,
    artefacts: tuple[Path, Path],
    cache: Cache,
    emit: Emit,
) -> tuple[Accelerator, bool]:
    """The accelerator, and whether a boot proved it."""
    tried = [f"KVM: {obstacle}"] if obstacle and force != "tcg" else []
    for candidate in candidates(row, force=force, obstacle=obstacle):
        text = f"trying {candidate.name.upper()} with -cpu {candidate.cpu}"
        emit(Event(kind=EventKind.PROGRESS, step=f"accelerator {row.name}", text=text))
        with cache.staging() as folder:
            probe = await _probe(row, candidate, artefacts, folder)
        if probe.boot_s is not None:
            chosen = Accelerator(
                name=candidate.name, cpu=candidate.cpu, boot_s=probe.boot_s, tried=tuple(tried)
            )
            return chosen, True
        tried.append(f"{candidate.name.upper()} {candidate.cpu}: {probe.reason}")
    if force == "kvm":
        raise UserError(
            f"KVM was asked for, but boots nothing here: {'; '.join(tried)}",
            hint="leave --accel out, and the lab emulates",
        )
    if probe.end is MachineEnd.QEMU_DIED:
        raise LabFault(f"QEMU does not run: {'; '.join(tried)}")
    unproven = Accelerator(name="tcg", cpu=row.tcg_cpu, boot_s=TCG_BOOT_S, tried=tuple(tried))
    return unproven, False


async def _probe(
    row: Arch, candidate: Candidate, artefacts: tuple[Path, Path], folder: Path
) -> Probe:
    """A timed boot to the agent's hello."""
    limit_s = candidate.limit_s
    spec = machine.MachineSpec(
        arch=row.name,
        kernel=artefacts[0],
        initramfs=artefacts[1],
        disks=(),
        memory_bytes=_MEMORY_BYTES,
        cpus=_CPUS,
        accelerator=Accelerator(name=candidate.name, cpu=candidate.cpu, boot_s=limit_s),
        timeouts=machine.Timeouts(boot_s=limit_s, silence_s=limit_s, wall_s=2 * limit_s),
    )
    async with machine.boot(spec, folder) as box:
        boot_s = box.boot_s
    if boot_s is not None:
        return Probe(boot_s=boot_s)
    return Probe(boot_s=None, reason=_reason(box.end, box.detail), end=box.end)


def _reason(end: MachineEnd, detail: str) -> str:
    """A short one: of a QEMU that died its first words, without the noise around them."""
    if end is not MachineEnd.QEMU_DIED:
        return detail.splitlines()[0][:160] if detail else str(end)
    first = detail.partition(": ")[2].splitlines() or [detail]
    said = re.sub(r"^\S*qemu-system-\S+: ", "", first[0])
    return f"QEMU ended: {said[:160]}"


def _key(row: Arch, device: Path, obstacle: str, force: str | None) -> str:
    """Of all that the outcome depends on, and that outlives a reboot of the host."""
    parts = (
        _FORMAT,
        host.identity(),
        host.tool(row.qemu),
        host.version(row.qemu),
        row.board,
        row.tcg_cpu,
        str(device),
        obstacle,
        force or "auto",
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
