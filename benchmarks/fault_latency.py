"""What a series does to page faults and to those beside them: base against patched, in one run.

    python benchmarks/fault_latency.py [SERIES] [--profile plain] [--rounds 5] [--seconds 4]
                                       [--only PATTERN] [--json FILE]

Boots both kernels, and lets them do the same things in turn, a few seconds each and one at a time:
mmap() and munmap() of one thread while two others fault on a file of a slow disk (QEMU serves 40
requests a second); faults a second on a tmpfs and on a cached ext4 and xfs, with one thread and
with four; the same while another thread changes the address space without a rest. Of each the
median over the rounds, the lowest and the highest, and the ratio of the medians, patched to base.
What the host does meanwhile meets both alike, but it is not subtracted: read the ranges.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from lab import config, desk
from lab.guest import Exited, Guest
from lab.model import Event, EventKind, LabFault, Side
from lab.rig import Rig

ROOT = Path(__file__).parent.parent
PROGRAM = "/lab/bin/faultbench"
QUICK_SERIALS = ("ext4", "xfs")
SLOW_SERIAL = "slow"
IOPS = 40
SET_UP = r"""
set -e
mkdir -p /b/tmpfs /b/ext4 /b/xfs /b/slow-ext4 /b/slow-xfs
mount -t tmpfs none /b/tmpfs
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/disk/by-lab/ext4
mount /dev/disk/by-lab/ext4 /b/ext4
mkfs.xfs -q -f /dev/disk/by-lab/xfs
mount /dev/disk/by-lab/xfs /b/xfs
"""
# Only when it is due: with its few requests a second a mkfs takes its time.
SLOW = r"""
set -e
slow=/dev/disk/by-lab/slow
case $1 in
    ext4) mkfs.ext4 -q -F -O ^has_journal "$slow" && tune2fs -j -J size=4 "$slow" >/dev/null ;;
    xfs) mkfs.xfs -q -f "$slow" ;;
esac
mount "$slow" /b/slow-$1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One thing that both kernels do, and what is taken of it."""

    name: str
    argv: tuple[str, ...]  # SECONDS stands for how long
    take: tuple[str, ...]  # of the program's answer; "faults" becomes faults a second
    before: str = ""  # shell, once


CALLS = ("mmap_p50_us", "mmap_p99_us", "mmap_max_us", "munmap_p99_us", "munmap_max_us", "faults")


def measures() -> tuple[Measure, ...]:
    """All of them, the slow disk last: its file systems follow each other on it."""
    rates = tuple(
        Measure(
            name=f"rate/{place}/{kind}/{threads}",
            argv=(PROGRAM, "rate", kind, f"/b/{place}", "SECONDS", str(threads)),
            take=("faults",),
        )
        for place in ("tmpfs", "ext4", "xfs")
        for kind in ("read", "cow", "write")
        for threads in (1, 4)
    )
    remaps = tuple(
        Measure(
            name=f"remap/{place}/{kind}/2",
            argv=(PROGRAM, "remap", kind, f"/b/{place}", "SECONDS", "2"),
            take=("faults", "maps"),
        )
        for place in ("ext4", "xfs")
        for kind in ("beside", "over")
    )
    slow = tuple(
        Measure(
            name=f"latency/{place}/{kind}",
            argv=(PROGRAM, "latency", kind, f"/b/slow-{place}", "SECONDS"),
            take=CALLS,
            before=place,
        )
        for place in ("ext4", "xfs")
        for kind in ("read", "write")
    )
    return (*rates, *remaps, *slow)


def say(event: Event) -> None:
    if event.kind in (EventKind.DONE, EventKind.WARNING):
        sys.stderr.write(f"  {event.step}: {event.text}\n")


def rigs(series: str, options: config.Config) -> dict[Side, Rig]:
    """Machines of both kernels, with quick disks and a slow one."""
    found = {}
    for side, patch in ((Side.BASE, None), (Side.PATCHED, series)):
        request = desk.BootRequest(
            patch=patch,
            config=options,
            command=("true",),
            shell=False,
            append="",
            timeout_s=86400.0,
        )
        rig = desk.prepare(request, say)
        found[side] = replace(
            rig,
            blank=dict.fromkeys((*QUICK_SERIALS, SLOW_SERIAL), 512 << 20),
            iops={SLOW_SERIAL: IOPS},
        )
    return found


async def shell(guest: Guest, script: str, *words: str) -> None:
    """Raises `LabFault` if it fails: then nothing can be measured."""
    answer = await guest.run(["/bin/sh", "-c", script, "sh", *words], timeout_s=900.0)
    if not isinstance(answer, Exited) or answer.status:
        raise LabFault(f"setting up: {answer}")


async def once(guest: Guest, measure: Measure, seconds: float) -> dict[str, float]:
    argv = [str(seconds) if word == "SECONDS" else word for word in measure.argv]
    answer = await guest.run(argv, timeout_s=seconds * 10 + 900.0)
    if not isinstance(answer, Exited) or answer.status:
        raise LabFault(f"{measure.name}: {answer}")
    found = json.loads(answer.stdout)
    took_s = found["seconds"]
    per_second = ("faults", "maps")
    return {name: found[name] / (took_s if name in per_second else 1) for name in measure.take}


Runs = dict[str, dict[Side, list[dict[str, float]]]]


async def measure_all(
    machines: dict[Side, Rig], wanted: Sequence[Measure], rounds: int, seconds: float, into: Path
) -> Runs:
    """The rounds of every measure on each side, alternating."""
    runs: Runs = {}
    guests: dict[Side, Guest] = {}
    async with contextlib.AsyncExitStack() as stack:
        for side, rig in machines.items():
            box = await stack.enter_async_context(
                rig.machine(into / side, shelf=None, restore=False, note=print)
            )
            if box.guest is None:
                raise LabFault(f"the {side} kernel does not boot: {box.end} {box.detail}")
            guests[side] = box.guest
            await shell(box.guest, SET_UP)
        there = ""
        for measure in wanted:
            if measure.before and measure.before != there:
                for guest in guests.values():
                    await shell(guest, "mountpoint -q $1 && umount $1 || :", f"/b/slow-{there}")
                    await shell(guest, SLOW, measure.before)
                there = measure.before
            runs[measure.name] = {side: [] for side in guests}
            for number in range(rounds):
                order = list(guests) if number % 2 == 0 else list(guests)[::-1]
                for side in order:
                    found = await once(guests[side], measure, seconds)
                    runs[measure.name][side].append(found)
            tell(measure, runs[measure.name])
        for side, guest in guests.items():
            answer = await guest.run(["cat", "/proc/vmstat"], timeout_s=60.0)
            assert isinstance(answer, Exited)
            for line in answer.stdout.decode().splitlines():
                if line.startswith("unlocked_fault"):
                    print(f"{side}: {line}")
    return runs


def tell(measure: Measure, runs: dict[Side, list[dict[str, float]]]) -> None:
    for name in measure.take:
        base, patched = ([run[name] for run in runs[side]] for side in (Side.BASE, Side.PATCHED))
        medians = statistics.median(base), statistics.median(patched)
        ratio = f"{medians[1] / medians[0]:.3f}" if medians[0] else "-"
        spans = [f"{min(one):.0f}-{max(one):.0f}" for one in (base, patched)]
        unit = "/s" if name in ("faults", "maps") else ""
        print(
            f"{measure.name:22} {name + unit:14} base {medians[0]:11.1f} ({spans[0]})  "
            f"patched {medians[1]:11.1f} ({spans[1]})  ratio {ratio}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("series", nargs="?", default=str(ROOT / "patches" / "srcu-vma"))
    parser.add_argument("--arch", default="x86_64")
    parser.add_argument("--profile", default="plain")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="*", help="pattern of names: 'rate/ext4/*'")
    parser.add_argument("--json", type=Path, help="keep every run there")
    asked = parser.parse_args()
    wanted = [one for one in measures() if fnmatch(one.name, asked.only)]
    options = config.Config(arch=(asked.arch,), profile=asked.profile)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fault-latency-") as scratch:
        machines = rigs(asked.series, options)
        runs = asyncio.run(
            measure_all(machines, wanted, asked.rounds, asked.seconds, Path(scratch))
        )
    if asked.json:
        asked.json.write_text(json.dumps(runs))
    print(
        f"{asked.rounds} rounds of {asked.seconds:.0f} s, {time.monotonic() - began:.0f} s in all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
