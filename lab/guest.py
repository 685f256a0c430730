"""The host's end of the wire: commands and files go into a guest, what became of them comes out.

What the guest does is a value: `Exited`, `TimedOut`, `Refused`, or `Down` if the machine ended
before an answer came. A status that never arrived is `Down`, never 0. Nothing that a guest sends
is held without a limit. Raises `UserError` for a request that no guest can serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import signal
import socket
import struct
import termios
import time
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from lab import wire
from lab.model import MachineEnd, UserError

OUTPUT_LIMIT_BYTES: Final = 16 << 20
# The guest enforces a time limit itself; so much later the host no longer waits for its word.
GRACE_S: Final = 20.0
FILE_TIMEOUT_S: Final = 120.0
DETACH_KEY: Final = b"\x1d"  # Ctrl-]
NOT_FOUND: Final = 127  # as a shell says it
NOT_RUN: Final = 126
ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PATH": "/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
}
_CHUNK = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The command's first process ended; whatever it had started was killed then."""

    status: int  # 128 plus the signal if one ended it
    stdout: bytes
    stderr: bytes
    duration_s: float
    truncated: bool  # one of the streams was longer than the limit: its beginning is here
    signal: int = 0
    error: str = ""  # why it could not be started (status 127 or 126); "" if it was
    stuck: int = 0  # processes that it left and that cannot be killed


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut:
    stdout: bytes
    stderr: bytes
    duration_s: float
    killed: bool = True  # False: the guest did not manage to end it, or did not say so


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """The machine ended."""

    end: MachineEnd
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The guest's kernel did not let a file be written or read."""

    errno: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Detached:
    """The user left an interactive shell before it ended."""


# What the wire's break means, from whoever runs the machine. The flag says that the guest broke
# the protocol, and not that the connection ended.
Settle = Callable[[str, bool], Awaitable[Down]]


async def _lost(reason: str, _broken: bool) -> Down:
    return Down(end=MachineEnd.LOST, detail=reason)


class _Capture:
    """The beginning of a stream."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._parts: list[bytes] = []
        self.truncated = False

    def take(self, data: bytes) -> None:
        if len(data) > self._left:
            self.truncated = True
            data = data[: self._left]
        self._left -= len(data)
        if data:
            self._parts.append(data)

    def content(self) -> bytes:
        return b"".join(self._parts)


class _Command:
    """What the host knows about one command under way."""

    def __init__(
        self, number: int, limit_bytes: int, on_output: Callable[[bytes], None] | None
    ) -> None:
        self.number = number
        self.name = ""  # of the program, for messages
        self.out = _Capture(limit_bytes)
        self.err = _Capture(limit_bytes)
        self.on_output = on_output
        self.done: asyncio.Future[wire.Exit | wire.Error] = (
            asyncio.get_running_loop().create_future()
        )
        self.room = wire.STDIN_WINDOW
        self.has_room = asyncio.Event()


class Guest:
    """A guest that may be asked. Made by `connect`; all calls are safe to run at once."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        settle: Settle = _lost,
        on_activity: Callable[[], None] | None = None,
        quiet: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._reader = reader
        self._writer = writer
        self._settle = settle
        self._on_activity = on_activity
        self._commands: dict[int, _Command] = {}
        self._last_number = 0
        self._pongs: list[asyncio.Future[bytes]] = []
        self._quiet = quiet  # nothing may come but the answer to a Resume
        self._quiesced: asyncio.Future[None] | None = None
        self._nonce: int | None = None  # of the Resume that is under way
        self._resumed: asyncio.Future[wire.Resumed] | None = None
        self.hello: asyncio.Future[wire.Hello] = loop.create_future()
        self.down: asyncio.Future[Down] = loop.create_future()

    # --- what callers ask for --------------------------------------------------------------

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        on_output: Callable[[bytes], None] | None = None,
        limit_bytes: int = OUTPUT_LIMIT_BYTES,
    ) -> Exited | TimedOut | Down:
        """Run a command to its end. `env` adds to `ENVIRONMENT`; `limit_bytes` is for each of
        the two streams; `on_output` gets all of both, also what the limit cuts off."""
        started = asyncio.get_running_loop().time()
        command = self._open(limit_bytes, on_output)
        try:
            message = _exec(command.number, argv, timeout_s=timeout_s, env=env, cwd=cwd)
            command.name = argv[0]
            ended = await self._ask(command, message, stdin, timeout_s + GRACE_S)
        finally:
            self._close(command)
        if isinstance(ended, Down):
            return ended
        if ended is None:
            return TimedOut(
                stdout=command.out.content(),
                stderr=command.err.content(),
                duration_s=asyncio.get_running_loop().time() - started,
                killed=False,
            )
        return _outcome(ended, command)

    async def push(self, path: str, content: bytes, *, mode: int = 0o644) -> Refused | Down | None:
        """Write a file, atomically; missing folders above it are made. None: it is there."""
        _check_path(path)
        command = self._open(0, None)
        message = wire.Put(
            id=command.number, path=path, size_bytes=len(content), mode=mode & 0o7777
        )
        try:
            ended = await self._ask(command, message, content, FILE_TIMEOUT_S)
        finally:
            self._close(command)
        return _refusal(ended)

    async def pull(self, path: str, *, limit_bytes: int) -> bytes | Refused | Down:
        """The content of a regular file; one above the limit is refused with EFBIG, not cut."""
        _check_path(path)
        command = self._open(limit_bytes, None)
        message = wire.Get(id=command.number, path=path, limit_bytes=limit_bytes)
        try:
            ended = await self._ask(command, message, None, FILE_TIMEOUT_S)
        finally:
            self._close(command)
        refused = _refusal(ended)
        if refused is not None:
            return refused
        if command.out.truncated:
            return Refused(errno=errno.EFBIG, text="the guest sent more than it was asked for")
        return command.out.content()

    async def ping(self, *, timeout_s: float = 10.0) -> float | None:
        """Seconds to the agent and back; None if no answer came in time."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bytes] = loop.create_future()
        self._pongs.append(waiter)
        started = loop.time()
        await self._send(wire.Ping(data=b"ping"))
        await asyncio.wait((waiter, self.down), timeout=timeout_s, return_when="FIRST_COMPLETED")
        return loop.time() - started if waiter.done() and not waiter.cancelled() else None

    async def quiesce(self, *, timeout_s: float = 10.0) -> bool:
        """Make the guest silent, so that its machine can be saved; whether it is.

        Until `resume` nothing may be asked. Commands must not be under way.
        """
        assert not self._commands, "a command is under way"
        self._quiesced = asyncio.get_running_loop().create_future()
        await self._send(wire.Quiesce())
        waits = (self._quiesced, self.down)
        await asyncio.wait(waits, timeout=timeout_s, return_when="FIRST_COMPLETED")
        return self._quiesced.done() and not self.down.done()

    async def resume(self, *, timeout_s: float = 10.0) -> str | None:
        """Wake a quiet guest with the time of day and fresh randomness; "" if all went well, else
        what went wrong, None if it did not answer.

        The answer carries a number that was drawn here: bytes that were left over from before
        the snapshot, or from another machine, cannot be taken for it.
        """
        self._nonce = secrets.randbits(64)
        self._resumed = asyncio.get_running_loop().create_future()
        message = wire.Resume(
            nonce=self._nonce,
            realtime_ns=time.time_ns(),
            seed=secrets.token_bytes(wire.SEED_BYTES),
        )
        await self._send(message)
        waits = (self._resumed, self.down)
        await asyncio.wait(waits, timeout=timeout_s, return_when="FIRST_COMPLETED")
        return self._resumed.result().failure if self._resumed.done() else None

    async def sysrq(self, keys: str) -> None:
        """Have the guest's kernel print about itself, on its console."""
        await self._send(wire.Sysrq(keys=keys))

    async def poweroff(self) -> None:
        """Ask for the end at once, without a sync: the disks are thrown away."""
        await self._send(wire.Poweroff())

    async def shell(
        self, tty_fd: int, argv: Sequence[str] = ("/bin/sh", "-l")
    ) -> Exited | Detached | Down:
        """Give the terminal `tty_fd` to a command in the guest until it ends or the user types
        Ctrl-]. The terminal's mode is restored, whatever happens."""

        def show(data: bytes) -> None:
            while data:
                data = data[os.write(tty_fd, data) :]

        command = self._open(0, show)
        rows, columns = _window(tty_fd)
        message = _exec(
            command.number,
            argv,
            timeout_s=0,
            env={"TERM": os.environ.get("TERM", "vt100")},
            cwd="/",
            terminal=(rows, columns),
        )
        loop = asyncio.get_running_loop()
        command.name = argv[0]
        with _raw_mode(tty_fd):
            await self._send(message)
            keys = asyncio.create_task(self._forward_keys(command, tty_fd))
            loop.add_signal_handler(signal.SIGWINCH, self._resize, command, tty_fd)
            try:
                waits = (command.done, self.down, keys)
                await asyncio.wait(waits, return_when="FIRST_COMPLETED")
                if command.done.done():
                    return _outcome_of_shell(command)
                return self.down.result() if self.down.done() else Detached()
            finally:
                loop.remove_signal_handler(signal.SIGWINCH)
                keys.cancel()
                await asyncio.gather(keys, return_exceptions=True)
                self._close(command)

    # --- how it is done --------------------------------------------------------------------

    def _open(self, limit_bytes: int, on_output: Callable[[bytes], None] | None) -> _Command:
        self._last_number += 1
        command = _Command(self._last_number, limit_bytes, on_output)
        self._commands[command.number] = command
        return command

    def _close(self, command: _Command) -> None:
        """Forget a command; one that still runs is killed."""
        del self._commands[command.number]
        if not command.done.done() and not self.down.done():
            kill = wire.Signal(id=command.number, number=wire.KILL_ALL)
            with contextlib.suppress(OSError):
                self._writer.write(wire.encode(kill))

    async def _ask(
        self, command: _Command, message: wire.ToGuest, stdin: bytes | None, limit_s: float
    ) -> wire.Exit | wire.Error | Down | None:
        """Send, feed, wait for the end; None if none came within `limit_s`."""
        feeder = asyncio.create_task(self._start(command, message, stdin))
        try:
            await asyncio.wait(
                (command.done, self.down), timeout=limit_s, return_when="FIRST_COMPLETED"
            )
        finally:
            feeder.cancel()
            fed = await asyncio.gather(feeder, return_exceptions=True)
        if isinstance(fed[0], Exception):
            raise fed[0]
        if command.done.done():
            return command.done.result()
        return self.down.result() if self.down.done() else None

    async def _start(self, command: _Command, message: wire.ToGuest, stdin: bytes | None) -> None:
        await self._send(message)
        if stdin is not None:
            await self._feed(command, stdin)
            await self._send(wire.StdinEof(id=command.number))

    async def _feed(self, command: _Command, data: bytes) -> None:
        """Send stdin, never more than the guest said it has room for."""
        view = memoryview(data)
        while view:
            while command.room == 0:
                command.has_room.clear()
                await command.has_room.wait()
            size = min(len(view), command.room, _CHUNK)
            command.room -= size
            await self._send(wire.Stdin(id=command.number, data=bytes(view[:size])))
            view = view[size:]

    async def _send(self, message: wire.ToGuest) -> None:
        """Send one frame; on a broken connection it goes nowhere, and `down` says so."""
        if self.down.done():
            return
        assert not self._quiet or isinstance(message, wire.Resume | wire.Poweroff), "it is quiet"
        frame = wire.encode(message)
        with contextlib.suppress(OSError):
            self._writer.write(frame)
            await self._writer.drain()

    async def _forward_keys(self, command: _Command, tty_fd: int) -> None:
        """Keys to the guest, until the detach key or the terminal's end."""
        while True:
            await _readable(tty_fd)
            keys = os.read(tty_fd, 4096)
            before, detach, _ = keys.partition(DETACH_KEY)
            await self._feed(command, before)
            if detach or not keys:
                return

    def _resize(self, command: _Command, tty_fd: int) -> None:
        rows, columns = _window(tty_fd)
        frame = wire.encode(wire.Winsize(id=command.number, rows=rows, columns=columns))
        with contextlib.suppress(OSError):
            self._writer.write(frame)

    async def listen(self) -> None:
        """Take what the guest says until the connection ends, then settle what that means."""
        decoder = wire.Decoder(to_host=True)
        reason, broken = "the guest's control port was closed", False
        try:
            while data := await self._reader.read(65536):
                if self._on_activity is not None:
                    self._on_activity()
                for message in decoder.feed(data):
                    self._take(message)
        except wire.WireError as error:
            reason, broken = f"the guest broke the protocol: {error}", True
        except OSError as error:
            reason = f"the guest's control port broke: {error}"
        except Exception as error:  # of a callback: whoever waits must hear of it
            if not self.down.done():
                self.down.set_exception(error)
            return
        self.end(await self._settle(reason, broken))

    def end(self, down: Down) -> None:
        """The machine is no more; the first word on that is the last."""
        if not self.down.done():
            self.down.set_result(down)

    def _take(self, message: wire.Message) -> None:
        if self._quiet:
            self._take_while_quiet(message)
            return
        if not self.hello.done() and not isinstance(message, wire.Hello):
            raise wire.WireError(f"{type(message).__name__} before Hello")
        match message:
            case wire.Hello():
                if self.hello.done():
                    raise wire.WireError("a second Hello")
                if message.version != wire.VERSION:
                    raise wire.WireError(f"protocol version {message.version}")
                self.hello.set_result(message)
            case wire.Heartbeat():
                pass
            case wire.Pong():
                if not self._pongs:
                    raise wire.WireError("a Pong without a Ping")
                waiter = self._pongs.pop(0)
                if not waiter.done():
                    waiter.set_result(message.data)
            case wire.Stdout() | wire.Stderr() | wire.File() | wire.Exit() | wire.Error():
                self._take_for_command(message)
            case wire.Room():
                command = self._command(message.id)
                if command is not None:
                    command.room += message.size_bytes
                    if command.room > wire.STDIN_WINDOW:
                        raise wire.WireError("Room for more than was sent")
                    command.has_room.set()
            case wire.Quiesced():
                if self._quiesced is None or self._quiesced.done():
                    raise wire.WireError("a Quiesced that nobody asked for")
                self._quiet = True
                self._quiesced.set_result(None)
            case _:
                raise wire.WireError(f"a {type(message).__name__}")

    def _take_while_quiet(self, message: wire.Message) -> None:
        if not isinstance(message, wire.Resumed) or message.nonce != self._nonce:
            raise wire.WireError(f"a {type(message).__name__} from before the snapshot")
        self._quiet, self._nonce = False, None
        if not self.hello.done():
            # On this side of the snapshot nobody has heard the first one.
            self.hello.set_result(
                wire.Hello(
                    version=wire.VERSION,
                    uptime_us=message.uptime_us,
                    release=message.release,
                    failure=message.failure,
                )
            )
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(message)

    def _take_for_command(
        self, message: wire.Stdout | wire.Stderr | wire.File | wire.Exit | wire.Error
    ) -> None:
        command = self._command(message.id)
        if command is None:
            return
        match message:
            case wire.Exit() | wire.Error():
                if command.done.done():
                    raise wire.WireError("a second end of one command")
                command.done.set_result(message)
            case wire.Stdout() | wire.Stderr() | wire.File():
                stream = command.err if isinstance(message, wire.Stderr) else command.out
                stream.take(message.data)
                if command.on_output is not None:
                    command.on_output(message.data)

    def _command(self, number: int) -> _Command | None:
        """The command of that number; None if the host gave it up in the meantime."""
        if not 0 < number <= self._last_number:
            raise wire.WireError(f"an answer to command {number}, which was never given")
        return self._commands.get(number)


@contextlib.asynccontextmanager
async def connect(
    sock: socket.socket,
    *,
    settle: Settle = _lost,
    on_activity: Callable[[], None] | None = None,
    quiet: bool = False,
) -> AsyncIterator[Guest]:
    """A guest at the other end of `sock`, which this takes over. It may not have said hello.

    A `quiet` one begins from a snapshot, and waits for `resume`.
    """
    reader, writer = await asyncio.open_connection(sock=sock)
    guest = Guest(reader, writer, settle=settle, on_activity=on_activity, quiet=quiet)
    listener = asyncio.create_task(guest.listen())
    try:
        yield guest
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
        guest.end(Down(end=MachineEnd.POWERED_OFF, detail="the lab was done"))
        writer.transport.abort()


def _exec(
    number: int,
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None,
    cwd: str,
    terminal: tuple[int, int] | None = None,
) -> wire.Exec:
    pairs = {**ENVIRONMENT, **(env or {})}
    rows, columns = terminal or (0, 0)
    message = wire.Exec(
        id=number,
        argv=tuple(argv),
        env=tuple(f"{name}={value}" for name, value in sorted(pairs.items())),
        cwd=cwd,
        timeout_ms=min(0xFFFFFFFF, round(timeout_s * 1000)),
        pty=terminal is not None,
        rows=rows,
        columns=columns,
    )
    try:
        wire.encode(message)
    except wire.WireError as error:
        raise UserError(f"a command that no guest can be given: {error}") from error
    return message


def _outcome(ended: wire.Exit | wire.Error, command: _Command) -> Exited | TimedOut:
    stdout, stderr = command.out.content(), command.err.content()
    truncated = command.out.truncated or command.err.truncated
    if isinstance(ended, wire.Error):
        status = NOT_FOUND if ended.errno == errno.ENOENT else NOT_RUN
        return Exited(
            status=status,
            stdout=stdout,
            # As a shell would have said it; `error` tells it from a program's own words.
            stderr=stderr or f"{command.name}: {ended.text}\n".encode("utf-8", "surrogateescape"),
            duration_s=0.0,
            truncated=truncated,
            error=f"{command.name}: {ended.text or f'errno {ended.errno}'}",
        )
    duration_s = ended.duration_us / 1e6
    if ended.kind is wire.ExitKind.TIMED_OUT:
        return TimedOut(
            stdout=stdout, stderr=stderr, duration_s=duration_s, killed=ended.stuck == 0
        )
    by_signal = ended.value if ended.kind is wire.ExitKind.SIGNALLED else 0
    return Exited(
        status=128 + by_signal if by_signal else ended.value,
        stdout=stdout,
        stderr=stderr,
        duration_s=duration_s,
        truncated=truncated,
        signal=by_signal,
        stuck=ended.stuck,
    )


def _outcome_of_shell(command: _Command) -> Exited:
    outcome = _outcome(command.done.result(), command)
    assert isinstance(outcome, Exited), "a shell has no time limit"
    return outcome


def _refusal(ended: wire.Exit | wire.Error | Down | None) -> Refused | Down | None:
    """None if the transfer is whole."""
    match ended:
        case None:
            return Refused(errno=errno.ETIMEDOUT, text=f"not done after {FILE_TIMEOUT_S:.0f} s")
        case wire.Error():
            return Refused(errno=ended.errno, text=ended.text)
        case wire.Exit(kind=wire.ExitKind.EXITED, value=0):
            return None
        case wire.Exit():
            return Refused(errno=errno.EINTR, text="the transfer was killed in the guest")
        case Down():
            return ended


def _check_path(path: str) -> None:
    if not path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise UserError(f"not an absolute, plain path in a guest: {path!r}")


def _window(tty_fd: int) -> tuple[int, int]:
    """Rows and columns of a terminal."""
    raw = fcntl.ioctl(tty_fd, termios.TIOCGWINSZ, b"\0" * 8)
    rows, columns = struct.unpack_from("HH", raw)
    return rows, columns


@contextlib.contextmanager
def _raw_mode(tty_fd: int) -> Iterator[None]:
    before = termios.tcgetattr(tty_fd)
    try:
        tty.setraw(tty_fd)
        yield
    finally:
        termios.tcsetattr(tty_fd, termios.TCSADRAIN, before)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        loop.remove_reader(fd)
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
