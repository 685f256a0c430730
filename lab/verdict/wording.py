"""Parts of a verdict go in, the words that people read come out. Nothing is decided in here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lab.model import (
    CaseState,
    CaseVerdict,
    Comparison,
    Diagnostic,
    Finding,
    Outcome,
    Side,
    Tally,
    Verdict,
)
from lab.verdict.chance import CONFIDENCE, Weighed, smallest_rate
from lab.verdict.observe import Observed

# The order in which findings are told: what keeps others from being seen comes first.
_FIRST = ("build", "boot", "patch", "splat", "lock-cycle", "case", "speed", "compiler-warning")
_NAMES_SHOWN = 3


def diagnostic(message: Diagnostic) -> str:
    place = f"{message.file}:{message.line}: " if message.line else f"{message.file}: "
    return f"{place if message.file else ''}{message.message}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str]) -> str:
    """ "a, b, c and 5 more"."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def failures(base: Tally, patched: Tally) -> str:
    return (
        f"{patched.failed} of {patched.decided} fail with the series, "
        f"{base.failed} of {base.decided} without"
    )


def probability(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def fresh_runs(weighed: Weighed) -> str:
    """The evidence of a significant difference."""
    assert weighed.p is not None
    return (
        f"{weighed.patched} of {weighed.patched_runs} fresh runs with the series, "
        f"{weighed.base} of {weighed.base_runs} without, {probability(weighed.p)}"
    )


def resolution(cases: Iterable[CaseVerdict]) -> str:
    """What a run without failures can have overlooked."""
    runs = min(
        (case.patched.decided for case in cases if case.comparison is Comparison.SAME_PASS),
        default=0,
    )
    if not runs:
        return ""
    return (
        f"a failure that comes in fewer than {smallest_rate(runs):.0%} of runs may have been "
        f"overlooked ({runs} of {runs} passed; {CONFIDENCE:.0%} confidence)"
    )


def lost(
    observed: Observed, case: str, base: Tally, patched: Tally, repeats: int
) -> tuple[str, bool] | None:
    """Why too little is known of a case to compare it, and whether that casts doubt on the run."""
    tallies = {Side.BASE: base, Side.PATCHED: patched}
    if all(t.skipped and not t.decided and not t.unknown for t in tallies.values()):
        why = {answer.message for side in Side for answer in observed.of(side, case).values()}
        if len(why) == 1:
            return f"skipped on both sides: {why.pop() or 'no reason given'}", False
        return f"skipped on both sides, for different reasons: {'; '.join(sorted(why))}", True
    for side, got in tallies.items():
        where = "on the base" if side is Side.BASE else "with the series"
        if got.decided >= repeats and got.unknown < got.decided:
            continue
        answers = observed.of(side, case).values()
        if observed.boots[side] and not any(observed.boots[side]):
            return f"no machine booted {where}", True
        if not answers:
            return f"never ran {where}", True
        states = Counter(str(answer.state) for answer in answers)
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        said = {a.message for a in answers if a.state is not CaseState.PASSED and a.message}
        because = f" ({listed(sorted(said))})" if said else ""
        return f"too little is known {where}: {told}{because}", True
    return None


# --- the sentence ------------------------------------------------------------------------------


def with_sentence(verdict: Verdict, *, title: str, archs: Sequence[str]) -> Verdict:
    """The verdict with its one sentence, and its findings in the order of telling."""
    findings = tuple(sorted(verdict.findings, key=_rank))
    match verdict.outcome:
        case Outcome.CLEAN:
            told = _clean(verdict, archs)
        case Outcome.REGRESSED:
            told = _and_more(_headline(findings[0], len(archs) > 1), len(findings) - 1, "finding")
        case Outcome.INCONCLUSIVE | Outcome.LAB_FAULT:
            told = _and_more(verdict.reasons[0], 0, "")
    outcome = str(verdict.outcome).replace("-", " ")
    return replace(verdict, findings=findings, sentence=f"{title}: {outcome}: {told}")


def _rank(finding: Finding) -> tuple[int, str, str]:
    rank = _FIRST.index(finding.kind) if finding.kind in _FIRST else len(_FIRST)
    return rank, finding.arch, finding.title


def _and_more(told: str, more: int, noun: str) -> str:
    return f"{told}; and {counted(more, f'more {noun}')}" if more > 0 else told


def _headline(finding: Finding, several: bool) -> str:
    where = f" on {finding.arch}" if several else ""
    if finding.kind == "build":
        since = f" from patch {finding.patch} on" if finding.patch else ""
        return f"does not build{where}{since}: {finding.title}"
    if finding.kind == "compiler-warning":
        return f"new compiler warning{where}: {finding.title}"
    if finding.kind == "lock-cycle":
        return f"new lock cycle{where}: {finding.title}"
    if finding.kind == "splat":
        return f"new splat{where}: {finding.title} ({finding.detail.partition(';')[0]})"
    return (
        f"{finding.title}{where} {finding.detail}"
        if finding.kind == "case"
        else (f"{finding.title}{where} ({finding.detail})")
    )


def _clean(verdict: Verdict, archs: Sequence[str]) -> str:
    count = Counter(case.comparison for case in verdict.cases)
    passing = [case for case in verdict.cases if case.comparison is Comparison.SAME_PASS]
    runs = {(tally.passed, tally.decided) for c in passing for tally in (c.base, c.patched)}
    how_often = " {} of {}".format(*runs.pop()) if len(runs) == 1 else ""
    verb = "passes" if len(passing) == 1 else "pass"
    parts = [f"builds and boots on {' and '.join(archs)}"]
    parts.append(f"{counted(len(passing), 'case')} {verb}{how_often} on both sides")
    for comparison, words in (
        (Comparison.SAME_FAIL, "failing on both"),
        (Comparison.FLAKY, "flaky"),
        (Comparison.FIXED, "fixed"),
        (Comparison.UNKNOWN, "skipped on both"),
    ):
        if count[comparison]:
            parts.append(f"{count[comparison]} {words}")
    return ", ".join((*parts, "no new splat"))
