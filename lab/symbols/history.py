"""The commits of a series and frames of the patched kernel in; which patch touched them out.

Patches are numbered from 1. Line numbers are carried through all later patches, so that they are
those of the tree that ran; a frame's function is found in that tree's own text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab.model import CodeFrame, Splat
from lab.source import git

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunk:
    """Lines of the old file that others replace, without context. A count may be 0."""

    old: int
    old_count: int
    new: int
    new_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDiff:
    old: str
    new: str
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """What a series did to one file, in the line numbers of its last version."""

    added: dict[int, int] = field(default_factory=dict)  # line -> the patch that wrote it
    # (line, patch): lines that went, or were written again later, between this line and the next
    gone: frozenset[tuple[int, int]] = frozenset()

    def within(self, first: int, last: int) -> tuple[int, ...]:
        """The patches that changed anything from `first` to `last`."""
        wrote = {patch for line, patch in self.added.items() if first <= line <= last}
        cut = {patch for line, patch in self.gone if first <= line < last}
        return tuple(sorted(wrote | cut))


def after(before: Touched, hunks: Sequence[Hunk], patch: int) -> Touched:
    """What was touched, one patch later."""
    added: dict[int, int] = {}
    gone: set[tuple[int, int]] = set()
    for line, by in before.added.items():
        now = moved(line, hunks)
        if now is None:
            gone.add((_seam(line, hunks), by))
        else:
            added[now] = by
    for line, by in before.gone:
        now = moved(line, hunks)
        gone.add((_seam(line, hunks) if now is None else now, by))
    for hunk in hunks:
        added |= dict.fromkeys(range(hunk.new, hunk.new + hunk.new_count), patch)
        if hunk.old_count:
            gone.add((hunk.new if not hunk.new_count else hunk.new - 1, patch))
    return Touched(added=added, gone=frozenset(gone))


def moved(line: int, hunks: Sequence[Hunk]) -> int | None:
    """Where a line of the old file is now; None: it is gone."""
    shift = 0
    for hunk in hunks:
        # Without old lines, the new ones come after line `old`.
        if line < hunk.old + (not hunk.old_count):
            break
        if line < hunk.old + hunk.old_count:
            return None
        shift += hunk.new_count - hunk.old_count
    return line + shift


def _seam(line: int, hunks: Sequence[Hunk]) -> int:
    """The last line before the hunk that took `line` away."""
    hunk = next(hunk for hunk in hunks if hunk.old <= line < hunk.old + hunk.old_count)
    return hunk.new if not hunk.new_count else hunk.new - 1


def parse(text: str) -> tuple[FileDiff, ...]:
    """What `git diff --unified=0 --no-prefix` prints; "" is a file that is not there."""
    files: list[FileDiff] = []
    names, hunks = ["", ""], list[Hunk]()
    lines = text.split("\n")
    place = 0

    def close() -> None:
        if names[0] or names[1]:
            files.append(FileDiff(old=names[0], new=names[1], hunks=tuple(hunks)))

    while place < len(lines):
        line = lines[place]
        place += 1
        match = _HUNK.match(line)
        if match is not None:
            counts = [1 if match[group] is None else int(match[group]) for group in (2, 4)]
            hunks.append(
                Hunk(old=int(match[1]), old_count=counts[0], new=int(match[3]), new_count=counts[1])
            )
            # A line that goes may itself begin with "-- ": the counts say what is content.
            place += sum(counts)
        elif line.startswith("diff --git "):
            close()
            names, hunks = ["", ""], []
        elif line.startswith(("--- ", "rename from ")):
            names[0] = _file(line.removeprefix("--- ").removeprefix("rename from "))
        elif line.startswith(("+++ ", "rename to ")):
            names[1] = _file(line.removeprefix("+++ ").removeprefix("rename to "))
    close()
    return tuple(files)


def _file(name: str) -> str:
    return "" if name == "/dev/null" else name.rstrip("\t")


def touched(diffs: Sequence[Sequence[FileDiff]]) -> dict[str, Touched]:
    """What a series did to each file, from the diffs of its patches in order."""
    files: dict[str, Touched] = {}
    for patch, changes in enumerate(diffs, 1):
        before = {change.old: files.pop(change.old, Touched()) for change in changes if change.old}
        for change in changes:
            if change.new:
                old = before.get(change.old, Touched())
                files[change.new] = after(old, change.hunks, patch)
    return files


_HEAD = re.compile(r"(?! \*)[A-Za-z_\t (]")  # of a function; not a comment's lines


def function_lines(text: str, line: int) -> tuple[int, int]:
    """First and last line of the function that a line of a C file is in; (line, line) if in none.

    By the kernel's own style: a body begins and ends with a brace in the first column.
    """
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        return line, line
    start = line - 1
    while start < len(lines) - 1 and _HEAD.match(lines[start]):
        start += 1  # from the head of a function down to its body
    if not lines[start].startswith("{"):
        start = line - 1
        while start > 0 and not lines[start].startswith(("{", "}")):
            start -= 1
        if lines[start].startswith("}") and start == line - 1:
            start -= 1  # its own last line
            while start > 0 and not lines[start].startswith(("{", "}")):
                start -= 1
    if not lines[start].startswith("{"):
        return line, line
    end = next((at for at in range(start, len(lines)) if lines[at].startswith("}")), None)
    if end is None or end < line - 1:
        return line, line
    while start > 0 and _HEAD.match(lines[start - 1]):
        start -= 1
    return start + 1, end + 1


@dataclass(slots=True)
class History:
    """A series as commits of the lab's own repository: the base, then one for each patch."""

    git_dir: Path
    commits: tuple[str, ...]
    _diffs: tuple[tuple[FileDiff, ...], ...] | None = None
    _touched: dict[str, Touched] | None = None
    _texts: dict[str, str] = field(default_factory=dict)

    def files(self) -> dict[str, Touched]:
        """What the series did to each file."""
        if self._touched is None:
            self._touched = touched(self.diffs())
        return self._touched

    def diffs(self) -> tuple[tuple[FileDiff, ...], ...]:
        """What each patch does, in order."""
        if self._diffs is None:
            numbers = range(1, len(self.commits))
            self._diffs = tuple(parse(self.unified(number, context=0)) for number in numbers)
        return self._diffs

    def unified(self, number: int, *, context: int) -> str:
        """The diff of patch `number` (from 1) with that many lines around each change."""
        old, new = self.commits[number - 1 : number + 1]
        return self._ask("diff", f"--unified={context}", "--no-prefix", "--no-color",
                         "--no-ext-diff", "--no-textconv", "--find-renames", old, new)  # fmt: skip

    def text(self, file: str) -> str:
        """A file of the patched tree."""
        if file not in self._texts:
            self._texts[file] = self._ask("show", f"{self.commits[-1]}:{file}")
        return self._texts[file]

    def _ask(self, *words: str) -> str:
        return git(self.git_dir, "-c", "core.quotePath=false", *words).stdout.decode(
            "utf-8", "replace"
        )


def mark(splats: Sequence[Splat], history: History) -> tuple[Splat, ...]:
    """The splats of the patched kernel, their frames marked with the patches that touched them."""
    files = history.files()
    return tuple(
        replace(splat, frames=tuple(marked(frame, files, history.text) for frame in splat.frames))
        for splat in splats
    )


def marked(frame: CodeFrame, files: dict[str, Touched], text: Callable[[str], str]) -> CodeFrame:
    """One frame with its patches; as it was if none touched its file."""
    if frame.file not in files or not frame.line:
        return frame
    changes = files[frame.file]
    first, last = function_lines(text(frame.file), frame.line)
    return replace(
        frame,
        patches=changes.within(first, last),
        line_patch=changes.added.get(frame.line, 0),
    )
