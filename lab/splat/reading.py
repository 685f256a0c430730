"""Console logs as files in, their splats out; and the JSON and the text that a person or CI reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.model import Splat, UserError
from lab.splat.detector import Detector

_LONGEST_LINE = 16 * 1024  # printk's longest record is 1 KiB; more is not a kernel's line


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSplats:
    """The splats of one log."""

    path: Path
    splats: tuple[Splat, ...]


def read_files(paths: Sequence[Path]) -> tuple[LogSplats, ...]:
    """The splats of each log, in the order in which they begin. Raises `UserError` (unreadable)."""
    return tuple(LogSplats(path=path, splats=_read(path)) for path in paths)


def _read(path: Path) -> tuple[Splat, ...]:
    detector = Detector()
    found: list[Splat] = []
    for line in _lines(path):
        found += detector.feed(line)
    found += detector.finish()
    return tuple(sorted(found, key=lambda splat: splat.first_line))


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as log:
            yield from log
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def as_object(splat: Splat) -> dict[str, Any]:
    """One splat as the object that `--json` prints."""
    return {
        "kind": str(splat.kind),
        "title": splat.title,
        "first_line": splat.first_line,
        "last_line": splat.last_line,
        "function": splat.function,
        "file": splat.file,
        "fingerprint": splat.fingerprint,
        "corrupted": bool(splat.corrupted),
        "reason": splat.corrupted,
        "fatal": splat.fatal,
        "locks": list(splat.locks),
    }


def to_json(splats: Sequence[Splat]) -> str:
    """A JSON list of splats."""
    return json.dumps([as_object(splat) for splat in splats], indent=1)


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters become escapes."""
    return "".join(
        char if char.isprintable() or char == " " else char.encode("unicode_escape").decode()
        for char in text
    )
