"""The tables [matrix] and [nightly] of `lab.toml` go in, jobs come out: one `lab run` each."""

from __future__ import annotations

import difflib
import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import PurePath

from lab import kconfig, model, selection
from lab.arch import ARCHS
from lab.config import Config, Entry, Matrix
from lab.model import UserError
from lab.suites import registry, scratch, xfsconfig
from lab.suites.protocol import SuiteOptions, Supplied

# Axis of the table -> the key that an entry of include or exclude, and a job, has for it.
AXES = {
    "kernels": "kernel",
    "series": "series",
    "arch": "arch",
    "profiles": "profile",
    "filesystems": "filesystem",
    "suites": "suite",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One cell of the matrix: a series against its base. "" is what `lab run` takes by default."""

    kernel: str
    series: str
    arch: str
    profile: str
    filesystem: str
    suite: str  # several with commas between them

    @property
    def name(self) -> str:
        """For people: "srcu-vma debian:6.1 x86_64 lockdep faultstress ext4"."""
        series = PurePath(self.series).name or self.series
        parts = (series, self.kernel, self.arch, self.profile, self.suite, self.filesystem)
        return " ".join(part for part in parts if part)

    @property
    def key(self) -> str:
        """Stable over nights: the name of its files."""
        return hashlib.sha256(model.encode(self)).hexdigest()[:12]

    @property
    def words(self) -> tuple[str, ...]:
        """The command line after `lab`."""
        options = {
            "--patch": self.series,
            "--kernel": self.kernel,
            "--arch": self.arch,
            "--profile": self.profile,
            "--suite": self.suite,
        }
        options |= _filesystem_options(self.suite, self.filesystem)
        given = [(option, value) for option, value in options.items() if value]
        return ("run", *(word for pair in given for word in pair))

    @property
    def command(self) -> str:
        """The same, to be pasted."""
        return shlex.join(("lab", *self.words))


def jobs(config: Config, *, file: str) -> tuple[Job, ...]:
    """The jobs of the matrix, each once, in the order of the table.

    Raises `UserError` that names `file` and the key for a value that nobody knows, and for a
    matrix without a job.
    """
    table = config.matrix
    if not table.series and not any(entry.series for entry in table.include):
        raise UserError(
            f"{file}: matrix.series: none is listed", hint='write it like ["patches/srcu-vma"]'
        )
    _check(table, file)
    axes = _axes(config)
    excluded = list(table.exclude)
    found: dict[Job, None] = {}
    for job in _product(axes):
        if not any(_covers(entry, job) for entry in excluded):
            found[job] = None
    for number, entry in enumerate(table.include):
        if not (entry.series or table.series):
            raise UserError(f"{file}: matrix.include[{number}]: names no series")
        for job in _product(_narrowed(axes, entry)):
            found[job] = None
    if not found:
        raise UserError(f"{file}: matrix: every job is excluded")
    _check_excludes(table, axes, file)
    return tuple(found)


def digest(jobs: Sequence[Job]) -> str:
    """Equal for equal jobs in the same order."""
    return hashlib.sha256(b"".join(model.encode(job) for job in jobs)).hexdigest()


# --- axes --------------------------------------------------------------------------------------


def _axes(config: Config) -> dict[str, tuple[str, ...]]:
    """Key -> values; never empty but for `series`."""
    table = config.matrix
    return {
        "kernel": table.kernels or (config.kernel,),
        "series": table.series,
        "arch": table.arch or config.arch,
        "profile": table.profiles or (config.profile,),
        "suite": table.suites or (",".join(config.suites),),
        "filesystem": table.filesystems or ("",),
    }


def _narrowed(axes: Mapping[str, tuple[str, ...]], entry: Entry) -> dict[str, tuple[str, ...]]:
    given = {key: getattr(entry, key) for key in AXES.values()}
    return {key: values if given[key] is None else (given[key],) for key, values in axes.items()}


def _product(axes: Mapping[str, tuple[str, ...]]) -> Iterable[Job]:
    order = ("kernel", "series", "arch", "profile", "suite")
    for values in product(*(axes[key] for key in order)):
        row = dict(zip(order, values, strict=True))
        for filesystem in _taken(row["suite"], axes["filesystem"]):
            yield Job(**row, filesystem=filesystem)


def _covers(entry: Entry, job: Job) -> bool:
    return all(
        value is None or value == getattr(job, key)
        for key, value in ((key, getattr(entry, key)) for key in AXES.values())
    )


# --- file systems ------------------------------------------------------------------------------


def _filesystem_options(suite: str, filesystem: str) -> dict[str, str]:
    """What `lab run` is told; nothing for suites that know no file systems."""
    names = {word.partition(":")[0] for word in suite.split(",")}
    options: dict[str, str] = {}
    # No suite is named: those that `lab run` takes by default have faultstress among them.
    if any(_has_cases(name or "faultstress", filesystem) for name in names):
        options["--filesystem"] = filesystem
    if "xfstests" in names and (found := _xfstests_config(filesystem)):
        options["--xfstests-config"] = found
    return options


def _filesystems(suite: str) -> tuple[str, ...]:
    """Those that a suite knows which makes them itself."""
    return (*scratch.FILESYSTEMS, *(scratch.DAX if suite == "faultstress" else ()))


@cache
def _has_cases(suite: str, filesystem: str) -> bool:
    """Whether that suite, which brings no list of its own, has cases on that file system."""
    known = registry.SUITES[suite]
    if isinstance(known, Supplied) or filesystem not in _filesystems(suite):
        return False
    cases = known.plan(SuiteOptions(filesystems=(filesystem,)))
    return any(filesystem in case.name.split("/") for case in cases)


def _xfstests_config(filesystem: str) -> str:
    """Its configuration of that name; of a bare file system the plainest one. "": it has none."""
    known = xfsconfig.configs()
    plain = f"{filesystem}-4k"
    return next((name for name in (filesystem, plain) if name in known), "")


def _taken(suite: str, filesystems: Sequence[str]) -> tuple[str, ...]:
    """Those that the suite knows; if it knows none of them, it runs once."""
    return tuple(fs for fs in filesystems if fs and _filesystem_options(suite, fs)) or ("",)


# --- refusals ----------------------------------------------------------------------------------


def _check(table: Matrix, file: str) -> None:
    for axis, key in AXES.items():
        for value in getattr(table, axis):
            _check_value(key, value, f"{file}: matrix.{axis}")
    for kind, entries in (("include", table.include), ("exclude", table.exclude)):
        for number, entry in enumerate(entries):
            for key in AXES.values():
                value = getattr(entry, key)
                if value is not None:
                    _check_value(key, value, f"{file}: matrix.{kind}[{number}].{key}")


def _check_value(key: str, value: str, where: str) -> None:
    if not value:
        raise UserError(f"{where}: it is empty", hint="leave the key out for the default")
    match key:
        case "arch":
            _one_of(value, ARCHS, where)
        case "profile":
            _one_of(value, kconfig.profiles(), where)
        case "filesystem":
            _one_of(value, (*_filesystems("faultstress"), *xfsconfig.configs()), where)
        case "suite":
            try:
                selection.parse(value.split(","))
            except UserError as error:
                raise UserError(f"{where}: {error.message}", hint=error.hint) from error


def _one_of(value: str, known: Iterable[str], where: str) -> None:
    names = tuple(dict.fromkeys(known))
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
        raise UserError(f"{where}: {value!r} is unknown", hint=hint)


def _check_excludes(table: Matrix, axes: Mapping[str, tuple[str, ...]], file: str) -> None:
    """An exclude that strikes nothing is a mistake: what it was to keep out would run."""
    every = tuple(_product(axes))
    for number, entry in enumerate(table.exclude):
        if not any(_covers(entry, job) for job in every):
            raise UserError(
                f"{file}: matrix.exclude[{number}]: no job is like that",
                hint="lab matrix lists the jobs; values are written as in the axes",
            )
