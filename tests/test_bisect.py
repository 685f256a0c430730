"""The search for the first bad revision: how often it is right, and that a log replays."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from lab import bisect
from lab.bisect import (
    Ending,
    Header,
    Pick,
    Rates,
    Result,
    Revision,
    Rules,
    State,
    Step,
    StepKind,
    settled,
    wording,
)
from lab.bisect.search import view
from lab.model import LabFault


def line_of(count: int) -> tuple[Revision, ...]:
    """A good end and `count` steps."""
    return tuple(
        Revision(id=f"r{place}", label=f"patch {place}/{count}", title=f"mm: step {place}")
        for place in range(count + 1)
    )


@dataclass
class Dice:
    """A bench that throws dice: fails at `bad` from the culprit on, at `good` before it."""

    culprit: int
    bad: float = 1.0
    good: float = 0.0
    seed: int = 1
    kernels: dict[int, str] = field(default_factory=dict)
    broken: Sequence[int] = ()
    silent: Sequence[int] = ()
    lose: bool = False
    built: list[int] = field(default_factory=list)
    ran: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def build(self, revision: int) -> Step:
        self.built.append(revision)
        if revision in self.broken:
            return Step(
                kind=StepKind.UNTESTABLE, revision=revision, seconds=20, note="does not build"
            )
        kernel = self.kernels.get(revision, f"kernel {revision}")
        return Step(kind=StepKind.BUILT, revision=revision, seconds=40, kernel=kernel)

    def run(self, revision: int) -> Step:
        self.ran.append(revision)
        if self.lose:
            return Step(kind=StepKind.LOST, revision=revision, seconds=5, note="qemu-died")
        if revision in self.silent:
            return Step(kind=StepKind.NOTHING, revision=revision, seconds=9, note="does not boot")
        fails = self.dice.random() < (self.bad if revision >= self.culprit else self.good)
        kind = StepKind.BAD if fails else StepKind.GOOD
        return Step(kind=kind, revision=revision, seconds=10)


def search(count: int, bench: Dice, rules: Rules | None = None) -> Result:
    return bisect.search(bisect.begin(line_of(count)), bench, rules or Rules(), lambda step: None)


# --- is it right -------------------------------------------------------------------------------


@pytest.mark.parametrize("culprit", [1, 2, 7, 12])
def test_what_always_fails_is_found_with_few_builds(culprit: int) -> None:
    bench = Dice(culprit=culprit)
    result = search(12, bench)
    assert (result.ending, result.first, result.last) == (Ending.FOUND, culprit, culprit)
    assert result.probability >= 0.97
    assert len(set(bench.built)) == len(bench.built) <= 7
    assert result.runs <= 20
    assert bench.ran[:4].count(0) >= 2 and bench.ran[:4].count(12) >= 2  # both ends first


@pytest.mark.parametrize(
    ("bad", "good", "count", "rounds"),
    [
        (1.0, 0.0, 64, 40),
        (1.0, 0.02, 64, 40),
        (0.3, 0.0, 64, 40),
        (0.3, 0.02, 64, 40),
        (0.1, 0.0, 64, 40),
        (0.1, 0.02, 12, 25),
    ],
)
def test_rare_failures_are_traced_in_19_of_20_searches(
    bad: float, good: float, count: int, rounds: int
) -> None:
    places = random.Random(5)
    right = 0
    for number in range(rounds):
        culprit = places.randint(1, count)
        result = search(count, Dice(culprit=culprit, bad=bad, good=good, seed=number))
        right += result.ending is Ending.FOUND and result.first == culprit
    assert right >= 0.95 * rounds


def test_ends_that_fail_alike_are_told() -> None:
    result = search(8, Dice(culprit=9, bad=0.5, good=0.5, seed=3))
    assert result.ending is Ending.NO_DIFFERENCE
    assert result.bad_end[0] and result.good_end[0]


def test_what_never_fails_is_not_reproduced() -> None:
    bench = Dice(culprit=9)
    result = search(8, bench)
    assert result.ending is Ending.NO_DIFFERENCE
    assert set(bench.built) == {0, 8}  # nothing between the ends
    assert "0 of 60 leaves anything under 5%" in _sentence(result)


def _sentence(result: Result) -> str:
    return wording.sentence(result, line_of(8))


# --- what cannot be tested, and what changes nothing -------------------------------------------


def test_a_skip_is_neither_good_nor_bad() -> None:
    result = search(8, Dice(culprit=4, broken=(3,)))
    assert result.ending is Ending.RANGE
    assert (result.first, result.last) == (3, 4)  # 3 does not build: it may be 3 or 4
    assert result.probability >= 0.97
    assert "between patch 3/8 'mm: step 3' and patch 4/8 'mm: step 4'" in _sentence(result)


def test_a_skip_elsewhere_does_not_blur_the_answer() -> None:
    result = search(8, Dice(culprit=7, broken=(3, 4)))
    assert (result.ending, result.first) == (Ending.FOUND, 7)


def test_what_never_boots_is_skipped_after_three_tries() -> None:
    bench = Dice(culprit=6, silent=(4,))
    result = search(8, bench)
    assert (result.ending, result.first) == (Ending.FOUND, 6)
    assert bench.ran.count(4) == 3


def test_an_end_that_cannot_be_tested_ends_it() -> None:
    result = search(8, Dice(culprit=4, broken=(8,)))
    assert result.ending is Ending.END_UNTESTABLE
    assert "the bad end cannot be tested: does not build" in _sentence(result)


def test_a_step_without_effect_shares_results_and_is_no_suspect() -> None:
    # 4 changes only comments: its kernel is that of 3.
    state = bisect.begin(line_of(8))
    built = {0: "a", 8: "b", 3: "same", 4: "same"}
    for revision, kernel in built.items():
        step = Step(kind=StepKind.BUILT, revision=revision, kernel=kernel, seconds=40)
        state = bisect.after(state, step)
    for revision, kind in ((8, StepKind.BAD), (0, StepKind.GOOD), (4, StepKind.GOOD)):
        state = bisect.after(state, Step(kind=kind, revision=revision, seconds=10))
    seen = view(state)
    assert seen.groups[4] == 3 and seen.good[3] == 1
    (row,) = [row for row in wording.rows(state) if row.revision == 4]
    assert row.suspicion == 0
    assert row.note == "the same kernel as patch 3/8"
    bench = Dice(culprit=5, kernels={3: "same", 4: "same"})
    result = bisect.search(state, bench, Rules(), lambda step: None)
    assert (result.ending, result.first) == (Ending.FOUND, 5)
    assert not {0, 3, 4, 8} & set(bench.built)


def test_a_step_known_to_be_none_is_never_built() -> None:
    revisions = tuple(
        Revision(id=str(n), label=f"patch {n}/8", title="", content="x" if n in (3, 4, 5) else "")
        for n in range(9)
    )
    bench = Dice(culprit=6)
    result = bisect.search(bisect.begin(revisions), bench, Rules(), lambda step: None)
    assert result.first == 6
    assert len({3, 4, 5} & set(bench.built)) <= 1


def test_equal_ends_need_no_run() -> None:
    bench = Dice(culprit=2, kernels={0: "same", 4: "same"})
    result = search(4, bench)
    assert result.ending is Ending.SAME_KERNEL
    assert bench.ran == []


# --- when it stops -----------------------------------------------------------------------------


def test_a_budget_is_kept_and_leaves_a_range() -> None:
    result = search(64, Dice(culprit=40, bad=0.3, seed=2), Rules(budget_s=500))
    assert result.ending is Ending.RANGE
    assert result.seconds <= 500
    assert result.first <= 40 <= result.last
    assert "the budget is spent" in result.reason


def test_lost_machines_are_no_evidence_and_end_in_a_fault() -> None:
    bench = Dice(culprit=4, lose=True)
    with pytest.raises(LabFault, match="qemu-died"):
        search(8, bench)
    assert len(bench.ran) == 3


# --- the log -----------------------------------------------------------------------------------


HEADER = Header(
    version=bisect.VERSION,
    created="2026-01-01T00:00:00+00:00",
    lab_version="0",
    command=("lab", "bisect"),
    question="q",
    what="series",
    symptom="boot/hello fails",
    revisions=line_of(16),
)


def test_a_log_replays_to_the_same_state_and_goes_on_alike() -> None:
    rules = Rules()
    whole: list[Step] = []
    result = bisect.search(
        bisect.begin(HEADER.revisions), Dice(culprit=11, bad=0.4, seed=9), rules, whole.append
    )
    for cut in (0, 1, 5, len(whole) // 2, len(whole)):
        raw = bisect.header(HEADER) + b"".join(map(bisect.line, whole[:cut]))
        torn = raw + bisect.line(whole[0])[:-9]  # killed while it wrote
        header, state, length = bisect.replay(torn)
        assert (header, length) == (HEADER, len(raw))
        assert state == _folded(whole[:cut])
        todo = bisect.decide(state, rules)
        if cut == len(whole):
            assert todo == result
        else:
            assert isinstance(todo, Pick) and todo.revision == whole[cut].revision


def _folded(steps: Sequence[Step]) -> State:
    state = bisect.begin(HEADER.revisions)
    for step in steps:
        state = bisect.after(state, step)
    return state


@pytest.mark.parametrize("raw", [b"", b"{}\n", b"no json\n", bisect.header(HEADER) + b"{}\n"])
def test_a_damaged_log_is_a_fault_with_a_way_out(raw: bytes) -> None:
    with pytest.raises(LabFault) as caught:
        bisect.replay(raw)
    assert caught.value.hint


# --- one step of git bisect --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "passes"),
    [(Rates(bad=1.0), 1), (Rates(bad=0.9), 2), (Rates(bad=0.3), 13), (Rates(bad=0.1), 44)],
)
def test_repeats_follow_from_the_rate(rates: Rates, passes: int) -> None:
    assert rates.passes == passes
    assert settled(0, passes, rates) is StepKind.GOOD
    assert settled(0, passes - 1, rates) is None or passes == 1
    assert settled(1, 0, rates) is StepKind.BAD


def test_a_false_alarm_does_not_settle_it() -> None:
    rates = Rates(bad=0.3, good=0.02)
    assert settled(1, 0, rates) is None
    assert settled(2, 0, rates) is StepKind.BAD
