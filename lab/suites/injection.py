"""A profile file goes in, what it injects and into whom comes out: an `Injection`. Pure but for the
files themselves: lab/suites/data/faultinject/NAME.toml, and those that the user names.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from lab.model import UserError
from lab.splat.kinds import Kind as Splat

PROFILES = Path(__file__).parent / "data" / "faultinject"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_SETTING = re.compile(r"[a-z-]+")
_MANY = 1_000_000  # faults at most: the kernel counts them down, which is how they are counted


class Kind(StrEnum):
    """What fails. The first five are directories below /sys/kernel/debug."""

    FAILSLAB = "failslab"
    FAIL_PAGE_ALLOC = "fail_page_alloc"
    FAIL_USERCOPY = "fail_usercopy"
    FAIL_MAKE_REQUEST = "fail_make_request"
    FAIL_FUTEX = "fail_futex"
    DM_ERROR = "dm-error"
    DM_DELAY = "dm-delay"
    DM_FLAKEY = "dm-flakey"
    MEMCG = "memcg"

    @property
    def mapped(self) -> bool:
        """The file system lies on a device-mapper device."""
        return self in (Kind.DM_ERROR, Kind.DM_DELAY, Kind.DM_FLAKEY)

    @property
    def attribute(self) -> bool:
        """The kernel's own fault injection, by files in debugfs."""
        return not self.mapped and self is not Kind.MEMCG

    @property
    def beside(self) -> bool:
        """Armed while the program runs: it could not make its files otherwise. The kernel's own
        injection strikes only threads that ask for it."""
        return self in (Kind.DM_ERROR, Kind.DM_FLAKEY)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Kconfig."""
        return _SYMBOLS[self]


_DEBUGFS = ("FAULT_INJECTION", "FAULT_INJECTION_DEBUG_FS")
_SYMBOLS: dict[Kind, tuple[str, ...]] = {
    Kind.FAILSLAB: (*_DEBUGFS, "FAILSLAB"),
    Kind.FAIL_PAGE_ALLOC: (*_DEBUGFS, "FAIL_PAGE_ALLOC"),
    Kind.FAIL_USERCOPY: (*_DEBUGFS, "FAULT_INJECTION_USERCOPY"),
    Kind.FAIL_MAKE_REQUEST: (*_DEBUGFS, "FAIL_MAKE_REQUEST"),
    Kind.FAIL_FUTEX: (*_DEBUGFS, "FAIL_FUTEX"),
    Kind.DM_ERROR: ("BLK_DEV_DM",),
    Kind.DM_DELAY: ("BLK_DEV_DM", "DM_DELAY"),
    Kind.DM_FLAKEY: ("BLK_DEV_DM", "DM_FLAKEY"),
    Kind.MEMCG: ("MEMCG",),
}


class Threads(StrEnum):
    """Which threads of the stress program failures strike, and what it forgives for them."""

    ALL = "all"
    FAULTS = "faults"  # those that fault
    CALLS = "calls"  # all, in system calls
    DEVICE = "device"  # nobody asks: the device fails, and content may be lost
    NONE = "none"  # nothing fails that the program could see


class Injection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One profile: a case on each of its file systems."""

    name: str = ""  # of the file; it is not in it
    what: str
    kind: Kind
    scenario: str  # of faultstress
    filesystems: tuple[str, ...]
    threads: Threads = Threads.ALL
    pages: int = 0  # of each of its files; 0: its own default
    after_s: float = 1.0  # how long it runs before its device fails
    # Of the kernel's own fault injection: percent, every how many-th chance (least, most: the seed
    # picks), how many at most.
    probability: int = 100
    interval: tuple[int, int] = (1, 1)
    times: int = _MANY
    settings: dict[str, str] = {}  # other files of the attribute
    table: str = ""  # what follows the device in a device-mapper table
    memory_max: str = ""
    expects: tuple[str, ...] = ()  # kinds of splats that these failures make of a sound kernel

    def arguments(self, seed: int) -> tuple[str, ...]:
        """What arms it: words of `faultinject.sh arm KIND`. The same seed gives the same."""
        if self.kind is Kind.MEMCG:
            return (self.memory_max,)
        if self.kind.mapped:
            return tuple(self.table.split())
        every = random.Random(f"{self.name} {seed}").randint(*self.interval)
        # The last one switches it on. Without the filter it would strike the lab's own shell.
        return (
            *("task-filter=Y", f"interval={every}", f"times={self.times}", "space=0", "verbose=0"),
            *(f"{name}={value}" for name, value in sorted(self.settings.items())),
            f"probability={self.probability}",
        )


def to_text(profile: Injection) -> str:
    return msgspec.json.encode(profile).decode()


def from_text(text: str) -> Injection:
    return msgspec.json.decode(text, type=Injection)


def read(path: Path) -> Injection:
    """The profile in that file. Raises `UserError` that names the file."""
    if not _NAME.fullmatch(path.stem):
        raise UserError(f"{path}: its name is no name for a profile", hint="a-z, 0-9 and -")
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Injection)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: {error}") from error
    wrong = _wrong(found)
    if wrong:
        raise UserError(f"{path}: {wrong}")
    return msgspec.structs.replace(found, name=path.stem)


def _wrong(found: Injection) -> str:
    """What makes no sense in it; "" if all does."""
    least, most = found.interval
    kernels = found.threads in (Threads.ALL, Threads.FAULTS, Threads.CALLS)
    checks = (
        (any(kind not in set(Splat) for kind in found.expects), "expects: kinds of splats only"),
        (bool(found.name), "name: the file's name is the profile's"),
        (not 1 <= found.probability <= 100, "probability: a number from 1 to 100"),
        (not 1 <= least <= most, "interval: two numbers, the smaller one first"),
        (not 1 <= found.times <= 1 << 30, "times: a number from 1"),
        (found.after_s < 0, "after_s: below 0"),
        (not found.filesystems, "filesystems: none is listed"),
        (not all(map(_SETTING.fullmatch, found.settings)), "settings: names are a-z and -"),
        (found.kind is Kind.MEMCG and not found.memory_max, "memory_max is not set"),
        (kernels != found.kind.attribute, f"threads: {found.threads} is not for {found.kind}"),
        (
            found.kind.beside != (found.threads is Threads.DEVICE),
            "threads: device is for dm-error, dm-flakey",
        ),
        (on_disk(found.kind) and "tmpfs" in found.filesystems, "filesystems: tmpfs has no disk"),
    )
    return next((text for wrong, text in checks if wrong), "")


def on_disk(kind: Kind) -> bool:
    """Whether a disk is what fails."""
    return kind.mapped or kind is Kind.FAIL_MAKE_REQUEST


def profiles(own: Sequence[str] = ()) -> tuple[Injection, ...]:
    """Those of the lab, then the user's own files. Raises `UserError`."""
    paths = [*sorted(PROFILES.glob("*.toml")), *(Path(name).expanduser() for name in own)]
    found: dict[str, Injection] = {}
    for path in paths:
        one = read(path)
        if one.name in found:
            raise UserError(f"{path}: there is another profile {one.name!r}")
        found[one.name] = one
    return tuple(found.values())
