"""What earlier bases showed: where it comes from, what it may do to a verdict, and what not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.verdict_truth import THOROUGH, Budget, Truth, score
from lab import campaign, ledger, verdict
from lab.ledger.past import line
from lab.model import (
    CaseState,
    CaseVerdict,
    Cell,
    Comparison,
    Event,
    EventKind,
    Outcome,
    Past,
    Side,
    Trial,
    Verdict,
)
from lab.verdict import JudgeInput, judge, needs_more
from tests import records
from tests.test_ledger import store
from tests.test_verdict import FAIL, ONE, PASS, B, P, judged, states

QUARTER = Past(failed=15, decided=60, runs=10, versions=("6.1.192", "6.1.190"))
NEVER = Past(failed=0, decided=60, runs=10, versions=("6.1.190",))
# A case that failed twice in a row on the patched side, then now and then on both: 3 of 14 fresh
# runs against 1 of 14.
DOUBTFUL = (
    states(B, *[PASS] * 2, *[PASS] * 12, FAIL, FAIL),
    states(P, *[FAIL] * 2, *[PASS] * 11, *[FAIL] * 3),
)


def the_case(given_: JudgeInput, past: Past | None) -> tuple[Verdict, CaseVerdict]:
    known = {("x86_64", ONE[0]): past} if past else {}
    told = judge(replace(given_, past=known))
    (case,) = told.cases
    return told, case


def doubtful(base: list[Trial], patched: list[Trial]) -> JudgeInput:
    return judged(base + patched, max_repeats=16)


# --- what it may do ----------------------------------------------------------------------------


def test_a_suspicion_goes_where_this_base_and_the_earlier_ones_fail_as_often() -> None:
    given_ = doubtful(*DOUBTFUL)
    alone, case = the_case(given_, None)
    assert (alone.outcome, case.comparison) == (Outcome.INCONCLUSIVE, Comparison.SUSPECT)
    told, case = the_case(given_, QUARTER)
    assert (told.outcome, case.comparison) == (Outcome.CLEAN, Comparison.FLAKY)
    assert case.past == QUARTER
    said = "earlier bases failed in 15 of 60 (10 runs: 6.1.192, 6.1.190)"
    assert said in case.reason
    assert any(said in reason for reason in told.reasons)


@pytest.mark.parametrize(
    ("base", "past", "why"),
    [
        ([PASS] * 16, QUARTER, "this base never failed"),
        ([PASS] * 14 + [FAIL] * 2, NEVER, "earlier bases never failed"),
        ([PASS] * 14 + [FAIL] * 2, replace(QUARTER, failed=45), "this base is another one"),
        ([PASS] * 14 + [FAIL] * 2, replace(QUARTER, failed=4), "they fail much less often"),
        ([PASS] * 14 + [FAIL] * 2, replace(QUARTER, failed=0, decided=0), "nothing is known"),
    ],
)
def test_history_alone_lets_nothing_go(base: list[CaseState | None], past: Past, why: str) -> None:
    told, case = the_case(doubtful(states(B, *base), DOUBTFUL[1]), past)
    assert case.comparison is Comparison.SUSPECT, why
    assert told.outcome is Outcome.INCONCLUSIVE


def test_a_regression_stays_one_whatever_earlier_bases_did() -> None:
    given_ = doubtful(states(B, *[PASS] * 9), states(P, *[FAIL] * 9))
    told, case = the_case(given_, replace(QUARTER, failed=60))
    assert (told.outcome, case.comparison) == (Outcome.REGRESSED, Comparison.REGRESSED)
    assert "earlier bases failed in 60 of 60" in told.findings[0].detail


_states = st.lists(st.sampled_from([PASS, PASS, FAIL]), min_size=2, max_size=16)
_pasts = st.integers(0, 80).flatmap(
    lambda decided: st.integers(0, decided).map(
        lambda failed: Past(failed=failed, decided=decided, runs=3, versions=("6.1.190",))
    )
)


@settings(max_examples=150, deadline=None)
@given(base=_states, patched=_states, past=_pasts)
def test_history_blames_nobody_ends_nothing_and_takes_no_finding_back(
    base: list[CaseState | None], patched: list[CaseState | None], past: Past
) -> None:
    given_ = doubtful(states(B, *base), states(P, *patched))
    known = replace(given_, past={("x86_64", ONE[0]): past})
    assert needs_more(known) == needs_more(given_), "the same runs are made"
    before, after = judge(given_), judge(known)
    regressed = Outcome.REGRESSED
    assert (before.outcome is regressed) == (after.outcome is regressed)
    (was,), (is_) = before.cases, after.cases[0]
    if was.comparison is not is_.comparison:
        assert was.comparison is Comparison.SUSPECT and is_.comparison is Comparison.FLAKY
        assert FAIL in base, "only where this very base failed"
        assert past.failed, "and earlier ones did"
        assert not needs_more(given_), "and the budget is spent"


def test_a_splat_says_where_it_was_seen_before() -> None:
    def once(of: Cell) -> Trial:
        seen = (records.WARNING,) if of.repeat == 1 else ()
        return records.trial(of, boot_splats=seen)

    record = records.run(records.well, once)
    given_ = JudgeInput(
        title="x",
        archs=("x86_64",),
        cases=record.manifest.cases,
        profile="lockdep",
        trials=record.trials,
        kernels=record.kernels,
        failures=(),
        repeats=2,
        max_repeats=8,
        past={("x86_64", records.WARNING.fingerprint): QUARTER},
    )
    told = judge(given_)
    assert told.outcome is Outcome.INCONCLUSIVE
    assert told.splats[0].past == QUARTER
    assert any("earlier bases showed it in 15 of 60" in reason for reason in told.reasons)


# --- where it comes from -----------------------------------------------------------------------


def test_lines_of_kernels() -> None:
    assert line("6.1.192") == line("6.1.0") == line("6.1-rc3") == "6.1"
    assert line("6.12.1") == "6.12"


def _ledger_of(runs: Path) -> dict[str, Past]:
    with ledger.opened(runs) as book:
        (ground,) = (one for one in book.grounds() if one.accelerator == "tcg")
        return ledger.past(book, ground=ground, version="6.1.200", before="2026-04")


def test_only_bases_count_and_only_earlier_ones_of_the_same_ground_and_line(tmp_path: Path) -> None:
    case = "faultstress/ext4/truncate"
    flaky = records.failing(case, records.failed(case, "no"), lambda of: of.repeat % 2 == 0)
    plain = records.run(flaky, records.well)
    bad = records.corrupting()  # the patched side fails
    source = plain.manifest.source

    def under_kvm(of: Cell) -> Trial:
        return replace(flaky(of), accelerator=records.KVM)

    store(tmp_path, plain, run="a", created="2026-03-01")
    store(tmp_path, bad, run="b", created="2026-03-02")
    store(tmp_path, records.run(under_kvm, under_kvm), run="kvm", created="2026-03-03")
    store(
        tmp_path, plain, run="line", created="2026-03-04", source=replace(source, version="6.12.3")
    )
    store(tmp_path, plain, run="later", created="2026-04-02")
    record = {run: _counts(one, case) for run, one in (("a", plain), ("b", bad))}
    past = _ledger_of(tmp_path)[case]
    assert past.failed == record["a"][0] > 0
    assert past.decided == record["a"][1] + record["b"][1]
    assert (past.runs, past.versions) == (2, ("6.1.192",))


def _counts(record: object, case: str) -> tuple[int, int]:
    assert hasattr(record, "verdict")
    (found,) = (one for one in record.verdict.cases if one.name == case)
    return found.base.failed, found.base.decided


def test_splats_of_earlier_bases_are_known_by_fingerprint(tmp_path: Path) -> None:
    store(tmp_path, records.flaky(), run="a", created="2026-03-01")
    past = _ledger_of(tmp_path)[records.WARNING.fingerprint]
    assert past.failed > 0


def test_old_runs_are_forgotten(tmp_path: Path) -> None:
    for number in range(33):
        store(tmp_path, records.clean(), run=f"{number:02}", created=f"2026-03-01T{number:02}")
    assert _ledger_of(tmp_path)["boot/hello"].runs == 30


def test_a_run_finds_its_own_past(tmp_path: Path) -> None:
    """As `lab run` asks for it: by the ground on which its trials were compared."""
    store(tmp_path, records.flaky(), run="a", created="2026-03-01T00:00:00+00:00")
    told = records.manifest(created="2026-03-05T00:00:00+00:00", run="now")
    trials = [records.trial(records.cell(side, 0)) for side in Side]
    said: list[Event] = []
    found = campaign._past(told, trials, tmp_path / "now", said.append)
    case = "faultstress/xfs/truncate"
    assert found["x86_64", case].failed > 0
    # Under another accelerator, or in a guest of another size, there is none.
    elsewhere = [replace(one, accelerator=records.KVM) for one in trials]
    assert campaign._past(told, elsewhere, tmp_path / "now", said.append) == {}
    larger = [replace(one, cell=replace(one.cell, cpus=64)) for one in trials]
    assert campaign._past(told, larger, tmp_path / "now", said.append) == {}
    assert said == []


def test_a_ledger_that_cannot_be_read_costs_the_history_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ledger.FILE_NAME).mkdir()
    (tmp_path / f"{ledger.FILE_NAME}.old").mkdir()
    (tmp_path / f"{ledger.FILE_NAME}.old" / "full").touch()
    trials = [records.trial(records.cell(side, 0)) for side in Side]
    said: list[Event] = []
    assert campaign._past(records.manifest(), trials, tmp_path / "now", said.append) == {}
    assert [event.kind for event in said] == [EventKind.WARNING]


# --- the truth ---------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_history_that_is_true_turns_doubts_into_verdicts() -> None:
    budget = Budget(repeats=2, max_repeats=16)
    rates = ((0.3, 0.3),) * 4
    alone = score(Truth(name="flaky", rates=rates), budget, runs=150, seed=7)
    known = score(Truth(name="flaky", rates=rates, before=(0.3,) * 4), budget, runs=150, seed=7)
    assert known.regressed == alone.regressed <= verdict.LEVEL
    assert known.spent == alone.spent
    assert known.clean > alone.clean + 0.05


@pytest.mark.timeout(600)
def test_history_that_is_wrong_hides_no_regression() -> None:
    """Earlier bases failed in 30 %, this one never does, the series brings it back."""
    rates = ((0.0, 0.3),)
    alone = score(Truth(name="0 -> 30 %", rates=rates), THOROUGH, runs=150, seed=7)
    lied = score(Truth(name="0 -> 30 %", rates=rates, before=(0.3,)), THOROUGH, runs=150, seed=7)
    assert lied == alone
    assert lied.clean <= 0.05
