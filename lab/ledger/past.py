"""A ledger and what a run stands on go in; what earlier bases showed there comes out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from lab.ledger.book import Ledger
from lab.ledger.rows import Ground, Where
from lab.model import Past, Side

# A case that was flaky a year ago says little of today; the newest runs do.
_RUNS = 30


@dataclass(slots=True)
class _Sum:
    failed: int = 0
    decided: int = 0
    runs: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)

    def add(self, run: str, version: str, failed: int, decided: int) -> None:
        if decided and len(self.runs) < _RUNS:
            self.failed += failed
            self.decided += decided
            self.runs.append(run)
            self.versions.append(version)

    @property
    def past(self) -> Past:
        return Past(
            failed=self.failed,
            decided=self.decided,
            runs=len(self.runs),
            versions=tuple(dict.fromkeys(self.versions)),
        )


def past(book: Ledger, *, ground: Ground, version: str, before: str) -> dict[str, Past]:
    """By case and by key of a splat: the bases of the newest runs that were begun `before`.

    Only of that ground - accelerator, architecture, profile, size of the guest - and of the same
    line of kernels: 6.1.190 counts for 6.1.192, 6.12.1 does not.
    """
    sums: dict[str, _Sum] = defaultdict(_Sum)
    for name, run, of, failed, decided in book.counts(
        Where(ground=ground, side=Side.BASE, before=before)
    ):
        if line(of) == line(version):
            sums[name].add(run, of, failed, decided)
    return {name: one.past for name, one in sums.items() if one.runs}


def line(version: str) -> str:
    """ "6.1.192" -> "6.1"."""
    return ".".join(version.split("-")[0].split(".")[:2])
