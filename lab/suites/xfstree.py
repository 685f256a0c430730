"""The user's own tree of xfstests goes in; its tests by group come out, or why it cannot be used.

The lab neither carries nor builds xfstests. It reads a tree that its user has built, and never
writes to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.suites import programs
from lab.suites.programs import Userland

# What every tree has, and what only a built one has.
_SOURCE = ("check", "common/rc", "common/config", "tests/generic")
_BUILT = ("ltp/fsstress", "ltp/fsx", "src/lstat64", "tests/generic/group.list")
# Where its programs are.
_PROGRAMS = ("ltp", "src", "lib")
_TEST = re.compile(r"\d{3,}")
_LETS_PASS = re.compile(r"^\s*_check_dmesg (\w+)", re.MULTILINE)
# Of no use in a guest: history, objects, and sources of what is built.
UNUSED = frozenset({".git", ".o", ".lo", ".a", ".c"})


@dataclass(frozen=True, slots=True, kw_only=True)
class XfsTree:
    """A built tree."""

    path: Path
    groups: Mapping[str, frozenset[str]]  # test ("generic/247") -> its groups

    def tests(self, folders: tuple[str, ...]) -> tuple[str, ...]:
        """All tests in those folders of tests/, in order."""
        found = (test for test in self.groups if test.partition("/")[0] in folders)
        return tuple(sorted(found, key=_order))

    def group(self, name: str, folders: tuple[str, ...]) -> tuple[str, ...]:
        """The tests of a group ("quick"), or of one of a folder ("ext4/quick")."""
        folder, slash, group = name.rpartition("/")
        wanted = tuple(one for one in folders if not slash or one == folder)
        tests = self.tests(wanted)
        return tests if group == "all" else tuple(t for t in tests if group in self.groups[t])

    def traits(self, test: str) -> frozenset[str]:
        """Its groups, and the names of the filters by which it lets reports of the kernel pass."""
        try:
            script = (self.path / "tests" / test).read_text(encoding="utf-8", errors="replace")
        except OSError:
            script = ""  # `check` will say that there is no such test
        return self.groups[test] | frozenset(_LETS_PASS.findall(script))

    def known_groups(self) -> tuple[str, ...]:
        return tuple(sorted(frozenset().union(*self.groups.values()))) if self.groups else ()


def _order(test: str) -> tuple[str, int]:
    folder, _, number = test.partition("/")
    return folder, int(number)


def complaint(path: Path, land: Userland) -> str:
    """Why the tree at `path` cannot be run in that userland; "" if it can."""
    if not path.is_dir():
        return f"{path} is no folder"
    for name in _SOURCE:
        if not (path / name).exists():
            return f"{path} is no tree of xfstests: it has no {name}"
    for name in _BUILT:
        if not (path / name).is_file():
            return f"{path} is not built: it has no {name}"
    found = tuple(programs.programs(path / name for name in _PROGRAMS))
    if not found:
        return f"{path} is not built: there is no program in {', '.join(_PROGRAMS)}"
    own = frozenset(program.path.name for program in found)
    misfits = [why for program in found if (why := programs.misfit(program, land, own))]
    # One program with a library too many costs its tests, which then say so themselves.
    if len(misfits) > len(found) // 10 or any(_vital(why) for why in misfits):
        return f"{path}: {misfits[0]} ({len(misfits)} of {len(found)} programs)"
    return ""


def _vital(why: str) -> bool:
    return why.split(" ", 1)[0] in ("fsstress", "fsx")


def read(path: Path) -> XfsTree:
    """The tests of a built tree."""
    groups: dict[str, frozenset[str]] = {}
    for listing in sorted((path / "tests").glob("*/group.list")):
        folder = listing.parent.name
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.partition("#")[0].split()
            if words and _TEST.fullmatch(words[0]):
                groups[f"{folder}/{words[0]}"] = frozenset(words[1:])
    return XfsTree(path=path, groups=groups)
