"""A series, its base kernel and the machines of a run in; the series' coverage out (`--coverage`).

The patched kernel is built once more, with counters in what the series touches, and runs every case
once, on machines of its own. What they show is no evidence for a verdict: this kernel is slower,
and there is no base to compare it with. A report that only it prints leaves a verdict open, though.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lab import build, counters, equipment, host
from lab.arch import arch as arch_row
from lab.build import counted, recipe
from lab.config import Config
from lab.coverage import lines
from lab.coverage.lines import Judge
from lab.coverage.reading import Reader
from lab.coverage.record import Coverage, file_of
from lab.model import (
    BuildFailure,
    CaseState,
    Emit,
    Event,
    EventKind,
    Kernel,
    LabError,
    Side,
    Splat,
    Trial,
    UserError,
    encode,
)
from lab.pool import Pool
from lab.store import Cache, write_atomically
from lab.subject import Plan
from lab.symbols import History

# Suites in which what is allocated, copied or read fails on purpose.
INJECTING = frozenset({"faultinject", lines.INJECTED})
_FOLDER = "coverage"  # of a run, for the trials
_LISTED = 6
_FINE = (CaseState.PASSED, CaseState.SKIPPED)


def check(archs: Sequence[str]) -> None:
    """Raises `UserError` if what reads counters is not installed."""
    for row in map(arch_row, archs):
        host.tool(f"{recipe.toolchain(row).cross}gcov")


def build_kernel(
    base: Kernel, patched: Kernel, planned: Plan, config: Config, cache: Cache, emit: Emit
) -> Kernel | str:
    """The patched kernel with counters; or why there is none.

    It starts from the objects of the kernel that is tested if they were kept, else the base's.
    """
    tree = planned.subject.patched
    objects = base.folder / "obj"
    wanted = counted.targets(tree.path, tree.changed, objects if objects.is_dir() else None)
    if not wanted:
        return "the series changes no C file that can be measured"
    try:
        built = build.build(
            tree,
            arch=base.arch,
            side=Side.PATCHED,
            fragments=planned.fragments[base.arch, Side.PATCHED],
            cache=cache,
            emit=emit,
            jobs=config.build.job_count,
            seed=patched if (patched.folder / "obj").is_dir() else base,
            counted=wanted,
        )
    except UserError as error:
        return f"the kernel with counters cannot be configured: {error.message}"
    if isinstance(built, BuildFailure):
        first = built.first_error
        where = f"{first.file}:{first.line}: {first.message}"
        return f"the kernel with counters does not build: {where}"
    return built


async def build_kernels(
    pairs: Sequence[tuple[Kernel, Kernel]],
    planned: Plan,
    config: Config,
    cache: Cache,
    emit: Emit,
) -> dict[str, Kernel | str]:
    """By architecture, for base and patched."""
    return {
        base.arch: await asyncio.to_thread(
            build_kernel, base, patched, planned, config, cache, emit
        )
        for base, patched in pairs
    }


async def cover(
    kernel: Kernel | str,
    machines: Pool,
    planned: Plan,
    config: Config,
    cache: Cache,
    folder: Path,
) -> Coverage:
    """Every case once on `kernel`, and what ran of the series; kept in the run's `folder`.

    `machines` are those that tested the patched kernel. What goes wrong is said in the answer: a
    verdict does not wait for coverage.
    """
    if isinstance(kernel, str):
        found = Coverage(arch=machines.arch, why=kernel)
    else:
        found = await _measure(kernel, machines, planned, config, cache, folder, machines.emit)
    write_atomically(file_of(folder, machines.arch), encode(found))
    return found


async def _measure(
    kernel: Kernel,
    machines: Pool,
    planned: Plan,
    config: Config,
    cache: Cache,
    folder: Path,
    emit: Emit,
) -> Coverage:
    kit = replace(machines.kits[Side.PATCHED], kernel=kernel, shelf=None, counters=True)
    trials: list[Trial] = []
    counting = Pool(
        arch=machines.arch,
        kits={Side.PATCHED: kit},
        folder=folder / _FOLDER,
        split=machines.split,
        trials=trials,
        emit=emit,
        execute=machines.execute,
    )
    step = f"coverage {machines.arch}"
    emit(Event(kind=EventKind.STARTED, step=step, text=f"{len(planned.names)} cases"))
    notes: tuple[str, ...] = ()
    try:
        await counting.run([equipment.cell(kit, config, planned.names, 0)])
    except LabError as error:
        notes = (f"the lab broke while it measured: {error.message}",)
    history = kit.history
    assert history is not None  # the patched side has it
    row = arch_row(machines.arch)
    try:
        reader = Reader.of(kernel.folder, recipe.toolchain(row).cross, cache)
        found = await asyncio.to_thread(
            analyse, trials, counting.folder, planned, reader, history, emit
        )
    except LabError as error:
        found = Coverage(arch=machines.arch, why=error.message)
    found = replace(found, arch=machines.arch, kernel_key=kernel.key, notes=(*notes, *found.notes))
    emit(Event(kind=EventKind.DONE, step=step, text=found.why or f"{len(found.cases)} counted"))
    return found


def analyse(
    trials: Sequence[Trial],
    folder: Path,
    planned: Plan,
    reader: Reader,
    history: History,
    emit: Emit,
) -> Coverage:
    """What the machines counted. Raises `LabError` where the series' own history is not there."""
    by_case, functions, problems = _counts(trials, folder, reader, emit)
    skipped = {
        result.name
        for trial in trials
        for result in trial.results
        if result.state is CaseState.SKIPPED
    }
    lost = tuple(name for name in planned.names if name not in by_case and name not in skipped)
    notes = [*problems, *dict.fromkeys(trial.note for trial in trials if trial.note)]
    measured = tuple(name for name in planned.names if name in by_case)
    found = Coverage(
        arch=planned.archs[0] if not trials else trials[0].cell.arch,
        tool=host.run([reader.tool, "--version"]).text.partition("\n")[0],
        objects=reader.notes.files,
        cases=measured,
        lost=lost,
        injecting=tuple(sorted(INJECTING & {lines.suite_of(name) for name in measured})),
        notes=tuple(notes[:_LISTED]),
        failed=tuple(
            f"{result.name} {result.state}"
            for trial in trials
            for result in trial.results
            if result.state not in _FINE
        ),
        splats=tuple(splat for trial in trials for splat in _splats(trial) if not splat.allowed),
    )
    if not measured:
        return replace(found, why=_why_nothing(trials, problems))
    seen = lines.fold(by_case, functions)
    judge = Judge(
        seen=seen,
        left_out=left_out(planned.subject.patched.path, planned.subject.patched.changed, reader),
        injecting=INJECTING,
        text=history.text,
    )
    patches = tuple(
        lines.judged(
            number,
            patch.subject,
            history.unified(number, context=3),
            history.diffs(),
            judge,
        )
        for number, patch in enumerate(planned.subject.series.patches, 1)
    )
    return replace(found, patches=patches)


def _counts(
    trials: Sequence[Trial], folder: Path, reader: Reader, emit: Emit
) -> tuple[dict[str, dict[str, dict[int, int]]], set[str], list[str]]:
    """case -> file -> line -> count, of all machines; functions that have counters; and why some
    archives say nothing."""
    by_case: dict[str, dict[str, dict[int, int]]] = {}
    functions: set[str] = set()
    problems: list[str] = []
    archives = [
        (case, archive)
        for trial in trials
        for case, archive in counters.stored(folder / "trials" / trial.id).items()
    ]
    for number, (case, archive) in enumerate(archives):
        emit(
            Event(
                kind=EventKind.PROGRESS,
                step="counters",
                text=case,
                fraction=number / len(archives),
            )
        )
        try:
            found = reader.read(archive)
        except ValueError as error:
            problems.append(f"counters of {case}: {error}")
            continue
        mine = by_case.setdefault(case, {})
        functions |= found.functions
        for file, counts in found.lines.items():
            into = mine.setdefault(file, {})
            for line, count in counts.items():
                into[line] = into.get(line, 0) + count
    return by_case, functions, problems


def left_out(tree: Path, changed: Sequence[str], reader: Reader) -> Collection[str]:
    """Changed .c files of which this kernel has no object, though counters were asked for."""
    asked = counted.targets(tree, changed, None)
    have = {str(PurePosixPath(note).with_suffix(".o")) for note in reader.notes.files}
    return {str(PurePosixPath(one).with_suffix(".c")) for one in asked if one not in have}


def _why_nothing(trials: Sequence[Trial], problems: Sequence[str]) -> str:
    if problems:
        return problems[0]
    for trial in trials:
        if trial.boot_s is None:
            return f"the kernel with counters does not boot: {trial.end}"
        if trial.note:
            return trial.note
    return "no case left counters"


def _splats(trial: Trial) -> tuple[Splat, ...]:
    return (
        *trial.boot_splats,
        *(splat for result in trial.results for splat in result.splats),
    )


def doubts(found: Mapping[str, Coverage], trials: Sequence[Trial]) -> tuple[str, ...]:
    """Why a verdict on `trials` cannot be clean: reports that only a kernel with counters made."""
    known = {splat.fingerprint or splat.title for trial in trials for splat in _splats(trial)}
    return tuple(
        dict.fromkeys(
            f"{arch}: with counters for coverage, the patched kernel printed what no other machine "
            f"did: {splat.title}"
            for arch, one in found.items()
            for splat in one.splats
            if (splat.fingerprint or splat.title) not in known
        )
    )
