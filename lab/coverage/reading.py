"""A kernel built with counters and archives of what they counted in; counts of source lines out.

gcov reads them: that of the compiler which wrote the notes. It reads what a guest sent, so it runs
walled in where builds do.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from lab import counters, host
from lab.build import sandbox
from lab.build.counted import FOLDER, Notes
from lab.build.counted import notes as notes_of
from lab.model import LabError
from lab.store import Cache

_GCOV_S = 300.0
_HEAD = 12  # bytes: magic, version, stamp


class _Line(msgspec.Struct):
    line_number: int
    count: int


class _Function(msgspec.Struct):
    name: str


class _File(msgspec.Struct):
    file: str
    lines: list[_Line]
    functions: list[_Function] = []


class _Document(msgspec.Struct):
    """What gcov --json-format prints for one object."""

    data_file: str
    current_working_directory: str
    files: list[_File]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What one case left."""

    lines: dict[str, dict[int, int]]  # file of the tree -> line -> how often it ran
    objects: frozenset[str]  # whose counters were there: "mm/memory"
    functions: frozenset[str]  # that have counters


def parse(stdout: bytes, notes: Notes) -> Counted:
    """One JSON document a line. Raises `ValueError` for anything else."""
    lines: dict[str, dict[int, int]] = {}
    objects: set[str] = set()
    functions: set[str] = set()
    for raw in stdout.splitlines():
        if not raw.strip():
            continue
        try:
            document = msgspec.json.decode(raw, type=_Document)
        except msgspec.MsgspecError as error:
            raise ValueError(f"gcov's output cannot be read: {error}") from error
        objects.add(str(PurePosixPath(document.data_file).with_suffix("")))
        for each in document.files:
            path = _inside(each.file, document.current_working_directory, notes)
            mine = lines.setdefault(path, {})
            functions |= {one.name for one in each.functions}
            for line in each.lines:
                # A line of a header is in many objects, one of an inlined function in many places.
                mine[line.line_number] = mine.get(line.line_number, 0) + line.count
    return Counted(lines=lines, objects=frozenset(objects), functions=frozenset(functions))


def is_whole(data: bytes) -> bool:
    """Whether the records of a .gcda file end where it does: gcov takes what is cut off for 0."""
    if len(data) < _HEAD or data[:4] not in (b"adcg", b"gcda"):
        return False
    order: Literal["little", "big"] = "little" if data[:4] == b"adcg" else "big"
    version = data[4:8][::-1] if order == "little" else data[4:8]
    # "B20*" is 12.0: since then lengths are in bytes, and the head has one word more.
    modern = (version[0] - ord("A")) * 10 + version[1] - ord("0") >= 12
    place = _HEAD + 4 * modern

    def word(at: int) -> int:
        return int.from_bytes(data[at : at + 4], order, signed=True)

    while place + 8 <= len(data) and word(place):
        # Negative: that many counters, all of them 0, and none is written.
        place += 8 + max(0, word(place + 4)) * (1 if modern else 4)
    return data[place:] in (b"", bytes(4)) and place <= len(data)


def _inside(file: str, folder: str, notes: Notes) -> str:
    """A path as the compiler had it, relative to the tree if it is in there."""
    whole = posixpath.normpath(posixpath.join(folder, file))
    for root in (notes.objects, notes.source):
        if whole.startswith(root + "/"):
            return whole[len(root) + 1 :]
    return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads archives of one kernel."""

    tool: str  # gcov
    kernel: Path  # its folder
    notes: Notes
    cache: Cache

    @classmethod
    def of(cls, kernel: Path, cross: str, cache: Cache) -> Reader:
        """Raises `UserError` if there is no gcov, `LabFault` if the kernel has no counters."""
        tool = host.tool(f"{cross}gcov")
        return cls(tool=tool, kernel=kernel, notes=notes_of(kernel), cache=cache)

    def read(self, archive: Path) -> Counted:
        """Raises `ValueError` for what cannot be trusted: nothing is then known of the case."""
        notes = self.notes.files
        names = {
            f"{self.notes.objects}/{PurePosixPath(note).with_suffix('.gcda')}": note
            for note in notes
        }
        found = counters.contents(archive, names)
        if not found:
            raise ValueError("no counters of a changed file are in it")
        with self.cache.staging() as folder:
            for note, content in found.items():
                if not is_whole(content):
                    raise ValueError(f"the counters for {note}, for gcov, are damaged or cut off")
                place = folder / note
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes((self.kernel / FOLDER / note).read_bytes())
                place.with_suffix(".gcda").write_bytes(content)
            return self._gcov(folder, found)

    def _gcov(self, folder: Path, found: Mapping[str, bytes]) -> Counted:
        data = [str(PurePosixPath(note).with_suffix(".gcda")) for note in found]
        words = (self.tool, "--json-format", "--stdout", *data)
        argv = sandbox.closed(words, folder) if sandbox.wall(self.cache) == "bwrap" else words
        try:
            done = host.run(argv, cwd=folder, timeout_s=_GCOV_S, check=False, leash=True)
        except LabError as error:
            raise ValueError(error.message) from error
        # What does not fit its notes is read as if nothing had run; gcov says so, and ends with 0.
        if done.status != 0 or done.stderr.strip():
            said = done.stderr.decode("utf-8", "replace").strip() or f"status {done.status}"
            raise ValueError(f"gcov: {said.splitlines()[0][:300]}")
        counted = parse(done.stdout, self.notes)
        wanted = {str(PurePosixPath(note).with_suffix("")) for note in found}
        if counted.objects != wanted:
            raise ValueError(f"gcov read {len(counted.objects)} of {len(wanted)} objects")
        return counted
