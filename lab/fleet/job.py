"""A cell and its kit go in, a `Job` comes out that says all of it; a job, anywhere, -> `Trial`.

Limits in a job are those of a machine at KVM's pace: the host that runs it stretches them to the
speed that it measured itself.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Final

import lab
from lab import accel, trial
from lab.accel import AcceleratorLost
from lab.fleet.artefact import Artefact, Depot, fetch
from lab.machine import Disk, Timeouts
from lab.model import Accelerator, Cell, Emit, Kernel, RootImage, Trial, UserError
from lab.splat.allow import Allowed
from lab.store import Cache
from lab.subject import slowness
from lab.suites import registry
from lab.suites.protocol import PlannedCase
from lab.trial import Kit

KERNEL: Final = "kernel"
VMLINUX: Final = "vmlinux"
CONFIG: Final = "config"
INITRAMFS: Final = "initramfs"
ROOT: Final = "root"
_DISK: Final = "disk "  # and its serial


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that one trial depends on. Paths in it are those of the host that wrote it, and
    nobody else reads them: files are found by `artefacts`."""

    lab_version: str
    name: str  # of the trial: its folder's
    cell: Cell
    kernel: Kernel
    image: RootImage
    artefacts: dict[str, Artefact]
    disks: tuple[Disk, ...]  # read-only, of suites
    cases: tuple[PlannedCase, ...]
    accelerator: str  # "kvm" | "tcg"
    cpu: str  # QEMU's -cpu: results of different accelerators or models are never compared
    timeouts: Timeouts
    scratch_bytes: int
    enough: tuple[str, ...] = ()
    allowed: tuple[Allowed, ...] = ()
    today: date = date.max


Execute = Callable[[Job, Accelerator, Path, Emit], Awaitable[Trial]]


def describe(cell: Cell, kit: Kit, name: str, depot: Depot) -> Job:
    """The job that does what `trial.run` would do with cell and kit. May write to the depot.

    Snapshots and dumps are a matter of one host, and the history of the series of the one that
    has its repository: a job does without.
    """
    slower = slowness(kit.accelerator)
    files = {
        KERNEL: kit.kernel.image,
        VMLINUX: kit.kernel.vmlinux,
        CONFIG: kit.kernel.config,
        INITRAMFS: kit.initramfs,
        ROOT: kit.image.path,
        **{_DISK + disk.serial: disk.path for disk in kit.disks},
    }
    cases = (kit.cases[name] for name in cell.cases)
    return Job(
        lab_version=lab.__version__,
        name=name,
        cell=cell,
        kernel=kit.kernel,
        image=kit.image,
        artefacts={role: depot.offer(path) for role, path in files.items()},
        disks=kit.disks,
        cases=tuple(replace(case, timeout_s=case.timeout_s / slower) for case in cases),
        accelerator=kit.accelerator.name,
        cpu=kit.accelerator.cpu,
        timeouts=_scaled(kit.timeouts, 1 / slower),
        scratch_bytes=kit.scratch_bytes,
        enough=tuple(sorted(kit.enough)),
        allowed=kit.allowed,
        today=kit.today,
    )


def _scaled(limits: Timeouts, factor: float) -> Timeouts:
    return Timeouts(
        boot_s=limits.boot_s * factor,
        silence_s=limits.silence_s * factor,
        wall_s=limits.wall_s * factor,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a host boots to find out what it can do."""

    lab_version: str
    arch: str
    kernel: Artefact
    initramfs: Artefact


def proof_of(job: Job) -> Proof:
    return Proof(
        lab_version=job.lab_version,
        arch=job.cell.arch,
        kernel=job.artefacts[KERNEL],
        initramfs=job.artefacts[INITRAMFS],
    )


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")


def check_version(sent: Job | Proof) -> None:
    """Raises `UserError` unless this lab is the one that wrote it."""
    if sent.lab_version != lab.__version__:
        raise UserError(
            f"the cell was written by lab {sent.lab_version}, this is {lab.__version__}",
            hint="lab hosts setup brings a host to this version",
        )


def check(job: Job) -> None:
    """Raises `UserError` if this lab did not write it, or its name could not be a folder's."""
    check_version(job)
    if not _NAME.fullmatch(job.name):
        raise UserError(f"{job.name!r} is no name of a trial")


async def prove(proof: Proof, cache: Cache, emit: Emit, *, force: str | None) -> Accelerator:
    """What boots the kernel here, by a timed boot unless it is known. Raises as
    `accel.choose_async`, and `LabFault` as `fetch`."""
    check_version(proof)
    return await accel.choose_async(
        proof.arch,
        kernel=fetch(proof.kernel, cache),
        initramfs=fetch(proof.initramfs, cache),
        cache=cache,
        emit=emit,
        force=force,
    )


def equip(job: Job, accelerator: Accelerator, cache: Cache, *, crowding: float = 1.0) -> Kit:
    """The job's kit on this host, its artefacts in the cache. Raises `UserError`, `LabFault`."""
    check(job)
    if (job.accelerator, job.cpu) != (accelerator.name, accelerator.cpu):
        raise AcceleratorLost(
            f"the cell is for {job.accelerator} {job.cpu}, "
            f"here it is {accelerator.name} {accelerator.cpu}"
        )
    slower = slowness(accelerator, crowding=crowding)
    files = {role: fetch(one, cache) for role, one in job.artefacts.items()}
    return Kit(
        kernel=replace(
            job.kernel,
            folder=files[KERNEL].parent,
            image=files[KERNEL],
            vmlinux=files[VMLINUX],
            config=files[CONFIG],
        ),
        initramfs=files[INITRAMFS],
        image=replace(job.image, path=files[ROOT]),
        accelerator=accelerator,
        timeouts=_scaled(job.timeouts, slower),
        suites=registry.find(job.cell.suites),
        cases={case.name: replace(case, timeout_s=case.timeout_s * slower) for case in job.cases},
        scratch_bytes=job.scratch_bytes,
        enough=frozenset(job.enough),
        allowed=job.allowed,
        today=job.today,
        disks=tuple(replace(disk, path=files[_DISK + disk.serial]) for disk in job.disks),
    )


async def run(
    job: Job,
    accelerator: Accelerator,
    folder: Path,
    emit: Emit,
    *,
    cache: Cache,
    crowding: float = 1.0,
) -> Trial:
    """Run the job on this host; its record and logs are in `folder` then. Raises as `equip` and
    `trial.run`."""
    kit = equip(job, accelerator, cache, crowding=crowding)
    return await trial.run(job.cell, kit, folder, emit)


def for_accelerator(job: Job, accelerator: Accelerator) -> Job:
    """The same job, planned for another accelerator."""
    return replace(job, accelerator=accelerator.name, cpu=accelerator.cpu)
