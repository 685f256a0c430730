"""A series alone, for long: the page-fault stress on each file system, all scenarios.

    python benchmarks/soak.py [SERIES] [--profile kasan] [--filesystem ext4,xfs,tmpfs]
                              [--minutes 30] [--folder DIR]

One machine a file system, side by side. Each has half of its time as it is, and half with delays in
the windows of the race, where the series has the files for them. Says what each case ended with and
sums up the series' own counters. Exits with 1 for a splat, a wrong page or a hang, and with 4 if
something did not run, ran without lockdep, or if a counter is 0 that could have been counted: a
race that was never lost has not been tested.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from lab import build, config, equipment, subject, trial
from lab.model import CaseState, Cell, Event, EventKind, ExitCode, Kernel, Side, Trial
from lab.store import Cache
from lab.suites import faultstress, registry
from lab.suites.protocol import SuiteOptions

ROOT = Path(__file__).parent.parent
FOLDER = "/sys/kernel/debug/unlocked_fault"
DELAYS = {
    f"{FOLDER}/delay_before_us": "1000",
    f"{FOLDER}/delay_after_us": "300",
    f"{FOLDER}/delay_given_up_us": "1000",
}
PREFIX = "unlocked_fault_"
# A tmpfs has no ->page_mkwrite(), and no other file system is written through a mapping there.
IMPOSSIBLE = {"tmpfs": {f"{PREFIX}mkwrite", f"{PREFIX}both"}}
GOOD = (CaseState.PASSED, CaseState.SKIPPED)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def emit(event: Event) -> None:
    if event.kind is not EventKind.STARTED and event.text:
        say(f"{event.step}: {event.text}")


def scenarios(filesystem: str) -> tuple[str, ...]:
    return tuple(
        name for name in faultstress.SCENARIOS if (filesystem, name) not in faultstress.UNSUPPORTED
    )


async def soak(filesystem: str, kit: trial.Kit, cell: Cell, folder: Path) -> list[Trial]:
    """Every case of the cell, in as many machines as it takes."""
    trials: list[Trial] = []

    def next_one(todo: Cell) -> Awaitable[Trial]:
        return trial.run(todo, kit, folder / f"{filesystem}-{cell.repeat}-{len(trials)}", emit)

    async for one in trial.relay(cell, next_one):
        trials.append(one)
        for result in one.results:
            text = f"{result.state} {result.message}".strip()
            say(f"{result.name} #{cell.repeat}: {text} ({result.duration_s:.0f} s)")
            for splat in result.splats:
                say(f"  SPLAT {splat.kind}: {splat.title}")
        if not one.results:
            say(f"{filesystem} #{cell.repeat}: the machine ended: {one.end} {one.note}")
    return trials


def built(series: str, options: config.Config) -> Kernel:
    """The patched kernel. Raises `SystemExit` if it does not build."""
    cache = Cache(root=options.paths.cache_dir)
    taken = subject.take(subject.Request(patch=series, config=options), cache, emit)
    planned = subject.make_plan(taken, options)
    (arch,) = planned.archs
    kernel = build.build(
        taken.patched,
        arch=arch,
        side=Side.PATCHED,
        fragments=planned.fragments[arch, Side.PATCHED],
        cache=cache,
        emit=emit,
        jobs=options.build.job_count,
    )
    if not isinstance(kernel, Kernel):
        raise SystemExit(f"it does not build: {kernel.first_error}")
    return kernel


async def all_of(
    kernel: Kernel, filesystems: Sequence[str], minutes: float, options: config.Config, into: Path
) -> dict[str, list[Trial]]:
    """The trials of each file system."""
    asked = {
        name: registry.find(("faultstress",))[0].plan(
            SuiteOptions(
                filesystems=(name,),
                scenarios=scenarios(name),
                duration_s=minutes * 30 / len(scenarios(name)),
                threads=4,
            )
        )
        for name in filesystems
    }
    every = [case for cases in asked.values() for case in cases]
    found = await equipment.equip(kernel, options, Cache(root=options.paths.cache_dir), emit)
    suites = registry.find(("faultstress",))
    kit = equipment.kit(kernel, suites, every, options, found, crowding=len(filesystems))

    async def both(name: str) -> list[Trial]:
        trials: list[Trial] = []
        for repeat, settings in enumerate((DELAYS, {})):
            cell = equipment.cell(kit, options, [case.name for case in asked[name]], repeat)
            trials += await soak(name, kit, replace(cell, settings=settings), into)
        return trials

    done = await asyncio.gather(*map(both, filesystems))
    return dict(zip(filesystems, done, strict=True))


def judge(trials: dict[str, list[Trial]]) -> ExitCode:
    """Say what came out of it."""
    bad, lacking = 0, 0
    for name, mine in trials.items():
        results = [result for one in mine for result in one.results]
        stress_s = sum(r.duration_s for r in results if r.state is CaseState.PASSED)
        splats = sum(len(r.splats) for r in results) + sum(len(one.boot_splats) for one in mine)
        failed = [r for r in results if r.state not in GOOD]
        due = 2 * len(scenarios(name))
        counters: Counter[str] = Counter()
        for one in mine:
            counters.update({k: v for k, v in one.vmstat.items() if k.startswith(PREFIX)})
        zero = [k for k, v in counters.items() if not v and k not in IMPOSSIBLE.get(name, set())]
        unseen = any(one.lockdep_alive is False for one in mine)
        say(
            f"{name}: {len(results)} of {due} cases, {len(failed)} not passed, {splats} splats, "
            f"{stress_s / 60:.1f} minutes; lockdep {'OFF' if unseen else 'alive'}"
        )
        for key, value in counters.items():
            print(f"    {key:36} {value:12}")
        print(f"    zero: {', '.join(zero) or 'none'}", flush=True)
        bad += splats + sum(r.state is not CaseState.UNCOVERED for r in failed)
        lacking += len(zero) + (len(results) < due) + unseen + (not counters)
    if bad:
        return ExitCode.REGRESSED
    return ExitCode.INCONCLUSIVE if lacking else ExitCode.CLEAN


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("series", nargs="?", default=str(ROOT / "patches" / "srcu-vma"))
    parser.add_argument("--arch", default="x86_64")
    parser.add_argument("--profile", default="kasan")
    parser.add_argument("--filesystem", default="ext4,xfs,tmpfs")
    parser.add_argument("--minutes", type=float, default=30.0, help="of each file system")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep consoles and trials there")
    asked = parser.parse_args()
    options = msgspec.structs.replace(
        config.Config(),
        arch=(asked.arch,),
        profile=asked.profile,
        suites=("faultstress",),
        run=config.Run(seed=asked.seed),
    )
    kernel = built(asked.series, options)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        into = asked.folder or Path(scratch)
        trials = asyncio.run(
            all_of(kernel, asked.filesystem.split(","), asked.minutes, options, into)
        )
    return judge(trials)


if __name__ == "__main__":
    sys.exit(main())
