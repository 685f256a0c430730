"""The leash: when the lab dies, by whatever means, nothing that it started lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.fake

LEASH = Path(__file__).parent.parent / "lab" / "leash.py"
# Four ways to leave the family: a new process group, a new session, a daemon's double fork,
# and deafness to every polite signal.
FAMILY = """
note() {{ echo $1 >> {pids}; }}
note $$
sh -c 'echo $$ >> {pids}; exec sleep 600' &
setsid sh -c 'echo $$ >> {pids}; exec sleep 600' &
(setsid sh -c 'sh -c "echo \\$\\$ >> {pids}; exec sleep 600" & exit 0' &)
setsid sh -c 'trap "" TERM INT HUP QUIT; echo $$ >> {pids}; sleep 600; sleep 600' &
wait
"""
MEMBERS = 5
LAB = """
import asyncio, sys
from lab import host
argv = ["sh", "-c", sys.argv[2]]
async def main():
    async with host.spawn(argv):
        await asyncio.sleep(600)
if sys.argv[1] == "run":
    host.run(argv, leash=True, timeout_s=600)
else:
    asyncio.run(main())
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def family(pids: Path) -> list[int]:
    """Ids of the whole family, once all have said theirs."""
    deadline = time.monotonic() + 30
    while True:
        found = [int(line) for line in pids.read_text().split()] if pids.exists() else []
        if len(found) == MEMBERS:
            return found
        assert time.monotonic() < deadline, f"only {found} came up"
        time.sleep(0.02)


def all_dead(pids: list[int], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("way", ["run", "spawn"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_lab_dies_and_all_its_family_with_it(
    way: str, end: signal.Signals, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    lab = subprocess.Popen([sys.executable, "-c", LAB, way, FAMILY.format(pids=pids)])
    try:
        members = family(pids)
        assert all(alive(pid) for pid in members)
    finally:
        lab.send_signal(end)
        lab.wait(20)
    assert all_dead(members), [pid for pid in members if alive(pid)]


def test_interrupts_from_the_terminal_do_not_reach_what_is_on_the_leash(tmp_path: Path) -> None:
    """The lab decides when its children end: Ctrl-C may mean *save first*."""
    pids = tmp_path / "pids"
    inner, ours = os.pipe()
    leash = subprocess.Popen(
        [sys.executable, "-ISE", LEASH, str(inner), "sh", "-c", FAMILY.format(pids=pids)],
        pass_fds=(inner,),
    )
    os.close(inner)
    try:
        members = family(pids)
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            leash.send_signal(sig)
        time.sleep(0.3)
        assert leash.poll() is None
        assert all(alive(pid) for pid in members)
    finally:
        os.close(ours)
    assert leash.wait(20) == 128 + signal.SIGKILL
    assert all_dead(members)


def leashed(*argv: str) -> tuple[int, bytes]:
    inner, ours = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-ISE", LEASH, str(inner), *argv],
            pass_fds=(inner,),
            capture_output=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(inner)
        os.close(ours)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 5", 5), ("kill -KILL $$", 137)]
)
def test_the_status_comes_through(script: str, status: int) -> None:
    assert leashed("sh", "-c", script)[0] == status


def test_a_command_that_is_not_there() -> None:
    status, said = leashed("/no/such/command")
    assert status == 127
    assert b"/no/such/command: No such file" in said


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"setsid sh -c 'echo $$ > {pids}; exec sleep 600' & until [ -s {pids} ]; do :; done"
    assert leashed("sh", "-c", script)[0] == 0
    assert all_dead([int(pids.read_text())])
