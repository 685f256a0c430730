"""Lines of a kernel build's log come in; diagnostics, steps and signs of a sick host go out. Pure.

Tools that are understood: gcc, clang, as, ld, modpost, objtool, kconfig's conf and make itself.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lab.model import Diagnostic

_LIMIT_LINES = 40  # of one diagnostic's text: template-like macro expansions run to hundreds

# `  CC      mm/memory.o`, also `  CC [M]  fs/x.o`; the tool's name is what kbuild's `quiet` says.
_STEP = re.compile(r"  (?P<tool>[A-Z][A-Z0-9_]*)(?: \[M\])? +(?P<target>\S+)(?: .*)?")
_COMPILERS = ("AS", "CC")

_PLACE = r"(?P<file>[^\s:][^:\n]*?)"
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # gcc, clang: file.c:12:3: error: text; as: file.S:12: Error: text
    (
        "compiler",
        re.compile(
            _PLACE + r":(?P<line>\d+)(?::\d+)?: (?P<severity>fatal error|error|Error|warning|"
            r"Warning): (?P<message>.+)"
        ),
    ),
    ("objtool", re.compile(_PLACE + r": (?P<severity>error|warning): objtool: (?P<message>.+)")),
    (
        "modpost",
        re.compile(r"(?P<severity>ERROR|WARNING|FATAL): modpost: (?P<message>.+)"),
    ),
    # ld with line tables: file.c:12: undefined reference to `x'; without: file.c:(.text+0x1): ...
    (
        "linker",
        re.compile(
            r"(?:\S*ld(?:\.\w+)?: )?" + _PLACE + r":(?:(?P<line>\d+)|\([^)]+\)): "
            r"(?P<message>(?:undefined reference|multiple definition|relocation truncated).*)"
        ),
    ),
    (
        "linker",
        re.compile(
            r"\S*ld(?:\.\w+)?: (?:(?P<severity>warning|error): )?(?:(?P<file>[^\s:]+\.[oaS])[: ])?"
            r"(?P<message>(?!.*in function `).+)"
        ),
    ),
    ("collect", re.compile(r"collect2: (?P<severity>error): (?P<message>.+)")),
    # conf: mm/Kconfig:12: syntax error; mm/Kconfig:3: can't open file "x"; error: recursive ...
    (
        "kconfig",
        re.compile(
            r"(?P<file>[^\s:]*Kconfig[^\s:]*):(?P<line>\d+): ?(?P<severity>warning: |error: )?"
            r"(?P<message>(?!.*symbol \S+ is selected|.*symbol \S+ depends).+)"
        ),
    ),
    # make's own parser: ../mm/Makefile:3: *** missing separator.  Stop.
    (
        "make",
        re.compile(_PLACE + r":(?P<line>\d+): \*\*\* (?P<message>.+)"),
    ),
)
_COMPILER_ONLY = re.compile(r"(?:\S*/)?(?:\S+-)?(?:gcc|clang|cc1|as): (?:fatal )?error: (?P<m>.+)")
_MAKE = re.compile(
    r"make(?:\[\d+\])?: \*\*\* (?:\[(?:(?P<by>[^\]:]+):(?P<line>\d+): )?(?P<target>[^\]]+)\] "
    r"(?P<status>Error \d+|\w+)|(?P<message>.+?))(?: +Stop\.)?"
)
_BEFORE = re.compile(
    r"In file included from .*|\s+from .*[,:]|.*: In function .*:|.*: At top level:"
    r"|.*: Assembler messages:|\S*ld(?:\.\w+)?: .*: in function `.*':"
)
_AFTER = re.compile(r"\s+\d* *\|.*|\s.*|.*:\d+(?::\d+)?: note: .*|In file included from .*")

# What a build prints when the host, not the source, is at fault.
_HOST_FAULTS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r".*: No space left on device\.?|.*\(No space left on device\)"),
        "the disk filled up during the build",
        "lab clean frees the cache; [paths] in lab.toml moves it",
    ),
    (
        re.compile(r".*: Disk quota exceeded"),
        "the disk quota was used up during the build",
        "lab clean frees the cache; [paths] in lab.toml moves it",
    ),
    (
        re.compile(
            r".*Killed signal terminated program .*|.*internal compiler error: Killed.*"
            r"|virtual memory exhausted: .*|.*(?:: |^)[Oo]ut of memory.*|Killed"
            r"|.*: Cannot allocate memory|.*memory exhausted"
            r"|make(?:\[\d+\])?: \*\*\* \[.*\] (?:Killed|Error 137)"
            r"|.*terminated with signal 9 \[Killed\]"
        ),
        "a tool of the build was killed, as the kernel does when memory runs out",
        "build with fewer jobs, or on a machine with more memory",
    ),
    (
        re.compile(
            r".*fatal error: (?:gelf|libelf|openssl/\w+)\.h: No such file or directory"
            r"|.*please install libelf-dev.*"
        ),
        "a library that the kernel's own build tools need is not installed",
        "sudo apt-get install libelf-dev libssl-dev",
    ),
    (
        re.compile(
            r".*: echo: I/O error|.*: Read-only file system|.*: Input/output error"
            r"|.*: Too many open files"
        ),
        "the host failed during the build",
        "look at the host's own kernel log",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that make said it does."""

    tool: str
    target: str  # relative to the object folder

    @property
    def compiles(self) -> bool:
        """Whether an object of the kernel comes of it; tools/ names its own by absolute path."""
        if self.target.startswith("/"):
            return False
        return self.tool in _COMPILERS and self.target.endswith(".o")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Paths as make sees them, so that a message's path can be made relative to the tree."""

    source: str
    objects: str

    def relative(self, path: str) -> str:
        """`../mm/memory.c`, `/lab/linux/build/../mm/memory.c` -> `mm/memory.c`."""
        whole = posixpath.normpath(posixpath.join(self.objects, path))
        for root in (self.objects, self.source):
            if whole.startswith(root + "/"):
                return whole[len(root) + 1 :]
        return path


def step(line: str) -> Step | None:
    """What make announces in this line, if anything."""
    match = _STEP.fullmatch(line)
    return Step(tool=match["tool"], target=match["target"]) if match else None


def host_fault(lines: Iterable[str]) -> tuple[str, str, str] | None:
    """(message, hint, the line) if a line says that the host is at fault, not the source."""
    for line in lines:
        if " error: #error" in line or line[:1].isspace():
            continue  # the source's own words, or an excerpt of it
        for pattern, message, hint in _HOST_FAULTS:
            if pattern.fullmatch(line):
                return message, hint, line
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hit:
    kind: str
    severity: str
    file: str
    line: int
    message: str


def _hit(text: str) -> _Hit | None:
    if text.startswith("make") and ": ***" in text:
        return None
    for kind, pattern in _PATTERNS:
        match = pattern.fullmatch(text)
        if match is None:
            continue
        groups = match.groupdict()
        severity = (groups.get("severity") or "error").strip(" :").lower()
        return _Hit(
            kind=kind,
            severity="warning" if severity == "warning" else "error",
            file=groups.get("file") or "",
            line=int(groups.get("line") or 0),
            message=groups["message"].strip(),
        )
    if match := _COMPILER_ONLY.fullmatch(text):
        return _Hit(kind="compiler", severity="error", file="", line=0, message=match["m"])
    return None


def _excerpt(lines: Sequence[str], at: int) -> str:
    """The message with the lines before and behind it that belong to it."""
    first = at
    while first > 0 and at - first < 12 and _BEFORE.fullmatch(lines[first - 1]):
        first -= 1
    last = at + 1
    while (
        last < len(lines)
        and last - first < _LIMIT_LINES
        and step(lines[last]) is None
        and _AFTER.fullmatch(lines[last])
    ):
        last += 1
    return "\n".join(lines[first:last])


def _found(lines: Sequence[str], places: Places, severity: str) -> Iterator[tuple[str, Diagnostic]]:
    for at, line in enumerate(lines):
        hit = _hit(line)
        if hit is None or hit.severity != severity:
            continue
        yield (
            hit.kind,
            Diagnostic(
                severity=severity,
                file=places.relative(hit.file) if hit.file else "",
                line=hit.line,
                message=hit.message,
                text=_excerpt(lines, at),
            ),
        )


def warnings(lines: Sequence[str], places: Places) -> tuple[Diagnostic, ...]:
    """Every warning once, in the order of the log."""
    unique: dict[tuple[str, int, str], Diagnostic] = {}
    for _, one in _found(lines, places, "warning"):
        unique.setdefault((one.file, one.line, one.message), one)
    return tuple(unique.values())


def first_error(lines: Sequence[str], places: Places) -> tuple[str, Diagnostic]:
    """Phase ("config", "compile" or "link") and first error of a build that failed.

    Falls back to make's own complaint, then to the last lines: there is always an answer.
    """
    for kind, one in _found(lines, places, "error"):
        if kind == "kconfig":
            return "config", one
        late = kind in ("linker", "modpost", "collect") or one.file.startswith("vmlinux")
        return ("link" if late else "compile"), one
    for at, line in enumerate(lines):
        match = _MAKE.fullmatch(line.rstrip())
        if match is None:
            continue
        target = match["target"] or ""
        message = match["message"] or f"{target}: {match['status']}"
        said = [one for one in lines[max(0, at - 12) : at] if step(one) is None]
        return (
            "link" if target.startswith("vmlinux") else "compile",
            Diagnostic(
                severity="error",
                file=places.relative(match["by"]) if match["by"] else "",
                line=int(match["line"] or 0),
                message=message,
                text="\n".join([*said, line]),
            ),
        )
    tail = [line for line in lines if line.strip()][-12:]
    return (
        "compile",
        Diagnostic(
            severity="error",
            file="",
            line=0,
            message=tail[-1].strip() if tail else "make failed and said nothing",
            text="\n".join(tail),
        ),
    )
