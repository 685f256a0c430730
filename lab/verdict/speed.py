"""Numbers that cases measured go in; how much faster or slower the series makes them comes out,
and how surely. Pure. The rule and its reasons: docs/verdict.md, "Speed".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import exp, lgamma, log, log1p, sqrt
from statistics import fmean, variance

from lab.model import CaseState, Side, SpeedVerdict, Trial

CONFIDENCE = 0.95  # of the intervals that a report states
# Of the rule, for all numbers of a run together: a thousand series that change nothing, one blamed.
LEVEL = 0.001
FEWEST_RUNS = 5  # on each side, before anybody is blamed
TOLERANCE = 0.05  # what is no worse than this is nobody's regression
# Suites that are there to measure; the numbers of others are shown, and blame nobody.
MEASURING = ("fio", "stress-ng")


def speeds(trials: Iterable[Trial], archs: Sequence[str]) -> tuple[SpeedVerdict, ...]:
    """Every number that both sides measured in passed cases, with its interval.

    A case that fails early is not fast.
    """
    values: dict[tuple[str, str, str], dict[Side, list[float]]] = defaultdict(
        lambda: {side: [] for side in Side}
    )
    for trial in trials:
        for result in trial.results:
            if result.state is CaseState.PASSED and trial.cell.arch in archs:
                for name, value in result.metrics.items():
                    values[trial.cell.arch, result.name, name][trial.cell.side].append(value)
    both = {key: sides for key, sides in values.items() if all(sides.values())}
    judged = [key for key in both if weighty(key[1], key[2])]
    strict = 1 - LEVEL / max(1, len(judged))
    return tuple(_verdict(key, sides, strict) for key, sides in both.items())


def _verdict(
    key: tuple[str, str, str], sides: Mapping[Side, Sequence[float]], strict: float
) -> SpeedVerdict:
    arch, case, name = key
    base, patched = sides[Side.BASE], sides[Side.PATCHED]
    ratio, low, high = interval(base, patched, CONFIDENCE)
    return SpeedVerdict(
        arch=arch,
        case=case,
        metric=name,
        base=tuple(base),
        patched=tuple(patched),
        ratio=ratio,
        low=low,
        high=high,
        slower=weighty(case, name) and _slower(name, base, patched, strict),
    )


def _slower(name: str, base: Sequence[float], patched: Sequence[float], strict: float) -> bool:
    """Enough runs, none of one side among the other's, and surely by more than is tolerated."""
    if min(len(base), len(patched)) < FEWEST_RUNS or not _apart(base, patched):
        return False
    _, low, high = interval(base, patched, strict)
    if low is None or high is None:
        return False
    return high < 1 / (1 + TOLERANCE) if direction(name) > 0 else low > 1 + TOLERANCE


def direction(metric: str) -> int:
    """1: more is better, -1: less is; 0: nobody knows."""
    if metric.endswith("_per_s"):
        return 1
    return -1 if metric.endswith(("_s", "_ms", "_us", "_ns")) else 0


def weighty(case: str, metric: str) -> bool:
    """Whether the number may blame a series: a rate or a median of a suite that measures.

    The slowest few of a run (p99, max) say more about the host than about the kernel.
    """
    typical = metric.endswith(("_per_s", "p50_us", "p50_ns", "page_fault_ns"))
    return case.partition("/")[0] in MEASURING and typical and direction(metric) != 0


def _apart(base: Sequence[float], patched: Sequence[float]) -> bool:
    """No value of one side lies among the other's: what holds without any assumption."""
    return max(base) < min(patched) or max(patched) < min(base)


def interval(
    base: Sequence[float], patched: Sequence[float], confidence: float
) -> tuple[float | None, float | None, float | None]:
    """The ratio patched / base of the geometric means, and its confidence interval.

    By Welch's t on logarithms: a change of speed is a factor, and its noise is too. A ratio is None
    where a value is not above 0, an interval where one side has a single run or none varies.
    """
    if not base or not patched or min(*base, *patched) <= 0:
        return None, None, None
    logs = [[log(value) for value in side] for side in (base, patched)]
    centre = fmean(logs[1]) - fmean(logs[0])
    if min(map(len, logs)) < 2:
        return exp(centre), None, None
    shares = [variance(side) / len(side) for side in logs]
    total = sum(shares)
    if total == 0:
        # Rounded to equal numbers (fio's percentiles are): their noise was not seen, not absent.
        return exp(centre), None, None
    freedom = total**2 / sum(
        share**2 / (len(side) - 1) for share, side in zip(shares, logs, strict=True)
    )
    half = quantile(1 - (1 - confidence) / 2, freedom) * sqrt(total)
    return exp(centre), exp(centre - half), exp(min(centre + half, 700.0))


# --- Student's t -------------------------------------------------------------------------------


def quantile(probability: float, freedom: float) -> float:
    """The t below which that share (above a half) of Student's distribution lies."""
    low, high = 0.0, 1.0
    while _below(high, freedom) < probability and high < 1e12:
        low, high = high, high * 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, freedom) < probability else (low, middle)
    return high


def _below(t: float, freedom: float) -> float:
    """P(T <= t), t not negative."""
    return 1 - _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised one, by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    tiny = 1e-300
    fraction, c, d = 1.0, 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    fraction = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + term / c
            c = c if abs(c) > tiny else tiny
            fraction *= d * c
        if abs(d * c - 1) < 1e-12:
            break
    return front * fraction


# --- words -------------------------------------------------------------------------------------


def wording(speed: SpeedVerdict) -> str:
    """The change and how sure it is: "-3.1% (-5.0 to -1.2, 6 + 6 runs)"."""
    if speed.ratio is None:
        return "not comparable"
    runs = f"{len(speed.base)} + {len(speed.patched)} runs"
    if speed.low is None or speed.high is None:
        return f"{_percent(speed.ratio)}% ({runs}: no interval)"
    return f"{_percent(speed.ratio)}% ({_percent(speed.low)} to {_percent(speed.high)}, {runs})"


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f}"
