"""A request goes in; every control is built and run, and the kernel without it; a record comes out.

The lab's own test: it passes only if each planted fault is caught by the detector that must see it,
in the case it was planted for, and the same cases leave the kernel without it quiet. A selftest
that was cut off is taken up where it stopped, like any run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import lab
from lab import build, control, equipment, intake, kconfig, model
from lab.arch import arch as arch_row
from lab.campaign import Gathered
from lab.config import Config
from lab.control import BASE, Control, Expected, Judged
from lab.equipment import Equipment, equip
from lab.kconfig import Fragment
from lab.model import (
    BuildFailure,
    Cell,
    ControlResult,
    Emit,
    Event,
    EventKind,
    ExitCode,
    Grade,
    Kernel,
    LabFault,
    SelftestRecord,
    Series,
    Side,
    Source,
    Trial,
    UserError,
)
from lab.pool import Pool, Split
from lab.source import open_source
from lab.store import Cache, is_locked, locked, write_atomically
from lab.subject import DEFAULT_KERNEL, check_tools, own_fragments
from lab.suites import boot, lkdtm, registry
from lab.suites.protocol import PlannedCase, Suite, SuiteOptions
from lab.tree import Tree, checkout
from lab.trial import Kit, relay

PATCHES = Path(__file__).parent.parent / "patches"
RECORD = "selftest.json"
_BEGUN = "selftest.begun.json"
_BOOT = boot.Boot()
_LKDTM = lkdtm.Lkdtm()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `lab selftest` was asked for."""

    config: Config
    names: tuple[str, ...] = ()  # empty: all
    folder: Path = PATCHES / "controls"  # series that controls stand on lie beside it
    command: tuple[str, ...] = ()


def load(folder: Path) -> tuple[Control, ...]:
    """The controls in `folder`, and the kernel's own crashes. Raises `UserError`."""
    found = []
    for file in sorted(folder.glob(f"*/{control.TOML_NAME}")):
        one = control.parse(file.read_bytes(), name=file.parent.name, file=str(file))
        if one.on != BASE and not (folder.parent / one.on).is_dir():
            raise UserError(
                f"{file}: on: there is no series {folder.parent / one.on}",
                hint=f'name a folder beside {folder}, or "{BASE}"',
            )
        _plan(one)  # names that no suite knows are errors now
        found.append(one)
    crashes = tuple(_crash(name, row) for name, row in lkdtm.CRASHES.items() if row.stock)
    return (*found, *crashes)


def _crash(name: str, row: lkdtm.Crash) -> Control:
    """The control that one of the kernel's own crash types is."""
    return Control(
        name=f"lkdtm-{name.lower().replace('_', '-')}",
        title=f"lkdtm {name}",
        why="the kernel's own crash on demand",
        on=BASE,
        profile=row.profile,
        expect=tuple(Expected(text=kind.value, kind=kind) for kind in row.kinds),
        match=None,
        suites=(lkdtm.NAME,),
        filesystems=(),
        scenarios=(name,),
        duration_s=row.wait_s,
        threads=2,
        settings=dict(row.settings),
        limit_s=row.wait_s + 30.0,
        patched=False,
    )


def choose(controls: Sequence[Control], names: Sequence[str]) -> tuple[Control, ...]:
    """Those of that name, in the order asked for; all without a name. Raises `UserError`."""
    if not names:
        return tuple(controls)
    known = {one.name: one for one in controls}
    for name in names:
        if name not in known:
            raise UserError(f"no control {name!r}", hint=f"known: {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names))


def _plan(one: Control) -> tuple[PlannedCase, ...]:
    """The cases that the fault was planted for."""
    options = SuiteOptions(
        filesystems=one.filesystems,
        scenarios=one.scenarios,
        duration_s=one.duration_s,
        threads=one.threads,
    )
    return tuple(case for suite in _suites(one) for case in suite.plan(options))


def _suites(one: Control) -> tuple[Suite, ...]:
    named = tuple(name for name in one.suites if name != lkdtm.NAME)
    return (*registry.find(named), *((_LKDTM,) if lkdtm.NAME in one.suites else ()))


def exit_code(record: SelftestRecord) -> ExitCode:
    """A control that was not caught is the lab's failure; what did not run proves nothing."""
    grades = {result.grade for result in record.results}
    if grades & {Grade.MISSED, Grade.NOISY}:
        return ExitCode.REGRESSED
    if Grade.INCONCLUSIVE in grades or not grades:
        return ExitCode.INCONCLUSIVE
    return ExitCode.CLEAN


# --- a run -------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Work:
    """A selftest under way on one architecture."""

    request: Request
    arch: str
    cache: Cache
    folder: Path
    gathered: Gathered
    emit: Emit
    controls: tuple[Control, ...]
    results: list[ControlResult] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    series: dict[str, Series | None] = field(default_factory=dict)
    clean: dict[tuple[str, str], Kernel | BuildFailure] = field(default_factory=dict)
    quiet: dict[str, tuple[Judged, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return self.request.config


async def run(request: Request, emit: Emit) -> tuple[SelftestRecord, Path]:
    """Build and run the controls; returns the record and the run's folder.

    Raises `UserError` before anything is built if the request cannot be carried out.
    """
    config = request.config
    check_tools(config)
    controls = choose(load(request.folder), request.names)
    cache = Cache(root=config.paths.cache_dir)
    cache.sweep()
    began = time.monotonic()
    started = _begin(request, controls)
    folder, started = _open_run(config.paths.runs_dir, started, emit)
    gathered = Gathered()
    results: list[ControlResult] = []
    with locked(folder / "lock"):
        write_atomically(folder / _BEGUN, model.encode(started))
        for name in started.archs:
            mine = tuple(one for one in controls if not one.archs or name in one.archs)
            work = _Work(
                request=request,
                arch=name,
                cache=cache,
                folder=folder,
                gathered=gathered,
                emit=emit,
                controls=mine,
                results=results,
            )
            await _run_arch(work)
        record = replace(
            started,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            results=tuple(results),
            kernels=tuple(gathered.kernels),
            failures=tuple(gathered.failures),
            trials=tuple(gathered.trials),
            wall_s=time.monotonic() - began,
        )
        write_atomically(folder / RECORD, model.encode(record))
    return record, folder


def _begin(request: Request, controls: Sequence[Control]) -> SelftestRecord:
    digest = hashlib.sha256()
    config = request.config
    files = [
        path.read_bytes()
        for one in controls
        if one.patched
        for path in sorted((request.folder / one.name).iterdir())
    ]
    known = [(one.name, one.settings, one.duration_s, one.scenarios) for one in controls]
    for part in (known, files, config.kernel, config.arch, config.machine, config.run.seed):
        digest.update(repr(part).encode() + b"\0")
    now = datetime.now(UTC)
    return SelftestRecord(
        run=f"{now:%Y%m%d-%H%M%S}-selftest",
        created=now.isoformat(timespec="seconds"),
        finished="",
        lab_version=lab.__version__,
        command=request.command,
        digest=digest.hexdigest(),
        archs=tuple(arch_row(name).name for name in config.arch),
        seed=config.run.seed,
        results=(),
        kernels=(),
        failures=(),
        trials=(),
        wall_s=0.0,
    )


def _open_run(runs: Path, started: SelftestRecord, emit: Emit) -> tuple[Path, SelftestRecord]:
    """A new folder, or that of the same selftest cut off before its end."""
    for path in sorted(runs.glob(f"*/{_BEGUN}"), reverse=True):
        folder = path.parent
        if (folder / RECORD).exists() or is_locked(folder / "lock"):
            continue
        with contextlib.suppress(LabFault, OSError):
            old = model.decode(path.read_bytes(), SelftestRecord)
            if old.digest == started.digest:
                text = f"taking up {old.run}, which was cut off"
                emit(Event(kind=EventKind.NOTE, step="selftest", text=text))
                return folder, replace(started, run=old.run, created=old.created)
    names = (started.run, *(f"{started.run}-{number}" for number in range(2, 1000)))
    folder = next(runs / name for name in names if not (runs / name).exists())
    folder.mkdir(parents=True)
    return folder, replace(started, run=folder.name)


async def _run_arch(work: _Work) -> None:
    # One kernel at a time, clean ones first: what runs on it then has no build beside it.
    order = sorted(work.controls, key=lambda one: (one.profile, one.on, one.patched))
    for number, one in enumerate(order):
        work.emit(
            Event(
                kind=EventKind.STARTED,
                step=_step(one, work),
                text=one.title,
                fraction=number / len(order),
            )
        )
        result = await _run_control(one, work)
        work.results.append(result)
        work.emit(
            Event(
                kind=EventKind.DONE, step=_step(one, work), text=f"{result.grade}: {result.reason}"
            )
        )


def _step(one: Control, work: _Work) -> str:
    return f"control {one.name} {work.arch}"


async def _run_control(one: Control, work: _Work) -> ControlResult:
    """Build it, see that the kernel without it is quiet, run it until it is caught or too late."""
    clean = await asyncio.to_thread(_clean_kernel, one.on, one.profile, work)
    if isinstance(clean, BuildFailure):
        return _ungraded(one, work, f"the kernel below it does not build: {_why(clean)}")
    built = clean
    if one.patched:
        planted = await asyncio.to_thread(_planted_kernel, one, clean, work)
        if isinstance(planted, BuildFailure):
            return _ungraded(one, work, f"it does not build: {_why(planted)}")
        built = planted
    lacking = [
        symbol
        for suite in _suites(one)
        for symbol in registry.missing_symbols(suite.needs(), built.config.read_text())
    ]
    if lacking:
        return _ungraded(one, work, f"its kernel lacks {', '.join(lacking)}")
    gear = await equip(clean, work.config, work.cache, work.emit)
    fault = _kit(one, built, gear, work)
    sound = _kit(one, clean, gear, work)
    quiet, quiet_trials = await _see_quiet(one, sound, work)
    if quiet.grade is not Grade.QUIET:
        text = f"without the fault, {quiet.reason}"
        return replace(
            _ungraded(one, work, text), grade=quiet.grade, trials=quiet_trials, said=quiet.said
        )
    trials = await _try(one, fault, work)
    judged = control.judge(one, _names(one), trials)
    return replace(
        _ungraded(one, work, judged.reason),
        grade=judged.grade,
        detector=judged.detector,
        case=judged.case,
        said=judged.said,
        within_s=judged.within_s,
        tries=len({trial.cell.repeat for trial in trials}),
        also=judged.also,
        build_s=built.build_s if one.patched and built.make_ran else 0.0,
        kernel_key=built.key,
        trials=(*(trial.id for trial in trials), *quiet_trials),
    )


def _why(failure: BuildFailure) -> str:
    error = failure.first_error
    return f"{error.file}:{error.line}: {error.message}"


def _ungraded(one: Control, work: _Work, reason: str) -> ControlResult:
    return ControlResult(
        name=one.name,
        title=one.title,
        on=one.on,
        profile=one.profile,
        arch=work.arch,
        expect=tuple(each.text for each in one.expect),
        grade=Grade.INCONCLUSIVE,
        reason=reason,
        limit_s=one.limit_s,
    )


def _names(one: Control) -> tuple[str, ...]:
    return tuple(case.name for case in _plan(one))


# --- kernels -----------------------------------------------------------------------------------


def _series(on: str, work: _Work) -> Series | None:
    """The series that controls stand on; None for the base."""
    if on not in work.series:
        path = str(work.request.folder.parent / on)
        work.series[on] = (
            None
            if on == BASE
            else intake.take(path, repository=None, cache=work.cache, emit=work.emit)
        )
    return work.series[on]


def _source(on: str, work: _Work) -> Source:
    series = _series(on, work)
    name = work.config.kernel or (series.kernel if series else None) or DEFAULT_KERNEL
    if name not in work.sources:
        work.sources[name] = open_source(name, cache=work.cache, emit=work.emit)
    return work.sources[name]


def _fragments(on: str, profile: str, work: _Work) -> tuple[Fragment, ...]:
    series = _series(on, work)
    own = (*kconfig.fragments(profile, work.arch), *own_fragments(work.config))
    if series is None or not series.fragment:
        return own
    return (*own, Fragment(name="series.toml", text=series.fragment))


def _clean_kernel(on: str, profile: str, work: _Work) -> Kernel | BuildFailure:
    """The series, or the base, that controls of this profile stand on."""
    if (on, profile) in work.clean:
        return work.clean[on, profile]
    series = _series(on, work)
    tree = checkout(
        _source(on, work), series.patches if series else (), cache=work.cache, emit=work.emit
    )
    # A base that nobody else needs is not built only to be started from: its objects save
    # hardly anything where a series touches a header that all include.
    seed = None
    if on != BASE and any((one.on, one.profile) == (BASE, profile) for one in work.controls):
        base = _clean_kernel(BASE, profile, work)
        seed = base if isinstance(base, Kernel) else None
    side = Side.PATCHED if series else Side.BASE
    planted = any(one.patched and (one.on, one.profile) == (on, profile) for one in work.controls)
    work.clean[on, profile] = _build(tree, on, profile, side, seed, work, keep=planted)
    return work.clean[on, profile]


def _planted_kernel(one: Control, clean: Kernel, work: _Work) -> Kernel | BuildFailure:
    series = _series(one.on, work)
    planted = intake.take(
        str(work.request.folder / one.name), repository=None, cache=work.cache, emit=work.emit
    )
    patches = (*(series.patches if series else ()), *planted.patches)
    tree = checkout(_source(one.on, work), patches, cache=work.cache, emit=work.emit)
    seeds = (clean, work.clean.get((BASE, one.profile)))
    seed = next((k for k in seeds if isinstance(k, Kernel) and (k.folder / "obj").is_dir()), None)
    return _build(tree, one.on, one.profile, Side.PATCHED, seed, work)


def _build(
    tree: Tree,
    on: str,
    profile: str,
    side: Side,
    seed: Kernel | None,
    work: _Work,
    *,
    keep: bool = False,
) -> Kernel | BuildFailure:
    built = build.build(
        tree,
        arch=work.arch,
        side=side,
        fragments=_fragments(on, profile, work),
        cache=work.cache,
        emit=work.emit,
        jobs=work.config.build.job_count,
        seed=seed,
        keep=keep,
    )
    if isinstance(built, Kernel):
        work.gathered.kernels.append(built)
    else:
        work.gathered.failures.append(built)
    return built


# --- machines ----------------------------------------------------------------------------------


def _kit(one: Control, kernel: Kernel, gear: Equipment, work: _Work) -> Kit:
    cases = {case.name: case for case in (*_BOOT.plan(SuiteOptions()), *_plan(one))}
    suites = (_BOOT, *(suite for suite in _suites(one) if suite.name != _BOOT.name))
    return replace(
        equipment.kit(kernel, suites, tuple(cases.values()), work.config, gear),
        enough=frozenset(each.kind.value for each in one.expect if each.kind),
    )


def _cell(one: Control, kit: Kit, cases: tuple[str, ...], repeat: int, work: _Work) -> Cell:
    planned = equipment.cell(kit, work.config, cases, repeat, profile=one.profile)
    return replace(planned, settings=one.settings)


def _pool(kit: Kit, work: _Work) -> Pool:
    return Pool(
        arch=work.arch,
        kits={kit.kernel.side: kit},
        folder=work.folder,
        split=Split(machines=1, costs={}),
        trials=work.gathered.trials,
        emit=work.emit,
    )


async def _run(cell: Cell, kit: Kit, work: _Work, done: Callable[[Trial], bool]) -> None:
    """The cell, in as many machines as it takes, until `done` says that the rest can be spared."""
    async for one in relay(cell, _pool(kit, work).one_trial):
        work.gathered.trials.append(one)
        if done(one):
            return


async def _see_quiet(one: Control, kit: Kit, work: _Work) -> tuple[Judged, tuple[str, ...]]:
    """The same cases with the same settings on the kernel without the fault, once for all.

    The crashes on demand are left out: they crash any kernel.
    """
    planned = [case for case in _plan(one) if not case.name.startswith(f"{lkdtm.NAME}/")]
    cases = tuple(dict.fromkeys((boot.CASE, *(case.name for case in planned))))
    settings = one.settings if planned else {}
    asked = repr((kit.kernel.key, planned, sorted(settings.items())))
    if asked not in work.quiet:
        before = len(work.gathered.trials)
        cell = replace(_cell(one, kit, cases, 0, work), settings=settings)
        await _run(cell, kit, work, lambda _: False)
        trials = work.gathered.trials[before:]
        judged = control.judge_clean(one, cases, trials)
        work.quiet[asked] = judged, tuple(trial.id for trial in trials)
    return work.quiet[asked]


async def _try(one: Control, kit: Kit, work: _Work) -> list[Trial]:
    """Run it with one seed after the other until it is caught or its time is over."""
    cases = tuple(dict.fromkeys((boot.CASE, *_names(one))))
    trials: list[Trial] = []

    def decided(trial: Trial) -> bool:
        trials.append(trial)
        judged = control.judge(one, _names(one), trials)
        return judged.grade is not Grade.MISSED or judged.within_s >= one.limit_s

    for repeat in range(max(1, int(one.limit_s // one.duration_s))):
        await _run(_cell(one, kit, cases, repeat, work), kit, work, decided)
        trials_so_far = control.judge(one, _names(one), trials)
        if trials_so_far.grade is not Grade.MISSED or trials_so_far.within_s >= one.limit_s:
            break
    return trials
