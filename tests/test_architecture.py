"""The floor plan: import order, linters, documentation, one recipe for every architecture."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lab.arch import ARCHS
from lab.cli import cli

ROOT = Path(__file__).parent.parent
# The order of docs/architecture.md: a room imports only from rooms before it.
ORDER = (
    "model",
    "arch",
    "prose",
    "diff",
    "series",
    "kconfig",
    "splat",
    "verdict",
    "bisect",
    "lockgraph",
    "config",
    "control",
    "plan",
    "leash",
    "host",
    "store",
    "ledger",
    "intake",
    "source",
    "patching",
    "tree",
    "symbols",
    "wire",
    "guest",
    "counters",
    "locks",
    "build",
    "initramfs",
    "image",
    "console",
    "machine",
    "snapshot",
    "rig",
    "accel",
    "suites",
    "selection",
    "matrix",
    "subject",
    "catalogue",
    "trial",
    "equipment",
    "pool",
    "fleet",
    "prefixes",
    "coverage",
    "comparator",
    "campaign",
    "archive",
    "mailcheck",
    "selftest",
    "inspector",
    "debug",
    "desk",
    "lockdesk",
    "culprit",
    "night",
    "workflow",
    "report",
    "doctor",
    "hosts",
    "cli",
)
PURE = ORDER[: ORDER.index("plan") + 1]
EFFECTS = {"subprocess", "socket", "asyncio", "shutil", "tempfile", "time", "random"}


def room(path: Path) -> str:
    """Room of a source file: lab/suites/boot.py -> suites."""
    return path.relative_to(ROOT / "lab").parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return sorted((ROOT / "lab").rglob("*.py"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything that the module imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "lab":
                yield from (f"lab.{alias.name}" for alias in node.names)
            else:
                yield node.module


def rooms_of(path: Path) -> set[str]:
    names = imported(ast.parse(path.read_text()))
    return {name.split(".")[1] for name in names if name.startswith("lab.")}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    assert here in ORDER, f"{path} is a room that docs/architecture.md does not list"
    later = {name for name in rooms_of(path) if name != "__version__"} - {here}
    wrong = {name for name in later if ORDER.index(name) >= ORDER.index(here)}
    assert not wrong, f"{here} imports {wrong}, which come after it"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_rooms_have_no_effects(path: Path) -> None:
    if room(path) not in PURE:
        return
    used = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert not used & EFFECTS


def test_one_room_starts_processes() -> None:
    for path in sources():
        names = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert "subprocess" not in names or room(path) == "host", path
        assert "shell=True" not in path.read_text(), path


def test_every_room_is_described() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for path in sources():
        name = room(path)
        if name not in ("__init__", "__main__"):
            assert re.search(rf"`{name}/?`", text), f"docs/architecture.md does not mention {name}"


def test_architecture_is_two_pages() -> None:
    assert len((ROOT / "docs/architecture.md").read_text().split()) < 1200


def commands(group: click.Group, prefix: str = "lab") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_every_command_is_documented(name: str, command: click.Command) -> None:
    assert command.help
    first = " ".join(name.split()[:2])
    assert first in (ROOT / "README.md").read_text(), f"README.md does not mention {first}"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.help, f"{name} {parameter.opts[0]} has no help text"


@pytest.mark.parametrize("name", sorted(ARCHS))
def test_every_architecture_has_its_files(name: str) -> None:
    assert (ROOT / "kconfigs" / f"arch-{name}.config").is_file()


def test_every_dependency_has_its_reason() -> None:
    reasons = (ROOT / "docs/dependencies.md").read_text()
    text = (ROOT / "pyproject.toml").read_text().split("[tool.")[0]
    for line in re.findall(r'^    "([A-Za-z0-9.-]+)', text, re.M):
        assert line in reasons, f"docs/dependencies.md gives no reason for {line}"


LINTERS = {
    "mypy": [sys.executable, "-m", "mypy"],
    "ruff": [sys.executable, "-m", "ruff", "check", "lab", "tests", "benchmarks"],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "lab", "tests", "benchmarks"],
}


@pytest.mark.fake
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", LINTERS)
def test_linter(name: str) -> None:
    done = subprocess.run(LINTERS[name], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.fake
def test_shellcheck() -> None:
    scripts = [
        path
        for path in (*ROOT.glob("images/**/*"), *ROOT.glob("tests/**/*"), ROOT / ".ci/run")
        if path.is_file() and path.read_bytes()[:32].startswith((b"#!/bin/sh", b"#!/bin/bash"))
    ]
    assert ROOT / ".ci/run" in scripts
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, *map(str, scripts)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
