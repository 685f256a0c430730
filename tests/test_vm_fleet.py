"""A run of real kernels whose cells go to a worker in a process and a cache of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT, MakeLab
from tests.test_fleet import free_port

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]
BIN = Path(sys.executable).parent


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    address = f"tcp://127.0.0.1:{free_port()}"
    words = ("scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2])
    worker = (BIN / "lab", "--cache", tmp_path / "worker", "worker", address, "--name", "left")
    with (tmp_path / "log").open("ab") as log:
        boss = subprocess.Popen([BIN / "dask", *words, "--no-dashboard"], stderr=log)
        hand = subprocess.Popen(worker, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while "joined" not in (tmp_path / "log").read_text():
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
            yield address
        finally:
            for process in (hand, boss):
                process.terminate()
            for process in (hand, boss):
                process.wait()
            shutil.rmtree(tmp_path / "worker", ignore_errors=True)


def test_a_run_on_a_fleet(
    make_lab: MakeLab,
    scheduler: str,
    tmp_path: Path,
    processes_of: Callable[[str], Sequence[int]],
) -> None:
    lab = make_lab()
    # Counters that boot alone does not raise make it inconclusive: see the demo's series.toml.
    done = lab(
        *("run", "--patch", ROOT / "patches" / "demo", "--suite", "boot", "--repeats", "1"),
        *("--max-repeats", "1", "--scheduler", scheduler, "--json"),
        expect=4,
    )
    record = json.loads(done.stdout)
    assert [trial["host"] for trial in record["trials"]] == ["left", "left"]
    for trial in record["trials"]:
        assert [result["state"] for result in trial["results"]] == ["passed"]
        assert trial["end"] == "powered-off"
        assert trial["lockdep_alive"] is True
        assert trial["locks"]["files"]
    (file,) = lab.runs.glob("*/trials/x86_64-base-*/cell.json")
    out = tmp_path / "trial.tar.gz"
    again = lab("cell", "run", file, "--out", out, "--json", expect=0)
    assert json.loads(again.stdout)["results"][0]["state"] == "passed"
    assert out.stat().st_size > 1000
    assert not processes_of(str(tmp_path / "worker" / "staging"))
