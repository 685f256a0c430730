"""A kernel's objects come in; a copy that make brings up to date for another tree goes out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lab import host
from lab.build.recipe import Inputs

# Made anew by every link; left out, for they are half of an object folder's bytes.
_LINKED = {"System.map", "piggy.o", "vmlinux", "vmlinux.o", "vmlinux.bin", "vmlinux.unstripped"}
# Sources that take no part in the configuration.
_PLAIN = {".c", ".h", ".rst", ".S", ".txt"}


def usable(seed: Inputs, wanted: Inputs) -> bool:
    """Whether objects made from `seed` may be brought up to date for `wanted` by make.

    Everything the seed's patches changed must be changed here too: a file that is back in its
    original state has its old time stamp, and make would not see that it differs.
    """
    same = (
        (one.recipe, one.arch, one.base_tree, one.toolchain, one.stamp) for one in (seed, wanted)
    )
    return next(same) == next(same) and set(seed.changed) <= set(wanted.changed)


def keeps_config(seed: Inputs, wanted: Inputs, fresh: tuple[str, ...]) -> bool:
    """Whether the seed's .config is surely the one that configuring anew would make.

    `fresh` is what differs between the two trees.
    """
    return seed.config == wanted.config and all(
        PurePosixPath(path).suffix in _PLAIN and not path.startswith("scripts/") for path in fresh
    )


def prune(objects: Path, image: str) -> None:
    """Remove what a link makes anew, the bootable image included."""
    for path in _files(objects):
        name = path.name
        linked = name in _LINKED or name.startswith(("vmlinux.bin.", ".tmp_vmlinux"))
        if linked and not name.endswith(".cmd"):
            path.unlink()
    (objects / image).unlink(missing_ok=True)


def copy(
    objects: Path, target: Path, source: Path, changed: tuple[str, ...], fresh: tuple[str, ...]
) -> None:
    """Copy an object folder to `target` and age it to before the fresh changes in `source`.

    `changed` is what patches have changed in `source`, `fresh` the part of it in which it differs
    from the seed's tree. A copy and no hard links: `> file` in a kbuild rule writes through a link
    into the seed. make compares time stamps only, and the changed sources may have been checked
    out before the seed was built: so all objects get one time, just before the first change. A
    source file that is untouched but looks newer than that is compiled once too often, never once
    too little.
    """
    host.run(
        ["cp", "-a", "--reflink=auto", "--no-target-directory", objects, target], timeout_s=900
    )
    new = [source / path for path in fresh if (source / path).is_file()]
    old = [source / path for path in changed if path not in fresh and (source / path).is_file()]
    if not new:
        return
    if old and all(path.stat().st_nlink == 1 for path in new):
        # The seed has these already, and they must not look newer than its objects, whenever the
        # trees were checked out: put the objects after them, and what is fresh after the objects.
        stamp = max(path.stat().st_mtime_ns for path in old) + 1_000_000
        late = max(time.time_ns(), stamp + 1_000_000)
        for path in new:
            os.utime(path, ns=(late, late))
    else:
        stamp = min(path.stat().st_mtime_ns for path in new) - 1_000_000_000
    for path in _files(target):
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)


def expected(objects: Path, changed: tuple[str, ...]) -> int:
    """How many objects depend on a changed file, by the dependencies that kbuild recorded."""
    needles = [f"../{path}".encode() for path in changed]
    count = 0
    for path in _files(objects):
        if path.name.endswith(".o.cmd"):
            content = path.read_bytes()
            count += any(needle in content for needle in needles)
    return count


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)
