"""Trials of one kernel come in; whether they show what is looked for goes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab.bisect import StepKind
from lab.model import (
    CaseResult,
    CaseState,
    CaseVerdict,
    Comparison,
    MachineEnd,
    RunRecord,
    Side,
    Splat,
    Trial,
    UserError,
)
from lab.suites import boot

# The lab's machine broke, not the kernel in it.
_OURS = (MachineEnd.QEMU_DIED, MachineEnd.LOST)
_FAILED = (CaseState.FAILED, CaseState.CRASHED, CaseState.HUNG, CaseState.TIMEOUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """What makes a run a bad one: one of the cases fails, or the splat shows."""

    cases: tuple[str, ...]
    splat: str = ""  # a fingerprint, or a part of a title

    @property
    def text(self) -> str:
        where = ", ".join(self.cases) if len(self.cases) < 4 else f"{len(self.cases)} cases"
        return f"splat {self.splat!r} in {where}" if self.splat else f"{where} fails"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    kind: StepKind  # GOOD, BAD, NOTHING or LOST
    note: str


def judge(symptom: Symptom, trials: Sequence[Trial]) -> Answer:
    """What one run of the cases (in as many machines as it took) says.

    A run that was cut short proves only what it did show.
    """
    return _splat(symptom, trials) if symptom.splat else _cases(symptom, trials)


def _cases(symptom: Symptom, trials: Sequence[Trial]) -> Answer:
    results = {result.name: result for trial in trials for result in trial.results}
    lost = [trial for trial in trials if trial.end in _OURS]
    asked = [results[name] for name in symptom.cases if name in results]
    # What the lab's own trouble ended did not fail by itself.
    died = {trial.results[-1].name for trial in lost if trial.results}
    for result in asked:
        if result.state in _FAILED and result.name not in died:
            return Answer(kind=StepKind.BAD, note=_said(result))
    if lost:
        return Answer(kind=StepKind.LOST, note=f"machine {lost[0].end}: {lost[0].note}")
    dead = next((trial for trial in trials if trial.boot_s is None), None)
    if dead is not None:
        # That it boots is what this case is about.
        kind = StepKind.BAD if boot.CASE in symptom.cases else StepKind.NOTHING
        return Answer(kind=kind, note=f"does not boot ({dead.end})")
    for result in asked:
        if result.state is not CaseState.PASSED:
            return Answer(kind=StepKind.NOTHING, note=_said(result))
    if len(asked) < len(symptom.cases):
        missing = next(name for name in symptom.cases if name not in results)
        return Answer(kind=StepKind.NOTHING, note=f"{missing} was not reached")
    return Answer(kind=StepKind.GOOD, note="passed")


def _splat(symptom: Symptom, trials: Sequence[Trial]) -> Answer:
    seen = [splat for trial in trials for splat in _splats(trial)]
    for splat in seen:
        if shows(symptom.splat, splat):
            return Answer(kind=StepKind.BAD, note=splat.title)
    for trial in trials:
        if trial.end in _OURS:
            return Answer(kind=StepKind.LOST, note=f"machine {trial.end}: {trial.note}")
        if trial.boot_s is None:
            return Answer(kind=StepKind.NOTHING, note=f"does not boot ({trial.end})")
        if trial.end is not MachineEnd.POWERED_OFF:
            other = f" by {seen[0].title}" if seen else ""
            return Answer(kind=StepKind.NOTHING, note=f"cut short{other} ({trial.end})")
    results = {result.name: result for trial in trials for result in trial.results}
    for name in symptom.cases:
        ran = results.get(name)
        # Without lockdep its reports cannot show; a case that was skipped shows nothing either.
        if ran is None or ran.state not in (*_FAILED, CaseState.PASSED):
            said = _said(ran) if ran else f"{name} was not reached"
            return Answer(kind=StepKind.NOTHING, note=said)
    return Answer(kind=StepKind.GOOD, note="it does not show")


def _splats(trial: Trial) -> tuple[Splat, ...]:
    return (*trial.boot_splats, *(s for result in trial.results for s in result.splats))


def shows(wanted: str, splat: Splat) -> bool:
    """Whether `wanted` is its fingerprint, or a part of its title."""
    return wanted == splat.fingerprint or wanted.casefold() in splat.title.casefold()


def _said(result: CaseResult) -> str:
    return f"{result.state}: {result.message}" if result.message else str(result.state)


# --- from a run --------------------------------------------------------------------------------


def of_run(record: RunRecord) -> tuple[str, Symptom, str]:
    """Architecture and symptom of what got worse in a run, and what else did, in words.

    One question gives one answer: of several cases that got worse the one that fails most often is
    taken. Raises `UserError` if there is nothing to look for.
    """
    verdict = record.verdict
    for wanted in (Comparison.REGRESSED, Comparison.SUSPECT):
        cases = [case for case in verdict.cases if case.comparison is wanted]
        if cases:
            cases.sort(key=lambda case: (-_rate(case), case.name))
            first = cases[0]
            others = ", ".join(case.name for case in cases[1:4])
            more = f"also worse: {others} (--case chooses)" if others else ""
            return first.arch, Symptom(cases=(first.name,)), more
        splats = [splat for splat in verdict.splats if splat.comparison is wanted]
        if splats:
            worst = max(splats, key=lambda one: one.patched / max(1, one.patched_trials))
            arch = worst.arch or record.manifest.archs[0]
            found = _cases_with(record, arch, worst.fingerprint or worst.title)
            return arch, Symptom(cases=found, splat=worst.fingerprint or worst.title), ""
        boots = [finding for finding in verdict.findings if finding.kind == "boot"]
        if boots:
            return boots[0].arch, Symptom(cases=(boot.CASE,)), ""
    for finding in verdict.findings:
        if finding.patch:
            raise UserError(
                f"the run says already that {finding.patch} does it: {finding.title}",
                hint=f"lab report {record.manifest.run}",
            )
    raise UserError(
        f"{record.manifest.run}: nothing got worse in that run", hint="--case names what to look at"
    )


def _rate(case: CaseVerdict) -> float:
    return case.patched.failed / max(1, case.patched.decided)


def _cases_with(record: RunRecord, arch: str, wanted: str) -> tuple[str, ...]:
    """Cases in which the splat showed; the boot case for one outside of them."""
    names = [
        result.name
        for trial in record.trials
        if trial.cell.arch == arch and trial.cell.side is Side.PATCHED
        for result in trial.results
        if any(shows(wanted, splat) for splat in result.splats)
    ]
    return tuple(dict.fromkeys(names)) or (boot.CASE,)
