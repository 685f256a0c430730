"""A real splat of a real kernel gets real source lines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SERIES, MakeLab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

# By the kernel's own crash test module; sh of its own, for the fault ends the process.
PROVOKE = (
    "mount -t debugfs none /sys/kernel/debug 2> /dev/null; "
    "for fault in WARNING ACCESS_NULL; do "
    'sh -c "echo $fault > /sys/kernel/debug/provoke-crash/DIRECT"; done; dmesg'
)


def test_a_provoked_splat_is_symbolised(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab("")
    (kernel,) = json.loads(lab("build", "--json", expect=0).stdout)
    log = tmp_path / "dmesg.log"
    log.write_text(lab("boot", "--", "sh", "-c", PROVOKE).stdout)
    done = lab("splats", log, "--vmlinux", kernel["vmlinux"], "--json", expect=1)
    assert "do not fit" not in done.stderr
    warning, fault = json.loads(done.stdout)[:2]

    assert (warning["kind"], warning["function"]) == ("warning", "lkdtm_WARNING")
    assert warning["file"] == "drivers/misc/lkdtm/bugs.c"
    said = re.search(r"WARNING: .* at (\S+):(\d+) lkdtm_WARNING", log.read_text())
    assert said is not None
    banner = frames(warning, "lkdtm_WARNING")[0]
    # The kernel itself knows the line of a WARN(): the debug information must say the same.
    assert (banner["file"], str(banner["line"])) == said.groups()

    assert (fault["kind"], fault["function"]) == ("null-deref", "lkdtm_ACCESS_NULL")
    trapped = frames(fault, "lkdtm_ACCESS_NULL")[0]
    assert trapped["kind"] == "pc"
    assert trapped["file"] == "drivers/misc/lkdtm/perms.c" and trapped["line"] > 0
    placed = [each for each in warning["frames"] if each["kind"] == "return" and each["file"]]
    assert {"vfs_write", "ksys_write"} <= {each["function"] for each in placed}
    assert any(each["inlined"] for each in fault["frames"] + warning["frames"])


KNOWN = """
[[allow]]
kind = "warning"
function = "truncate_pagecache"
reason = "planted"
link = "https://example.org/planted"
expires = 2999-01-01

[[allow]]
function = "somebody_else"
reason = "planted"
link = "https://example.org/planted"
expires = 2001-01-01
"""


def test_a_run_marks_the_patch_and_lets_known_splats_pass(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    known = tmp_path / "known.toml"
    known.write_text(KNOWN)
    quick = """
suites = ["faultstress"]
run = {repeats = 1, max_repeats = 1}
faultstress = {filesystems = ["ext4"], scenarios = ["truncate"], duration_s = 2}
"""
    lab = make_lab(quick + f'splats = {{allow = ["{known}"]}}\n')
    done = lab("run", "--patch", SERIES / "warns", expect=0)
    said = " ".join(done.stdout.split())  # the summary folds its lines, a long path moves the fold
    assert "allowed: WARNING in truncate_pagecache" in said
    assert "entry 2: expired on 2001-01-01" in said
    (path,) = lab.runs.glob("*/record.json")
    assert "allowed" in (path.parent / "report.html").read_text()
    record = json.loads(path.read_text())
    (splat,) = [
        splat
        for trial in record["trials"]
        for result in trial["results"]
        for splat in result["splats"]
    ]
    assert splat["allowed"] == "planted (https://example.org/planted)"
    banner = frames(splat, "truncate_pagecache")[0]
    assert (banner["file"], banner["patches"], banner["line_patch"]) == ("mm/truncate.c", [1], 1)
    assert {each["state"] for trial in record["trials"] for each in trial["results"]} == {"passed"}


def frames(splat: dict[str, Any], function: str) -> list[dict[str, Any]]:
    return [each for each in splat["frames"] if each["function"] == function]
