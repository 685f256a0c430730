"""Throughput with several machines at once: cases a minute with 1, 2 and 4, in one run.

    python benchmarks/shards.py [--arch x86_64] [--machines 1,2,4] [--duration 2]
        [--filesystem ext4,xfs,tmpfs]

Runs all cases of boot and faultstress on the base kernel, twice for each number of machines (forth
and back, so that the host's drift hits all alike), on every accelerator that boots here. Prints
ratios to one machine. Where machines outnumber cores / 2 they share cores, and the ratio says what
is left of the gain. Exits with 3 if a case does not pass.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lab import accel, build, image, initramfs, kconfig, plan, pool, source, subject
from lab.config import Config
from lab.config import Machine as MachineConfig
from lab.model import Accelerator, CaseState, Event, EventKind, Kernel, RootImage, Side, UserError
from lab.plan import Matrix
from lab.pool import Pool, Split
from lab.store import Cache
from lab.suites import registry
from lab.suites.protocol import PlannedCase, SuiteOptions
from lab.tree import checkout
from lab.trial import Kit

SUITES = ("boot", "faultstress")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefacts:
    kernel: Kernel
    initramfs: Path
    image: RootImage
    cases: tuple[PlannedCase, ...]


def quiet(event: Event) -> None:
    if event.kind in (EventKind.WARNING, EventKind.DONE):
        print(f"  {event.step}: {event.text}", file=sys.stderr, flush=True)


def artefacts(arch: str, options: SuiteOptions, config: Config, cache: Cache) -> Artefacts:
    tree = checkout(
        source.open_source(subject.DEFAULT_KERNEL, cache=cache, emit=quiet),
        (),
        cache=cache,
        emit=quiet,
    )
    kernel = build.build(
        tree,
        arch=arch,
        side=Side.BASE,
        fragments=kconfig.fragments(config.profile, arch),
        cache=cache,
        emit=quiet,
        jobs=config.build.job_count,
    )
    assert isinstance(kernel, Kernel), "the base does not build"
    return Artefacts(
        kernel=kernel,
        initramfs=initramfs.initramfs(arch, cache=cache, emit=quiet),
        image=image.root_image(arch, cache=cache, emit=quiet),
        cases=tuple(case for suite in registry.find(SUITES) for case in suite.plan(options)),
    )


def proven(given: Artefacts, cache: Cache) -> list[Accelerator]:
    """Those that boot here."""
    found = []
    for force in ("kvm", "tcg"):
        try:
            found.append(
                accel.choose(
                    given.kernel.arch,
                    kernel=given.kernel.image,
                    initramfs=given.initramfs,
                    cache=cache,
                    emit=quiet,
                    force=force,
                )
            )
        except UserError as error:
            print(f"{force}: {error.message}", file=sys.stderr)
    return found


def cases_per_minute(
    given: Artefacts, accelerator: Accelerator, machines: int, config: Config, folder: Path
) -> float:
    """All cases once on each of two "sides", which are the same kernel."""
    settings = MachineConfig(parallel=machines)
    limits = {case.name: case.timeout_s for case in given.cases}
    kit = Kit(
        kernel=given.kernel,
        initramfs=given.initramfs,
        image=given.image,
        accelerator=accelerator,
        timeouts=subject.timeouts(
            config,
            accelerator,
            work_s=sum(limits.values()),
            crowding=pool.crowding(settings, machines),
        ),
        suites=registry.find(SUITES),
        cases={case.name: case for case in given.cases},
        scratch_bytes=2 << 30,
    )
    matrix = Matrix(
        arch=given.kernel.arch,
        profile=config.profile,
        suites=SUITES,
        cases=tuple(limits),
        image_sha256=given.image.sha256,
        seed=1,
        memory_bytes=settings.memory_bytes,
        cpus=settings.cpus,
    )
    opened = Pool(
        arch=given.kernel.arch,
        kits=dict.fromkeys(Side, kit),
        folder=folder,
        split=Split(machines=machines, costs=limits),
        trials=[],
        emit=lambda event: None,
    )
    began = time.monotonic()
    asyncio.run(opened.run(plan.rounds(matrix, given.kernel, given.kernel, range(1))))
    took_s = time.monotonic() - began
    results = [result for trial in opened.trials for result in trial.results]
    wrong = [result for result in results if result.state is not CaseState.PASSED]
    if wrong or len(results) != 2 * len(given.cases):
        print(f"{len(results)} of {2 * len(given.cases)} results; {wrong}", file=sys.stderr)
        sys.exit(3)
    return len(results) / took_s * 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="x86_64")
    parser.add_argument("--machines", default="1,2,4")
    parser.add_argument("--duration", type=float, default=2.0)
    parser.add_argument("--filesystem", default="ext4,xfs,tmpfs")
    asked = parser.parse_args()
    counts = [int(word) for word in asked.machines.split(",")]
    config = Config()
    cache = Cache(root=config.paths.cache_dir)
    options = SuiteOptions(
        duration_s=asked.duration, filesystems=tuple(asked.filesystem.split(","))
    )
    given = artefacts(asked.arch, options, config, cache)
    print(f"{len(given.cases)} cases of {asked.duration:g} s, {asked.arch}, {pool.cores()} cores")
    for accelerator in proven(given, cache):
        rates: dict[int, list[float]] = {count: [] for count in counts}
        for number, count in enumerate((*counts, *reversed(counts))):
            with tempfile.TemporaryDirectory(prefix="lab-bench-") as folder:
                rate = cases_per_minute(given, accelerator, count, config, Path(folder))
            print(
                f"  {accelerator.name} round {number + 1}: {count} at once, {rate:.1f} cases/min",
                flush=True,
            )
            rates[count].append(rate)
        means = {count: sum(got) / len(got) for count, got in rates.items()}
        for count, mean in means.items():
            print(
                f"{accelerator.name}  {count} at once  {mean:6.1f} cases a minute  "
                f"ratio {mean / means[counts[0]]:.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
