"""What the repeats of both sides showed of the locks goes in, a `LockDiff` comes out.

A dependency is drawn when a code path first takes its locks in that order. That a run did not
draw it shows nothing by itself: paths vary. So an edge is told by its counts, and it is "gone" or
"new" only if chance would hardly make that difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from math import comb
from typing import Generic, TypeVar

from lab.lockgraph import cycles
from lab.lockgraph.cycles import Cycle, Pair
from lab.lockgraph.graph import LockGraph
from lab.lockgraph.identity import ClassId, Identified, identify
from lab.lockgraph.proc import StatRow
from lab.model import Side
from lab.verdict.chance import LEVEL as BLAME_LEVEL
from lab.verdict.chance import fisher

# Three runs a side that agree are the least that can tell: the chance of that is 1 in 20.
LEVEL = 0.05
_SPLITS = 400  # of the runs, to see how much differs by chance


class Change(StrEnum):
    """How an edge or a class differs between the sides."""

    GONE = "gone"  # significantly: on the base, and never with the series
    NEW = "new"
    NOT_SEEN = "not-seen"  # in every run of the base, and in none with the series; too few runs
    ONLY_SEEN = "only-seen"  # the other way round
    VARIES = "varies"  # not in all runs of one side
    # Differs, but one of its locks cannot be told from others of its name, or no run of the other
    # side could have shown it.
    UNTOLD = "untold"
    SAME = "same"


# What a reader calls "gone" and "new", whether there were enough runs or not.
LOST = frozenset({Change.GONE, Change.NOT_SEEN})
ADDED = frozenset({Change.NEW, Change.ONLY_SEEN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One repeat of one side: the graphs of its machines."""

    side: Side
    name: str
    graphs: tuple[LockGraph, ...]
    # Why what it did not show may still be there; "" if its silence counts.
    doubt: str = ""
    # Runs of one side with the same one went on from one boot, restored from its snapshot: what
    # that boot drew is in all of them. "": from a boot of its own.
    boot: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """In how many runs something was seen, of how many that could have shown it."""

    base: int
    base_runs: int
    patched: int
    patched_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeDiff:
    before: str  # label of a class
    after: str
    direct: bool  # listed by lockdep itself, in some run
    change: Change
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassDiff:
    label: str
    change: Change
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of lock_stat, run by run."""

    name: str  # "contentions", "wait_total_us", "wait_max_us", "hold_mean_us", "hold_max_us"
    base: tuple[float, ...]  # sorted
    patched: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatDiff:
    """A lock's contention and hold times on both sides."""

    label: str  # "a | b": lock_stat cut the names so that these cannot be told apart
    mode: str  # "R", "W", or ""
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockDiff:
    """Locks of base and patched, compared over all runs."""

    runs: Counts  # `base` and `patched`: runs with data; `*_runs`: those whose silence counts
    ids: tuple[ClassId, ...]
    edges: tuple[EdgeDiff, ...]
    classes: tuple[ClassDiff, ...]
    cycles: tuple[Cycle, ...]
    stats: tuple[StatDiff, ...]
    doubts: tuple[str, ...]
    # Direct edges that would be on every run of one side and none of the other if the sides were
    # the same kernel; None: too few runs to tell.
    by_chance: float | None
    shared_boots: bool = False  # some runs went on from the same boot

    def changed(self, *which: Change, direct: bool = True) -> tuple[EdgeDiff, ...]:
        return tuple(e for e in self.edges if e.change in which and (e.direct or not direct))


def diff(observations: Sequence[Observation]) -> LockDiff:
    """Compare the sides. Swapping them swaps gone and new; cycles are the patched side's only."""
    flat = [(seen, graph) for seen in observations for graph in seen.graphs]
    known = identify([graph for _, graph in flat])
    edges = _Sightings(observations, known, _pairs)
    classes = _Sightings(observations, known, lambda graph, labels: labels)
    direct = _direct(flat, known)
    edge_diffs = tuple(
        EdgeDiff(
            before=pair[0],
            after=pair[1],
            direct=pair in direct,
            change=_told(edges.change(pair), known, *pair),
            counts=edges.counts(pair),
        )
        for pair in sorted(edges.seen)
    )
    return LockDiff(
        runs=Counts(
            base=sum(bool(o.graphs) for o in observations if o.side is Side.BASE),
            base_runs=len(edges.telling[Side.BASE]),
            patched=sum(bool(o.graphs) for o in observations if o.side is Side.PATCHED),
            patched_runs=len(edges.telling[Side.PATCHED]),
        ),
        ids=tuple(known.ids[label] for label in sorted(known.ids)),
        edges=edge_diffs,
        classes=tuple(
            ClassDiff(
                label=label,
                change=_told(classes.change(label), known, label),
                counts=classes.counts(label),
            )
            for label in sorted(classes.seen)
        ),
        cycles=tuple(
            _blamed(cycle, [edges.counts((step.before, step.after)) for step in cycle.steps])
            for cycle in _cycles(flat, known, direct)
        ),
        stats=_stats(observations, known),
        doubts=_doubts(observations, known),
        by_chance=edges.by_chance(direct),
        shared_boots=edges.shared_boots,
    )


def _told(found: Change, known: Identified, *labels: str) -> Change:
    """A difference between locks that are known by number only may be one of their numbers."""
    if found is Change.SAME or all(known.ids[label].exact for label in labels):
        return found
    return Change.UNTOLD


def _pairs(graph: LockGraph, labels: Sequence[str]) -> Iterable[Pair]:
    return ((labels[edge.before], labels[edge.after]) for edge in graph.edges)


def _direct(flat: Sequence[tuple[Observation, LockGraph]], known: Identified) -> frozenset[Pair]:
    return frozenset(
        (labels[edge.before], labels[edge.after])
        for (_, graph), labels in zip(flat, known.labels, strict=True)
        for edge in graph.edges
        if edge.direct
    )


# --- what was seen how often -------------------------------------------------------------------


T = TypeVar("T", bound=Hashable)
_Read = Callable[[LockGraph, Sequence[str]], Iterable[T]]


class _Sightings(Generic[T]):
    """In which runs each thing was seen."""

    def __init__(
        self, observations: Sequence[Observation], known: Identified, read: _Read[T]
    ) -> None:
        self.seen: dict[T, set[int]] = defaultdict(set)
        self.side = [observation.side for observation in observations]
        # Runs that share a boot; of those that share none, each on its own.
        self.boots: dict[tuple[Side, str], set[int]] = defaultdict(set)
        for number, o in enumerate(observations):
            self.boots[o.side, o.boot or f" {number}"].add(number)
        self.telling: dict[Side, frozenset[int]] = {
            side: frozenset(
                number
                for number, o in enumerate(observations)
                if o.side is side and o.graphs and not o.doubt
            )
            for side in Side
        }
        labels = iter(known.labels)
        for number, observation in enumerate(observations):
            for graph in observation.graphs:
                for thing in read(graph, next(labels)):
                    self.seen[thing].add(number)

    @property
    def shared_boots(self) -> bool:
        return any(len(runs) > 1 for runs in self.boots.values())

    def counts(self, thing: T) -> Counts:
        """A run that showed it could have shown it, whatever else it lacks."""
        seen = {side: {n for n in self.seen[thing] if self.side[n] is side} for side in Side}
        return Counts(
            base=len(seen[Side.BASE]),
            base_runs=len(seen[Side.BASE] | self.telling[Side.BASE]),
            patched=len(seen[Side.PATCHED]),
            patched_runs=len(seen[Side.PATCHED] | self.telling[Side.PATCHED]),
        )

    def change(self, thing: T) -> Change:
        return change(self._independent(thing))

    def _independent(self, thing: T) -> Counts:
        """As `counts`, but where the boot itself may have drawn it, runs that share one are one.

        A thing that only some of them show came after the boot: then each run is a draw of its
        own, and where the other side does not show it, it had as many occasions.
        """
        seen = self.seen[thing]
        raw = self.counts(thing)
        if any(0 < len(runs & seen) < len(runs) for runs in self.boots.values()):
            return raw
        told: dict[Side, tuple[int, int]] = {}
        for side in Side:
            could = self.telling[side] | {run for run in seen if self.side[run] is side}
            groups = [runs & could for (of, _), runs in self.boots.items() if of is side]
            told[side] = (sum(bool(g & seen) for g in groups), sum(map(bool, groups)))
        return Counts(
            base=told[Side.BASE][0],
            base_runs=told[Side.BASE][1],
            patched=told[Side.PATCHED][0],
            patched_runs=told[Side.PATCHED][1],
        )

    def by_chance(self, among: frozenset[T]) -> float | None:
        """How many of `among` would be on all runs of one side and none of the other by chance.

        The mean over other ways to deal the same runs out to two sides. What really differs
        between the sides is dealt to both, so it does not count here.
        """
        base, patched = (sorted(self.telling[side]) for side in Side)
        runs = [*base, *patched]
        if len(runs) < 4 or not base or not patched or self.shared_boots:
            return None  # runs that share a boot cannot be dealt out at will
        masks = [self.seen[thing] & set(runs) for thing in among]
        varying = [mask for mask in masks if 0 < len(mask) < len(runs)]
        own = {frozenset(base), frozenset(patched)}
        splits = [
            chosen for chosen in _splits(runs, len(base)) if not {chosen, _rest(runs, chosen)} & own
        ]
        if not splits:
            return None
        hits = sum(
            chosen == mask or _rest(runs, chosen) == mask for chosen in splits for mask in varying
        )
        return hits / len(splits)


def _splits(runs: Sequence[int], size: int) -> list[frozenset[int]]:
    """Ways to choose a side; evenly spread ones where there are very many."""
    total = comb(len(runs), size)
    if total <= _SPLITS:
        return [frozenset(chosen) for chosen in combinations(runs, size)]
    return [_split(runs, size, total * number // _SPLITS) for number in range(_SPLITS)]


def _split(runs: Sequence[int], size: int, index: int) -> frozenset[int]:
    """The choice of that index, in the order of `combinations`."""
    chosen: list[int] = []
    for place, run in enumerate(runs):
        left = size - len(chosen)
        if not left:
            break
        with_it = comb(len(runs) - place - 1, left - 1)
        if index < with_it:
            chosen.append(run)
        else:
            index -= with_it
    return frozenset(chosen)


def _rest(runs: Sequence[int], chosen: frozenset[int]) -> frozenset[int]:
    return frozenset(runs) - chosen


def change(counts: Counts) -> Change:
    """What the counts can support."""
    base, patched = counts.base, counts.patched
    if base and patched:
        whole = base == counts.base_runs and patched == counts.patched_runs
        return Change.SAME if whole else Change.VARIES
    if base:
        steady, one_sided = base == counts.base_runs, (base, counts.base_runs)
        other, sure, unsure = counts.patched_runs, Change.GONE, Change.NOT_SEEN
    else:
        steady, one_sided = patched == counts.patched_runs, (patched, counts.patched_runs)
        other, sure, unsure = counts.base_runs, Change.NEW, Change.ONLY_SEEN
    if not other:
        return Change.UNTOLD
    if fisher(*one_sided, 0, other) <= LEVEL * (1 + 1e-9):
        return sure
    return unsure if steady else Change.VARIES


# --- cycles ------------------------------------------------------------------------------------


def _cycles(
    flat: Sequence[tuple[Observation, LockGraph]], known: Identified, direct: frozenset[Pair]
) -> tuple[Cycle, ...]:
    """New ones of the patched side."""
    base: set[Pair] = set()
    patched: dict[str, list[Pair]] = {}
    shared: set[str] = set()
    sure: set[str] = set()  # lock_stat told of it
    for number, ((observation, graph), labels) in enumerate(zip(flat, known.labels, strict=True)):
        pairs = list(_pairs(graph, labels))
        if observation.side is Side.BASE:
            base.update(pairs)
        else:
            patched[f"{observation.name}, machine {number}"] = pairs
        shared |= {label for label, lock in zip(labels, graph.classes, strict=True) if lock.read}
        for stat in graph.stats:
            mine = {labels[index] for index in stat.classes}
            sure |= mine
            shared |= mine if stat.row.mode else set()
    traits = {
        label: cycles.Trait(
            name=lock.name, exact=lock.exact, shared=label in shared or label not in sure
        )
        for label, lock in known.ids.items()
    }
    return cycles.new_cycles(patched, base, traits, direct=direct)


def _blamed(cycle: Cycle, counts: Sequence[Counts]) -> Cycle:
    """A cycle is a bug, but whose? The base may only have missed its turn to draw the edge.

    It is the series' if an edge that the base lacks comes significantly more often with it, by the
    level at which a verdict blames.
    """
    p_values = [
        fisher(seen.patched, seen.patched_runs, seen.base, seen.base_runs)
        for step, seen in zip(cycle.steps, counts, strict=True)
        if not step.on_base
    ]
    if min(p_values) <= BLAME_LEVEL:
        return cycle
    doubt = "that no run of the base drew all of it may be chance"
    return replace(cycle, certain=False, doubt="; ".join(filter(None, (cycle.doubt, doubt))))


# --- contention --------------------------------------------------------------------------------


def _stats(observations: Sequence[Observation], known: Identified) -> tuple[StatDiff, ...]:
    """Of locks that lock_stat tells of on both sides, in runs that ran the same cases."""
    runs: dict[tuple[str, str], dict[Side, list[dict[str, float]]]] = defaultdict(
        lambda: {side: [] for side in Side}
    )
    labels = iter(known.labels)
    for observation in observations:
        here: dict[tuple[str, str], dict[str, float]] = {}
        for graph in observation.graphs:
            mine = next(labels)
            for stat in graph.stats:
                name = " | ".join(sorted({mine[index] for index in stat.classes}))
                if name:
                    _add(here.setdefault((name, stat.row.mode), defaultdict(float)), stat.row)
        if not observation.doubt:
            for key, numbers in here.items():
                runs[key][observation.side].append(numbers)
    return tuple(
        StatDiff(
            label=label,
            mode=mode,
            measures=tuple(
                Measure(
                    name=name,
                    base=tuple(sorted(read(run) for run in sides[Side.BASE])),
                    patched=tuple(sorted(read(run) for run in sides[Side.PATCHED])),
                )
                for name, read in _MEASURES.items()
            ),
        )
        for (label, mode), sides in sorted(runs.items())
        if all(sides.values())
    )


def _add(run: dict[str, float], row: StatRow) -> None:
    """Add a line up: machines of one run, and classes that share a printed name."""
    for name in ("contentions", "wait_total_us", "acquisitions", "hold_total_us"):
        run[name] += getattr(row, name)
    for name in ("wait_max_us", "hold_max_us"):
        run[name] = max(run[name], getattr(row, name))


_MEASURES: dict[str, Callable[[dict[str, float]], float]] = {
    "acquisitions": lambda run: run["acquisitions"],
    "contentions": lambda run: run["contentions"],
    "wait_total_us": lambda run: run["wait_total_us"],
    "wait_max_us": lambda run: run["wait_max_us"],
    "hold_mean_us": lambda run: run["hold_total_us"] / max(1.0, run["acquisitions"]),
    "hold_max_us": lambda run: run["hold_max_us"],
}


# --- doubts ------------------------------------------------------------------------------------


def _doubts(observations: Sequence[Observation], known: Identified) -> tuple[str, ...]:
    """What a reader must know of how much this can show."""
    doubts: list[str] = []
    for side in Side:
        mine = [o for o in observations if o.side is side]
        if not any(o.graphs for o in mine):
            doubts.append(f"no locks are known of the {side} side")
        reasons: dict[str, int] = defaultdict(int)
        for observation in mine:
            if observation.doubt:
                reasons[observation.doubt] += 1
        together = sum(bool(o.boot) for o in mine)
        if together > 1:
            doubts.append(
                f"{together} of {len(mine)} {side} runs go on from one boot: what all of them show "
                "counts once, and so does what none does (machine.snapshots = false in lab.toml "
                "boots them all)"
            )
        doubts += [
            f"{number} of {len(mine)} {side} runs: {reason}: what they did not show does not count"
            for reason, number in reasons.items()
        ]
    if known.by_number:
        doubts.append(
            "keys were hashed (boot with no_hash_pointers): classes of one name are told apart by "
            "their numbers only, which may differ between boots"
        )
    unread = sum(graph.unread for o in observations for graph in o.graphs)
    if unread:
        doubts.append(f"{unread} lines of these files were not understood")
    return tuple(doubts)
