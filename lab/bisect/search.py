"""Revisions and a bench that tests one come in; the culprit and how sure it is go out.

Knows neither git nor QEMU. What happened is a list of `Step`s: the same steps give the same state,
so that a search goes on from its log. `decide` says what comes next; `search` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, assert_never

import numpy as np

from lab.bisect.belief import Belief
from lab.model import LabFault

_VERIFIED = 0.05  # the ends count as different below this probability that they are not
_DOUBT = 0.2  # after many runs; a second look at ends that only seemed to differ
_END_RUNS = 2  # of each end, at least, before anything between them is tried
_PATIENCE = 3  # runs in a row that prove nothing
_BATCHES = (1, 2, 4, 8)  # runs at one revision that are weighed against its build
_STREAK = 10  # runs of one kernel in a row, while there is another that tells something
_LEAST_GAIN = 1e-5  # nats; below it nothing is left to be learned


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One step of what is searched. Revision 0 is the good end."""

    id: str  # commit, or whatever names it for good
    label: str  # "patch 4/12"
    title: str
    content: str = ""  # equal for what is surely one kernel, known without a build
    weight: float = 1.0  # how likely it is the culprit, before any run


class StepKind(StrEnum):
    BUILT = "built"  # `kernel` is its signature
    UNTESTABLE = "untestable"  # it does not build, or cannot be configured
    GOOD = "good"
    BAD = "bad"
    NOTHING = "nothing"  # it ran, or did not boot, and that proves nothing
    LOST = "lost"  # the lab's own machine broke


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was done: a line of the log."""

    kind: StepKind
    revision: int
    seconds: float = 0.0
    kernel: str = ""  # signature
    made: bool = True  # False: the kernel was there already
    note: str = ""
    trial: str = ""  # folder of the evidence, relative to the log's


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When it is sure enough, and when to give up."""

    confidence: float = 0.97
    budget_s: float | None = None  # of all steps together
    max_runs: int = 2000
    end_runs: int = 60  # of each end, until the bad one fails; it is not reproduced then
    differ_runs: int = 240  # of each end, until they are seen to differ
    # Until they are measured:
    build_s: float = 60.0
    run_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is known of each revision; made by `begin`, changed by `after`."""

    revisions: tuple[Revision, ...]
    kernels: tuple[str, ...]  # signature; "" is not built yet
    bad: tuple[int, ...]
    good: tuple[int, ...]
    nothing: tuple[int, ...]  # runs in a row that proved nothing
    untestable: tuple[str, ...]  # why; "" is testable as far as is known
    lost: int = 0  # in a row
    streak: tuple[int, int] = (-1, 0)  # the revision that ran last, and how often in a row
    runs: int = 0
    builds: int = 0
    build_s: float = 0.0
    run_s: float = 0.0
    steps: tuple[Step, ...] = field(default=(), repr=False)

    @property
    def last(self) -> int:
        return len(self.revisions) - 1

    @property
    def seconds(self) -> float:
        return self.build_s + self.run_s

    def groups(self) -> tuple[int, ...]:
        """For each revision the first one that is the same kernel, as far as is known."""
        signed = {
            revision.content: kernel
            for revision, kernel in zip(self.revisions, self.kernels, strict=True)
            if kernel and revision.content
        }
        first: dict[str, int] = {}
        found = []
        for place, (revision, kernel) in enumerate(zip(self.revisions, self.kernels, strict=True)):
            known = kernel or signed.get(revision.content, "")
            name = f"kernel {known}" if known else f"content {revision.content or place}"
            found.append(first.setdefault(name, place))
        return tuple(found)

    def built(self, place: int) -> bool:
        groups = self.groups()
        pairs = zip(groups, self.kernels, strict=True)
        return any(kernel for group, kernel in pairs if group == groups[place])


def begin(revisions: Sequence[Revision]) -> State:
    """The state before any step. Raises `ValueError` for fewer than two revisions."""
    if len(revisions) < 2:
        raise ValueError("a search needs a good end and a bad end")
    count = len(revisions)
    return State(
        revisions=tuple(revisions),
        kernels=("",) * count,
        bad=(0,) * count,
        good=(0,) * count,
        nothing=(0,) * count,
        untestable=("",) * count,
    )


def _at(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _text_at(values: tuple[str, ...], place: int, value: str) -> tuple[str, ...]:
    return (*values[:place], value, *values[place + 1 :])


def after(state: State, step: Step) -> State:
    """The state after one more step."""
    place = step.revision
    state = replace(state, steps=(*state.steps, step))
    match step.kind:
        case StepKind.BUILT:
            return replace(
                state,
                kernels=_text_at(state.kernels, place, step.kernel),
                builds=state.builds + step.made,
                build_s=state.build_s + step.seconds,
            )
        case StepKind.UNTESTABLE:
            return replace(
                state,
                untestable=_text_at(state.untestable, place, step.note or "cannot be tested"),
                builds=state.builds + step.made,
                build_s=state.build_s + step.seconds,
            )
        case StepKind.GOOD | StepKind.BAD | StepKind.NOTHING | StepKind.LOST:
            return _after_run(state, step)
        case _:
            assert_never(step.kind)


def _after_run(state: State, step: Step) -> State:
    place = step.revision
    again = state.streak[1] + 1 if state.streak[0] == place else 1
    state = replace(
        state,
        runs=state.runs + 1,
        run_s=state.run_s + step.seconds,
        streak=(place, again),
        lost=state.lost + 1 if step.kind is StepKind.LOST else 0,
    )
    if step.kind is StepKind.LOST:
        return state
    if step.kind is not StepKind.NOTHING:
        failed = step.kind is StepKind.BAD
        return replace(
            state,
            nothing=_at(state.nothing, place, 0),
            bad=_at(state.bad, place, state.bad[place] + failed),
            good=_at(state.good, place, state.good[place] + (not failed)),
        )
    silent = state.nothing[place] + 1
    state = replace(state, nothing=_at(state.nothing, place, silent))
    if silent < _PATIENCE:
        return state
    return replace(
        state, untestable=_text_at(state.untestable, place, step.note or "its runs prove nothing")
    )


# --- what is believed --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A state as the statistics see it: one place for each kernel."""

    belief: Belief
    groups: tuple[int, ...]
    bad: tuple[int, ...]  # by group, at its first revision
    good: tuple[int, ...]
    closed: frozenset[int]  # groups that cannot be run, or no more
    weights: tuple[float, ...]  # of culprits 1..n; 0 for steps that change nothing

    @property
    def blocks(self) -> tuple[tuple[int, int, float], ...]:
        """(first, last, probability) of culprits that no testable revision tells apart."""
        found: list[tuple[int, int, float]] = []
        chances = [float(chance) for chance in self.belief.culprits]
        first: int | None = None
        last, chance = 0, 0.0
        for culprit in range(1, len(self.groups)):
            if self.weights[culprit - 1] > 0:
                first = culprit if first is None else first
                last, chance = culprit, chance + chances[culprit - 1]
            if first is not None and self._told_apart(culprit):
                found.append((first, last, chance))
                first, chance = None, 0.0
        if first is not None:
            found.append((first, last, chance))
        return tuple(found)

    def _told_apart(self, revision: int) -> bool:
        """Whether a run can tell or has told culprits up to `revision` from later ones."""
        group = self.groups[revision]
        return group not in self.closed or self.bad[group] + self.good[group] > 0


def view(state: State) -> View:
    """Raises `ValueError` if both ends are the same kernel."""
    groups = state.groups()
    count = len(groups)
    weights = np.array([revision.weight for revision in state.revisions[1:]], dtype=np.float64)
    bad, good, closed = [0] * count, [0] * count, set()
    for place, group in enumerate(groups):
        # What lies between two revisions of the same kernel has no lasting effect.
        weights[group:place] = 0.0
        bad[group] += state.bad[place]
        good[group] += state.good[place]
        if state.untestable[place]:
            closed.add(group)
    return View(
        belief=Belief(weights, bad, good),
        groups=groups,
        bad=tuple(bad),
        good=tuple(good),
        closed=frozenset(closed),
        weights=tuple(float(weight) for weight in weights),
    )


# --- what comes next ---------------------------------------------------------------------------


class Ending(StrEnum):
    FOUND = "found"  # one culprit
    RANGE = "range"  # one of several, and they cannot be told apart, or not within the budget
    NO_DIFFERENCE = "no-difference"  # the ends fail alike
    SAME_KERNEL = "same-kernel"  # the ends are one kernel
    END_UNTESTABLE = "end-untestable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """Build (if it is not yet) and run that revision."""

    revision: int
    build: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer. Culprits are numbers of revisions, 1..n; `first` to `last` are the suspects."""

    ending: Ending
    first: int
    last: int
    probability: float  # that the culprit is one of them
    reason: str  # why it is no more than that; "" where it is one
    runs: int
    builds: int
    seconds: float
    bad_rate: float | None  # failure rate with the culprit, and without
    good_rate: float | None
    bad_end: tuple[int, int]  # failed, of
    good_end: tuple[int, int]
    suspects: tuple[tuple[int, float], ...] = ()  # the likeliest, most likely first


def decide(state: State, rules: Rules) -> Pick | Result:
    """The next thing to do, or the answer."""
    for end in (state.last, 0):
        if state.untestable[end]:
            name = "good" if end == 0 else "bad"
            reason = f"the {name} end cannot be tested: {state.untestable[end]}"
            return _result(state, None, Ending.END_UNTESTABLE, reason)
    groups = state.groups()
    if groups[state.last] == 0:
        return _result(state, None, Ending.SAME_KERNEL, "both ends are the same kernel")
    for end in (0, state.last):
        if not state.built(end):
            return _within(state, rules, None, Pick(revision=end, build=True))
    seen = view(state)
    unverified = _unverified(state, rules, seen)
    if isinstance(unverified, Result):
        return unverified
    if unverified is not None:
        return _within(state, rules, seen, Pick(revision=unverified, build=False))
    sure = max(seen.blocks, key=lambda block: block[2])
    if sure[2] >= rules.confidence:
        one = sure[0] == sure[1] or sum(w > 0 for w in seen.weights[sure[0] - 1 : sure[1]]) == 1
        ending = Ending.FOUND if one else Ending.RANGE
        return _result(state, seen, ending, "" if one else "no revision between them can be tested")
    if seen.belief.none >= rules.confidence:
        return _result(state, seen, Ending.NO_DIFFERENCE, "the ends do not differ after all")
    if state.runs >= 2 * rules.differ_runs and seen.belief.none >= _DOUBT:
        reason = f"after {state.runs} runs that is still {seen.belief.none:.0%} likely"
        return _result(state, seen, Ending.NO_DIFFERENCE, reason)
    best = _best(state, rules, seen)
    if best is None:
        return _result(state, seen, Ending.RANGE, "nothing that can be run tells more")
    return _within(state, rules, seen, best)


def _within(state: State, rules: Rules, seen: View | None, pick: Pick) -> Pick | Result:
    """The pick, or the answer so far if there is no time for it."""
    build_s, run_s = _costs(state, rules)
    needed = (build_s if pick.build else 0.0) + run_s
    if state.runs >= rules.max_runs:
        return _result(state, seen, Ending.RANGE, f"{rules.max_runs} runs are spent")
    if rules.budget_s is not None and state.steps and state.seconds + needed > rules.budget_s:
        return _result(state, seen, Ending.RANGE, "the budget is spent")
    return pick


def _costs(state: State, rules: Rules) -> tuple[float, float]:
    """Seconds of a build and of a run, as measured so far."""
    made = [
        step.seconds
        for step in state.steps
        if step.kind is StepKind.BUILT and step.made and step.revision != 0
    ]
    build_s = sum(made) / len(made) if made else rules.build_s
    return build_s, state.run_s / state.runs if state.runs else rules.run_s


def _unverified(state: State, rules: Rules, seen: View) -> int | Result | None:
    """The end that must run next before anything between the ends does; None: they differ."""
    ends = (seen.groups[state.last], seen.groups[0])
    counts = [seen.bad[end] + seen.good[end] for end in ends]
    if sum(seen.bad) + sum(seen.good) > sum(counts):
        return None
    failed = [seen.bad[end] for end in ends]
    if min(counts) >= _END_RUNS and failed[0] and seen.belief.none <= _VERIFIED:
        return None
    if min(counts) >= (rules.differ_runs if failed[0] else rules.end_runs):
        reason = (
            f"the bad end failed in {failed[0]} of {counts[0]} runs, "
            f"the good end in {failed[1]} of {counts[1]}"
        )
        return _result(state, seen, Ending.NO_DIFFERENCE, reason)
    return state.last if counts[0] < counts[1] else 0


def _best(state: State, rules: Rules, seen: View) -> Pick | None:
    """The revision whose runs tell most for what they and its build cost."""
    build_s, run_s = _costs(state, rules)
    count = len(seen.groups)
    built = {group for group, kernel in zip(seen.groups, state.kernels, strict=True) if kernel}
    usable = np.array(
        [seen.groups[place] == place and place not in seen.closed for place in range(count)]
    )
    extra = np.array([0.0 if place in built else build_s for place in range(count)])
    value, gained = np.zeros(count), np.zeros(count)
    for runs in _BATCHES:
        gain = seen.belief.gains(runs)
        value = np.maximum(value, gain / (extra + runs * run_s))
        gained = np.maximum(gained, gain)
    value[~usable | (gained < _LEAST_GAIN)] = 0.0
    if state.streak[1] >= _STREAK:
        group = seen.groups[state.streak[0]]
        if np.any(np.delete(value, group) > 0):
            value[group] = 0.0
    if not value.max() > 0:
        return None
    best = np.flatnonzero(value >= value.max() * (1 - 1e-9))
    middle = (count - 1) / 2
    revision = int(best[np.argmin(np.abs(best - middle))])
    return Pick(revision=_member(state, seen, revision), build=revision not in built)


def _member(state: State, seen: View, group: int) -> int:
    """A revision of the group whose kernel is there; any, if none is."""
    members = [place for place, one in enumerate(seen.groups) if one == group]
    return next((place for place in members if state.kernels[place]), group)


def _result(state: State, seen: View | None, ending: Ending, reason: str) -> Result:
    if seen is None and state.groups()[state.last] != 0:
        seen = view(state)
    first, last, chance = (1, state.last, 0.0) if seen is None else _suspects(seen, ending)
    order: list[tuple[int, float]] = []
    if seen is not None:
        order = [(place + 1, float(p)) for place, p in enumerate(seen.belief.culprits) if p > 0.001]
        order.sort(key=lambda one: -one[1])
    rates = seen.belief.rates if seen is not None and state.runs else None
    groups = state.groups()
    bad_end, good_end = groups[state.last], groups[0]
    counted = seen or None
    return Result(
        ending=ending,
        first=first,
        last=last,
        probability=chance,
        reason=reason,
        runs=state.runs,
        builds=state.builds,
        seconds=state.seconds,
        bad_rate=rates[0] if rates else None,
        good_rate=rates[1] if rates else None,
        bad_end=_of(counted, bad_end),
        good_end=_of(counted, good_end),
        suspects=tuple(order[:10]),
    )


def _of(seen: View | None, group: int) -> tuple[int, int]:
    return (0, 0) if seen is None else (seen.bad[group], seen.bad[group] + seen.good[group])


def _suspects(seen: View, ending: Ending, share: float = 0.95) -> tuple[int, int, float]:
    """The shortest run of blocks that holds `share` of what is believed; one block if found."""
    blocks = seen.blocks
    if ending is Ending.FOUND or max(block[2] for block in blocks) >= share:
        return max(blocks, key=lambda block: block[2])
    total = sum(block[2] for block in blocks)
    best: tuple[float, int, int, float] | None = None
    for start in range(len(blocks)):
        chance = 0.0
        for stop in range(start, len(blocks)):
            chance += blocks[stop][2]
            if chance >= share * total:
                width = blocks[stop][1] - blocks[start][0]
                if best is None or (width, -chance) < (best[0], -best[3]):
                    best = (width, blocks[start][0], blocks[stop][1], chance)
                break
    assert best is not None
    return best[1:]


# --- doing it ----------------------------------------------------------------------------------


class Bench(Protocol):
    """Where revisions are built and run."""

    def build(self, revision: int) -> Step:
        """`BUILT` with the kernel's signature, or `UNTESTABLE`."""
        ...

    def run(self, revision: int) -> Step:
        """One run of a built revision: `GOOD`, `BAD`, `NOTHING` or `LOST`."""
        ...


def search(state: State, bench: Bench, rules: Rules, record: Callable[[Step], None]) -> Result:
    """Build and run until `decide` has an answer; `record` gets each step as it is done.

    Raises `LabFault` if the lab's own machines break three times in a row.
    """
    while True:
        if state.lost >= _PATIENCE:
            raise LabFault(
                f"the lab lost its machine {state.lost} times in a row: {state.steps[-1].note}",
                hint="nothing is lost: the same command goes on from here",
            )
        todo = decide(state, rules)
        if isinstance(todo, Result):
            return todo
        step = bench.build(todo.revision) if todo.build else bench.run(todo.revision)
        record(step)
        state = after(state, step)
