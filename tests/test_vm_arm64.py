"""arm64 and x86_64 in one run, with real kernels, and what is peculiar to arm64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT, SERIES, Lab, MakeLab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

BOTH = """
arch = ["x86_64", "arm64"]
suites = ["boot", "faultstress"]
[run]
repeats = 1
max_repeats = 1
[faultstress]
filesystems = ["ext4"]
scenarios = ["truncate", "munmap"]
duration_s = 2
"""


def record_of(lab: Lab) -> tuple[dict[str, Any], Path]:
    (path,) = lab.runs.glob("*/record.json")
    return dict(json.loads(path.read_text())), path.parent


def test_one_run_one_verdict_both_architectures(make_lab: MakeLab) -> None:
    lab = make_lab(BOTH)
    done = lab("run", "--coverage", "--patch", ROOT / "patches/demo", expect=0, timeout_s=3400)
    assert "builds and boots on x86_64 and arm64" in " ".join(done.stdout.split())
    record, folder = record_of(lab)
    assert record["verdict"]["outcome"] == "clean"
    assert {(k["arch"], k["side"]) for k in record["kernels"]} == {
        (arch, side) for arch in ("x86_64", "arm64") for side in ("base", "patched")
    }
    planned = set(record["manifest"]["cases"])
    for arch in ("x86_64", "arm64"):
        mine = [trial for trial in record["trials"] if trial["cell"]["arch"] == arch]
        for side in ("base", "patched"):
            passed = {
                result["name"]
                for trial in mine
                if trial["cell"]["side"] == side
                for result in trial["results"]
                if result["state"] == "passed"
            }
            assert passed == planned
        assert all(trial["lockdep_alive"] for trial in mine)
        assert any(trial["vmstat"].get("pgfault") for trial in mine)
        for trial in mine:
            console = (folder / "trials" / trial["id"] / "console.log").read_text(errors="replace")
            assert ("aarch64" in console) == (arch == "arm64")
    root = ElementTree.parse(folder / "junit.xml").getroot()
    assert [suite.get("name") for suite in root] == ["verdict", "x86_64", "arm64"]
    names = {case.get("classname", "") for case in root.iter("testcase")}
    assert {name.partition(".")[0] for name in names} == {"lab", "x86_64", "arm64"}
    page = (folder / "report.html").read_text()
    assert page.count("arm64") > 4 and page.count("x86_64") > 4
    _check_coverage(json.loads(lab("coverage", "--json", expect=0).stdout), planned)


def _check_coverage(found: list[dict[str, Any]], planned: set[str]) -> None:
    """Of the demo series, whose second patch counts in the page fault path."""
    assert [one["arch"] for one in found] == ["arm64", "x86_64"]
    for one in found:
        assert (one["why"], one["lost"], one["failed"], one["splats"]) == ("", [], [], [])
        assert set(one["cases"]) == planned
        assert {"mm/memory.gcno", "mm/vmstat.gcno"} <= set(one["objects"])
        second = one["patches"][1]
        assert second["counts"]["executed"] > 5
        assert second["suites"]["faultstress"] > 5 and second["suites"]["booting"] > 5
        assert "unknown" not in second["counts"]
        ran = {
            line["text"].strip(): line["state"]
            for file in second["files"]
            for hunk in file["hunks"]
            for line in hunk["lines"]
        }
        assert ran["return FAULT_STAT_READ;"] == "executed"


def test_speeds_and_failing_disks_on_arm64(make_lab: MakeLab) -> None:
    lab = make_lab(
        'arch = ["arm64"]\n[run]\nrepeats = 1\nmax_repeats = 1\n'
        '[faultstress]\nfilesystems = ["ext4"]\nduration_s = 2\n'
    )
    speeds = {"fio/ext4/mmap-randrw": "write_per_s", "stress-ng/ext4/fault": "operations_per_s"}
    broken = "faultinject/dm-error/ext4"
    only = ",".join((*speeds, broken))
    lab("run", "--patch", ROOT / "patches/demo", "--only", only, expect=0, timeout_s=3400)
    record, _ = record_of(lab)
    assert {trial["cell"]["side"] for trial in record["trials"]} == {"base", "patched"}
    for trial in record["trials"]:
        told = {result["name"]: result for result in trial["results"]}
        assert {name: result["state"] for name, result in told.items()} == dict.fromkeys(
            (*speeds, broken), "passed"
        )
        assert all(told[name]["metrics"][metric] > 0 for name, metric in speeds.items())
        assert told[broken]["metrics"]["failed_calls"] > 0
    # Only what a disk that fails makes a sound kernel say, and on one side at least it did.
    kinds = {s["kind"] for t in record["trials"] for r in t["results"] for s in r["splats"]}
    assert "io-error" in kinds and kinds <= {"io-error", "fs-error", "fs-corruption"}


def test_a_panic_on_arm64_is_told_by_pvpanic_and_read(make_lab: MakeLab) -> None:
    lab = make_lab('arch = ["arm64"]\nsuites = ["boot"]\n[run]\nrepeats = 1\n')
    lab("run", "--patch", SERIES / "panics-at-boot", expect=1, timeout_s=3400)
    record, _ = record_of(lab)
    patched = [t for t in record["trials"] if t["cell"]["side"] == "patched"]
    assert [t["end"] for t in patched] == ["panicked"] * 3
    assert not any("no pvpanic" in t["note"] for t in patched)
    assert any("planted panic" in s["title"] for t in patched for s in t["boot_splats"])
    assert [f["kind"] for f in record["verdict"]["findings"]] == ["boot"]


def test_what_a_guest_of_arm64_is(make_lab: MakeLab) -> None:
    lab = make_lab(BOTH)
    told = "uname -m; nproc; cat /proc/device-tree/compatible; dpkg --print-architecture"
    done = lab("boot", "--arch", "arm64", "--", "sh", "-c", told, expect=0, timeout_s=1700)
    machine, cpus, *rest = done.stdout.replace("\0", "\n").split()
    assert (machine, cpus) == ("aarch64", "2")
    assert "linux,dummy-virt" in rest
    assert rest[-1] == "arm64"
