"""`--each-patch`: what a boot says of a prefix, and what the prefixes say of the series."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lab import prefixes, verdict
from lab.model import (
    CaseResult,
    CaseState,
    Diagnostic,
    MachineEnd,
    Outcome,
    Patch,
    PrefixResult,
    PrefixState,
    Side,
    Splat,
    Trial,
    Verdict,
)
from lab.prefixes import _Look
from lab.report import html, terminal
from lab.suites.boot import CASE
from tests import records
from tests.test_control import trial

HELLO = CaseResult(name=CASE, state=CaseState.PASSED)
WARNED = Splat(kind="warning", title="WARNING in x", first_line=1, last_line=1, fingerprint="f1")


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (trial(HELLO), ""),
        (trial(boot_s=None, end=MachineEnd.PANICKED), "boot"),
        (trial(HELLO, boot_splats=(WARNED,)), "splat"),
        (trial(replace(HELLO, state=CaseState.FAILED, splats=(WARNED,))), "splat"),
        (trial(replace(HELLO, state=CaseState.FAILED, message="no")), "case"),
        (trial(replace(HELLO, state=CaseState.MISSING)), "lost"),
        (trial(), "lost"),
    ],
)
def test_what_a_boot_says(given: Trial, kind: str) -> None:
    assert prefixes.problem(given, frozenset())[0] == kind


def test_what_the_base_says_too_is_no_patchs_fault() -> None:
    both = trial(replace(HELLO, state=CaseState.FAILED, splats=(WARNED,)), boot_splats=(WARNED,))
    assert prefixes.problem(both, frozenset({"f1"})) == ("", "")


BOOT, LOST, FINE = ("boot", "it does not boot"), ("lost", "no case ran"), ("", "")


@pytest.mark.parametrize(
    ("problems", "state"),
    [
        ((FINE,), PrefixState.PASSED),
        ((LOST, FINE), PrefixState.PASSED),
        ((BOOT, FINE), PrefixState.UNKNOWN),
        ((BOOT, BOOT, BOOT), PrefixState.BROKEN),
        ((BOOT, LOST, BOOT), PrefixState.UNKNOWN),
        ((LOST, LOST, LOST), PrefixState.UNKNOWN),
    ],
)
def test_three_in_a_row_break_a_patch_and_what_got_lost_says_nothing(
    problems: tuple[tuple[str, str], ...], state: PrefixState
) -> None:
    assert prefixes.conclude(problems)[0] is state


def look(state: PrefixState, broken: str = "", reason: str = "") -> _Look:
    return _Look(state=state, broken=broken, reason=reason, boot_s=4.0, log="x", splats=frozenset())


WELL = look(PrefixState.PASSED)


def result(seen: _Look, below: _Look = WELL, *fresh: Diagnostic) -> PrefixResult:
    patch = Patch(name="0001-x.patch", subject="x", author="a", mail="", sha256="", changes=())
    return prefixes._result(1, patch, records.kernel(Side.PATCHED), seen, below, fresh)


def test_a_new_warning_breaks_a_prefix_that_boots() -> None:
    warning = Diagnostic(severity="warning", file="mm/a.c", line=3, message="unused", text="")
    one = result(WELL, WELL, warning)
    assert (one.state, one.broken) == (PrefixState.BROKEN, "warning")
    assert "mm/a.c:3" in one.reason
    dead = look(PrefixState.BROKEN, "boot", "it does not boot: panicked")
    assert result(dead, WELL, warning).broken == "boot"


def test_where_the_base_does_not_boot_no_patch_is_to_blame() -> None:
    dead = look(PrefixState.BROKEN, "boot", "it does not boot: hung-boot")
    one = result(dead, dead)
    assert (one.state, one.broken) == (PrefixState.UNKNOWN, "")


# --- the verdict -------------------------------------------------------------------------------


def prefix(number: int, state: PrefixState, broken: str = "", reason: str = "") -> PrefixResult:
    return PrefixResult(
        number=number,
        patch=f"000{number}-x.patch",
        subject=f"mm: part {number} <b>",
        arch="x86_64",
        state=state,
        build_s=12.0,
        compiled=7,
        boot_s=None if broken == "build" else 4.0,
        broken=broken,
        reason=reason,
    )


GOOD = prefix(1, PrefixState.PASSED)
BAD = prefix(2, PrefixState.BROKEN, "build", "it does not build: mm/a.c:1: oh")
MENDED = prefix(3, PrefixState.PASSED)


def judged(*given: PrefixResult) -> Verdict:
    record = records.clean()
    told = record.manifest
    return verdict.judge(
        verdict.JudgeInput(
            title=told.series_title,
            archs=told.archs,
            cases=told.cases,
            profile=told.profile,
            trials=record.trials,
            kernels=record.kernels,
            failures=(),
            repeats=told.repeats,
            max_repeats=told.max_repeats,
            prefixes=given,
        )
    )


def test_a_prefix_that_is_broken_makes_the_series_regressed_though_it_is_mended_later() -> None:
    assert judged(GOOD, MENDED).outcome is Outcome.CLEAN
    said = judged(GOOD, BAD, MENDED)
    assert said.outcome is Outcome.REGRESSED
    (finding,) = said.findings
    assert (finding.kind, finding.patch) == ("patch", "0002-x.patch")
    assert "patch 2" in said.sentence and "mm/a.c:1" in said.sentence


def test_only_the_first_broken_patch_is_a_finding() -> None:
    said = judged(GOOD, BAD, prefix(3, PrefixState.BROKEN, "build", "again"))
    assert [finding.patch for finding in said.findings] == ["0002-x.patch"]
    assert any("again" in reason for reason in said.reasons)


def test_an_unknown_prefix_is_never_green() -> None:
    said = judged(GOOD, prefix(2, PrefixState.UNKNOWN, reason="1 of 2 boots: lost"))
    assert said.outcome is Outcome.INCONCLUSIVE
    assert any("1 of 2 boots" in reason for reason in said.reasons)


def test_the_table_is_shown_and_escaped(tmp_path: Path) -> None:
    record = replace(records.clean(), prefixes=(GOOD, BAD))
    stream = StringIO()
    terminal.summary(record, tmp_path, Console(file=stream, width=100))
    text = stream.getvalue()
    assert "After each patch" in text and "breaks: build" in text
    page = html.page(record, tmp_path)
    assert "After each patch" in page and "mm: part 2 &lt;b&gt;" in page
    assert "part 2 <b>" not in page
