"""The nouns of the ledger. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from lab.model import Comparison, Outcome, Side, Tally


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Ground:
    """What two results must share before anybody may compare them, besides the kernel."""

    arch: str
    profile: str
    accelerator: str  # "kvm" | "tcg"
    cpu: str  # QEMU's -cpu
    setup: str  # size of the guest, and what shapes the work of cases: "2 cpus, 1024 MiB, ..."

    def __str__(self) -> str:
        return f"{self.arch} {self.profile} {self.accelerator} {self.cpu} ({self.setup})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One finished run."""

    name: str
    created: str  # ISO 8601, UTC
    finished: str
    outcome: Outcome
    sentence: str
    title: str  # of the series
    series_digest: str
    kernel: str  # what the user named: debian:6.1
    version: str  # of the base: 6.1.192
    commit: str
    tree: str
    profile: str
    archs: tuple[str, ...]
    plan_digest: str
    lab_version: str
    findings: int
    trials: int
    wall_s: float


class Stand(TypedDict):
    """What a `Row` begins with, to be unpacked into one."""

    run: str
    created: str
    ground: Ground
    side: Side
    kernel_key: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Where a result comes from: a run, and one side of one ground in it."""

    run: str
    created: str  # of the run
    ground: Ground
    side: Side
    kernel_key: str  # content key: source, patches, configuration, tool chain
    version: str  # of the base's source


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRow(Row):
    """What the repeats of one run said of one case (or "boot") on one side of one ground."""

    name: str
    tally: Tally
    duration_s: float  # median of the passes; 0.0 if there is none
    comparison: Comparison | None  # the run's verdict on the case; None: it gave none
    reason: str = ""  # of that verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class SplatRow(Row):
    """In how many repeats of one run, of one side and ground, one splat was seen."""

    key: str  # its fingerprint; of a torn one kind and title
    kind: str
    title: str
    seen: int
    exposed: int  # repeats that could have shown it
    allowed: bool  # every sighting was excused by an allow-list
    comparison: Comparison | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow(Row):
    """One number that a case measured in one run, of one side and ground."""

    name: str  # of the case
    metric: str
    median: float
    count: int  # repeats that measured it


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """All that the ledger keeps of one run."""

    run: RunRow
    cases: tuple[CaseRow, ...]
    splats: tuple[SplatRow, ...]
    metrics: tuple[MetricRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which rows are asked for; None: any."""

    name: str | None = None  # of a case, or the key of a splat; may be a shell pattern
    run: str | None = None
    arch: str | None = None
    profile: str | None = None
    side: Side | None = None
    ground: Ground | None = None
    before: str | None = None  # ISO 8601: only runs that were begun earlier


EVERYTHING = Where()
