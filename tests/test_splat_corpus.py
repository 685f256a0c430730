"""The splat detector against a corpus that its authors did not write, where one is at hand.

The corpus is not part of the project. `LAB_SPLAT_CORPUS`, or a folder `shared/splat-corpus` beside
the project's, holds `score_splats.py`, `even/` and `guilty-even/`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CORPUS = Path(
    os.environ.get("LAB_SPLAT_CORPUS")
    or Path(__file__).resolve().parents[2] / "shared" / "splat-corpus"
)

pytestmark = [
    pytest.mark.fake,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (CORPUS / "score_splats.py").exists(), reason=f"no splat corpus at {CORPUS}"
    ),
]


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("scores") / "scores.json"
    command = f"{sys.executable} -m lab.splat --json {{file}}"
    argv = [sys.executable, str(CORPUS / "score_splats.py"), "--dir", str(CORPUS / "even")]
    argv += ["--half", "even", "--guilty-dir", str(CORPUS / "guilty-even"), "--prefix-clean"]
    subprocess.run(
        [*argv, "--cmd", command, "--json-out", str(out)],
        check=True,
        capture_output=True,
        timeout=850,
        cwd=Path(__file__).resolve().parents[1],
    )
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_nothing_failed_to_run(scores: dict[str, Any]) -> None:
    assert scores["failed_runs"] == 0


def test_reports_are_found_and_nothing_else(scores: dict[str, Any]) -> None:
    counts = scores["syzkaller"]["counts"]
    assert counts["detected"] / counts["pos"] >= 0.994
    assert counts["false_any"] == 0
    assert scores["prefix"]["any"] == 0


def test_reports_are_understood(scores: dict[str, Any]) -> None:
    counts = scores["syzkaller"]["counts"]
    assert counts["kind_ok"] / counts["pos"] >= 0.98
    assert counts["lockdep_sub_ok"] == counts["lockdep_sub_n"]
    assert counts["func_ok"] / counts["func_n"] >= 0.90
    assert counts["func_near"] / counts["func_n"] >= 0.96


def test_fingerprints_tell_bugs_apart_and_join_them(scores: dict[str, Any]) -> None:
    counts = scores["syzkaller"]["counts"]
    right, wrong, missed = counts["dedup_tp"], counts["dedup_fp"], counts["dedup_fn"]
    assert right / (right + wrong) >= 0.95
    assert right / (right + missed) >= 0.88


def test_the_guilty_file_is_named(scores: dict[str, Any]) -> None:
    assert scores["guilty"]["file_ok"] >= 31
