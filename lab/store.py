"""Where things are kept on disk: one cache folder by content, one folder per run.

Layout of the cache (default `$XDG_CACHE_HOME/kernel-patch-lab`):

    ccache/          the compiler cache
    sources/         kernel source packages and the git repositories made from them
    trees/           checked-out source trees, by source tree and patches
    builds/KEY/      whole kernels
    images/          root images and initramfs archives, by digest
    artefacts/       what cells of other hosts brought, by digest
    payloads/        what suites bring into a guest, built and packed, by content
    snapshots/       machines of kernels that have booted
    staging/         half-made things; swept when their owner is dead

Runs live in `$XDG_STATE_HOME/kernel-patch-lab/runs/ID/`. Nothing appears in its final place but
by a rename of something whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lab.model import Emit, Event, EventKind, LabFault, decode

T = TypeVar("T")

STALE_S = 3600.0  # nobody takes so long between a temporary file and its rename


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def recall(path: Path, kind: type[T]) -> T | None:
    """A value of the cache; None where there is none, or one that another version wrote."""
    try:
        return decode(path.read_bytes(), kind)
    except (FileNotFoundError, LabFault):
        return None


@contextlib.contextmanager
def disk_full_explained(where: Path) -> Iterator[None]:
    """Turn "no space left" into a `LabFault` that names the file system and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise LabFault(
            f"no space left on the file system of {where}",
            hint="lab clean frees the cache; [paths] in lab.toml moves it",
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step; a crash leaves the old or the new, never a part."""
    with disk_full_explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def sweep_temporaries(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Remove what `write_atomically` left in `folder` itself where its process was killed.

    The caller holds the folder's lock, or names an age at which no writer can be alive.
    """
    for path in folder.glob(".*.*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made if absent), waiting for its holder.

    The kernel drops the lock when the holder dies. `waiting` is called once if there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a live process holds `locked(path)`."""
    if not path.exists():
        return False
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The cache folder. All methods are safe against other labs on the same folder."""

    root: Path

    def sub(self, name: str) -> Path:
        path = self.root / name
        with disk_full_explained(self.root):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def lock(
        self, name: str, *, emit: Emit | None = None, step: str = ""
    ) -> contextlib.AbstractContextManager[None]:
        """Serialise work on one thing, named freely. Where it has to wait, `emit` says so."""

        def waiting() -> None:
            if emit is not None:
                emit(Event(kind=EventKind.NOTE, step=step, text="another lab is at it, wait"))

        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return locked(self.sub("locks") / digest, waiting=waiting)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder on the cache's own file system, gone at the end; swept later if we die."""
        base = self.sub("staging")
        with contextlib.ExitStack() as held:
            while True:
                with disk_full_explained(base):
                    folder = Path(tempfile.mkdtemp(dir=base))
                    held.enter_context(locked(folder.with_suffix(".lock")))
                if folder.is_dir():
                    break
                held.close()  # a sweep took it in the moment before it was locked
            try:
                with disk_full_explained(base):
                    yield folder
            finally:
                remove_tree(folder)
                folder.with_suffix(".lock").unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove what dead labs left in staging/. Returns how many folders."""
        swept = 0
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            sweep_temporaries(folder, older_than_s=STALE_S)
        for lock in self.sub("staging").glob("*.lock"):
            with lock.open("a") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                remove_tree(lock.with_suffix(""))
                lock.unlink(missing_ok=True)
                swept += 1
        return swept

    def reclaim(self, *, older_than_s: float, everything: bool, dry_run: bool) -> dict[str, int]:
        """Free space: entries not used for `older_than_s`; with `everything`, downloads too.

        Returns bytes freed by path; builds share objects, and what a kept one still has is not
        freed. Touches only the sub-folders that the lab makes, never the root itself, so that a
        wrong path in lab.toml costs nothing.
        """
        kinds: tuple[str, ...] = (
            "builds",
            "trees",
            "payloads",
            "staging",
            "snapshots",
            "artefacts",
        )
        if everything:
            kinds = (*kinds, "images", "sources", "ccache", "locks")
        freed: dict[str, int] = {}
        links: Counter[tuple[int, int]] = Counter()
        now = time.time()
        for kind in kinds:
            folder = self.root / kind
            for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
                lock = entry if entry.suffix == ".lock" else entry.with_suffix(".lock")
                if kind == "staging" and is_locked(lock):
                    continue
                if kind == "snapshots" and _orphaned(entry, freed):
                    pass  # its kernel has gone, or goes now
                elif now - entry.lstat().st_mtime < older_than_s and kind != "staging":
                    continue
                freed[str(entry)] = _last_links_bytes(entry, links)
                if not dry_run:
                    remove_tree(entry)
                    links.clear()  # the file system has counted them down
        return freed


def _orphaned(snapshot: Path, freed: dict[str, int]) -> bool:
    """Whether the kernel of a snapshot is not in the cache any more."""
    kernel = snapshot / "kernel"
    return not kernel.exists() or any(str(folder) in freed for folder in kernel.readlink().parents)


def tree_bytes(path: Path) -> int:
    """Disk space below `path`; files with several links count once."""
    return sum({(i.st_dev, i.st_ino): i.st_blocks * 512 for i in _inodes(path)}.values())


def _last_links_bytes(path: Path, links: Counter[tuple[int, int]]) -> int:
    """Disk space below `path` of what has no link elsewhere but those counted in `links`, to which
    its own are added."""
    total = 0
    for info in _inodes(path):
        links[info.st_dev, info.st_ino] += 1
        if stat.S_ISDIR(info.st_mode) or links[info.st_dev, info.st_ino] == info.st_nlink:
            total += info.st_blocks * 512
    return total


def _inodes(path: Path) -> Iterator[os.stat_result]:
    """Of every link at and below `path`."""
    yield path.lstat()
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            yield os.lstat(f"{folder}/{name}")


def publish(staged: Path, final: Path) -> None:
    """Move a whole folder or file to its final place in one step; an existing one stays."""
    with disk_full_explained(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not final.exists():
                raise
            remove_tree(staged)  # another lab was faster with the same content


def remove_tree(path: Path) -> None:
    """Remove a folder of ours, read-only parts included; absent is fine."""

    def make_writable(function: object, name: str, _info: object) -> None:
        parent = Path(name).parent
        if parent.exists():
            parent.chmod(0o700)
        target = Path(name)
        if target.is_dir() and not target.is_symlink():
            target.chmod(0o700)
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path, onerror=make_writable)
