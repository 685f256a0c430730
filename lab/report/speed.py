"""A `RunRecord` goes in, figures of rates and latencies come out: places on axes, and words.

Places are shares of an axis' width (0..1), so that a figure has no size of its own. Nothing is
judged: apart is what the verdict blames (`lab.verdict.speed`), and what `view.Metric.apart` says.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, comb, exp, floor, log, log10
from typing import TypeVar

from lab.model import RunRecord
from lab.report import view
from lab.verdict import speed_interval

T = TypeVar("T")
Apart = Callable[[view.Metric], bool]

_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}  # seconds, by the end of a metric's name
_LATENCY = re.compile(r"(?P<call>\w+?)_(?P<point>p\d+|max)_(?P<unit>ns|us|ms|s)")
_RATE = "_per_s"
_FIRST = "p50"  # the percentile that is told beside a figure, and then the last that is not:
_WORST = "max"
# What the end of a metric's name says about its unit; the first that fits.
_UNITS = {"_ns": "ns", "_us": "µs", "_ms": "ms", _RATE: "/s", "_s": "s", "_bytes": "B"}
_LINES = 36  # of a figure: what moved most; the tables have the rest
_NUMBER_ROWS = 600  # of the table
_NAMED = 4  # numbers that the sentence tells
_WIDEST = log(32)  # of the axis of changes, to either side: what lies beyond stands at its end
_NARROWEST = log(1.06)
_CONFIDENCE = 0.95
_OPEN = 100
_ROOM = 2.5  # times what the runs need of that axis, at most, for intervals
_MARGIN = 0.03  # of an axis, so that no dot is cut
_CHANGES = (1 / 16, 1 / 4, 1 / 2, 0.75, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 4, 16)
_TICKS_APART = 0.12  # of the width, at least
_DECADES = 5  # that a narrow screen has room for labels of
_NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Patched by base, of geometric means; `low` and `high` are None where nothing bounds it."""

    value: float
    low: float | None
    high: float | None


def _ratio(metric: view.Metric) -> Ratio | None:
    """The change with its interval, as the verdict has it; None if a number is not above 0.

    Runs that all gave one number bound nothing either: what measured them was too coarse.
    """
    value, low, high = speed_interval(metric.base, metric.patched, _CONFIDENCE)
    if value is None:
        return None
    return Ratio(value=value, low=None if low == high else low, high=None if low == high else high)


# --- words -------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits or whole thousands: "0.0123", "4.56", "21 400"."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", _NARROW_SPACE)
    return f"{value:.3g}"


def percent(ratio: float) -> str:
    """A ratio as a change: "+3.1%", "−40%", and from a doubling on "×2.4"."""
    if ratio >= 2:
        return f"×{number(ratio)}"
    if ratio < 0.01:
        return f"÷{number(1 / ratio)}" if ratio > 0 else f"{_MINUS}100%"
    change = (ratio - 1) * 100
    digits = f"{abs(change):.1f}" if abs(change) < 9.95 else f"{abs(change):.0f}"
    if not float(digits):
        return "±0%"
    return f"{'+' if change > 0 else _MINUS}{digits}%"


def duration(seconds: float) -> str:
    """ "870 ns", "4.1 µs", "12 ms", "1.3 s"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size * 0.9995:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds * 1e9)} ns"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is said of one number beside its figure."""

    name: str
    base: str
    patched: str
    change: str  # of the mean; "" where that of the base is zero
    bounds: str  # "−4% to +9%", or "" if one run a side says nothing of it
    apart: bool


def _change(metric: view.Metric, name: str, shown: Sequence[str], apart: bool) -> Change:
    seen = _ratio(metric)
    usual = _mean(metric.base)
    value = seen.value if seen else _mean(metric.patched) / usual if usual else None
    bounds = ""
    if seen and seen.low is not None and seen.high is not None:
        bounds = _bounds(seen.low, seen.high)
    return Change(
        name=name,
        base=shown[0],
        patched=shown[1],
        change="" if value is None else percent(value),
        bounds=bounds,
        apart=apart,
    )


def _bounds(low: float, high: float) -> str:
    """An interval; what is past a factor of a hundred is as good as open."""
    if low < 1 / _OPEN and high > _OPEN:
        return "unbounded"
    down = f"<÷{_OPEN}" if low < 1 / _OPEN else percent(low)
    up = f">×{_OPEN}" if high > _OPEN else percent(high)
    return f"{down} to {up}"


# --- axes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    at: float
    label: str
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A logarithmic axis."""

    low: float  # logarithms of its ends
    high: float
    ticks: tuple[Tick, ...] = ()

    def at(self, value: float) -> float:
        """Where a value stands; what lies beyond an end stands at it."""
        return place(value, self.low, self.high)


def place(value: float, low: float, high: float) -> float:
    share = (log(value) - low) / (high - low) if value > 0 else 0.0
    return _MARGIN + min(1.0, max(0.0, share)) * (1 - 2 * _MARGIN)


def times(values: Iterable[float]) -> Axis:
    """An axis for times (in seconds): whole decades."""
    known = [value for value in values if value > 0] or [1.0]
    first, last = floor(log10(min(known))), ceil(log10(max(known)))
    last = max(last, first + 1)
    low, high = first * log(10), last * log(10)
    step = ceil((last - first) / _DECADES)
    ticks = tuple(
        Tick(
            at=place(10.0**power, low, high),
            label="" if (power - first) % step else duration(10.0**power),
        )
        for power in range(first, last + 1)
    )
    return Axis(low=low, high=high, ticks=ticks)


def changes(ratios: Iterable[float]) -> Axis:
    """An axis for ratios, 1 in its middle."""
    reach = max((abs(log(ratio)) for ratio in ratios if ratio > 0), default=0.0)
    reach = min(max(reach, _NARROWEST), _WIDEST)
    ticks: list[Tick] = []
    for ratio in sorted(_CHANGES, key=lambda ratio: (abs(log(ratio)), ratio), reverse=True):
        at = place(ratio, -reach, reach)
        # From the ends inwards, but never so close to the middle that its label has no room.
        clear = ratio == 1 or abs(at - 0.5) >= _TICKS_APART
        room = all(abs(at - tick.at) >= _TICKS_APART for tick in ticks)
        if abs(log(ratio)) <= reach and clear and room:
            label = "0" if ratio == 1 else percent(ratio).replace(".0", "")
            ticks.append(Tick(at=at, label=label, strong=ratio == 1))
    return Axis(low=-reach, high=reach, ticks=tuple(sorted(ticks, key=lambda tick: tick.at)))


# --- rates -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How often in a second, as a change against the base's geometric mean."""

    metric: view.Metric
    base: tuple[float, ...]
    patched: tuple[float, ...]
    middle: float
    bar: tuple[float, float] | None  # the interval: left end and width
    said: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    axis: Axis
    rows: tuple[Rate, ...]
    more: int


def _rates(every: Sequence[view.Metric], is_apart: Apart) -> Rates | None:
    measured = [
        (metric, seen)
        for metric in every
        if metric.name.endswith(_RATE) and (seen := _ratio(metric)) is not None
    ]
    if not measured:
        return None
    apart = {metric: is_apart(metric) for metric, _ in measured}
    kept = _most([(m, apart[m], abs(log(seen.value))) for m, seen in measured])
    measured = [(metric, seen) for metric, seen in measured if metric in kept]
    runs = [
        value / _mean(metric.base)
        for metric, _ in measured
        for value in (*metric.base, *metric.patched)
    ]
    # Room for the intervals, but not so much that the runs shrink to a blot in the middle.
    room = max(abs(log(value)) for value in runs) * _ROOM
    ends = [end for _, seen in measured for end in (seen.low, seen.high) if end]
    axis = changes([*runs, *(end for end in ends if abs(log(end)) <= room)])
    rows = tuple(_rate(axis, metric, seen, apart[metric]) for metric, seen in measured)
    return Rates(axis=axis, rows=rows, more=len(apart) - len(rows))


def _rate(axis: Axis, metric: view.Metric, seen: Ratio, apart: bool) -> Rate:
    usual = _mean(metric.base)
    bar = None
    if seen.low is not None and seen.high is not None:
        left = axis.at(seen.low)
        bar = (left, axis.at(seen.high) - left)
    shown = [number(_mean(side)) for side in (metric.base, metric.patched)]
    return Rate(
        metric=metric,
        base=tuple(axis.at(value / usual) for value in metric.base),
        patched=tuple(axis.at(value / usual) for value in metric.patched),
        middle=axis.at(seen.value),
        bar=bar,
        said=_change(metric, metric.name.removesuffix(_RATE).replace("_", " "), shown, apart),
    )


def _mean(values: Sequence[float]) -> float:
    """The geometric mean, which changes and intervals are of; with a zero in it, the median."""
    if min(values) <= 0:
        return statistics.median(values)
    return exp(statistics.fmean(log(value) for value in values))


# --- latencies ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One percentile of one side: its runs, and their mean."""

    name: str  # "p50", "p99", "max"
    dots: tuple[float, ...]
    at: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long one call of one case took: percentiles of both sides on one axis."""

    arch: str
    case: str
    call: str
    base: tuple[Point, ...]  # fastest first
    patched: tuple[Point, ...]
    said: tuple[Change, ...]
    apart: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    axis: Axis
    rows: tuple[Latency, ...]
    more: int


def _latencies(every: Sequence[view.Metric], is_apart: Apart) -> Latencies | None:
    groups: dict[tuple[str, str, str], dict[str, tuple[view.Metric, float]]] = {}
    for metric in every:
        found = _LATENCY.fullmatch(metric.name)
        if found is not None:
            key = (metric.arch, metric.case, found["call"])
            groups.setdefault(key, {})[found["point"]] = (metric, _TIMES[found["unit"]])
    if not groups:
        return None
    apart = {
        key: any(is_apart(metric) for metric, _ in points.values())
        for key, points in groups.items()
    }
    kept = _most([(key, apart[key], _moved(points)) for key, points in groups.items()])
    axis = times(
        value * unit
        for key in kept
        for metric, unit in groups[key].values()
        for value in (*metric.base, *metric.patched)
    )
    rows = tuple(
        _latency(axis, key, points, is_apart) for key, points in groups.items() if key in kept
    )
    return Latencies(axis=axis, rows=rows, more=len(groups) - len(rows))


def _moved(points: dict[str, tuple[view.Metric, float]]) -> float:
    """By what factor (its logarithm) the usual call became slower or faster."""
    metric, _ = points.get(_FIRST) or next(iter(points.values()))
    seen = _ratio(metric)
    return abs(log(seen.value)) if seen else 0.0


def _latency(
    axis: Axis,
    key: tuple[str, str, str],
    points: dict[str, tuple[view.Metric, float]],
    is_apart: Apart,
) -> Latency:
    order = sorted(points, key=lambda name: (name == _WORST, len(name), name))
    told = [name for name in order if name != _WORST] or order
    said = tuple(
        _change(
            points[name][0],
            name,
            [
                duration(_mean(side) * points[name][1])
                for side in (points[name][0].base, points[name][0].patched)
            ],
            is_apart(points[name][0]),
        )
        for name in dict.fromkeys((told[0], told[-1]))
    )
    arch, case, call = key
    return Latency(
        arch=arch,
        case=case,
        call=call.replace("_", " "),
        base=tuple(_point(axis, name, points[name][0].base, points[name][1]) for name in order),
        patched=tuple(
            _point(axis, name, points[name][0].patched, points[name][1]) for name in order
        ),
        said=said,
        apart=any(change.apart for change in said),
    )


def _point(axis: Axis, name: str, values: Sequence[float], unit: float) -> Point:
    middle = _mean(values) * unit
    runs = "1 run" if len(values) == 1 else f"mean of {len(values)} runs"
    return Point(
        name=name,
        dots=tuple(axis.at(value * unit) for value in values),
        at=axis.at(middle),
        title=f"{name} {duration(middle)}, {runs}",
    )


def _most(found: Sequence[tuple[T, bool, float]]) -> set[T]:
    """What a figure has lines for: what is apart, then what moved most."""
    ranked = sorted(found, key=lambda one: (not one[1], -one[2]))
    return {key for key, _, _ in ranked[:_LINES]}


# --- all numbers -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A metric on a scale of its own, the same for both sides."""

    metric: view.Metric
    unit: str
    said: Change
    base: tuple[float, ...]
    patched: tuple[float, ...]
    base_at: float  # of the mean
    patched_at: float


def _row(metric: view.Metric, apart: bool) -> Row:
    low = min(metric.base[0], metric.patched[0])
    high = max(metric.base[-1], metric.patched[-1])
    # At least a tenth of the value: noise of one percent should look like noise.
    width = max(high - low, abs(high) * 0.1, 1e-12)
    middle = (low + high) / 2

    def at(value: float) -> float:
        return 0.5 + (value - middle) / width * (1 - 4 * _MARGIN)

    name, unit = metric.name, ""
    for suffix, symbol in _UNITS.items():
        if name.endswith(suffix):
            name, unit = name.removesuffix(suffix), symbol
            break
    before, after = _mean(metric.base), _mean(metric.patched)
    size = _TIMES.get("us" if unit == "µs" else unit)
    if size is None:
        shown = [number(before), number(after)]
    else:
        shown, unit = [duration(before * size), duration(after * size)], ""
    return Row(
        metric=metric,
        unit=unit,
        said=_change(metric, name.replace("_", " "), shown, apart),
        base=tuple(at(value) for value in metric.base),
        patched=tuple(at(value) for value in metric.patched),
        base_at=at(before),
        patched_at=at(after),
    )


# --- the section -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """All that a report shows of a run's numbers."""

    sentence: str
    apart: bool  # some number moved further than chance would
    rates: Rates | None
    latencies: Latencies | None
    rows: tuple[Row, ...]
    same: int  # numbers that were equal in every run of both sides: told by their count


def speed(record: RunRecord) -> Speed | None:
    """None if nothing that was measured on both sides ever differed."""
    every = view.metrics(record)
    # Whether a number ever differs does not depend on the side: the others need not be looked at.
    varied = [metric for metric in every if len({*metric.base, *metric.patched}) > 1]
    if not varied:
        return None
    blamed = {(one.arch, one.case, one.metric) for one in record.verdict.speeds if one.slower}

    def apart(metric: view.Metric) -> bool:
        return (metric.arch, metric.case, metric.name) in blamed or metric.apart(len(varied))

    rows = [_row(metric, apart(metric)) for metric in varied]
    rows.sort(key=lambda row: not row.said.apart)  # stable: cases stay together
    return Speed(
        sentence=_sentence(varied, rows),
        apart=rows[0].said.apart,
        rates=_rates(varied, apart),
        latencies=_latencies(varied, apart),
        rows=tuple(rows[:_NUMBER_ROWS]),
        same=len(every) - len(varied),
    )


def _sentence(every: Sequence[view.Metric], rows: Sequence[Row]) -> str:
    """Which numbers changed beyond chance, or why none can be said to have."""
    apart = [row for row in rows if row.said.apart]
    count = "the one number" if len(every) == 1 else f"{len(every)} numbers"
    if apart:
        told = [f"{row.metric.case} {row.said.name} {row.said.change}" for row in apart[:_NAMED]]
        more = f", and {len(apart) - _NAMED} more" if len(apart) > _NAMED else ""
        return f"{len(apart)} of {count} moved further than chance would: {', '.join(told)}{more}."
    runs = max(min(len(metric.base), len(metric.patched)) for metric in every)
    enough = fewest_runs(len(every))
    if runs < enough:
        return (
            f"{runs} passed {'run' if runs == 1 else 'runs'} a side "
            f"{'is' if runs == 1 else 'are'} too few to tell a change of {count} from chance: "
            f"{enough} would do (--repeats {enough})."
        )
    return f"No change of {count} is further than chance would move one of them."


def fewest_runs(among: int) -> int:
    """Runs a side from which a number can be apart at all, of so many looked at together."""
    runs = 1
    while 2 / comb(2 * runs, runs) * among > view.APART_BY_CHANCE:
        runs += 1
    return runs
