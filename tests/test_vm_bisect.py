"""`lab bisect` with real kernels: a planted bad patch in the middle of a series is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, SERIES, MakeLab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]


def with_planted(folder: Path) -> Path:
    """patches/demo with a warning before its last patch, which faultstress reaches."""
    shutil.copytree(ROOT / "patches/demo", folder)
    (planted,) = (SERIES / "warns").glob("*.patch")
    shutil.copy(planted, folder / "planted.patch")
    names = [path.name for path in sorted(folder.glob("000[1-9]-*.patch"))]
    names.insert(2, "planted.patch")
    (folder / "series").write_text("\n".join(names) + "\n")
    return folder


def test_a_planted_patch_is_found(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab("[faultstress]\nduration_s = 2\n")
    asked = (
        *("bisect", "--json", "--arch", "x86_64", "--patch", with_planted(tmp_path / "series")),
        *("--case", "faultstress/ext4/truncate"),
    )
    record = json.loads(lab(*asked, expect=0).stdout)
    assert record["result"]["ending"] == "found"
    culprit = record["header"]["revisions"][record["result"]["first"]]
    assert (culprit["label"], culprit["title"]) == ("patch 3/4", "mm/truncate: warn")
    assert record["result"]["builds"] <= 5

    # The log has the answer: asked again, nothing is built or booted.
    again = json.loads(lab(*asked, expect=0).stdout)
    assert again["result"] == record["result"]
    assert len(list(lab.runs.glob("bisect-*"))) == 1
