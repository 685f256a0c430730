"""A `RunRecord` goes in, what every renderer shows of it comes out: rows, counts and numbers.

Nothing is judged in here, and nothing is formatted for one renderer only.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb

from lab.model import (
    BuildFailure,
    CaseResult,
    CaseState,
    CaseVerdict,
    Comparison,
    Diagnostic,
    ExitCode,
    FrameKind,
    Kernel,
    Outcome,
    PrefixResult,
    RunRecord,
    Side,
    Splat,
    SplatVerdict,
    Tally,
    Trial,
)
from lab.prose import span
from lab.splat import places
from lab.verdict import probability, resolution

EXIT = {
    Outcome.CLEAN: ExitCode.CLEAN,
    Outcome.REGRESSED: ExitCode.REGRESSED,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Outcome.LAB_FAULT: ExitCode.LAB_FAULT,
}
FAILING = frozenset({CaseState.FAILED, CaseState.CRASHED, CaseState.HUNG, CaseState.TIMEOUT})
_OUTSIDE = "outside of any case"
# Two sets of numbers are called apart if one lies wholly above the other, and chance would bring
# that about this rarely in any of the numbers of a run.
APART_BY_CHANCE = 0.05
# The order in which cases are listed: what a reader must act on first.
_URGENCY = tuple(
    Comparison(name)
    for name in ("regressed", "suspect", "unknown", "flaky", "fixed", "same-fail", "same-pass")
)


def sure(record: RunRecord) -> tuple[str, ...]:
    """How sure the verdict is: the chance that it is wrong, and what it cannot have seen.

    What does not depend on chance (a build) has no sentence.
    """
    verdict = record.verdict
    said = []
    level = [
        case.p_value
        for case in verdict.cases
        if case.comparison is Comparison.REGRESSED and case.p_value is not None
    ]
    if verdict.outcome is Outcome.REGRESSED and level:
        p = max(min(level), 1e-9)
        said.append(
            f"Were both sides alike, chance would do this to a case in 1 of {1 / p:,.0f} tries "
            f"({probability(p)}, Fisher's exact test on fresh runs)"
        )
    limit = resolution(verdict.cases)
    if limit:
        rest = "Of what passed, " if verdict.findings else ""
        said.append(f"{rest}{limit}" if rest else f"{limit[:1].upper()}{limit[1:]}")
    return tuple(said)


def reasons(record: RunRecord) -> tuple[str, ...]:
    """Those that `sure` does not tell."""
    limit = resolution(record.verdict.cases)
    return tuple(reason for reason in record.verdict.reasons if reason != limit)


def skipped_alike(case: CaseVerdict) -> bool:
    """It was skipped on both sides, every time."""
    sides = (case.base, case.patched)
    return all(side.skipped and not side.decided and not side.unknown for side in sides)


def by_urgency(cases: Iterable[CaseVerdict]) -> list[CaseVerdict]:
    return sorted(cases, key=lambda case: _URGENCY.index(case.comparison))


def counts(tally: Tally) -> str:
    """ "7 of 7 pass", "2 of 7 fail", "skipped", "nothing known"."""
    if tally.failed:
        text = f"{tally.failed} of {tally.decided} fail"
    elif tally.passed:
        text = f"{tally.passed} of {tally.decided} pass"
    elif tally.skipped:
        text = "skipped"
    else:
        return f"{tally.unknown} unknown"
    return f"{text}, {tally.unknown} unknown" if tally.unknown else text


# --- the matrix --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One side of one architecture."""

    arch: str
    profile: str
    side: Side
    kernel: Kernel | None
    failure: BuildFailure | None
    boots: int
    boots_tried: int
    boot_s: float | None  # median
    restores: int  # machines that began from a snapshot
    restore_s: float | None  # median
    passed: int  # cases that passed every time they could be decided
    failed: int  # cases that failed at least once
    other: int  # cases of which neither is known
    splats: int  # different ones that count
    known: int  # and different ones that are let pass
    accelerators: tuple[str, ...]

    @property
    def build(self) -> str:
        if self.failure is not None:
            return f"fails ({self.failure.phase})"
        if self.kernel is None:
            return "not built"
        if not self.kernel.make_ran:
            return "cached"
        return f"{span(self.kernel.build_s)}, {self.kernel.compiled} .o"

    @property
    def boot(self) -> str:
        if not self.boots_tried:
            return "not tried"
        often = f"{self.boots} of {self.boots_tried}"
        told = often if self.boot_s is None else f"{often}, {self.boot_s:.1f} s"
        if self.restore_s is None:
            return told
        return f"{told}; {self.restores} restored, {self.restore_s:.1f} s"

    @property
    def cases(self) -> str:
        if not self.boots_tried:
            return "not run"
        numbers = ((self.passed, "pass"), (self.failed, "fail"), (self.other, "unknown"))
        return ", ".join(f"{number} {word}" for number, word in numbers if number) or "none"

    @property
    def reports(self) -> str:
        if not self.boots_tried:
            return "-"
        return f"{self.splats}, {self.known} allowed" if self.known else str(self.splats)


def matrix(record: RunRecord) -> tuple[Row, ...]:
    return tuple(_row(record, arch, side) for arch in record.manifest.archs for side in Side)


def _row(record: RunRecord, arch: str, side: Side) -> Row:
    trials = [t for t in record.trials if (t.cell.arch, t.cell.side) == (arch, side)]
    booted = [t.boot_s for t in trials if t.boot_s is not None and not t.restored]
    restored = [t.boot_s for t in trials if t.boot_s is not None and t.restored]
    tallies = [
        case.base if side is Side.BASE else case.patched
        for case in record.verdict.cases
        if case.arch == arch
    ]
    splats = {s.fingerprint or s.title: s for t in trials for s in splats_of(t) if s.allowed}
    splats |= {s.fingerprint or s.title: s for t in trials for s in splats_of(t) if not s.allowed}
    known = sum(1 for splat in splats.values() if splat.allowed)
    return Row(
        arch=arch,
        profile=record.manifest.profile,
        side=side,
        kernel=next((k for k in record.kernels if (k.arch, k.side) == (arch, side)), None),
        failure=next((f for f in record.failures if (f.arch, f.side) == (arch, side)), None),
        boots=len(booted),
        boots_tried=sum(1 for t in trials if not t.restored),
        boot_s=statistics.median(booted) if booted else None,
        restores=len(restored),
        restore_s=statistics.median(restored) if restored else None,
        passed=sum(1 for tally in tallies if tally.passed and not tally.failed),
        failed=sum(1 for tally in tallies if tally.failed),
        other=sum(1 for tally in tallies if not tally.decided),
        splats=len(splats) - known,
        known=known,
        accelerators=tuple(sorted({t.accelerator.name for t in trials})),
    )


def evidence(record: RunRecord, case: str, arch: str) -> tuple[Trial, CaseResult] | None:
    """The first time that the case failed with the series."""
    for trial in record.trials:
        if (trial.cell.arch, trial.cell.side) != (arch, Side.PATCHED):
            continue
        for result in trial.results:
            if result.name == case and result.state in FAILING:
                return trial, result
    return None


def failed_boot(record: RunRecord, arch: str) -> Trial | None:
    """The first machine that did not boot with the series."""
    for trial in record.trials:
        if (trial.cell.arch, trial.cell.side) == (arch, Side.PATCHED) and trial.boot_s is None:
            return trial
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRow:
    """One line of the table of --each-patch."""

    result: PrefixResult
    build: str
    boot: str
    word: str


def prefixes(record: RunRecord) -> tuple[PrefixRow, ...]:
    return tuple(
        PrefixRow(
            result=one,
            build="fails"
            if one.broken == "build"
            else f"{span(one.build_s)}, {one.compiled} .o"
            if one.build_s
            else "cached",
            boot="-" if one.boot_s is None else f"{one.boot_s:.1f} s",
            word=f"breaks: {one.broken}" if one.broken else str(one.state),
        )
        for one in record.prefixes
    )


# --- splats and warnings -----------------------------------------------------------------------


def splats_of(trial: Trial) -> tuple[Splat, ...]:
    return (*trial.boot_splats, *(splat for result in trial.results for splat in result.splats))


@dataclass(frozen=True, slots=True, kw_only=True)
class SplatRow:
    """A splat's verdict with one of its texts, and where that stands."""

    verdict: SplatVerdict
    splat: Splat
    trial: Trial
    cases: tuple[str, ...]  # in which it was seen

    @property
    def text(self) -> str:
        """Of the splat, with source lines and what the series did to them."""
        return places.decorated(self.splat)

    @property
    def touched(self) -> tuple[str, ...]:
        """Frames that the series has a hand in, as one line each; inexact ones are left out."""
        shown = (
            f"{frame.function} {frame.file}:{frame.line}{places.mark(frame)}"
            for frame in self.splat.frames
            if frame.patches and frame.kind is not FrameKind.GUESS
        )
        return tuple(dict.fromkeys(shown))

    @property
    def inside(self) -> bool:
        """It came while a case ran, most of the times."""
        return bool(self.cases) and self.cases[0] != _OUTSIDE

    @property
    def lines(self) -> tuple[tuple[str, places.Touch], ...]:
        """The lines of `text`, with what the series did to the code that each names."""
        return places.decorated_lines(self.splat)

    @property
    def blamed(self) -> tuple[tuple[int, str], ...]:
        """Patches of the series (from 1) that touched what the splat names, closest first.

        Each with what it did. A word on a stale stack is no witness.
        """
        exact = [frame for frame in self.splat.frames if frame.kind is not FrameKind.GUESS]
        added = {f.line_patch: f"added {f.file}:{f.line}" for f in exact if f.line_patch}
        changed = {n: f"changed {f.function}()" for f in reversed(exact) for n in f.patches}
        return tuple({**added, **{n: did for n, did in changed.items() if n not in added}}.items())

    @property
    def novelty(self) -> str:
        if not self.verdict.base:
            return "new"
        return "on both sides" if self.verdict.patched else "vanished"


def splat_rows(record: RunRecord) -> tuple[SplatRow, ...]:
    """New ones first."""
    seen: dict[tuple[str, str], list[tuple[Trial, Splat]]] = defaultdict(list)
    cases: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for trial in record.trials:
        places = [("", trial.boot_splats), *((r.name, r.splats) for r in trial.results)]
        for case, splats in places:
            for splat in splats:
                key = (trial.cell.arch, splat.fingerprint or splat.title)
                seen[key].append((trial, splat))
                cases[key][case or _OUTSIDE] += 1
    rows = []
    for verdict in record.verdict.splats:
        key = (verdict.arch, verdict.fingerprint or verdict.title)
        if key not in seen:
            continue
        # The longest text tells most; of equals the patched side's.
        trial, splat = max(
            seen[key], key=lambda item: (len(item[1].text), item[0].cell.side is Side.PATCHED)
        )
        rows.append(
            SplatRow(
                verdict=verdict,
                splat=splat,
                trial=trial,
                cases=tuple(name for name, _ in cases[key].most_common()),
            )
        )
    order = ("new", "vanished", "on both sides")
    return tuple(sorted(rows, key=lambda row: order.index(row.novelty)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedRow:
    """A splat that the allow-list let pass."""

    splat: Splat
    arch: str
    base: int  # trials that showed it
    patched: int
    trial: Trial


def allowed_rows(record: RunRecord) -> tuple[AllowedRow, ...]:
    """Known splats that were seen, in the order in which they were."""
    seen: dict[tuple[str, str, str], dict[str, Trial]] = defaultdict(dict)
    first: dict[tuple[str, str, str], Splat] = {}
    for trial in record.trials:
        for splat in splats_of(trial):
            if splat.allowed:
                key = (trial.cell.arch, splat.fingerprint or splat.title, splat.allowed)
                seen[key].setdefault(trial.id, trial)
                first.setdefault(key, splat)
    return tuple(
        AllowedRow(
            splat=first[key],
            arch=key[0],
            base=sum(1 for trial in trials.values() if trial.cell.side is Side.BASE),
            patched=sum(1 for trial in trials.values() if trial.cell.side is Side.PATCHED),
            trial=next(iter(trials.values())),
        )
        for key, trials in seen.items()
    )


def warnings(record: RunRecord, arch: str) -> tuple[list[Diagnostic], list[Diagnostic]]:
    """Compiler warnings that only the patched kernel has, and those that only the base has."""
    sides: dict[Side, dict[tuple[str, str], Diagnostic]] = {side: {} for side in Side}
    for kernel in record.kernels:
        if kernel.arch == arch:
            sides[kernel.side] |= {(w.file, w.message): w for w in kernel.warnings}
    base, patched = sides[Side.BASE], sides[Side.PATCHED]
    if not all(any(k.arch == arch and k.side is side for k in record.kernels) for side in Side):
        return [], []  # a kernel that is not there has no warnings to compare
    return (
        [warning for key, warning in patched.items() if key not in base],
        [warning for key, warning in base.items() if key not in patched],
    )


# --- numbers -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number that a case measured, on both sides."""

    arch: str
    case: str
    name: str
    base: tuple[float, ...]  # sorted
    patched: tuple[float, ...]

    def apart(self, among: int) -> bool:
        """See `apart`."""
        return apart(self.base, self.patched, among)


def apart(base: Sequence[float], patched: Sequence[float], among: int) -> bool:
    """Sorted values of the sides do not overlap, in so many runs that chance would hardly do it.

    Not even in one of the `among` numbers that are looked at together.
    """
    if not base or not patched:
        return False
    chance = 2 / comb(len(base) + len(patched), len(base))
    disjoint = base[-1] < patched[0] or patched[-1] < base[0]
    return disjoint and chance * among <= APART_BY_CHANCE


def metrics(record: RunRecord) -> tuple[Metric, ...]:
    """Of passed results only: a case that fails early is not fast."""
    values: dict[tuple[str, str, str], dict[Side, list[float]]] = defaultdict(
        lambda: {side: [] for side in Side}
    )
    for trial in record.trials:
        for result in trial.results:
            if result.state is CaseState.PASSED:
                for name, value in result.metrics.items():
                    values[trial.cell.arch, result.name, name][trial.cell.side].append(value)
    return tuple(
        Metric(
            arch=arch,
            case=case,
            name=name,
            base=tuple(sorted(sides[Side.BASE])),
            patched=tuple(sorted(sides[Side.PATCHED])),
        )
        for (arch, case, name), sides in values.items()
        if all(sides.values())
    )


# --- time --------------------------------------------------------------------------------------


def own_share(record: RunRecord) -> float:
    """The lab's own share of the wall time."""
    timing = record.timing
    return timing.other_s / timing.wall_s if timing.wall_s else 0.0
