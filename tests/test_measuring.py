"""The suites fio and stress-ng: what they ask for, and each way a case can end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState, MachineEnd, UserError
from lab.suites import fio, scratch, stressng
from lab.suites.fio import Fio
from lab.suites.protocol import PlannedCase, Suite, SuiteOptions, Told
from lab.suites.stressng import STRESSORS, StressNg

DATA = Path(__file__).parent / "data" / "measuring"
FIO = (DATA / "fio.json").read_bytes()
YAML = (DATA / "stress-ng.yaml").read_bytes()
SUITES: tuple[tuple[Suite, bytes], ...] = ((Fio(), FIO), (StressNg(), YAML))
BOTH = pytest.mark.parametrize(
    ("suite", "output"), SUITES, ids=lambda one: getattr(one, "name", "")
)


def exited(
    status: int, stdout: bytes = b"", stderr: bytes = b"", *, truncated: bool = False
) -> Exited:
    return Exited(status=status, stdout=stdout, stderr=stderr, duration_s=1.0, truncated=truncated)


@dataclass(slots=True)
class ScriptedGuest:
    """The measuring program answers as given, the rest of the case goes well unless said."""

    program: Exited | TimedOut | Down
    others: dict[str, Exited | Down] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Exited | TimedOut | Down:
        self.asked.append(tuple(argv))
        if argv[0] in self.others:
            return self.others[argv[0]]
        if argv[0] == "/bin/sh":
            return self.program
        return exited(1 if argv[0] == "mountpoint" else 0)


def first(suite: Suite, filesystem: str = "ext4") -> PlannedCase:
    return suite.plan(SuiteOptions(filesystems=(filesystem,)))[0]


def run(suite: Suite, guest: ScriptedGuest) -> CaseResult:
    told = asyncio.run(suite.run(guest, first(suite), 7))
    if isinstance(told, Told):
        assert bool(told.files) == (told.result.state is not CaseState.PASSED)
        return told.result
    assert isinstance(told, CaseResult)
    return told


# --- all that both have in common ----------------------------------------------------------------


@BOTH
def test_a_run_on_a_fresh_file_system_passes_with_numbers(suite: Suite, output: bytes) -> None:
    guest = ScriptedGuest(program=exited(0, output))
    result = run(suite, guest)
    assert result.state is CaseState.PASSED, result.message
    assert any(name.endswith("_per_s") and value > 0 for name, value in result.metrics.items())
    assert [words[0] for words in guest.asked] == [
        *("mountpoint", "grep", "mkdir", "mkfs.ext4", "mount", "/bin/sh", "umount"),
    ]
    assert "7" in " ".join(guest.asked[5])  # the seed


@BOTH
def test_a_failure_is_one_and_has_no_numbers(suite: Suite, output: bytes) -> None:
    for status in (1, 2, 137):
        result = run(suite, ScriptedGuest(program=exited(status, output, b"fail: it is broken\n")))
        assert result.state is CaseState.FAILED
        assert "it is broken" in result.message
        assert result.metrics == {}


@BOTH
def test_output_that_says_nothing_is_no_pass(suite: Suite, output: bytes) -> None:
    for said in (b"", b"fine\n", output[:40], b"\xff\xfe{"):
        result = run(suite, ScriptedGuest(program=exited(0, said, b"info: it ends\n")))
        assert result.state in (CaseState.FAILED, CaseState.UNCOVERED), said


@BOTH
def test_a_program_that_does_not_end(suite: Suite, output: bytes) -> None:
    late = TimedOut(stdout=output, stderr=b"", duration_s=9.0)
    assert run(suite, ScriptedGuest(program=late)).state is CaseState.TIMEOUT


@BOTH
def test_a_kernel_without_the_file_system_is_a_skip(suite: Suite, output: bytes) -> None:
    guest = ScriptedGuest(program=exited(0, output), others={"grep": exited(1)})
    result = run(suite, guest)
    assert result.state is CaseState.SKIPPED and "CONFIG_EXT4_FS" in result.message


@BOTH
def test_a_mount_that_stays_busy_is_a_failure(suite: Suite, output: bytes) -> None:
    busy = exited(32, b"", b"umount: target is busy\n")
    result = run(suite, ScriptedGuest(program=exited(0, output), others={"umount": busy}))
    assert result.state is CaseState.FAILED and "busy" in result.message


@BOTH
@pytest.mark.parametrize("step", ["grep", "mkfs.ext4", "mount", "umount", ""])
def test_a_machine_that_goes_away_is_said_so(suite: Suite, output: bytes, step: str) -> None:
    down = Down(end=MachineEnd.PANICKED, detail="gone")
    guest = ScriptedGuest(
        program=exited(0, output) if step else down, others={step: down} if step else {}
    )
    assert asyncio.run(suite.run(guest, first(suite), 7)) == down


@BOTH
def test_plans_are_by_file_system(suite: Suite, output: bytes) -> None:
    cases = suite.plan(SuiteOptions(filesystems=("xfs", "tmpfs")))
    assert {case.filesystem for case in cases} == {"xfs", "tmpfs"}
    assert all(case.what for case in cases)
    with pytest.raises(UserError, match="reiserfs"):
        suite.plan(SuiteOptions(filesystems=("reiserfs",)))


# --- fio -----------------------------------------------------------------------------------------


def test_numbers_of_fio() -> None:
    result = fio.judge("fio/a/b", exited(0, b"note: a line before\n" + FIO))
    assert result.state is CaseState.PASSED
    job = json.loads(FIO)["jobs"][0]
    direction = job["read"] if job["read"]["total_ios"] else job["write"]
    name = "read" if job["read"]["total_ios"] else "write"
    assert result.metrics[f"{name}_per_s"] == pytest.approx(direction["iops"])
    median_us = direction["clat_ns"]["percentile"]["50.000000"] / 1000
    assert result.metrics[f"{name}_p50_us"] == pytest.approx(median_us)


@pytest.mark.parametrize(
    ("change", "state", "told"),
    [
        ({"error": 84}, CaseState.FAILED, "error 84"),
        ({"read": {}, "write": {"total_ios": 0}}, CaseState.UNCOVERED, "did nothing"),
    ],
)
def test_fio_that_ends_well_and_says_otherwise(
    change: dict[str, object], state: CaseState, told: str
) -> None:
    output = json.loads(FIO)
    output["jobs"][0] |= change
    result = fio.judge("fio/a/b", exited(0, json.dumps(output).encode()))
    assert result.state is state and told in result.message


def test_output_of_fio_that_was_cut_is_no_pass() -> None:
    assert fio.judge("fio/a/b", exited(0, FIO, truncated=True)).state is CaseState.FAILED


@pytest.mark.parametrize("raw", [b"{}", b'{"jobs": []}', b'{"jobs": [[]]}', b"[" * 100_000])
def test_nothing_that_a_guest_says_breaks_the_reader(raw: bytes) -> None:
    assert fio.read(raw) is None
    assert fio.read(b'{"jobs":' + raw) is None


def test_a_job_file_is_whole_and_has_the_seed() -> None:
    for path in fio.JOBS.glob("*.fio"):
        text = fio.job_file(path.stem, "/mnt/x", 5.0, 42)
        assert "ioengine=mmap" in text and "randseed=42" in text and "directory=/mnt/x" in text
        assert f"\n[{path.stem}]\n" in text and text.index("[global]") == 0


# --- stress-ng -----------------------------------------------------------------------------------


def test_numbers_of_stress_ng() -> None:
    numbers = stressng.read(YAML)
    assert numbers["bogo-ops"] > 0
    found = stressng.metrics(numbers)
    assert found["operations"] == numbers["bogo-ops"]
    assert found["operations_per_s"] > 0 and found["page_fault_ns"] > 0
    assert found["minor_page_faults_per_s"] > 0
    assert all(name.replace("_", "").isalnum() for name in found)


@pytest.mark.parametrize(
    ("status", "state"),
    [(3, CaseState.SKIPPED), (4, CaseState.SKIPPED), (2, CaseState.FAILED), (7, CaseState.FAILED)],
)
def test_statuses_of_stress_ng(status: int, state: CaseState) -> None:
    log = b"stress-ng: info:  [9] setting\nstress-ng: fail:  [9] mmap: bad data\nlast line\n"
    result = stressng.judge("stress-ng/a/b", exited(status, YAML, log))
    assert result.state is state
    assert "mmap: bad data" in result.message


def test_only_the_metrics_are_read() -> None:
    said = b"system-info:\n  bogo-ops: 9\nmetrics:\n  - stressor: fault\n    bogo-ops: 0\n"
    assert stressng.read(said) == {"bogo-ops": 0.0}
    assert stressng.judge("a/b", exited(0, said)).state is CaseState.UNCOVERED


def test_stressors_of_page_faults_are_there() -> None:
    assert {"fault", "mmap", "page-in", "userfaultfd"} <= set(STRESSORS)
    assert scratch.FILESYSTEMS.keys() >= {"ext4", "xfs", "tmpfs"}
