"""Plan, kernels, build failures and trials of both sides go in; a `Verdict` comes out, or what
else must run before there can be one. Pure. The rules and their reasons: docs/verdict.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from lab.model import (
    BuildFailure,
    CaseState,
    CaseVerdict,
    Comparison,
    Diagnostic,
    Finding,
    Kernel,
    Outcome,
    Past,
    PrefixResult,
    PrefixState,
    Side,
    SplatVerdict,
    Tally,
    Trial,
    Verdict,
)
from lab.verdict import past as earlier
from lab.verdict import speed, wording
from lab.verdict.chance import LEVEL, Lean, Standing, Weighed, looks, weigh
from lab.verdict.observe import (
    BOOT,
    OUTSIDE,
    TAKEN_DOWN,
    Observed,
    SplatSeen,
    comparable_trials,
    observe,
    tally,
)

# The kind of splat by which lockdep says that it gave up for want of room (lab.splat.kinds).
SPENT = "lockdep-limit"
# Boots that fail, or results that get lost, this often in a row are not tried again.
IN_A_ROW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LockNews:
    """What the lock graphs of one architecture's trials say that a verdict must know."""

    arch: str
    cycles: tuple[tuple[str, str], ...]  # with the series only, certain: title, evidence
    doubts: tuple[str, ...]  # reasons to look that prove nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeInput:
    """All that a verdict rests on."""

    title: str  # of the series
    archs: tuple[str, ...]
    cases: tuple[str, ...]  # planned on every architecture, by name
    profile: str
    trials: tuple[Trial, ...]
    kernels: tuple[Kernel, ...]
    failures: tuple[BuildFailure, ...]
    repeats: int  # of every case on each side: these raise suspicions
    max_repeats: int  # of a suspect on each side, `repeats` included
    changed_files: tuple[str, ...] = ()  # by the series
    level: float = LEVEL  # chance that a series which changes nothing is called regressed
    faults: tuple[str, ...] = ()  # what the lab itself could not do
    counters: tuple[str, ...] = ()  # of /proc/vmstat: each must rise on the patched side
    locks: tuple[LockNews, ...] = ()
    absent: tuple[str, ...] = ()  # suites that were asked for and cannot run, each with its reason
    prefixes: tuple[PrefixResult, ...] = ()  # of --each-patch, in order
    # What earlier bases showed on the same ground, by architecture and case (or key of a splat).
    past: Mapping[tuple[str, str], Past] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreRuns:
    """Repeats `first` .. `last` (inclusive) of these cases, on both sides, may decide them."""

    arch: str
    cases: tuple[str, ...]
    first: int
    last: int

    @property
    def repeats(self) -> range:
        return range(self.first, self.last + 1)


@dataclass(slots=True)
class _Arch:
    """The evidence of one architecture, while it is being judged."""

    name: str
    planned: tuple[str, ...]
    kernels: dict[Side, Kernel]
    failures: dict[Side, BuildFailure]
    observed: Observed
    weighed: dict[str, Weighed] = field(default_factory=dict)  # cases and BOOT
    splats: dict[str, Weighed] = field(default_factory=dict)

    def boots(self, side: Side) -> tuple[bool, ...]:
        """Whether it booted, machine by machine, as far as known."""
        return self.observed.boots[side]

    def dead(self, side: Side) -> bool:
        """It never booted, and was tried often enough."""
        boots = self.boots(side)
        return len(boots) >= IN_A_ROW and not any(boots)

    @property
    def boot_regressed(self) -> bool:
        """Three failed boots in a row where the base boots every time."""
        runs = "".join("x" if not up else "." for up in self.boots(Side.PATCHED))
        base = self.boots(Side.BASE)
        return "x" * IN_A_ROW in runs and bool(base) and all(base)


def _evidence(given: JudgeInput) -> tuple[_Arch, ...]:
    """Observe and weigh everything; all questions of a run share its error level."""
    archs = tuple(
        _Arch(
            name=name,
            planned=given.cases,
            kernels={kernel.side: kernel for kernel in given.kernels if kernel.arch == name},
            failures={failure.side: failure for failure in given.failures if failure.arch == name},
            observed=observe(given.trials, arch=name, profile=given.profile, planned=given.cases),
        )
        for name in given.archs
    )
    questions = [(arch, case) for arch in archs for case in dict.fromkeys((*arch.planned, BOOT))]
    sightings = [
        (arch, key)
        for arch in archs
        for key, seen in arch.observed.splats.items()
        if seen.splat.kind != SPENT
    ]
    samples = [arch.observed.sample(case) for arch, case in questions]
    for arch, key in sightings:
        seen = arch.observed.splats[key]
        attempted = min(arch.observed.attempted(case) for case in seen.cases)
        samples.append(seen.sample(attempted, arch.observed.screened(seen.cases)))
    weighed = weigh(
        samples, repeats=given.repeats, max_repeats=given.max_repeats, level=given.level
    )
    for (arch, case), result in zip(questions, weighed, strict=False):
        arch.weighed[case] = result
    for (arch, key), result in zip(sightings, weighed[len(questions) :], strict=True):
        arch.splats[key] = result
    return archs


# --- what else must run ------------------------------------------------------------------------


def needs_more(given: JudgeInput) -> tuple[MoreRuns, ...]:
    """The runs that come next; () when the evidence suffices or the budget is spent.

    Call it again with the new trials: it asks for as few as can decide anything.
    """
    asked: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for arch in _evidence(given):
        for case, more in _wanted(arch, given).items():
            first = arch.observed.attempted(case)
            asked[arch.name, first, first + more - 1].append(case)
    return tuple(
        MoreRuns(arch=arch, cases=tuple(cases), first=first, last=last)
        for (arch, first, last), cases in sorted(asked.items())
    )


def suspects(given: JudgeInput) -> tuple[tuple[str, str], ...]:
    """The cases, each with its architecture, that further runs within the budget may decide."""
    return tuple((case, more.arch) for more in needs_more(given) for case in more.cases)


def _wanted(arch: _Arch, given: JudgeInput) -> dict[str, int]:
    """How many further repeats each planned case should get."""
    if len(arch.kernels) < len(Side) or not arch.observed.comparable:
        return {}
    if arch.boot_regressed or arch.dead(Side.BASE) or arch.dead(Side.PATCHED):
        return {}
    if not arch.planned:
        return {}
    wanted: dict[str, int] = {}

    def ask(case: str, more: int) -> None:
        left = given.max_repeats - arch.observed.attempted(case)
        more = min(more, left)
        if more > 0:
            wanted[case] = max(more, wanted.get(case, 0))

    silent = [boots for side in Side if (boots := arch.boots(side)) and not any(boots)]
    if silent:  # one case is enough to see whether it ever boots
        ask(arch.planned[0], IN_A_ROW - min(len(boots) for boots in silent))
        return wanted
    for case in arch.planned:
        if arch.weighed[case].standing is Standing.OPEN:
            ask(case, arch.weighed[case].more)
        ask(case, _to_make_up(arch, case, given))
    boot = arch.weighed[BOOT]
    if boot.standing is Standing.OPEN:
        ask(arch.planned[0], boot.more)  # any case boots a machine
    for key, weighed in arch.splats.items():
        if weighed.standing is not Standing.OPEN:
            continue
        seen = arch.observed.splats[key].cases
        # Outside of any case: the whole plan is what provoked it.
        for case in arch.planned if seen & {BOOT, OUTSIDE} else sorted(seen & set(arch.planned)):
            ask(case, weighed.more)
    return wanted


def _planned_repeats(arch: _Arch, case: str, given: JudgeInput) -> int:
    """Of every case; fewer of one that was left out because it takes machines down."""
    return min(given.repeats, arch.observed.screened((case,)) or given.repeats)


def _to_make_up(arch: _Arch, case: str, given: JudgeInput) -> int:
    """Repeats that would make up for results that got lost."""
    lacking = 0
    for side in Side:
        answers = arch.observed.of(side, case)
        last = [answers[repeat] for repeat in sorted(answers)][-IN_A_ROW:]
        if len(last) == IN_A_ROW and all(answer.failed is None for answer in last):
            return 0
        if last and all(answer.state is CaseState.SKIPPED for answer in answers.values()):
            return 0  # a skip is an answer, and will be the same again
        decided = sum(answer.failed is not None for answer in answers.values())
        lacking = max(lacking, _planned_repeats(arch, case, given) - decided)
    return lacking


# --- the verdict -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Docket:
    """What has been found so far."""

    cases: list[CaseVerdict] = field(default_factory=list)
    splats: list[SplatVerdict] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)  # each one alone makes a run inconclusive
    notes: list[str] = field(default_factory=list)  # what a reader must know besides
    # (architecture, reason, is it a doubt) -> its cases
    same: dict[tuple[str, str, bool], list[str]] = field(default_factory=dict)

    def of_case(self, arch: str, case: str, reason: str, *, doubt: bool) -> None:
        self.same.setdefault((arch, reason, doubt), []).append(case)

    def gather(self) -> None:
        """Say what holds for many cases once."""
        for (arch, reason, doubt), cases in self.same.items():
            told = f"{arch}: {wording.listed(cases)}: {reason}"
            (self.doubts if doubt else self.notes).append(told)
        self.same.clear()


def judge(given: JudgeInput) -> Verdict:
    """The verdict on what has run. Whatever did not run, or was lost, is never in its favour."""
    docket = _Docket()
    for arch in _evidence(given):
        _judge_arch(arch, given, docket)
    _judge_prefixes(given, docket)
    docket.gather()
    docket.doubts += _idle_counters(given)
    docket.doubts += _spent_lockdep(given)
    speeds = speed.speeds(
        [t for a in given.archs for t in comparable_trials(given.trials, a, given.profile)],
        given.archs,
    )
    docket.findings += [
        Finding(
            kind="speed",
            title=f"{one.case}: {one.metric}",
            detail=speed.wording(one),
            arch=one.arch,
        )
        for one in speeds
        if one.slower
    ]
    for news in given.locks:
        docket.findings += [
            Finding(kind="lock-cycle", title=title, detail=detail, arch=news.arch)
            for title, detail in news.cycles
        ]
        docket.doubts += [f"{news.arch}: {doubt}" for doubt in news.doubts]
    docket.doubts += given.absent
    if not given.archs or not given.cases:
        docket.doubts.append("no case was planned: nothing could be shown")
    elif not docket.doubts and not any(case.base.passed for case in docket.cases):
        docket.doubts.append("no case passes on the base: this run could not show a regression")
    if docket.findings:
        outcome = Outcome.REGRESSED
    elif given.faults:
        outcome = Outcome.LAB_FAULT
    elif docket.doubts:
        outcome = Outcome.INCONCLUSIVE
    else:
        outcome = Outcome.CLEAN
        resolution = wording.resolution(docket.cases)
        if resolution:
            docket.notes.append(resolution)
    reasons = tuple(dict.fromkeys((*given.faults, *docket.doubts, *docket.notes)))
    verdict = Verdict(
        outcome=outcome,
        sentence="",
        cases=tuple(docket.cases),
        findings=tuple(docket.findings),
        splats=tuple(docket.splats),
        reasons=reasons,
        speeds=speeds,
    )
    return wording.with_sentence(verdict, title=given.title, archs=given.archs)


def _judge_prefixes(given: JudgeInput, docket: _Docket) -> None:
    """The first patch on each architecture after which the series is broken, even if a later one
    mends it; what is unknown of a prefix is a doubt."""
    broken: set[str] = set()
    for each in given.prefixes:
        label = f"{each.arch}: with patch {each.number} of the series as the last"
        match each.state:
            case PrefixState.PASSED:
                pass
            case PrefixState.UNKNOWN:
                docket.doubts.append(f"{label}: {each.reason}")
            case PrefixState.BROKEN if each.arch in broken:
                docket.notes.append(f"{label}: {each.reason}")
            case PrefixState.BROKEN:
                broken.add(each.arch)
                docket.findings.append(
                    Finding(
                        kind="patch",
                        title=f"patch {each.number} ({each.subject}) breaks the series",
                        detail=each.reason,
                        arch=each.arch,
                        patch=each.patch,
                    )
                )
            case _:
                assert_never(each.state)


def _idle_counters(given: JudgeInput) -> list[str]:
    """Counters of the series that no patched trial raised: what they count was not tested."""
    doubts: list[str] = []
    for arch in given.archs:
        read = [
            trial.vmstat
            for trial in given.trials
            if trial.cell.arch == arch and trial.cell.side is Side.PATCHED and trial.vmstat
        ]
        idle = [name for name in given.counters if not any(stat.get(name) for stat in read)]
        if idle:
            told = f"{wording.listed(idle)} in /proc/vmstat stayed 0 on the patched side"
            doubts.append(f"{arch}: {told}: what the series does was not exercised")
    return doubts


def _spent_lockdep(given: JudgeInput) -> list[str]:
    """Where lockdep had no room for more: what it did not check is coverage lost, no fault."""
    doubts: list[str] = []
    for arch in given.archs:
        for side in Side:
            mine = [t for t in given.trials if (t.cell.arch, t.cell.side) == (arch, side)]
            said = [told for trial in mine if (told := _spent(trial))]
            if said:
                doubts.append(
                    f"{arch}: coverage lost: lockdep ran out of room in {len(said)} of "
                    f"{len(mine)} {side} machines ({said[0]}); CONFIG_LOCKDEP_* make it larger"
                )
    return doubts


def _spent(trial: Trial) -> str:
    splats = (*trial.boot_splats, *(splat for r in trial.results for splat in r.splats))
    reported = [splat.title for splat in splats if splat.kind == SPENT]
    full = list(trial.locks.full) if trial.locks else []
    return next(iter((*reported, *full)), "")


def _judge_arch(arch: _Arch, given: JudgeInput, docket: _Docket) -> None:
    docket.notes += arch.observed.notes
    if out := [case for case in arch.planned if case in arch.observed.left_out]:
        docket.notes.append(
            f"{arch.name}: left out after {TAKEN_DOWN} crashes or hangs on one side, and run on "
            f"its own only where the verdict needed it: {wording.listed(out)}"
        )
    if not arch.observed.comparable:
        docket.doubts.append(f"{arch.name}: no trials of the two sides may be compared")
    _judge_builds(arch, given, docket)
    _judge_boots(arch, docket)
    for case in arch.planned:
        _judge_case(arch, case, given, docket)
    for key, seen in arch.observed.splats.items():
        if key in arch.splats:
            _judge_splat(arch, seen, arch.splats[key], given.past.get((arch.name, key)), docket)
        else:  # lockdep's own limits: told, but not weighed
            docket.splats.append(_splat_verdict(arch, seen, Comparison.UNKNOWN, None))


def _judge_builds(arch: _Arch, given: JudgeInput, docket: _Docket) -> None:
    base, patched = (arch.failures.get(side) for side in (Side.BASE, Side.PATCHED))
    if base is not None:
        docket.doubts.append(
            f"{arch.name}: the base does not build ({wording.diagnostic(base.first_error)})"
        )
    elif Side.BASE not in arch.kernels:
        docket.doubts.append(f"{arch.name}: there is no kernel of the base")
    elif patched is not None:
        docket.findings.append(
            Finding(
                kind="build",
                title=wording.diagnostic(patched.first_error),
                detail=patched.first_error.text,
                arch=arch.name,
                patch=patched.patch,
            )
        )
    elif Side.PATCHED not in arch.kernels:
        docket.doubts.append(f"{arch.name}: there is no kernel with the series")
    else:
        _judge_warnings(arch, given, docket)


def new_warnings(before: Kernel, after: Kernel) -> tuple[Diagnostic, ...]:
    """The compiler warnings that the kernel before does not have, or has less often."""

    def counts(kernel: Kernel) -> Counter[tuple[str, str]]:
        # Without the line: a patch moves the code below it.
        return Counter((one.file, one.message) for one in kernel.warnings)

    where = {(one.file, one.message): one for one in after.warnings}
    return tuple(where[key] for key in counts(after) - counts(before))


def _judge_warnings(arch: _Arch, given: JudgeInput, docket: _Docket) -> None:
    """A compiler is deterministic: a warning that the base lacks is new, without statistics."""
    for warning in new_warnings(arch.kernels[Side.BASE], arch.kernels[Side.PATCHED]):
        if warning.file not in given.changed_files:
            docket.notes.append(
                f"{arch.name}: new compiler warning outside of the series' files: "
                f"{wording.diagnostic(warning)}"
            )
            continue
        docket.findings.append(
            Finding(
                kind="compiler-warning",
                title=wording.diagnostic(warning),
                detail=warning.text,
                arch=arch.name,
            )
        )


def _judge_boots(arch: _Arch, docket: _Docket) -> None:
    base, patched = arch.boots(Side.BASE), arch.boots(Side.PATCHED)
    weighed = arch.weighed[BOOT]
    counts = (
        f"{patched.count(False)} of {len(patched)} boots fail with the series, "
        f"{base.count(False)} of {len(base)} without"
    )
    if base and not any(base):
        ends = arch.observed.of(Side.BASE, BOOT).values()
        how = ", ".join(sorted({answer.message for answer in ends if answer.message}))
        docket.doubts.append(
            f"{arch.name}: the base does not boot ({base.count(False)} of {len(base)}: {how})"
        )
    elif arch.boot_regressed or (
        weighed.standing is Standing.SIGNIFICANT and weighed.lean is Lean.WORSE
    ):
        ends = arch.observed.of(Side.PATCHED, BOOT).values()
        how = " and ".join(sorted({answer.message for answer in ends if answer.message}))
        docket.findings.append(
            Finding(
                kind="boot",
                title=f"the patched kernel does not boot: it {how}"
                if not any(patched)
                else f"the patched kernel does not always boot: it {how}",
                detail="; ".join((counts, *_last_words(arch))),
                arch=arch.name,
            )
        )
    elif _suspicious(weighed) or (patched and not any(patched)):
        docket.doubts.append(f"{arch.name}: {counts}")
    elif not all(base) or not all(patched):
        docket.notes.append(f"{arch.name}: {counts}")


def _last_words(arch: _Arch) -> tuple[str, ...]:
    """What patched kernels alone say outside of any case, most often first; at most one."""
    said = [
        (len(seen.seen[Side.PATCHED]), seen.splat.title)
        for seen in arch.observed.splats.values()
        if BOOT in seen.cases and not seen.seen[Side.BASE]
    ]
    return (max(said)[1],) if said else ()


def _judge_case(arch: _Arch, case: str, given: JudgeInput, docket: _Docket) -> None:
    observed, weighed = arch.observed, arch.weighed[case]
    repeats = _planned_repeats(arch, case, given)
    base, patched = (
        tally(observed.of(side, case), repeats=repeats) for side in (Side.BASE, Side.PATCHED)
    )
    comparison, reason, doubt = Comparison.UNKNOWN, "", True
    settled = weighed.standing is Standing.SIGNIFICANT
    past = given.past.get((arch.name, case))
    if settled and weighed.lean is Lean.WORSE:
        comparison, doubt = Comparison.REGRESSED, False
        reason = f"fails in {wording.fresh_runs(weighed)}{earlier.told(past)}"
    elif lost := wording.lost(observed, case, base, patched, repeats):
        reason, doubt = lost
    elif settled:
        comparison, doubt = Comparison.FIXED, False
        reason = f"fixed: fails in {wording.fresh_runs(weighed)}{earlier.told(past)}"
    else:
        comparison, reason = _undecided(base, patched, weighed, past)
        doubt = comparison is Comparison.SUSPECT
        if reason:
            reason += earlier.told(past)
        if doubt:
            reason = f"{reason}; {_way_out(weighed, given)}"
    verdict = CaseVerdict(
        name=case,
        arch=arch.name,
        profile=given.profile,
        base=base,
        patched=patched,
        comparison=comparison,
        p_value=weighed.p,
        reason=reason,
        past=past,
    )
    docket.cases.append(verdict)
    if comparison is Comparison.REGRESSED:
        docket.findings.append(Finding(kind="case", title=case, detail=reason, arch=arch.name))
    elif reason:
        docket.of_case(arch.name, case, reason, doubt=doubt)
    elif reservation := observed.reservation(case):
        docket.of_case(arch.name, case, reservation, doubt=False)


def _undecided(
    base: Tally, patched: Tally, weighed: Weighed, past: Past | None
) -> tuple[Comparison, str]:
    """How a case compares whose answers are all in and show no significant difference."""
    if not base.failed and not patched.failed:
        return Comparison.SAME_PASS, ""
    counts = wording.failures(base, patched)
    if not base.passed and not patched.passed:
        return Comparison.SAME_FAIL, f"fails on the base too: {counts}"
    match weighed.standing:
        case Standing.EQUAL | Standing.SIGNIFICANT:
            return Comparison.FLAKY, f"flaky on both sides: {counts}"
        case Standing.DISMISSED:
            return Comparison.FLAKY, (
                f"flaky: {counts}; fresh runs rule out that it fails 30 points more often"
            )
        case Standing.OPEN | Standing.UNDECIDED:
            if weighed.lean is Lean.BETTER:
                return Comparison.FLAKY, f"may be fixed, but not significantly: {counts}"
            if _suspicious(weighed):
                undecided = weighed.standing is Standing.UNDECIDED
                if undecided and earlier.accounts_for(past, base, weighed):
                    return Comparison.FLAKY, f"flaky as it was before the series: {counts}"
                return Comparison.SUSPECT, f"differs, but not significantly: {counts}"
            return Comparison.FLAKY, f"flaky on the base too: {counts}"
        case _ as unreachable:
            assert_never(unreachable)


def _suspicious(weighed: Weighed) -> bool:
    """It fails more often with the series, and fresh runs neither proved it nor took it back.

    They take it back if the base fails too, and no less often: flaky, whoever was seen first.
    """
    if weighed.lean is not Lean.WORSE:
        return False
    if weighed.standing is not Standing.UNDECIDED:
        return weighed.standing is Standing.OPEN  # whoever judges too early hears so
    if not weighed.base or not weighed.patched_runs:
        return True
    return weighed.patched * weighed.base_runs > weighed.base * weighed.patched_runs


def _way_out(weighed: Weighed, given: JudgeInput) -> str:
    if weighed.standing is Standing.OPEN:
        return f"{weighed.more} more runs a side may decide it"
    if not looks(given.max_repeats - given.repeats, given.level):
        return (
            f"{given.max_repeats - given.repeats} fresh runs a side cannot decide anything "
            f"at level {given.level:g}: raise max_repeats"
        )
    return (
        f"undecided after {given.max_repeats} runs a side: raise max_repeats, "
        f"to {2 * given.max_repeats} say"
    )


def _judge_splat(
    arch: _Arch, seen: SplatSeen, weighed: Weighed, past: Past | None, docket: _Docket
) -> None:
    base, patched = len(seen.seen[Side.BASE]), len(seen.seen[Side.PATCHED])
    exposed = {side: len(seen.exposed[side]) for side in Side}
    whole = bool(seen.splat.fingerprint)
    settled = weighed.standing is Standing.SIGNIFICANT
    if settled and weighed.lean is Lean.WORSE:
        # A torn report may be half of a known one: it never decides alone.
        comparison = Comparison.REGRESSED if whole else Comparison.SUSPECT
    elif settled:
        comparison = Comparison.FIXED
    elif _suspicious(weighed):
        comparison = Comparison.SUSPECT
    elif not all(exposed.values()):
        comparison = Comparison.UNKNOWN  # a side never got to where it could have shown
    elif base == exposed[Side.BASE] and patched == exposed[Side.PATCHED]:
        comparison = Comparison.SAME_FAIL
    else:
        comparison = Comparison.FLAKY
    docket.splats.append(_splat_verdict(arch, seen, comparison, past))
    counts = (
        f"in {patched} of {exposed[Side.PATCHED]} runs with the series, "
        f"{base} of {exposed[Side.BASE]} without"
    )
    if comparison is Comparison.REGRESSED:
        docket.findings.append(
            Finding(
                kind="splat",
                title=seen.splat.title,
                detail=f"{counts}; in {wording.fresh_runs(weighed)}"
                f"{earlier.told(past, splat=True)}",
                arch=arch.name,
            )
        )
    elif comparison in (Comparison.SUSPECT, Comparison.UNKNOWN):
        torn = f" (torn: {seen.splat.corrupted})" if not whole else ""
        docket.doubts.append(
            f"{arch.name}: splat “{seen.splat.title}”{torn} {counts}"
            f"{earlier.told(past, splat=True)}"
        )


def _splat_verdict(
    arch: _Arch, seen: SplatSeen, comparison: Comparison, past: Past | None
) -> SplatVerdict:
    return SplatVerdict(
        fingerprint=seen.splat.fingerprint,
        kind=seen.splat.kind,
        title=seen.splat.title,
        base=len(seen.seen[Side.BASE]),
        base_trials=len(seen.exposed[Side.BASE]),
        patched=len(seen.seen[Side.PATCHED]),
        patched_trials=len(seen.exposed[Side.PATCHED]),
        comparison=comparison,
        arch=arch.name,
        past=past,
    )
