"""Healthy boots of the lab's own kernels: the splat detector must stay silent on every one.

    python benchmarks/clean_boots.py [--count 50] [--arch x86_64,arm64] [--keep DIR]

Boots the kernels of the default profile in turns, no two boots alike: processors, memory and
kernel options vary (the loudest consoles, slab and page debugging, threaded interrupts, ...), and
each guest makes, mounts and writes a file system. The consoles are kept in DIR. Exits with 1 if a
splat is found or the taint is missed, 3 if a guest does not boot or its kernel is tainted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

from lab import config, desk
from lab.guest import Exited
from lab.model import Event, EventKind, ExitCode, MachineEnd
from lab.rig import Rig
from lab.splat.reading import read_files

WORK = r"""
set -e
fs=$1
mkdir -p /tmp/w /tmp/m
mount -t tmpfs none /tmp/w
truncate -s 600M /tmp/w/disk
case $fs in
    ext4) mkfs.ext4 -q /tmp/w/disk ;;
    xfs) mkfs.xfs -q /tmp/w/disk ;;
    btrfs) mkfs.btrfs -q /tmp/w/disk > /dev/null 2>&1 ;;
esac
mount -o loop /tmp/w/disk /tmp/m
cp -r /etc /tmp/m
sync
echo 3 > /proc/sys/vm/drop_caches
find /tmp/m -type f -exec cat {} + > /dev/null
umount /tmp/m
cat /proc/sys/kernel/tainted
"""
OPTIONS = (
    "",
    "ignore_loglevel",
    "ignore_loglevel initcall_debug",
    "debug dyndbg=+p",
    "slub_debug=FZPU",
    "threadirqs",
    "transparent_hugepage=always",
    "maxcpus=1",
    "mitigations=off",
    "ignore_loglevel lockdep.verbose=1 memtest=1",
    "nohz=off highres=off",
    "cgroup_disable=memory",
    "workqueue.power_efficient=1 rcupdate.rcu_expedited=1",
    "printk.time=0",
    "rootwait no_console_suspend audit=1",
    "page_poison=1 init_on_alloc=1 init_on_free=1",
    "loglevel=3",
)
CPUS = (2, 1, 4, 2, 3)
MEMORY_MIB = (1024, 1536, 2048)
FILE_SYSTEMS = ("ext4", "xfs", "btrfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """One boot, and what is to run in it."""

    append: str
    cpus: int
    memory_bytes: int
    command: tuple[str, ...]
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    console: Path
    end: MachineEnd
    boot_s: float | None  # None: it did not boot
    status: int | None  # of the command; None: the machine was lost
    output: str


def prepare(arch: str, *, patch: str | None = None) -> Rig:
    """The kernel (built if need be), the image and the accelerator of an architecture."""
    chosen = config.Config(arch=(arch,))
    request = desk.BootRequest(
        patch=patch, config=chosen, command=("true",), shell=False, append="", timeout_s=600.0
    )
    return desk.prepare(request, _say)


def _say(event: Event) -> None:
    if event.kind in (EventKind.DONE, EventKind.WARNING):
        sys.stderr.write(f"  {event.step}: {event.text}\n")


def boot(rig: Rig, what: Boot, folder: Path) -> Booted:
    """Boot once on fresh disks; the console is in `folder`, whatever happens."""
    wanted = replace(
        rig, cpus=what.cpus, memory_bytes=what.memory_bytes, append=f"{rig.append} {what.append}"
    )
    return asyncio.run(_boot(wanted, what, folder))


async def _boot(rig: Rig, what: Boot, folder: Path) -> Booted:
    status, output = None, ""
    async with rig.machine(folder, shelf=None, restore=False, note=print) as box:
        if box.guest is not None:
            answer = await box.guest.run(list(what.command), timeout_s=what.timeout_s)
            if isinstance(answer, Exited):
                status, output = answer.status, (answer.stdout + answer.stderr).decode()
    return Booted(
        console=folder / "console.log",
        end=box.end,
        boot_s=box.boot_s,
        status=status,
        output=output,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--arch", default="x86_64,arm64")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    archs = options.arch.split(",")
    alarms, broken, lines, began = 0, 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clean-boots-") as scratch:
        kits = {}
        for name in archs:
            kits[name] = prepare(name)
        for number, append, cpus, mebibytes, fs in zip(
            range(options.count),
            *map(cycle, (OPTIONS, CPUS, MEMORY_MIB, FILE_SYSTEMS)),
            strict=False,
        ):
            arch = archs[number % len(archs)]
            what = Boot(
                append=append,
                cpus=cpus,
                memory_bytes=mebibytes << 20,
                command=("/bin/sh", "-c", WORK, "sh", fs),
            )
            done = boot(kits[arch], what, Path(scratch) / f"{number:03}")
            (log,) = read_files([done.console])
            count = done.console.read_bytes().count(b"\n")
            lines += count
            healthy = done.status == 0 and done.output.strip() == "0"
            # A kernel that says of itself that something went wrong was no clean boot: on a host
            # that starves its guests, a soft lockup is a true report.
            alarms += len(log.splats) if healthy else 0
            broken += not healthy
            print(
                f"{number + 1:3} {arch:7} {cpus} cpus {mebibytes} MiB {fs:5} {count:6} lines, "
                f"{len(log.splats)} alarms, "
                f"{'healthy' if healthy else f'NOT HEALTHY: {done.end} {done.output!r}'}"
                f"  {append}",
                flush=True,
            )
            for splat in log.splats:
                print(f"    line {splat.first_line}: {splat.kind}: {splat.title}")
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                done.console.rename(options.keep / f"{number:03}-{arch}.log")
    print(
        f"{options.count} boots of {', '.join(archs)}, {lines} lines: {alarms} alarms, "
        f"{broken} not healthy, {time.monotonic() - began:.0f} s"
    )
    if alarms:
        return ExitCode.REGRESSED
    return ExitCode.LAB_FAULT if broken else ExitCode.CLEAN


if __name__ == "__main__":
    sys.exit(main())
