"""Failed and passed runs of one revision come in; whether that settles it goes out.

For `git bisect run`, which asks for one revision at a time: Wald's sequential test between the rate
at which the bug shows and the rate of false alarms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log

from lab.bisect.search import StepKind

_ERROR = 0.01  # of either kind, at one revision
_MOST = 0.995  # a bug that shows "always" may still miss once
_LEAST = 0.0005  # so may a good kernel fail once


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How often it fails where the bug is, and where it is not."""

    bad: float = 0.9
    good: float = 0.0

    @property
    def _clipped(self) -> tuple[float, float]:
        return min(self.bad, _MOST), max(self.good, _LEAST)

    @property
    def passes(self) -> int:
        """Passing runs in a row after which it is good."""
        bad, good = self._clipped
        return ceil(_limit() / log((1 - good) / (1 - bad)) - 1e-9)


def _limit() -> float:
    return log((1 - _ERROR) / _ERROR)


def settled(failed: int, passed: int, rates: Rates) -> StepKind | None:
    """`GOOD` or `BAD` with an error of 1 %; None: run it again."""
    bad, good = rates._clipped
    evidence = failed * log(bad / good) + passed * log((1 - bad) / (1 - good))
    if evidence >= _limit() - 1e-9:
        return StepKind.BAD
    if evidence <= 1e-9 - _limit():
        return StepKind.GOOD
    return None
