"""A series that names counters is not judged clean while one of them stays 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lab import intake, verdict
from lab.model import Outcome, Side, Trial
from lab.store import Cache
from lab.verdict import JudgeInput
from tests.conftest import ROOT
from tests.records import cell, kernel, trial

CASES = ("suite/one",)


def given(patched: dict[str, int], counters: tuple[str, ...]) -> JudgeInput:
    """A run in which everything passes, with those counters at the end of the patched trials."""

    def end(side: Side, repeat: int) -> Trial:
        stat = {"pgfault": 9} | (patched if side is Side.PATCHED else {"fault_read": 77})
        return replace(trial(cell(side, repeat, cases=CASES)), vmstat=stat)

    return JudgeInput(
        title="series",
        archs=("x86_64",),
        cases=CASES,
        profile="lockdep",
        trials=tuple(end(side, repeat) for repeat in range(2) for side in Side),
        kernels=tuple(kernel(side) for side in Side),
        failures=(),
        repeats=2,
        max_repeats=8,
        counters=counters,
    )


@pytest.mark.parametrize(
    ("patched", "counters", "outcome"),
    [
        ({"fault_read": 1, "fault_wp": 2}, ("fault_read", "fault_wp"), Outcome.CLEAN),
        ({"fault_read": 1, "fault_wp": 0}, ("fault_read", "fault_wp"), Outcome.INCONCLUSIVE),
        ({"fault_wp": 2}, ("fault_read", "fault_wp"), Outcome.INCONCLUSIVE),
        ({"fault_wp": 0}, (), Outcome.CLEAN),
    ],
)
def test_an_idle_counter_is_not_green(
    patched: dict[str, int], counters: tuple[str, ...], outcome: Outcome
) -> None:
    judged = verdict.judge(given(patched, counters))
    assert judged.outcome is outcome
    idle = [name for name in counters if not patched.get(name)]
    assert any(all(name in reason for name in idle) for reason in judged.reasons)


def test_the_demo_series_names_its_counters(tmp_path: Path) -> None:
    series = intake.take(
        str(ROOT / "patches/demo"),
        repository=None,
        cache=Cache(root=tmp_path),
        emit=lambda _: None,
    )
    assert len(series.patches) == 3
    assert "fault_wp" in series.counters
    added = "".join(patch.mail for patch in series.patches)
    for name in series.counters:
        assert f"+\t[{name.upper().replace('FAULT_', 'FAULT_STAT_', 1)}]" in added
