"""Runs that are kept: the list, one run taken apart, two compared, a case over time."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lab import cli, model
from lab.archive import compare, drill, listing, trend
from lab.archive.compare import Change
from lab.archive.drill import CaseView, RunView, SplatView, TrialView
from lab.archive.listing import RunState
from lab.model import (
    CaseState,
    Cell,
    Comparison,
    ExitCode,
    MachineEnd,
    Outcome,
    Past,
    RunRecord,
    Side,
    Trial,
    UserError,
)
from lab.report import archive
from lab.store import locked
from lab.store import locked as store_locked
from tests import records
from tests.test_ledger import store

UAF_CASE = "faultstress/ext4/munmap"
EVIL = "oops <script>\x1b[31m\x07 [bold]"


def begun(runs: Path, name: str, trials: tuple[Trial, ...] = (), **changes: object) -> Path:
    """A run that has not finished."""
    folder = runs / name
    (folder / "trials").mkdir(parents=True)
    told = records.manifest(run=name, **changes)
    (folder / "manifest.json").write_bytes(model.encode(told))
    for trial in trials:
        (folder / "trials" / trial.id).mkdir()
        (folder / "trials" / trial.id / "trial.json").write_bytes(model.encode(trial))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    store(folder, records.clean(), run="a-clean", created="2026-03-01T00:00:00+00:00")
    store(folder, records.flaky(), run="b-flaky", created="2026-03-02T00:00:00+00:00")
    store(folder, records.use_after_free(), run="c-uaf", created="2026-03-03T00:00:00+00:00")
    return folder


def printed(render: Callable[[Console], None], width: int = 100) -> str:
    out = io.StringIO()
    render(Console(file=out, width=width))
    return out.getvalue()


def lab_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    """What the command says with --json, and that it says nothing else."""
    status = cli.entry(["-q", *map(str, words), "--json"])
    said = capsys.readouterr()
    assert said.err == ""
    return status, json.loads(said.out)


# --- lab runs ----------------------------------------------------------------------------------


def test_runs_that_finished_run_and_were_cut_off(runs: Path) -> None:
    one = records.trial(records.cell(Side.BASE, 0))
    begun(runs, "d-cut", (one,), created="2026-03-04T00:00:00+00:00")
    live = begun(runs, "e-live", created="2026-03-05T00:00:00+00:00")
    with locked(live / "lock"):
        found = listing.listed(runs)
    assert [(entry.name, entry.state) for entry in found] == [
        ("e-live", RunState.RUNNING),
        ("d-cut", RunState.CUT_OFF),
        ("c-uaf", RunState.FINISHED),
        ("b-flaky", RunState.FINISHED),
        ("a-clean", RunState.FINISHED),
    ]
    assert found[1].note == "1 trials are whole"
    assert found[1].title == "demo"
    assert listing.listed(runs, limit=2)[1].name == "d-cut"


def test_a_run_whose_folder_has_gone_and_one_that_cannot_be_read(runs: Path) -> None:
    listing.listed(runs)
    (runs / "b-flaky" / "record.json").unlink()
    (runs / "a-clean" / "record.json").write_text("{}")
    (runs / "a-clean" / "manifest.json").write_bytes(model.encode(records.manifest()))
    found = {entry.name: entry for entry in listing.listed(runs)}
    assert found["b-flaky"].state is RunState.GONE
    assert found["a-clean"].state is RunState.UNREADABLE
    assert "RunRecord" in found["a-clean"].note
    text = printed(lambda console: archive.listing(tuple(found.values()), console))
    assert "a-clean  unreadable" in text
    assert "b-flaky  gone" in text


def test_the_list_says_how_each_run_ended(runs: Path) -> None:
    text = printed(lambda console: archive.listing(listing.listed(runs), console))
    assert text.splitlines()[0].startswith("c-uaf  regressed  6.1.192  x86_64")
    assert records.UAF.title in text
    assert "no run yet" in printed(lambda console: archive.listing((), console))


# --- lab show ----------------------------------------------------------------------------------


def test_a_run_is_shown_with_every_machine_and_where_its_console_is(runs: Path) -> None:
    found = drill.show(runs / "c-uaf", None)
    assert isinstance(found, RunView)
    record = listing.read_record(runs / "c-uaf")
    assert found.outcome is Outcome.REGRESSED
    assert [line.id for line in found.trials] == [trial.id for trial in record.trials]
    line = found.trials[1]
    assert line.side is Side.PATCHED
    assert line.states == {CaseState.PASSED: 8, CaseState.FAILED: 1}
    assert line.splats == 1
    assert line.console == runs / "c-uaf" / "trials" / line.id / "console.log"
    text = printed(lambda console: archive.show(found, console))
    assert f"regressed  {UAF_CASE}" in text
    assert records.UAF.fingerprint in text


def test_a_run_that_has_not_finished_is_shown_as_far_as_it_got(tmp_path: Path) -> None:
    one = records.trial(records.cell(Side.BASE, 0))
    folder = begun(tmp_path, "cut", (one,))
    found = drill.show(folder, None)
    assert isinstance(found, RunView)
    assert found.outcome is None
    assert [line.id for line in found.trials] == [one.id]
    assert "nothing has been judged" in printed(lambda console: archive.show(found, console))


def test_a_case_is_shown_answer_by_answer(runs: Path) -> None:
    found = drill.show(runs / "c-uaf", UAF_CASE)
    assert isinstance(found, CaseView)
    (verdict,) = found.verdicts
    assert verdict.comparison is Comparison.REGRESSED
    assert len(found.answers) == verdict.base.decided + verdict.patched.decided
    bad = [one for one in found.answers if one.state is CaseState.FAILED]
    assert {one.side for one in bad} == {Side.PATCHED}
    assert bad[0].splats == (records.UAF.title,)
    assert bad[0].log is None, "it is not there"
    text = printed(lambda console: archive.show(found, console), width=80)
    assert f"splat: {records.UAF.title}" in text
    assert str(bad[-1].console) in text.splitlines()[-1]


def test_a_case_that_passes_here_says_that_earlier_bases_failed(tmp_path: Path) -> None:
    record = records.clean()
    past = Past(failed=3, decided=20, runs=4, versions=("6.1.190",))
    cases = tuple(replace(one, past=past) for one in record.verdict.cases)
    store(tmp_path, replace(record, verdict=replace(record.verdict, cases=cases)), run="a")
    found = drill.show(tmp_path / "a", "boot/hello")
    text = printed(lambda console: archive.show(found, console))
    assert "earlier bases failed in 3 of 20 (4 runs: 6.1.190)" in text


def test_what_a_lost_machine_never_told_is_missing(tmp_path: Path) -> None:
    def dies(of: Cell) -> Trial:
        return records.trial(of, results=(), end=MachineEnd.QEMU_DIED)

    store(tmp_path, records.run(records.well, dies), run="lost")
    found = drill.show(tmp_path / "lost", "boot/hello")
    assert isinstance(found, CaseView)
    lost = [one for one in found.answers if one.side is Side.PATCHED]
    assert {one.state for one in lost} == {CaseState.MISSING}
    assert lost[0].message == "the machine ended before: qemu-died"


def test_a_trial_is_found_by_its_beginning(runs: Path) -> None:
    folder = runs / "c-uaf"
    whole = listing.read_record(folder).trials[1].id
    here = folder / "trials" / whole
    here.mkdir(parents=True)
    (here / "qemu.log").touch()
    found = drill.show(folder, whole[:-4])
    assert isinstance(found, TrialView)
    assert found.trial.id == whole
    assert found.qemu_log == here / "qemu.log"
    assert found.dump is None
    text = printed(lambda console: archive.show(found, console))
    assert f"{here / 'console.log'}:{records.UAF.first_line}" in text
    (row,) = (line for line in text.splitlines() if UAF_CASE in line)
    assert row.split()[0] == "failed"
    with pytest.raises(UserError, match="fits 14 trials") as caught:
        drill.show(folder, "x86_64")
    assert "x86_64-base-01" in caught.value.hint


def test_a_splat_is_shown_by_its_fingerprint(runs: Path) -> None:
    found = drill.show(runs / "c-uaf", records.UAF.fingerprint)
    assert isinstance(found, SplatView)
    assert len(found.seen) == 7
    assert {case for _, case, _ in found.seen} == {UAF_CASE}
    text = printed(lambda console: archive.show(found, console))
    assert "Freed by task 415:" in text
    assert "in 7 of 7 runs with the series, 0 of 7 without" in text


def test_what_is_near_is_named(runs: Path) -> None:
    with pytest.raises(UserError, match="no case, trial or splat munmap") as caught:
        drill.show(runs / "c-uaf", "munmap")
    assert UAF_CASE in caught.value.hint


def test_a_run_is_found_by_its_beginning_or_its_folder(runs: Path) -> None:
    begun(runs, "c-other")
    for name in ("a-clean", "b-flaky", "c-uaf"):
        (runs / name / "manifest.json").write_bytes(model.encode(records.manifest(run=name)))
    assert listing.find(runs, "b").name == "b-flaky"
    assert listing.find(runs, str(runs / "c-other")).name == "c-other"
    assert listing.find(runs, "latest").name == "c-uaf", "the newest that has begun"
    assert listing.find(runs, "latest", finished=True) == listing.find(runs, None, finished=True)
    with pytest.raises(UserError, match="c- fits 2 runs"):
        listing.find(runs, "c-")
    with pytest.raises(UserError, match="no run x"):
        listing.find(runs, "x")
    with pytest.raises(UserError, match="c-other was cut off"):
        listing.read_record(runs / "c-other")
    with pytest.raises(UserError, match="c-other was cut off"):
        listing.find(runs, "c-o", finished=True)
    assert listing.find(runs, "c-", finished=True).name == "c-uaf", "the one that has an answer"
    with (
        store_locked(runs / "c-other" / "lock"),
        pytest.raises(UserError, match="still running"),
    ):
        listing.find(runs, "c-other", finished=True)


def test_what_a_guest_wrote_does_not_steer_the_terminal(tmp_path: Path) -> None:
    evil = replace(records.UAF, title=EVIL, text=f"{EVIL}\n\x1b]0;x\x07")
    result = records.failed(UAF_CASE, EVIL, splats=(evil,))
    record = records.run(records.well, records.failing(UAF_CASE, result))
    store(tmp_path, record, run="evil")
    trial = record.trials[1].id
    for what in (None, UAF_CASE, trial, evil.fingerprint):
        found = drill.show(tmp_path / "evil", what)
        text = printed(lambda console, found=found: archive.show(found, console))  # type: ignore[misc]
        assert "\x1b" not in text and "\x07" not in text
        assert "[bold]" in text
    trends = trend.history(tmp_path, evil.fingerprint)
    text = printed(lambda console: archive.trends(trends, console))
    assert "\x1b" not in text and "[bold]" in text


# --- lab history -------------------------------------------------------------------------------


def test_a_history_stands_apart_by_ground_and_base(runs: Path) -> None:
    newer = replace(records.manifest().source, version="6.1.200")
    kernels = tuple(replace(records.kernel(side), key=f"new-{side}") for side in Side)

    def answer(of: Cell) -> Trial:
        done = records.trial(replace(of, kernel_key=f"new-{of.side}"))
        return replace(done, accelerator=records.KVM) if of.repeat else done

    store(
        runs,
        records.run(answer, answer, kernels=kernels, source=newer),
        run="d-newer",
        created="2026-03-04T00:00:00+00:00",
    )
    kvm, tcg = trend.history(runs, "faultstress/xfs/truncate")
    assert (kvm.ground.accelerator, tcg.ground.accelerator) == ("kvm", "tcg")
    assert [entry.run for entry in kvm.entries] == ["d-newer"]
    assert [entry.run for entry in tcg.entries] == ["d-newer", "c-uaf", "b-flaky", "a-clean"]
    newest, older = tcg.bases
    assert (newest.version, newest.failed, newest.decided, newest.runs) == ("6.1.200", 0, 1, 1)
    flaky = listing.read_record(runs / "b-flaky").verdict
    (seen,) = (case for case in flaky.cases if case.name == tcg.name)
    assert (older.version, older.failed, older.runs) == ("6.1.192", seen.base.failed, 3)
    assert older.failed > 0
    assert 0 < older.at_most < 1
    text = printed(lambda console: archive.trends((kvm, tcg), console))
    assert f"fails in {older.failed} of {older.decided} in 3 runs" in text


def test_a_pattern_the_boot_and_a_splat_have_histories(runs: Path) -> None:
    names = [one.name for one in trend.history(runs, "faultstress/tmpfs/*")]
    assert names == ["faultstress/tmpfs/truncate"]
    (boot,) = trend.history(runs, "boot", limit=1)
    assert [entry.run for entry in boot.entries] == ["c-uaf"]
    (splat,) = trend.history(runs, records.UAF.fingerprint)
    assert splat.title == records.UAF.title
    assert [(entry.base.failed, entry.patched.failed) for entry in splat.entries] == [(0, 7)]
    text = printed(lambda console: archive.trends((splat,), console))
    assert "seen in 7 of 7" in text


def test_a_case_that_never_ran_names_those_that_did(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run has run trunc") as caught:
        trend.history(runs, "trunc")
    assert "faultstress/ext4/truncate" in caught.value.hint
    with pytest.raises(UserError, match="with arm64"):
        trend.history(runs, "boot", arch="arm64")
    with pytest.raises(UserError, match="has run a case"):
        trend.history(tmp_path / "none", "boot")


# --- lab compare -------------------------------------------------------------------------------


def test_a_run_does_not_differ_from_itself() -> None:
    for make in records.STORIES.values():
        record = make()
        found = compare.compare(record, record)
        changes = {one.change for one in found.differences}
        assert changes <= {Change.UNKNOWN}, "what nobody knows is not the same"
        assert found.conditions == ()
        assert found.findings_new == found.findings_gone == ()
        assert found.exit_code != ExitCode.REGRESSED


def test_what_got_worse_is_told_first_and_is_exit_1() -> None:
    before = records.run(records.well, records.well, repeats=7)
    found = compare.compare(before, records.corrupting())
    (worse,) = (one for one in found.differences if one.change is Change.WORSE)
    assert (worse.name, worse.side) == ("faultstress/ext4/truncate", Side.PATCHED)
    assert worse.p_value is not None and worse.p_value < 0.01
    assert [finding.title for finding in found.findings_new] == ["faultstress/ext4/truncate"]
    assert found.exit_code is ExitCode.REGRESSED
    assert [one.what for one in found.conditions] == ["repeats"]
    text = printed(lambda console: archive.comparison(found, console))
    (row,) = (line for line in text.splitlines() if line.strip().startswith("worse"))
    assert "7 of 7 pass" in row and "7 of 7 fail" in row
    back = compare.compare(records.corrupting(), before)
    assert Change.BETTER in {one.change for one in back.differences}
    assert back.exit_code is ExitCode.CLEAN
    assert len(back.findings_gone) == 1


def test_few_runs_prove_nothing() -> None:
    first = records.clean()
    case = "faultstress/ext4/read"
    result = records.failed(case, "no")
    both = records.failing(case, result)
    found = compare.compare(first, records.run(both, both))
    changes = {(one.name, one.side): one.change for one in found.differences}
    assert changes == {(case, side): Change.PERHAPS_WORSE for side in Side}
    assert found.exit_code is ExitCode.CLEAN


def test_a_splat_of_one_run_only_is_seen_in_none_of_the_others_repeats() -> None:
    before = records.run(records.well, records.well, repeats=7)
    found = compare.compare(before, records.use_after_free())
    (splat,) = (one for one in found.differences if one.kind == "splat")
    assert splat.title == records.UAF.title
    assert (splat.first.failed, splat.first.decided) == (0, 7)
    assert splat.second.failed == 7
    assert splat.change is Change.WORSE


def test_grounds_are_never_compared() -> None:
    def under_kvm(of: Cell) -> Trial:
        return replace(
            records.failing("boot/hello", records.failed("boot/hello", "no"))(of),
            accelerator=records.KVM,
        )

    found = compare.compare(records.clean(), records.run(under_kvm, under_kvm))
    assert found.differences == ()
    assert found.same == 0
    assert len(found.not_compared) == 2
    assert found.exit_code is ExitCode.INCONCLUSIVE
    text = printed(lambda console: archive.comparison(found, console))
    assert "accelerator x86_64: tcg -> kvm" in text
    assert "not compared: x86_64 lockdep kvm" in text


def test_an_answer_that_is_missing_is_not_green() -> None:
    found = compare.compare(records.clean(), records.uncovered())
    assert Change.UNKNOWN in {one.change for one in found.differences}
    assert found.exit_code is ExitCode.INCONCLUSIVE


def test_two_runs_of_the_same_hardly_ever_differ() -> None:
    """All questions share one level: 60 flaky cases, and chance does not find one that is worse."""
    names = tuple(f"suite/{number}" for number in range(60))
    false = 0
    for seed in range(40):
        dice = random.Random(seed)

        def throw(of: Cell, dice: random.Random = dice) -> Trial:
            return records.trial(
                of,
                results=tuple(
                    records.failed(name, "flaky")
                    if dice.random() < 0.3
                    else records.passed(name, of)
                    for name in of.cases
                ),
            )

        runs = [_twelve(throw, names) for _ in range(2)]
        found = compare.compare(*runs)
        false += any(one.change in (Change.WORSE, Change.BETTER) for one in found.differences)
    assert false <= 2


def _twelve(answer: records.Answer, names: tuple[str, ...]) -> RunRecord:
    record = records.clean()
    cells = [records.cell(side, repeat, cases=names) for repeat in range(12) for side in Side]
    return replace(record, trials=tuple(answer(of) for of in cells))


# --- the commands ------------------------------------------------------------------------------


def test_every_read_command_speaks_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a-clean", "b-flaky", "c-uaf"):
        (runs / name / "manifest.json").write_bytes(model.encode(records.manifest(run=name)))
    status, found = lab_json(capsys, "--runs", runs, "runs", "-n", "1")
    assert (status, found[0]["name"], found[0]["row"]["outcome"]) == (0, "c-uaf", "regressed")
    status, found = lab_json(capsys, "--runs", runs, "show", "c-uaf", UAF_CASE)
    assert status == 0
    assert found["answers"][1]["state"] == "failed"
    status, found = lab_json(capsys, "--runs", runs, "compare", "a-clean", "c-uaf")
    assert status == ExitCode.REGRESSED
    assert found["findings_new"][0]["title"] == records.UAF.title
    status, found = lab_json(capsys, "--runs", runs, "history", "faultstress/xfs/truncate")
    assert status == 0
    assert found[0]["ground"]["accelerator"] == "tcg"
    assert [entry["run"] for entry in found[0]["entries"]] == ["c-uaf", "b-flaky", "a-clean"]
