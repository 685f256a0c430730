"""Fixtures of the vm tier: the lab as its user runs it, in the lab's own cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERIES = ROOT / "tests" / "data" / "series"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """The `lab` command as a real process, its runs in a folder of their own.

    The cache is the user's: what one test built the next one finds, and a second CI run too.
    """

    runs: Path
    config: Path

    def argv(self, *args: str | Path) -> list[str]:
        program = Path(sys.executable).with_name("lab")
        return [
            str(program),
            "--config",
            str(self.config),
            "--runs",
            str(self.runs),
            *map(str, args),
        ]

    def __call__(
        self, *args: str | Path, timeout_s: float = 1700, expect: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*args), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if expect is not None:
            said = f"exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
            assert done.returncode == expect, said
        return done


MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab(tmp_path: Path) -> MakeLab:
    """A `Lab`; `toml` is the text of its lab.toml. One architecture unless it names others: most
    of what there is to test is the same on each."""

    def make(toml: str = "") -> Lab:
        config = tmp_path / "lab.toml"
        config.write_text(toml if "arch = " in toml else f'arch = ["x86_64"]\n{toml}')
        return Lab(runs=tmp_path / "runs", config=config)

    return make


@pytest.fixture(scope="session")
def boot_kernel() -> Path:
    """The bzImage of the default base kernel, built into the user's cache unless it is there.

    LAB_TEST_KERNEL names another one.
    """
    if named := os.environ.get("LAB_TEST_KERNEL"):
        return Path(named)
    program = Path(sys.executable).with_name("lab")
    done = subprocess.run(
        [program, "--quiet", "build", "--arch", "x86_64", "--json"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=3000,
    )
    (kernel,) = json.loads(done.stdout)
    return Path(kernel["image"])


@pytest.fixture
def processes_of() -> Callable[[str], Sequence[int]]:
    """Ids of live processes whose command line holds a text."""

    def find(needle: str) -> Sequence[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                words = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                )
            except OSError:
                continue
            if needle in words:
                found.append(int(entry.name))
        return found

    return find
