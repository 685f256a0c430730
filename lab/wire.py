"""Bytes of the guest's control port go in, messages come out, and the reverse. Pure.

The other end is images/guest/wire.h. `Decoder` trusts nothing: every length has a limit, and
what breaks the format is a `WireError` with the reason. After one, a stream is of no more use.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, assert_never

MAGIC: Final = 0x5742414C  # "LABW"
VERSION: Final = 2
PAYLOAD_MAX: Final = 65536
STDIN_WINDOW: Final = 65536  # bytes of stdin that may be under way without a Room
PING_MAX: Final = 64
SYSRQ_MAX: Final = 16
SEED_BYTES: Final = 64  # of randomness in a Resume
KILL_ALL: Final = 0  # the number of a Signal that ends a command and all it started

_HEADER = struct.Struct("<IHHII")
_EXEC = struct.Struct("<IHHHHH")
_PUT = struct.Struct("<QI")
_HELLO = struct.Struct("<IQ")
_EXIT = struct.Struct("<IIIQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_WINSIZE = struct.Struct("<HH")
_RESUME = struct.Struct(f"<QQ{SEED_BYTES}s")
_RESUMED = struct.Struct("<QQ")
_FLAG_PTY = 1


class WireError(ValueError):
    """The bytes are not frames, or not frames that may come here; says why."""


class FrameType(IntEnum):
    EXEC = 0x01
    STDIN = 0x02
    STDIN_EOF = 0x03
    SIGNAL = 0x04
    PUT = 0x05
    GET = 0x06
    WINSIZE = 0x07
    PING = 0x08
    POWEROFF = 0x09
    SYSRQ = 0x0A
    QUIESCE = 0x0B
    RESUME = 0x0C

    HELLO = 0x81
    STDOUT = 0x82
    STDERR = 0x83
    EXIT = 0x84
    FILE = 0x85
    ERROR = 0x86
    PONG = 0x87
    HEARTBEAT = 0x88
    ROOM = 0x89
    QUIESCED = 0x8A
    RESUMED = 0x8B


_WITHOUT_COMMAND = frozenset(
    (
        FrameType.PING,
        FrameType.POWEROFF,
        FrameType.SYSRQ,
        FrameType.HELLO,
        FrameType.PONG,
        FrameType.HEARTBEAT,
        FrameType.QUIESCE,
        FrameType.RESUME,
        FrameType.QUIESCED,
        FrameType.RESUMED,
    )
)


class ExitKind(IntEnum):
    EXITED = 1
    SIGNALLED = 2
    TIMED_OUT = 3


# --- host to guest -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """Run a command. Strings hold no NUL; `timeout_ms` 0 means none."""

    id: int
    argv: tuple[str, ...]
    env: tuple[str, ...] = ()  # NAME=VALUE
    cwd: str = "/"
    timeout_ms: int = 0
    pty: bool = False
    rows: int = 0
    columns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdin:
    id: int
    data: bytes  # not empty


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinEof:
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    id: int
    number: int  # or KILL_ALL


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Write a file atomically; its content follows as Stdin and StdinEof."""

    id: int
    path: str
    size_bytes: int
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    id: int
    path: str
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Winsize:
    id: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Poweroff:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysrq:
    keys: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiesce:
    """Say Quiesced once no command runs, and then nothing until a Resume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """To a quiet guest: it goes on, or begins from a snapshot, with this time and randomness."""

    nonce: int  # 64 bits; comes back in Resumed
    realtime_ns: int  # since 1970
    seed: bytes  # SEED_BYTES


# --- guest to host -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    version: int
    uptime_us: int
    release: str
    failure: str  # what went wrong in setting up the guest; "" if nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdout:
    id: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stderr:
    id: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    id: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The last message of a command that ran."""

    id: int
    kind: ExitKind
    value: int  # status or signal
    stuck: int  # processes that it left behind and that cannot be killed
    duration_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """The last message of a command that could not run."""

    id: int
    errno: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    uptime_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    id: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiesced:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    nonce: int
    uptime_us: int
    release: str
    failure: str  # what of the Resume could not be done; "" if nothing


# fmt: off
ToGuest = (
    Exec | Stdin | StdinEof | Signal | Put | Get | Winsize | Ping | Poweroff | Sysrq
    | Quiesce | Resume
)
ToHost = (
    Hello | Stdout | Stderr | File | Exit | Error | Pong | Heartbeat | Room | Quiesced | Resumed
)
# fmt: on
Message = ToGuest | ToHost


# --- encoding ----------------------------------------------------------------------------------


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise WireError(f"a string with a NUL: {text[:60]!r}")
    return raw + b"\0"


def _exec_payload(message: Exec) -> bytes:
    if not message.argv:
        raise WireError("a command without words")
    head = _EXEC.pack(
        message.timeout_ms,
        _FLAG_PTY if message.pty else 0,
        message.rows,
        message.columns,
        len(message.argv),
        len(message.env),
    )
    return head + b"".join(map(_string, (message.cwd, *message.argv, *message.env)))


def _to_guest(message: ToGuest) -> tuple[FrameType, int, bytes]:
    match message:
        case Exec():
            return FrameType.EXEC, message.id, _exec_payload(message)
        case Stdin():
            if not message.data:
                raise WireError("an empty Stdin")
            return FrameType.STDIN, message.id, message.data
        case StdinEof():
            return FrameType.STDIN_EOF, message.id, b""
        case Signal():
            return FrameType.SIGNAL, message.id, _U32.pack(message.number)
        case Put():
            head = _PUT.pack(message.size_bytes, message.mode)
            return FrameType.PUT, message.id, head + _string(message.path)
        case Get():
            head = _U64.pack(message.limit_bytes)
            return FrameType.GET, message.id, head + _string(message.path)
        case Winsize():
            window = _WINSIZE.pack(message.rows, message.columns)
            return FrameType.WINSIZE, message.id, window
        case Ping():
            if len(message.data) > PING_MAX:
                raise WireError("a Ping that is too long")
            return FrameType.PING, 0, message.data
        case Poweroff():
            return FrameType.POWEROFF, 0, b""
        case Sysrq():
            raw = message.keys.encode("ascii")
            if len(raw) > SYSRQ_MAX:
                raise WireError("too many Sysrq keys")
            return FrameType.SYSRQ, 0, raw
        case Quiesce():
            return FrameType.QUIESCE, 0, b""
        case Resume():
            if len(message.seed) != SEED_BYTES:
                raise WireError(f"a seed of {len(message.seed)} bytes")
            resume = _RESUME.pack(message.nonce, message.realtime_ns, message.seed)
            return FrameType.RESUME, 0, resume
        case _:
            assert_never(message)


def _to_host(message: ToHost) -> tuple[FrameType, int, bytes]:
    match message:
        case Hello():
            payload = _HELLO.pack(message.version, message.uptime_us)
            payload += _string(message.release) + _string(message.failure)
            return FrameType.HELLO, 0, payload
        case Stdout():
            return FrameType.STDOUT, message.id, message.data
        case Stderr():
            return FrameType.STDERR, message.id, message.data
        case File():
            return FrameType.FILE, message.id, message.data
        case Exit():
            payload = _EXIT.pack(message.kind, message.value, message.stuck, message.duration_us)
            return FrameType.EXIT, message.id, payload
        case Error():
            return FrameType.ERROR, message.id, _U32.pack(message.errno) + _string(message.text)
        case Pong():
            return FrameType.PONG, 0, message.data
        case Heartbeat():
            return FrameType.HEARTBEAT, 0, _U64.pack(message.uptime_us)
        case Room():
            return FrameType.ROOM, message.id, _U32.pack(message.size_bytes)
        case Quiesced():
            return FrameType.QUIESCED, 0, b""
        case Resumed():
            payload = _RESUMED.pack(message.nonce, message.uptime_us)
            payload += _string(message.release) + _string(message.failure)
            return FrameType.RESUMED, 0, payload
        case _:
            assert_never(message)


def encode(message: Message) -> bytes:
    """The frame of a message. Raises `WireError` for one that no frame can carry."""
    try:
        if isinstance(message, ToGuest):
            kind, number, payload = _to_guest(message)
        else:
            kind, number, payload = _to_host(message)
        if len(payload) > PAYLOAD_MAX:
            raise WireError(f"{kind.name} of {len(payload)} bytes; the limit is {PAYLOAD_MAX}")
        return _HEADER.pack(MAGIC, kind, 0, number, len(payload)) + payload
    except (struct.error, UnicodeError) as error:
        raise WireError(f"{type(message).__name__} cannot be sent: {error}") from error


# --- decoding ----------------------------------------------------------------------------------


def _strings(raw: bytes, count: int) -> list[str]:
    parts = raw.split(b"\0")
    if len(parts) != count + 1 or parts[-1]:
        raise WireError(f"{count} strings expected")
    return [part.decode("utf-8", "surrogateescape") for part in parts[:-1]]


def _decode_exec(number: int, raw: bytes) -> Exec:
    timeout_ms, flags, rows, columns, argc, envc = _EXEC.unpack_from(raw)
    if not argc or flags & ~_FLAG_PTY:
        raise WireError("an Exec without words or with unknown flags")
    cwd, *words = _strings(raw[_EXEC.size :], 1 + argc + envc)
    return Exec(
        id=number,
        argv=tuple(words[:argc]),
        env=tuple(words[argc:]),
        cwd=cwd,
        timeout_ms=timeout_ms,
        pty=bool(flags & _FLAG_PTY),
        rows=rows,
        columns=columns,
    )


def _decode_to_guest(kind: FrameType, number: int, raw: bytes) -> ToGuest:
    match kind:
        case FrameType.EXEC:
            return _decode_exec(number, raw)
        case FrameType.STDIN:
            if not raw:
                raise WireError("an empty Stdin")
            return Stdin(id=number, data=raw)
        case FrameType.STDIN_EOF:
            _nothing(raw)
            return StdinEof(id=number)
        case FrameType.SIGNAL:
            return Signal(id=number, number=_U32.unpack(raw)[0])
        case FrameType.PUT:
            size_bytes, mode = _PUT.unpack_from(raw)
            (path,) = _strings(raw[_PUT.size :], 1)
            return Put(id=number, path=path, size_bytes=size_bytes, mode=mode)
        case FrameType.GET:
            (path,) = _strings(raw[_U64.size :], 1)
            return Get(id=number, path=path, limit_bytes=_U64.unpack_from(raw)[0])
        case FrameType.WINSIZE:
            rows, columns = _WINSIZE.unpack(raw)
            return Winsize(id=number, rows=rows, columns=columns)
        case FrameType.PING if len(raw) <= PING_MAX:
            return Ping(data=raw)
        case FrameType.POWEROFF:
            _nothing(raw)
            return Poweroff()
        case FrameType.SYSRQ if len(raw) <= SYSRQ_MAX:
            return Sysrq(keys=raw.decode("ascii"))
        case FrameType.QUIESCE:
            _nothing(raw)
            return Quiesce()
        case FrameType.RESUME:
            nonce, realtime_ns, seed = _RESUME.unpack(raw)
            return Resume(nonce=nonce, realtime_ns=realtime_ns, seed=seed)
        case _:
            raise WireError(f"{kind.name} of {len(raw)} bytes does not go to a guest")


def _decode_to_host(kind: FrameType, number: int, raw: bytes) -> ToHost:
    match kind:
        case FrameType.HELLO:
            version, uptime_us = _HELLO.unpack_from(raw)
            release, failure = _strings(raw[_HELLO.size :], 2)
            return Hello(version=version, uptime_us=uptime_us, release=release, failure=failure)
        case FrameType.STDOUT:
            return Stdout(id=number, data=raw)
        case FrameType.STDERR:
            return Stderr(id=number, data=raw)
        case FrameType.FILE:
            return File(id=number, data=raw)
        case FrameType.EXIT:
            code, value, stuck, duration_us = _EXIT.unpack(raw)
            return Exit(
                id=number, kind=_exit_kind(code), value=value, stuck=stuck, duration_us=duration_us
            )
        case FrameType.ERROR:
            (text,) = _strings(raw[_U32.size :], 1)
            return Error(id=number, errno=_U32.unpack_from(raw)[0], text=text)
        case FrameType.PONG if len(raw) <= PING_MAX:
            return Pong(data=raw)
        case FrameType.HEARTBEAT:
            return Heartbeat(uptime_us=_U64.unpack(raw)[0])
        case FrameType.ROOM:
            return Room(id=number, size_bytes=_U32.unpack(raw)[0])
        case FrameType.QUIESCED:
            _nothing(raw)
            return Quiesced()
        case FrameType.RESUMED:
            nonce, uptime_us = _RESUMED.unpack_from(raw)
            release, failure = _strings(raw[_RESUMED.size :], 2)
            return Resumed(nonce=nonce, uptime_us=uptime_us, release=release, failure=failure)
        case _:
            raise WireError(f"{kind.name} of {len(raw)} bytes does not come from a guest")


def _exit_kind(code: int) -> ExitKind:
    try:
        return ExitKind(code)
    except ValueError:
        raise WireError(f"an Exit of unknown kind {code}") from None


def _nothing(raw: bytes) -> None:
    if raw:
        raise WireError("a payload where there is none")


class Decoder:
    """An incremental decoder of one direction; holds at most one frame that is not whole."""

    def __init__(self, *, to_host: bool) -> None:
        self._to_host = to_host
        self._pending = bytearray()
        self._broken: WireError | None = None

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. Raises `WireError`, then and ever after."""
        if self._broken is not None:
            raise self._broken
        self._pending += data
        messages: list[Message] = []
        try:
            while (message := self._next()) is not None:
                messages.append(message)
        except WireError as error:
            self._broken = error
            raise
        return messages

    def _next(self) -> Message | None:
        if len(self._pending) < _HEADER.size:
            return None
        magic, code, zero, number, length = _HEADER.unpack_from(self._pending)
        if magic != MAGIC or zero != 0:
            raise WireError(f"no frame begins with {bytes(self._pending[:16]).hex()}")
        if length > PAYLOAD_MAX:
            raise WireError(f"a frame of {length} bytes; the limit is {PAYLOAD_MAX}")
        try:
            kind = FrameType(code)
        except ValueError:
            raise WireError(f"a frame of unknown type {code:#x}") from None
        if number and kind in _WITHOUT_COMMAND:
            raise WireError(f"a {kind.name} of command {number}")
        end = _HEADER.size + length
        if len(self._pending) < end:
            return None
        raw = bytes(self._pending[_HEADER.size : end])
        del self._pending[:end]
        try:
            if self._to_host:
                return _decode_to_host(kind, number, raw)
            return _decode_to_guest(kind, number, raw)
        except (struct.error, UnicodeError) as error:
            raise WireError(f"a malformed {kind.name}: {error}") from error
