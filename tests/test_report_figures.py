"""Figures of the report: where things stand on their axes, what is said beside them."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from math import exp, log

import pytest

from lab.model import CaseState, Cell, Comparison, MachineEnd, Past, RunRecord, Side, Splat, Trial
from lab.report import cases, html, speed, timeline, view
from lab.report.files import Files
from lab.verdict import speed_interval
from tests import records
from tests.test_report import Page, symbolised

NOWHERE = Files(folder=None)


# --- intervals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [3, 8])
def test_intervals_cover_the_truth_as_often_as_they_say(runs: int) -> None:
    dice = random.Random(7)
    covered = 0
    for _ in range(1000):
        base = [exp(dice.gauss(2.0, 0.3)) for _ in range(runs)]
        patched = [exp(dice.gauss(2.0 + log(1.2), 0.1)) for _ in range(runs)]
        _, low, high = speed_interval(base, patched, 0.95)
        assert low is not None and high is not None
        covered += low <= 1.2 <= high
    assert 0.93 <= covered / 1000 <= 0.99


# --- words and axes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.031, "+3.1%"), (0.6, "−40%"), (2.4, "×2.4"), (1.0001, "±0%"), (0.001, "÷1\u202f000")],
)
def test_changes_in_words(ratio: float, text: str) -> None:
    assert speed.percent(ratio) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.2e-7, "220 ns"),
        (4.1e-6, "4.1 µs"),
        (0.0121, "12.1 ms"),
        (0.99999, "1 s"),
        (1500, "1\u202f500 s"),
    ],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert speed.duration(seconds) == text


@pytest.mark.parametrize("reach", [1.0, 1.01, 1.2, 3.0, 1e6])
def test_an_axis_of_changes_has_no_change_in_its_middle(reach: float) -> None:
    axis = speed.changes([1.0, reach])
    assert axis.at(1.0) == pytest.approx(0.5)
    assert 0.5 - axis.at(0.9) == pytest.approx(axis.at(1 / 0.9) - 0.5)
    assert 0 < axis.at(1e-30) < axis.at(1e30) < 1
    places = [tick.at for tick in axis.ticks]
    assert places == sorted(places) and 0.5 in [round(at, 9) for at in places]
    assert all(b - a > 0.1 for a, b in pairwise(places))
    assert len(places) >= 3


def test_an_axis_of_times_has_whole_decades() -> None:
    axis = speed.times([3e-6, 0.04])
    assert [tick.label for tick in axis.ticks if tick.label] == [
        *("1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms"),
    ]
    assert axis.at(3e-6) < axis.at(1e-5) < axis.at(0.04)
    assert speed.times([]).ticks and speed.times([0.0]).at(0.0) > 0


# --- speed -------------------------------------------------------------------------------------


def measuring(runs: int, factor: float) -> RunRecord:
    """The series makes a call slower by that factor, and nothing else."""

    def answer(of: Cell) -> Trial:
        dice = random.Random(f"{of.side}{of.repeat}")
        slow = factor if of.side is Side.PATCHED else 1.0
        told = records.trial(of)
        return replace(
            told,
            results=tuple(
                replace(
                    result,
                    metrics={
                        "munmap_p50_us": 100.0 * slow * dice.uniform(0.98, 1.02),
                        "munmap_p99_us": 2500.0 * dice.uniform(0.9, 1.1),
                        "munmap_max_us": 9000.0 * dice.uniform(0.9, 1.1),
                        "munmap_count": 1000.0,
                        "faults_per_s": 5000.0 * dice.uniform(0.97, 1.03),
                    },
                )
                for result in told.results
            ),
        )

    return records.run(answer, answer, repeats=runs, cases=records.CASES[1:3])


def test_what_moved_beyond_chance_is_said_first() -> None:
    told = speed.speed(measuring(6, 1.5))
    assert told is not None and told.apart and told.same == 2
    assert told.sentence.startswith("2 of 8 numbers moved further than chance would: ")
    assert "faultstress/ext4/read munmap p50 +49%" in told.sentence
    assert told.latencies is not None and told.rates is not None
    row = told.latencies.rows[0]
    assert [point.name for point in row.base] == ["p50", "p99", "max"]
    assert [change.name for change in row.said] == ["p50", "p99"]
    assert row.base[0].at < row.patched[0].at < row.base[1].at < row.base[2].at
    assert len(row.base[0].dots) == 6
    low, high = row.said[0].bounds.split(" to ")
    assert 40 < float(low[1:-1]) < 49 < float(high[1:-1]) < 60
    rate = told.rates.rows[0]
    assert rate.bar is not None and rate.bar[0] < rate.middle < sum(rate.bar)
    assert not rate.said.apart


def test_too_few_runs_are_said_to_be() -> None:
    told = speed.speed(measuring(2, 1.5))
    assert told is not None and not told.apart
    assert told.sentence == (
        "2 passed runs a side are too few to tell a change of 8 numbers from chance: 6 would do "
        "(--repeats 6)."
    )
    metric = view.Metric(
        arch="a", case="c", name="n_us", base=(1.0, 2, 3, 4, 5, 6), patched=(7.0, 8, 9, 10, 11, 12)
    )
    assert metric.apart(8) and not replace(metric, base=(1.0,) * 5, patched=(7.0,) * 5).apart(8)


def test_no_change_is_said_to_be_none() -> None:
    told = speed.speed(measuring(6, 1.0))
    assert told is not None and not told.apart
    assert told.sentence == "No change of 8 numbers is further than chance would move one of them."


def test_nothing_measured_has_no_section() -> None:
    assert speed.speed(records.panicking()) is None
    assert 'id="speed"' not in html.page(records.panicking(), None)


def test_a_figure_has_lines_for_what_moved_most() -> None:
    def answer(of: Cell) -> Trial:
        told = records.trial(of)
        results = tuple(
            replace(
                result,
                metrics={
                    f"call{n}_p99_us": 100.0 + (n if of.side is Side.PATCHED else 0)
                    for n in range(60)
                },
            )
            for result in told.results
        )
        return replace(told, results=results)

    told = speed.speed(records.run(answer, answer, cases=records.CASES[1:2]))
    assert told is not None and told.latencies is not None
    assert told.latencies.more == 59 - len(told.latencies.rows) > 0
    assert told.latencies.rows[-1].call == "call59"
    assert len(told.rows) == 59


def test_runs_that_gave_one_number_bound_nothing() -> None:
    metric = view.Metric(arch="a", case="c", name="p50_us", base=(2.0, 2.0), patched=(3.0, 3.0))
    seen = speed._ratio(metric)
    assert seen is not None and seen.value == pytest.approx(1.5) and seen.low is None
    assert speed._ratio(replace(metric, base=(0.0, 2.0))) is None


def test_what_the_verdict_blames_is_coloured() -> None:
    record = measuring(2, 1.5)
    (blamed,) = [s for s in record.verdict.speeds if s.metric == "munmap_p50_us"][:1]
    verdict = replace(record.verdict, speeds=(replace(blamed, slower=True),))
    told = speed.speed(replace(record, verdict=verdict))
    assert told is not None and told.apart
    assert told.rows[0].metric.case == blamed.case and told.rows[0].said.apart
    assert not told.rows[1].said.apart


# --- the matrix --------------------------------------------------------------------------------


def test_matrix_has_suites_and_file_systems_by_architecture() -> None:
    record = records.run(
        records.well,
        records.failing(
            "faultstress/xfs/munmap",
            records.failed("faultstress/xfs/munmap", "wrong"),
            lambda of: of.arch == "arm64",
        ),
        archs=("x86_64", "arm64"),
    )
    grid = cases.grid(record)
    assert [(line.suite, line.part) for line in grid.lines] == [
        ("kernel builds", ""),
        ("kernel boots", ""),
        ("boot", ""),
        ("faultstress", "ext4"),
        ("faultstress", "xfs"),
        ("faultstress", "tmpfs"),
    ]
    well, broken = grid.lines[4].cells
    assert well is not None and well.words == (("same-pass", "2"),)
    assert broken is not None and broken.words == (("regressed", "1"), ("same-pass", "1"))
    assert broken.boxes[0].title.startswith("faultstress/xfs/munmap: regressed; base ")
    page = Page(html.page(record, None))
    assert f"#{broken.boxes[0].anchor}" in page.links and broken.boxes[0].anchor in page.ids


def test_matrix_says_what_does_not_build_or_boot() -> None:
    build = cases.grid(records.unbuildable()).lines[0].cells[0]
    assert build is not None and [box.state for box in build.boxes] == ["good", "bad"]
    assert build.words == (("bad", "fails patched"),)
    boot = cases.grid(records.panicking()).lines[1].cells[0]
    assert boot is not None and [box.state for box in boot.boxes] == ["good", "bad"]


def test_many_cases_that_pass_are_folded_and_have_no_box() -> None:
    many = tuple(f"xfstests/ext4-4k/generic/{n:03}" for n in range(80))
    record = records.run(
        records.well, records.failing(many[5], records.failed(many[5], "wrong")), cases=many
    )
    (group,) = cases.groups(record, NOWHERE)
    assert [case.verdict.name for case in group.cases] == [many[5]]
    assert len(group.folded) == 79
    cell = cases.grid(record).lines[2].cells[0]
    assert cell is not None and cell.hidden == 79
    assert [box.state for box in cell.boxes] == [Comparison.REGRESSED]
    page = Page(html.page(record, None))
    assert all(name in page.text for name in many)
    assert len(page.ids) == len(set(page.ids))


def test_parts_of_a_case_show_their_runs() -> None:
    name, parts = "kselftest/vm/madv", ("kselftest/vm/madv:first", "kselftest/vm/madv:second")

    def answer(of: Cell) -> Trial:
        # Only the first run of each side tells of the second part.
        told = parts if of.repeat == 0 else parts[:1]
        first, *rest = (records.passed(part, of) for part in told)
        if of.side is Side.PATCHED:
            first = records.failed(parts[0], "not ok")
        return records.trial(of, results=(records.passed(name, of), first, *rest))

    record = records.run(answer, answer, cases=(name, *parts), max_repeats=2)
    trials = tuple(
        replace(trial, cell=replace(trial.cell, cases=(name,))) for trial in record.trials
    )
    (group,) = cases.groups(replace(record, trials=trials), NOWHERE)
    shown = {
        case.verdict.name: [[run.state for run in runs] for runs in (case.base, case.patched)]
        for case in group.cases
    }
    assert shown[parts[0]] == [["passed"] * 2, ["failed"] * 2]
    assert shown[parts[1]] == [["passed", "missing"]] * 2


def test_what_earlier_bases_did_is_shown_beside_the_base() -> None:
    record = records.clean()
    past = Past(failed=3, decided=60, runs=5, versions=("6.1.190", "<6.1>"))
    seen = tuple(replace(case, past=past) for case in record.verdict.cases)
    page = html.page(replace(record, verdict=replace(record.verdict, cases=seen)), None)
    assert page.count("(failed 3 of 60 earlier)") == len(seen)
    assert "earlier bases failed in 3 of 60 (5 runs: 6.1.190, &lt;6.1&gt;)" in page
    assert "earlier" not in html.page(record, None)


# --- how sure ----------------------------------------------------------------------------------


def test_page_says_how_sure_it_is() -> None:
    assert view.sure(records.corrupting()) == (
        "Were both sides alike, chance would do this to a case in 1 of 252 tries (p = 0.004, "
        "Fisher's exact test on fresh runs)",
        "Of what passed, a failure that comes in fewer than 78% of runs may have been overlooked "
        "(2 of 2 passed; 95% confidence)",
    )
    (limit,) = view.sure(records.clean())
    assert limit.startswith("A failure that comes in fewer than 78% of runs")
    assert not view.reasons(records.clean())  # it is said once
    assert view.sure(records.unbuildable()) == ()


# --- splats ------------------------------------------------------------------------------------


def test_patches_that_a_splat_points_to_are_named() -> None:
    splat = symbolised(evil=False)

    def answer(of: Cell) -> Trial:
        shown: tuple[Splat, ...] = (splat,) if of.side is Side.PATCHED else ()
        return records.trial(of, boot_splats=shown)

    record = records.run(answer, answer, max_repeats=8)
    (row,) = view.splat_rows(record)
    assert row.blamed == (
        (3, "added mm/memory.c:4750"),
        (1, "changed filemap_fault()"),
    )
    assert "\n".join(text for text, _ in row.lines) == row.text
    touched = [(str(touch), text.strip()[:12]) for text, touch in row.lines if touch != "none"]
    assert ("line", "do_fault mm/") in touched and ("function", "BUG: KASAN: ") in touched
    page = html.page(record, None)
    assert f"patch 3 <b>{records.SUBJECTS[2]}</b> added mm/memory.c:4750" in page
    assert '<mark class="line"> do_fault mm/memory.c:4750 [inline]' in page


# --- the time line -----------------------------------------------------------------------------


def test_timeline_marks_how_machines_began_and_ended() -> None:
    ends = {
        MachineEnd.PANICKED: "crash",
        MachineEnd.HUNG_SILENT: "hang",
        MachineEnd.QEMU_DIED: "lost",
        MachineEnd.POWERED_OFF: "",
    }

    def answer(of: Cell) -> Trial:
        end = list(ends)[of.repeat] if of.side is Side.PATCHED else MachineEnd.POWERED_OFF
        return records.trial(of, end=end, restored=of.repeat > 0)

    record = records.run(answer, answer, repeats=4, max_repeats=4)
    told = timeline.timeline(record)
    assert told is not None
    assert {bar.trial.end: bar.mark for bar in told.bars} == ends
    assert told.ticks[0] == (0.0, "0") and 3 <= len(told.ticks) <= 7
    assert all(0 <= at <= 1 for at, _ in told.ticks)
    page = html.page(record, None)
    assert "it panicked" in page and "it hung or ran out of time" in page
    assert page.count('class="restored"') == 6 + 1  # and the legend's
    assert page.count('class="booting"') == 2


def test_a_machine_that_never_came_up_is_marked() -> None:
    def answer(of: Cell) -> Trial:
        return records.trial(of, boots=False)

    told = timeline.timeline(records.run(answer, answer))
    assert told is not None and {bar.mark for bar in told.bars} == {"lost"}


def test_states_of_runs_are_named_for_readers_without_colour() -> None:
    (group,) = cases.groups(records.corrupting(), NOWHERE)
    broken = group.cases[0]
    assert broken.shown == Comparison.REGRESSED
    assert {run.state for run in broken.patched} == {str(CaseState.FAILED)}
    assert broken.patched[0].title.startswith("patched #1: failed: page 17 of file 3")
