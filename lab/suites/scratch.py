"""A file system to run on: its name and a blank disk of the guest go in, a fresh mount comes out.

Shared by the suites that make one for each case. What fails on the way is the case's result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState, UserError
from lab.suites.protocol import Commands, Needs, PlannedCase, Told

SERIAL = "scratch"
DISK = f"/dev/disk/by-lab/{SERIAL}"
PMEM = "/dev/pmem0"
LIMIT_S = 60.0  # of one command
_LOG_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """How one is made, mounted and checked."""

    symbol: str  # Kconfig
    kind: str = ""  # as the kernel calls it, if that is not its name here
    dax: bool = False  # on persistent memory, without a page cache
    mkfs: tuple[str, ...]  # before the device; empty: it needs none
    mount: tuple[str, ...]  # options of mount(8)
    package: str = ""  # that brings mkfs
    # Before the device: it changes nothing, and ends with 0 if all is well. Empty: there is none.
    check: tuple[str, ...] = ()


FILESYSTEMS: dict[str, Filesystem] = {
    "ext4": Filesystem(
        symbol="EXT4_FS",
        # Not lazy: a thread that writes inode tables for minutes would change the timing.
        mkfs=("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
        mount=("-t", "ext4"),
        package="e2fsprogs",
        check=("e2fsck", "-fn"),
    ),
    "xfs": Filesystem(
        symbol="XFS_FS",
        mkfs=("mkfs.xfs", "-q", "-f"),
        mount=("-t", "xfs"),
        package="xfsprogs",
        check=("xfs_repair", "-n"),
    ),
    "btrfs": Filesystem(
        symbol="BTRFS_FS",
        mkfs=("mkfs.btrfs", "-q", "-f"),
        mount=("-t", "btrfs"),
        package="btrfs-progs",
        check=("btrfs", "check", "--readonly"),
    ),
    "tmpfs": Filesystem(symbol="TMPFS", mkfs=(), mount=("-t", "tmpfs", "-o", "size=64m")),
}

# Of the suites that ask for them: they need another kind of device.
DAX: dict[str, Filesystem] = {
    "ext4-dax": Filesystem(
        symbol="EXT4_FS",
        kind="ext4",
        dax=True,
        # Blocks as large as pages: what is mapped is the block itself.
        mkfs=("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0"),
        mount=("-t", "ext4", "-o", "dax=always"),
        package="e2fsprogs",
        check=("e2fsck", "-fn"),
    ),
    "xfs-dax": Filesystem(
        symbol="XFS_FS",
        kind="xfs",
        dax=True,
        # Extents that files share can be mapped by DAX only since lately, and with rmapbt.
        mkfs=("mkfs.xfs", "-q", "-f", "-m", "reflink=0"),
        mount=("-t", "xfs", "-o", "dax=always"),
        package="xfsprogs",
        check=("xfs_repair", "-n"),
    ),
}
DAX_SYMBOLS = ("FS_DAX", "BLK_DEV_PMEM", "VIRTIO_PMEM")


def row(name: str) -> Filesystem:
    """The file system of that name."""
    return FILESYSTEMS[name] if name in FILESYSTEMS else DAX[name]


def symbols_of(name: str) -> tuple[str, ...]:
    """Kconfig that a case on it needs."""
    one = row(name)
    return (one.symbol, *(DAX_SYMBOLS if one.dax else ()))


def needs(names: Sequence[str] | None, symbols: Sequence[str], packages: Sequence[str]) -> Needs:
    """What a suite needs that runs on those file systems; None: on any of them."""
    rows = [row(name) for name in names or ()]
    return Needs(
        symbols=(*symbols, *(symbol for name in names or () for symbol in symbols_of(name))),
        disks=(SERIAL,) if names is None or any(one.mkfs for one in rows) else (),
        root_image=True,
        packages=(*packages, *(one.package for one in rows if one.package)),
    )


def check_names(suite: str, what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    """Raises `UserError` for a name that the suite does not know."""
    for name in asked:
        if name not in known:
            raise UserError(f"{suite} has no {what} {name!r}", hint=f"known: {', '.join(known)}")


def mount_words(name: str, disk: str, mount_point: str) -> tuple[str, ...]:
    one = row(name)
    return ("mount", *one.mount, _device(one, disk) if one.mkfs else name, mount_point)


def _device(one: Filesystem, disk: str) -> str:
    return PMEM if one.dax else disk


async def set_up(
    guest: Commands, case: PlannedCase, disk: str, mount_point: str
) -> CaseResult | Down | None:
    """Make and mount the case's file system. None: it is there; else the result of the case."""
    one = row(case.filesystem)
    commands = (
        # These two tell whether it can run at all.
        ("mountpoint", "-q", mount_point),
        ("grep", "-qw", one.kind or case.filesystem, "/proc/filesystems"),
        ("mkdir", "-p", mount_point),
        *(((*one.mkfs, _device(one, disk)),) if one.mkfs else ()),
        mount_words(case.filesystem, disk, mount_point),
        # A file system that cannot have it may go on without, and say so in the log only.
        *((("grep", "-q", f" {mount_point} .*dax=always", "/proc/mounts"),) if one.dax else ()),
    )
    for argv in commands:
        answer = await guest.run(argv, timeout_s=LIMIT_S)
        if isinstance(answer, Down):
            return answer
        failed = _failed(case, one, argv, answer)
        if failed is not None:
            return failed
    return None


def _failed(
    case: PlannedCase, one: Filesystem, argv: Sequence[str], answer: Exited | TimedOut
) -> CaseResult | None:
    """The case's result if this command of its setting up spoils it."""
    if argv[0] == "mountpoint" and isinstance(answer, Exited):
        if answer.status != 0:
            return None
        # Whatever the reason, this case is not to blame, and nothing would be learnt from it.
        message = "an earlier case left its file system mounted"
        return CaseResult(name=case.name, state=CaseState.MISSING, message=message)
    wrong = complaint(argv, answer)
    if not wrong:
        return None
    if isinstance(answer, TimedOut):
        message = f"setting up: {wrong}"
        return CaseResult(name=case.name, state=CaseState.TIMEOUT, message=message)
    if argv[-1] == "/proc/mounts":
        wrong = "it is mounted without DAX"
    if argv[-1] == "/proc/filesystems" and answer.status == 1:
        message = f"this kernel has no {one.kind or case.filesystem} (CONFIG_{one.symbol})"
        return CaseResult(name=case.name, state=CaseState.SKIPPED, message=message)
    return CaseResult(name=case.name, state=CaseState.FAILED, message=f"setting up: {wrong}")


def complaint(argv: Sequence[str], answer: Exited | TimedOut) -> str:
    """What is wrong with the end of a command; "" if it ended well."""
    command = " ".join(argv)
    if isinstance(answer, TimedOut):
        return f"{command} did not end in its time"
    if answer.status == 0:
        return ""
    return f"{command} ended with status {answer.status}: {last_line(answer)}"


def last_line(answer: Exited | TimedOut) -> str:
    lines = (answer.stderr or answer.stdout).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "(it said nothing)"


async def unmount(guest: Commands, mount_point: str) -> str | Down:
    """What is wrong; "": it is unmounted. A mapping that keeps it busy is a leak."""
    gone = await guest.run(("umount", mount_point), timeout_s=LIMIT_S)
    match gone:
        case Down():
            return gone
        case TimedOut():
            return "umount does not return"
        case Exited():
            return "" if gone.status == 0 else f"umount: {last_line(gone)}"


def spoiled(result: CaseResult, wrong: str) -> CaseResult:
    """The result, no longer a pass if anything is wrong besides."""
    if not wrong:
        return result
    return CaseResult(
        name=result.name,
        state=CaseState.FAILED if result.state is CaseState.PASSED else result.state,
        message="; ".join(part for part in (result.message, wrong) if part),
        metrics=result.metrics,
    )


async def judged(
    guest: Commands,
    case: PlannedCase,
    argv: Sequence[str],
    *,
    disk: str,
    mount_point: str,
    timeout_s: float,
    judge: Callable[[str, Exited | TimedOut], CaseResult],
) -> Told | CaseResult | Down:
    """Run a program on a fresh file system of the case's kind, unmount it, and `judge` how it
    ended; of anything but a pass, what the program said is kept."""
    began = time.monotonic()
    failed = await set_up(guest, case, disk, mount_point)
    if failed is not None:
        return failed
    answer = await guest.run(argv, timeout_s=timeout_s)
    if isinstance(answer, Down):
        return answer
    gone = await unmount(guest, mount_point)
    if isinstance(gone, Down):
        return gone
    result = spoiled(judge(case.name, answer), gone)
    said = (answer.stdout + b"\n" + answer.stderr)[-_LOG_BYTES:].strip()
    keep = result.state is not CaseState.PASSED and said
    return Told(
        result=replace(result, duration_s=time.monotonic() - began),
        files={"output.log": said} if keep else {},
    )
