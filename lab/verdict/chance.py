"""Counts of failures go in, probabilities and decisions on them come out. No kernel in here.

What is promised, and how often it holds, is in docs/verdict.md; `Sample`s are weighed together
because they share one error level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from math import comb

# Of a hundred series that change nothing, at most one is called regressed.
LEVEL = 0.01
# A suspicion is dropped once fresh runs rule out that the series adds this much to the failure
# rate: as surely as a series is blamed, or every look would be another chance to overlook it.
RESOLUTION = 0.30
CONFIDENCE = 0.95  # of the rates that a report states


# --- single numbers ----------------------------------------------------------------------------


def fisher(worse: int, worse_runs: int, better: int, better_runs: int) -> float:
    """One-sided p of Fisher's exact test.

    The chance that `worse` failures or more of `worse + better` fall on the first side, if both
    fail equally often.
    """
    failures = worse + better
    ways = sum(
        comb(worse_runs, k) * comb(better_runs, failures - k)
        for k in range(worse, min(worse_runs, failures) + 1)
    )
    return ways / comb(worse_runs + better_runs, failures)


@cache
def smallest_rate(runs: int, failures: int = 0, confidence: float = CONFIDENCE) -> float:
    """The largest failure rate that still goes with `failures` of `runs` (Clopper-Pearson).

    With none in 20 it is 0.139: whatever fails less often than that may have been overlooked.
    """
    if runs <= failures:
        return 1.0
    low, high = failures / runs, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        seen = sum(comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(failures + 1))
        low, high = (rate, high) if seen > 1 - confidence else (low, rate)
    return high


@cache
def fewest_runs(level: float) -> int:
    """Runs a side after which "all of them against none" is significant at `level`."""
    runs = 1
    while 1 / comb(2 * runs, runs) > level:
        runs += 1
    return runs


def discoveries(p_values: Sequence[float], tested: int) -> list[bool]:
    """Which hold at level 1 by Benjamini and Hochberg's rule, of `tested` in all.

    Divide each p by its level first. If nothing is there, the chance of any discovery is at most
    the level; else the expected share of false ones is. That is what a run's verdict needs: a
    clean series stays clean, and a list of twenty broken cases is not lost to Bonferroni.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    last = max((n for n, i in enumerate(order, 1) if p_values[i] <= n / tested), default=0)
    held = set(order[:last])
    return [i in held for i in range(len(p_values))]


# --- looks -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A moment at which the evidence is weighed: after `runs` fresh runs of each side."""

    runs: int
    level: float


@cache
def looks(budget: int, level: float) -> tuple[Look, ...]:
    """When to look within `budget` fresh runs a side; none if they could never decide.

    Looking again and again at one level finds something sooner or later, so the looks share it:
    half for the last one, the rest for the earlier ones, which catch what fails every time.
    """
    if budget < fewest_runs(level):
        return ()
    early: list[int] = []
    for count in range(1, 32):
        first = fewest_runs(level / 2 / count)
        runs = [n for n in (first << shift for shift in range(32)) if n < budget]
        if len(runs) <= count:
            early = runs
            break
    if not early:
        return (Look(runs=budget, level=level),)
    share = level / 2 / len(early)
    return (
        *(Look(runs=runs, level=share) for runs in early),
        Look(runs=budget, level=level / 2),
    )


# --- samples -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one question ("does this case fail?") was answered, by repeat, on both sides."""

    base: Mapping[int, bool]  # repeat -> it failed
    patched: Mapping[int, bool]
    attempted: int  # repeats that were started, answered or not
    screened: int | None = None  # repeats that were to raise suspicions, if fewer than planned


class Lean(StrEnum):
    """Which way the first runs differ."""

    NONE = "none"
    WORSE = "worse"
    BETTER = "better"


class Standing(StrEnum):
    EQUAL = "equal"  # the first runs do not differ
    OPEN = "open"  # more runs are wanted
    SIGNIFICANT = "significant"
    DISMISSED = "dismissed"  # fresh runs rule out a large difference
    UNDECIDED = "undecided"  # the budget is spent


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What fresh runs say about a sample. Counts and p leave out the runs that raised it."""

    lean: Lean
    standing: Standing
    base: int = 0  # failures
    base_runs: int = 0
    patched: int = 0
    patched_runs: int = 0
    p: float | None = None
    more: int = 0  # further runs a side until the next look


def suspicion(sample: Sample, repeats: int) -> tuple[Lean, int]:
    """Which way the sides differ, and how many repeats it took to see it (`repeats` or more).

    Runs after these did not choose the sample, so a test on them alone is honest.
    """
    bad, runs = {True: 0, False: 0}, {True: 0, False: 0}  # with the series: True
    for seen in range(1, max(repeats, sample.attempted) + 1):
        for series, side in ((True, sample.patched), (False, sample.base)):
            failed = side.get(seen - 1)
            bad[series] += failed is True
            runs[series] += failed is not None
        worse = bad[True] * runs[False] - bad[False] * runs[True]
        if worse and seen >= repeats:
            return (Lean.WORSE if worse > 0 else Lean.BETTER), seen
    return Lean.NONE, repeats


@dataclass(slots=True)
class _Course:
    """A suspected sample on its way through its looks."""

    lean: Lean
    base: list[bool]
    patched: list[bool]
    left: int  # repeats that the budget still has
    looks: tuple[Look, ...]
    settled: Weighed | None = None

    def reached(self, number: int) -> bool:
        if self.settled or number >= len(self.looks):
            return False
        least = min(len(self.base), len(self.patched))
        if number == len(self.looks) - 1 and self.left <= 0:
            return least > 0  # results that got lost make the last look a smaller one
        return least >= self.looks[number].runs

    def weighed(self, runs: int, standing: Standing, more: int = 0) -> Weighed:
        base, patched = self.base[:runs], self.patched[:runs]
        p = None
        if base and patched:
            sides = [(sum(patched), len(patched)), (sum(base), len(base))]
            if self.lean is Lean.BETTER:
                sides.reverse()
            p = fisher(*sides[0], *sides[1])
        return Weighed(
            lean=self.lean,
            standing=standing,
            base=sum(base),
            base_runs=len(base),
            patched=sum(patched),
            patched_runs=len(patched),
            p=p,
            more=more,
        )

    def dismissed(self, runs: int, level: float) -> bool:
        now = self.weighed(runs, Standing.DISMISSED)
        bad, of = now.patched, now.patched_runs
        usual = now.base / now.base_runs
        if self.lean is Lean.BETTER:
            bad, of, usual = now.base, now.base_runs, now.patched / now.patched_runs
        return smallest_rate(of, bad, 1 - level) < usual + RESOLUTION

    def unsettled(self) -> Weighed:
        every = max(len(self.base), len(self.patched))
        least = min(len(self.base), len(self.patched))
        wanted = [look.runs - least for look in self.looks if look.runs > least]
        more = min(wanted[0], self.left) if wanted else 0
        standing = Standing.OPEN if more > 0 else Standing.UNDECIDED
        return self.weighed(every, standing, max(more, 0))


def _course(sample: Sample, lean: Lean, seen: int, max_repeats: int, level: float) -> _Course:
    def fresh(side: Mapping[int, bool]) -> Iterator[bool]:
        return (side[repeat] for repeat in sorted(side) if seen <= repeat < max_repeats)

    return _Course(
        lean=lean,
        base=list(fresh(sample.base)),
        patched=list(fresh(sample.patched)),
        left=max_repeats - sample.attempted,
        looks=looks(max_repeats - seen, level),
    )


def weigh(
    samples: Sequence[Sample], *, repeats: int, max_repeats: int, level: float = LEVEL
) -> tuple[Weighed, ...]:
    """Weigh samples together. `repeats` raise suspicions, those up to `max_repeats` decide them."""
    equal = Weighed(lean=Lean.NONE, standing=Standing.EQUAL)
    courses: list[_Course | None] = []
    for sample in samples:
        lean, seen = suspicion(sample, min(repeats, sample.screened or repeats))
        known = lean is not Lean.NONE
        courses.append(_course(sample, lean, seen, max_repeats, level) if known else None)
    for lean in (Lean.WORSE, Lean.BETTER):
        family = [course for course in courses if course and course.lean is lean]
        for number in range(max((len(course.looks) for course in family), default=0)):
            _look(family, number, level)
    return tuple(
        equal if course is None else course.settled or course.unsettled() for course in courses
    )


def _look(family: Sequence[_Course], number: int, level: float) -> None:
    """Settle what the look of that number can settle."""
    here = [course for course in family if course.reached(number)]
    shares: list[float] = []
    for course in here:
        p = course.weighed(course.looks[number].runs, Standing.OPEN).p
        assert p is not None  # both sides have runs, or the look would not be reached
        shares.append(p / course.looks[number].level)
    for course, held in zip(here, discoveries(shares, len(family)), strict=True):
        runs = course.looks[number].runs
        if held:
            course.settled = course.weighed(runs, Standing.SIGNIFICANT)
        elif course.dismissed(runs, level):
            course.settled = course.weighed(runs, Standing.DISMISSED)
