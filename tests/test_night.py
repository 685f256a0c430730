"""Nights, pure: what to run next, and what is told from chance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.matrix import Job
from lab.model import Outcome, Side
from lab.night import budget, compare, history, sentence
from lab.night.budget import Prospect
from lab.night.compare import Past, Seen, Subject
from lab.night.record import (
    Change,
    Count,
    JobResult,
    JobState,
    News,
    Night,
    NightRecord,
    NightStart,
)


def job(name: str) -> Job:
    return Job(kernel="", series=name, arch="x86_64", profile="plain", filesystem="", suite="boot")


JOBS = tuple(job(name) for name in "abcd")


def result(
    name: str,
    state: JobState = JobState.RAN,
    outcome: Outcome | None = Outcome.CLEAN,
    took_s: float = 60.0,
) -> JobResult:
    if state is not JobState.RAN:
        outcome = None
    run = f"run-{name}" if state is JobState.RAN else ""
    return JobResult(
        job=job(name), state=state, outcome=outcome, duration_s=took_s, run=run, sentence="it is"
    )


def night(*results: JobResult, news: tuple[News, ...] = (), id_: str = "n") -> NightRecord:
    start = NightStart(
        id=id_,
        digest="d",
        started="2026-03-14T22:00:00+00:00",
        budget_s=None,
        jobs=tuple(one.job for one in results),
        lab_version="0.1.0",
        command=("lab", "nightly"),
    )
    return NightRecord(
        start=start,
        finished="2026-03-15T04:00:00+00:00",
        results=results,
        news=news,
        outcome=Outcome.CLEAN,
        sentence="clean",
    )


# --- what to run next --------------------------------------------------------------------------


def order(*nights: NightRecord) -> str:
    return "".join(one.job.series for one in budget.prospects(JOBS, nights))


def test_failed_first_then_never_run_then_longest_not_run() -> None:
    newest = night(result("a"), result("b", outcome=Outcome.REGRESSED))
    older = night(result("a"), result("b"), result("c"))
    assert order(newest, older) == "bdca"


def test_what_did_not_run_keeps_what_it_was() -> None:
    newest = night(
        result("a"),
        result("b", JobState.LEFT_OUT),
        result("c", JobState.CUT_OFF),
        result("d", JobState.FAULT),
    )
    older = night(*(result(name, outcome=Outcome.INCONCLUSIVE) for name in "b"), result("d"))
    oldest = night(result("c"))
    assert order(newest, older, oldest) == "bcda"


def test_bad_news_in_a_clean_run_count_as_failed() -> None:
    told = News(
        job=job("c").key,
        kind="case",
        name="x",
        title="x",
        sides=tuple(Side),
        change=Change.NEW,
        tonight=Count(bad=4, runs=4),
        fresh=Count(),
        before=Count(runs=8),
    )
    assert order(night(*map(result, "abcd"), news=(told,))) == "cabd"
    assert order(night(*map(result, "abcd"), news=(replace(told, change=Change.FLAKY),))) == "abcd"


def test_the_longest_of_three_nights_is_what_a_job_takes() -> None:
    took = [10.0, 70.0, 30.0, 900.0]
    (one,) = budget.prospects(JOBS[:1], [night(result("a", took_s=s)) for s in took])
    assert one.expected_s == 70.0
    (never,) = budget.prospects(JOBS[:1], [night(result("a", JobState.CUT_OFF, took_s=99.0))])
    assert never.expected_s is None


def prospect(name: str, expected_s: float | None) -> Prospect:
    return Prospect(job=job(name), failed=False, idle=0, expected_s=expected_s)


@given(st.lists(st.none() | st.floats(0, 1e5), max_size=8), st.none() | st.floats(-1e4, 1e5))
def test_nothing_begins_that_does_not_fit(takes: list[float | None], left_s: float | None) -> None:
    waiting = [prospect(str(n), s) for n, s in enumerate(takes)]
    chosen = budget.next_job(waiting, left_s)
    fitting = [
        one
        for one in waiting
        if left_s is None or (left_s > 0 and (one.expected_s is None or one.expected_s <= left_s))
    ]
    assert chosen == (fitting[0] if fitting else None)


# --- the reference -----------------------------------------------------------------------------


def kept(*nights: tuple[Outcome, bool]) -> list[Night]:
    """Newest first: outcome of job a, accepted."""
    return [
        Night(
            record=night(result("a", outcome=outcome), id_=str(len(nights) - n)),
            folder=Path("nights"),
            accepted=accepted,
        )
        for n, (outcome, accepted) in enumerate(nights)
    ]


@pytest.mark.parametrize(
    ("nights", "last", "good", "since"),
    [
        ([], "", "", ""),
        ([(Outcome.CLEAN, False)], "1", "1", ""),
        ([(Outcome.REGRESSED, False)], "", "1", ""),  # none was good: all that there is
        ([(Outcome.REGRESSED, False), (Outcome.CLEAN, False)], "1", "1", "2"),
        ([(Outcome.REGRESSED, True), (Outcome.CLEAN, False)], "2", "2", ""),
        (
            [(Outcome.CLEAN, False), (Outcome.REGRESSED, True), (Outcome.CLEAN, False)],
            "3",
            "32",
            "",
        ),
    ],
)
def test_the_last_good_night(
    nights: list[tuple[Outcome, bool]], last: str, good: str, since: str
) -> None:
    found = history.reference(job("a"), kept(*nights))
    assert found.last == last
    assert "".join(one.record.id for one in found.good) == good
    assert "".join(one.record.id for one in found.since) == since


# --- what is told ------------------------------------------------------------------------------


def seen(
    tonight: tuple[int, int],
    *good: tuple[int, int],
    again: tuple[int, int] = (0, 0),
    since: Sequence[tuple[int, int]] = (),
    judged: bool = False,
    name: str = "case",
) -> Seen:
    return Seen(
        subject=Subject(job="j", kind="case", name=name, title=name),
        sides=(Side.BASE,),
        tonight=count(tonight),
        again=count(again),
        past=Past(
            good=tuple(map(count, good)),
            since=tuple((str(9 - n), count(pair)) for n, pair in enumerate(since)),
        ),
        judged=judged,
    )


def count(pair: tuple[int, int]) -> Count:
    return Count(bad=pair[0], runs=pair[1])


@pytest.mark.parametrize(
    ("one", "change"),
    [
        (seen((0, 2), (0, 2)), None),
        (seen((0, 2)), None),
        (seen((2, 2)), Change.FIRST),
        (seen((0, 0), (0, 2)), Change.LOST),
        (seen((0, 0)), None),
        # It looks new; the runs that raised it do not count for it.
        (seen((2, 2), *[(0, 2)] * 14), Change.SUSPECT),
        (seen((2, 2), (0, 2), (0, 2), again=(16, 16)), Change.NEW),
        (seen((1, 2), *[(0, 2)] * 7, again=(0, 16)), Change.FLAKY),
        (seen((1, 2), *[(0, 2)] * 7, again=(3, 16)), Change.SUSPECT),
        (seen((2, 2), (1, 2), (0, 2), (1, 2)), Change.FLAKY),
        (seen((2, 2), (0, 20), (1, 20), again=(16, 16)), Change.NEW),  # far more often than before
        (seen((2, 2), (2, 2), (2, 2)), Change.KNOWN),
        # A later night saw it first: all of tonight's runs are fresh.
        (seen((4, 4), *[(0, 2)] * 7, since=[(2, 2)]), Change.NEW),
        (seen((2, 2), (0, 2), judged=True), Change.NEW),
        (seen((0, 2), (2, 2), (2, 2)), Change.QUIET),
        (seen((0, 2), (2, 2), (2, 2), again=(0, 16)), Change.FIXED),
        (seen((0, 2), (1, 2), (0, 2)), Change.FLAKY),
        (seen((0, 8), (0, 2), since=[(8, 8)]), Change.FIXED),
        (seen((0, 2), (0, 2), since=[(1, 2)]), Change.FLAKY),
    ],
)
def test_changes(one: Seen, change: Change | None) -> None:
    found = compare.news([one])
    assert [news.change for news in found] == ([] if change is None else [change])


def test_since_when() -> None:
    (news,) = compare.news([seen((2, 2), (0, 2), since=[(2, 2), (0, 0), (1, 2), (0, 2), (2, 2)])])
    assert news.since == "7"  # "9", "8" had no answer, "7"; before it passed


def test_suspects_are_asked_again_once() -> None:
    new = seen((2, 2), (0, 2))
    gone = seen((0, 2), (2, 2))
    flaky = seen((1, 2), (1, 2))
    assert compare.suspects([new, gone, flaky]) == (new, gone)
    assert compare.suspects([replace(new, again=Count(runs=16))]) == ()


def test_both_sides_alike_are_one_piece_of_news_with_all_runs() -> None:
    base = seen((2, 2), (0, 2), (0, 2))
    patched = replace(base, sides=(Side.PATCHED,))
    (both,) = compare.merged({Side.BASE: base, Side.PATCHED: patched})
    assert both.tonight == count((4, 4))
    assert both.before == count((0, 8))
    assert both.sides == tuple(Side)
    calm = replace(patched, tonight=count((0, 2)))
    assert len(compare.merged({Side.BASE: base, Side.PATCHED: calm})) == 2
    assert len(compare.merged({Side.BASE: base, Side.PATCHED: replace(patched, judged=True)})) == 2


def test_chance_alone_is_seldom_called_new() -> None:
    """300 nights of 40 cases that fail as often as ever, each suspect asked 16 times again."""
    dice = random.Random(7)

    def runs(rate: float, number: int) -> Count:
        return Count(bad=sum(dice.random() < rate for _ in range(number)), runs=number)

    wrong = open_ = 0
    for _ in range(300):
        every = []
        for number in range(40):
            rate = dice.choice([0.0, 0.0, 0.02, 0.1, 0.5])
            one = replace(
                seen((0, 0), name=str(number)),
                tonight=runs(rate, 4),
                past=Past(good=tuple(runs(rate, 4) for _ in range(14))),
            )
            if compare.suspects([one]):
                one = replace(one, again=runs(rate, 32))
            every.append(one)
        told = [news.change for news in compare.news(every)]
        wrong += Change.NEW in told
        open_ += Change.SUSPECT in told
    assert wrong <= 3  # of 300: the level is 1 %
    assert open_ <= 15


def test_what_always_fails_from_now_on_is_called_new() -> None:
    one = seen((2, 2), *[(0, 2)] * 3, again=(16, 16))
    others = [seen((1, 2), *[(0, 2)] * 14, again=(0, 16), name=str(n)) for n in range(20)]
    (first, *_) = compare.news([*others, one])
    assert (first.change, first.name) == (Change.NEW, "case")


# --- the outcome -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        ([result("a")], Outcome.CLEAN),
        ([], Outcome.INCONCLUSIVE),
        ([result("a"), result("b", JobState.LEFT_OUT)], Outcome.INCONCLUSIVE),
        ([result("a"), result("b", JobState.CUT_OFF)], Outcome.INCONCLUSIVE),
        ([result("a"), result("b", JobState.REFUSED)], Outcome.INCONCLUSIVE),
        ([result("a"), result("b", JobState.FAULT)], Outcome.INCONCLUSIVE),
        ([result("b", JobState.FAULT)], Outcome.LAB_FAULT),
        ([result("a", outcome=Outcome.INCONCLUSIVE)], Outcome.INCONCLUSIVE),
        (
            [result("a", outcome=Outcome.REGRESSED), result("b", JobState.LEFT_OUT)],
            Outcome.REGRESSED,
        ),
    ],
)
def test_what_did_not_run_is_never_green(results: list[JobResult], outcome: Outcome) -> None:
    got, reasons = sentence.outcome(results, [])
    assert got is outcome
    named = [one for one in results if one.state is not JobState.RAN]
    assert all(any(one.job.name in reason for reason in reasons) for one in named)
    assert (got is Outcome.CLEAN) == (not reasons and bool(results))


@pytest.mark.parametrize("change", list(Change))
def test_only_new_suspect_and_lost_keep_a_night_from_being_clean(change: Change) -> None:
    (one,) = compare.news([seen((2, 2), (0, 2), judged=True)])
    got, _ = sentence.outcome([result("a")], [replace(one, change=change)])
    expected = {
        Change.NEW: Outcome.REGRESSED,
        Change.SUSPECT: Outcome.INCONCLUSIVE,
        Change.LOST: Outcome.INCONCLUSIVE,
    }
    assert got is expected.get(change, Outcome.CLEAN)
