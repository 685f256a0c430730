"""Another kernel and the cases of a run go in; what it does in them comes out, beside the verdict.

Linux 6.12 takes faults under the lock of one VMA: its times beside those of a series that does the
same to 6.1 say more than either alone. No verdict rests on it: two kernels differ in everything.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from lab import build, equipment, kconfig, source
from lab.config import Config
from lab.equipment import equip, kit
from lab.model import BuildFailure, Comparator, Emit, Event, EventKind, Side
from lab.pool import Pool, Split
from lab.store import Cache
from lab.subject import Plan, own_fragments, suite_options
from lab.suites import registry
from lab.suites.protocol import Supplied
from lab.tree import checkout


async def measure(
    arch: str, planned: Plan, config: Config, cache: Cache, folder: Path, emit: Emit
) -> Comparator:
    """Build it with the run's profile, and run each case as often as the base does at least.

    Suites that bring disks made for one kernel are left out. Raises `UserError` if there is no
    such kernel.
    """
    name = config.run.comparator
    step = f"comparator {name} {arch}"
    emit(Event(kind=EventKind.STARTED, step=step))
    kernel = await asyncio.to_thread(source.open_source, name, cache=cache, emit=emit)
    tree = await asyncio.to_thread(checkout, kernel, (), cache=cache, emit=emit)
    fragments = (*kconfig.fragments(config.profile, arch), *own_fragments(config))
    built = await asyncio.to_thread(
        build.build,
        tree,
        arch=arch,
        side=Side.BASE,
        fragments=fragments,
        cache=cache,
        emit=emit,
        jobs=config.build.job_count,
    )
    found = Comparator(name=name, version=kernel.version, arch=arch)
    if isinstance(built, BuildFailure):
        error = built.first_error
        return _without(found, f"it does not build: {error.file}: {error.message}", step, emit)
    suites = tuple(one for one in planned.suites if not isinstance(one, Supplied))
    text = await asyncio.to_thread(built.config.read_text)
    for suite in suites:
        if missing := registry.missing_symbols(suite.needs(suite_options(config)), text):
            why = f"{suite.name} needs {', '.join(missing)}, which it has not"
            return _without(found, why, step, emit)
    names = {suite.name for suite in suites}
    cases = tuple(case for case in planned.cases if case.name.partition("/")[0] in names)
    if not cases:
        return _without(found, "no suite of this run can be compared", step, emit)
    own = kit(built, suites, cases, config, await equip(built, config, cache, emit))
    machines = Pool(
        arch=arch,
        kits={Side.BASE: own},
        folder=folder / "comparator",
        split=Split(machines=1, costs={}),
        trials=[],
        emit=emit,
    )
    repeats = range(config.run.repeats)
    wanted = [case.name for case in cases]
    await machines.run([equipment.cell(own, config, wanted, repeat) for repeat in repeats])
    emit(Event(kind=EventKind.DONE, step=step, text=kernel.version))
    return Comparator(
        name=name,
        version=kernel.version,
        arch=arch,
        kernel_key=built.key,
        trials=tuple(machines.trials),
    )


def _without(found: Comparator, why: str, step: str, emit: Emit) -> Comparator:
    emit(Event(kind=EventKind.WARNING, step=step, text=f"nothing to compare with: {why}"))
    return Comparator(name=found.name, version=found.version, arch=found.arch, missing=why)
