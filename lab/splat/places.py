"""A splat in; the places in the code that its text names out, and its text with their source lines.

Pure: whoever has the kernel at hand says where each place lies (`lab.symbols`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import StrEnum

from lab.model import CodeFrame, FrameKind, Splat
from lab.splat import blame, frames

_PLACE = re.compile(
    r"(?P<guess>\? +)?(?P<function>[A-Za-z_$][\w.$]*)\+0x(?P<offset>[0-9a-f]{1,8})"
    r"/0x(?P<size>[0-9a-f]{1,8})(?: \[(?P<module>\w+)(?: [0-9a-f]{8,40})?\])?(?P<source> \(P\w*\))?"
)
_TRAPPED = re.compile(
    r"(?:^|\s)(?:RIP|EIP)\s*:|(?:^|\s)e?pc : |\bPC is at |\bNIP \[|^WARNING: |^UBSAN|kernel BUG at"
)
_LINK = re.compile(r"(?:^|\s)(?:lr : |LR is at |LR \[|ra : )")
_REGISTER = re.compile(r"(?:^|\s)(?:lr|ra|pc|epc|RIP|EIP)\s*: ")
# arm64 unwinds through an exception: what stands below its entry was interrupted, not called from.
_EXCEPTION_ENTRY = re.compile(r"el[01]\w*_(?:sync|irq|fiq|error)")
_MOST_FRAMES = 4000


class Touch(StrEnum):
    """What a series did to a place in the code."""

    NONE = "none"
    FUNCTION = "function"  # it changed the function
    LINE = "line"  # it added this very line


def named(text: str) -> tuple[CodeFrame, ...]:
    """Every `function+0x1/0x2` of a report, in order, none of them placed yet."""
    found: list[CodeFrame] = []
    trapped: set[tuple[str, int]] = set()
    after_entry = False
    for index, line in enumerate(text.split("\n")):
        if "+0x" not in line:
            continue
        pc_line = bool(_TRAPPED.search(line))
        parsed = frames.parse(line, index)
        for place in _PLACE.finditer(line):
            key = (place["function"], int(place["offset"], 16))
            if place["guess"] or (parsed is not None and parsed.guess):
                kind = FrameKind.GUESS
            elif pc_line or after_entry or place["source"]:
                kind = FrameKind.PC
                trapped.add(key)
            elif _LINK.search(line):
                kind = FrameKind.RETURN
            elif parsed is None:
                kind = FrameKind.NAMED
            else:
                # The trace of arm64 begins with the instruction that trapped, once more.
                kind = FrameKind.PC if key in trapped else FrameKind.RETURN
            found.append(
                CodeFrame(
                    index=index,
                    function=place["function"],
                    offset=key[1],
                    size=int(place["size"], 16),
                    kind=kind,
                    module=place["module"] or "",
                )
            )
            after_entry = kind is not FrameKind.GUESS and bool(
                _EXCEPTION_ENTRY.fullmatch(place["function"])
            )
        if len(found) >= _MOST_FRAMES:
            break
    return tuple(found)


def exact(frame: CodeFrame) -> bool:
    """Is its offset that of an instruction, and not of the one after a call?

    A function that was jumped to and trapped at once has offset 0: one less is another function.
    """
    return frame.kind is FrameKind.PC or frame.offset == 0


def decorated(splat: Splat, *, marks: bool = True) -> str:
    """The text with the source line behind each place; inlined functions have lines of their own.

    As symbolisers do it: ` inner mm/x.h:12 [inline]`, then ` outer+0x1/0x2 mm/x.c:34`. With
    `marks`, what the series did there follows in <angle brackets>.
    """
    return "\n".join(text for text, _ in decorated_lines(splat, marks=marks))


def decorated_lines(splat: Splat, *, marks: bool = True) -> tuple[tuple[str, Touch], ...]:
    """As `decorated`, by line, with what the series did to the code that the line names."""
    by_line: dict[int, list[CodeFrame]] = defaultdict(list)
    for frame in splat.frames:
        by_line[frame.index].append(frame)
    return tuple(
        shown
        for index, line in enumerate(splat.text.split("\n"))
        for shown in _shown(line, by_line.get(index, []), marks)
    )


def _shown(line: str, places: list[CodeFrame], marks: bool) -> Iterator[tuple[str, Touch]]:
    known = [frame for frame in places if frame.file]
    if not known:
        yield line, Touch.NONE
        return
    indent = line[: len(line) - len(line.lstrip())]
    for frame in known:
        # A guess has no call before it that anything could have been inlined at.
        if frame.inlined and frame.kind is not FrameKind.GUESS:
            said = mark(frame) if marks else ""
            text = f"{indent}{frame.function} {frame.file}:{frame.line} [inline]{said}"
            yield text, touch([frame])
    text = line
    for frame in known:
        if not frame.inlined:
            end = _end_of(text, frame)
            said = mark(frame) if marks else ""
            text = f"{text[:end]} {frame.file}:{frame.line}{said}{text[end:]}"
    yield text, touch([frame for frame in known if not frame.inlined])


def _end_of(line: str, frame: CodeFrame) -> int:
    """Where the place stands in the line: behind its module."""
    for place in _PLACE.finditer(line):
        if (place["function"], int(place["offset"], 16)) == (frame.function, frame.offset):
            return place.end()
    return len(line)


def touch(frames_: Iterable[CodeFrame]) -> Touch:
    """The closest that the series came to any of these."""
    seen = [
        Touch.LINE if frame.line_patch else Touch.FUNCTION if frame.patches else Touch.NONE
        for frame in frames_
    ]
    return next((kind for kind in (Touch.LINE, Touch.FUNCTION) if kind in seen), Touch.NONE)


def mark(frame: CodeFrame) -> str:
    """ "" or what the series has to do with a frame, in <angle brackets>."""
    if frame.line_patch:
        return f" <on a line that patch {frame.line_patch} added>"
    if frame.patches:
        which = ", ".join(map(str, frame.patches))
        noun = "patch" if len(frame.patches) == 1 else "patches"
        return f" <in a function that {noun} {which} changed>"
    return ""


def with_frames(splat: Splat, placed: tuple[CodeFrame, ...]) -> Splat:
    """The splat with the frames, and with the file to blame that they tell."""
    whole = replace(splat, frames=placed)
    if splat.file or not any(frame.file for frame in placed):
        return whole
    return replace(whole, file=blame.guilty_file(decorated(whole, marks=False).split("\n")))
