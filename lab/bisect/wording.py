"""Results and states of a search go in, sentences and rows for people come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab.bisect.search import Ending, Result, Revision, Rules, State, Step, StepKind, view
from lab.verdict import chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A revision that something is known of."""

    revision: int
    label: str
    title: str
    failed: int
    runs: int
    suspicion: float  # probability that it is the culprit
    note: str  # why it cannot be tested, or which kernel it equals


def named(revision: Revision) -> str:
    return f"{revision.label} {revision.title!r}"


def sentence(result: Result, revisions: Sequence[Revision]) -> str:
    """The answer in one sentence."""
    cost = f"{_count(result.runs, 'run')}, {_count(result.builds, 'build')}"
    chance_said = _percent(result.probability)
    first, last = revisions[result.first], revisions[result.last]
    match result.ending:
        case Ending.FOUND:
            culprit = named(revisions[result.first if one_named(result) else result.last])
            return f"{culprit} with {chance_said}, {cost}"
        case Ending.RANGE if result.first == result.last:
            return f"probably {named(first)} ({chance_said}), {cost}: {result.reason}"
        case Ending.RANGE:
            return (
                f"between {named(first)} and {named(last)} ({chance_said}), {cost}: {result.reason}"
            )
        case Ending.NO_DIFFERENCE:
            return f"no difference between the ends: {result.reason}{_leaves(result)}, {cost}"
        case Ending.SAME_KERNEL | Ending.END_UNTESTABLE:
            return f"{result.reason}, {cost}"


def one_named(result: Result) -> bool:
    return result.first == result.last


def _leaves(result: Result) -> str:
    """What so many passing runs of the bad end could still have overlooked."""
    failed, runs = result.bad_end
    if failed or not runs:
        return ""
    return f" (0 of {runs} leaves anything under {_percent(chance.smallest_rate(runs))})"


def rates(result: Result) -> str:
    """How often it fails with and without the culprit; "" where nothing ran."""
    if result.bad_rate is None or result.good_rate is None or result.ending is Ending.NO_DIFFERENCE:
        return ""
    return (
        f"fails in about {_percent(result.bad_rate)} of runs with it, "
        f"{_percent(result.good_rate)} without; "
        f"bad end {result.bad_end[0]} of {result.bad_end[1]}, "
        f"good end {result.good_end[0]} of {result.good_end[1]}"
    )


def rows(state: State) -> tuple[Row, ...]:
    """What was tried, and what is suspected."""
    groups = state.groups()
    same = groups[state.last] == 0
    suspicion = [0.0] * len(groups)
    if not same and state.runs:
        suspicion[1:] = [float(chance) for chance in view(state).belief.culprits]
    found = []
    for place, revision in enumerate(state.revisions):
        runs = state.bad[place] + state.good[place]
        note = state.untestable[place]
        if not note and groups[place] != place and state.kernels[place]:
            note = f"the same kernel as {state.revisions[groups[place]].label}"
        if runs or note or suspicion[place] >= 0.01 or place in (0, state.last):
            found.append(
                Row(
                    revision=place,
                    label=revision.label,
                    title=revision.title,
                    failed=state.bad[place],
                    runs=runs,
                    suspicion=suspicion[place],
                    note=note,
                )
            )
    return tuple(found)


def progress(state: State, rules: Rules, step: Step) -> str:
    """One line for a step that was just done."""
    place = step.revision
    label = state.revisions[place].label
    match step.kind:
        case StepKind.BUILT:
            group = state.groups()[place]
            if group != place:
                return f"{label}: the same kernel as {state.revisions[group].label}"
            return f"{label}: built"
        case StepKind.UNTESTABLE:
            return f"{label}: cannot be tested: {step.note}"
        case StepKind.NOTHING | StepKind.LOST:
            return f"{label}: proves nothing: {step.note}"
        case StepKind.GOOD | StepKind.BAD:
            failed, runs = state.bad[place], state.bad[place] + state.good[place]
            said = f"{label}: {step.kind}, {failed} of {runs} failed"
            return f"{said}; {_suspects(state, rules)}"


def _suspects(state: State, rules: Rules) -> str:
    if state.groups()[state.last] == 0:
        return "the ends are one kernel"
    seen = view(state)
    if seen.belief.none > 0.5:
        return "no difference yet"
    first, last, probability = max(seen.blocks, key=lambda block: block[2])
    likely = state.revisions[last].label
    if first != last:
        likely = f"{state.revisions[first].label} to {likely}"
    return f"likeliest {likely} ({_percent(probability)} of {_percent(rules.confidence)})"


def _percent(share: float) -> str:
    """97%; never rounded up to certainty or down to nothing."""
    if 0.995 <= share < 1:
        return f"{min(share, 0.9999):.2%}".replace("100.00", "99.99")
    if 0 < share < 0.01:
        return f"{share:.1%}"
    return f"{share:.0%}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
