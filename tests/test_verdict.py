"""The judge: chances against known numbers, every rule by a story, the truth by dice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.verdict_truth import THOROUGH, Truth, score
from lab.model import (
    Accelerator,
    BuildFailure,
    CaseResult,
    CaseState,
    CaseVerdict,
    Cell,
    Comparison,
    MachineEnd,
    Outcome,
    RunRecord,
    Side,
    Splat,
    Trial,
    Verdict,
)
from lab.verdict import JudgeInput, MoreRuns, judge, needs_more, smallest_rate, suspects
from lab.verdict.chance import (
    LEVEL,
    Lean,
    Sample,
    Standing,
    discoveries,
    fewest_runs,
    fisher,
    looks,
    weigh,
)
from lab.verdict.observe import observe, tally
from tests import records
from tests.records import KVM, TCG, cell, failed, failing, kernel, passed, trial, well

ONE = ("suite/one",)


def judged(
    trials: list[Trial],
    *,
    cases: tuple[str, ...] = ONE,
    archs: tuple[str, ...] = ("x86_64",),
    failures: tuple[BuildFailure, ...] = (),
    max_repeats: int = 8,
    faults: tuple[str, ...] = (),
) -> JudgeInput:
    dead = {(failure.arch, failure.side) for failure in failures}
    return JudgeInput(
        title="series",
        archs=archs,
        cases=cases,
        profile="lockdep",
        trials=tuple(trials),
        kernels=tuple(kernel(s, a) for a in archs for s in Side if (a, s) not in dead),
        failures=failures,
        repeats=2,
        max_repeats=max_repeats,
        faults=faults,
    )


def states(side: Side, *by_repeat: CaseState | None, case: str = ONE[0]) -> list[Trial]:
    """One trial a repeat with one case that ends like this; None: not reported."""
    return [
        trial(
            cell(side, repeat, cases=(case,)),
            results=() if state is None else (CaseResult(name=case, state=state),),
        )
        for repeat, state in enumerate(by_repeat)
    ]


def the_case(verdict: Verdict, name: str = ONE[0]) -> CaseVerdict:
    (found,) = [case for case in verdict.cases if case.name == name]
    return found


PASS, FAIL, SKIP = CaseState.PASSED, CaseState.FAILED, CaseState.SKIPPED
B, P = Side.BASE, Side.PATCHED


# --- chances -----------------------------------------------------------------------------------


def test_fisher_of_the_lady_tasting_tea() -> None:
    assert fisher(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert fisher(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert fisher(0, 4, 4, 4) == 1


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_fisher_is_a_probability_and_falls_with_evidence(
    m: int, n: int, data: st.DataObject
) -> None:
    a, b = data.draw(st.integers(0, m)), data.draw(st.integers(0, n))
    assert 0 < fisher(a, m, b, n) <= 1 + 1e-12
    if a < m:
        assert fisher(a + 1, m, b, n) <= fisher(a, m, b, n) + 1e-12


@pytest.mark.parametrize(
    ("runs", "failures", "rate"),
    [(20, 0, 0.1391), (2, 0, 0.7764), (10, 1, 0.3942), (10, 10, 1.0), (0, 0, 1.0)],
)
def test_smallest_rate_is_clopper_pearson(runs: int, failures: int, rate: float) -> None:
    assert smallest_rate(runs, failures) == pytest.approx(rate, abs=1e-4)


def test_discoveries_steps_up() -> None:
    # 0.9 <= 2/2 carries both, though 0.6 alone is above 1/2.
    assert discoveries([0.6, 0.9], 2) == [True, True]
    assert discoveries([1.1, 0.5], 2) == [False, True]
    assert discoveries([0.6, 1.1], 2) == [False, False]
    assert discoveries([0.3, 1.1], 4) == [False, False]
    assert discoveries([], 0) == []


@settings(deadline=None)
@given(st.integers(1, 200), st.sampled_from([0.05, 0.01, 0.001]))
def test_looks_share_the_level_and_stay_in_the_budget(budget: int, level: float) -> None:
    plan = looks(budget, level)
    assert bool(plan) == (budget >= fewest_runs(level))
    assert sum(look.level for look in plan) <= level + 1e-12
    assert [look.runs for look in plan] == sorted({look.runs for look in plan})
    if plan:
        assert plan[-1].runs == budget
        # No look is idle: the plainest difference would be significant at every one.
        assert all(fisher(n.runs, n.runs, 0, n.runs) <= n.level for n in plan)


def test_the_runs_that_raise_a_suspicion_do_not_confirm_it() -> None:
    """Two failures of two, then none: they must not weigh in, however they look in the sum."""
    base = dict.fromkeys(range(8), False)
    patched = {repeat: repeat < 2 for repeat in range(8)}
    (got,) = weigh([Sample(base=base, patched=patched, attempted=8)], repeats=2, max_repeats=8)
    assert got.lean is Lean.WORSE
    assert (got.patched, got.patched_runs) == (0, 6)
    assert got.p == 1
    assert got.standing is Standing.UNDECIDED


def test_a_suspicion_that_comes_late_is_tested_on_what_comes_after() -> None:
    base = dict.fromkeys(range(12), False)
    patched = {repeat: repeat >= 3 for repeat in range(12)}
    (got,) = weigh([Sample(base=base, patched=patched, attempted=12)], repeats=2, max_repeats=12)
    assert got.standing is Standing.SIGNIFICANT
    assert got.patched_runs <= 8  # repeats 0..3 raised it


# --- one case ----------------------------------------------------------------------------------


def test_a_plain_regression_needs_fresh_runs() -> None:
    two = states(B, PASS, PASS) + states(P, FAIL, FAIL)
    first = judge(judged(two))
    assert first.outcome is Outcome.INCONCLUSIVE
    assert the_case(first).comparison is Comparison.SUSPECT
    assert suspects(judged(two)) == ((ONE[0], "x86_64"),)
    (more,) = needs_more(judged(two))
    assert more == MoreRuns(arch="x86_64", cases=ONE, first=2, last=6)
    assert list(more.repeats) == [2, 3, 4, 5, 6]

    seven = states(B, *[PASS] * 7) + states(P, *[FAIL] * 7)
    verdict = judge(judged(seven))
    case = the_case(verdict)
    assert verdict.outcome is Outcome.REGRESSED
    assert case.comparison is Comparison.REGRESSED
    assert (case.base.passed, case.patched.failed) == (7, 7)
    assert case.p_value == pytest.approx(1 / 252)
    assert needs_more(judged(seven)) == ()
    assert "5 of 5 fresh runs with the series, 0 of 5 without, p = 0.004" in verdict.sentence


def test_one_failure_that_never_comes_back_is_not_green_within_a_small_budget() -> None:
    trials = states(B, *[PASS] * 8) + states(P, FAIL, *[PASS] * 7)
    verdict = judge(judged(trials))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert the_case(verdict).comparison is Comparison.SUSPECT
    assert needs_more(judged(trials)) == ()


def test_one_failure_that_many_fresh_runs_rule_out_is_flaky() -> None:
    trials = states(B, *[PASS] * 20) + states(P, FAIL, *[PASS] * 19)
    verdict = judge(judged(trials, max_repeats=20))
    assert verdict.outcome is Outcome.CLEAN
    assert the_case(verdict).comparison is Comparison.FLAKY
    assert any("rule out" in reason for reason in verdict.reasons)


def test_fresh_failures_of_the_base_alone_dismiss_nothing() -> None:
    """Cut off between the sides of a repeat: the base failed afresh, the series did not run."""
    trials = states(B, PASS, PASS, FAIL) + states(P, FAIL, FAIL)
    assert judge(judged(trials)).outcome is Outcome.INCONCLUSIVE
    assert judge(judged(trials, max_repeats=3)).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("base", "patched", "comparison", "outcome"),
    [
        ((PASS, PASS), (PASS, PASS), Comparison.SAME_PASS, Outcome.CLEAN),
        ((FAIL, FAIL), (FAIL, FAIL), Comparison.SAME_FAIL, Outcome.INCONCLUSIVE),
        ((PASS, FAIL), (FAIL, PASS), Comparison.FLAKY, Outcome.CLEAN),
        ((FAIL,) * 7, (PASS,) * 7, Comparison.FIXED, Outcome.INCONCLUSIVE),
        ((PASS, PASS), (SKIP, SKIP), Comparison.UNKNOWN, Outcome.INCONCLUSIVE),
        ((SKIP, SKIP), (SKIP, SKIP), Comparison.UNKNOWN, Outcome.INCONCLUSIVE),
        ((PASS, PASS), (None, None), Comparison.UNKNOWN, Outcome.INCONCLUSIVE),
        ((None, None), (PASS, PASS), Comparison.UNKNOWN, Outcome.INCONCLUSIVE),
        ((PASS, PASS), (PASS,), Comparison.UNKNOWN, Outcome.INCONCLUSIVE),
        ((PASS, PASS), (), Comparison.UNKNOWN, Outcome.INCONCLUSIVE),
        ((), (), Comparison.UNKNOWN, Outcome.INCONCLUSIVE),
        (
            (CaseState.UNCOVERED,) * 2,
            (CaseState.UNCOVERED,) * 2,
            Comparison.UNKNOWN,
            Outcome.INCONCLUSIVE,
        ),
        ((PASS, PASS), (CaseState.UNCOVERED,) * 2, Comparison.UNKNOWN, Outcome.INCONCLUSIVE),
        ((PASS,) * 7, (CaseState.HUNG,) * 7, Comparison.REGRESSED, Outcome.REGRESSED),
        ((PASS,) * 7, (CaseState.CRASHED,) * 7, Comparison.REGRESSED, Outcome.REGRESSED),
        ((PASS,) * 7, (CaseState.TIMEOUT,) * 7, Comparison.REGRESSED, Outcome.REGRESSED),
    ],
)
def test_how_a_case_compares(
    base: tuple[CaseState | None, ...],
    patched: tuple[CaseState | None, ...],
    comparison: Comparison,
    outcome: Outcome,
) -> None:
    """In a run of this case alone: one that never passes on the base could not show anything."""
    verdict = judge(judged(states(B, *base) + states(P, *patched)))
    assert the_case(verdict).comparison is comparison
    assert verdict.outcome is outcome


def beside_a_pass(*mine: CaseState) -> list[Trial]:
    """The same states on both sides, next to a case that passes."""
    return [
        trial(
            cell(side, repeat, cases=("suite/fine", *ONE)),
            results=(
                CaseResult(name="suite/fine", state=PASS),
                CaseResult(name=ONE[0], state=state, message="needs a disk"),
            ),
        )
        for side in Side
        for repeat, state in enumerate(mine)
    ]


def test_what_fails_or_is_skipped_alike_beside_passes_is_clean_and_listed() -> None:
    for state, words in (
        (SKIP, "skipped on both sides: needs a disk"),
        (FAIL, "fails on the base"),
    ):
        verdict = judge(judged(beside_a_pass(state, state), cases=("suite/fine", *ONE)))
        assert verdict.outcome is Outcome.CLEAN
        assert any(words in reason for reason in verdict.reasons)


def test_skips_for_different_reasons_are_not_alike() -> None:
    trials = [
        trial(
            cell(side, repeat, cases=("suite/fine", *ONE)),
            results=(
                CaseResult(name="suite/fine", state=PASS),
                CaseResult(name=ONE[0], state=SKIP, message=f"not on {side}"),
            ),
        )
        for side in Side
        for repeat in range(2)
    ]
    assert judge(judged(trials, cases=("suite/fine", *ONE))).outcome is Outcome.INCONCLUSIVE


def test_planned_minus_reported_is_missing() -> None:
    seen = observe(states(P, PASS, None), arch="x86_64", profile="lockdep", planned=ONE)
    counts = tally(seen.of(P, ONE[0]), repeats=3)
    assert (counts.passed, counts.unknown) == (1, 2)


def test_a_lost_result_is_run_again_and_may_be_made_up_for() -> None:
    trials = states(B, PASS, PASS) + states(P, PASS, None)
    assert needs_more(judged(trials)) == (MoreRuns(arch="x86_64", cases=ONE, first=2, last=2),)
    again = states(B, PASS, PASS, PASS) + states(P, PASS, None, PASS)
    verdict = judge(judged(again))
    assert verdict.outcome is Outcome.CLEAN
    assert the_case(verdict).patched.unknown == 1


def test_results_that_are_always_lost_are_given_up_and_never_green() -> None:
    trials = states(B, PASS, PASS, PASS) + states(P, None, None, None)
    assert needs_more(judged(trials)) == ()
    assert judge(judged(trials)).outcome is Outcome.INCONCLUSIVE


def test_half_of_the_results_lost_is_too_little_however_many_passed() -> None:
    trials = states(B, *[PASS] * 4) + states(P, PASS, None, PASS, None)
    assert judge(judged(trials)).outcome is Outcome.INCONCLUSIVE


def test_machines_of_one_repeat_are_one_answer() -> None:
    """The machine crashed in the first case; the second ran on a fresh one."""
    both = ("suite/crash", "suite/next")
    crash = trial(
        cell(P, 0, cases=both),
        results=(CaseResult(name=both[0], state=CaseState.CRASHED),),
        end=MachineEnd.PANICKED,
    )
    fresh = trial(cell(P, 0, cases=both[1:]), results=(CaseResult(name=both[1], state=PASS),))
    seen = observe([crash, fresh], arch="x86_64", profile="lockdep", planned=both)
    assert tally(seen.of(P, both[0]), repeats=1).failed == 1
    assert tally(seen.of(P, both[1]), repeats=1).passed == 1


# --- the run -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("story", "outcome", "said"),
    [
        ("clean", Outcome.CLEAN, "builds and boots on x86_64, 9 cases pass 2 of 2 on both sides"),
        ("corrupting", Outcome.REGRESSED, "faultstress/ext4/truncate fails in 5 of 5 fresh runs"),
        ("use-after-free", Outcome.REGRESSED, "new splat: KASAN: slab-use-after-free"),
        ("unbuildable", Outcome.REGRESSED, f"does not build from patch {records.PATCHES[1]} on"),
        ("panicking", Outcome.REGRESSED, "the patched kernel does not boot: it panicked (3 of 3"),
        ("base-dead", Outcome.INCONCLUSIVE, "the base does not boot (3 of 3: hung)"),
        ("flaky", Outcome.CLEAN, "1 failing on both, 1 flaky, 1 skipped on both"),
        ("suspicious", Outcome.INCONCLUSIVE, "1 of 8 fail with the series, 0 of 8 without"),
        ("uncovered", Outcome.INCONCLUSIVE, "too little is known"),
    ],
)
def test_stories(story: str, outcome: Outcome, said: str) -> None:
    verdict = records.STORIES[story]().verdict
    assert verdict.outcome is outcome
    assert said in verdict.sentence


def test_only_what_was_shown_is_clean() -> None:
    """Take any one result away from a clean run: it is not clean any more."""
    whole = records.clean()
    for number, one in enumerate(whole.trials):
        for result in one.results:
            less = replace(one, results=tuple(r for r in one.results if r is not result))
            trials = (*whole.trials[:number], less, *whole.trials[number + 1 :])
            given_ = judged(list(trials), cases=records.CASES)
            assert judge(given_).outcome is Outcome.INCONCLUSIVE


def test_a_run_without_cases_proves_nothing() -> None:
    trials = [trial(cell(side, repeat, cases=())) for side in Side for repeat in range(2)]
    for nothing in (judged(trials, cases=()), judged([], archs=())):
        assert judge(nothing).outcome is Outcome.INCONCLUSIVE
        assert needs_more(nothing) == ()


def failure(side: Side) -> BuildFailure:
    return BuildFailure(
        key="k",
        arch="x86_64",
        side=side,
        phase="compile",
        first_error=records.IMPLICIT,
        log=Path("make.log"),
    )


def test_a_base_that_does_not_build_is_not_the_series_fault() -> None:
    for failures in ((failure(B),), (failure(B), failure(P))):
        verdict = judge(judged([], failures=failures))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "the base does not build (mm/memory.c:4127" in verdict.sentence


def test_a_kernel_that_is_not_there_without_a_reason_is_never_green() -> None:
    given_ = replace(judged(states(B, PASS, PASS)), kernels=(kernel(B),))
    assert judge(given_).outcome is Outcome.INCONCLUSIVE


def boots(side: Side, *up: bool, end: MachineEnd = MachineEnd.PANICKED) -> list[Trial]:
    return [
        trial(cell(side, repeat, cases=ONE), boots=ok, end=MachineEnd.POWERED_OFF if ok else end)
        for repeat, ok in enumerate(up)
    ]


def test_boots_are_tried_three_times_before_blame() -> None:
    two = boots(B, True, True) + boots(P, False, False)
    assert judge(judged(two)).outcome is Outcome.INCONCLUSIVE
    assert needs_more(judged(two)) == (MoreRuns(arch="x86_64", cases=ONE, first=2, last=2),)
    three = boots(B, True, True, True) + boots(P, False, False, False)
    assert judge(judged(three)).outcome is Outcome.REGRESSED
    assert needs_more(judged(three)) == ()


def test_three_tries_within_one_repeat_count() -> None:
    dead = boots(P, False) * 3
    assert judge(judged(boots(B, True, True) + dead)).outcome is Outcome.REGRESSED


def test_a_boot_that_fails_now_and_then_is_not_green() -> None:
    trials = boots(B, *[True] * 3) + boots(P, True, False, True)
    verdict = judge(judged(trials))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "1 of 3 boots fail with the series, 0 of 3 without" in " ".join(verdict.reasons)


def test_a_restored_machine_says_nothing_about_the_boot() -> None:
    trials = [
        trial(cell(side, repeat, cases=ONE), restored=repeat > 0)
        for repeat in range(4)
        for side in Side
    ]
    seen = observe(trials, arch="x86_64", profile="lockdep", planned=ONE)
    assert seen.boots == {B: (True,), P: (True,)}
    assert seen.attempted("boot") == 1 and seen.attempted(ONE[0]) == 4
    assert judge(judged(trials)).outcome is Outcome.CLEAN


def test_a_splat_between_cases_is_weighed_over_restored_machines_too() -> None:
    trials = [
        trial(
            cell(side, repeat, cases=ONE),
            restored=repeat > 0,
            boot_splats=(records.WARNING,) if side is P and repeat > 0 else (),
        )
        for repeat in range(9)
        for side in Side
    ]
    verdict = judge(judged(trials))
    assert verdict.outcome is Outcome.REGRESSED
    assert [finding.kind for finding in verdict.findings] == ["splat"]
    (splat,) = verdict.splats
    assert (splat.base_trials, splat.patched, splat.patched_trials) == (9, 8, 9)


@pytest.mark.parametrize("end", [MachineEnd.QEMU_DIED, MachineEnd.LOST])
def test_a_machine_that_the_host_lost_blames_nobody(end: MachineEnd) -> None:
    trials = boots(B, True, True, True) + boots(P, False, False, False, end=end)
    verdict = judge(judged(trials))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert not verdict.findings


def test_regressed_outranks_doubt_and_fault() -> None:
    trials = states(B, *[PASS] * 7) + states(P, *[FAIL] * 7)
    given_ = judged(trials, archs=("x86_64", "arm64"), faults=("the image of arm64 is gone",))
    assert judge(given_).outcome is Outcome.REGRESSED


def test_a_lab_that_could_not_work_says_so() -> None:
    trials = states(B, PASS, PASS) + states(P, PASS, PASS)
    verdict = judge(judged(trials, faults=("no space left",)))
    assert verdict.outcome is Outcome.LAB_FAULT
    assert "no space left" in verdict.sentence


def test_different_accelerators_are_never_compared() -> None:
    def on(side: Side, accelerator: Accelerator, *by_repeat: CaseState) -> list[Trial]:
        return [replace(t, accelerator=accelerator) for t in states(side, *by_repeat)]

    apart = on(B, KVM, *[PASS] * 7) + on(P, TCG, *[FAIL] * 7)
    verdict = judge(judged(apart))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert the_case(verdict).comparison is Comparison.UNKNOWN
    assert any("different accelerators" in reason for reason in verdict.reasons)
    assert needs_more(judged(apart)) == ()

    common = on(B, KVM, PASS) + on(B, TCG, PASS, PASS) + on(P, TCG, PASS, PASS)
    verdict = judge(judged(common))
    assert verdict.outcome is Outcome.CLEAN
    assert any("only those of tcg" in reason for reason in verdict.reasons)


def test_another_profile_does_not_count() -> None:
    trials = [replace(t, cell=replace(t.cell, profile="plain")) for t in states(P, PASS, PASS)]
    assert judge(judged(states(B, PASS, PASS) + trials)).outcome is Outcome.INCONCLUSIVE


def test_new_compiler_warnings_count_in_the_files_of_the_series_only() -> None:
    trials = states(B, PASS, PASS) + states(P, PASS, PASS)
    moved = replace(records.UNUSED, line=4000)
    for base, patched, changed, outcome in (
        ((), (records.UNUSED,), ("mm/filemap.c",), Outcome.REGRESSED),
        ((), (records.UNUSED,), ("mm/other.c",), Outcome.CLEAN),
        ((records.UNUSED,), (moved,), ("mm/filemap.c",), Outcome.CLEAN),
        ((records.UNUSED,), (moved, records.UNUSED), ("mm/filemap.c",), Outcome.REGRESSED),
    ):
        given_ = replace(
            judged(trials),
            kernels=(kernel(B, warnings=base), kernel(P, warnings=patched)),
            changed_files=changed,
        )
        assert judge(given_).outcome is outcome


def test_two_architectures_share_one_level() -> None:
    record = records.run(
        well,
        failing("boot/hello", failed("boot/hello", "no"), lambda of: of.arch == "arm64"),
        archs=("x86_64", "arm64"),
    )
    found = {(c.arch, c.comparison) for c in record.verdict.cases if c.name == "boot/hello"}
    assert found == {("x86_64", Comparison.SAME_PASS), ("arm64", Comparison.REGRESSED)}
    assert "on arm64" in record.verdict.sentence


# --- splats ------------------------------------------------------------------------------------


def with_splat(splat: Splat, base: set[int], patched: set[int], repeats: int = 8) -> RunRecord:
    """All cases pass; the splat comes at the end of these repeats."""
    where = {B: base, P: patched}

    def answer(of: Cell) -> Trial:
        seen = of.repeat in where[of.side]
        return trial(of, boot_splats=(splat,) if seen else ())

    return records.run(answer, answer, max_repeats=repeats)


def test_a_splat_that_comes_every_time_is_a_finding() -> None:
    record = with_splat(records.WARNING, set(), set(range(8)))
    assert record.verdict.outcome is Outcome.REGRESSED
    assert [finding.kind for finding in record.verdict.findings] == ["splat"]


@pytest.mark.parametrize("splat", [records.UAF, records.WARNING])
def test_a_splat_seen_once_blames_nobody_and_is_not_green(splat: Splat) -> None:
    record = with_splat(splat, set(), {1})
    assert record.verdict.outcome is Outcome.INCONCLUSIVE
    assert splat.title in record.verdict.sentence


def test_a_rare_splat_of_the_base_is_not_blamed_on_the_series() -> None:
    record = with_splat(records.UAF, {3}, {0})
    assert record.verdict.outcome is Outcome.CLEAN
    assert record.verdict.splats[0].comparison is Comparison.FLAKY


def test_a_splat_that_the_allow_list_lets_pass_is_not_judged() -> None:
    known = replace(records.WARNING, allowed="known (https://example.org)")
    record = with_splat(known, set(), set(range(8)))
    assert record.verdict.outcome is Outcome.CLEAN
    assert record.verdict.splats == ()


def test_a_torn_splat_never_decides_alone() -> None:
    torn = replace(records.UAF, fingerprint="", corrupted="interleaved with another report")
    record = with_splat(torn, set(), set(range(8)))
    assert record.verdict.outcome is Outcome.INCONCLUSIVE
    assert record.verdict.splats[0].comparison is Comparison.SUSPECT


def test_a_torn_splat_counts_as_the_whole_one_of_its_title() -> None:
    torn = replace(records.UAF, fingerprint="", corrupted="cut off")

    def answer(of: Cell) -> Trial:
        return trial(of, boot_splats=(torn if of.side is P else records.UAF,))

    verdict = records.run(answer, answer).verdict
    assert [splat.comparison for splat in verdict.splats] == [Comparison.SAME_FAIL]


def test_lockdep_that_was_off_did_not_see_nothing() -> None:
    """The base passed only where lockdep was off: that the splat is new cannot be said."""
    lockdep = replace(records.UAF, kind="lockdep-circular", fingerprint="10cd")
    base = states(B, *[CaseState.UNCOVERED] * 7)
    patched = [
        trial(cell(P, r, cases=ONE), results=(failed(ONE[0], "splat", splats=(lockdep,)),))
        for r in range(7)
    ]
    verdict = judge(judged(base + patched))
    assert verdict.splats[0].comparison is Comparison.UNKNOWN
    assert verdict.outcome is Outcome.INCONCLUSIVE


def test_a_splat_in_a_case_is_only_missed_where_the_case_ran() -> None:
    """Repeats that ran other cases do not count as repeats without the splat."""
    both = ("suite/a", "suite/b")
    trials: list[Trial] = []
    for side in Side:
        for repeat in range(6):
            of = cell(side, repeat, cases=both if repeat < 2 else both[1:])
            results = tuple(passed(name, of) for name in of.cases)
            if repeat < 2:
                results = (failed(both[0], "splat", splats=(records.UAF,)), *results[1:])
            trials.append(trial(of, results=results))
    (splat,) = judge(judged(trials, cases=both)).splats
    assert (splat.base, splat.base_trials, splat.patched_trials) == (2, 2, 2)


# --- the truth ---------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_few_series_that_change_nothing_are_called_regressed() -> None:
    flaky = tuple((rate, rate) for rate in (0.05, 0.2, 0.3, 0.5))
    got = score(Truth(name="flaky", rates=flaky), THOROUGH, runs=200, seed=7)
    assert got.regressed <= LEVEL


@pytest.mark.timeout(600)
def test_few_cases_that_get_worse_by_thirty_points_are_missed() -> None:
    got = score(Truth(name="0 -> 30 %", rates=((0, 0), (0, 0.3))), THOROUGH, runs=200, seed=7)
    assert got.regressed >= 0.95
    assert got.clean <= 0.05


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([PASS, FAIL, SKIP, None, CaseState.UNCOVERED]), max_size=9),
    st.lists(st.sampled_from([PASS, FAIL, SKIP, None, CaseState.UNCOVERED]), max_size=9),
)
def test_clean_means_passes_on_both_sides_and_no_difference(
    base: list[CaseState | None], patched: list[CaseState | None]
) -> None:
    given_ = judged(states(B, *base) + states(P, *patched))
    verdict = judge(given_)
    if verdict.outcome is Outcome.CLEAN:
        assert base.count(PASS) + base.count(FAIL) >= 2
        assert patched.count(PASS) + patched.count(FAIL) >= 2
        assert PASS in base and PASS in patched
        if FAIL in patched:
            assert FAIL in base
    for more in needs_more(given_):
        assert more.last < given_.max_repeats
        assert more.cases == ONE


def test_what_a_passing_case_did_not_look_at_is_told_and_casts_no_doubt() -> None:
    case = "faultstress/ext4/munmap"
    short = CaseResult(
        name=case,
        state=CaseState.PASSED,
        message="leaks were not looked for; allowed: buffer I/O error: what this case injects",
    )
    verdict = records.run(failing(case, short), failing(case, short)).verdict
    assert verdict.outcome is Outcome.CLEAN
    assert f"x86_64: {case}: leaks were not looked for" in verdict.reasons
