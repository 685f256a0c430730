"""What is stored of coverage: of each line of each patch whether it ran, and under what."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from lab.model import LabFault, Splat, decode

_FILE = "coverage-{arch}.json"


class LineState(StrEnum):
    """Of a line that a patch adds."""

    EXECUTED = "executed"
    INJECTED = "injected"  # executed, but only under suites that inject faults
    NEVER = "never"  # it was counted, and stayed at 0 in all that ran
    NO_CODE = "no-code"  # a comment, a declaration, a brace: nothing is executed there
    NOT_COMPILED = "not-compiled"  # this kernel's configuration leaves it out
    SUPERSEDED = "superseded"  # a later patch of the series removes it or writes it anew
    UNKNOWN = "unknown"  # nobody counted it


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffLine:
    mark: str  # " ", "+" or "-"
    text: str
    state: LineState | None = None  # of added lines only
    suites: tuple[str, ...] = ()  # under which it ran


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffHunk:
    header: str
    lines: tuple[DiffLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffFile:
    path: str
    hunks: tuple[DiffHunk, ...]

    @property
    def has_code(self) -> bool:
        """Whether there is anything to execute in what is added to it."""
        none = (None, LineState.NO_CODE, LineState.SUPERSEDED)
        return any(line.state not in none for hunk in self.hunks for line in hunk.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchCoverage:
    number: int  # 1-based
    subject: str
    counts: dict[LineState, int]  # of its added lines; states that none has are left out
    suites: dict[str, int] = field(default_factory=dict)  # lines that ran under it
    files: tuple[DiffFile, ...] = ()
    cut: int = 0  # lines of the diff that are left out of `files`, being too many

    def count(self, *states: LineState) -> int:
        return sum(self.counts.get(state, 0) for state in states)

    @property
    def ran(self) -> int:
        return self.count(LineState.EXECUTED, LineState.INJECTED)

    @property
    def counted(self) -> int:
        """Lines of which it is known whether they ran."""
        return self.ran + self.count(LineState.NEVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Of one architecture."""

    arch: str
    kernel_key: str = ""
    tool: str = ""
    objects: tuple[str, ...] = ()  # that were compiled with counters
    cases: tuple[str, ...] = ()  # whose counters were read
    lost: tuple[str, ...] = ()  # cases that ran or should have, and whose counters are not there
    injecting: tuple[str, ...] = ()  # suites that inject faults, of those that ran
    patches: tuple[PatchCoverage, ...] = ()
    why: str = ""  # nothing is known, because of that
    notes: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()  # cases that did not pass in this kernel
    splats: tuple[Splat, ...] = ()  # that the kernel with counters printed, but for allowed ones

    @property
    def known(self) -> bool:
        return not self.why


def file_of(folder: Path, arch: str) -> Path:
    """Where a run keeps it."""
    return folder / _FILE.format(arch=arch)


def of_run(folder: Path) -> tuple[Coverage, ...]:
    """What a run has, by architecture; () if it was not asked for coverage."""
    found: list[Coverage] = []
    for path in sorted(folder.glob(_FILE.format(arch="*"))):
        try:
            found.append(decode(path.read_bytes(), Coverage))
        except (LabFault, OSError) as error:
            arch = path.stem.removeprefix("coverage-")
            found.append(Coverage(arch=arch, why=f"{path.name} cannot be read: {error}"))
    return tuple(found)


def sentence(patch: PatchCoverage) -> str:
    """ "41 of 52 lines executed (faultstress 40, boot 5), 11 never"."""
    parts: list[str] = []
    if patch.counted:
        shares = ", ".join(
            f"{suite} {count}"
            for suite, count in sorted(patch.suites.items(), key=lambda item: (-item[1], item[0]))
        )
        parts.append(
            f"{patch.ran} of {_lines(patch.counted)} executed{f' ({shares})' if shares else ''}"
        )
    for state, words in (
        (LineState.NEVER, "never"),
        (LineState.INJECTED, "only under injected faults"),
        (LineState.NOT_COMPILED, "not compiled"),
        (LineState.UNKNOWN, "unknown"),
        (LineState.SUPERSEDED, "superseded by later patches"),
    ):
        if count := patch.count(state):
            parts.append(f"{count} {words}")
    return ", ".join(parts) or "no code"


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"
