"""A specification goes in; the argv of a QEMU, or a running machine and how it ended, come out."""

from lab.machine.argv import (
    PMEM_DEVICE,
    Disk,
    MachineSpec,
    Timeouts,
    command_line,
    qemu_argv,
)
from lab.machine.running import Machine, boot
from lab.machine.state import StateError

__all__ = [
    "PMEM_DEVICE",
    "Disk",
    "Machine",
    "MachineSpec",
    "StateError",
    "Timeouts",
    "boot",
    "command_line",
    "qemu_argv",
]
