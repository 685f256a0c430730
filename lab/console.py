"""Bytes of a serial console go in; a log file and whole lines come out.

A console is evidence, never a channel for results. The log has a size limit, after which lines
are still handed on: a splat that follows a flood must be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from lab.store import disk_full_explained

LOG_LIMIT_BYTES: Final = 64 << 20
LINE_LIMIT_BYTES: Final = 8192
_PANIC = "Kernel panic - not syncing"


class Console:
    """Tees a console to `path` and to `on_line(number, text)`; numbers begin at 1 and are those
    of the log's lines, as far as the log goes."""

    def __init__(
        self,
        path: Path,
        *,
        on_line: Callable[[int, str], None] | None = None,
        limit_bytes: int = LOG_LIMIT_BYTES,
    ) -> None:
        self._path = path
        self._stream = path.open("wb", buffering=0)
        self._on_line = on_line
        self._left = limit_bytes
        self._limit_bytes = limit_bytes
        self._pending = b""
        self.lines = 0
        self.received_bytes = 0
        self.panic = ""  # the line with which a kernel says that it gave up; "" if none did

    def feed(self, data: bytes) -> None:
        """Take what the console said. Raises `LabFault` when the log's disk is full."""
        self.received_bytes += len(data)
        # 8250 and PL011 consoles end lines with CR LF.
        data = data.replace(b"\r", b"")
        self._log(data)
        *whole, pending = data.split(b"\n")
        for line in whole:
            self._line(self._pending + line)
            self._pending = b""
        # The rest of an endless line is in the log only, so that it cannot fill memory.
        self._pending = (self._pending + pending)[:LINE_LIMIT_BYTES]

    def remark(self, text: str) -> None:
        """A line of the lab's own at the beginning of the log."""
        self._log(f"lab: {text}\n".encode())
        self.lines += 1

    def note(self, text: str) -> None:
        """A line of the lab's own in the log; what follows it is no longer handed on."""
        self._on_line = None
        self._log(f"\nlab: {text}\n".encode())

    def close(self) -> None:
        if self._pending:
            self._line(self._pending)
            self._pending = b""
        self._stream.close()

    def _line(self, raw: bytes) -> None:
        self.lines += 1
        text = raw[:LINE_LIMIT_BYTES].decode("utf-8", "replace")
        if not self.panic and _PANIC in text:
            self.panic = text[text.index(_PANIC) :].strip()
        if self._on_line is not None:
            self._on_line(self.lines, text)

    def _log(self, data: bytes) -> None:
        if self._left <= 0:
            return
        with disk_full_explained(self._path.parent):
            view = memoryview(data[: self._left])
            self._left -= len(view)
            while view:
                view = view[self._stream.write(view) :]
            if self._left <= 0:
                mark = f"\nlab: log cut here, after {self._limit_bytes} bytes; the guest went on\n"
                self._stream.write(mark.encode())
