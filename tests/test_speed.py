"""Speeds: the interval is the textbook's, and only what is surely slower blames a series."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
from rich.console import Console

from lab.model import (
    CaseResult,
    CaseState,
    Cell,
    Outcome,
    RunRecord,
    Side,
    SpeedVerdict,
    Trial,
    decode,
    encode,
)
from lab.report import html, terminal
from lab.verdict import speed
from tests.records import cell, run, trial

CASE = "fio/ext4/mmap-randread"


@pytest.mark.parametrize(
    ("probability", "freedom", "t"),
    # Tables of Student's distribution.
    [
        (0.975, 1, 12.7062),
        (0.975, 4, 2.7764),
        (0.975, 8, 2.306),
        (0.995, 10, 3.1693),
        (0.99975, 8, 5.6174),
        (0.975, 1000, 1.9623),
        (0.975, 2.5, 3.5747),
    ],
)
def test_the_quantiles_are_students(probability: float, freedom: float, t: float) -> None:
    assert speed.quantile(probability, freedom) == pytest.approx(t, abs=1e-4)


def trials(base: list[float], patched: list[float], metric: str = "read_per_s") -> list[Trial]:
    made = []
    for side, values in ((Side.BASE, base), (Side.PATCHED, patched)):
        for repeat, value in enumerate(values):
            of = cell(side, repeat, cases=(CASE,))
            result = CaseResult(name=CASE, state=CaseState.PASSED, metrics={metric: value})
            made.append(trial(of, results=(result,)))
    return made


def judged(base: list[float], patched: list[float], metric: str = "read_per_s") -> SpeedVerdict:
    (one,) = speed.speeds(trials(base, patched, metric), ("x86_64",))
    return one


FAST = [1000.0, 1010.0, 990.0, 1005.0, 1002.0]


def test_a_rate_that_falls_by_a_fifth_is_slower() -> None:
    one = judged(FAST, [value * 0.8 for value in FAST])
    assert one.slower
    assert one.ratio == pytest.approx(0.8)
    assert one.low is not None and one.high is not None and one.low < 0.8 < one.high < 0.85
    assert "-20.0%" in speed.wording(one) and "5 + 5 runs" in speed.wording(one)


@pytest.mark.parametrize(
    ("base", "patched", "metric"),
    [
        (FAST, [value * 1.3 for value in FAST], "read_per_s"),  # faster
        (FAST, [value * 0.97 for value in FAST], "read_per_s"),  # hardly
        (FAST[:4], [value * 0.5 for value in FAST[:4]], "read_per_s"),  # too few
        (FAST, [300.0, 1500.0, 400.0, 700.0, 500.0], "read_per_s"),  # too noisy
        (FAST, [value * 0.5 for value in FAST], "read_p50_us"),  # a latency: less is better
        (FAST, [value * 2 for value in FAST], "read_p99_us"),  # the slowest few blame nobody
        (FAST, [value * 2 for value in FAST], "minor_faults"),  # nobody knows what is better
    ],
)
def test_what_is_not_surely_slower_is_only_told(
    base: list[float], patched: list[float], metric: str
) -> None:
    assert not judged(base, patched, metric).slower


def test_a_latency_that_doubles_is_slower() -> None:
    assert judged(FAST, [value * 2 for value in FAST], "read_p50_us").slower


def test_other_suites_blame_nobody_by_their_speed() -> None:
    moved = [
        replace(
            one,
            results=tuple(replace(each, name="faultstress/ext4/munmap") for each in one.results),
        )
        for one in trials(FAST, [value * 0.5 for value in FAST])
    ]
    (one,) = speed.speeds(moved, ("x86_64",))
    assert not one.slower and one.ratio == pytest.approx(0.5)


def test_one_run_has_no_interval() -> None:
    one = judged([10.0], [11.0, 12.0])
    assert one.low is None and one.high is None
    assert "no interval" in speed.wording(one)


def test_equal_values_show_no_noise_and_have_no_interval() -> None:
    one = judged([100.0] * 6, [80.0] * 6)
    assert one.ratio == pytest.approx(0.8) and one.low is None
    assert not one.slower


def test_zero_is_not_comparable() -> None:
    assert judged([0.0, 1.0], [1.0, 2.0]).ratio is None


def test_failed_runs_are_not_fast() -> None:
    made = trials(FAST, FAST)
    broken = CaseResult(name=CASE, state=CaseState.FAILED, metrics={"read_per_s": 9e9})
    made[7] = replace(made[7], results=(broken,))
    (one,) = speed.speeds(made, ("x86_64",))
    assert len(one.patched) == 4 and max(one.patched) < 2000


def test_the_interval_covers_as_often_as_it_says() -> None:
    dice = random.Random(11)
    hits = 0
    for _ in range(1000):
        base, patched = ([exp(dice.gauss(0, 0.1)) for _ in range(6)] for _ in range(2))
        _, low, high = speed.interval(base, patched, 0.95)
        assert low is not None and high is not None
        hits += low <= 1 <= high
    assert 930 <= hits <= 975


def test_a_series_that_changes_nothing_is_hardly_ever_blamed() -> None:
    dice = random.Random(12)
    blamed = 0
    for _ in range(2000):
        base, patched = ([exp(dice.gauss(0, 0.3)) for _ in range(5)] for _ in range(2))
        blamed += judged(base, patched).slower
    assert blamed <= 2


# --- in a run ------------------------------------------------------------------------------------


def slowed(of: Cell) -> Trial:
    """A machine on which the series makes reads take a third longer."""
    rate = 1000.0 + of.repeat
    rate = rate * 0.75 if of.side is Side.PATCHED else rate
    metrics = {"read_per_s": rate}
    results = tuple(
        CaseResult(name=case, state=CaseState.PASSED, metrics=metrics) for case in of.cases
    )
    return trial(of, results=results)


def test_a_slower_series_is_regressed_and_the_report_says_by_how_much() -> None:
    record = run(slowed, slowed, cases=(CASE,), repeats=5)
    assert record.verdict.outcome is Outcome.REGRESSED
    (finding,) = record.verdict.findings
    assert finding.kind == "speed" and "-25.0%" in finding.detail
    assert CASE in record.verdict.sentence
    out = io.StringIO()
    terminal.summary(record, Path("/runs/x"), Console(file=out, width=100))
    assert "slower: fio/ext4/mmap-randread read_per_s: -25.0%" in out.getvalue()
    page = html.page(record, None)
    assert "-25.0%" in page and "5 + 5 runs" in page
    assert decode(encode(record), RunRecord) == record


def test_with_two_runs_it_is_told_and_blames_nobody() -> None:
    record = run(slowed, slowed, cases=(CASE,), repeats=2)
    assert record.verdict.outcome is Outcome.CLEAN
    (one,) = record.verdict.speeds
    assert not one.slower and one.ratio == pytest.approx(0.75)
