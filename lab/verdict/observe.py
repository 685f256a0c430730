"""Trials of one architecture go in; per case, boot and splat, what each repeat showed comes out.

A repeat may take several machines: after a crash the rest of its cases runs on a fresh one. What
its machines reported is folded into one answer, so that a repeat is one observation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

from lab.model import CaseState, MachineEnd, Side, Splat, Tally, Trial, case_of
from lab.verdict.chance import Sample

# The name under which "does it boot?" is weighed like a case.
BOOT = "boot"
# What is seen between two cases is seen here, in restored machines too, which say nothing about
# the boot. No case has this name.
OUTSIDE = "outside of any case"

FAILING = frozenset({CaseState.FAILED, CaseState.CRASHED, CaseState.HUNG, CaseState.TIMEOUT})
# When machines of one repeat disagree, the later in this list stands.
_ORDER = (
    CaseState.MISSING,
    CaseState.SKIPPED,
    CaseState.UNCOVERED,
    CaseState.PASSED,
    CaseState.TIMEOUT,
    CaseState.FAILED,
    CaseState.HUNG,
    CaseState.CRASHED,
)
_FAILED = {CaseState.PASSED: False} | dict.fromkeys(FAILING, True)
_RANK = {state: rank for rank, state in enumerate(_ORDER)}


# A case that takes its machine down this often on one side is left out of what others share.
TAKEN_DOWN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one repeat of one side said about one case."""

    state: CaseState
    message: str = ""

    @property
    def failed(self) -> bool | None:
        """None: it says nothing either way."""
        return _FAILED.get(self.state)


_NOTHING = Answer(state=CaseState.MISSING)
Answers = Mapping[int, Answer]  # by repeat


@dataclass(slots=True)
class SplatSeen:
    """Where one splat was seen, and in which repeats it could have been."""

    splat: Splat
    cases: set[str] = field(default_factory=set)  # or BOOT, OUTSIDE
    seen: dict[Side, set[int]] = field(default_factory=lambda: {side: set() for side in Side})
    exposed: dict[Side, set[int]] = field(default_factory=lambda: {side: set() for side in Side})

    def sample(self, attempted: int, screened: int | None) -> Sample:
        sides = {
            side: {repeat: repeat in self.seen[side] for repeat in self.exposed[side]}
            for side in Side
        }
        return Sample(
            base=sides[Side.BASE],
            patched=sides[Side.PATCHED],
            attempted=attempted,
            screened=screened,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """All that the trials of one architecture showed."""

    answers: Mapping[Side, Mapping[str, Answers]]  # planned cases, BOOT and OUTSIDE
    boots: Mapping[Side, tuple[bool, ...]]  # machine by machine: a boot may be tried again
    splats: Mapping[str, SplatSeen]
    notes: tuple[str, ...]  # trials that were left out, and why
    comparable: bool  # False: there are trials, but none that may be compared
    left_out: Mapping[str, int]  # case -> the repeat after which it was

    def of(self, side: Side, case: str) -> Answers:
        return self.answers[side].get(case, {})

    def attempted(self, case: str) -> int:
        """Repeats that either side started."""
        return max((max(self.of(side, case), default=-1) + 1 for side in Side), default=0)

    def screened(self, cases: Iterable[str]) -> int | None:
        """How many repeats the cases had before all of them were left out; None: one never was."""
        last = [self.left_out.get(case) for case in cases]
        known = [repeat for repeat in last if repeat is not None]
        return max(known) + 1 if known and len(known) == len(last) else None

    def reservation(self, case: str) -> str:
        """What passed runs of the case say that was not looked at; "" if nothing."""
        said = {
            answer.message.partition("allowed: ")[0].rstrip("; ")
            for side in Side
            for answer in self.of(side, case).values()
            if answer.state is CaseState.PASSED
        }
        return "; ".join(sorted(said - {""}))

    def sample(self, case: str) -> Sample:
        sides = {
            side: {
                repeat: failed
                for repeat, answer in self.of(side, case).items()
                if (failed := answer.failed) is not None
            }
            for side in Side
        }
        return Sample(
            base=sides[Side.BASE],
            patched=sides[Side.PATCHED],
            attempted=self.attempted(case),
            screened=self.screened((case,)),
        )


def tally(answers: Answers, *, repeats: int) -> Tally:
    """Counts over all repeats; of the `repeats` that were planned, an absent one is missing."""
    states = Counter(answer.state for answer in answers.values())
    absent = sum(repeat not in answers for repeat in range(repeats))
    return Tally(
        passed=states[CaseState.PASSED],
        failed=sum(states[state] for state in FAILING),
        skipped=states[CaseState.SKIPPED],
        unknown=absent + states[CaseState.MISSING] + states[CaseState.UNCOVERED],
    )


def observe(
    trials: Iterable[Trial], *, arch: str, profile: str, planned: Iterable[str]
) -> Observed:
    """Fold the trials of `arch`. Only those of one accelerator and of `profile` are compared."""
    mine = [trial for trial in trials if trial.cell.arch == arch]
    kept, notes = _comparable(mine, arch, profile)
    answers: dict[Side, dict[str, dict[int, Answer]]] = {side: defaultdict(dict) for side in Side}
    wanted = {*planned, BOOT, OUTSIDE}
    parts = tuple(name for name in dict.fromkeys(planned) if case_of(name) != name)
    for trial in kept:
        cell = trial.cell
        said = {result.name: result for result in trial.results}
        here = answers[cell.side]
        _fold(here[OUTSIDE], cell.repeat, _boot_answer(trial))
        if not trial.restored:
            _fold(here[BOOT], cell.repeat, _boot_answer(trial))
        # What was planned and is not in `said` stays missing, and so does a part of it that any
        # other trial told of.
        for name in (*cell.cases, *(part for part in parts if case_of(part) in cell.cases)):
            result = said.get(name)
            answer = Answer(state=result.state, message=result.message) if result else _NOTHING
            _fold(here[name], cell.repeat, answer)
    return Observed(
        answers={
            side: {name: got for name, got in here.items() if name in wanted}
            for side, here in answers.items()
        },
        boots={
            side: tuple(
                not failed
                for trial in kept
                if trial.cell.side is side
                and not trial.restored
                and (failed := _boot_answer(trial).failed) is not None
            )
            for side in Side
        },
        splats=_splats(kept, answers),
        notes=notes,
        comparable=bool(kept) or not mine,
        left_out=left_out(kept, arch),
    )


def left_out(trials: Iterable[Trial], arch: str) -> dict[str, int]:
    """Cases that took down their machine twice on one side, and the repeat of the second time."""
    downs: dict[tuple[Side, str], list[int]] = defaultdict(list)
    for trial in trials:
        case = took_down(trial)
        if case is not None and trial.cell.arch == arch:
            downs[trial.cell.side, case].append(trial.cell.repeat)
    found: dict[str, int] = {}
    for (_, case), repeats in downs.items():
        if len(repeats) >= TAKEN_DOWN:
            second = sorted(repeats)[TAKEN_DOWN - 1]
            found[case] = min(second, found.get(case, second))
    return found


def took_down(trial: Trial) -> str | None:
    """The case that the end of the trial's machine is charged to; None: it ended as it should."""
    if trial.end is MachineEnd.POWERED_OFF or not trial.results:
        return None
    last = trial.results[-1]
    return last.name if last.state in (CaseState.CRASHED, CaseState.HUNG) else None


def _comparable(
    trials: list[Trial], arch: str, profile: str
) -> tuple[list[Trial], tuple[str, ...]]:
    """The trials that may be compared with each other, and what was left out."""
    notes: list[str] = []
    strangers = [trial for trial in trials if trial.cell.profile != profile]
    if strangers:
        notes.append(f"{arch}: {len(strangers)} trials of another profile are not compared")
    trials = [trial for trial in trials if trial.cell.profile == profile]
    counts: dict[str, Counter[Side]] = defaultdict(Counter)
    for trial in trials:
        counts[accelerator_name(trial)][trial.cell.side] += 1
    if len(counts) <= 1:
        return trials, tuple(notes)
    # The accelerator with the most trials on the side where it has the fewer.
    name = max(counts, key=lambda name: min(counts[name][side] for side in Side))
    common = min(counts[name][side] for side in Side) > 0
    sides = "; ".join(
        f"{side}: {', '.join(name for name in sorted(counts) if counts[name][side]) or 'none'}"
        for side in Side
    )
    notes.append(
        f"{arch}: trials of different accelerators are never compared ({sides})"
        + (f": only those of {name} count" if common else ": nothing is left to compare")
    )
    return [t for t in trials if common and accelerator_name(t) == name], tuple(notes)


def comparable_trials(trials: Iterable[Trial], arch: str, profile: str) -> list[Trial]:
    """Of that architecture, those that may be compared with each other."""
    return _comparable([trial for trial in trials if trial.cell.arch == arch], arch, profile)[0]


def accelerator_name(trial: Trial) -> str:
    return f"{trial.accelerator.name} {trial.accelerator.cpu}"


def _fold(answers: dict[int, Answer], repeat: int, answer: Answer) -> None:
    known = answers.get(repeat)
    if known is None or _RANK[answer.state] > _RANK[known.state]:
        answers[repeat] = answer


def _boot_answer(trial: Trial) -> Answer:
    # A machine that dies between its hello and its first case is of no more use than one that
    # never said hello.
    died_idle = trial.end is not MachineEnd.POWERED_OFF and not trial.results
    if trial.boot_s is not None and not died_idle:
        return Answer(state=CaseState.PASSED)
    match trial.end:
        case MachineEnd.PANICKED:
            return Answer(state=CaseState.CRASHED, message="panicked")
        case MachineEnd.HUNG_BOOT | MachineEnd.HUNG_SILENT | MachineEnd.WALL_CLOCK:
            return Answer(state=CaseState.HUNG, message="hung")
        case MachineEnd.POWERED_OFF:
            return Answer(state=CaseState.FAILED, message="powered off by itself")
        case MachineEnd.QEMU_DIED | MachineEnd.LOST:
            return Answer(state=CaseState.MISSING, message=str(trial.end))  # not the kernel's doing
        case _ as unreachable:
            assert_never(unreachable)


# --- splats ------------------------------------------------------------------------------------


def splat_key(splat: Splat) -> str:
    """Equal for equal bugs; a splat that is not whole is known by its kind and title only."""
    return splat.fingerprint or f"{splat.kind}: {splat.title}"


def _splats(
    trials: list[Trial], answers: Mapping[Side, Mapping[str, Answers]]
) -> dict[str, SplatSeen]:
    found: dict[str, SplatSeen] = {}
    for trial in trials:
        outside = OUTSIDE if trial.restored else BOOT
        places = [(outside, trial.boot_splats), *((r.name, r.splats) for r in trial.results)]
        for case, splats in places:
            for splat in (splat for splat in splats if not splat.allowed):
                here = found.setdefault(splat_key(splat), SplatSeen(splat=splat))
                here.cases.add(case)
                here.seen[trial.cell.side].add(trial.cell.repeat)
    _adopt_corrupted(found)
    for here in found.values():
        for side in Side:
            here.exposed[side] = here.seen[side] | {
                repeat
                for case in here.cases
                for repeat, answer in answers[side].get(case, {}).items()
                if _could_show(answer, here.splat)
            }
    return found


def _adopt_corrupted(found: dict[str, SplatSeen]) -> None:
    """A torn report is taken for the whole one of the same kind and title, if there is one."""
    whole = {(s.splat.kind, s.splat.title): s for s in found.values() if s.splat.fingerprint}
    for key, torn in list(found.items()):
        same = whole.get((torn.splat.kind, torn.splat.title))
        if torn.splat.fingerprint or same is None:
            continue
        same.cases |= torn.cases
        for side in Side:
            same.seen[side] |= torn.seen[side]
        del found[key]


def _could_show(answer: Answer, splat: Splat) -> bool:
    """Whether that repeat would have shown the splat, had the kernel made it."""
    if answer.state is CaseState.UNCOVERED:
        return not splat.kind.startswith("lockdep")  # lockdep was off: its silence says nothing
    return answer.failed is not None
