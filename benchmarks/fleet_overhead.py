"""What sending a cell to another process costs: 1,000 cells that do nothing, over a real scheduler.

    python benchmarks/fleet_overhead.py [CELLS]

All is as in a run - the pool's queue, jobs with artefacts by digest, Dask's scheduler and two
workers, packed trials that are checked, unpacked and put in place - but the cell itself, which
writes a record and a console of 20 kB. Ends with 1 if one costs more than 5 ms.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lab import model
from lab.accel import Accelerator
from lab.config import Fleet, Machine
from lab.fleet import capability
from lab.fleet.crew import joined
from lab.fleet.job import Job, Proof
from lab.fleet.worker import Post, serve
from lab.machine import Timeouts
from lab.model import (
    CaseResult,
    CaseState,
    Cell,
    Emit,
    Event,
    Kernel,
    MachineEnd,
    RootImage,
    Side,
    Trial,
)
from lab.pool import Pool, Split
from lab.store import Cache
from lab.suites.protocol import PlannedCase
from lab.suites.registry import SUITES
from lab.trial import RECORD, Kit

LIMIT_S = 0.005
WORKERS = 2
CASE = "boot/hello"
MACHINE = Machine(cpus=1, memory="64M")
TCG = Accelerator(name="tcg", cpu="max", boot_s=1.0)
CONSOLE = b"[    0.1] a line of a console, as they are\n" * 500


class Ready(Post):
    """A worker that has nothing to prove."""

    async def prove(self, proof: Proof, force: str | None) -> Accelerator:
        return TCG


def quiet(event: Event) -> None:
    """Nobody looks at it."""


async def nothing(job: Job, accelerator: Accelerator, folder: Path, emit: Emit) -> Trial:
    """A cell that does nothing, and its record."""
    folder.mkdir()
    trial = Trial(
        id=folder.name,
        cell=job.cell,
        end=MachineEnd.POWERED_OFF,
        accelerator=accelerator,
        started="2026-01-01T00:00:00+00:00",
        boot_s=0.0,
        guest_s=0.0,
        wall_s=0.0,
        results=(CaseResult(name=CASE, state=CaseState.PASSED),),
    )
    (folder / RECORD).write_bytes(model.encode(trial))
    (folder / "console.log").write_bytes(CONSOLE)
    return trial


def work(address: str, name: str, cache: Path) -> None:
    post = Ready(Cache(root=cache), label=name, emit=quiet, execute=nothing)
    offers = capability.offers(archs=("x86_64",), cores=1, memory_bytes=4 << 30)
    asyncio.run(serve(address, post, {**offers, "tcg-max:x86_64": capability.PLENTY}))


def kit(folder: Path) -> Kit:
    file = folder / "file"
    file.write_bytes(b"\0" * 4096)
    kernel = Kernel(
        key="k",
        arch="x86_64",
        side=Side.BASE,
        release="6.1.0-lab",
        folder=folder,
        image=file,
        vmlinux=file,
        config=file,
        image_sha256="1" * 64,
        compiler="gcc",
        build_s=1.0,
        make_ran=True,
        seeded_from=None,
        compiled=1,
        sandbox="bwrap",
    )
    image = RootImage(
        name="default",
        arch="x86_64",
        path=file,
        sha256="2" * 64,
        size_bytes=4096,
        packages=1,
        recipe_sha256="3" * 64,
    )
    return Kit(
        kernel=kernel,
        initramfs=file,
        image=image,
        accelerator=TCG,
        timeouts=Timeouts(boot_s=1, silence_s=1, wall_s=1),
        suites=(SUITES["boot"],),
        cases={CASE: PlannedCase(name=CASE, timeout_s=1.0)},
        scratch_bytes=1 << 20,
    )


def cells(count: int) -> tuple[Cell, ...]:
    first = Cell(
        arch="x86_64",
        side=Side.BASE,
        profile="lockdep",
        suites=("boot",),
        cases=(CASE,),
        kernel_key="k",
        image_sha256="2" * 64,
        repeat=0,
        seed=1,
        memory_bytes=MACHINE.memory_bytes,
        cpus=1,
    )
    return tuple(replace(first, repeat=number) for number in range(count))


def processor_s(pids: list[int]) -> list[float]:
    """What each process has used so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    told = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return [(int(words[11]) + int(words[12])) / ticks for words in told]


async def measure(
    address: str, root: Path, count: int, pids: list[int]
) -> tuple[float, list[float]]:
    """Seconds that `count` cells took, from the first that was sent to the last in its place; and
    what each process used meanwhile."""
    fleet = Fleet(scheduler=address)
    async with joined(fleet, Cache(root=root / "cache"), quiet) as crew:
        while len(await crew.look()) < WORKERS:
            await asyncio.sleep(0.1)
        machines = await crew.capacity("x86_64", MACHINE, TCG)
        made = kit(root)
        pool = Pool(
            arch="x86_64",
            kits={Side.BASE: made, Side.PATCHED: made},
            folder=root / "run",
            split=Split(machines=machines, costs={CASE: 1.0}),
            trials=[],
            emit=quiet,
            execute=crew.execute,
            far=True,
        )
        await pool.run(cells(20))  # connections, imports, artefacts: once for each run
        pool.trials.clear()
        began, before = time.monotonic(), processor_s(pids)
        await pool.run(cells(count + 20)[20:])
        taken_s, after = time.monotonic() - began, processor_s(pids)
    whole = {path.parent.name for path in (root / "run" / "trials").glob("*/trial.json")}
    assert len(pool.trials) == count and len(whole) == count + 20, "cells were lost"
    return taken_s, [late - early for early, late in zip(before, after, strict=True)]


def await_listener(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main() -> int:
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        return 0
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    port = 20000 + os.getpid() % 20000
    address = f"tcp://127.0.0.1:{port}"
    dask = Path(sys.executable).with_name("dask")
    options = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as name:
        root = Path(name)

        def start(*argv: str | Path) -> None:
            started.append(subprocess.Popen(argv, stderr=subprocess.DEVNULL))

        try:
            start(dask, "scheduler", *options)
            await_listener(port)
            for number in range(WORKERS):
                words = ("work", address, f"w{number}", str(root / f"worker-{number}"))
                start(sys.executable, __file__, *words)
            pids = [os.getpid(), *(process.pid for process in started)]
            taken_s, used = asyncio.run(measure(address, root, count, pids))
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()
    each = ", ".join(f"{used_s / count * 1e3:.2f}" for used_s in used)
    load = os.getloadavg()[0]
    print(f"{count} cells, {WORKERS} workers: {taken_s / count * 1e3:.2f} ms each")
    print(f"processor time of sender, scheduler and workers: {each} ms")
    print(f"load of this host: {load:.1f} on {os.cpu_count()} cores")
    return int(taken_s / count > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
