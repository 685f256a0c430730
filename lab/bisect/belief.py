"""Counts of runs at each revision come in; the likely culprit, and what to run next, go out.

Revisions are 0 (the good end) to n (the bad end). Culprit c means: the revisions before c fail at a
low rate q, those from c on at a higher rate p. Neither rate is known, so both are integrated out
over a grid; the last hypothesis is that no revision changes anything and all fail at one rate.
"""

from __future__ import annotations

from functools import cache
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Before any run, that the two ends do not differ at all.
PRIOR_NONE = 0.1
_POINTS = 40
_EDGE = 1e-4  # "never" and "always" fail this often: one odd run is a surprise, not a proof
# A bug that fails always, and a good end that never fails, are common; rates between are spread
# as by Jeffreys (evenly in the angle), those of the good end bent towards low ones.
_ALWAYS, _NEVER = 0.2, 0.2
_BEND = 4


@cache
def _grid() -> tuple[Floats, Floats, Floats, Floats]:
    """Rates, and the weights of p, q and the one rate of "nothing changes" on them."""
    angles = (np.arange(_POINTS) + 0.5) * (np.pi / 2 / _POINTS)
    inner = np.sin(angles) ** 2
    rates = np.concatenate(([_EDGE], inner, [1 - _EDGE]))
    flat = np.full(_POINTS, 1 / _POINTS)
    bent = (1 - inner) ** _BEND / np.sum((1 - inner) ** _BEND)
    bad = np.concatenate(([0.0], (1 - _ALWAYS) * flat, [_ALWAYS]))
    good = np.concatenate(([_NEVER], (1 - _NEVER) * bent, [0.0]))
    same = np.concatenate(([0.4], 0.5 * flat, [0.1]))
    return rates, bad, good, same


@cache
def _binomial(runs: int) -> Floats:
    """Chance of 0..runs failures in `runs` runs, one row for each rate of the grid."""
    rates = _grid()[0][:, None]
    failures = np.arange(runs + 1)
    ways = np.array([comb(runs, k) for k in range(runs + 1)], dtype=np.float64)
    chances: Floats = ways * rates**failures * (1 - rates) ** (runs - failures)
    return chances


def _below(values: Floats) -> Floats:
    """Sums of what comes strictly before, along the last axis."""
    sums: Floats = np.cumsum(values, axis=-1) - values
    return sums


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        logs: Floats = np.log(values)
    return logs


def _x_log_x(values: Floats) -> Floats:
    """0 log 0 is 0."""
    result: Floats = values * np.log(np.where(values > 0, values, 1.0))
    return result


class Belief:
    """The posterior after some runs. Immutable.

    `weights` (n) say how likely each culprit is before any run, 0 for one that cannot be; `bad`
    and `good` (n + 1) count failed and passed runs at each revision.
    """

    def __init__(self, weights: Any, bad: Any, good: Any) -> None:
        prior = np.asarray(weights, dtype=np.float64)
        fails = np.asarray(bad, dtype=np.float64)
        passes = np.asarray(good, dtype=np.float64)
        if prior.ndim != 1 or len(fails) != len(prior) + 1 or len(passes) != len(fails):
            raise ValueError("n weights, n + 1 counts of failures, n + 1 of passes")
        if not prior.sum() > 0 or prior.min() < 0:
            raise ValueError("weights are not negative, and one is above 0")
        rates, bad_prior, good_prior, same_prior = _grid()
        log_fail, log_pass = np.log(rates), np.log1p(-rates)
        # Runs at revisions below each culprit, and at it and above.
        fails_below, passes_below = np.cumsum(fails)[:-1], np.cumsum(passes)[:-1]
        fails_above, passes_above = fails.sum() - fails_below, passes.sum() - passes_below
        above = _log(bad_prior) + np.outer(fails_above, log_fail) + np.outer(passes_above, log_pass)
        below = (
            _log(good_prior) + np.outer(fails_below, log_fail) + np.outer(passes_below, log_pass)
        )
        top = above.max(axis=1) + below.max(axis=1)
        above = np.exp(above - above.max(axis=1, keepdims=True))
        below = np.exp(below - below.max(axis=1, keepdims=True))
        # Only q < p: a change that makes it fail less often is none that is looked for.
        with_p = above * _below(below)
        with_q = below * _below(above[:, ::-1])[:, ::-1]
        possible = float(np.sum(bad_prior * _below(good_prior)))
        sums = with_p.sum(axis=1)
        same = _log(same_prior) + fails.sum() * log_fail + passes.sum() * log_pass
        same_top = same.max()
        same = np.exp(same - same_top)
        logs = np.concatenate(
            (
                _log(prior / prior.sum() * (1 - PRIOR_NONE)) + _log(sums / possible) + top,
                [np.log(PRIOR_NONE) + np.log(same.sum()) + same_top],
            )
        )
        chances = np.exp(logs - logs.max())
        self._posterior: Floats = chances / chances.sum()
        safe = np.where(sums > 0, sums, 1.0)[:, None]
        self._bad_rates: Floats = with_p / safe
        self._good_rates: Floats = with_q / safe
        self._same_rate: Floats = same / same.sum()

    @property
    def culprits(self) -> Floats:
        """Probability of culprit 1..n; with `none` they add up to 1."""
        return self._posterior[:-1]

    @property
    def none(self) -> float:
        """Probability that no revision changes anything."""
        return float(self._posterior[-1])

    @property
    def rates(self) -> tuple[float, float]:
        """Expected failure rate from the culprit on, and before it, given that there is one."""
        total = self.culprits.sum()
        if not total > 0:
            return (float("nan"), float("nan"))
        rates = _grid()[0]
        bad = self.culprits @ self._bad_rates @ rates / total
        good = self.culprits @ self._good_rates @ rates / total
        return float(bad), float(good)

    def gains(self, runs: int) -> Floats:
        """Expected information, in nats, of `runs` runs at each revision 0..n."""
        chances = _binomial(runs)
        none = self._posterior[-1] * (self._same_rate @ chances)
        bad = self.culprits[:, None] * (self._bad_rates @ chances)
        good = self.culprits[:, None] * (self._good_rates @ chances)

        def split(bad_part: Floats, good_part: Floats) -> Floats:
            """For each revision: culprits up to it count as bad there, the others as good."""
            nothing = np.zeros((1, runs + 1))
            upto = np.concatenate((nothing, np.cumsum(bad_part, axis=0)))
            after = good_part.sum(axis=0) - np.concatenate((nothing, np.cumsum(good_part, axis=0)))
            total: Floats = upto + after
            return total

        sums = split(bad, good) + none
        logs = split(_x_log_x(bad), _x_log_x(good)) + _x_log_x(none)
        now = -_x_log_x(self._posterior).sum()
        later = (_x_log_x(sums) - logs).sum(axis=1)
        gained: Floats = np.maximum(0.0, now - later)
        return gained
