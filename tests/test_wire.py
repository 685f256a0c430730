"""The codec of the control port: what it encodes it decodes, and nothing else gets through."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import wire

_text = st.text(max_size=40).filter(lambda text: "\0" not in text)
_word = _text.map(lambda text: text.encode("utf-8", "ignore").decode())
_u16 = st.integers(0, 0xFFFF)
_u32 = st.integers(0, 0xFFFFFFFF)
_u64 = st.integers(0, (1 << 64) - 1)
_data = st.binary(max_size=300)

MESSAGES: dict[type[Any], st.SearchStrategy[Any]] = {
    wire.Exec: st.builds(
        wire.Exec,
        id=_u32,
        argv=st.lists(_word, min_size=1, max_size=5).map(tuple),
        env=st.lists(_word, max_size=5).map(tuple),
        cwd=_word,
        timeout_ms=_u32,
        pty=st.booleans(),
        rows=_u16,
        columns=_u16,
    ),
    wire.Stdin: st.builds(wire.Stdin, id=_u32, data=st.binary(min_size=1, max_size=300)),
    wire.StdinEof: st.builds(wire.StdinEof, id=_u32),
    wire.Signal: st.builds(wire.Signal, id=_u32, number=_u32),
    wire.Put: st.builds(wire.Put, id=_u32, path=_word, size_bytes=_u64, mode=_u32),
    wire.Get: st.builds(wire.Get, id=_u32, path=_word, limit_bytes=_u64),
    wire.Winsize: st.builds(wire.Winsize, id=_u32, rows=_u16, columns=_u16),
    wire.Ping: st.builds(wire.Ping, data=st.binary(max_size=wire.PING_MAX)),
    wire.Poweroff: st.builds(wire.Poweroff),
    wire.Sysrq: st.builds(wire.Sysrq, keys=st.text("wldtc", max_size=wire.SYSRQ_MAX)),
    wire.Quiesce: st.builds(wire.Quiesce),
    wire.Resume: st.builds(
        wire.Resume,
        nonce=_u64,
        realtime_ns=_u64,
        seed=st.binary(min_size=wire.SEED_BYTES, max_size=wire.SEED_BYTES),
    ),
    wire.Quiesced: st.builds(wire.Quiesced),
    wire.Resumed: st.builds(wire.Resumed, nonce=_u64, uptime_us=_u64, release=_word, failure=_word),
    wire.Hello: st.builds(wire.Hello, version=_u32, uptime_us=_u64, release=_word, failure=_word),
    wire.Stdout: st.builds(wire.Stdout, id=_u32, data=_data),
    wire.Stderr: st.builds(wire.Stderr, id=_u32, data=_data),
    wire.File: st.builds(wire.File, id=_u32, data=_data),
    wire.Exit: st.builds(
        wire.Exit,
        id=_u32,
        kind=st.sampled_from(wire.ExitKind),
        value=_u32,
        stuck=_u32,
        duration_us=_u64,
    ),
    wire.Error: st.builds(wire.Error, id=_u32, errno=_u32, text=_word),
    wire.Pong: st.builds(wire.Pong, data=st.binary(max_size=wire.PING_MAX)),
    wire.Heartbeat: st.builds(wire.Heartbeat, uptime_us=_u64),
    wire.Room: st.builds(wire.Room, id=_u32, size_bytes=_u32),
}
_to_guest = st.one_of([MESSAGES[kind] for kind in get_args(wire.ToGuest)])
_to_host = st.one_of([MESSAGES[kind] for kind in get_args(wire.ToHost)])


def _cut(stream: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(marks)]


def test_every_message_has_a_strategy() -> None:
    assert set(MESSAGES) == set(get_args(wire.ToGuest)) | set(get_args(wire.ToHost))
    assert len(MESSAGES) == len(wire.FrameType)


@given(st.lists(_to_host, max_size=6), st.lists(st.integers(0, 4000), max_size=8))
def test_what_a_guest_says_is_heard_however_it_is_cut(
    messages: list[wire.ToHost], places: list[int]
) -> None:
    decoder = wire.Decoder(to_host=True)
    heard: list[wire.Message] = []
    for chunk in _cut(b"".join(map(wire.encode, messages)), places):
        heard += decoder.feed(chunk)
    assert heard == messages


@given(st.lists(_to_guest, max_size=6), st.lists(st.integers(0, 4000), max_size=8))
def test_what_the_host_says_is_heard_however_it_is_cut(
    messages: list[wire.ToGuest], places: list[int]
) -> None:
    decoder = wire.Decoder(to_host=False)
    heard: list[wire.Message] = []
    for chunk in _cut(b"".join(map(wire.encode, messages)), places):
        heard += decoder.feed(chunk)
    assert heard == messages


@given(st.binary(max_size=400))
def test_arbitrary_bytes_never_do_more_than_raise(raw: bytes) -> None:
    decoder = wire.Decoder(to_host=True)
    try:
        decoder.feed(raw)
    except wire.WireError as error:
        assert str(error)
        with pytest.raises(wire.WireError):
            decoder.feed(b"")  # and it stays broken


@given(_to_host, st.integers(0, 400), st.integers(1, 255))
def test_a_flipped_byte_is_another_message_or_an_error(
    message: wire.ToHost, at: int, flip: int
) -> None:
    raw = bytearray(wire.encode(message))
    raw[at % len(raw)] ^= flip
    try:
        heard = wire.Decoder(to_host=True).feed(bytes(raw))
    except wire.WireError:
        return
    assert heard != [message]


@given(_to_guest)
def test_a_message_for_a_guest_does_not_come_from_one(message: wire.ToGuest) -> None:
    with pytest.raises(wire.WireError, match="does not come from a guest"):
        wire.Decoder(to_host=True).feed(wire.encode(message))


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come() -> None:
    header = bytearray(wire.encode(wire.Stdout(id=1, data=b"")))
    header[12:16] = (wire.PAYLOAD_MAX + 1).to_bytes(4, "little")
    with pytest.raises(wire.WireError, match="65537 bytes; the limit is 65536"):
        wire.Decoder(to_host=True).feed(bytes(header))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (wire.Stdin(id=1, data=b"x" * (wire.PAYLOAD_MAX + 1)), "the limit"),
        (wire.Exec(id=1, argv=()), "without words"),
        (wire.Exec(id=1, argv=("a\0b",)), "NUL"),
        (wire.Put(id=1, path="/x", size_bytes=-1, mode=0), "cannot be sent"),
        (wire.Ping(data=b"x" * 65), "too long"),
    ],
)
def test_what_no_frame_can_carry(message: wire.Message, reason: str) -> None:
    with pytest.raises(wire.WireError, match=reason):
        wire.encode(message)
