"""What a suite is: options and a guest go in, planned cases and their results come out.

A suite whose programs are not in the root image (`Supplied`) looks at what is to be tested before
anything boots, and brings read-only disks and the list of its cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lab.config import Config
from lab.guest import Down, Exited, TimedOut
from lab.machine import Disk
from lab.model import CaseResult, Emit, Side
from lab.store import Cache
from lab.tree import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteOptions:
    """What the user may choose; a suite takes what concerns it."""

    filesystems: tuple[str, ...] = ("ext4", "xfs", "tmpfs")
    scenarios: tuple[str, ...] = ()  # empty: the suite's default
    duration_s: float = 5.0  # of one case, without setting up
    threads: int = 4
    injections: tuple[str, ...] = ()  # files of the user's own profiles of faultinject


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What must be there before a boot is worth it."""

    symbols: tuple[str, ...] = ()  # Kconfig, without CONFIG_, y or m
    disks: tuple[str, ...] = ()  # serials
    root_image: bool = False
    packages: tuple[str, ...] = ()  # of the root image
    disk_bytes: int = 0  # of each of `disks`; 0: what a scratch disk has
    # Kconfig that it can do without, and what is lost then.
    better: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCase:
    """One case that will run, with all that its suite needs to know to run it."""

    name: str  # "SUITE/...", unique
    timeout_s: float  # for all of it, setting up and clearing away included
    filesystem: str = ""
    arguments: tuple[str, ...] = ()  # the suite's own; nobody else reads them
    symbols: tuple[str, ...] = ()  # Kconfig; a kernel without one of them skips it, and says so
    skip: str = ""  # why it is not to be run at all; it is reported as skipped
    expected_s: float | None = None  # how long it takes as a rule, where that is known
    what: str = ""  # in a few words, for a list
    # Kconfig; a request for the case is refused if its kernel lacks one of them. `symbols` are for
    # cases that come with others: those are skipped.
    required: tuple[str, ...] = ()
    pmem: bool = False  # it needs a /dev/pmem0
    expects: tuple[str, ...] = ()  # splats that it makes of a sound kernel: KIND or KIND:TITLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The result of a case with what belongs to it."""

    result: CaseResult
    # What the case consists of, where it says so itself; each is named CASE:PART.
    parts: tuple[CaseResult, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)  # for the trial's folder; bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is to be tested, before anything is built or booted."""

    archs: tuple[str, ...]
    trees: Mapping[Side, Tree]
    config: Config
    cache: Cache
    emit: Emit
    groups: tuple[str, ...] = ()  # of the suite, as asked for; empty: its default
    only: tuple[str, ...] = ()  # names or patterns of cases; they go before groups

    @property
    def version(self) -> str:
        """Of the base kernel: "6.1.192"."""
        return self.trees[Side.BASE].source.version


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplies:
    """What a suite brings."""

    cases: tuple[PlannedCase, ...] = ()
    disks: Mapping[tuple[str, Side], tuple[Disk, ...]] = field(default_factory=dict)
    absent: str = ""  # why nothing of it can run; then there are no cases
    notes: tuple[str, ...] = ()  # what the user should know: one line each


class Commands(Protocol):
    """A guest as suites see it: a place where commands run."""

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Exited | TimedOut | Down:
        """Run `argv` to its end, or to the end of its time or its machine."""
        ...


class Suite(Protocol):
    """A set of cases of one kind. No state: it is shared by all trials."""

    @property
    def name(self) -> str:
        """The first part of its cases' names."""
        ...

    @property
    def one_line(self) -> str:
        """What it tests, for a list."""
        ...

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        """Without options: what every case of it needs."""
        ...

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        """The cases. Raises `UserError` for an option that names nothing it knows."""
        ...

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Told | Down:
        """Run one case. `Down` if the machine went away meanwhile."""
        ...


@runtime_checkable
class Supplied(Suite, Protocol):
    """A suite that brings its own programs, and learns only from them what its cases are.

    Its `plan` has nothing to go by and is empty.
    """

    def supply(self, ground: Ground) -> Supplies:
        """Check, build and pack what it runs. Raises `UserError` for a group or option that names
        nothing; programs that are not there, or do not run there, are `absent` and no error."""
        ...
