"""A kernel that was built goes in; what boots it, and the kit of its trials, come out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab import accel, image, initramfs
from lab.config import Config
from lab.model import Accelerator, Cell, Emit, Kernel, RootImage
from lab.rig import SCRATCH_BYTES
from lab.store import Cache
from lab.subject import slowness, timeouts
from lab.suites.protocol import PlannedCase, Suite
from lab.trial import Kit


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """What kernels of one architecture need to run on this host."""

    image: RootImage
    initramfs: Path
    accelerator: Accelerator


async def equip(kernel: Kernel, config: Config, cache: Cache, emit: Emit) -> Equipment:
    """Root image and initramfs, built unless they are there; the accelerator, proved with
    `kernel` unless it was proved before."""
    root, ramfs = await asyncio.gather(
        asyncio.to_thread(image.root_image, kernel.arch, cache=cache, emit=emit),
        asyncio.to_thread(initramfs.initramfs, kernel.arch, cache=cache, emit=emit),
    )
    chosen = await accel.choose_async(
        kernel.arch,
        kernel=kernel.image,
        initramfs=ramfs,
        cache=cache,
        emit=emit,
        force=config.machine.forced_accel,
    )
    return Equipment(image=root, initramfs=ramfs, accelerator=chosen)


def kit(
    kernel: Kernel,
    suites: Sequence[Suite],
    cases: Sequence[PlannedCase],
    config: Config,
    equipment: Equipment,
    *,
    crowding: float = 1.0,
) -> Kit:
    """What the trials of one kernel share; limits stretched to how fast its machines are, which
    `crowding` others on the same cores make slower."""
    work_s = sum(case.timeout_s for case in cases)
    slower = slowness(equipment.accelerator, crowding=crowding)
    return Kit(
        kernel=kernel,
        initramfs=equipment.initramfs,
        image=equipment.image,
        accelerator=equipment.accelerator,
        timeouts=timeouts(config, equipment.accelerator, work_s=work_s, crowding=crowding),
        suites=tuple(suites),
        cases={case.name: replace(case, timeout_s=case.timeout_s * slower) for case in cases},
        scratch_bytes=SCRATCH_BYTES,
    )


def cell(
    kit: Kit, config: Config, cases: Sequence[str], repeat: int, *, profile: str | None = None
) -> Cell:
    """One repeat of `cases` on the kernel of a kit, outside of a matrix."""
    return Cell(
        arch=kit.kernel.arch,
        side=kit.kernel.side,
        profile=profile or config.profile,
        suites=tuple(suite.name for suite in kit.suites),
        cases=tuple(cases),
        kernel_key=kit.kernel.key,
        image_sha256=kit.image.sha256,
        repeat=repeat,
        seed=config.run.seed + repeat,
        memory_bytes=config.machine.memory_bytes,
        cpus=config.machine.cpus,
    )
