"""A fresh machine by boot and by restore: the same kernel, disks and first command, in turns.

    python benchmarks/snapshot.py [ROUNDS] [ARCH]

Times from QEMU's start until the agent answers, and until a first command (`true`) has ended.
Prints medians, what a snapshot costs in time and on disk, and the ratio boot : restore. The aim:
at most 1 s from the start of a restore to the end of the first command. Exits with 1 if it is
missed, with 3 if a machine does not come up.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lab import accel, desk, image, initramfs, trial
from lab.config import Config
from lab.guest import Exited
from lab.machine import Timeouts
from lab.model import BuildFailure
from lab.rig import Rig
from lab.snapshot import Shelf
from lab.store import Cache, tree_bytes

AIM_S = 1.0


def quiet(_: object) -> None:
    """No progress: the result is what is printed."""


def make_rig(arch: str, cache: Cache) -> Rig:
    """The default base kernel, built unless it is there."""
    (kernel,) = desk.build_kernels(None, Config(arch=(arch,)), quiet)
    if isinstance(kernel, BuildFailure):
        sys.exit(3)
    ramfs = initramfs.initramfs(arch, cache=cache, emit=quiet)
    chosen = accel.choose(
        arch, kernel=kernel.image, initramfs=ramfs, cache=cache, emit=quiet, force=None
    )
    return Rig(
        kernel=kernel,
        initramfs=ramfs,
        image=image.root_image(arch, cache=cache, emit=quiet),
        accelerator=chosen,
        timeouts=Timeouts(boot_s=200, silence_s=200, wall_s=600),
        memory_bytes=1 << 30,
        cpus=2,
    )


async def once(
    rig: Rig, shelf: Shelf, folder: Path, *, restore: bool
) -> tuple[float, float, float]:
    """Seconds to the answer, to the end of the first command, and of saving (0: not saved)."""
    console = trial.Console()
    notes: list[str] = []
    began = time.monotonic()
    async with rig.machine(
        folder, shelf=shelf, restore=restore, note=notes.append, on_line=console.on_line
    ) as box:
        if box.guest is None or box.boot_s is None or box.restored is not restore:
            sys.stderr.write(f"the machine did not come up: {notes} {box.detail}\n")
            sys.exit(3)
        answer = await box.guest.run(["/bin/true"], timeout_s=60)
        first_s = time.monotonic() - began
        assert isinstance(answer, Exited) and answer.status == 0
        save_s = 0.0
        if not rig.restorable(shelf):
            began = time.monotonic()
            assert await rig.keep(box, shelf, folder) == ""
            save_s = time.monotonic() - began
    return box.boot_s, first_s, save_s


async def measure(rig: Rig, rounds: int) -> int:
    boots: list[tuple[float, float]] = []
    restores: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as name:
        shelf_cache = Cache(root=Path(name) / "cache")
        shelf = Shelf(shelf_cache)
        save_s = 0.0
        for number in range(rounds):
            hello_s, first_s, saving_s = await once(
                rig, shelf, Path(name) / f"boot-{number}", restore=False
            )
            boots.append((hello_s, first_s))
            save_s = save_s or saving_s
            hello_s, first_s, _ = await once(
                rig, shelf, Path(name) / f"restore-{number}", restore=True
            )
            restores.append((hello_s, first_s))
        size_bytes = tree_bytes(shelf_cache.sub("snapshots"))
    boot_s, boot_first_s = (statistics.median(column) for column in zip(*boots, strict=True))
    restore_s, first_s = (statistics.median(column) for column in zip(*restores, strict=True))
    worst_s = max(first for _, first in restores)
    print(f"accelerator          {rig.accelerator.name} {rig.accelerator.cpu}, {rig.kernel.arch}")
    print(f"boot                 {boot_s:6.2f} s, first command after {boot_first_s:6.2f} s")
    print(f"restore              {restore_s:6.2f} s, first command after {first_s:6.2f} s")
    print(f"                     (medians of {rounds}; the slowest restore {worst_s:.2f} s)")
    print(f"saving               {save_s:6.2f} s once, {size_bytes / (1 << 20):.0f} MiB on disk")
    print(f"boot : restore       {boot_first_s / first_s:6.1f} : 1")
    print(f"aim                  at most {AIM_S} s: {'met' if first_s <= AIM_S else 'missed'}")
    return 0 if first_s <= AIM_S else 1


def main(words: list[str]) -> int:
    rounds = int(words[0]) if words else 5
    arch = words[1] if len(words) > 1 else "x86_64"
    rig = make_rig(arch, Cache(root=Config().paths.cache_dir))
    return asyncio.run(measure(rig, rounds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
