"""The text of a patch goes in, the `FileChange`s that it makes come out, each one checked.

It reads what `git apply` reads: git's extended headers and plain unified diffs, at -p1. What
git would refuse or could be surprised by is refused here first (`DiffError`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lab.model import FileChange

MAX_PATH_BYTES = 4096

_HUNK = re.compile(rb"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_MODE = re.compile(rb"(?:old|new|new file|deleted file) mode (\d+)\s*$")
_INDEX = re.compile(rb"index [0-9a-f]+(?:,[0-9a-f]+)*\.\.[0-9a-f]+ (\d+)\s*$")
_BINARY = re.compile(rb"Binary files .* differ$")
_MOVE = re.compile(rb"(rename|copy) (from|to|old|new) (.+)$")
_ESCAPES = {b"a": 7, b"b": 8, b"t": 9, b"n": 10, b"v": 11, b"f": 12, b"r": 13}
_KINDS = {"120000": "a symbolic link", "160000": "a submodule", "040000": "a directory"}


class DiffError(Exception):
    """The text is no patch that the lab takes."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


@dataclass(slots=True, kw_only=True)
class _File:
    """One file's section while it is read."""

    where: int
    header: bytes | None = None  # what follows "diff --git "
    old: str | None = None  # from ---, rename from, copy from; "" is /dev/null
    new: str | None = None
    created: bool = False
    deleted: bool = False
    moved: bool = False
    marked: bool = False  # an extended header said that something changes
    added: list[int] = field(default_factory=list)
    removed: int = 0
    hunks: int = 0


def parse_diff(text: bytes) -> tuple[FileChange, ...]:
    """The changes of all diffs in `text`, which may have prose around them. Raises `DiffError`."""
    lines = text.split(b"\n")
    files: list[_File] = []
    at = _patch_start(lines)
    while at < len(lines):
        line = lines[at].rstrip(b"\r")
        if line.startswith(b"diff --git "):
            files.append(_File(where=at + 1, header=line[len(b"diff --git ") :]))
            at = _extended_headers(lines, at + 1, files[-1])
        elif line.startswith(b"GIT binary patch") or _BINARY.match(line):
            raise DiffError(
                f"a binary change to {_called(files)}", "the lab takes changes of text only"
            )
        elif line.startswith(b"--- ") and _plus_follows(lines, at):
            at = _names(lines, at, files)
        elif line.startswith(b"@@ -") and _HUNK.match(line):
            at = _hunk(lines, at, files)
        else:
            at += 1
    return tuple(_finish(file) for file in files)


def hunks(text: bytes, path: str) -> tuple[tuple[int, str], ...]:
    """(first old line, whole header) of each hunk that `text` has for the new path `path`."""
    found: list[tuple[int, str]] = []
    current = None
    for line in text.split(b"\n"):
        if line.startswith(b"+++ "):
            current = _stripped(_name(line[4:]))
        elif line.startswith(b"--- "):
            current = _stripped(_name(line[4:])) or current
        elif current == path and (match := _HUNK.match(line)):
            found.append((int(match[1]), line.decode("utf-8", "replace").strip()))
    return tuple(found)


def _patch_start(lines: list[bytes]) -> int:
    """Where `git mailinfo` ends the commit message: hunks quoted before it are prose."""
    for at, line in enumerate(lines):
        if line.startswith((b"diff -", b"Index: ")):
            return at
        if line.startswith(b"---") and (not line[3:].strip() or re.match(rb" \S", line[3:])):
            return at
    return len(lines)


def _called(files: list[_File]) -> str:
    if not files:
        return "a file"
    header = files[-1].header
    return header.decode("utf-8", "replace") if header is not None else files[-1].new or "a file"


def _plus_follows(lines: list[bytes], at: int) -> bool:
    return at + 1 < len(lines) and lines[at + 1].startswith(b"+++ ")


def _extended_headers(lines: list[bytes], at: int, file: _File) -> int:
    """Read `old mode`, `rename from` and the like; returns the index of the first other line."""
    while at < len(lines):
        line = lines[at].rstrip(b"\r")
        if match := _MODE.match(line):
            _check_mode(match[1], file)
            file.created |= line.startswith(b"new file")
            file.deleted |= line.startswith(b"deleted file")
            file.marked = True
        elif match := _MOVE.match(line):
            side = "old" if match[2] in (b"from", b"old") else "new"
            setattr(file, side, _checked(_name(match[3]), file.where))
            file.moved = file.marked = True
        elif line.startswith(b"index "):
            if match := _INDEX.match(line):
                _check_mode(match[1], file)
        elif not line.startswith((b"similarity index ", b"dissimilarity index ")):
            return at
        at += 1
    return at


def _check_mode(raw: bytes, file: _File) -> None:
    mode = raw.decode().zfill(6)
    if mode in ("100644", "100755"):
        return
    what = _KINDS.get(mode, "not a plain file")
    raise DiffError(
        f"{_called([file])}: mode {mode} is {what}",
        "a patch may change plain files of mode 100644 or 100755 only",
    )


def _names(lines: list[bytes], at: int, files: list[_File]) -> int:
    """Read the --- and +++ lines; a plain diff's section begins with them."""
    if not files or files[-1].header is None or files[-1].hunks:
        files.append(_File(where=at + 1))
    file = files[-1]
    for side, line in (("old", lines[at]), ("new", lines[at + 1])):
        named = _name(line.rstrip(b"\r")[4:])
        path = "" if named == "/dev/null" else _checked(_stripped(named), at + 1, named)
        known = getattr(file, side)
        if known and path and known != path:
            raise DiffError(
                f"line {at + 1}: the headers name two files, {known} and {path}",
                "make the patch again with git format-patch",
            )
        setattr(file, side, path)
    return at + 2


def _hunk(lines: list[bytes], at: int, files: list[_File]) -> int:
    """Read one hunk; returns the index of the line after it."""
    match = _HUNK.match(lines[at])
    assert match is not None
    if not files or files[-1].old is None or files[-1].new is None:
        raise DiffError(
            f"line {at + 1}: a hunk without the name of its file",
            "make the patch again with git format-patch",
        )
    file = files[-1]
    file.hunks += 1
    start = at
    old = int(match[2]) if match[2] is not None else 1
    number, new = int(match[3]), int(match[4]) if match[4] is not None else 1
    while old or new:
        at += 1
        mark = lines[at][:1] if at < len(lines) else None
        if mark == b"+" and new:
            file.added.append(number)
            number, new = number + 1, new - 1
        elif mark == b"-" and old:
            file.removed, old = file.removed + 1, old - 1
        # Mailers strip trailing blanks: an empty line is an empty line of context.
        elif mark in (b" ", b"", b"\r") and old and new and at + 1 < len(lines):
            number, old, new = number + 1, old - 1, new - 1
        elif mark != b"\\":
            raise DiffError(
                f"hunk {file.hunks} of {file.new or file.old} (line {start + 1}) is cut short "
                "or damaged",
                "mailers wrap lines: make the patch again with git format-patch",
            )
    return at + 1


# --- names -------------------------------------------------------------------------------------


def _name(raw: bytes) -> str:
    """A file name as a diff writes it: C-quoted, or bare up to a tab."""
    raw = raw.rstrip(b"\r")
    plain = _unquoted(raw)[0] if raw.startswith(b'"') else raw.partition(b"\t")[0]
    return plain.decode("utf-8", "surrogateescape")


def _unquoted(raw: bytes) -> tuple[bytes, bytes]:
    """The C-quoted string at the head of `raw`, decoded, and what follows it."""
    out = bytearray()
    at = 1
    while at < len(raw):
        byte = raw[at : at + 1]
        if byte == b'"':
            return bytes(out), raw[at + 1 :]
        if byte != b"\\":
            out += byte
            at += 1
            continue
        octal = re.match(rb"[0-3][0-7]{2}", raw[at + 1 : at + 4])
        code = raw[at + 1 : at + 2]
        if octal:
            out.append(int(octal[0], 8))
            at += 4
        elif code in _ESCAPES:
            out.append(_ESCAPES[code])
            at += 2
        elif code in (b'"', b"\\"):
            out += code
            at += 2
        else:
            break
    raise DiffError(
        f"a quoted file name that does not end: {raw[:80].decode('utf-8', 'replace')}",
        "make the patch again with git format-patch",
    )


def _stripped(named: str) -> str:
    """The name without its first component (`a/`, `b/`), as -p1 has it."""
    if named.startswith("/"):
        return named  # absolute: kept whole, so that the check sees it
    return named.partition("/")[2]


def _checked(path: str, where: int, named: str | None = None) -> str:
    """`path` if a patch may touch it. Raises `DiffError`."""
    reason = bad_path(path)
    if not reason:
        return path
    shown = (named or path).encode("utf-8", "replace").decode()
    if not path and named:
        raise DiffError(
            f"line {where}: {shown!r} has no leading directory to strip",
            "patches must be made for -p1, as git format-patch does",
        )
    raise DiffError(f"line {where}: the path {shown!r} {reason}", "patches stay inside their tree")


def bad_path(path: str) -> str:
    """Why a path may not be in a kernel tree; "" if it may."""
    if not path:
        return "is empty"
    if path.startswith("/"):
        return "is absolute"
    if len(path.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        return "is too long"
    if any(ord(char) < 32 or ord(char) == 127 for char in path):
        return "has control characters"
    if any(0xDC80 <= ord(char) <= 0xDCFF for char in path):
        return "is not UTF-8"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return f"has a component {part!r}"
        # What file systems that fold names could take for it counts as .git too.
        if part.casefold().rstrip(". ") in (".git", "git~1"):
            return "enters .git"
    return ""


def _from_header(file: _File) -> tuple[str, str]:
    """The two names of a `diff --git` line, for a section that names its files nowhere else."""
    assert file.header is not None
    raw = file.header
    first = second = b""
    if raw.startswith(b'"'):
        first, rest = _unquoted(raw)
        rest = rest.lstrip(b" ")
        second = _unquoted(rest)[0] if rest.startswith(b'"') else rest
    elif b' "' in raw:
        first, _, rest = raw.partition(b' "')
        second = _unquoted(b'"' + rest)[0]
    else:
        # Both names are the same but for the prefix; blanks in them make any other cut a guess.
        for at, byte in enumerate(raw):
            if byte == 32 and raw[:at].partition(b"/")[2] == raw[at + 1 :].partition(b"/")[2]:
                first, second = raw[:at], raw[at + 1 :]
                break
    names = [_stripped(name.decode("utf-8", "surrogateescape")) for name in (first, second)]
    return (
        _checked(names[0], file.where, raw.decode("utf-8", "replace")),
        _checked(names[1], file.where, raw.decode("utf-8", "replace")),
    )


def _finish(file: _File) -> FileChange:
    """The change that a section makes; a git header's own names are checked as well."""
    if file.header is not None and (file.old is None or file.new is None):
        if not file.marked:
            raise DiffError(
                f"line {file.where}: {_called([file])}: a header without a change",
                "the patch is cut short: make it again with git format-patch",
            )
        file.old, file.new = _from_header(file)
    elif file.header is not None and not file.moved and b" " in file.header:
        for name in _header_names_if_plain(file.header):
            _checked(_stripped(name), file.where, name)
    old = None if file.created or not file.old else file.old
    new = None if file.deleted or not file.new else file.new
    if old is None and new is None:
        raise DiffError(
            f"line {file.where}: a file that comes from /dev/null and goes there",
            "make the patch again with git format-patch",
        )
    if not file.header and not file.hunks:
        raise DiffError(
            f"line {file.where}: file names without a hunk", "the patch is cut short: make it again"
        )
    return FileChange(
        old_path=old,
        new_path=new,
        added=len(file.added),
        removed=file.removed,
        added_lines=tuple(file.added),
    )


def _header_names_if_plain(header: bytes) -> list[str]:
    """The names of a `diff --git` line that has exactly two and no quotes."""
    names = header.decode("utf-8", "surrogateescape").split(" ")
    return names if len(names) == 2 and '"' not in header.decode("utf-8", "replace") else []
