"""One request goes in, a judged run comes out: intake, build, boot, test, judge, re-run suspects.

A run that was cut off is taken up where it stopped: kernels and images are found by content,
finished trials by the digest of their cell.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import lab
from lab import (
    accel,
    comparator,
    host,
    image,
    initramfs,
    ledger,
    model,
    plan,
    pool,
    prefixes,
    verdict,
)
from lab.accel import AcceleratorLost
from lab.arch import arch as arch_row
from lab.config import Config
from lab.coverage import study
from lab.coverage.record import Coverage
from lab.equipment import Equipment, kit
from lab.fleet import join
from lab.lockgraph import stored
from lab.lockgraph.diff import diff
from lab.lockgraph.news import news
from lab.model import (
    Accelerator,
    BuildFailure,
    Comparator,
    Emit,
    Event,
    EventKind,
    Kernel,
    LabFault,
    Manifest,
    Past,
    PrefixResult,
    RootImage,
    RunRecord,
    Series,
    Side,
    Timing,
    Trial,
)
from lab.plan import Matrix
from lab.pool import Pool, Split
from lab.series import TOML_NAME, mail_bytes, slug, toml_text
from lab.snapshot import Shelf
from lab.splat import allow
from lab.store import (
    STALE_S,
    Cache,
    is_locked,
    locked,
    sweep_temporaries,
    write_atomically,
)
from lab.subject import (
    Plan,
    Request,
    build_pair,
    make_plan,
    own_fragments,
    prefix_commits,
    take,
)
from lab.symbols import History
from lab.verdict.observe import comparable_trials

if TYPE_CHECKING:  # it brings Dask
    from lab.fleet.crew import Crew


@dataclass(slots=True)
class Gathered:
    """What a run has found so far."""

    kernels: list[Kernel] = field(default_factory=list)
    failures: list[BuildFailure] = field(default_factory=list)
    images: list[RootImage] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    prefixes: list[PrefixResult] = field(default_factory=list)
    coverage: dict[str, Coverage] = field(default_factory=dict)  # by architecture
    comparators: list[Comparator] = field(default_factory=list)
    past: dict[tuple[str, str], Past] = field(default_factory=dict)  # of earlier bases
    setup_s: float = 0.0
    tested_s: float = 0.0  # with at least one machine up


async def run(request: Request, emit: Emit) -> tuple[RunRecord, Path]:
    """Carry the request out; returns the record and the run's folder.

    Raises `UserError` before anything is built if the request cannot be carried out, `LabFault`
    if the lab breaks: the same request then takes the run up again.
    """
    config = request.config
    cache = Cache(root=config.paths.cache_dir)
    swept = cache.sweep()
    if swept:
        emit(Event(kind=EventKind.NOTE, step="cache", text=f"swept {swept} unfinished leftovers"))
    began = time.monotonic()
    gathered = Gathered()
    planned, manifest = prospect(request, cache, emit)
    gathered.setup_s += time.monotonic() - began
    for note in manifest.notes:
        emit(Event(kind=EventKind.WARNING, step="allow", text=note))
    async with contextlib.AsyncExitStack() as held:
        crew = await held.enter_async_context(join.crew(config, planned.archs, cache, emit))
        folder, manifest = _open_run(config.paths.runs_dir, manifest, emit)
        held.enter_context(locked(folder / "lock"))
        sweep_temporaries(folder)
        write_atomically(folder / "manifest.json", model.encode(manifest))
        _keep_series(planned.subject.series, folder)
        _keep_fragments(config, folder)
        # A build that fails is told before minutes of tests, and no build slows a test down.
        ready = [
            await _prepare(name, planned, config, cache, gathered, emit) for name in planned.archs
        ]
        if request.each_patch:
            asked = time.monotonic()
            for kernel in [one for one in gathered.kernels if one.side is Side.BASE]:
                gathered.prefixes += await prefixes.check(
                    kernel, planned, config, cache, folder, emit
                )
            gathered.setup_s += time.monotonic() - asked
        counting: dict[str, Kernel | str] = {}
        if request.coverage:
            asked = time.monotonic()
            pairs = [(each.base, each.patched) for each in ready if each is not None]
            counting = await study.build_kernels(pairs, planned, config, cache, emit)
            gathered.setup_s += time.monotonic() - asked
        for each in ready:
            if each is not None:
                machines = await _test_arch(
                    each, planned, config, cache, folder, gathered, manifest, emit, crew
                )
                if counts := counting.get(machines.arch):
                    asked = time.monotonic()
                    gathered.coverage[machines.arch] = await study.cover(
                        counts, machines, planned, config, cache, folder
                    )
                    gathered.setup_s += time.monotonic() - asked
            if each is not None and config.run.comparator:
                other = await comparator.measure(
                    each.base.arch, planned, config, cache, folder, emit
                )
                gathered.comparators.append(other)
                gathered.tested_s += sum(record.wall_s for record in other.trials)
        gathered.past = _past(manifest, gathered.trials, folder, emit)
        record = _record(manifest, planned, config, gathered, folder, time.monotonic() - began)
        write_atomically(folder / "record.json", model.encode(record))
    return record, folder


def prospect(request: Request, cache: Cache, emit: Emit) -> tuple[Plan, Manifest]:
    """What a run of that request would do, and all that it would depend on. Nothing is built.

    Raises `UserError` if the request cannot be carried out.
    """
    subject = take(request, cache, emit)
    if request.coverage:
        study.check(request.config.arch)
    planned = make_plan(subject, request.config, cache=cache, emit=emit)
    return planned, _manifest(request, planned)


def _manifest(request: Request, planned: Plan) -> Manifest:
    config, subject = request.config, planned.subject
    prints = {
        fragment.name: hashlib.sha256(fragment.text.encode()).hexdigest()
        for side in planned.fragments.values()
        for fragment in side
    }
    digest = hashlib.sha256()
    for part in (
        subject.base.tree,
        subject.series.digest,
        planned.archs,
        sorted(prints.items()),
        planned.cases,
        sorted(planned.disks.items()),
        planned.absent,
        config.run,
        config.machine,
        config.faultstress,
        planned.allowed,
        request.each_patch,
        request.coverage,
        lab.__version__,
    ):
        digest.update(repr(part).encode() + b"\0")
    now = datetime.now(UTC)
    return Manifest(
        run=f"{now:%Y%m%d-%H%M%S}-{slug(subject.series.title).lower()[:40].rstrip('-.')}",
        created=now.isoformat(timespec="seconds"),
        lab_version=lab.__version__,
        command=request.command,
        source=subject.source,
        series_digest=subject.series.digest,
        series_title=subject.series.title,
        series_origin=subject.series.origin,
        patch_names=tuple(patch.subject for patch in subject.series.patches),
        archs=planned.archs,
        profile=config.profile,
        fragments=prints,
        suites=tuple(suite.name for suite in planned.suites),
        cases=planned.names,
        repeats=config.run.repeats,
        max_repeats=config.run.max_repeats,
        seed=config.run.seed,
        plan_digest=digest.hexdigest(),
        host={
            "system": platform.platform(),
            "cpus": str(len(os.sched_getaffinity(0))),
            "python": platform.python_version(),
        },
        tools=_tool_versions(planned.archs),
        notes=allow.expired(planned.allowed, today=now.date()),
        config=model.encode(config).decode(),
        each_patch=request.each_patch,
        coverage=request.coverage,
        replays=request.replays,
    )


def _tool_versions(archs: Sequence[str]) -> dict[str, str]:
    """First line of --version of what decides results."""
    versions: dict[str, str] = {}
    compilers = (initramfs.compiler(name) for name in archs)
    emulators = (arch_row(name).qemu for name in archs)
    for name in dict.fromkeys(("gcc", *compilers, "ld", "make", *emulators)):
        said = host.run([name, "--version"], check=False, timeout_s=20).text.splitlines()
        versions[name] = said[0] if said else "unknown"
    return versions


def _open_run(runs: Path, manifest: Manifest, emit: Emit) -> tuple[Path, Manifest]:
    """A new run's folder, or that of the same run cut off before its end."""
    for path in sorted(runs.glob("*/manifest.json"), reverse=True):
        folder = path.parent
        sweep_temporaries(folder, older_than_s=STALE_S)
        if (folder / "record.json").exists() or is_locked(folder / "lock"):
            continue
        with contextlib.suppress(LabFault, OSError):
            old = model.decode(path.read_bytes(), Manifest)
            if old.plan_digest == manifest.plan_digest:
                whole = len(list(folder.glob("trials/*/trial.json")))
                text = f"taking up {old.run}, which was cut off; {whole} trials are whole"
                emit(Event(kind=EventKind.NOTE, step="run", text=text))
                return folder, replace(manifest, run=old.run, created=old.created)
    folder = runs / manifest.run
    for number in range(2, 1000):
        if not folder.exists():
            break
        folder = runs / f"{manifest.run}-{number}"
    folder.mkdir(parents=True)
    return folder, replace(manifest, run=folder.name)


def _keep_series(series: Series, folder: Path) -> None:
    """The series as it was taken, so that the run can be repeated without its origin."""
    names: list[str] = []
    for number, patch in enumerate(series.patches, 1):
        names.append(f"{number:04}-{slug(patch.subject)}.patch")
        write_atomically(folder / "series" / names[-1], mail_bytes(patch))
    # The order is final: a part of a series was tested as such.
    quilt = "".join(f"{name}\n" for name in names)
    write_atomically(folder / "series" / "series", quilt.encode())
    write_atomically(folder / "series" / TOML_NAME, toml_text(series).encode())


def _keep_fragments(config: Config, folder: Path) -> None:
    """The user's own fragments, which may be other ones tomorrow."""
    for number, fragment in enumerate(own_fragments(config), 1):
        kept = folder / "fragments" / f"{number:02}-{Path(fragment.name).name}"
        write_atomically(kept, fragment.text.encode())


# --- one architecture --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What the trials of one architecture need, all of it in the cache."""

    base: Kernel
    patched: Kernel
    image: RootImage
    initramfs: Path


async def _prepare(
    name: str, planned: Plan, config: Config, cache: Cache, gathered: Gathered, emit: Emit
) -> Ready | None:
    """Both kernels and what boots them; None if one does not build."""
    # The image comes from the network and the package manager, the kernels from the compiler:
    # side by side they cost little more than the longer of the two.
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        root = group.create_task(asyncio.to_thread(image.root_image, name, cache=cache, emit=emit))
        ramfs = group.create_task(
            asyncio.to_thread(initramfs.initramfs, name, cache=cache, emit=emit)
        )
        pair = group.create_task(asyncio.to_thread(build_pair, name, planned, config, cache, emit))
    built = pair.result()
    for result in built:
        if isinstance(result, BuildFailure):
            gathered.failures.append(result)
        else:
            gathered.kernels.append(result)
    gathered.images.append(root.result())
    made_s = sum(result.build_s for result in built if _ran_make(result))
    gathered.setup_s += max(0.0, time.monotonic() - began - made_s)
    base, patched = built[0], built[1] if len(built) > 1 else None
    if not isinstance(base, Kernel) or not isinstance(patched, Kernel):
        return None
    return Ready(base=base, patched=patched, image=root.result(), initramfs=ramfs.result())


def _ran_make(result: Kernel | BuildFailure) -> bool:
    return isinstance(result, BuildFailure) or result.make_ran


async def _accelerator(
    ready: Ready,
    config: Config,
    cache: Cache,
    emit: Emit,
    crew: Crew | None,
    lost: AcceleratorLost | None,
) -> Accelerator:
    """By proof; after KVM was `lost`, it is TCG."""
    name, kernel, ramfs = ready.base.arch, ready.base.image, ready.initramfs
    force = config.machine.forced_accel
    if lost is not None:
        text = f"{lost.message}; all cases run under TCG now"
        emit(Event(kind=EventKind.WARNING, step=f"machines {name}", text=text))
        force = "tcg"
    if crew is not None:
        return await crew.prove(name, config.machine, kernel=kernel, initramfs=ramfs, force=force)
    if lost is not None:
        return await accel.fall_back(
            name, kernel=kernel, initramfs=ramfs, cache=cache, emit=emit, reason=lost.message
        )
    return await accel.choose_async(
        name, kernel=kernel, initramfs=ramfs, cache=cache, emit=emit, force=force
    )


async def _open_pool(
    ready: Ready,
    planned: Plan,
    config: Config,
    cache: Cache,
    folder: Path,
    trials: list[Trial],
    manifest: Manifest,
    emit: Emit,
    crew: Crew | None,
    lost: AcceleratorLost | None = None,
) -> Pool:
    """The accelerator, by proof, and as many machines at once as this host or the crew carries.

    After KVM was `lost`, it is TCG.
    """
    name = ready.base.arch
    accelerator = await _accelerator(ready, config, cache, emit, crew, lost)
    here = pool.capacity(
        config.machine, accelerator, cores=pool.cores(), free_bytes=pool.free_bytes()
    )
    machines = await crew.capacity(name, config.machine, accelerator) if crew else here
    limits = {case.name: case.timeout_s for case in planned.cases}

    def measure() -> Split:
        rough = {case.name: case.expected_s for case in planned.cases if case.expected_s}
        known = rough | pool.durations(folder.parent, arch=name, accelerator=accelerator.name)
        return Split(machines=machines, costs=plan.costs(limits, known))

    split = pool.settle(folder, name, measure)
    if split.machines > 1:
        where = f"at {config.fleet.scheduler}" if crew else f"on {pool.cores()} cores"
        text = f"{split.machines} at once, {where}"
        emit(Event(kind=EventKind.NOTE, step=f"machines {name}", text=text))
    crowding = 1.0 if crew else pool.crowding(config.machine, split.machines)
    history = History(
        git_dir=planned.subject.source.git_dir,
        commits=prefix_commits(planned.subject, cache, emit),
    )
    shelf = Shelf(cache) if config.machine.snapshots and not crew else None
    equipment = Equipment(image=ready.image, initramfs=ready.initramfs, accelerator=accelerator)
    kits = {
        kernel.side: replace(
            kit(kernel, planned.suites, planned.cases, config, equipment, crowding=crowding),
            history=history if kernel.side is Side.PATCHED else None,
            allowed=planned.allowed,
            # The day on which the run was begun: one that is taken up goes on with the same list.
            today=datetime.fromisoformat(manifest.created).date(),
            disks=planned.disks.get((name, kernel.side), ()),
            shelf=shelf,
            dump=config.machine.dump,
        )
        for kernel in (ready.base, ready.patched)
    }
    machines_of = Pool(arch=name, kits=kits, folder=folder, split=split, trials=trials, emit=emit)
    return replace(machines_of, execute=crew.execute, far=True) if crew else machines_of


async def _test_arch(
    ready: Ready,
    planned: Plan,
    config: Config,
    cache: Cache,
    folder: Path,
    gathered: Gathered,
    manifest: Manifest,
    emit: Emit,
    crew: Crew | None = None,
) -> Pool:
    """All that one architecture is asked, by the machines that are returned.

    If KVM is lost on the way, all of it again under TCG: results of different accelerators are
    never compared.
    """
    machines = await _open_pool(
        ready, planned, config, cache, folder, gathered.trials, manifest, emit, crew
    )
    try:
        await _test(ready, machines, planned, config, gathered)
    except AcceleratorLost as lost:
        if config.machine.forced_accel is not None:
            raise
        machines = await _open_pool(
            ready,
            planned,
            config,
            cache,
            folder,
            gathered.trials,
            manifest,
            emit,
            crew,
            lost=lost,
        )
        await _test(ready, machines, planned, config, gathered)
    return machines


async def _test(
    ready: Ready, machines: Pool, planned: Plan, config: Config, gathered: Gathered
) -> None:
    """The screening rounds, then whatever the judge asks for until the evidence suffices."""
    matrix = Matrix(
        arch=machines.arch,
        profile=config.profile,
        suites=tuple(suite.name for suite in planned.suites),
        cases=planned.names,
        image_sha256=ready.image.sha256,
        seed=config.run.seed,
        memory_bytes=config.machine.memory_bytes,
        cpus=config.machine.cpus,
    )
    sides = (ready.base, ready.patched)
    await machines.run(plan.rounds(matrix, *sides, range(config.run.repeats)))
    while True:
        wanted = verdict.needs_more(_judge_input(planned, config, gathered))
        mine = [more for more in wanted if more.arch == machines.arch]
        if not mine:
            break
        for more in mine:
            text = f"{len(more.cases)} undecided, again on both sides: {', '.join(more.cases[:4])}"
            machines.emit(Event(kind=EventKind.NOTE, step="suspects", text=text))
            cells = plan.rounds(matrix, *sides, more.repeats, cases=more.cases)
            await machines.run(cells, asked=True)
    gathered.tested_s += machines.busy_s


# --- the end -----------------------------------------------------------------------------------


def _judge_input(planned: Plan, config: Config, gathered: Gathered) -> verdict.JudgeInput:
    return verdict.JudgeInput(
        title=planned.subject.series.title,
        archs=planned.archs,
        profile=config.profile,
        cases=(*planned.names, *_parts(gathered.trials)),
        trials=tuple(gathered.trials),
        kernels=tuple(gathered.kernels),
        failures=tuple(gathered.failures),
        repeats=config.run.repeats,
        max_repeats=config.run.max_repeats,
        changed_files=planned.subject.patched.changed,
        counters=planned.subject.series.counters,
        absent=planned.absent,
        prefixes=tuple(gathered.prefixes),
        past=gathered.past,
    )


def _past(
    manifest: Manifest, trials: Sequence[Trial], folder: Path, emit: Emit
) -> dict[tuple[str, str], Past]:
    """What the bases of earlier runs showed, for each architecture on the ground of this run."""
    found: dict[tuple[str, str], Past] = {}
    try:
        with ledger.opened(folder.parent) as book:
            for arch in manifest.archs:
                kept = comparable_trials(trials, arch, manifest.profile)
                grounds = {ledger.ground_of(trial, manifest) for trial in kept}
                if len(grounds) != 1:
                    continue  # of several, none is that of the verdict
                known = ledger.past(
                    book,
                    ground=grounds.pop(),
                    version=manifest.source.version,
                    before=manifest.created,
                )
                found |= {(arch, name): past for name, past in known.items()}
    except LabFault as fault:  # a verdict without history is one
        emit(Event(kind=EventKind.WARNING, step="history", text=fault.message))
    return found


def _lock_news(gathered: Gathered, folder: Path) -> tuple[verdict.LockNews, ...]:
    """What the locks of both sides say, where they were read."""
    read = [record for record in gathered.trials if record.locks and record.locks.files]
    return tuple(
        news(diff(stored.of_run(gathered.trials, folder, arch)), arch)
        for arch in sorted({record.cell.arch for record in read})
    )


def _parts(trials: Sequence[Trial]) -> tuple[str, ...]:
    """What cases turned out to consist of, in the order in which it was heard of."""
    names = (result.name for trial in trials for result in trial.results)
    return tuple(dict.fromkeys(name for name in names if model.case_of(name) != name))


def _record(
    manifest: Manifest,
    planned: Plan,
    config: Config,
    gathered: Gathered,
    folder: Path,
    wall_s: float,
) -> RunRecord:
    make_s = sum(kernel.build_s for kernel in gathered.kernels if kernel.make_ran)
    make_s += sum(failure.build_s for failure in gathered.failures)
    others = (record for other in gathered.comparators for record in other.trials)
    guest_s = sum(record.wall_s for record in (*gathered.trials, *others))
    known = make_s + min(guest_s, gathered.tested_s) + gathered.setup_s
    return RunRecord(
        manifest=manifest,
        kernels=tuple(gathered.kernels),
        failures=tuple(gathered.failures),
        images=tuple(gathered.images),
        trials=tuple(gathered.trials),
        verdict=verdict.judge(
            replace(
                _judge_input(planned, config, gathered),
                locks=_lock_news(gathered, folder),
                absent=(*planned.absent, *study.doubts(gathered.coverage, gathered.trials)),
            )
        ),
        timing=Timing(
            wall_s=wall_s,
            make_s=make_s,
            guest_s=guest_s,
            setup_s=gathered.setup_s,
            other_s=max(0.0, wall_s - known),
        ),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        prefixes=tuple(gathered.prefixes),
        comparators=tuple(gathered.comparators),
    )
