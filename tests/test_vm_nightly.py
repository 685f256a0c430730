"""One night of one job with real kernels, and a comparator beside its run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest

from tests.conftest import ROOT, MakeLab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

TOML = f"""
[run]
repeats = 1
max_repeats = 1
comparator = "debian:6.1"
[matrix]
series = ["{ROOT / "patches/demo"}"]
arch = ["x86_64"]
suites = ["boot"]
"""


def test_a_night_of_real_kernels(
    make_lab: MakeLab, processes_of: Callable[[str], Sequence[int]]
) -> None:
    lab = make_lab(TOML)
    # Booting touches none of the counters that this series has: its run proves nothing.
    done = lab("nightly", "--budget", "30m", "--json", expect=4)
    night = json.loads(done.stdout)
    (result,) = night["results"]
    assert (result["state"], result["outcome"]) == ("ran", "inconclusive")
    assert "was not exercised" in result["sentence"]
    folder = lab.runs / result["run"]
    run = json.loads((folder / "record.json").read_text())
    assert (folder / "report.html").exists()
    assert {trial["cell"]["side"] for trial in run["trials"]} == {"base", "patched"}

    # The comparator is the base once more, so nothing is built for it; it ran after both.
    (other,) = run["comparators"]
    (base,) = [kernel for kernel in run["kernels"] if kernel["side"] == "base"]
    assert other["kernel_key"] == base["key"]
    assert [case["state"] for trial in other["trials"] for case in trial["results"]] == ["passed"]
    assert len(run["trials"]) == 2

    page = (lab.runs / "nights" / night["start"]["id"] / "report.html").read_text()
    assert f"../../{result['run']}/report.html" in page
    assert "demo x86_64 lockdep boot" in lab("nights", "latest", expect=4).stdout
    assert not processes_of(str(lab.runs))
