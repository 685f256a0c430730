"""The store: whole or absent, swept when the owner is dead, and a full disk said plainly."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lab import store
from lab.model import Event, EventKind, LabFault, encode
from lab.store import Cache

HOLDER = """
import sys, time
from pathlib import Path
from lab.store import Cache
with Cache(root=Path(sys.argv[1])).staging() as folder:
    (folder / "half").write_text("made")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(root=tmp_path / "cache")


def test_an_atomic_write_replaces_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/file"
    store.write_atomically(path, b"one")
    store.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()  # a directory cannot be replaced by a file
    with pytest.raises(OSError, match=r"."):
        store.write_atomically(path, b"two")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_readers_see_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([65 + n]) * 200_000 for n in range(8)]
    store.write_atomically(path, contents[0])
    done = threading.Event()

    def write() -> None:
        for content in contents * 4:
            store.write_atomically(path, content)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_bytes())
    thread.join()
    assert seen <= set(contents)


def test_staging_is_gone_at_the_end_even_of_a_failure(cache: Cache) -> None:
    with pytest.raises(RuntimeError), cache.staging() as folder:
        (folder / "sub").mkdir()
        (folder / "sub/x").touch()
        (folder / "sub").chmod(0o500)
        raise RuntimeError
    assert list((cache.root / "staging").iterdir()) == []


@pytest.mark.fake
def test_staging_is_swept_when_its_owner_is_dead_and_only_then(cache: Cache) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cache.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert (folder / "half").is_file()
        assert cache.sweep() == 0
        assert (folder / "half").is_file()
    finally:
        owner.kill()
        owner.communicate(timeout=10)
    with cache.staging() as mine:
        assert cache.sweep() == 1
        assert not folder.exists()
        assert mine.is_dir(), "our own is in use"


@pytest.mark.fake
def test_sweeping_takes_nothing_that_is_just_being_made(cache: Cache) -> None:
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            cache.sweep()

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        for _ in range(300):
            with cache.staging() as folder:
                (folder / "x").touch()
                assert (folder / "x").exists()
    finally:
        stop.set()
        thread.join()


@pytest.mark.fake
def test_a_lock_goes_with_its_holder(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys, time; from pathlib import Path; from lab.store import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert store.is_locked(path)
    finally:
        holder.kill()
        holder.communicate(timeout=10)
    assert not store.is_locked(path)
    with store.locked(path):
        assert store.is_locked(path)


def test_a_lock_serialises(cache: Cache) -> None:
    order: list[str] = []
    told: list[Event] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait(10)
        with cache.lock("thing", emit=told.append, step="build base"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with cache.lock("thing"), cache.lock("another thing"):
        inside.set()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert [event.step for event in told] == ["build base"]
    with cache.lock("thing", emit=told.append):
        assert len(told) == 1, "nobody to wait for, nothing to say"


def test_what_another_version_wrote_is_as_good_as_absent(cache: Cache) -> None:
    path = cache.root / "event.json"
    assert store.recall(path, Event) is None
    event = Event(kind=EventKind.DONE, step="build")
    store.write_atomically(path, encode(event))
    assert store.recall(path, Event) == event
    path.write_text('{"kind": "of-old", "step": "build"}')
    assert store.recall(path, Event) is None


def test_publishing_is_one_step_and_the_first_one_stays(cache: Cache) -> None:
    final = cache.root / "trees/x"
    with cache.staging() as folder:
        for name in ("one", "two"):
            (folder / name).mkdir()
            (folder / name / "who").write_text(name)
        store.publish(folder / "one", final)
        store.publish(folder / "two", final)
        assert not (folder / "two").exists()
    assert (final / "who").read_text() == "one"


def test_publishing_what_is_not_there_fails(cache: Cache) -> None:
    with pytest.raises(FileNotFoundError):
        store.publish(cache.root / "nothing", cache.root / "final")


def test_remove_tree_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "link").symlink_to(outside)
    (tree / "sub/file").touch()
    (tree / "sub").chmod(0o500)
    store.remove_tree(tree)
    assert not tree.exists()
    (tmp_path / "direct").symlink_to(outside)
    store.remove_tree(tmp_path / "direct")
    store.remove_tree(tmp_path / "absent")
    assert (outside / "kept").exists()


FULL = """
import sys
from pathlib import Path
from lab import store
from lab.model import LabFault
cache = store.Cache(root=Path(sys.argv[1]))
target = cache.root / "record"
store.write_atomically(target, b"old")
def fill_staging():
    with cache.staging() as folder:
        (folder / "big").write_bytes(bytes(4 << 20))
for step in (fill_staging, lambda: store.write_atomically(target, bytes(4 << 20))):
    try:
        step()
    except LabFault as fault:
        print(fault.message, "|", fault.hint)
assert target.read_bytes() == b"old"
assert list(cache.sub("staging").iterdir()) == []
assert sorted(path.name for path in cache.root.iterdir()) == ["record", "staging"]
"""


@pytest.mark.fake
def test_a_full_disk_is_explained_and_nothing_is_half_written(tmp_path: Path) -> None:
    """On a tmpfs of one megabyte, mounted in a user and mount namespace of our own."""
    mount = tmp_path / "small"
    mount.mkdir()
    script = 'mount -t tmpfs -o size=1m small "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-ec", script, "sh", mount, sys.executable, FULL],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "no space left on the file system of" in line
        assert str(mount) in line
        assert "lab clean" in line


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), store.disk_full_explained(tmp_path):
        raise PermissionError(13, "no")
    with pytest.raises(LabFault, match="no space"), store.disk_full_explained(tmp_path):
        raise OSError(28, "full")


def test_temporaries_of_a_killed_writer_are_swept_once_nobody_can_be_writing(
    tmp_path: Path,
) -> None:
    cache = Cache(root=tmp_path)
    folder = cache.sub("accel")
    for name, age_s in ((".x.json.abcd1234", 7200), (".y.json.abcd1234", 5), ("z.json", 7200)):
        (folder / name).write_text("half")
        then = time.time() - age_s
        os.utime(folder / name, (then, then))
    cache.sweep()
    assert sorted(path.name for path in folder.iterdir()) == [".y.json.abcd1234", "z.json"]
    store.sweep_temporaries(folder)
    assert [path.name for path in folder.iterdir()] == ["z.json"]


def test_what_is_freed_counts_shared_objects_once_and_only_if_nobody_keeps_them(
    cache: Cache,
) -> None:
    size_bytes = 1 << 20
    old, older, kept = (cache.sub("builds") / name for name in ("a-old", "b-old", "c-kept"))
    for folder in (old, older, kept):
        folder.mkdir()
    (old / "shared.o").write_bytes(b"x" * size_bytes)
    (older / "shared.o").hardlink_to(old / "shared.o")
    (old / "kept.o").write_bytes(b"x" * size_bytes)
    (kept / "kept.o").hardlink_to(old / "kept.o")
    long_ago = time.time() - 1000
    for folder in (old, older):
        os.utime(folder, (long_ago, long_ago))
    would = cache.reclaim(older_than_s=500, everything=False, dry_run=True)
    assert set(would) == {str(old), str(older)}
    assert size_bytes <= sum(would.values()) < 2 * size_bytes
    assert cache.reclaim(older_than_s=500, everything=False, dry_run=False) == would
    assert not old.exists()
    assert (kept / "kept.o").stat().st_size == size_bytes
