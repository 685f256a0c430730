"""A kernel, a root image and limits go in; fresh machines with disks of their own come out,
restored from a snapshot where that works, booted where it does not.

The disks are gone with the machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from lab import image, machine
from lab.machine import Disk, Machine, MachineSpec, Timeouts
from lab.model import Accelerator, Kernel, RootImage
from lab.snapshot import OnLine, Shelf

ROOT_SERIAL: Final = "root"
SCRATCH_SERIAL: Final = "scratch"
SCRATCH_BYTES: Final = 2 << 30
PMEM_SERIAL: Final = "pmem"
PMEM_BYTES: Final = 512 << 20  # mkfs.xfs makes nothing below 300 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """What machines of one kernel have in common; those of equal rigs share a snapshot."""

    kernel: Kernel
    initramfs: Path
    image: RootImage
    accelerator: Accelerator
    timeouts: Timeouts
    memory_bytes: int
    cpus: int
    # Empty disks, serial -> size; ROOT_SERIAL is taken.
    blank: Mapping[str, int] = field(default_factory=lambda: {SCRATCH_SERIAL: SCRATCH_BYTES})
    payloads: tuple[Disk, ...] = ()  # read-only, in the cache by content
    append: str = ""  # to the kernel's command line
    dump: bool = False  # keep the memory of a machine that panics or hangs
    gdb: Path | None = None  # socket at which QEMU waits for gdb
    iops: Mapping[str, int] = field(default_factory=dict)  # of empty disks that are to be slow
    pmem: bool = False  # an empty /dev/pmem0 as well, of PMEM_BYTES

    def spec(self, folder: Path) -> MachineSpec:
        """The machine whose disks are in `folder`: an overlay of the root image, empty disks, and
        what suites bring."""
        return MachineSpec(
            arch=self.kernel.arch,
            kernel=self.kernel.image,
            initramfs=self.initramfs,
            disks=(
                Disk(
                    path=folder / f"{ROOT_SERIAL}.qcow2",
                    format="qcow2",
                    readonly=False,
                    serial=ROOT_SERIAL,
                    # An overlay names what is below it by its path.
                    origin=f"overlay of {self.image.sha256} at {self.image.path.resolve()}",
                ),
                *(
                    Disk(
                        path=folder / f"{serial}.raw",
                        format="raw",
                        readonly=False,
                        serial=serial,
                        origin=f"{size_bytes} zeros",
                        iops=self.iops.get(serial, 0),
                        pmem_bytes=PMEM_BYTES if serial == PMEM_SERIAL else 0,
                    )
                    for serial, size_bytes in self._empty().items()
                ),
                *(replace(disk, origin=f"at {disk.path.resolve()}") for disk in self.payloads),
            ),
            memory_bytes=self.memory_bytes,
            cpus=self.cpus,
            accelerator=self.accelerator,
            # Marks between cases must not be rate-limited away.
            append=f"lab.root={ROOT_SERIAL} printk.devkmsg=on {self.append}".strip(),
            timeouts=self.timeouts,
            dump=self.dump,
            gdb=self.gdb,
        )

    def _empty(self) -> dict[str, int]:
        """Serial -> size of what is empty when a machine starts."""
        return {**self.blank, **({PMEM_SERIAL: PMEM_BYTES} if self.pmem else {})}

    def restorable(self, shelf: Shelf | None) -> bool:
        """Whether the shelf has a snapshot of this."""
        return shelf is not None and shelf.has(self.spec(Path("anywhere")))

    @contextlib.asynccontextmanager
    async def machine(
        self,
        folder: Path,
        *,
        shelf: Shelf | None,
        restore: bool,
        note: Callable[[str], None],
        on_line: OnLine | None = None,
    ) -> AsyncIterator[Machine]:
        """As `Shelf.machine`; without a shelf it boots. `folder` keeps the logs."""
        folder.mkdir(parents=True, exist_ok=True)
        spec = self.spec(folder)
        try:
            image.overlay(self.image, folder)
            for serial, size_bytes in self._empty().items():
                image.scratch_disk(folder, serial, size_bytes)
            if shelf is None:
                async with machine.boot(spec, folder, on_line=on_line) as box:
                    yield box
            else:
                async with shelf.machine(
                    spec, folder, restore=restore, note=note, on_line=on_line
                ) as box:
                    yield box
        finally:
            for pattern in ("*.qcow2", "*.raw"):
                for disk in folder.glob(pattern):
                    disk.unlink()

    async def keep(self, box: Machine, shelf: Shelf, folder: Path) -> str:
        """Save a healthy machine that has just booted and in which nothing runs; "" if that is
        done, else why not."""
        return await shelf.save(box, self.spec(folder), folder)
