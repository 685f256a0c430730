"""How well a run fills a fleet: 10,000 cells over 200 workers, in simulated time.

    python benchmarks/fleet_makespan.py [--cells N] [--workers N] [--seed N] [--runs DIR]

The lab's own pool gives the cells out, with its queue, its order and its cells sent ahead; only
the clock and the machines are simulated. A case takes as long as one of its trials once did
(benchmarks/data/durations.json, or all runs in DIR), and the pool knows the means only. A cell
that was sent ahead waits for the worker with the fewest cells and is not taken from it again,
which Dask would do: the figures are on the safe side. Ends with 1 if the longest-first order takes
more than 1.05 times the lower bound, which is the greater of work / workers and the longest cell.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import selectors
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lab import pool
from lab.machine import Timeouts
from lab.model import (
    Accelerator,
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
from lab.trial import Kit

RECORDED = Path(__file__).with_name("data") / "durations.json"
LIMIT = 1.05
MOST_CASES = 12
TCG = Accelerator(name="tcg", cpu="max", boot_s=6.0)


class Clock(selectors.DefaultSelector):
    """Nobody waits: whenever all sleep, it is the next one's time."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self.now_s += timeout
        return ready


class Simulated(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    boot_s: Sequence[float]
    cases: Mapping[str, Sequence[float]]


class Workers:
    """Each runs one cell after the other."""

    def __init__(self, count: int, taken_s: Mapping[int, float]) -> None:
        self._taken_s = taken_s  # by the number of the cell
        self._locks = [asyncio.Lock() for _ in range(count)]
        self._cells = [0] * count

    async def __call__(self, cell: Cell, kit: Kit, folder: Path, emit: Emit) -> Trial:
        number = min(range(len(self._cells)), key=self._cells.__getitem__)
        self._cells[number] += 1
        async with self._locks[number]:
            await asyncio.sleep(self._taken_s[cell.seed])
        self._cells[number] -= 1
        return Trial(
            id=folder.name,
            cell=cell,
            end=MachineEnd.POWERED_OFF,
            accelerator=TCG,
            started="",
            boot_s=TCG.boot_s,
            guest_s=0.0,
            wall_s=0.0,
            results=tuple(CaseResult(name=name, state=CaseState.PASSED) for name in cell.cases),
        )


def quiet(event: Event) -> None:
    """Nobody looks at it."""


def recorded(runs: Path | None) -> Recorded:
    if runs is not None:
        means = pool.durations(runs, arch="x86_64", accelerator="tcg")
        return Recorded(boot_s=(TCG.boot_s,), cases={name: (s,) for name, s in means.items()})
    told = json.loads(RECORDED.read_text())
    return Recorded(boot_s=told["boot_s"], cases=told["cases"])


def cells(count: int, known: Recorded, dice: random.Random) -> tuple[Cell, ...]:
    """Pairs of base and patched, each of some cases. `seed` numbers them."""
    made: list[Cell] = []
    names = sorted(known.cases)
    while len(made) < count:
        cases = tuple(dice.sample(names, dice.randint(1, min(MOST_CASES, len(names)))))
        first = Cell(
            arch="x86_64",
            side=Side.BASE,
            profile="lockdep",
            suites=(),
            cases=cases,
            kernel_key="base",
            image_sha256="",
            repeat=len(made) // 2,
            seed=len(made),
            memory_bytes=1 << 30,
            cpus=2,
        )
        made += [first, replace(first, side=Side.PATCHED, kernel_key="p", seed=len(made) + 1)]
    return tuple(made[:count])


def kit(side: Side) -> Kit:
    nowhere = Path("/nowhere")
    kernel = Kernel(
        key=side,
        arch="x86_64",
        side=side,
        release="",
        folder=nowhere,
        image=nowhere,
        vmlinux=nowhere,
        config=nowhere,
        image_sha256="",
        compiler="",
        build_s=0.0,
        make_ran=False,
        seeded_from=None,
        compiled=0,
        sandbox="",
    )
    image = RootImage(
        name="", arch="x86_64", path=nowhere, sha256="", size_bytes=0, packages=0, recipe_sha256=""
    )
    return Kit(
        kernel=kernel,
        initramfs=nowhere,
        image=image,
        accelerator=TCG,
        timeouts=Timeouts(boot_s=1, silence_s=1, wall_s=1),
        suites=(),
        cases={},
        scratch_bytes=0,
    )


def makespan_s(
    todo: Sequence[Cell],
    taken_s: Mapping[int, float],
    costs: dict[str, float],
    workers: int,
    *,
    far: bool,
) -> float:
    """Simulated seconds from the first cell to the end of the last."""
    loop = Simulated()
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as folder:
        machines = Pool(
            arch="x86_64",
            kits={side: kit(side) for side in Side},
            folder=Path(folder),
            split=Split(machines=workers, costs=costs),
            trials=[],
            emit=quiet,
            execute=Workers(workers, taken_s),
            far=far,
        )
        loop.run_until_complete(machines.run(todo))
        loop.close()
    assert len(machines.trials) == len(todo), "cells were lost or doubled"
    return loop.time()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, help="take durations from these runs")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    known = recorded(options.runs)
    todo = cells(options.cells, known, dice)
    taken_s = {
        cell.seed: dice.choice(known.boot_s) + sum(dice.choice(known.cases[n]) for n in cell.cases)
        for cell in todo
    }
    costs = {name: fmean(seconds) for name, seconds in known.cases.items()}
    bound_s = max(sum(taken_s.values()) / options.workers, *taken_s.values())
    print(
        f"{len(todo)} cells of {min(taken_s.values()):.0f} to {max(taken_s.values()):.0f} s, "
        f"{options.workers} workers; lower bound {bound_s:.0f} s"
    )
    ratios = []
    for far, what in ((True, "longest first, sent ahead"), (False, "in the order of the plan")):
        took_s = makespan_s(todo, taken_s, costs, options.workers, far=far)
        ratios.append(took_s / bound_s)
        print(f"{what}: {took_s:.0f} s, {ratios[-1]:.3f} times the bound")
    return int(ratios[0] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
