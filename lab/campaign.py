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

import lab
from lab import (
    accel,
    host,
    image,
    initramfs,
    model,
    plan,
    trial,
    verdict,
)
from lab.arch import arch as arch_row
from lab.config import Config
from lab.model import (
    Accelerator,
    BuildFailure,
    CaseState,
    Cell,
    Emit,
    Event,
    EventKind,
    Kernel,
    LabFault,
    MachineEnd,
    Manifest,
    RootImage,
    RunRecord,
    Series,
    Side,
    Timing,
    Trial,
    UserError,
)
from lab.plan import Matrix
from lab.rig import SCRATCH_BYTES
from lab.snapshot import Shelf
from lab.store import Cache, is_locked, locked, remove_tree, write_atomically
from lab.subject import Plan, Request, build_pair, make_plan, take, timeouts
from lab.trial import Kit


@dataclass(slots=True)
class Gathered:
    """What a run has found so far."""

    kernels: list[Kernel] = field(default_factory=list)
    failures: list[BuildFailure] = field(default_factory=list)
    images: list[RootImage] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    setup_s: float = 0.0


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
    subject = take(request, cache, emit)
    planned = make_plan(subject, config)
    gathered.setup_s += time.monotonic() - began
    manifest = _manifest(request, planned)
    folder, manifest = _open_run(config.paths.runs_dir, manifest, emit)
    with locked(folder / "lock"):
        write_atomically(folder / "manifest.json", model.encode(manifest))
        _keep_series(subject.series, folder)
        for name in planned.archs:
            await _run_arch(name, planned, config, cache, folder, gathered, emit)
        record = _record(manifest, planned, config, gathered, time.monotonic() - began)
        write_atomically(folder / "record.json", model.encode(record))
    return record, folder


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
        config.run,
        config.machine,
        config.faultstress,
        lab.__version__,
    ):
        digest.update(repr(part).encode() + b"\0")
    now = datetime.now(UTC)
    return Manifest(
        run=f"{now:%Y%m%d-%H%M%S}-{_slug(subject.series.title)}",
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
    )


def _slug(title: str) -> str:
    kept = "".join(char if char.isalnum() else "-" for char in title.lower())
    return "-".join(filter(None, kept.split("-")))[:40] or "series"


def _tool_versions(archs: Sequence[str]) -> dict[str, str]:
    """First line of --version of what decides results."""
    versions: dict[str, str] = {}
    for name in ("gcc", "ld", "make", *(arch_row(name).qemu for name in archs)):
        said = host.run([name, "--version"], check=False, timeout_s=20).text.splitlines()
        versions[name] = said[0] if said else "unknown"
    return versions


def _open_run(runs: Path, manifest: Manifest, emit: Emit) -> tuple[Path, Manifest]:
    """A new run's folder, or that of the same run cut off before its end."""
    for path in sorted(runs.glob("*/manifest.json"), reverse=True):
        folder = path.parent
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
    """The patches as they were taken, so that the run can be repeated without their origin."""
    for number, patch in enumerate(series.patches, 1):
        name = f"{number:04}-{_slug(patch.subject)}.patch"
        raw = patch.mail.encode("utf-8", "surrogateescape")
        write_atomically(folder / "series" / name, raw)


# --- one architecture --------------------------------------------------------------------------


async def _run_arch(
    name: str,
    planned: Plan,
    config: Config,
    cache: Cache,
    folder: Path,
    gathered: Gathered,
    emit: Emit,
) -> None:
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
        return
    accelerator = await accel.choose_async(
        name,
        kernel=base.image,
        initramfs=ramfs.result(),
        cache=cache,
        emit=emit,
        force=config.machine.forced_accel,
    )
    shelf = Shelf(cache) if config.machine.snapshots else None
    kits = {
        kernel.side: _kit(
            kernel, planned, config, root.result(), ramfs.result(), accelerator, shelf
        )
        for kernel in (base, patched)
    }
    bench = Bench(arch=name, kits=kits, folder=folder, gathered=gathered, emit=emit)
    await _test(bench, planned, config)


def _ran_make(result: Kernel | BuildFailure) -> bool:
    return isinstance(result, BuildFailure) or result.make_ran


def _kit(
    kernel: Kernel,
    planned: Plan,
    config: Config,
    root: RootImage,
    ramfs: Path,
    accelerator: Accelerator,
    shelf: Shelf | None,
) -> Kit:
    cases = {case.name: case for case in planned.cases}
    total = sum(case.timeout_s for case in planned.cases)
    return Kit(
        kernel=kernel,
        initramfs=ramfs,
        image=root,
        accelerator=accelerator,
        timeouts=timeouts(config, accelerator, work_s=total),
        suites=planned.suites,
        cases=cases,
        scratch_bytes=SCRATCH_BYTES,
        shelf=shelf,
        dump=config.machine.dump,
    )


# --- trials ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where the trials of one architecture run, and where their records go."""

    arch: str
    kits: dict[Side, Kit]
    folder: Path
    gathered: Gathered
    emit: Emit


async def _test(bench: Bench, planned: Plan, config: Config) -> None:
    """The screening rounds, then whatever the judge asks for until the evidence suffices."""
    base, patched = (bench.kits[side].kernel for side in (Side.BASE, Side.PATCHED))
    matrix = Matrix(
        arch=bench.arch,
        profile=config.profile,
        suites=tuple(suite.name for suite in planned.suites),
        cases=planned.names,
        image_sha256=bench.kits[Side.BASE].image.sha256,
        seed=config.run.seed,
        memory_bytes=config.machine.memory_bytes,
        cpus=config.machine.cpus,
    )
    for cell in plan.rounds(matrix, base, patched, range(config.run.repeats)):
        await _run_cell(cell, bench)
    while True:
        wanted = verdict.needs_more(_judge_input(planned, config, bench.gathered))
        mine = [more for more in wanted if more.arch == bench.arch]
        if not mine:
            return
        for more in mine:
            text = f"{len(more.cases)} undecided, again on both sides: {', '.join(more.cases[:4])}"
            bench.emit(Event(kind=EventKind.NOTE, step="suspects", text=text))
            for cell in plan.rounds(matrix, base, patched, more.repeats, cases=more.cases):
                await _run_cell(cell, bench)


async def _run_cell(cell: Cell, bench: Bench) -> None:
    """One cell, in as many machines as it takes.

    Each machine that goes down is charged to one case and the rest goes on in a fresh one, so
    this ends. A machine that did not boot, or that died before its first case, is left to the
    judge, who asks for more runs if they can tell anything.
    """
    todo: Cell | None = cell
    while todo is not None:
        record = await _one_trial(todo, bench)
        bench.gathered.trials.append(record)
        if not record.results:
            return
        todo = plan.remaining(todo, [result.name for result in record.results])


async def _one_trial(cell: Cell, bench: Bench) -> Trial:
    """Run the cell, or take its whole record from the run that was cut off."""
    attempts = sum(1 for old in bench.gathered.trials if old.cell == cell)
    name = f"{cell.arch}-{cell.side}-{cell.repeat + 1:02}-{plan.digest(cell)[:6]}-{attempts + 1}"
    folder = bench.folder / "trials" / name
    step = trial.step_name(cell)
    record_file = folder / "trial.json"
    if record_file.exists():
        record = model.decode(record_file.read_bytes(), Trial)
        if (
            record.cell == cell
            and record.accelerator.name == bench.kits[cell.side].accelerator.name
        ):
            bench.emit(Event(kind=EventKind.DONE, step=step, text="whole, from the run before"))
            return record
    remove_tree(folder)  # of a trial that was cut off: nothing of it is whole
    bench.emit(Event(kind=EventKind.STARTED, step=step, text=f"{len(cell.cases)} cases"))
    record = await trial.run(
        cell, bench.kits[cell.side], folder, bench.emit, restore=_may_restore(cell, bench)
    )
    bench.emit(Event(kind=EventKind.DONE, step=step, text=_digest_line(record)))
    return record


def _may_restore(cell: Cell, bench: Bench) -> bool:
    """Whether the cell's machine may begin from a snapshot.

    Each kernel boots once in every run, so that a series which breaks the boot is seen; one whose
    boot shows anything goes on booting. Both sides of a comparison are restored, or both boot.
    """
    for kit in bench.kits.values():
        boots = [
            record
            for record in bench.gathered.trials
            if record.cell.kernel_key == kit.kernel.key and not record.restored
        ]
        well = [record.boot_s is not None and not record.boot_splats for record in boots]
        rig = kit.rig(memory_bytes=cell.memory_bytes, cpus=cell.cpus)
        if not well or not all(well) or not rig.restorable(kit.shelf):
            return False
    return True


def _digest_line(record: Trial) -> str:
    if record.boot_s is None:
        return f"did not boot ({record.end})"
    counts = dict.fromkeys(CaseState, 0)
    for result in record.results:
        counts[result.state] += 1
    began = trial.began(record.boot_s, record.restored)
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    ended = "" if record.end is MachineEnd.POWERED_OFF else f"; machine {record.end}"
    return f"{said or 'no case ran'}{ended} ({record.wall_s:.0f} s, {began})"


# --- the end -----------------------------------------------------------------------------------


def _judge_input(planned: Plan, config: Config, gathered: Gathered) -> verdict.JudgeInput:
    return verdict.JudgeInput(
        title=planned.subject.series.title,
        archs=planned.archs,
        profile=config.profile,
        cases=planned.names,
        trials=tuple(gathered.trials),
        kernels=tuple(gathered.kernels),
        failures=tuple(gathered.failures),
        repeats=config.run.repeats,
        max_repeats=config.run.max_repeats,
        changed_files=planned.subject.patched.changed,
        counters=planned.subject.series.counters,
    )


def _record(
    manifest: Manifest, planned: Plan, config: Config, gathered: Gathered, wall_s: float
) -> RunRecord:
    make_s = sum(kernel.build_s for kernel in gathered.kernels if kernel.make_ran)
    make_s += sum(failure.build_s for failure in gathered.failures)
    guest_s = sum(record.wall_s for record in gathered.trials)
    known = make_s + guest_s + gathered.setup_s
    return RunRecord(
        manifest=manifest,
        kernels=tuple(gathered.kernels),
        failures=tuple(gathered.failures),
        images=tuple(gathered.images),
        trials=tuple(gathered.trials),
        verdict=verdict.judge(_judge_input(planned, config, gathered)),
        timing=Timing(
            wall_s=wall_s,
            make_s=make_s,
            guest_s=guest_s,
            setup_s=gathered.setup_s,
            other_s=max(0.0, wall_s - known),
        ),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def find_run(runs: Path, name: str | None) -> Path:
    """The folder of a finished run: its name, the beginning of one, a folder; None: the newest.

    Raises `UserError` if there is none, or if the beginning fits several.
    """
    finished = sorted((path.parent for path in runs.glob("*/record.json")), reverse=True)
    if name is None:
        if not finished:
            raise UserError(f"no finished run in {runs}", hint="lab run --patch SERIES makes one")
        return finished[0]
    if (Path(name) / "record.json").is_file():
        return Path(name)
    fitting = [folder for folder in finished if folder.name.startswith(name)]
    exact = [folder for folder in fitting if folder.name == name]
    if len(exact or fitting) == 1:
        return (exact or fitting)[0]
    if fitting:
        raise UserError(
            f"{name} fits {len(fitting)} runs", hint=", ".join(f.name for f in fitting[:5])
        )
    if (runs / name).is_dir():
        raise UserError(f"{name} was cut off", hint="the lab run that made it takes it up again")
    raise UserError(
        f"no run {name} in {runs}", hint=f"newest: {finished[0].name}" if finished else ""
    )
