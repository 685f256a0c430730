"""`lab bisect` with real kernels: a planted bad patch in the middle of srcu-vma is found.

By default among those of its patches that touch no header which everything includes, so that each
kernel but the base takes a minute. LAB_TEST_LONG=1 searches all of it too: an hour if nothing
is in the cache.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, SERIES, Lab, MakeLab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]
LONG = bool(os.environ.get("LAB_TEST_LONG"))
LIGHT = ("0001-", "0009-", "0012-")  # a Kconfig symbol, one file of xfs, documentation


def with_planted(folder: Path, planted: Path, *, after: str, only: tuple[str, ...] = ("",)) -> Path:
    """patches/srcu-vma, or some of it, with one more patch after that number."""
    shutil.copytree(ROOT / "patches/srcu-vma", folder)
    shutil.copy(planted, folder / "planted.patch")
    names = [path.name for path in sorted(folder.glob("00*.patch")) if path.name[:4] != "0000"]
    names = [name for name in names if name.startswith(only)]
    (at,) = (number for number, name in enumerate(names) if name.startswith(after))
    names.insert(at + 1, "planted.patch")
    (folder / "series").write_text("\n".join(names) + "\n")
    return folder


def culprit(record: dict[str, Any]) -> tuple[str, str]:
    assert record["result"]["ending"] == "found"
    assert record["result"]["first"] == record["result"]["last"]
    found = record["header"]["revisions"][record["result"]["first"]]
    return found["label"], found["title"]


def bisect(lab: Lab, series: Path, case: str, timeout_s: float = 1700) -> dict[str, Any]:
    asked = ("bisect", "--json", "--arch", "x86_64", "--patch", series, "--case", case)
    record: dict[str, Any] = json.loads(lab(*asked, expect=0, timeout_s=timeout_s).stdout)
    return record


def test_a_planted_patch_is_found(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab("[faultstress]\nduration_s = 2\n")
    (planted,) = (SERIES / "warns").glob("*.patch")
    series = with_planted(tmp_path / "series", planted, after="0001-", only=LIGHT)
    record = bisect(lab, series, "faultstress/ext4/truncate")
    assert culprit(record) == ("patch 2/4", "mm/truncate: warn")
    assert record["result"]["builds"] <= 5

    # The log has the answer: asked again, nothing is built or booted.
    again = bisect(lab, series, "faultstress/ext4/truncate")
    assert again["result"] == record["result"]
    assert len(list(lab.runs.glob("bisect-*"))) == 1


@pytest.mark.skipif(not LONG, reason="LAB_TEST_LONG=1 asks for it")
@pytest.mark.timeout(6000)
def test_a_lock_leak_is_found_in_the_whole_series(make_lab: MakeLab, tmp_path: Path) -> None:
    """What the control of that name plants after ext4 and before xfs: only lockdep sees it."""
    lab = make_lab("[faultstress]\nduration_s = 5\n")
    (planted,) = (ROOT / "patches/controls/lock-leak").glob("*.patch")
    series = with_planted(tmp_path / "series", planted, after="0009-")
    record = bisect(lab, series, "faultstress/ext4/munmap", timeout_s=5700)
    assert culprit(record) == ("patch 10/13", "mm: planted: keep mmap_lock on one way out")
