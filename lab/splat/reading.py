"""Console logs as files in, their splats out; JSON and terminal text for those who read them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lab.model import CodeFrame, Splat, UserError
from lab.splat import locks, taint
from lab.splat.detector import LOOK_BACK, Detector
from lab.splat.formats import BOOT_GATES, GATES

_BLOCK_BYTES = 256 * 1024
_LONGEST_LINE = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSplats:
    """The splats of one log."""

    path: Path
    splats: tuple[Splat, ...]
    taint: str = ""  # letters of every "Tainted:" in it
    beyond: int = 0  # reports that are in it and were only counted


def read_files(paths: Sequence[Path]) -> tuple[LogSplats, ...]:
    """The splats of each log, in the order in which they begin. Raises `UserError` (unreadable)."""
    return tuple(_read(path) for path in paths)


def missed(logs: Sequence[LogSplats]) -> Iterator[str]:
    """What the lists of splats do not show: too many, or a taint that none accounts for."""
    for log in logs:
        if log.beyond:
            yield f"{log.path}: {log.beyond} more reports are not listed"
        for each in taint.unexplained(log.taint, log.splats):
            yield (
                f"{log.path}: tainted ({each.letter}: {each.meaning}) without a report: "
                "it was missed, or it came before this log begins"
            )


def _read(path: Path) -> LogSplats:
    try:
        with path.open("rb") as log:
            return _scan(path, log)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _scan(path: Path, log: BinaryIO) -> LogSplats:
    letters: set[str] = set()
    detector = Detector()
    found = scan_stream(log, detector, on_taint=letters.update)
    return LogSplats(
        path=path,
        splats=tuple(sorted(found, key=lambda splat: splat.first_line)),
        taint="".join(sorted(letters)),
        beyond=detector.beyond,
    )


def scan_stream(
    log: BinaryIO,
    detector: Detector | None = None,
    on_taint: Callable[[str], None] | None = None,
) -> list[Splat]:
    """The splats of a log of any size, in bounded memory. `on_taint` gets letters it shows."""
    detector = detector or Detector()
    found: list[Splat] = []
    rest = b""

    def scan(block: str) -> None:
        nonlocal found
        found += _scan_block(detector, block)
        if on_taint is not None and "Tainted: " in block:
            on_taint(taint.from_console(block.split("\n")))

    while chunk := log.read(_BLOCK_BYTES):
        chunk = rest + chunk
        end = chunk.rfind(b"\n") + 1
        if end == 0 and len(chunk) < _LONGEST_LINE:
            rest = chunk
            continue
        # A "line" without an end is no kernel's: it is taken in pieces.
        end = end or len(chunk)
        rest = chunk[end:]
        scan(chunk[:end].decode("utf-8", "replace"))
    if rest:
        scan(rest.decode("utf-8", "replace"))
    return found + detector.finish()


def _scan_block(detector: Detector, block: str) -> list[Splat]:
    """Feed the lines of a block; those that can open nothing are passed over in one step."""
    found, place = _until_idle(detector, block, 0)
    for hit in _hits(block):
        if hit < place:
            continue  # on a line that an open report has taken
        start = block.rfind("\n", place, hit) + 1 or place
        _pass_over(detector, block, place, start)
        end = block.find("\n", start) + 1 or len(block)
        found += detector.feed(block[start:end])
        more, place = _until_idle(detector, block, end)
        found += more
    _pass_over(detector, block, place, len(block))
    return found


def _until_idle(detector: Detector, block: str, place: int) -> tuple[list[Splat], int]:
    """Feed the lines from `place` on while a report is open; the splats, and where that ended."""
    found: list[Splat] = []
    while not detector.idle and place < len(block):
        end = block.find("\n", place) + 1 or len(block)
        found += detector.feed(block[place:end])
        place = end
    return found, place


# One pass for the gates that begin with a capital, which few characters of a log are; one fast
# substring search for each of the others.
_ALL_GATES = (*GATES, *BOOT_GATES)
_CAPITAL = re.compile("|".join(re.escape(gate) for gate in _ALL_GATES if gate[0].isupper()))
_SMALL = tuple(gate for gate in _ALL_GATES if not gate[0].isupper())


def _hits(block: str) -> list[int]:
    """Places of the gates in a block, in order; more than one on a line where they stand so."""
    hits = [match.start() for match in _CAPITAL.finditer(block)]
    for gate in _SMALL:
        place = block.find(gate)
        while place >= 0:
            hits.append(place)
            place = block.find(gate, place + 1)
    return sorted(hits)


def _pass_over(detector: Detector, block: str, start: int, end: int) -> None:
    if start >= end:
        return
    count = block.count("\n", start, end) + (block[end - 1] != "\n")
    tail_from = end - 1
    for _ in range(LOOK_BACK):
        tail_from = block.rfind("\n", start, tail_from)
        if tail_from < 0:
            break
    detector.skip(count, block[max(start, tail_from + 1) : end].rstrip("\n").split("\n"))


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
        "chain": [asdict(link) for link in locks.chain(splat.text.split("\n"))],
        "frames": [_frame(frame) for frame in splat.frames],
    }


def _frame(frame: CodeFrame) -> dict[str, Any]:
    """A frame without what it has nothing to say about."""
    always = ("function", "offset", "size", "kind", "file", "line", "inlined")
    return {
        key: value
        for key, value in asdict(frame).items()
        if key in always or (key != "index" and value)
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
