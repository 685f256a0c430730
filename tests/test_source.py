"""Kernel sources: tarballs, Debian packages, the user's git, which is never written to."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import host, source
from lab.model import Event, Source, UserError
from lab.store import Cache

pytestmark = pytest.mark.fake

MAKEFILE = "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = {sub}\nEXTRAVERSION =\nNAME = Toy\n"
Open = Callable[..., Source]


def git(where: Path, *words: str, check: bool = True) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgSign=false")
    env = {"GIT_COMMITTER_DATE": "1700000000 +0000", "GIT_AUTHOR_DATE": "1700000000 +0000"}
    return host.run(["git", "-C", where, *identity, *words], env=env, check=check).text.strip()


def toy(where: Path, sub: int = 7) -> Path:
    """A directory that passes for a kernel tree."""
    (where / "mm").mkdir(parents=True)
    (where / "Makefile").write_text(MAKEFILE.format(sub=sub))
    (where / "Kconfig").write_text("config TOY\n\tbool\n")
    (where / "mm/x.c").write_bytes(b"int x;\r\nint y;\n")
    (where / ".gitignore").write_text("*.o\n")
    (where / ".gitattributes").write_text("*.c text eol=crlf ident\n")
    (where / "mm/kept.o").write_bytes(b"\0\1")
    (where / "run.sh").write_text("#!/bin/sh\n")
    (where / "run.sh").chmod(0o755)
    (where / "link").symlink_to("mm/x.c")
    return where


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(root=tmp_path / "cache")


@pytest.fixture
def open_source(cache: Cache) -> Open:
    def run(name: str | Path, seen: list[Event] | None = None) -> Source:
        events = seen if seen is not None else []
        return source.open_source(str(name), cache=cache, emit=events.append)

    return run


def packed(folder: Path, file: Path, prefix: str = "linux-6.1.7") -> Path:
    with tarfile.open(file, "w:xz") as tar:
        tar.add(folder, arcname=prefix)
    return file


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    return packed(toy(tmp_path / "toy"), tmp_path / "linux-6.1.7.tar.xz")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = toy(tmp_path / "repo")
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", "--all", "--force")
    git(path, "commit", "--quiet", "-m", "first")
    git(path, "tag", "v6.1.7")
    (path / "Makefile").write_text(MAKEFILE.format(sub=8))
    git(path, "commit", "--quiet", "-a", "-m", "second")
    return path


def refused(open_source: Open, name: str | Path, word: str) -> UserError:
    with pytest.raises(UserError) as caught:
        open_source(name)
    assert word in caught.value.message, caught.value.message
    assert caught.value.hint
    return caught.value


def snapshot(top: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns)
        for path in [top, *top.rglob("*")]
    }


# --- tarballs ----------------------------------------------------------------------------------


def test_a_tarball_is_one_commit_of_all_its_files(open_source: Open, tarball: Path) -> None:
    events: list[Event] = []
    found = open_source(tarball, events)
    assert found.version == "6.1.7"
    assert hashlib.sha256(tarball.read_bytes()).hexdigest() in found.provenance
    listed = source.git(found.git_dir, "ls-tree", "-r", found.commit).text
    assert "120000" in listed
    assert "100755" in listed
    assert "mm/kept.o" in listed, "what .gitignore lists is in the tarball all the same"
    # No attribute of the tree may change a byte.
    content = source.git(found.git_dir, "cat-file", "blob", f"{found.commit}:mm/x.c").stdout
    assert content == b"int x;\r\nint y;\n"
    assert [event.kind.value for event in events] == ["started", "progress", "done"]


def test_the_commit_depends_on_the_content_alone(
    tarball: Path, tmp_path: Path, open_source: Open
) -> None:
    other = Cache(root=tmp_path / "other")
    os.environ["GIT_AUTHOR_NAME"] = "Somebody"  # not on the allow-list of children
    try:
        again = source.open_source(str(tarball), cache=other, emit=lambda event: None)
    finally:
        del os.environ["GIT_AUTHOR_NAME"]
    assert again.commit == open_source(tarball).commit


def test_the_second_time_is_a_hit(open_source: Open, tarball: Path) -> None:
    first = open_source(tarball)
    events: list[Event] = []
    started = time.monotonic()
    assert open_source(tarball, events) == first
    assert time.monotonic() - started < 1
    assert events == []


def test_a_cache_that_was_moved_still_serves(tarball: Path, tmp_path: Path, cache: Cache) -> None:
    source.open_source(str(tarball), cache=cache, emit=lambda event: None)
    moved = Cache(root=cache.root.rename(tmp_path / "moved"))
    found = source.open_source(str(tarball), cache=moved, emit=lambda event: None)
    assert found.git_dir.is_relative_to(moved.root)


def test_a_tarball_without_a_top_directory(open_source: Open, tmp_path: Path) -> None:
    file = packed(toy(tmp_path / "t"), tmp_path / "flat.tar.xz", prefix=".")
    assert open_source(file).version == "6.1.7"


@pytest.mark.parametrize("name", ["broken.tar.xz", "broken.deb"])
def test_a_broken_file(open_source: Open, tmp_path: Path, cache: Cache, name: str) -> None:
    (tmp_path / name).write_bytes(b"rubbish" * 99)
    refused(open_source, tmp_path / name, name)
    assert list(cache.sub("sources").iterdir()) == []


def test_no_kernel_tree(open_source: Open, tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello/Makefile").write_text("all:\n")
    refused(open_source, packed(tmp_path / "hello", tmp_path / "h.tar.xz"), "not a kernel tree")
    assert list((cache.root / "sources").iterdir()) == []
    assert list((cache.root / "staging").iterdir()) == []


def test_a_killed_import_leaves_nothing_that_counts(
    tarball: Path, cache: Cache, open_source: Open, tmp_path: Path
) -> None:
    # A tar that stops half-way and waits to be killed, in a lab of its own.
    slow = tmp_path / "bin/tar"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\n{shutil.which("tar")} "$@"\ntouch {tmp_path}/there\nsleep 600\n')
    slow.chmod(0o755)
    program = (
        "import sys; from pathlib import Path; from lab import source, store;"
        "source.open_source(sys.argv[1], cache=store.Cache(root=Path(sys.argv[2])), emit=print)"
    )
    lab = subprocess.Popen(
        [sys.executable, "-c", program, str(tarball), str(cache.root)],
        env={**os.environ, "PATH": f"{slow.parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "there").exists():
        assert time.monotonic() < deadline
        assert lab.poll() is None
        time.sleep(0.02)
    lab.send_signal(signal.SIGKILL)
    lab.wait(10)
    assert list((cache.root / "sources").iterdir()) == []
    assert open_source(tarball).version == "6.1.7"
    assert list((cache.root / "staging").iterdir()) == [], "the next import sweeps"


# --- git ---------------------------------------------------------------------------------------


def test_a_git_directory_is_borrowed_from(open_source: Open, repository: Path) -> None:
    os.utime(repository / "Makefile")  # git status would like to note it in the index
    before = snapshot(repository)
    found = open_source(repository)
    assert snapshot(repository) == before
    assert (found.version, found.dirty) == ("6.1.8", False)
    assert found.commit == git(repository, "rev-parse", "HEAD")
    assert found.git_dir.parent.parent.name == "sources"
    packs = [path for path in found.git_dir.rglob("*") if path.suffix == ".pack"]
    assert packs == [], "no object is copied"
    old = open_source(f"{repository}@v6.1.7")
    assert (old.version, old.git_dir) == ("6.1.7", found.git_dir)
    tags = source.git(found.git_dir, "tag", "--list").text
    assert tags.split() == ["v6.1.7"]


def test_uncommitted_changes_are_noted_and_left_out(open_source: Open, repository: Path) -> None:
    clean = open_source(repository)
    (repository / "Makefile").write_text(MAKEFILE.format(sub=9))
    before = snapshot(repository)
    found = open_source(repository)
    assert snapshot(repository) == before
    assert found.dirty
    assert (found.version, found.tree) == ("6.1.8", clean.tree)


def test_a_linked_worktree_and_a_git_file(
    open_source: Open, repository: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    git(repository, "worktree", "add", "--quiet", "--detach", str(linked), "v6.1.7")
    found = open_source(linked)
    assert found.version == "6.1.7"
    assert found.git_dir == open_source(repository).git_dir, "the same objects, the same borrower"


def test_a_bare_repository(open_source: Open, repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), "bare.git")
    assert open_source(tmp_path / "bare.git").version == "6.1.8"


def test_a_clone_that_borrows_itself(open_source: Open, repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--shared", str(repository), "shared")
    assert open_source(tmp_path / "shared@v6.1.7").version == "6.1.7"


def test_a_shallow_clone(open_source: Open, repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", "shallow")
    found = open_source(tmp_path / "shallow")
    assert found.version == "6.1.8"
    assert source.git(found.git_dir, "rev-list", "--count", found.commit).text.strip() == "1"


def test_a_partial_clone_is_refused(open_source: Open, repository: Path, tmp_path: Path) -> None:
    git(repository, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "--quiet", "--filter=blob:none", f"file://{repository}", "partial")
    refused(open_source, tmp_path / "partial", "partial clone")


@pytest.mark.parametrize("ref", ["nope", "--help", "HEAD:Makefile"])
def test_a_ref_that_is_none(open_source: Open, repository: Path, ref: str) -> None:
    refused(open_source, f"{repository}@{ref}", "no commit")


def test_names_with_an_at_sign(open_source: Open, tmp_path: Path, repository: Path) -> None:
    moved = repository.rename(tmp_path / "linux@home")
    assert open_source(moved).version == "6.1.8"
    assert open_source(f"{moved}@v6.1.7").version == "6.1.7"
    assert open_source(f"{moved}@HEAD@{{0}}").version == "6.1.8"


def test_directories_that_are_no_source(open_source: Open, tmp_path: Path) -> None:
    plain = toy(tmp_path / "plain")
    assert "tar -caf" in refused(open_source, plain, "no usable git repository").hint
    git(plain, "init", "--quiet")
    refused(open_source, plain, "no commit")
    refused(open_source, plain / "mm", "part of the repository")


def test_git_without_a_kernel(open_source: Open, repository: Path) -> None:
    git(repository, "rm", "--quiet", "Kconfig")
    git(repository, "commit", "--quiet", "-m", "no kernel")
    refused(open_source, repository, "not a kernel tree")


@pytest.mark.parametrize("name", ["", "nope", "debian:", "debian:bookworm", "ftp://x"])
def test_what_is_no_source_at_all(open_source: Open, name: str) -> None:
    refused(open_source, name, "kernel source")


# --- Debian ------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A linux-source-6.99 package, made by dpkg-deb."""
    folder = tmp_path / "package"
    (folder / "usr/src").mkdir(parents=True)
    packed(toy(tmp_path / "deb-toy", 42), folder / "usr/src/linux-source-6.99.tar.xz", "linux")
    (folder / "DEBIAN").mkdir()
    (folder / "DEBIAN/control").write_text(
        "Package: linux-source-6.99\nVersion: 6.99.42-1\nArchitecture: all\n"
        "Maintainer: A <a@example.org>\nDescription: toy\n"
    )
    file = tmp_path / "linux-source-6.99_6.99.42-1_all.deb"
    host.run(["dpkg-deb", "--root-owner-group", "-b", folder, file])
    return file


def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = tmp_path / "bin/apt-get"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_a_debian_source_is_downloaded_once(
    open_source: Open, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apt(tmp_path, monkeypatch, f"cp {package} . && echo called >> {tmp_path}/calls")
    found = open_source("debian:6.99")
    assert found.version == "6.1.42"
    assert "linux-source-6.99 6.99.42-1" in found.provenance
    assert "sha256" in found.provenance
    assert open_source("debian:6.99") == found
    assert (tmp_path / "calls").read_text() == "called\n"


def test_a_debian_package_file(open_source: Open, package: Path) -> None:
    found = open_source(package)
    assert found.version == "6.1.42"
    assert open_source(package) == found


def test_no_package_lists(
    open_source: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    fake_apt(tmp_path, monkeypatch, "echo 'E: Unable to locate package' >&2; exit 100")
    error = refused(open_source, "debian:6.99", "Unable to locate")
    assert "apt-get update" in error.hint
    assert list((cache.root / "staging").iterdir()) == []
