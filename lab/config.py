"""`lab.toml` goes in, a typed `Config` comes out; a key that nobody knows is an error."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from lab.model import UserError

FILE_NAME = "lab.toml"
_APP = "kernel-patch-lab"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Paths(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where things are kept; "" means the XDG default. `~` is expanded."""

    cache: str = ""
    runs: str = ""

    @property
    def cache_dir(self) -> Path:
        if self.cache:
            return Path(self.cache).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _APP

    @property
    def runs_dir(self) -> Path:
        if self.runs:
            return Path(self.runs).expanduser().absolute()
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
        return state / _APP / "runs"


class Build(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How kernels are built. `jobs` 0 means one for each core."""

    jobs: int = 0
    fragments: tuple[str, ...] = ()  # files of your own, merged after the profile's

    @property
    def job_count(self) -> int:
        return self.jobs or len(os.sched_getaffinity(0))


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The guests. Time limits are for KVM; under slower accelerators they stretch with the
    measured speed."""

    accel: str = "auto"  # "auto" | "kvm" | "tcg"
    cpus: int = 2
    memory: str = "1G"
    boot_limit_s: float = 30.0
    silence_limit_s: float = 60.0
    parallel: int = 0  # machines at once; 0: as many as cores and memory carry
    snapshots: bool = True  # false: every machine boots
    dump: bool = False  # keep the memory of a machine that panics or hangs

    @property
    def forced_accel(self) -> str | None:
        """What the user insists on; None: the lab finds out."""
        return None if self.accel == "auto" else self.accel

    @property
    def memory_bytes(self) -> int:
        return size_bytes(self.memory, where="machine.memory")


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often cases run on each side: `repeats` always, up to `max_repeats` for suspects."""

    repeats: int = 2
    max_repeats: int = 16  # a flake can be dropped after 13 quiet fresh runs, not before
    seed: int = 1
    comparator: str = ""  # another kernel whose numbers stand beside, "debian:6.12"; "": none
    only: tuple[str, ...] = ()  # names or patterns of cases; empty: all of the suites


class Xfstests(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the user's own, built tree of xfstests lies, and what of it runs."""

    tree: str = ""  # for the architecture that it was built for
    trees: dict[str, str] = {}  # by architecture
    configs: tuple[str, ...] = ("ext4-4k",)  # file system configurations: lab/suites/data/xfstests/
    excludes: tuple[str, ...] = ()  # files of your own, besides those of the lab
    timeout_s: float = 900.0  # of one test


class Kselftest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    collections: tuple[str, ...] = ("mm", "filesystems", "mount_setattr")
    timeout_s: float = 1200.0  # of one test program


class Faultstress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    filesystems: tuple[str, ...] = ("ext4", "xfs", "tmpfs")
    scenarios: tuple[str, ...] = ()  # empty: munmap, mapfixed, mprotect, truncate
    duration_s: float = 5.0
    threads: int = 4


class Faultinject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """File systems, duration and threads are those of [faultstress]."""

    profiles: tuple[str, ...] = ()  # files of your own, besides lab/suites/data/faultinject/


class Splats(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Known splats: files that name them, each with a reason, a link and its last day."""

    allow: tuple[str, ...] = ()


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where cells run, if not here."""

    scheduler: str = ""  # of Dask: "tcp://host:8786"; "": this host runs its cells itself
    artefacts: str = ""  # URL of a folder that every worker reaches; "": they see our files
    patience_s: float = 300.0  # how long a scheduler or the last fitting worker may be gone


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A host that can be prepared over ssh; what is left out, ssh's own configuration says."""

    address: str = ""  # "user@name:port"; "": the entry's own name
    key: str = ""  # file of a private key
    folder: str = "kernel-patch-lab"  # of the lab there, relative to the home
    python: str = "python3"  # there


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Jobs of the matrix: a key that is left out stands for every value of its axis."""

    kernel: str | None = None
    series: str | None = None
    arch: str | None = None
    profile: str | None = None
    filesystem: str | None = None
    suite: str | None = None


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `lab nightly` runs: every combination of the axes. An empty axis is what `lab run`
    takes by default."""

    kernels: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    arch: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    filesystems: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()  # "boot,faultstress": both in the same machines
    include: tuple[Entry, ...] = ()
    exclude: tuple[Entry, ...] = ()


class Nightly(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How `lab nightly` spends its time, and who is told."""

    budget: str = ""  # "8h"; "": as long as it takes
    mail_to: tuple[str, ...] = ()  # empty: the mail is only written
    mail_from: str = "lab@localhost"
    mail_command: tuple[str, ...] = ("/usr/sbin/sendmail", "-t", "-i")  # gets it on its input


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of `lab.toml`. The defaults here are the defaults of the lab."""

    kernel: str = ""  # "" : what the series asks for, else debian:6.1
    arch: tuple[str, ...] = ("x86_64", "arm64")
    profile: str = "lockdep"
    suites: tuple[str, ...] = ()  # empty: what the series asks for, else boot and faultstress
    paths: Paths = Paths()
    build: Build = Build()
    machine: Machine = Machine()
    run: Run = Run()
    faultstress: Faultstress = Faultstress()
    faultinject: Faultinject = Faultinject()
    splats: Splats = Splats()
    xfstests: Xfstests = Xfstests()
    kselftest: Kselftest = Kselftest()
    fleet: Fleet = Fleet()
    hosts: dict[str, Host] = {}
    matrix: Matrix = Matrix()
    nightly: Nightly = Nightly()


def size_bytes(text: str, *, where: str) -> int:
    """ "512M" -> 536870912. Raises `UserError` that names `where`."""
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"{where}: {text!r} is not a size", hint='write it like "512M" or "2G"')
    return int(match[1]) * _UNITS[match[2].upper()]


def duration_s(text: str, *, where: str) -> float:
    """ "90", "90s", "30m", "8h" -> seconds. Raises `UserError` that names `where`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if match is None:
        raise UserError(f"{where}: {text!r} is not a duration", hint='write it like "90s" or "30m"')
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _check_keys(table: Mapping[str, Any], kind: type, file: str, prefix: str = "") -> None:
    """Every key of `table` is a field of `kind`, at any depth."""
    known = get_type_hints(kind)
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{file}: unknown key {prefix}{key}", hint=hint)
        inner = known[key]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            if not isinstance(value, dict):
                raise UserError(f"{file}: {prefix}{key} is a table", hint=f"write [{prefix}{key}]")
            _check_keys(value, inner, file, f"{prefix}{key}.")
        elif inner == tuple[Entry, ...] and isinstance(value, list):
            for number, entry in enumerate(value):
                if isinstance(entry, dict):
                    _check_keys(entry, Entry, file, f"{prefix}{key}[{number}].")


def parse(raw: str, *, file: str) -> Config:
    """The text of a `lab.toml`. Raises `UserError` that names the file and the key."""
    try:
        table = tomllib.loads(raw)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: {error}") from error
    _check_keys(table, Config, file)
    try:
        config = msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        key = where.strip("`").removeprefix("$.")
        raise UserError(f"{file}: {key}: {what}" if key else f"{file}: {what}") from error
    _check_values(config, file)
    return config


def _check_values(config: Config, file: str) -> None:
    """Values of the right type that make no sense."""
    size_bytes(config.machine.memory, where=f"{file}: machine.memory")
    _check_nightly(config.nightly, file)
    if not config.arch:
        raise UserError(f"{file}: arch: none is listed", hint='write it like ["x86_64"]')
    if config.machine.accel not in ("auto", "kvm", "tcg"):
        raise UserError(
            f"{file}: machine.accel: {config.machine.accel!r}", hint="one of auto, kvm, tcg"
        )
    for name, value, least in (
        ("machine.cpus", config.machine.cpus, 1),
        ("machine.parallel", config.machine.parallel, 0),
        ("run.repeats", config.run.repeats, 1),
        ("run.max_repeats", config.run.max_repeats, config.run.repeats),
        ("build.jobs", config.build.jobs, 0),
        ("faultstress.duration_s", config.faultstress.duration_s, 1),
        ("faultstress.threads", config.faultstress.threads, 1),
        ("xfstests.timeout_s", config.xfstests.timeout_s, 1),
        ("kselftest.timeout_s", config.kselftest.timeout_s, 1),
        ("fleet.patience_s", config.fleet.patience_s, 1),
    ):
        if value < least:
            raise UserError(f"{file}: {name}: {value} is below {least}")


def _check_nightly(nightly: Nightly, file: str) -> None:
    if nightly.budget:
        duration_s(nightly.budget, where=f"{file}: nightly.budget")
    for key, addresses in (("mail_from", (nightly.mail_from,)), ("mail_to", nightly.mail_to)):
        for address in addresses:
            # They become headers of a mail.
            if not address.isprintable() or "@" not in address:
                raise UserError(f"{file}: nightly.{key}: {address!r} is not an address")
    if nightly.mail_to and not nightly.mail_command:
        raise UserError(
            f"{file}: nightly.mail_command: it is empty", hint='write it like ["sendmail", "-t"]'
        )


def find(start: Path) -> Path | None:
    """The `lab.toml` in force: in `start` itself, else the user's own."""
    if (start / FILE_NAME).is_file():
        return start / FILE_NAME
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / _APP / FILE_NAME
    return home if home.is_file() else None


def load(file: Path | None) -> Config:
    """Read that file; without one, the defaults. Raises `UserError`."""
    if file is None:
        return Config()
    try:
        return parse(file.read_text(encoding="utf-8"), file=str(file))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text") from error
