"""A specification goes in, the argv of a QEMU comes out. Pure.

Raises `LabFault` for a disk that QEMU would misread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab import arch as architectures
from lab.model import Accelerator, LabFault

_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
PMEM_DEVICE: Final = "virtio-pmem-pci"
_ALIGNED: Final = 1 << 30  # where a board puts memory that is not RAM
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,19}")  # virtio-blk carries 20 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A virtio disk; the guest finds it as /dev/disk/by-lab/SERIAL."""

    path: Path
    format: str  # "raw" | "qcow2"
    readonly: bool
    serial: str
    # What it holds when a machine starts, in words that are equal for equal content: "" where
    # nobody can say, and then no snapshot can be taken.
    origin: str = ""
    iops: int = 0  # requests a second that it serves at most; 0: as many as it can
    # Persistent memory instead, for DAX: /dev/pmem0 and so on, without the name by the serial. The
    # size of the raw file; 0: a disk.
    pmem_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits of the three watchdogs."""

    boot_s: float  # from QEMU's start to the agent's hello
    silence_s: float  # without a byte on the console and from the agent
    wall_s: float  # of the whole machine


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    arch: str
    kernel: Path
    initramfs: Path
    disks: tuple[Disk, ...]
    memory_bytes: int
    cpus: int
    accelerator: Accelerator
    timeouts: Timeouts
    append: str = ""  # added to the kernel's command line
    dump: bool = False  # keep the guest's memory after a panic or a hang
    gdb: Path | None = None  # socket at which QEMU waits for gdb before the first instruction


def command_line(spec: MachineSpec) -> str:
    """The kernel's command line."""
    row = architectures.arch(spec.arch)
    # A panic resets at once, and -no-reboot turns the reset into QEMU's end.
    # Without KASLR addresses in two logs can be compared, and nothing has to be relocated.
    words = [f"console={row.console}", row.cmdline, "panic=-1 nokaslr"]
    if spec.accelerator.name == "tcg":
        words.append(row.tcg_cmdline)
    words.append(spec.append)
    return " ".join(word for word in words if word)


def _disk_argv(number: int, disk: Disk) -> list[str]:
    if not _SERIAL.fullmatch(disk.serial):
        raise LabFault(f"not a disk serial: {disk.serial!r}")
    name = str(disk.path).replace(",", ",,")
    if disk.pmem_bytes:
        backend = f"memory-backend-file,id=pmem{number},mem-path={name},size={disk.pmem_bytes}"
        device = f"{PMEM_DEVICE},memdev=pmem{number}"
        return ["-object", f"{backend},share=on", "-device", device]
    drive = f"if=none,id=disk{number},file={name},format={disk.format}"
    # Nobody reads these disks after a crash of the host: no flush has to reach the platter.
    drive += ",cache=unsafe,discard=unmap"
    if disk.readonly:
        drive += ",readonly=on"
    if disk.iops:
        drive += f",throttling.iops-total={disk.iops}"
    device = f"virtio-blk-pci,drive=disk{number},serial={disk.serial}"
    return ["-drive", drive, "-device", device]


def _memory(spec: MachineSpec) -> str:
    """The size of the RAM, and where there is persistent memory, up to where addresses go."""
    pmem_bytes = sum(disk.pmem_bytes for disk in spec.disks)
    size = f"{spec.memory_bytes >> 20}M"
    return (
        f"{size},maxmem={(spec.memory_bytes + pmem_bytes + _ALIGNED) >> 20}M"
        if pmem_bytes
        else size
    )


def qemu_argv(
    spec: MachineSpec, *, control_fd: int, console_fd: int, qmp_fd: int, incoming: bool = False
) -> tuple[str, ...]:
    """The whole command. The three descriptors are connected sockets that QEMU inherits.

    An `incoming` machine waits for the state of a snapshot instead of booting.
    """
    row = architectures.arch(spec.arch)
    threads = ",thread=multi" if spec.accelerator.name == "tcg" else ""
    argv = [
        *(row.qemu, "-name", "lab", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-no-reboot", "-action", "panic=none", "-sandbox", _SANDBOX, "-nic", "none"),
        *(
            "-machine",
            row.board,
            "-accel",
            f"{spec.accelerator.name}{threads}",
        ),
        *("-cpu", spec.accelerator.cpu, "-smp", str(spec.cpus)),
        *("-m", _memory(spec)),
        *("-kernel", str(spec.kernel), "-initrd", str(spec.initramfs)),
        *("-append", command_line(spec)),
        *("-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=control,fd={control_fd}", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=control,name=lab.control"),
        *("-device", "virtio-rng-pci", "-device", "pvpanic-pci"),
    ]
    for number, disk in enumerate(spec.disks):
        argv += _disk_argv(number, disk)
    if spec.gdb is not None:
        name = str(spec.gdb).replace(",", ",,")
        argv += ["-chardev", f"socket,id=gdb,path={name},server=on,wait=off"]
        argv += ["-gdb", "chardev:gdb", "-S"]
    if incoming:
        argv += ["-incoming", "defer"]
    return tuple(argv)
