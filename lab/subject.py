"""A request goes in; the series, its trees, the plan and the two kernels come out.

Everything that `lab run`, `lab build` and `lab boot` have in common before a machine starts.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab import build, host, intake, kconfig, selection, source
from lab.arch import Arch
from lab.arch import arch as arch_row
from lab.config import Config
from lab.kconfig import Fragment
from lab.machine import PMEM_DEVICE, Disk, Timeouts
from lab.model import (
    Accelerator,
    BuildFailure,
    Emit,
    Event,
    EventKind,
    Kernel,
    Series,
    Side,
    Source,
    UserError,
)
from lab.selection import Selection
from lab.splat import allow
from lab.splat.allow import Allowed
from lab.store import Cache
from lab.suites import registry
from lab.suites.protocol import Ground, Needs, PlannedCase, Suite, SuiteOptions
from lab.tree import Tree, apply, checkout

DEFAULT_KERNEL = "debian:6.1"
DEFAULT_SUITES = ("boot", "faultstress")
# What joins them for a series that touches memory management, where there is a tree of xfstests.
MM_SUITES = ("xfstests:fault",)
# Seconds from start to hello under KVM; a slower machine gets its limits stretched by the ratio.
_REFERENCE_BOOT_S = 1.5
_NEEDED_TOOLS = ("qemu-img", "make", "gcc", "ld", "flex", "bison", "bc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `lab run` was asked for."""

    patch: str
    config: Config
    command: tuple[str, ...] = ()
    each_patch: bool = False  # build and boot every prefix of the series, too
    coverage: bool = False  # measure which lines of the series run, too
    repository: Path | None = None  # where a git range is looked up; default: the kernel's tree
    # What a replay has at hand already, and the run that it repeats.
    series: Series | None = None
    source: Source | None = None
    replays: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The series and the two trees it makes."""

    series: Series
    source: Source
    base: Tree
    patched: Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is decided before the first build."""

    subject: Subject
    suites: tuple[Suite, ...]
    cases: tuple[PlannedCase, ...]
    fragments: dict[tuple[str, Side], tuple[Fragment, ...]]  # by architecture and side
    archs: tuple[str, ...]
    allowed: tuple[Allowed, ...] = ()  # known splats
    disks: Mapping[tuple[str, Side], tuple[Disk, ...]] = field(default_factory=dict)  # of suites
    absent: tuple[str, ...] = ()  # suites that cannot run, each with its reason

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(case.name for case in self.cases)


def take(request: Request, cache: Cache, emit: Emit) -> Subject:
    """Series, source and both trees. Raises `UserError` if the series does not apply."""
    check_tools(request.config)
    repository = request.repository
    name = request.config.kernel
    if repository is None and name and not name.startswith("debian:"):
        candidate = Path(name.partition("@")[0]).expanduser()
        repository = candidate if candidate.is_dir() else None
    series = request.series or intake.take(
        request.patch, repository=repository, cache=cache, emit=emit
    )
    kernel = request.source or source.open_source(
        name or series.kernel or DEFAULT_KERNEL, cache=cache, emit=emit
    )
    if kernel.dirty:
        text = f"{kernel.name} has uncommitted changes; they are not part of the test"
        emit(Event(kind=EventKind.WARNING, step="source", text=text))
    patched = checkout(kernel, series.patches, cache=cache, emit=emit, kernel=series.kernel)
    base = checkout(kernel, (), cache=cache, emit=emit)
    return Subject(series=series, source=kernel, base=base, patched=patched)


def prefix_commits(subject: Subject, cache: Cache, emit: Emit) -> tuple[str, ...]:
    """The commit of the base, then that of each patch: they were made when the tree was."""
    steps = apply(subject.source, subject.series.patches, cache=cache, emit=emit)
    return tuple(step.commit for step in steps)


def check_tools(config: Config) -> None:
    """Raises `UserError` for missing programs: better now than after minutes of compiling."""
    for needed in _NEEDED_TOOLS:
        host.tool(needed)
    for row in map(arch_row, config.arch):
        missing = missing_tools(row)
        if not missing:
            continue
        packages = " ".join(sorted({host.PACKAGES[name] for name in missing}))
        others = ",".join(name for name in config.arch if arch_row(name) is not row)
        narrow = f", or leave {row.name} out: --arch {others}" if others else ""
        raise UserError(
            f"{row.name} needs what is not installed: {', '.join(missing)}",
            hint=f"sudo apt-get install {packages}{narrow}",
        )


def missing_tools(row: Arch) -> tuple[str, ...]:
    """Programs and files that an architecture needs on this host, and that are not there."""
    wanted = [row.qemu]
    if platform.machine() != row.machine:
        wanted += [f"{row.cross}gcc", f"{row.cross}ld", "arch-test", row.emulator]
        wanted.append(str(row.static_libc))
    return tuple(name for name in wanted if not host.installed(name))


def make_plan(
    subject: Subject, config: Config, *, cache: Cache | None = None, emit: Emit | None = None
) -> Plan:
    """Suites, cases and fragments. Raises `UserError` for names that nobody knows.

    Without `cache` and `emit`, for whoever only builds: suites that bring their own programs are
    left out.
    """
    archs = tuple(dict.fromkeys(arch_row(name).name for name in config.arch))
    ground = None
    if cache is not None and emit is not None:
        trees = {Side.BASE: subject.base, Side.PATCHED: subject.patched}
        ground = Ground(archs=archs, trees=trees, config=config, cache=cache, emit=emit)
    selected = selection.select(
        selection.parse(_suite_words(subject, config)),
        suite_options(config),
        only=config.run.only,
        ground=ground,
    )
    own = own_fragments(config)
    fragments: dict[tuple[str, Side], tuple[Fragment, ...]] = {}
    for name in archs:
        base = (*kconfig.fragments(config.profile, name), *own)
        extra = subject.series.fragment
        fragments[name, Side.BASE] = base
        fragments[name, Side.PATCHED] = (
            (*base, Fragment(name="series.toml", text=extra)) if extra else base
        )
    check_asked(selected, config, archs[0])
    for name in archs:
        check_devices(selected.cases, name)
    return Plan(
        subject=subject,
        suites=selected.suites,
        cases=selected.cases,
        fragments=fragments,
        archs=archs,
        disks=selected.disks,
        absent=selected.absent,
        allowed=known_splats(config),
    )


def _suite_words(subject: Subject, config: Config) -> tuple[str, ...]:
    """What the user asks for, else what the series does, else the defaults.

    Single cases alone mean: wherever they are.
    """
    if words := config.suites:
        return words
    if config.run.only:
        return tuple(registry.SUITES)
    if words := subject.series.suites:
        return words
    has_tree = bool(config.xfstests.tree or config.xfstests.trees)
    mm = any(path.startswith("mm/") for path in subject.patched.changed)
    return (*DEFAULT_SUITES, *(MM_SUITES if mm and has_tree else ()))


def known_splats(config: Config) -> tuple[Allowed, ...]:
    """The entries of the allow-lists in lab.toml. Raises `UserError` that names file and entry."""
    return tuple(
        entry for name in config.splats.allow for entry in allow.load(Path(name).expanduser())
    )


def suite_options(config: Config) -> SuiteOptions:
    return SuiteOptions(
        filesystems=config.faultstress.filesystems,
        scenarios=config.faultstress.scenarios,
        duration_s=config.faultstress.duration_s,
        threads=config.faultstress.threads,
        injections=config.faultinject.profiles,
    )


def own_fragments(config: Config) -> tuple[Fragment, ...]:
    """The user's own fragments from lab.toml."""
    return tuple(
        Fragment(name=name, text=_read_fragment(Path(name).expanduser()))
        for name in config.build.fragments
    )


def _read_fragment(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"build.fragments: {path}: {error.strerror}") from error


def build_pair(
    name: str, planned: Plan, config: Config, cache: Cache, emit: Emit
) -> list[Kernel | BuildFailure]:
    """Base, then patched from the base's objects; a failure is traced to its patch."""
    subject, jobs = planned.subject, config.build.job_count
    base = build.build(
        subject.base,
        arch=name,
        side=Side.BASE,
        fragments=planned.fragments[name, Side.BASE],
        cache=cache,
        emit=emit,
        jobs=jobs,
    )
    if isinstance(base, BuildFailure):
        return [base]
    _check_needs(planned, base, config, emit)
    fragments = planned.fragments[name, Side.PATCHED]
    patched = build.build(
        subject.patched,
        arch=name,
        side=Side.PATCHED,
        fragments=fragments,
        cache=cache,
        emit=emit,
        jobs=jobs,
        seed=base,
    )
    if isinstance(patched, BuildFailure):
        patched = _blame(name, patched, planned, config, cache, base, emit)
    return [base, patched]


def check_asked(selected: Selection, config: Config, arch: str) -> None:
    """Raises `UserError` for what a case requires and only other profiles ask for: the kernel will
    not have it, and that is better said before it is built."""
    text = "\n".join(
        one.text for one in (*kconfig.fragments(config.profile, arch), *own_fragments(config))
    )
    others = "\n".join(
        one.text for profile in kconfig.profiles() for one in kconfig.fragments(profile, arch)
    )
    for suite in selected.suites:
        known = tuple(
            symbol
            for symbol in registry.required(suite, selected.cases)
            if not registry.missing_symbols(Needs(symbols=(symbol,)), others)
        )
        _refuse(suite, known, selected.cases, text, config)


def emulates_pmem(arch: str) -> bool:
    """Whether the emulator of `arch` can have persistent memory."""
    return PMEM_DEVICE in host.run((host.tool(arch_row(arch).qemu), "-device", "help")).text


def check_devices(cases: Sequence[PlannedCase], arch: str) -> None:
    """Raises `UserError` for a device that cases need and the emulator of `arch` does not have."""
    if any(case.pmem for case in cases) and not emulates_pmem(arch):
        raise UserError(
            f"{host.version(arch_row(arch).qemu)} has no {PMEM_DEVICE}: "
            "no file system on persistent memory",
            hint=f"leave {arch} out with --arch, or the -dax file systems",
        )


def _refuse(
    suite: Suite,
    symbols: Sequence[str],
    cases: Sequence[PlannedCase],
    text: str,
    config: Config,
) -> None:
    """Raises `UserError` if the configuration `text` lacks one of the symbols."""
    missing = registry.missing_symbols(Needs(symbols=tuple(symbols)), text)
    if not missing:
        return
    rest = registry.runnable(suite, cases, text)
    groups = dict.fromkeys(":".join(name.split("/")[:2]) for name in rest)
    instead = f"; what it can run: --suite {','.join(groups)}" if groups else ""
    raise UserError(
        f"suite {suite.name} needs {', '.join(missing)}, "
        f"which profile {config.profile} does not set",
        hint="choose another profile (lab suites NAME names it), or add a fragment under [build] "
        f"in lab.toml{instead}",
    )


def _check_needs(planned: Plan, base: Kernel, config: Config, emit: Emit) -> None:
    """Every suite's Kconfig symbols are in the kernel. Raises `UserError` before any boot."""
    text = base.config.read_text()
    for suite in planned.suites:
        needs = suite.needs(suite_options(config))
        symbols = (*needs.symbols, *registry.required(suite, planned.cases))
        _refuse(suite, symbols, planned.cases, text, config)
        for symbol, lost in needs.better.items():
            if registry.missing_symbols(Needs(symbols=(symbol,)), text):
                told = f"profile {config.profile} does not set {symbol}: {lost}"
                emit(Event(kind=EventKind.WARNING, step=suite.name, text=told))


def _blame(
    name: str,
    failure: BuildFailure,
    planned: Plan,
    config: Config,
    cache: Cache,
    base: Kernel,
    emit: Emit,
) -> BuildFailure:
    """The failure of the first prefix of the series that does not build, with its patch."""
    patches = planned.subject.series.patches
    source_ = planned.subject.source
    emit(
        Event(
            kind=EventKind.NOTE,
            step=f"build patched {name}",
            text="does not build; looking for the patch that broke it",
        )
    )
    fragments = prefix_fragments(planned, name)
    found: dict[str, BuildFailure] = {planned.subject.patched.tree: failure}

    def probe(tree: Tree) -> Kernel | BuildFailure:
        if tree.tree in found:
            return found[tree.tree]
        result = build.build(
            tree,
            arch=name,
            side=Side.PATCHED,
            fragments=fragments,
            cache=cache,
            emit=emit,
            jobs=config.build.job_count,
            seed=base,
        )
        if isinstance(result, BuildFailure):
            found[tree.tree] = result
        return result

    trees = [planned.subject.base]
    trees += [
        checkout(source_, patches[:count], cache=cache, emit=emit)
        for count in range(1, len(patches) + 1)
    ]
    culprit = build.first_broken(trees, probe)
    first = found.get(trees[culprit].tree, failure)
    return replace(first, patch=patches[culprit - 1].name)


def prefix_fragments(planned: Plan, name: str) -> tuple[Fragment, ...]:
    """What a part of the series is configured with on that architecture."""
    base, extra = planned.fragments[name, Side.BASE], planned.subject.series.fragment
    # The first patches do not know yet what a later one adds.
    return (*base, where_present(extra)) if extra else base


def where_present(text: str) -> Fragment:
    """The series' own Kconfig lines, for prefixes that may not have those options yet."""
    lines = (f"{line}  # if present" if "=" in line else line for line in text.splitlines())
    return Fragment(name="series.toml", text="\n".join(lines) + "\n")


def slowness(accelerator: Accelerator, *, crowding: float = 1.0) -> float:
    """By how much a guest is slower than one under KVM that has its cores for itself."""
    return max(1.0, accelerator.boot_s / _REFERENCE_BOOT_S) * crowding


def timeouts(
    config: Config, accelerator: Accelerator, *, work_s: float, crowding: float = 1.0
) -> Timeouts:
    """Limits that stretch with the measured speed; `work_s` is what the cases may take.

    `crowding` says by how much machines that share cores are slower than one alone.

    Generous, because a limit that strikes a healthy guest costs more than a late one.
    """
    slower = slowness(accelerator, crowding=crowding)
    return Timeouts(
        boot_s=config.machine.boot_limit_s * slower,
        silence_s=config.machine.silence_limit_s * slower,
        wall_s=(config.machine.boot_limit_s + work_s) * slower,
    )
