"""The host's end of the wire against the real agent, compiled for this host, as a process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import os
import pty
import random
import resource
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lab import guest as guests
from lab import initramfs, wire
from lab.guest import Detached, Down, Exited, Guest, Refused, TimedOut
from lab.model import MachineEnd, UserError
from lab.store import Cache
from tests.fakeqemu import build_agent

pytestmark = pytest.mark.fake
T = TypeVar("T")


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent for this host."""
    return build_agent(tmp_path_factory.mktemp("guest"))


@contextlib.asynccontextmanager
async def _connected(
    agent: Path, **options: Any
) -> AsyncIterator[tuple[Guest, asyncio.subprocess.Process]]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            agent, "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()]
        )
    try:
        async with guests.connect(ours, **options) as guest:
            await asyncio.wait_for(asyncio.shield(guest.hello), 10)
            yield guest, process
        # Without its port the agent has no purpose left.
        assert await asyncio.wait_for(process.wait(), 10) in (0, 1, -signal.SIGKILL)
    finally:
        if process.returncode is None:
            process.kill()


def with_agent(agent: Path, use: Callable[[Guest], Awaitable[T]]) -> T:
    async def main() -> T:
        async with _connected(agent) as (guest, _):
            return await use(guest)

    return asyncio.run(main())


def shell_words(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def run(agent: Path, script: str, **options: Any) -> Exited | TimedOut | Down:
    options.setdefault("timeout_s", 20)
    return with_agent(agent, lambda guest: guest.run(shell_words(script), **options))


def _alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def _gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _alive(pid)


def test_status_and_both_streams(agent: Path) -> None:
    result = run(agent, "echo out; echo err >&2; exit 7")
    assert isinstance(result, Exited)
    assert (result.status, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    assert not result.truncated and result.signal == 0 and result.stuck == 0


def test_a_signal_is_not_a_status(agent: Path) -> None:
    result = run(agent, "kill -SEGV $$")
    assert isinstance(result, Exited)
    assert (result.status, result.signal) == (128 + signal.SIGSEGV, signal.SIGSEGV)


@pytest.mark.parametrize(
    ("argv", "cwd", "status", "reason"),
    [
        (["/nowhere/program"], "/", 127, "No such file"),
        (["/"], "/", 126, "Permission denied"),
        (["/bin/true"], "/nowhere", 127, "No such file"),
    ],
)
def test_what_cannot_be_started(
    agent: Path, argv: list[str], cwd: str, status: int, reason: str
) -> None:
    result = with_agent(agent, lambda guest: guest.run(argv, timeout_s=10, cwd=cwd))
    assert isinstance(result, Exited)
    assert result.status == status and reason in result.error
    assert reason.encode() in result.stderr and argv[0].encode() in result.stderr


def test_environment_and_folder(agent: Path) -> None:
    result = run(agent, "pwd; echo $A:$HOME:${SECRET-none}", env={"A": "x y"}, cwd="/usr")
    assert isinstance(result, Exited)
    assert result.stdout == b"/usr\nx y:/root:none\n"


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_000])
def test_stdin_of_any_length_arrives_whole(agent: Path, size: int) -> None:
    content = os.urandom(size)
    result = with_agent(agent, lambda guest: guest.run(["cat"], timeout_s=30, stdin=content))
    assert isinstance(result, Exited)
    assert result.stdout == content


def test_stdin_that_nobody_reads_blocks_nothing(agent: Path) -> None:
    result = run(agent, "exec <&-; sleep 0.2; echo done", stdin=b"x" * 1_000_000)
    assert isinstance(result, Exited)
    assert result.stdout == b"done\n"

    async def use(guest: Guest) -> tuple[Exited | TimedOut | Down, Exited | TimedOut | Down]:
        stuck = asyncio.create_task(guest.run(["sleep", "2"], timeout_s=10, stdin=b"x" * 1_000_000))
        await asyncio.sleep(0.2)
        quick = await guest.run(["echo", "hi"], timeout_s=1)
        return quick, await stuck

    quick, stuck = with_agent(agent, use)
    assert isinstance(quick, Exited) and quick.stdout == b"hi\n"
    assert isinstance(stuck, Exited) and stuck.status == 0


def test_a_time_limit_ends_all_that_was_started(agent: Path) -> None:
    script = "setsid sh -c 'echo $$; trap \"\" TERM; sleep 1000' & echo $$; sleep 1000"
    started = time.monotonic()
    result = run(agent, script, timeout_s=0.7)
    assert isinstance(result, TimedOut)
    assert result.killed and 0.6 < result.duration_s < 10
    assert time.monotonic() - started < 10
    pids = [int(word) for word in result.stdout.split()]
    assert len(pids) == 2
    assert all(_gone(pid) for pid in pids)


def test_what_a_command_leaves_behind_is_killed(agent: Path) -> None:
    # A daemon of its own session, which holds the pipes open for ever.
    result = run(agent, "(setsid sleep 1000 & echo $!) ; exit 3")
    assert isinstance(result, Exited)
    assert result.status == 3
    assert _gone(int(result.stdout.split()[0]))


def test_a_call_that_is_given_up_kills_its_command(agent: Path) -> None:
    async def use(guest: Guest) -> int:
        seen: list[bytes] = []
        task = asyncio.create_task(
            guest.run(shell_words("echo $$; sleep 1000"), timeout_s=100, on_output=seen.append)
        )
        while not seen:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        pid = int(seen[0])
        assert await asyncio.to_thread(_gone, pid)
        later = await guest.run(["echo", "still here"], timeout_s=5)
        assert isinstance(later, Exited) and later.stdout == b"still here\n"
        return pid

    assert with_agent(agent, use)


def test_output_beyond_the_limit_is_cut_and_said_so(agent: Path) -> None:
    seen = 0

    def count(data: bytes) -> None:
        nonlocal seen
        seen += len(data)

    result = run(agent, "head -c 5000000 /dev/zero", limit_bytes=1000, on_output=count)
    assert isinstance(result, Exited)
    assert result.truncated and result.stdout == b"\0" * 1000
    assert seen == 5_000_000


def test_a_gigabyte_of_output_does_not_fill_the_agent(agent: Path) -> None:
    async def main() -> tuple[Exited | TimedOut | Down, int]:
        async with _connected(agent) as (guest, process):
            result = await guest.run(
                ["head", "-c", "1000000000", "/dev/zero"], timeout_s=90, limit_bytes=10
            )
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            return result, int(peak.split()[1])

    result, peak_kib = asyncio.run(main())
    assert isinstance(result, Exited) and result.status == 0 and result.truncated
    assert peak_kib < 8192


def test_an_agent_that_is_not_listened_to_stops_reading(agent: Path) -> None:
    """Backpressure: a host that reads nothing makes the command wait, not the agent grow."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [agent, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        command = wire.Exec(id=1, argv=("head", "-c", "100000000", "/dev/zero"), env=("PATH=/bin",))
        ours.sendall(wire.encode(command))
        time.sleep(1)
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) < 8192
        theirs.close()
        ours.close()
        assert process.wait(10) in (0, 1)


def test_a_callback_that_fails_is_heard_of(agent: Path) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(agent, "echo; sleep 10", on_output=fail)


def test_many_commands_at_once(agent: Path) -> None:
    async def use(guest: Guest) -> list[Exited | TimedOut | Down]:
        return await asyncio.gather(
            *(guest.run(shell_words(f"sleep 0.1; echo {n}"), timeout_s=20) for n in range(40))
        )

    results = with_agent(agent, use)
    for number, result in enumerate(results):
        assert isinstance(result, Exited)
        assert result.stdout == f"{number}\n".encode()


def test_more_commands_than_the_agent_takes_are_refused_one_by_one(agent: Path) -> None:
    async def use(guest: Guest) -> list[Exited | TimedOut | Down]:
        return await asyncio.gather(*(guest.run(["sleep", "2"], timeout_s=20) for _ in range(66)))

    results = with_agent(agent, use)
    refused = [r for r in results if isinstance(r, Exited) and r.status == guests.NOT_RUN]
    assert len(refused) == 2 and "temporarily unavailable" in refused[0].error


def test_files_go_and_come_back(agent: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    content = os.urandom(400_000)

    async def use(guest: Guest) -> tuple[Any, Any, Any]:
        return (
            await guest.push(str(path), content, mode=0o750),
            await guest.pull(str(path), limit_bytes=400_000),
            await guest.pull(str(path), limit_bytes=399_999),
        )

    pushed, pulled, too_big = with_agent(agent, use)
    assert pushed is None
    assert path.stat().st_mode & 0o7777 == 0o750
    assert pulled == content
    assert isinstance(too_big, Refused) and too_big.errno == errno.EFBIG
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("path", "number"),
    [("/nowhere/at/all", errno.ENOENT), ("/tmp", errno.EISDIR), ("/dev/null", errno.EINVAL)],
)
def test_files_that_cannot_be_read(agent: Path, path: str, number: int) -> None:
    result = with_agent(agent, lambda guest: guest.pull(path, limit_bytes=10))
    assert isinstance(result, Refused) and result.errno == number


def test_a_file_that_cannot_be_written_is_the_guests_answer(agent: Path) -> None:
    result = with_agent(agent, lambda guest: guest.push("/dev/null/file", b"x"))
    assert isinstance(result, Refused) and result.errno == errno.ENOTDIR


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a\0b", ""])
def test_paths_that_no_guest_is_asked_for(agent: Path, path: str) -> None:
    with pytest.raises(UserError, match="path"):
        with_agent(agent, lambda guest: guest.push(path, b""))


def test_an_agent_that_dies_is_down_and_no_status(agent: Path) -> None:
    async def main() -> Exited | TimedOut | Down:
        async with _connected(agent) as (guest, process):
            task = asyncio.create_task(guest.run(["sleep", "100"], timeout_s=100))
            await asyncio.sleep(0.2)
            process.kill()
            return await asyncio.wait_for(task, 10)

    result = asyncio.run(main())
    assert isinstance(result, Down) and result.end is MachineEnd.LOST


def test_a_supervisor_that_is_killed_leaves_no_status(agent: Path) -> None:
    result = run(agent, "kill -9 $PPID; sleep 5")
    assert isinstance(result, Exited)
    assert result.status == guests.NOT_RUN and "supervisor" in result.error


def test_commands_do_not_outlive_the_agent(agent: Path) -> None:
    async def main() -> int:
        seen: list[bytes] = []
        async with _connected(agent) as (guest, process):
            task = asyncio.create_task(
                guest.run(shell_words("echo $$; sleep 1000"), timeout_s=99, on_output=seen.append)
            )
            while not seen:
                await asyncio.sleep(0.01)
            process.kill()
            await task
        return int(seen[0])

    assert _gone(asyncio.run(main()))


def test_heartbeats_come_and_ping_is_answered(agent: Path) -> None:
    async def main() -> tuple[int, float | None]:
        heard = 0

        def count() -> None:
            nonlocal heard
            heard += 1

        async with _connected(agent, on_activity=count) as (guest, _):
            pong = await guest.ping()
            await asyncio.sleep(2.5)
            return heard, pong

    heard, pong = asyncio.run(main())
    assert heard >= 4 and pong is not None and pong < 5


# --- a guest that lies -------------------------------------------------------------------------


def _against(*frames: bytes) -> Exited | TimedOut | Down:
    """What a command gives when the guest answers with these bytes."""

    async def main() -> Exited | TimedOut | Down:
        ours, theirs = socket.socketpair()
        with theirs:
            async with guests.connect(ours) as guest:
                task = asyncio.create_task(guest.run(["x"], timeout_s=5))
                for frame in frames:
                    theirs.sendall(frame)
                return await asyncio.wait_for(task, 10)

    return asyncio.run(main())


_HELLO = wire.encode(wire.Hello(version=wire.VERSION, uptime_us=1, release="6.1", failure=""))
_EXIT = wire.Exit(id=1, kind=wire.ExitKind.EXITED, value=0, stuck=0, duration_us=5)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ((b"Segmentation fault\n",), "no frame begins with"),
        ((wire.encode(_EXIT),), "Exit before Hello"),
        ((_HELLO, _HELLO), "a second Hello"),
        ((_HELLO, wire.encode(wire.Stdout(id=9, data=b"x"))), "never given"),
        ((_HELLO, wire.encode(wire.Room(id=1, size_bytes=1 << 31))), "Room for more"),
        ((_HELLO, wire.encode(wire.Pong(data=b""))), "without a Ping"),
        ((wire.encode(wire.Hello(version=9, uptime_us=1, release="", failure="")),), "version 9"),
    ],
)
def test_a_guest_that_breaks_the_protocol_is_lost(frames: tuple[bytes, ...], reason: str) -> None:
    result = _against(*frames)
    assert isinstance(result, Down)
    assert result.end is MachineEnd.LOST and reason in result.detail


def _speaking(
    speak: Callable[[socket.socket], None], *, timeout_s: float = 20
) -> Exited | TimedOut | Down:
    """What a command gives that a guest answers in this way, in a thread of its own."""

    async def main() -> Exited | TimedOut | Down:
        ours, theirs = socket.socketpair()
        speaker = threading.Thread(target=speak, args=(theirs,))
        try:
            async with guests.connect(ours) as guest:
                task = asyncio.create_task(
                    guest.run(["x"], timeout_s=timeout_s, limit_bytes=1 << 20)
                )
                await asyncio.sleep(0.05)
                speaker.start()
                return await asyncio.wait_for(task, 60)
        finally:
            theirs.close()
            speaker.join(20)

    return asyncio.run(main())


def _header(kind: wire.FrameType, length: int, number: int = 1) -> bytes:
    return struct.pack("<IHHII", wire.MAGIC, kind, 0, number, length)


@pytest.mark.parametrize("length", [wire.PAYLOAD_MAX + 1, 1 << 30, (1 << 32) - 1])
def test_a_length_that_no_frame_has_is_not_waited_for(length: int) -> None:
    result = _against(_HELLO, _header(wire.FrameType.STDOUT, length))
    assert isinstance(result, Down)
    assert result.end is MachineEnd.LOST and f"a frame of {length} bytes" in result.detail


@pytest.mark.parametrize("last", [0, 1, 15, 16, 17, 80])
def test_a_guest_that_dies_in_the_middle_of_a_message_gave_no_answer(last: int) -> None:
    frame = wire.encode(wire.Stdout(id=1, data=b"x" * 100))

    def speak(sock: socket.socket) -> None:
        sock.sendall(_HELLO + frame + frame[:last])
        sock.close()

    result = _speaking(speak)
    assert isinstance(result, Down) and result.end is MachineEnd.LOST
    assert "control port" in result.detail


def test_a_message_that_never_ends_costs_its_time_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guests, "GRACE_S", 0.5)

    def speak(sock: socket.socket) -> None:
        sock.sendall(_HELLO + _header(wire.FrameType.STDOUT, wire.PAYLOAD_MAX) + b"x" * 1000)

    result = _speaking(speak, timeout_s=0.5)
    assert isinstance(result, TimedOut) and not result.killed and result.stdout == b""


def test_messages_without_end_do_not_fill_memory() -> None:
    """300 MB on a stream that is kept to 1 MiB, and as much that nobody asked for."""
    chunk = b"".join(
        wire.encode(message)
        for message in (
            wire.Stdout(id=1, data=b"x" * wire.PAYLOAD_MAX),
            wire.Stderr(id=1, data=b"y" * wire.PAYLOAD_MAX),
            wire.Heartbeat(uptime_us=1),
        )
    )

    def speak(sock: socket.socket) -> None:
        sock.sendall(_HELLO)
        for _ in range(2300):
            sock.sendall(chunk)
        sock.sendall(wire.encode(_EXIT))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = _speaking(speak)
    assert isinstance(result, Exited) and result.truncated
    assert len(result.stdout) == len(result.stderr) == 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_random_bytes_are_never_an_answer() -> None:
    noise = random.Random(1)
    for _ in range(20):
        result = _against(_HELLO, noise.randbytes(noise.randrange(16, 5000)))
        assert isinstance(result, Down) and result.end is MachineEnd.LOST


def test_more_of_a_file_than_was_asked_for_is_refused() -> None:
    async def main() -> bytes | Refused | Down:
        ours, theirs = socket.socketpair()
        with theirs:
            async with guests.connect(ours) as guest:
                task = asyncio.create_task(guest.pull("/etc/hostname", limit_bytes=10))
                theirs.sendall(_HELLO)
                for data in (b"12345678", b"9abc"):
                    theirs.sendall(wire.encode(wire.File(id=1, data=data)))
                theirs.sendall(wire.encode(_EXIT))
                return await asyncio.wait_for(task, 10)

    result = asyncio.run(main())
    assert isinstance(result, Refused) and result.errno == errno.EFBIG


def test_the_fake_guest_of_these_tests_can_succeed() -> None:
    result = _against(_HELLO, wire.encode(_EXIT))
    assert isinstance(result, Exited) and result.status == 0


# --- interactive -------------------------------------------------------------------------------


def _type(agent: Path, keys: list[bytes], wait_for: list[bytes]) -> tuple[Any, bytes]:
    """A user at a terminal: after each text appears, the next keys are typed."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    shown = bytearray()

    def user() -> None:
        position = 0
        for text, key in zip(wait_for, keys, strict=True):
            while text not in shown[position:]:
                shown.extend(os.read(master, 4096))
            position = len(shown)
            os.write(master, key)
        with contextlib.suppress(OSError):
            while True:
                shown.extend(os.read(master, 4096))

    thread = threading.Thread(target=user, daemon=True)
    thread.start()
    try:
        result = with_agent(agent, lambda guest: guest.shell(slave, ("/bin/sh",)))
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(slave)
        thread.join(5)
        os.close(master)
    return result, bytes(shown)


def test_a_shell_on_a_terminal(agent: Path) -> None:
    result, shown = _type(
        agent,
        [b"tty; stty size; echo $((6*7))\r", b"exit 5\r"],
        [b"# " if os.geteuid() == 0 else b"$ ", b"\n42"],
    )
    assert isinstance(result, Exited) and result.status == 5
    assert b"/dev/pts/" in shown and b"not a tty" not in shown


def test_a_user_may_leave_a_shell(agent: Path) -> None:
    result, _ = _type(
        agent, [b"sleep 1000\r", b"\x1d"], [b"# " if os.geteuid() == 0 else b"$ ", b"sleep 1000"]
    )
    assert isinstance(result, Detached)


# --- the archive -------------------------------------------------------------------------------


def test_the_initramfs_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    made = [
        initramfs.initramfs("x86_64", cache=Cache(root=tmp_path / name), emit=lambda event: None)
        for name in ("one", "two")
    ]
    assert made[0].name == made[1].name
    assert made[0].read_bytes() == made[1].read_bytes()


def test_cpio_agrees_with_the_archive(tmp_path: Path) -> None:
    path = initramfs.initramfs("x86_64", cache=Cache(root=tmp_path), emit=lambda event: None)
    raw = gzip.decompress(path.read_bytes())
    done = subprocess.run(["cpio", "-itv"], input=raw, capture_output=True, check=True)
    listed = done.stdout.decode()
    assert " init\n" in listed and "5,   1" in listed and " lab/bin\n" in listed


def test_sources_with_an_error_do_not_make_an_archive(tmp_path: Path) -> None:
    sources = tmp_path / "guest"
    sources.mkdir()
    (sources / "Makefile").write_bytes((initramfs.SOURCES / "Makefile").read_bytes())
    (sources / "wire.h").write_text("")
    (sources / "agent.c").write_text("int main(void) { return unknown; }\n")
    with pytest.raises(Exception, match="unknown"):
        initramfs.initramfs(
            "x86_64", cache=Cache(root=tmp_path / "c"), emit=lambda event: None, sources=sources
        )
    assert not list((tmp_path / "c").rglob("*.cpio.gz"))


def test_a_guest_that_does_not_wake_is_lost_to_whoever_asks() -> None:
    """It was made quiet for a snapshot, and what comes next must hear that it is gone."""

    async def main() -> tuple[str | None, object]:
        ours, theirs = socket.socketpair()
        with theirs:
            async with guests.connect(ours) as guest:
                theirs.sendall(_HELLO)
                asking = asyncio.create_task(guest.quiesce(timeout_s=5))
                await asyncio.sleep(0)
                theirs.sendall(wire.encode(wire.Quiesced()))
                assert await asking
                woken = await guest.resume(timeout_s=0.1)
                guest.end(Down(end=MachineEnd.LOST, detail="it does not wake"))
                return woken, await guest.run(["true"], timeout_s=1)

    woken, answer = asyncio.run(main())
    assert woken is None
    assert isinstance(answer, Down) and answer.detail == "it does not wake"
