"""`lab run` with real kernels in QEMU: one verdict for each kind of series.

Every kernel here is a few patched objects on top of one base build, so what this file costs is
boots. The series are in tests/data/series/; each is broken on purpose but patches/demo.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, SERIES, Lab, MakeLab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

# Small and quick; the demo run below has all the defaults.
QUICK = """
suites = ["boot", "faultstress"]
[run]
repeats = 1
[faultstress]
filesystems = ["ext4"]
scenarios = ["truncate"]
duration_s = 2
"""

# No more than the screening: what differs stays undecided, and the run inconclusive.
SHORT = QUICK.replace("repeats = 1", "repeats = 1\nmax_repeats = 1")


def record_of(lab: Lab, index: int = -1) -> dict[str, Any]:
    records = sorted(lab.runs.glob("*/record.json"))
    return dict(json.loads(records[index].read_text()))


def states(record: dict[str, Any], side: str) -> dict[str, set[str]]:
    """Case -> states it ended in on that side."""
    found: dict[str, set[str]] = {}
    for trial in record["trials"]:
        if trial["cell"]["side"] == side:
            for result in trial["results"]:
                found.setdefault(result["name"], set()).add(result["state"])
    return found


def test_the_demo_series_is_clean(make_lab: MakeLab) -> None:
    lab = make_lab("[faultstress]\nduration_s = 3\n")
    done = lab("run", "--patch", ROOT / "patches/demo", expect=0)
    assert "clean" in done.stdout
    record = record_of(lab)
    assert record["verdict"]["outcome"] == "clean"
    planned = set(record["manifest"]["cases"])
    assert len(planned) > 8
    for side in ("base", "patched"):
        got = states(record, side)
        assert set(got) == planned
        assert set.union(*got.values()) == {"passed"}
    patched = [t for t in record["trials"] if t["cell"]["side"] == "patched"]
    base = [t for t in record["trials"] if t["cell"]["side"] == "base"]
    counters = {name for name in patched[0]["vmstat"] if name not in base[0]["vmstat"]}
    assert counters, "the demo series adds counters to /proc/vmstat"
    assert any(patched[0]["vmstat"][name] > 0 for name in counters)
    folder = next(lab.runs.glob("*/record.json")).parent
    assert (folder / "report.html").read_text().count("<script>") == 0
    assert b"<testsuites" in (folder / "junit.xml").read_bytes()
    for kept in (trial["locks"] for trial in record["trials"]):
        assert (kept["alive"], kept["missing"]) == (True, "")
        assert kept["placed"] > 300, "keys are addresses, and lie in symbols"
    shown = lab("lockgraph", "show", "--around", "mmap_lock", expect=0).stdout
    assert "&mm->mmap_lock -> sb_pagefaults (ext4)" in shown
    assert "&mm->mmap_lock -> sb_pagefaults (xfs)" in shown

    # The same again: nothing changed, so make is not called at all.
    lab("run", "--patch", ROOT / "patches/demo", "--duration", "1", "--repeats", "1", expect=0)
    assert [kernel["make_ran"] for kernel in record_of(lab)["kernels"]] == [False, False]


def test_a_series_that_breaks_the_build_names_patch_and_error(make_lab: MakeLab) -> None:
    lab = make_lab(QUICK)
    done = lab("run", "--patch", SERIES / "breaks-build", expect=1)
    assert "first_online_node_of_all" in done.stdout
    record = record_of(lab)
    (failure,) = record["failures"]
    assert failure["patch"].startswith("0002")
    assert failure["first_error"]["file"] == "mm/mmzone.c"
    assert failure["first_error"]["line"] == 15
    assert record["trials"] == []


def test_each_patch_names_the_first_that_breaks(make_lab: MakeLab) -> None:
    lab = make_lab(QUICK)
    done = lab("run", "--patch", SERIES / "breaks-build", "--each-patch", expect=1)
    assert "After each patch" in done.stdout
    first, second, third = record_of(lab)["prefixes"]
    assert (first["state"], first["broken"]) == ("passed", "")
    assert first["boot_s"] > 0
    for broken in (second, third):
        assert (broken["state"], broken["broken"]) == ("broken", "build")
    assert second["patch"].startswith("0002")
    assert "mm/mmzone.c:15" in second["reason"]
    (finding,) = (f for f in record_of(lab)["verdict"]["findings"] if f["kind"] == "patch")
    assert finding["patch"] == second["patch"]


def test_a_planted_warning_is_caught_and_charged(make_lab: MakeLab) -> None:
    lab = make_lab()
    done = lab("selftest", "--control", "lkdtm-warning", "--json", expect=0)
    record = json.loads(done.stdout)
    (result,) = record["results"]
    assert (result["grade"], result["detector"]) == ("caught", "warning")
    assert result["case"] == "lkdtm/WARNING"
    assert "lkdtm_WARNING" in result["said"]
    clean, planted = record["trials"]
    assert [(r["name"], r["state"]) for r in clean["results"]] == [("boot/hello", "passed")]
    assert planted["results"][0]["splats"] == []


def test_a_kernel_that_panics_at_boot_is_a_finding(make_lab: MakeLab) -> None:
    lab = make_lab(QUICK)
    done = lab("run", "--patch", SERIES / "panics-at-boot", expect=1)
    assert "boot" in done.stdout
    record = record_of(lab)
    patched = [t for t in record["trials"] if t["cell"]["side"] == "patched"]
    assert [t["end"] for t in patched] == ["panicked"] * 3
    assert any(f["kind"] == "boot" for f in record["verdict"]["findings"])
    assert any("planted panic" in s["title"] for t in patched for s in t["boot_splats"])


def test_a_kernel_that_hangs_silently_at_boot_is_a_finding(make_lab: MakeLab) -> None:
    lab = make_lab(QUICK + "[machine]\nboot_limit_s = 12\n")
    lab("run", "--patch", SERIES / "hangs-at-boot", expect=1)
    record = record_of(lab)
    patched = [t for t in record["trials"] if t["cell"]["side"] == "patched"]
    assert [t["end"] for t in patched] == ["hung-boot"] * 3
    assert set(states(record, "base")) == set(record["manifest"]["cases"])


def test_data_corruption_is_told_from_chance(make_lab: MakeLab) -> None:
    lab = make_lab(QUICK)
    lab("run", "--patch", SERIES / "wrong-data", expect=1)
    record = record_of(lab)
    case = "faultstress/ext4/truncate"
    (verdict,) = [v for v in record["verdict"]["cases"] if v["name"] == case]
    assert verdict["comparison"] == "regressed"
    assert verdict["patched"]["failed"] >= 2
    assert verdict["base"]["failed"] == 0
    assert verdict["p_value"] <= 0.01
    messages = [
        result["message"]
        for trial in record["trials"]
        for result in trial["results"]
        if result["state"] == "failed"
    ]
    assert any("torn" in message for message in messages), messages


def test_a_new_warning_is_a_finding(make_lab: MakeLab) -> None:
    lab = make_lab(QUICK)
    lab("run", "--patch", SERIES / "warns", expect=1)
    record = record_of(lab)
    splats = [
        splat
        for trial in record["trials"]
        for result in trial["results"]
        for splat in result["splats"]
        if trial["cell"]["side"] == "patched"
    ]
    assert any("truncate_pagecache" in splat["title"] for splat in splats)
    assert not [
        splat
        for trial in record["trials"]
        if trial["cell"]["side"] == "base"
        for splat in (*trial["boot_splats"], *(s for r in trial["results"] for s in r["splats"]))
    ]


def test_a_guest_that_fills_its_disk_is_no_fault_of_the_lab(make_lab: MakeLab) -> None:
    lab = make_lab()
    done = lab(
        "boot",
        "--",
        "sh",
        "-c",
        "dd if=/dev/zero of=/fill bs=1M; df / >&2; echo still alive; exit 1",
    )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "still alive" in done.stdout


@pytest.mark.parametrize("moment_s", [3.0, 12.0])
def test_killed_in_the_middle_nothing_is_left_and_the_next_run_goes_on(
    make_lab: MakeLab, processes_of: Callable[[str], Sequence[int]], moment_s: float
) -> None:
    lab = make_lab(QUICK.replace("repeats = 1", "repeats = 2\nmax_repeats = 2"))
    argv = lab.argv("run", "--patch", SERIES / "warns")
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    for line in process.stderr:
        if b"test " in line:
            break
    time.sleep(moment_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    deadline = time.monotonic() + 5
    while processes_of(str(lab.runs)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(str(lab.runs)), "a QEMU was left behind"
    before = {p: p.read_bytes() for p in lab.runs.glob("*/trials/*/trial.json")}
    done = lab("run", "--patch", SERIES / "warns", expect=4)
    assert "taking up" in done.stderr
    assert len(list(lab.runs.glob("*/manifest.json"))) == 1
    assert all(path.read_bytes() == content for path, content in before.items())
    assert set(states(record_of(lab), "base")) == set(record_of(lab)["manifest"]["cases"])


def test_an_interrupt_leaves_nothing_and_says_how_to_go_on(
    make_lab: MakeLab, processes_of: Callable[[str], Sequence[int]]
) -> None:
    lab = make_lab(SHORT)
    argv = lab.argv("run", "--patch", SERIES / "warns", "--parallel", "2")
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    for line in process.stderr:
        if b"test patched" in line:  # the second of two machines
            break
    time.sleep(2)
    assert len(processes_of(str(lab.runs))) > 2
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(timeout=20) == 130
    process.stderr.close()
    assert b"interrupted" in said
    assert not processes_of(str(lab.runs))


def test_a_case_that_panics_twice_is_left_out_and_the_rest_goes_on(make_lab: MakeLab) -> None:
    toml = QUICK.replace('["truncate"]', '["mremap", "munmap"]')
    lab = make_lab(toml.replace("repeats = 1", "repeats = 3\nmax_repeats = 3"))
    lab("run", "--patch", SERIES / "panics-in-a-case", expect=4)
    record = record_of(lab)
    planted = "faultstress/ext4/mremap"
    got = states(record, "patched")
    assert got.pop(planted) == {"crashed"}
    assert set(got) == set(record["manifest"]["cases"]) - {planted}
    assert set.union(*got.values()) == {"passed"}
    patched = [t for t in record["trials"] if t["cell"]["side"] == "patched"]
    # Twice a crash and its rest in a fresh machine; then without the case, on the base too.
    assert sorted(t["end"] for t in patched) == ["panicked"] * 2 + ["powered-off"] * 3
    assert [planted in t["cell"]["cases"] for t in patched if t["cell"]["repeat"] == 2] == [False]
    base = [t for t in record["trials"] if t["cell"]["side"] == "base"]
    assert [planted in t["cell"]["cases"] for t in base if t["cell"]["repeat"] == 2] == [False]
    assert states(record, "base")[planted] == {"passed"}
    assert any("left out after 2 crashes" in why for why in record["verdict"]["reasons"])
    crashed = next(t for t in patched if t["end"] == "panicked")
    (splat,) = crashed["results"][-1]["splats"]
    assert "planted panic in a case" in splat["title"]


def test_two_machines_at_once_share_the_cases_of_a_run(make_lab: MakeLab) -> None:
    lab = make_lab(SHORT.replace('["truncate"]', '["truncate", "munmap"]'))
    lab("run", "--patch", ROOT / "patches/demo", "--parallel", "4", expect=0)
    record = record_of(lab)
    planned = sorted(record["manifest"]["cases"])
    for side in ("base", "patched"):
        cells = [t["cell"] for t in record["trials"] if t["cell"]["side"] == side]
        assert len(cells) == 2, "two cells on four machines: two shards each"
        assert sorted(case for cell in cells for case in cell["cases"]) == planned
        assert set.union(*states(record, side).values()) == {"passed"}


def test_the_runs_folder_holds_what_can_be_argued_with(make_lab: MakeLab) -> None:
    lab = make_lab(SHORT)
    lab("run", "--patch", SERIES / "warns", expect=4)
    folder = next(lab.runs.glob("*/record.json")).parent
    (patch,) = (folder / "series").glob("*.patch")
    assert "WARN_ON_ONCE" in patch.read_text()
    for trial in (folder / "trials").iterdir():
        assert "Linux version 6.1" in (trial / "console.log").read_text(errors="replace")
        assert json.loads((trial / "trial.json").read_text())["accelerator"]["name"] in (
            "kvm",
            "tcg",
        )
    again = lab("report", folder.name, "--json", expect=4)
    assert json.loads(again.stdout)["manifest"]["run"] == folder.name


def test_the_users_series_is_not_written_to(make_lab: MakeLab, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for patch in (SERIES / "warns").iterdir():
        (mine / patch.name).write_bytes(patch.read_bytes())
    before = [(p.name, p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(mine.iterdir())]
    lab = make_lab(SHORT)
    lab("run", "--patch", mine, expect=4)
    assert [
        (p.name, p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(mine.iterdir())
    ] == before


def test_a_lockdep_without_room_is_coverage_lost_and_the_rest_runs_afresh(
    make_lab: MakeLab,
) -> None:
    lab = make_lab(SHORT.replace('["truncate"]', '["truncate", "munmap"]'))
    lab("run", "--patch", SERIES / "spends-lockdep", expect=4)
    record = record_of(lab)
    assert record["verdict"]["findings"] == []
    assert any("coverage lost" in reason for reason in record["verdict"]["reasons"])
    patched = states(record, "patched")
    assert patched["faultstress/ext4/truncate"] == {"uncovered"}
    assert patched["faultstress/ext4/munmap"] == {"passed"}, "in a fresh machine"
    machines = [t for t in record["trials"] if t["cell"]["side"] == "patched"]
    assert [t["lockdep_alive"] for t in machines] == [False, True]
    assert [t["locks"]["alive"] for t in machines] == [False, True]
    assert set.union(*states(record, "base").values()) == {"passed"}


def test_injected_failures_and_measured_speeds(make_lab: MakeLab) -> None:
    """A device that dies under the program, and the suites that measure, in one machine a side."""
    lab = make_lab(QUICK.replace('filesystems = ["ext4"]', 'filesystems = ["ext4", "tmpfs"]'))
    cases = (
        *("faultinject/dm-error/ext4", "faultinject/dm-delay/ext4"),
        *("fio/tmpfs/mmap-randwrite", "stress-ng/tmpfs/fault"),
    )
    only = [word for case in cases for word in ("--only", case)]
    suites = "faultinject,fio,stress-ng"
    lab("run", "--patch", ROOT / "patches/demo", "--suite", suites, *only, expect=0)
    record = record_of(lab)
    for side in ("base", "patched"):
        assert states(record, side) == {case: {"passed"} for case in cases}
    told = {r["name"]: r for trial in record["trials"] for r in trial["results"]}
    assert told[cases[0]]["metrics"]["injected"] > 0
    assert told[cases[1]]["metrics"]["injected"] > 0
    assert "leaks were not looked for" in told[cases[0]]["message"]
    measured = {(one["case"], one["metric"]) for one in record["verdict"]["speeds"]}
    assert measured >= {(cases[2], "write_per_s"), (cases[3], "operations_per_s")}


def test_what_a_kernel_cannot_inject_is_refused_before_it_boots(make_lab: MakeLab) -> None:
    lab = make_lab(QUICK)
    done = lab("run", "--patch", ROOT / "patches/demo", "--suite", "faultinject", expect=2)
    assert "FAILSLAB" in done.stderr and "faultinject:dm-error" in done.stderr
    assert list(lab.runs.glob("*/trials/*")) == []
