"""One row per architecture that the lab can build for and boot. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.model import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """All that differs between architectures. Adding one is a row here, a fragment, a recipe."""

    name: str  # the lab's and the user's name
    kernel: str  # make ARCH=
    machine: str  # uname -m
    debian: str  # Debian's name
    cross: str  # prefix of the cross tools; unused on a host of the same machine
    make_target: str
    image: str  # path below the object folder
    qemu: str  # binary
    qemu_package: str  # Debian package that brings it
    board: str  # -machine
    tcg_cpu: str
    console: str  # console= on the kernel's command line
    cmdline: str  # extra
    tcg_cmdline: str = ""  # extra under TCG
    counter_flags: tuple[str, ...] = ()  # of the compiler, for atomic counters of executed lines

    @property
    def emulator(self) -> str:
        """What runs its programs on a host of another architecture."""
        return f"qemu-{self.machine}-static"

    @property
    def static_libc(self) -> Path:
        """The C library that cross-compiled guest programs are linked with, where Debian has it."""
        return Path("/usr") / self.cross.rstrip("-") / "lib" / "libc.a"

    @property
    def packages(self) -> dict[str, str]:
        """Tool or file of this architecture -> the Debian package that brings it."""
        prefix = self.cross.replace("_", "-")
        return {
            self.qemu: self.qemu_package,
            self.emulator: "qemu-user-static",
            f"{self.cross}gcc": f"gcc-{prefix.rstrip('-')}",
            f"{self.cross}gcov": f"gcc-{prefix.rstrip('-')}",
            f"{self.cross}ld": f"binutils-{prefix.rstrip('-')}",
            str(self.static_libc): f"libc6-dev-{self.debian}-cross",
        }


ARCHS: dict[str, Arch] = {
    "x86_64": Arch(
        name="x86_64",
        kernel="x86_64",
        machine="x86_64",
        debian="amd64",
        cross="x86_64-linux-gnu-",
        make_target="bzImage",
        image="arch/x86/boot/bzImage",
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        # Without devices that no test uses, and whose probing costs a guest time; an HPET that
        # comes late under load complains on the console.
        board="q35,sata=off,smbus=off,i8042=off,vmport=off,smm=off,hpet=off",
        # Not "max": it offers features (LA57, AVX-512) that only cost time under emulation.
        tcg_cpu="Nehalem",
        console="ttyS0",
        # An NMI comes from the lab alone, and only when nothing else makes a hung kernel talk.
        cmdline="earlyprintk=serial,ttyS0,115200 no_timer_check unknown_nmi_panic",
        # Emulated, it follows the host's clock on all CPUs. On a loaded host the watchdog takes
        # a late tick for a bad TSC, and then each look at the clock is an access to a device.
        tcg_cmdline="tsc=reliable",
    ),
    "arm64": Arch(
        name="arm64",
        kernel="arm64",
        machine="aarch64",
        debian="arm64",
        cross="aarch64-linux-gnu-",
        make_target="Image",
        image="arch/arm64/boot/Image",
        qemu="qemu-system-aarch64",
        qemu_package="qemu-system-arm",
        board="virt",
        tcg_cpu="cortex-a57",
        console="ttyAMA0",
        cmdline="earlycon",
        counter_flags=("-mno-outline-atomics",),  # the kernel has no such functions
    ),
}


def arch(name: str) -> Arch:
    """The row of that name; aliases amd64 and aarch64 are understood. Raises `UserError`."""
    for row in ARCHS.values():
        if name in (row.name, row.machine, row.debian):
            return row
    raise UserError(f"unknown architecture {name!r}", hint=f"known: {', '.join(ARCHS)}")
