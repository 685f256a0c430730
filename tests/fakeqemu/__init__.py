"""What the tests against a stand-in for QEMU share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab import initramfs

FAKE = Path(__file__).with_name("fake.py")


def build_agent(folder: Path) -> Path:
    """The agent, compiled for this host."""
    make: Sequence[str | Path] = (
        *("make", "-s", "-C", initramfs.SOURCES),
        *(f"OUT={folder}", f"{folder}/agent"),
    )
    subprocess.run(make, check=True, timeout=100)
    return folder / "agent"


def install(binaries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stand-in the QEMU that the lab finds."""
    binaries.mkdir()
    (binaries / "qemu-system-x86_64").symlink_to(FAKE)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
