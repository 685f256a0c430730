"""Files in xfstests/ go in: file system configurations, excluded tests, groups of the lab's own.

A configuration becomes a section of the file that xfstests' `check` reads. Raises `UserError`
that names file and key.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from lab.model import UserError

FOLDER = Path(__file__).parent / "data" / "xfstests"
TEST_DISK = "xfstest"  # serials of the two disks
SCRATCH_DISK = "xfsscratch"
TEST_DIR = "/mnt/xfstests/test"
SCRATCH_DIR = "/mnt/xfstests/scratch"
RESULTS = "/root/xfstests"
_BY_SERIAL = "/dev/disk/by-lab"
_FILESYSTEMS = ("ext4", "xfs", "btrfs", "tmpfs", "overlay")
_LONGEST = datetime.timedelta(days=366)
# They become words of a shell's assignment: nothing that a shell could take for its own.
_OPTION = re.compile(r"[A-Za-z0-9^][A-Za-z0-9_=,.^:+-]*|-[A-Za-z]")
_BOUND = re.compile(r"(>=|<=|>|<|==)\s*(\d+(?:\.\d+)*)")


# --- file system configurations ----------------------------------------------------------------


class FsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to make and mount a file system, as its file says it."""

    about: str  # one line
    filesystem: str
    mkfs: tuple[str, ...] = ()  # options of mkfs, also of the scratch disk
    mount: tuple[str, ...] = ()  # options of mount -o
    base: str = ""  # of an overlay: what its layers are on
    symbols: tuple[str, ...]  # Kconfig
    name: str = ""  # of the file; not a key of it

    @property
    def folders(self) -> tuple[str, ...]:
        """Where its tests are, below tests/."""
        return ("generic", self.filesystem)

    @property
    def made(self) -> str:
        """The file system that is on its disks; "" if it needs none."""
        return "" if self.filesystem == "tmpfs" else self.base or self.filesystem

    def section(self) -> str:
        """The text for `check`."""
        if self.made:
            test, scratch = (f"{_BY_SERIAL}/{serial}" for serial in (TEST_DISK, SCRATCH_DISK))
        else:
            test, scratch = "lab_test", "lab_scratch"  # names that show in /proc/mounts
        lines = {
            # For an overlay `check` is told so by an option, and the section is about its base.
            "FSTYP": self.made or self.filesystem,
            "TEST_DEV": test,
            "TEST_DIR": TEST_DIR,
            "SCRATCH_DEV": scratch,
            "SCRATCH_MNT": SCRATCH_DIR,
            "RESULT_BASE": RESULTS,
        }
        if self.mkfs:
            lines["MKFS_OPTIONS"] = f'"{" ".join(self.mkfs)}"'
        if self.mount:
            options = f'"-o {",".join(self.mount)}"'
            lines |= {"MOUNT_OPTIONS": options, "TEST_FS_MOUNT_OPTS": options}
        body = "".join(f"{name}={value}\n" for name, value in lines.items())
        return f"[{self.name}]\n{body}"


def parse_config(raw: bytes, *, name: str, origin: str) -> FsConfig:
    """One file of data/xfstests/configs/."""
    table = _table(raw, origin)
    if "name" in table:
        raise UserError(f"{origin}: unknown key 'name'", hint="the file's name is the name")
    try:
        config = msgspec.convert({**table, "name": name}, FsConfig)
    except msgspec.ValidationError as error:
        raise UserError(f"{origin}: {error}") from error
    if config.filesystem not in _FILESYSTEMS:
        known = ", ".join(_FILESYSTEMS)
        raise UserError(f"{origin}: filesystem: {config.filesystem!r}", hint=f"known: {known}")
    if (config.filesystem == "overlay") != bool(config.base):
        raise UserError(f"{origin}: base goes with an overlay, and an overlay with a base")
    for key, words in (("mkfs", config.mkfs), ("mount", config.mount)):
        for word in words:
            if not _OPTION.fullmatch(word):
                raise UserError(f"{origin}: {key}: {word!r} is not one option")
    return config


def configs(folder: Path = FOLDER / "configs") -> dict[str, FsConfig]:
    """All configurations by name."""
    return {
        path.stem: parse_config(path.read_bytes(), name=path.stem, origin=str(path))
        for path in sorted(folder.glob("*.toml"))
    }


# --- excluded tests ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclude:
    """Tests that are not run somewhere, until a day."""

    tests: tuple[str, ...]  # patterns
    configs: tuple[str, ...]  # patterns
    kernels: tuple[tuple[str, tuple[int, ...]], ...]  # all must hold: (">=", (6, 1))
    reason: str
    link: str
    expires: datetime.date

    def covers(self, test: str, config: str, version: tuple[int, ...]) -> bool:
        """Whether it is about that test there, whatever the day."""
        return (
            any(fnmatchcase(test, pattern) for pattern in self.tests)
            and any(fnmatchcase(config, pattern) for pattern in self.configs)
            and all(_holds(version, operator, bound) for operator, bound in self.kernels)
        )

    @property
    def told(self) -> str:
        return f"excluded until {self.expires}: {self.reason} ({self.link})"


def _holds(version: tuple[int, ...], operator: str, bound: tuple[int, ...]) -> bool:
    """Compare as much of the version as the bound has: 6.1.192 == 6.1."""
    mine = version[: len(bound)]
    match operator:
        case ">=":
            return mine >= bound
        case "<=":
            return mine <= bound
        case ">":
            return mine > bound
        case "<":
            return mine < bound
        case _:
            return mine == bound


def version_of(text: str) -> tuple[int, ...]:
    """ "6.1.192-rc1" -> (6, 1, 192)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def parse_excludes(raw: bytes, *, origin: str, today: datetime.date) -> tuple[Exclude, ...]:
    """The entries of a file of [[exclude]]."""
    table = _table(raw, origin)
    entries = table.pop("exclude", [])
    if table or not isinstance(entries, list):
        raise UserError(f"{origin}: only [[exclude]] is known there")
    return tuple(
        _exclude(entry, f"{origin}, entry {number}", today)
        for number, entry in enumerate(entries, 1)
    )


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tests: tuple[str, ...]
    reason: str
    link: str
    expires: datetime.date
    configs: tuple[str, ...] = ("*",)
    kernels: str = ""


def _exclude(raw: Any, where: str, today: datetime.date) -> Exclude:
    try:
        entry = msgspec.convert(raw, _Entry)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {error}") from error
    if not entry.tests or not all("/" in test for test in entry.tests):
        raise UserError(f"{where}: tests: names like generic/475, at least one")
    if not entry.reason.strip():
        raise UserError(f"{where}: reason is empty", hint="say why, in one sentence")
    if not re.match(r"https?://\S+$", entry.link):
        raise UserError(f"{where}: link: {entry.link!r} is no address", hint="https://...")
    if entry.expires > today + _LONGEST:
        raise UserError(f"{where}: expires: more than a year away", hint="somebody must look again")
    bounds = [part.strip() for part in entry.kernels.split(",") if part.strip()]
    parsed = [_BOUND.fullmatch(bound) for bound in bounds]
    if not all(parsed):
        raise UserError(f"{where}: kernels: {entry.kernels!r}", hint='write it like ">=6.1, <6.6"')
    return Exclude(
        tests=entry.tests,
        configs=entry.configs,
        kernels=tuple((found[1], version_of(found[2])) for found in parsed if found),
        reason=entry.reason.strip(),
        link=entry.link,
        expires=entry.expires,
    )


def excludes(paths: Sequence[Path], *, today: datetime.date) -> tuple[Exclude, ...]:
    """The entries of all those files."""
    return tuple(
        entry
        for path in paths
        for entry in parse_excludes(_read(path), origin=str(path), today=today)
    )


# --- groups ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A group that the lab has chosen: tests, and how long each takes as a rule."""

    name: str
    about: str
    tests: dict[str, float]  # seconds under TCG, as measured; 0: not measured


class _Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    about: str
    tests: dict[str, float]


def parse_group(raw: bytes, *, name: str, origin: str) -> Chosen:
    try:
        group = msgspec.convert(_table(raw, origin), _Group)
    except msgspec.ValidationError as error:
        raise UserError(f"{origin}: {error}") from error
    return Chosen(name=name, about=group.about, tests=group.tests)


def groups(folder: Path = FOLDER / "groups") -> dict[str, Chosen]:
    """The lab's own groups by name."""
    return {
        path.stem: parse_group(path.read_bytes(), name=path.stem, origin=str(path))
        for path in sorted(folder.glob("*.toml"))
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _table(raw: bytes, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{origin}: {error}") from error
