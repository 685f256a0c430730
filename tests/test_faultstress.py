"""The stress program on this machine's own kernel: it passes, and every check of it can fail."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import host
from lab.suites.faultstress import DEFAULT_SCENARIOS, SCENARIOS, Status

pytestmark = pytest.mark.fake

SOURCE = Path(__file__).parent.parent / "images" / "guest" / "faultstress.c"
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
# Content that somebody else changes under the threads, and what that must be called.
DAMAGE = {
    "future": "future",
    "stale": "stale",
    "torn": "torn",
    "zero": "zeroes",
}
# What shows that the change which was claimed was not made.
NOT_CHANGED = {
    "munmap": {"without-mapping", "wrong-file", "wrong-page"},
    "mapfixed": {"wrong-file", "wrong-page"},
    "mprotect": {"without-mapping", "write-through-read-only", "changed-while-read-only"},
    "truncate": {"beyond-end", "old-data"},
    "punch": {"old-data"},
    "mremap": {"without-mapping", "wrong-file", "wrong-page"},
    "fork": {"copy-on-write"},
    "gup": {"without-mapping", "wrong-file", "wrong-page", "write-through-read-only"},
    "futex": {"without-mapping", "wrong-file", "wrong-page", "write-through-read-only"},
    "mixed": {"without-mapping", "wrong-file", "wrong-page", "write-through-read-only"},
    "reopen": {"without-mapping", "wrong-file", "wrong-page"},
    "pagetables": {"without-mapping", "wrong-file", "wrong-page"},
    "mlock": {"without-mapping", "wrong-file", "wrong-page"},
}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faultstress") / "faultstress"
    argv = ("gcc", *WARNINGS, "-O2", "-static", "-pthread", "-o", path, SOURCE)
    host.run(argv, timeout_s=120)
    return path


# What a tmpfs cannot do, and what must not be done to a disk of this machine; and what it may not
# let a test do. In a guest all of them run.
NOT_IN_MEMORY = ("freeze", "frozen", "odirect")
PRIVILEGED = ("umount", "memcg", "userfaultfd", "procmem", "khugepaged")
HERE = tuple(name for name in SCENARIOS if name not in (*NOT_IN_MEMORY, *PRIVILEGED))


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder on tmpfs: the other half of the page-fault code."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def run(program: Path, folder: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Status and events; every line must be one."""
    argv: tuple[str | Path, ...] = (program, "--dir", folder, *words)
    done = host.run(argv, check=False, timeout_s=60, leash=True)
    return done.status, [json.loads(line) for line in done.text.splitlines()]


def kinds(events: list[dict[str, Any]]) -> set[str]:
    return {event["kind"] for event in events if event["event"] == "corruption"}


def passes(program: Path, folder: Path, scenario: str) -> list[dict[str, Any]]:
    words = ("--scenario", scenario, "--duration", "1", "--at-most", "20", "--seed", "7")
    status, events = run(program, folder, *words)
    assert status == Status.PASS, events[-3:]
    return events


@pytest.mark.parametrize("scenario", HERE)
def test_passes_on_a_disk(program: Path, tmp_path: Path, scenario: str) -> None:
    events = passes(program, tmp_path, scenario)
    end = events[-1]
    assert end["event"] == "end" and end["verdict"] == "pass" and end["status"] == 0
    for counter in ("reads", "writes", "changes", "races", "faults"):
        assert end[counter] > 0
    assert events[0]["seed"] == 7 and events[0]["page_size"] > 0
    assert any(event["event"] == "progress" for event in events)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scenario", DEFAULT_SCENARIOS)
def test_passes_in_memory(program: Path, in_memory: Path, scenario: str) -> None:
    passes(program, in_memory, scenario)
    assert list(in_memory.iterdir()) == []


@pytest.mark.parametrize(
    ("scenario", "sabotage"),
    [*((name, "stale") for name in HERE), *(("mapfixed", name) for name in DAMAGE)]
    + [("truncate", name) for name in DAMAGE if name != "stale"],
)
def test_damage_is_found(program: Path, in_memory: Path, scenario: str, sabotage: str) -> None:
    status, events = run(
        program,
        in_memory,
        *("--scenario", scenario, "--duration", "8", "--sabotage", sabotage),
    )
    assert status == Status.CORRUPTION
    # A damaging write beyond the end of a truncated file also makes the file longer; and where
    # pages lose their content, a word as old as "stale" writes it is from before that loss too.
    also = {"beyond-end"} if scenario == "truncate" else set()
    if sabotage == "stale" and scenario in ("truncate", "punch"):
        also |= {"old-data"}
    assert kinds(events) & {DAMAGE[sabotage], *also}
    assert events[-1]["verdict"] == "corruption"


@pytest.mark.parametrize("scenario", NOT_CHANGED)
def test_a_change_that_was_not_made_is_found(program: Path, in_memory: Path, scenario: str) -> None:
    status, events = run(
        program,
        in_memory,
        *("--scenario", scenario, "--duration", "8", "--sabotage", "skip-change"),
    )
    assert status == Status.CORRUPTION
    assert kinds(events) & NOT_CHANGED[scenario]


@pytest.mark.parametrize("sabotage", ["wrong-file", "wrong-page"])
def test_a_page_of_another_place_is_found(program: Path, in_memory: Path, sabotage: str) -> None:
    # Where mappings stay: among moving ones, a word of another place may be of the place to come.
    words = ("--scenario", "punch", "--duration", "8", "--sabotage", sabotage)
    status, events = run(program, in_memory, *words)
    assert status == Status.CORRUPTION
    assert sabotage in kinds(events)
    details = next(event for event in events if event.get("kind") == sabotage)
    assert details["seen"] and details["again"] and details["pread"]


def test_a_write_after_mprotect_is_found(program: Path, in_memory: Path) -> None:
    words = ("--scenario", "mprotect", "--duration", "8", "--sabotage", "late-write")
    status, events = run(program, in_memory, *words)
    assert status == Status.CORRUPTION
    assert "changed-while-read-only" in kinds(events)


def test_a_signal_elsewhere_is_a_corruption(program: Path, in_memory: Path) -> None:
    words = ("--scenario", "munmap", "--duration", "8", "--sabotage", "stray-signal")
    status, events = run(program, in_memory, *words)
    assert status == Status.CORRUPTION
    assert kinds(events) == {"stray-signal"}


@pytest.mark.parametrize("scenario", PRIVILEGED)
def test_privileged_scenarios_pass_where_they_may_run(
    program: Path, in_memory: Path, scenario: str
) -> None:
    status, events = run(program, in_memory, "--scenario", scenario, "--duration", "2")
    if status == Status.ENVIRONMENT:
        pytest.skip(str(events[-1]["reason"]))
    assert status == Status.PASS, events[-1]
    assert events[-1]["extras"] > 0
    assert list(in_memory.iterdir()) == []


@pytest.mark.parametrize("scenario", HERE)
def test_idleness_is_no_pass(program: Path, in_memory: Path, scenario: str) -> None:
    words = ("--scenario", scenario, "--duration", "0.3", "--sabotage", "nothing")
    status, events = run(program, in_memory, *words)
    assert status == Status.NOTHING
    missing = set(events[-1]["missing"].split())
    assert {"reads", "writes", "changes", "races", "faults"} <= missing


def test_a_sabotage_that_did_nothing_is_no_pass(program: Path, in_memory: Path) -> None:
    words = ("--scenario", "dontneed", "--duration", "1", "--sabotage", "skip-change")
    status, events = run(program, in_memory, *words)
    assert status == Status.NOTHING
    assert "sabotage" in events[-1]["missing"]


def test_a_stuck_thread_is_named(program: Path, in_memory: Path) -> None:
    words = ("--scenario", "munmap", "--duration", "20", "--hang", "2", "--sabotage", "hang")
    status, events = run(program, in_memory, *words)
    assert status == Status.HANG
    hang = next(event for event in events if event["event"] == "hang")
    assert hang["op"] == "sabotage" and hang["stuck_s"] >= 2
    assert events[-1]["verdict"] == "hang"


def test_without_a_folder_it_is_the_environment(program: Path, tmp_path: Path) -> None:
    status, events = run(program, tmp_path / "absent", "--scenario", "munmap")
    assert status == Status.ENVIRONMENT
    assert "No such file" in events[-1]["reason"]


@pytest.mark.parametrize(
    ("sabotage", "status"),
    [("stale", Status.PASS), ("zero", Status.PASS), ("future", Status.CORRUPTION)]
    + [(name, Status.CORRUPTION) for name in ("torn", "wrong-file", "wrong-page")],
)
def test_a_device_that_loses_writes_may_show_old_content_and_nothing_else(
    program: Path, in_memory: Path, sabotage: str, status: Status
) -> None:
    words = ("--scenario", "mapfixed", "--inject", "device", "--sabotage", sabotage)
    ended, events = run(program, in_memory, *words, "--duration", "2", "--at-most", "20")
    assert ended == status, events[-1]
    assert events[-1]["sabotaged"] > 0


@pytest.mark.parametrize("mode", ["all", "faults", "calls"])
def test_threads_ask_for_failures_where_the_kernel_can_inject_them(
    program: Path, in_memory: Path, mode: str
) -> None:
    words = ("--scenario", "gup", "--inject", mode, "--duration", "1", "--at-most", "20")
    status, events = run(program, in_memory, *words)
    if Path("/proc/self/make-it-fail").exists():
        assert status == Status.PASS, events[-1]
    else:
        assert status == Status.ENVIRONMENT
        assert "make-it-fail" in events[-1]["reason"]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--scenario", "unheard-of"),
        ("--scenario", "munmap", "--threads", "1"),
        ("--scenario", "munmap", "--pages", "99999"),
        ("--scenario", "munmap", "--duration", "soon"),
        ("--scenario", "munmap", "--seed", "-1"),
        ("--scenario", "munmap", "--sabotage", "gently"),
        ("--scenario", "munmap", "--inject", "trouble"),
        ("--scenario", "munmap", "more"),
    ],
)
def test_usage(program: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    status, events = run(program, tmp_path, *words)
    assert status == Status.USAGE
    assert events == []


def test_the_suite_knows_its_scenarios(program: Path) -> None:
    lines = host.run((program, "--list"), timeout_s=10).text.splitlines()
    events = [json.loads(line) for line in lines]
    assert tuple(e["name"] for e in events if e["event"] == "scenario") == SCENARIOS


def test_builds_for_arm64(tmp_path: Path) -> None:
    argv = ("aarch64-linux-gnu-gcc", *WARNINGS, "-O2", "-static", "-pthread", "-o")
    host.run((*argv, tmp_path / "faultstress", SOURCE), timeout_s=120)
