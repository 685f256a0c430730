"""What a suite is: options and a guest go in, planned cases and their results come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteOptions:
    """What the user may choose; a suite takes what concerns it."""

    filesystems: tuple[str, ...] = ("ext4", "xfs", "tmpfs")
    scenarios: tuple[str, ...] = ()  # empty: the suite's default
    duration_s: float = 5.0  # of one case, without setting up
    threads: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What must be there before a boot is worth it."""

    symbols: tuple[str, ...] = ()  # Kconfig, without CONFIG_, y or m
    disks: tuple[str, ...] = ()  # serials
    root_image: bool = False
    packages: tuple[str, ...] = ()  # of the root image


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCase:
    """One case that will run, with all that its suite needs to know to run it."""

    name: str  # "SUITE/...", unique
    timeout_s: float  # for all of it, setting up and clearing away included
    filesystem: str = ""
    arguments: tuple[str, ...] = ()  # the suite's own; nobody else reads them


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

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Down:
        """Run one case. `Down` if the machine went away meanwhile."""
        ...
