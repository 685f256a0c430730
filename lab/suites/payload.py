"""A folder of programs goes in, a read-only disk for guests comes out, kept by content."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from lab import host
from lab.model import Emit, Event, EventKind
from lab.store import Cache, publish, sha256_file

_VERSION = 1  # of how disks are made
_BLOCK_BYTES = 4096
_PACK_S = 600.0


def disk_of(folder: Path, name: str, *, cache: Cache, emit: Emit, skip: frozenset[str]) -> Path:
    """An ext4 image of `folder` without what is called as in `skip`, or ends as in it (".o").

    The folder is only read. The image is the same file for the same content, and packed once.
    """
    entries = tuple(_entries(folder, skip))
    digest = hashlib.sha256(b"%d\0" % _VERSION)
    for path in entries:
        digest.update(_identity(folder, path))
    final = cache.sub("payloads") / f"{name}-{digest.hexdigest()[:24]}"
    image = final / "disk.ext4"
    with cache.lock(f"payload {final.name}"):
        if image.is_file():
            os.utime(final)  # in use: `lab clean` looks at this
            return image
        emit(Event(kind=EventKind.STARTED, step=f"pack {name}", text=str(folder)))
        with cache.staging() as staging:
            made = staging / "made"
            made.mkdir()
            _copy(folder, entries, staging / "root")
            _pack(staging / "root", made / image.name)
            publish(made, final)
        emit(Event(kind=EventKind.DONE, step=f"pack {name}", text=f"{len(entries)} files"))
    return image


def _entries(folder: Path, skip: frozenset[str]) -> Iterator[Path]:
    """Everything below the folder, in a fixed order, folders before what is in them."""
    for path in sorted(folder.iterdir()):
        if path.name in skip or path.suffix in skip:
            continue
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            yield path
            yield from _entries(path, skip)
        elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            yield path


def _identity(folder: Path, path: Path) -> bytes:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)  # noqa: PTH115
    else:
        content = sha256_file(path) if stat.S_ISREG(status.st_mode) else ""
    parts = (str(path.relative_to(folder)), f"{status.st_mode:o}", content)
    return b"\0".join(part.encode("utf-8", "surrogateescape") for part in parts) + b"\n"


def _copy(folder: Path, entries: tuple[Path, ...], root: Path) -> None:
    root.mkdir()
    for path in entries:
        target = root / path.relative_to(folder)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_dir():
            target.mkdir()
        else:
            shutil.copy2(path, target)


def _pack(root: Path, image: Path) -> None:
    """No journal and no spare room: nobody will write to it."""
    used = count = 0
    for path in root.rglob("*"):
        used += -(-path.lstat().st_size // _BLOCK_BYTES) * _BLOCK_BYTES
        count += 1
    size = (used + used // 16 + (count * 512) + (16 << 20)) // _BLOCK_BYTES * _BLOCK_BYTES
    with image.open("xb") as stream:
        stream.truncate(size)
    host.run(
        (
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK_BYTES), "-m", "0"),
            *("-O", "^has_journal", "-N", str(count + 64), "-E", "root_owner=0:0"),
            *("-d", root, image),
        ),
        timeout_s=_PACK_S,
        leash=True,
    )
    image.chmod(0o444)
