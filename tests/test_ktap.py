"""KTAP and its dialects: parts, skips, expected failures, plans that are not kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.model import CaseState
from lab.suites import ktap

P, F, S, M = CaseState.PASSED, CaseState.FAILED, CaseState.SKIPPED, CaseState.MISSING
HEAD = "TAP version 13\n1..1\n# selftests: toys: spin\n"
PASS = "ok 1 selftests: toys: spin\n"
FAIL = "not ok 1 selftests: toys: spin # exit=1\n"


def inside(*lines: str) -> str:
    return "".join(f"# {line}\n" for line in lines)


def states(report: ktap.Report) -> dict[str, CaseState]:
    return {part.name: part.state for part in report.parts}


def test_a_pass_with_parts() -> None:
    text = HEAD + inside("TAP version 13", "1..2", "# a remark", "ok 1 left", "ok 2 - right") + PASS
    report = ktap.read(text, "spin")
    assert states(report) == {"left": P, "right": P}
    assert ktap.judge(report) == (P, "")


def test_skips_and_expected_failures_are_no_passes_and_no_news() -> None:
    text = HEAD + inside(
        "1..5",
        "ok 1 big # SKIP needs 4 CPUs",
        "not ok 2 odd # TODO not written yet",
        "ok 3 sad # XFAIL broken since ever",
        "not ok 4 sorry # XFAIL",
        "ok 5 done # TODO remove the mark",
    )
    report = ktap.read(text + PASS, "spin")
    assert states(report) == {"big": S, "odd": S, "sad": S, "sorry": S, "done": P}
    assert report.parts[0].message == "needs 4 CPUs"
    assert "not written yet" in report.parts[1].message


def test_a_failing_part_fails_a_test_that_ends_well() -> None:
    text = HEAD + inside("1..2", "ok 1 a", "not ok 2 b") + PASS
    state, message = ktap.judge(ktap.read(text, "spin"))
    assert state is F and "1 of 2 parts fail: b" in message


def test_a_plan_that_is_not_kept_is_missing() -> None:
    state, message = ktap.judge(ktap.read(HEAD + inside("1..3", "ok 1 a") + PASS, "spin"))
    assert state is M and "3 parts were planned, 1 reported" in message


def test_nested_results_carry_the_name_of_what_they_belong_to() -> None:
    text = HEAD + inside("1..2", "    1..2", "    ok 1 in", "    not ok 2 out", "not ok 1 door")
    report = ktap.read(text + inside("ok 2 wall") + FAIL, "spin")
    assert states(report) == {"door/in": P, "door/out": F, "door": F, "wall": P}
    assert report.planned == report.seen == 2


@pytest.mark.parametrize(
    ("end", "state", "message"),
    [
        ("ok 1 selftests: toys: spin # SKIP\n", S, "skips itself"),
        ("ok 1 selftests: toys: spin # SKIP no disk\n", S, "no disk"),
        ("not ok 1 selftests: toys: spin # TIMEOUT 45 seconds\n", CaseState.TIMEOUT, "45"),
        (FAIL, F, "exit=1"),
        ("not ok 1 selftests: toys: spin\n", F, "the test failed"),
        ("", M, "nothing was heard of its end"),
        ("ok 1 selftests: toys: other\n", M, "nothing was heard of its end"),
    ],
)
def test_the_last_word_on_a_test(end: str, state: CaseState, message: str) -> None:
    got = ktap.judge(ktap.read(HEAD + end, "spin"))
    assert got[0] is state and message in got[1]


def test_a_skip_without_a_reason_says_what_the_test_said_last() -> None:
    text = HEAD + inside("no terminal here") + "ok 1 selftests: toys: spin # SKIP\n"
    assert ktap.judge(ktap.read(text, "spin")) == (S, "no terminal here")
    text = HEAD + inside("TAP version 13", "1..0 # SKIP no soft-dirty bits")
    text += "ok 1 selftests: toys: spin # SKIP\n"
    assert ktap.judge(ktap.read(text, "spin")) == (S, "no soft-dirty bits")


def test_a_failure_says_what_the_test_said_last() -> None:
    text = HEAD + inside("No THP is allocated") + FAIL
    assert ktap.judge(ktap.read(text, "spin")) == (F, "exit=1: No THP is allocated")
    text = HEAD + inside("1..1", "ok 1 a", "# Totals: pass:1 fail:0") + FAIL
    assert ktap.judge(ktap.read(text, "spin")) == (F, "exit=1")


def test_giving_up_is_no_pass() -> None:
    text = HEAD + inside("1..1", "ok 1 a", "Bail out! the disk is gone") + PASS
    assert ktap.judge(ktap.read(text, "spin")) == (F, "it gave up: the disk is gone")


def test_equal_names_are_told_apart() -> None:
    text = HEAD + inside("1..2", "ok 1 same", "not ok 2 same") + FAIL
    assert states(ktap.read(text, "spin")) == {"same": P, "same #2": F}


def test_the_script_of_vm() -> None:
    text = HEAD + inside(
        "-----------------------",
        "running ./hugepage-mmap",
        "-----------------------",
        "[PASS]",
        "running ./populate",
        "------------------",
        "TAP version 13",
        "1..2",
        "ok 1 read",
        "not ok 2 write",
        "[FAIL]",
        "running ./keys_32",
        "-----------------",
        "running PKEY tests for an unsupported CPU",
        "[SKIP]",
        "running ./short",
        "---------------",
        "1..3",
        "ok 1 a",
        "[PASS]",
        "running ./last -x",
        "-----------------",
    )
    report = ktap.read(text + FAIL, "spin")
    assert states(report) == {
        "./hugepage-mmap": P,
        "./populate": F,
        "./populate/read": P,
        "./populate/write": F,
        "./keys_32": S,
        "./short": M,
        "./short/a": P,
        "./last -x": M,
    }


def test_what_looks_a_little_like_a_result_is_none() -> None:
    text = HEAD + inside("okay then", "ok, fine", "notok 1 x", "1..x") + PASS
    report = ktap.read(text, "spin")
    assert report.parts == () and report.planned is None


@given(st.text(alphabet="ok not12.#\n []SKIPrunigTAP:/\x1b\0"))
def test_nothing_that_is_printed_breaks_the_reader(text: str) -> None:
    report = ktap.read(HEAD + inside(*text.split("\n")) + PASS, "spin")
    for part in report.parts:
        assert part.name.isprintable() and part.message.isprintable()
    ktap.judge(report)
