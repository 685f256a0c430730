"""control.toml, and the judge of a control: what counts as caught, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import control, selftest
from lab.control import Control
from lab.model import (
    Accelerator,
    CaseResult,
    CaseState,
    Cell,
    ControlResult,
    ExitCode,
    Grade,
    MachineEnd,
    SelftestRecord,
    Side,
    Splat,
    Trial,
    UserError,
)
from lab.suites import lkdtm

TOML = """
title = "a fault"
why = "it must be seen"
on = "base"
expect = ["lockdep-circular", "faultstress:corruption"]
match = "mmap_lock|wrong-file"
duration = "10s"
limit = "25s"

[settings]
"/sys/kernel/debug/x/delay_us" = 500
"""
CASE = "faultstress/ext4/munmap"
INVERSION = Splat(
    kind="lockdep-circular", title="possible circular locking: mmap_lock", first_line=9, last_line=9
)


def made(text: str = TOML) -> Control:
    return control.parse(text.encode(), name="a-fault", file="a-fault/control.toml")


def trial(
    *results: CaseResult,
    boot_splats: tuple[Splat, ...] = (),
    end: MachineEnd = MachineEnd.POWERED_OFF,
    boot_s: float | None = 5.0,
) -> Trial:
    cell = Cell(
        arch="x86_64",
        side=Side.PATCHED,
        profile="lockdep",
        suites=("faultstress",),
        cases=("boot/hello", CASE),
        kernel_key="k",
        image_sha256="i",
        repeat=0,
        seed=1,
        memory_bytes=1 << 30,
        cpus=2,
    )
    return Trial(
        id="t",
        cell=cell,
        end=end,
        accelerator=Accelerator(name="tcg", cpu="max", boot_s=5.0),
        started="2026-01-01T00:00:00+00:00",
        boot_s=boot_s,
        guest_s=7.0,
        wall_s=12.0,
        results=results,
        boot_splats=boot_splats,
        note="a note",
    )


def case(
    state: CaseState,
    *splats: Splat,
    name: str = CASE,
    message: str = "",
    duration_s: float = 10.0,
    **metrics: float,
) -> CaseResult:
    return CaseResult(
        name=name,
        state=state,
        duration_s=duration_s,
        message=message,
        metrics=metrics,
        splats=splats,
    )


def judged(*trials: Trial) -> control.Judged:
    return control.judge(made(), (CASE,), trials)


def test_a_description_is_read() -> None:
    one = made()
    assert (one.duration_s, one.limit_s, one.threads) == (10.0, 25.0, 4)
    assert one.settings == {"/sys/kernel/debug/x/delay_us": "500"}
    assert [each.text for each in one.expect] == ["lockdep-circular", "faultstress:corruption"]
    assert (one.expect[1].suite, one.expect[1].outcome) == ("faultstress", "corruption")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("why", "because", "unknown key because"),
        ("title", "titel", "did you mean title"),
        ('"lockdep-circular"', '"lockdep-circle"', "did you mean lockdep-circular"),
        ('"faultstress:corruption"', '"faultstress:kasan"', "no kind of splat and no outcome"),
        ('"faultstress:corruption"', '":hung"', "no kind of splat and no outcome"),
        ('on = "base"', 'on = ""', "on is empty"),
        ("mmap_lock|", "(mmap_lock|", "match:"),
        ('"25s"', '"soon"', "not a duration"),
        ('"25s"', '"5s"', "less than one case"),
        ("/sys/kernel/debug/x/delay_us", "/etc/passwd", "no file below /sys"),
        ("/sys/kernel/debug/x/delay_us", "/sys/../etc/passwd", "no file below /sys"),
        ('title = "a fault"', "title = 3", "title"),
        ('why = "it must be seen"\n', "", "why"),
        ("[settings]", "threads = 1\n[settings]", "threads"),
        ("expect = [", "expect = ", "control.toml"),
    ],
)
def test_what_is_wrong_in_a_description_is_named(old: str, new: str, says: str) -> None:
    text = TOML.replace(old, new)
    assert text != TOML
    with pytest.raises(UserError) as caught:
        made(text)
    told = f"{caught.value.message} {caught.value.hint}"
    assert says in told
    assert "a-fault/control.toml" in told


def test_a_splat_of_the_kind_in_the_case_is_caught() -> None:
    said = judged(trial(case(CaseState.FAILED, INVERSION)))
    assert (said.grade, said.detector, said.case) == (Grade.CAUGHT, "lockdep-circular", CASE)
    assert said.said == INVERSION.title
    assert said.within_s == 10.0


def test_a_crash_is_timed_by_its_machine() -> None:
    crashed = case(CaseState.CRASHED, INVERSION, duration_s=0.0)
    assert judged(trial(crashed, end=MachineEnd.PANICKED)).within_s == 7.0


def test_an_outcome_is_caught_by_its_own_word() -> None:
    wrong = case(CaseState.FAILED, message="wrong-file: read of file 1", corruptions=3)
    assert judged(trial(wrong)).detector == "faultstress:corruption"
    other = case(CaseState.FAILED, message="torn: read of file 1", corruptions=3)
    assert judged(trial(other)).grade is Grade.MISSED
    only_failed = case(CaseState.FAILED, message="wrong-file", corruptions=0)
    assert judged(trial(only_failed)).grade is Grade.MISSED


@pytest.mark.parametrize(
    "splat",
    [
        Splat(kind="warning", title="mmap_lock", first_line=1, last_line=1),
        Splat(kind="lockdep-circular", title="other locks", first_line=1, last_line=1),
    ],
)
def test_another_detector_or_another_bug_is_no_catch(splat: Splat) -> None:
    said = judged(trial(case(CaseState.FAILED, splat)))
    assert said.grade is Grade.MISSED
    assert splat.title in said.reason


def test_charged_to_another_case_or_to_none_is_no_catch() -> None:
    hello = case(CaseState.FAILED, INVERSION, name="boot/hello")
    passed = case(CaseState.PASSED)
    assert judged(trial(hello, passed)).grade is Grade.MISSED
    said = judged(trial(passed, boot_splats=(INVERSION,)))
    assert said.grade is Grade.MISSED
    assert "outside of the control's cases" in said.reason


def test_too_late_is_missed() -> None:
    quiet = trial(case(CaseState.PASSED))
    late = trial(case(CaseState.FAILED, INVERSION))
    assert judged(quiet, late).grade is Grade.CAUGHT
    said = judged(quiet, quiet, late)
    assert said.grade is Grade.MISSED
    assert "too late" in said.reason


@pytest.mark.parametrize(
    "trials",
    [
        (),
        (trial(boot_s=None, end=MachineEnd.HUNG_BOOT),),
        (trial(case(CaseState.SKIPPED)),),
        (trial(case(CaseState.MISSING)),),
        (trial(case(CaseState.UNCOVERED)),),
    ],
)
def test_what_did_not_run_is_inconclusive(trials: tuple[Trial, ...]) -> None:
    assert judged(*trials).grade is Grade.INCONCLUSIVE
    assert control.judge_clean(made(), (CASE,), trials).grade is Grade.INCONCLUSIVE


def test_a_clean_kernel_is_quiet_only_if_all_cases_pass_without_a_splat() -> None:
    def clean(*trials: Trial) -> Grade:
        return control.judge_clean(made(), ("boot/hello", CASE), trials).grade

    hello, passed = case(CaseState.PASSED, name="boot/hello"), case(CaseState.PASSED)
    assert clean(trial(hello, passed)) is Grade.QUIET
    assert clean(trial(hello), trial(passed)) is Grade.QUIET
    assert clean(trial(hello)) is Grade.INCONCLUSIVE
    assert clean(trial(hello, case(CaseState.FAILED, message="wrong"))) is Grade.NOISY
    assert clean(trial(hello, passed, boot_splats=(INVERSION,))) is Grade.NOISY
    assert clean(trial(hello, case(CaseState.HUNG))) is Grade.NOISY


def record(*grades: Grade) -> SelftestRecord:
    results = tuple(
        ControlResult(
            name=f"control-{number}",
            title="",
            on="base",
            profile="lockdep",
            arch="x86_64",
            expect=("bug",),
            grade=grade,
            reason="",
        )
        for number, grade in enumerate(grades)
    )
    return SelftestRecord(
        run="r",
        created="",
        finished="",
        lab_version="",
        command=(),
        digest="",
        archs=("x86_64",),
        seed=1,
        results=results,
        kernels=(),
        failures=(),
        trials=(),
        wall_s=0.0,
    )


@pytest.mark.parametrize(
    ("grades", "code"),
    [
        ((Grade.CAUGHT, Grade.CAUGHT), ExitCode.CLEAN),
        ((Grade.CAUGHT, Grade.MISSED, Grade.INCONCLUSIVE), ExitCode.REGRESSED),
        ((Grade.CAUGHT, Grade.NOISY), ExitCode.REGRESSED),
        ((Grade.CAUGHT, Grade.INCONCLUSIVE), ExitCode.INCONCLUSIVE),
        ((), ExitCode.INCONCLUSIVE),
    ],
)
def test_one_that_is_not_caught_fails_the_selftest(
    grades: tuple[Grade, ...], code: ExitCode
) -> None:
    assert selftest.exit_code(record(*grades)) is code


# --- the lab's own controls --------------------------------------------------------------------


def test_the_labs_own_controls_are_sound() -> None:
    controls = selftest.load(selftest.PATCHES / "controls")
    planted = [one for one in controls if one.patched]
    assert len(planted) >= 9
    assert {one.on for one in planted} == {"base", "srcu-vma"}
    assert all(one.why for one in controls)
    stock = [one for one in controls if not one.patched]
    assert len(stock) == sum(row.stock for row in lkdtm.CRASHES.values())
    for one in planted:
        mails = list((selftest.PATCHES / "controls" / one.name).glob("*.patch"))
        assert mails, f"{one.name} has no patch"


def test_unknown_names_and_series_are_errors(tmp_path: Path) -> None:
    controls = selftest.load(selftest.PATCHES / "controls")
    with pytest.raises(UserError, match="no control 'lkdtm-wurning'"):
        selftest.choose(controls, ("lkdtm-wurning",))
    folder = tmp_path / "controls" / "a-fault"
    folder.mkdir(parents=True)
    (folder / "control.toml").write_text(TOML.replace('on = "base"', 'on = "absent"'))
    with pytest.raises(UserError, match="no series"):
        selftest.load(tmp_path / "controls")
    (folder / "control.toml").write_text(TOML.replace("title", 'scenarios = ["x"]\ntitle', 1))
    with pytest.raises(UserError, match="no scenario 'x'"):
        selftest.load(tmp_path / "controls")
