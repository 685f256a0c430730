"""Results and news of a night go in; its outcome, a sentence and the reasons come out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from lab.model import Outcome, Side
from lab.night.record import Change, JobResult, JobState, News

_NOT_RUN = {
    JobState.LEFT_OUT: "did not fit into the budget",
    JobState.CUT_OFF: "cut off by the end of the budget",
    JobState.REFUSED: "cannot be carried out",
    JobState.FAULT: "the lab broke",
}
_NAMED = 3


def outcome(results: Sequence[JobResult], news: Sequence[News]) -> tuple[Outcome, tuple[str, ...]]:
    """The outcome, and why it is not clean. What did not run is never green."""
    names = {one.job.key: one.job.name for one in results}
    bad = [f"{one.job.name}: {one.sentence}" for one in results if one.outcome is Outcome.REGRESSED]
    bad += [_told(one, names) for one in news if one.change is Change.NEW]
    open_ = [
        f"{one.job.name}: {one.sentence}"
        for one in results
        if one.outcome in (Outcome.INCONCLUSIVE, Outcome.LAB_FAULT)
    ]
    open_ += [
        f"{one.job.name}: {_NOT_RUN[one.state]}: {one.reason}"
        for one in results
        if one.state is not JobState.RAN
    ]
    open_ += [_told(one, names) for one in news if one.change in (Change.SUSPECT, Change.LOST)]
    reasons = (*bad, *open_)
    if bad:
        return Outcome.REGRESSED, reasons
    if results and all(one.state is JobState.FAULT for one in results):
        return Outcome.LAB_FAULT, reasons
    return (Outcome.INCONCLUSIVE if open_ or not results else Outcome.CLEAN), reasons


def sentence(outcome_: Outcome, results: Sequence[JobResult], news: Sequence[News]) -> str:
    """The answer: what is new first, then what did not run."""
    ran = [one for one in results if one.state is JobState.RAN]
    changes = Counter(one.change for one in news)
    parts = [
        f"{changes[change]} {change}"
        for change in (Change.NEW, Change.SUSPECT, Change.LOST, Change.FIXED, Change.FLAKY)
        if changes[change]
    ]
    regressed = [one.job.name for one in ran if one.outcome is Outcome.REGRESSED]
    head = f"{str(outcome_).replace('-', ' ')}: {len(ran)} of {len(results)} jobs ran"
    if regressed:
        head += f"; the series regresses in {_listed(regressed)}"
    undecided = [
        one.job.name for one in ran if one.outcome in (Outcome.INCONCLUSIVE, Outcome.LAB_FAULT)
    ]
    if undecided:
        head += f"; inconclusive: {_listed(undecided)}"
    if parts:
        head += f"; {', '.join(parts)}"
    missing = [one.job.name for one in results if one.state is not JobState.RAN]
    if missing:
        head += f"; not run: {_listed(missing)}"
    if not (parts or regressed or undecided or missing):
        compared = any(one.reference for one in ran)
        head += ", and " + (
            "nothing changed" if compared else "there is nothing to compare with yet"
        )
    return head


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def sides(which: Iterable[Side]) -> str:
    """Where it was seen: on both sides it is not the series that did it."""
    named = tuple(which)
    return "both sides" if len(named) == len(Side) else f"{named[0]} only"


def numbers(one: News) -> str:
    """ "failed in 4 of 4, before in 0 of 28 (p = 0.0003)"."""
    verb = "seen in" if one.kind == "splat" else "failed"
    text = f"{verb} {one.tonight.text}"
    if one.before.runs:
        text += f", before {one.before.text}"
    if one.p is not None:
        text += f" (p = {one.p:.2g})"
    if one.since:
        text += f", since the night {one.since}"
    return text


def _told(one: News, names: dict[str, str]) -> str:
    where = f"{names.get(one.job, one.job)}: {one.change} {one.kind} on {sides(one.sides)}"
    return f"{where}: {one.title}: {numbers(one)}"
