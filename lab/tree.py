"""A `Source` and patches go in, a checked-out `Tree` comes out, keyed by its git tree id.

Below trees/ID/ lie the files of one git tree, and an empty directory `build/`, the mount point
for object folders. A patched tree is made of hard links to the base's: what the series does not
touch is the same inode with the same time, so that `make` finds its objects fresh, and what it
touches is unlinked and written anew, never in place. Untouched files carry one fixed, old time:
a base tree that is dropped and made again makes no object look stale.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab import host, patching, store
from lab.model import Emit, Event, EventKind, LabFault, Patch, Source
from lab.patching import Applied, ApplyFailed, RawChange
from lab.source import git
from lab.store import Cache

__all__ = ["Applied", "ApplyFailed", "Tree", "apply", "at", "checkout", "prefixes"]

MOUNT_POINT = "build"
SOURCE_MTIME_S = 946_684_800  # 1 January 2000: older than every object
_CHECKOUT_TIMEOUT_S = 1800.0
_HASH_THREADS = 4

apply = patching.apply


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Checked-out sources; read-only by convention, shared by hard links."""

    path: Path
    tree: str  # id of the git tree: equal ids are equal sources
    commit: str
    source: Source
    patches: tuple[Patch, ...]
    changed: tuple[str, ...]  # paths in which it differs from the source


def checkout(
    source: Source,
    patches: tuple[Patch, ...],
    *,
    cache: Cache,
    emit: Emit,
    kernel: str | None = None,
) -> Tree:
    """The source with the patches applied. `kernel`: what the series says it is for.

    Raises `ApplyFailed`; then nothing is left behind.
    """
    return at(
        source,
        patching.apply(source, patches, cache=cache, emit=emit, kernel=kernel)[-1],
        patches,
        cache=cache,
        emit=emit,
    )


def prefixes(
    source: Source,
    patches: tuple[Patch, ...],
    *,
    cache: Cache,
    emit: Emit,
    kernel: str | None = None,
) -> tuple[Tree, ...]:
    """The trees of the first 0, 1, ... len(patches) patches; one that changes nothing is shared."""
    steps = patching.apply(source, patches, cache=cache, emit=emit, kernel=kernel)
    return tuple(
        at(source, step, patches[:count], cache=cache, emit=emit)
        for count, step in enumerate(steps)
    )


def at(
    source: Source,
    step: Applied,
    patches: tuple[Patch, ...] = (),
    *,
    cache: Cache,
    emit: Emit,
) -> Tree:
    """A commit of the source's repository, as what differs from the source.

    One that `apply` made, or any other. `patches` is what led to it, if they are patches.
    """
    path = _base(source, cache, emit)
    os.utime(path)  # in use: the cache drops first what was not used for long
    changed: tuple[RawChange, ...] = ()
    if step.tree != source.tree:
        changed = patching.changes(source, source.tree, step.tree)
        path = _patched(source, step, path, changed, cache, emit)
        os.utime(path)
    return Tree(
        path=path,
        tree=step.tree,
        commit=step.commit,
        source=source,
        patches=patches,
        changed=tuple(change.path for change in changed),
    )


# --- the base ----------------------------------------------------------------------------------


def _base(source: Source, cache: Cache, emit: Emit) -> Path:
    """All files of the source, written once."""
    final = cache.sub("trees") / source.tree
    unpacked = source.git_dir.parent / "files"
    if final.is_dir():
        return final
    with cache.lock(f"tree {source.tree}"):
        if final.is_dir():
            return final
        step = f"check out {source.version}"
        emit(Event(kind=EventKind.STARTED, step=step, text=source.commit[:12]))
        with cache.staging() as staging:
            made = staging / "tree"
            wanted = _listing(source, source.tree)
            if unpacked.is_dir():
                # The import has just unpacked these very files: checking them is far cheaper
                # than writing them once more. What does not pass is written anew.
                unpacked.rename(made)
                _normalise(made)
                if _difference(made, wanted) is not None:
                    store.remove_tree(made)
            if not made.is_dir():
                _write_out(source, made, staging / "index")
                _normalise(made)
                if (wrong := _difference(made, wanted)) is not None:
                    raise LabFault(
                        f"the checkout of {source.commit} came out wrong: {wrong}",
                        hint="is the disk sound? lab clean makes the cache anew",
                    )
            _add_mount_point(made)
            store.publish(made, final)
        emit(Event(kind=EventKind.DONE, step=step))
    return final


def _write_out(source: Source, made: Path, index: Path) -> None:
    made.mkdir()
    env = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(made)}
    git(source.git_dir, "read-tree", source.tree, env=env)
    git(source.git_dir, "checkout-index", "--all", "--quiet", env=env, cwd=made,
        leash=True, timeout_s=_CHECKOUT_TIMEOUT_S)  # fmt: skip


def _add_mount_point(made: Path) -> None:
    (made / MOUNT_POINT).mkdir(exist_ok=True)
    (made / MOUNT_POINT).chmod(0o755)


def _entries(top: str, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(path, entry) of everything below `top` but the mount point; directories come first."""
    with os.scandir(f"{top}/{below}") as found:
        for entry in found:
            path = f"{below}{entry.name}"
            if path == MOUNT_POINT and entry.is_dir(follow_symlinks=False):
                continue
            yield path, entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(top, f"{path}/")


def _normalise(top: Path) -> None:
    """Modes as git has them, whatever the umask; one time for all files."""
    top.chmod(0o755)
    times = (SOURCE_MTIME_S, SOURCE_MTIME_S)
    for _, entry in _entries(str(top)):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            os.chmod(entry.path, 0o755)  # noqa: PTH101 - a Path for each of 80,000 files is slow
            continue
        if stat.S_ISREG(mode):
            os.chmod(entry.path, 0o755 if mode & 0o100 else 0o644)  # noqa: PTH101
        os.utime(entry.path, times, follow_symlinks=False)


# --- the check against git ---------------------------------------------------------------------


def _listing(source: Source, tree: str) -> dict[str, tuple[str, str]]:
    """path -> (mode, blob) of a git tree."""
    raw = git(source.git_dir, "ls-tree", "-r", "-z", "--full-tree", tree).text
    listed = {}
    for line in raw.split("\0")[:-1]:
        info, _, path = line.partition("\t")
        mode, _, blob = info.split(" ")
        listed[path] = (mode, blob)
    return listed


def _mode(status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "120000"
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    return "100755" if status.st_mode & 0o100 else "100644"


def _blob_id(path: str, mode: str, length: int) -> str:
    """The id that git gives the content of a file."""
    if mode == "120000":
        content = os.fsencode(os.readlink(path))  # noqa: PTH115
    else:
        with open(path, "rb") as stream:  # noqa: PTH123
            content = stream.read()
    algorithm = hashlib.sha1 if length == 40 else hashlib.sha256
    return algorithm(b"blob %d\0" % len(content) + content).hexdigest()


def _difference(
    top: Path,
    wanted: dict[str, tuple[str, str]],
    *,
    linked: bool = False,
    but: Sequence[str] = (),
) -> str | None:
    """What makes the files below `top` another tree than `wanted`; None: nothing does.

    With `linked` (to a tree that passed), files of the untouched time are known to be right,
    except those in `but`; all others are hashed.
    """
    seen: list[tuple[str, str]] = []
    count = 0
    fresh = set(but)
    for path, entry in _entries(str(top)):
        if entry.is_dir(follow_symlinks=False):
            continue
        status = entry.stat(follow_symlinks=False)
        mode = _mode(status)
        count += 1
        if path not in wanted:
            return f"{path} should not be there"
        if wanted[path][0] != mode:
            return f"{path} has mode {mode}, not {wanted[path][0]}"
        if not linked or path in fresh:
            seen.append((path, mode))
        elif status.st_mtime != SOURCE_MTIME_S:
            return f"{path} was written to"
    if count != len(wanted):
        return f"{len(wanted) - count} files are not there"

    def first_wrong(part: list[tuple[str, str]]) -> str | None:
        for path, mode in part:
            blob = wanted[path][1]
            if _blob_id(f"{top}/{path}", mode, len(blob)) != blob:
                return f"{path} has another content"
        return None

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        parts = [seen[start::_HASH_THREADS] for start in range(_HASH_THREADS)]
        return next((wrong for wrong in pool.map(first_wrong, parts) if wrong), None)


# --- a patched tree ----------------------------------------------------------------------------


def _patched(
    source: Source,
    step: Applied,
    base: Path,
    changed: tuple[RawChange, ...],
    cache: Cache,
    emit: Emit,
) -> Path:
    final = cache.sub("trees") / step.tree
    if final.is_dir():
        return final
    with cache.lock(f"tree {step.tree}"):
        if final.is_dir():
            return final
        emit(Event(kind=EventKind.STARTED, step="patched tree", text=f"{len(changed)} files"))
        with cache.staging() as staging:
            made = staging / "tree"
            made.mkdir()
            inside = [path for path in base.iterdir() if path.name != MOUNT_POINT]
            host.run(["cp", "-al", "-t", made, "--", *inside], leash=True,
                     timeout_s=_CHECKOUT_TIMEOUT_S)  # fmt: skip
            _replace(source, made, changed)
            wrong = _difference(
                made,
                _listing(source, step.tree),
                linked=True,
                but=[change.path for change in changed],
            )
            if wrong is not None:
                raise LabFault(
                    f"the patched tree came out wrong: {wrong}",
                    hint=f"remove {base}: the lab makes it anew",
                )
            made.chmod(0o755)
            _add_mount_point(made)
            store.publish(made, final)
        emit(Event(kind=EventKind.DONE, step="patched tree", text=step.tree[:12]))
    return final


def _replace(source: Source, made: Path, changed: tuple[RawChange, ...]) -> None:
    """Unlink every changed file first, then write those that are there afterwards."""
    for change in changed:
        path = made / change.path
        path.unlink(missing_ok=True)
    for change in changed:
        if change.new_mode == "000000":
            _prune(made, Path(change.path).parent)
    for change in changed:
        if change.new_mode == "000000":
            continue
        path = made / change.path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = git(source.git_dir, "cat-file", "blob", change.new_blob).stdout
        # "x": if the path were still a link to the base's file, writing would go through it.
        with path.open("xb") as stream:
            stream.write(content)
        path.chmod(0o755 if change.new_mode == "100755" else 0o644)


def _prune(made: Path, below: Path) -> None:
    """Remove directories that became empty, upwards: git has none."""
    while below != Path():
        try:
            (made / below).rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return  # not empty
        below = below.parent
