"""Words for make come in; an argv that runs it without network, its tree alone in sight, goes out.

A patch series is somebody else's code, and `make` runs it. Inside, every tree is at the same path,
so object files and ccache entries of one tree serve another.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import host
from lab.build.diagnostics import Places
from lab.model import LabError
from lab.store import Cache

# What a toolchain may live in. Homes, /run, /var and the lab's own folders stay out of sight.
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix", "gnu")
_INSIDE = Path("/lab/linux")
_INSIDE_CCACHE = Path("/lab/ccache")
# Below the source, for then kbuild uses relative paths: `srctree := ..`.
OBJECTS = "build"
_APART = (
    *("bwrap", "--die-with-parent", "--new-session"),
    *("--unshare-user-try", "--unshare-pid", "--unshare-net", "--unshare-ipc"),
    *("--unshare-uts", "--cap-drop", "ALL"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where one build happens: host paths, and how make is walled in."""

    kind: str  # "bwrap" | "none: <reason>", as `Kernel.sandbox` has it
    source: Path
    objects: Path
    ccache: Path
    visible: tuple[Path, ...] = ()  # folders of the toolchain outside the system's

    @property
    def walled(self) -> bool:
        return self.kind == "bwrap"

    @property
    def places(self) -> Places:
        """The paths as make sees them."""
        if self.walled:
            return Places(source=str(_INSIDE), objects=str(_INSIDE / OBJECTS))
        return Places(source=str(self.source), objects=str(self.objects))

    @property
    def ccache_dir(self) -> Path:
        return _INSIDE_CCACHE if self.walled else self.ccache

    def make(self, words: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
        """The whole argv for `make words...` on this tree with exactly `env` (if walled in)."""
        places = self.places
        output = OBJECTS if self.walled else places.objects
        argv = ("make", "-C", places.source, f"O={output}", "--no-print-directory", *words)
        return (*self._wall(env), *argv) if self.walled else argv

    def _wall(self, env: Mapping[str, str]) -> tuple[str, ...]:
        binds = _system()
        for folder in self.visible:
            binds += ["--ro-bind", str(folder), str(folder)]
        settings = [word for name, value in env.items() for word in ("--setenv", name, value)]
        return (
            *(*_APART, "--clearenv", *settings),
            *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", *binds),
            *("--ro-bind", str(self.source), str(_INSIDE)),
            *("--bind", str(self.objects), str(_INSIDE / OBJECTS)),
            *("--bind", str(self.ccache), str(_INSIDE_CCACHE)),
            *("--chdir", str(_INSIDE), "--"),
        )


def closed(argv: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The argv with no network and nothing in sight but the system and `folder`, where it starts;
    it can write nowhere."""
    return (
        *_APART,
        *("--proc", "/proc", "--dev", "/dev", *_system()),
        *("--ro-bind", str(folder), str(folder), "--chdir", str(folder), "--", *argv),
    )


def _system() -> list[str]:
    binds: list[str] = []
    for root in (Path("/") / name for name in _SYSTEM):
        if root.is_symlink():
            binds += ["--symlink", str(root.readlink()), str(root)]
        elif root.is_dir():
            binds += ["--ro-bind", str(root), str(root)]
    return binds


def visible_folders(tools: Sequence[Path]) -> tuple[Path, ...]:
    """Prefixes (the folder above bin/) of tools that do not live in the system's folders."""
    found = {
        tool.resolve().parent.parent
        for tool in tools
        if tool.resolve().parts[1:2] and tool.resolve().parts[1] not in _SYSTEM
    }
    return tuple(sorted(found))


@functools.cache
def wall(cache: Cache) -> str:
    """How builds are walled in on this host: "bwrap", or "none: <reason>".

    Tried, not looked up: containers and hardened hosts forbid user namespaces to a bwrap that is
    installed.
    """
    with cache.staging() as scratch:
        source, objects, ccache = (scratch / name for name in ("source", OBJECTS, "ccache"))
        for folder in (source / OBJECTS, objects, ccache):
            folder.mkdir(parents=True)
        bench = Bench(kind="bwrap", source=source, objects=objects, ccache=ccache)
        try:
            host.run(bench.make(["--version"], {"PATH": os.defpath}), timeout_s=30, leash=True)
        except LabError as error:
            return f"none: {error.message.strip().splitlines()[-1]}"
    return "bwrap"
