"""What KCIDB is sent: its own schema takes it, and it says what the run said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kcidb_io.schema import LATEST, V5_3

from lab import cli
from lab.model import (
    CaseState,
    Cell,
    ExitCode,
    LabFault,
    MachineEnd,
    RunRecord,
    Trial,
    UserError,
)
from lab.report import kcidb
from lab.report.kcidb import Submitter
from tests import records
from tests.test_ledger import store

ME = Submitter(origin="my_lab")


def told(record: RunRecord, submitter: Submitter = ME) -> Any:
    return json.loads(kcidb.report(record, submitter))


@pytest.mark.parametrize("story", records.STORIES)
def test_the_schema_takes_it_and_every_reference_is_there(story: str) -> None:
    found = told(records.STORIES[story](), Submitter(origin="my_lab", url="https://x.org/runs/1/"))
    V5_3.validate(found)
    LATEST.upgrade(found)
    ids = {kind: [one["id"] for one in found.get(kind, [])] for kind in found if kind != "version"}
    for kind, names in ids.items():
        assert len(names) == len(set(names)), kind
    assert {one["checkout_id"] for one in found["builds"]} <= set(ids["checkouts"])
    assert {one["build_id"] for one in found["tests"]} <= set(ids["builds"])
    for incident in found.get("incidents", []):
        assert incident["issue_id"] in ids["issues"]
        assert incident["test_id"] in ids["tests"]


def test_every_answer_of_every_machine_is_a_test() -> None:
    record = records.flaky()
    found = told(record)
    cases = [one for one in found["tests"] if one["path"] != "boot"]
    assert len(cases) == sum(len(trial.cell.cases) for trial in record.trials)
    boots = [one for one in found["tests"] if one["path"] == "boot"]
    assert len(boots) == len(record.trials)
    truncate = [one for one in cases if one["path"] == "faultstress.xfs.truncate"]
    assert {one["status"] for one in truncate} == {"PASS", "FAIL"}
    assert {one["status"] for one in cases if one["path"].endswith("ext4.mprotect")} == {"SKIP"}
    bad = next(one for one in truncate if one["status"] == "FAIL")
    assert bad["misc"]["message"] == "no progress for 5 s"
    assert records.WARNING.text.startswith(bad["log_excerpt"][:20])


def test_what_proves_nothing_is_never_a_pass() -> None:
    found = told(records.uncovered())
    status = {one["path"]: one["status"] for one in found["tests"]}
    assert status["faultstress.xfs.munmap"] == "DONE"
    assert status["faultstress.ext4.read"] == "MISS"
    assert set(kcidb._STATUS) == set(CaseState)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (MachineEnd.PANICKED, "FAIL"),
        (MachineEnd.HUNG_BOOT, "FAIL"),
        (MachineEnd.QEMU_DIED, "MISS"),
        (MachineEnd.LOST, "MISS"),
    ],
)
def test_a_machine_that_did_not_boot(end: MachineEnd, status: str) -> None:
    def dies(of: Cell) -> Trial:
        return records.trial(of, boots=False, end=end)

    found = told(records.run(records.well, dies))
    boots = {
        one["status"]
        for one in found["tests"]
        if one["path"] == "boot" and one["build_id"].endswith(":patched")
    }
    assert boots == {status}


def test_a_build_that_fails_says_where() -> None:
    found = told(records.unbuildable())
    (bad,) = (one for one in found["builds"] if one["status"] == "FAIL")
    assert "count_vm_fault_kind" in bad["log_excerpt"]
    assert bad["misc"]["patch"] == records.PATCHES[1]
    assert bad["checkout_id"] == found["checkouts"][1]["id"]
    assert found["tests"] == []


def test_a_splat_that_is_blamed_is_an_issue_with_its_incidents() -> None:
    found = told(records.use_after_free())
    (issue,) = found["issues"]
    assert issue["report_subject"] == records.UAF.title
    assert issue["culprit"] == {"code": True, "tool": False, "harness": False}
    assert len(found["incidents"]) == 7
    assert "issues" not in told(records.flaky()), "nobody was blamed"


def test_checkouts_are_the_base_and_the_base_with_the_series() -> None:
    record = records.clean()
    base, patched = told(record)["checkouts"]
    assert base["patchset_hash"] == ""
    assert patched["patchset_hash"] == record.manifest.series_digest
    assert "git_commit_hash" not in base, "Debian's tarball is a commit of our own only"
    source = replace(record.manifest.source, provenance="git v6.1 of /home/u/linux")
    manifest = replace(record.manifest, source=source, series_origin="20260301.1-x@example.org")
    base, patched = told(replace(record, manifest=manifest))["checkouts"]
    assert base["git_commit_hash"] == source.commit
    assert patched["message_id"] == "20260301.1-x@example.org"


def test_files_are_named_only_where_they_are_published() -> None:
    record = records.clean()
    assert not any("log_url" in one for one in told(record)["tests"])
    found = told(record, Submitter(origin="my_lab", url="https://x.org/runs/1"))
    trial = record.trials[0]
    assert found["tests"][0]["log_url"] == f"https://x.org/runs/1/trials/{trial.id}/console.log"


def test_what_a_guest_printed_does_not_break_it() -> None:
    name = "faultstress/ext4/read"
    evil = replace(records.WARNING, title="a\0b", text="x\0" * 20000)
    bad = records.failing(name, records.failed(name, "a\0b\udcff", splats=(evil,)))
    found = told(records.run(bad, bad))
    V5_3.validate(found)
    odd = "su ite//a b:c.d/é"
    assert told(records.run(records.well, records.well, cases=(odd,)))["tests"][1]["path"] == (
        "su_ite.a_b.c_d._"
    )


@pytest.mark.parametrize("wrong", [{"origin": "My Lab"}, {"url": "file:///etc"}, {"url": "x y"}])
def test_a_submitter_that_kcidb_would_refuse(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError):
        Submitter(**wrong)


def test_a_report_that_the_schema_refuses_is_not_written() -> None:
    record = records.clean()
    manifest = replace(record.manifest, created="yesterday", series_digest="short")
    with pytest.raises(LabFault, match="KCIDB would refuse"):
        kcidb.report(replace(record, manifest=manifest), ME)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "runs", records.use_after_free(), run="uaf")
    where = ("-q", "--runs", str(tmp_path / "runs"), "report", "uaf")
    out = tmp_path / "kcidb.json"
    status = cli.entry([*where, "--kcidb", str(out), "--kcidb-origin", "my_lab"])
    assert status == ExitCode.REGRESSED
    V5_3.validate(json.loads(out.read_bytes()))
    capsys.readouterr()
    assert cli.entry([*where, "--kcidb", "-"]) == ExitCode.REGRESSED
    found = json.loads(capsys.readouterr().out)
    assert found["checkouts"][0]["origin"] == "kernel_patch_lab"
    assert cli.entry([*where, "--kcidb", "-", "--kcidb-origin", "A"]) == ExitCode.USAGE
    assert "no origin of KCIDB" in capsys.readouterr().err
