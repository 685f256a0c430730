"""What a build depends on comes in; its content key, make's words and make's environment go out."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from lab import host
from lab.arch import Arch
from lab.model import encode
from lab.source import git

# Raise it when the same inputs would build another kernel than before.
VERSION = 1

CCACHE_MAX = "20G"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """The tools that decide what the objects look like, by what they say about themselves."""

    cross: str  # prefix; "" where the host is of the architecture
    compiler: str
    linker: str

    @property
    def cc(self) -> str:
        return f"{self.cross}gcc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that a build depends on. Stored beside the kernel, so that a later build may seed."""

    recipe: int
    arch: str
    tree: str  # git tree id of the patched source
    base_tree: str  # git tree id of the source without patches
    config: str  # what the fragments ask for, as merged
    toolchain: Toolchain
    changed: tuple[str, ...]  # paths that patches changed
    stamp: str  # KBUILD_BUILD_TIMESTAMP
    counted: tuple[str, ...] = ()  # objects whose lines count how often they run
    counter_flags: tuple[str, ...] = ()  # what these are compiled with besides

    @property
    def key(self) -> str:
        """Content key: equal for equal kernels, whatever patches or fragment files made them."""
        parts: list[object] = [
            self.recipe,
            self.arch,
            self.tree,
            self.config,
            self.toolchain,
            self.stamp,
        ]
        if self.counted:
            parts += [self.counted, self.counter_flags]
        return hashlib.sha256(encode(parts)).hexdigest()[:32]


def toolchain(row: Arch) -> Toolchain:
    """The tools for an architecture on this host. Raises `UserError` for a missing one."""
    cross = "" if platform.machine() == row.machine else row.cross
    first = [
        host.run([f"{cross}{name}", "--version"]).text.partition("\n")[0] for name in ("gcc", "ld")
    ]
    for needed in ("make", "ccache", "flex", "bison", "bc", "perl"):
        host.tool(needed)
    return Toolchain(cross=cross, compiler=first[0], linker=first[1])


def stamp(git_dir: Path, commit: str) -> str:
    """The time that the kernel says it was built at: that of its source's commit.

    The base's commit on both sides: a patch that changes nothing gives the same image.
    """
    seconds = git(git_dir, "show", "--no-patch", "--format=%ct", commit, "--").text
    return time.strftime("%a %b %e %H:%M:%S UTC %Y", time.gmtime(int(seconds)))


def words(row: Arch, tools: Toolchain, jobs: int) -> tuple[str, ...]:
    """What every call of make gets, ahead of its targets."""
    return (
        f"-j{jobs}",
        # Whole messages in the log, though jobs run side by side.
        "--output-sync=target",
        f"ARCH={row.kernel}",
        f"CROSS_COMPILE={tools.cross}",
        f"CC=ccache {tools.cc}",
        "HOSTCC=ccache gcc",
        # Set and empty: setlocalversion then appends no "+" for a tree that is not at a tag.
        "LOCALVERSION=",
    )


def environment(row: Arch, stamp: str, ccache_dir: Path) -> dict[str, str]:
    """The variables of make: nothing of them depends on the day, the user or the machine."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",  # plain quotes in messages
        "KBUILD_BUILD_TIMESTAMP": stamp,
        "KBUILD_BUILD_USER": "lab",
        "KBUILD_BUILD_HOST": "lab",
        "KBUILD_BUILD_VERSION": "1",
        "CCACHE_DIR": str(ccache_dir),
        "CCACHE_MAXSIZE": CCACHE_MAX,
        "CCACHE_COMPILERCHECK": "content",
    }
