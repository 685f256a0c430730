"""Trees: patches by real git, hard links that nothing is written through, nothing half-made."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lab import host, intake, series, source, store, tree
from lab.model import Event, EventKind, LabFault, Patch, Source, UserError
from lab.store import Cache
from lab.tree import ApplyFailed, Tree

pytestmark = pytest.mark.fake

LINES = [f"line {number}\n" for number in range(1, 61)]
Checkout = Callable[..., Tree]


def git(where: Path, *words: str, check: bool = True) -> str:
    env = {"GIT_COMMITTER_DATE": "1700000000 +0000", "GIT_AUTHOR_DATE": "1700000000 +0000"}
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgSign=false")
    return host.run(["git", "-C", where, *identity, *words], env=env, check=check).text.strip()


def edit(file: Path, **lines: str) -> None:
    """Replace numbered lines: edit(f, n5="five")."""
    content = file.read_text().splitlines(keepends=True)
    for number, text in lines.items():
        content[int(number[1:]) - 1] = f"{text}\n"
    file.write_text("".join(content))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    (path / "mm/sub").mkdir(parents=True)
    (path / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 7\n")
    (path / "Kconfig").write_text("config TOY\n")
    (path / "mm/memory.c").write_text("".join(LINES))
    (path / "mm/gone.c").write_text("".join(LINES))
    (path / "mm/sub/only.c").write_text("only\n")
    (path / "fs.c").write_bytes(b"dos\r\nlines $Id$\r\n")
    (path / ".gitattributes").write_text("*.c text eol=lf ident\n")
    (path / "run.sh").write_text("#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    (path / "link").symlink_to("mm/memory.c")
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / ".git/info").mkdir(exist_ok=True)
    (path / ".git/info/attributes").write_text("* -text -eol -ident\n")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "base")
    git(path, "tag", "v6.1.7")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(root=tmp_path / "cache")


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def base(repository: Path, cache: Cache, events: list[Event]) -> Source:
    return source.open_source(f"{repository}@v6.1.7", cache=cache, emit=events.append)


@pytest.fixture
def checkout(cache: Cache, events: list[Event]) -> Checkout:
    def run(on: Source, patches: tuple[Patch, ...] = (), **more: str) -> Tree:
        return tree.checkout(on, patches, cache=cache, emit=events.append, **more)

    return run


def commit(repository: Path, message: str) -> None:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--allow-empty", "-m", message)


def taken(repository: Path, cache: Cache, span: str = "v6.1.7..main") -> tuple[Patch, ...]:
    found = intake.take(span, repository=repository, cache=cache, emit=lambda event: None)
    return found.patches


@pytest.fixture
def three(repository: Path, cache: Cache) -> tuple[Patch, ...]:
    """A change; a new, a removed and a renamed file; a mode."""
    edit(repository / "mm/memory.c", n5="five", n40="forty")
    commit(repository, "mm: change")
    (repository / "mm/new/deep").mkdir(parents=True)
    (repository / "mm/new/deep/new.c").write_text("new\n")
    (repository / "mm/sub/only.c").unlink()
    git(repository, "mv", "mm/gone.c", "mm/renamed.c")
    edit(repository / "mm/renamed.c", n3="three")
    commit(repository, "mm: move")
    (repository / "fs.c").chmod(0o755)
    commit(repository, "fs: mode")
    return taken(repository, cache)


def content(top: Path) -> dict[str, tuple[str, bytes]]:
    """path -> (kind, content) of all files, build/ left out."""
    found = {}
    for path in top.rglob("*"):
        if ".git" in path.relative_to(top).parts or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink():
            found[str(path.relative_to(top))] = ("link", os.fsencode(path.readlink()))
        else:
            kind = "program" if path.stat().st_mode & 0o100 else "file"
            found[str(path.relative_to(top))] = (kind, path.read_bytes())
    return found


# --- what comes out ----------------------------------------------------------------------------


def test_the_base_is_what_git_has(
    repository: Path, base: Source, checkout: Checkout, cache: Cache
) -> None:
    umask = os.umask(0o077)
    try:
        found = checkout(base)
    finally:
        os.umask(umask)
    assert found.path == cache.root / "trees" / base.tree
    assert (found.tree, found.commit, found.changed) == (base.tree, base.commit, ())
    assert content(found.path) == content(repository)
    for path in (found.path, found.path / "mm", found.path / "build"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE((found.path / "fs.c").stat().st_mode) == 0o644
    assert {path.lstat().st_mtime for path in found.path.rglob("*") if path.is_file()} == {
        tree.SOURCE_MTIME_S
    }
    assert list((cache.root / "staging").iterdir()) == []


def test_a_patched_tree_is_what_git_has(
    repository: Path, base: Source, checkout: Checkout, three: tuple[Patch, ...]
) -> None:
    found = checkout(base, three)
    assert content(found.path) == content(repository)
    assert found.tree == git(repository, "rev-parse", "HEAD^{tree}")
    assert set(found.changed) == {
        "fs.c",
        "mm/gone.c",
        "mm/memory.c",
        "mm/new/deep/new.c",
        "mm/renamed.c",
        "mm/sub/only.c",
    }
    assert not (found.path / "mm/sub").exists(), "git has no empty directories"
    assert list((found.path / "build").iterdir()) == []


def test_untouched_files_are_shared_and_touched_ones_are_not(
    base: Source, checkout: Checkout, three: tuple[Patch, ...]
) -> None:
    plain, patched = checkout(base), checkout(base, three)
    for name in ("Makefile", "link", "run.sh"):
        one, two = (plain.path / name).lstat(), (patched.path / name).lstat()
        assert (one.st_ino, one.st_mtime_ns) == (two.st_ino, two.st_mtime_ns)
    for name in ("mm/memory.c", "fs.c"):
        one, two = (plain.path / name).stat(), (patched.path / name).stat()
        assert one.st_ino != two.st_ino
        assert one.st_mtime_ns < two.st_mtime_ns
        assert one.st_nlink == two.st_nlink == 1
    assert (plain.path / "mm/memory.c").read_text() == "".join(LINES), "written through a link"
    assert stat.S_IMODE((plain.path / "fs.c").stat().st_mode) == 0o644


def test_objects_in_the_mount_point_are_no_part_of_a_tree(
    base: Source, checkout: Checkout, three: tuple[Patch, ...]
) -> None:
    (checkout(base).path / "build/x.o").write_bytes(b"object")
    assert list((checkout(base, three).path / "build").iterdir()) == []


def test_ids_do_not_depend_on_who_applies_and_where(
    repository: Path, base: Source, three: tuple[Patch, ...], checkout: Checkout, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    hook = home / "hooks/applypatch-msg"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\nexit 1\n")
    hook.chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\n\tautocrlf = true\n\thooksPath = {hook.parent}\n[commit]\n\tgpgSign = true\n"
        "[am]\n\tkeepcr = true\n[user]\n\tname = Other\n\temail = o@example.org\n"
    )
    first = checkout(base, three)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    other = Cache(root=tmp_path / "other")
    again = source.open_source(f"{repository}@v6.1.7", cache=other, emit=lambda event: None)
    second = tree.checkout(again, three, cache=other, emit=lambda event: None)
    assert (first.commit, first.tree) == (second.commit, second.tree)
    assert not (tmp_path / "hook-ran").exists()


def test_the_users_repository_is_not_written_to(
    repository: Path, base: Source, checkout: Checkout, three: tuple[Patch, ...]
) -> None:
    def snapshot() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns)
            for path in [repository, *repository.rglob("*")]
        }

    before = snapshot()
    checkout(base, three)
    assert snapshot() == before


def test_a_tarball_is_checked_out_without_writing_it_twice(
    repository: Path, checkout: Checkout, cache: Cache, tmp_path: Path
) -> None:
    file = tmp_path / "t.tar.gz"
    git(repository, "archive", "--prefix=linux/", "-o", str(file), "HEAD")
    kernel = source.open_source(str(file), cache=cache, emit=lambda event: None)
    unpacked = kernel.git_dir.parent / "files/fs.c"
    inode = unpacked.stat().st_ino
    found = checkout(kernel)
    assert (found.path / "fs.c").stat().st_ino == inode
    assert not unpacked.exists()
    store.remove_tree(found.path)
    assert content(checkout(kernel).path) == content(repository), "made anew from git"


def test_unpacked_files_that_were_tampered_with_are_not_taken(
    repository: Path, checkout: Checkout, cache: Cache, tmp_path: Path
) -> None:
    file = tmp_path / "t.tar.gz"
    git(repository, "archive", "--prefix=linux/", "-o", str(file), "HEAD")
    kernel = source.open_source(str(file), cache=cache, emit=lambda event: None)
    (kernel.git_dir.parent / "files/fs.c").write_bytes(b"dos\r\nlinez $Id$\r\n")
    assert content(checkout(kernel).path) == content(repository)


# --- the second time ---------------------------------------------------------------------------


def test_what_is_there_is_taken(
    base: Source, checkout: Checkout, three: tuple[Patch, ...], events: list[Event]
) -> None:
    first = checkout(base, three)
    events.clear()
    assert checkout(base, three) == first
    assert events == []


def test_prefixes_share_all(
    base: Source, cache: Cache, three: tuple[Patch, ...], checkout: Checkout, repository: Path
) -> None:
    whole = checkout(base, three)
    found = tree.prefixes(base, three, cache=cache, emit=lambda event: None)
    assert [len(one.patches) for one in found] == [0, 1, 2, 3]
    assert found[0].path == checkout(base).path
    assert found[3] == whole
    assert len({one.tree for one in found}) == 4
    assert [one.tree for one in found] == [
        git(repository, "rev-parse", f"main~{count}^{{tree}}") for count in (3, 2, 1, 0)
    ]
    inodes = {(one.path / "Makefile").stat().st_ino for one in found}
    assert len(inodes) == 1


def test_a_patch_that_is_in_already_changes_nothing(
    base: Source, cache: Cache, three: tuple[Patch, ...], events: list[Event]
) -> None:
    twice = (three[0], replace(three[0], name="again.patch", sha256="0" * 64), three[1])
    found = tree.prefixes(base, twice, cache=cache, emit=events.append)
    assert found[1].path == found[2].path
    assert found[3].path != found[2].path
    notes = [event.text for event in events if event.kind is EventKind.NOTE]
    assert notes == ["again.patch changes nothing"]


def test_a_source_that_was_imported_anew(
    base: Source, repository: Path, cache: Cache, checkout: Checkout, three: tuple[Patch, ...]
) -> None:
    first = checkout(base, three)
    store.remove_tree(base.git_dir.parent)
    store.remove_tree(first.path)
    again = source.open_source(f"{repository}@v6.1.7", cache=cache, emit=lambda event: None)
    assert checkout(again, three) == first


def test_two_at_once(base: Source, checkout: Checkout, three: tuple[Patch, ...]) -> None:
    found: list[Tree] = []
    threads = [
        threading.Thread(target=lambda: found.append(checkout(base, three))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert len({one.path for one in found}) == 1


def test_a_base_that_was_written_to_is_noticed(
    base: Source, checkout: Checkout, three: tuple[Patch, ...], cache: Cache
) -> None:
    plain = checkout(base)
    with (plain.path / "Makefile").open("a") as stream:
        stream.write("# mine\n")
    with pytest.raises(LabFault, match="Makefile was written to") as caught:
        checkout(base, three)
    assert str(plain.path) in caught.value.hint
    assert [path.name for path in (cache.root / "trees").iterdir()] == [base.tree]


# --- what does not apply -----------------------------------------------------------------------


def failed(checkout: Checkout, on: Source, patches: tuple[Patch, ...], **more: str) -> ApplyFailed:
    with pytest.raises(ApplyFailed) as caught:
        checkout(on, patches, **more)
    return caught.value


def test_a_conflict_names_patch_file_hunk_and_a_tag(
    repository: Path, cache: Cache, checkout: Checkout
) -> None:
    edit(repository / "mm/memory.c", n30="other thirty")
    commit(repository, "mm: what the series is based on")
    git(repository, "tag", "v6.1.8")
    (repository / "fs.c").write_bytes(b"unix\r\nlines $Id$\r\n")
    commit(repository, "fs: fine")
    edit(repository / "mm/memory.c", n2="two", n31="thirty-one")
    commit(repository, "mm: does not fit")
    patches = taken(repository, cache, "v6.1.8..main")
    base = source.open_source(f"{repository}@v6.1.7", cache=cache, emit=lambda event: None)
    error = failed(checkout, base, patches)
    assert (error.patch, error.file) == ("0002-mm-does-not-fit.patch", "mm/memory.c")
    assert error.hunk.startswith("2 of 2 (@@ -28,7 +28,7 @@")
    assert "0002-mm-does-not-fit.patch" in error.message
    assert "mm/memory.c" in error.message
    assert "v6.1.8" in error.hint
    trees = cache.root / "trees"
    assert not trees.exists() or list(trees.iterdir()) == []
    assert list((cache.root / "staging").iterdir()) == []
    assert not (cache.root / "applied").exists() or not list((cache.root / "applied").iterdir())
    git_dir = base.git_dir
    assert not (git_dir / "rebase-apply").exists()
    assert not (git_dir / "worktrees").exists()


def test_three_way_takes_what_context_alone_does_not(
    repository: Path, cache: Cache, base: Source, checkout: Checkout
) -> None:
    git(repository, "checkout", "--quiet", "-b", "series")
    edit(repository / "mm/memory.c", n30="thirty")
    commit(repository, "mm: thirty")
    patches = taken(repository, cache, "v6.1.7..series")
    git(repository, "checkout", "--quiet", "main")
    edit(repository / "mm/memory.c", n28="twenty-eight")
    commit(repository, "mm: next to it")
    kernel = source.open_source(f"{repository}@main", cache=cache, emit=lambda event: None)
    text = (checkout(kernel, patches).path / "mm/memory.c").read_text()
    assert "thirty\n" in text
    assert "twenty-eight\n" in text


def test_the_kernel_that_the_series_names_is_the_hint(
    repository: Path, cache: Cache, checkout: Checkout
) -> None:
    git(repository, "tag", "-d", "v6.1.7")
    untagged = source.open_source(f"{repository}", cache=cache, emit=lambda event: None)
    bad = patch_of("--- a/fs.c\n+++ b/fs.c\n@@ -1,1 +1,1 @@\n-nowhere\n+x\n")
    assert "debian:6.12" in failed(checkout, untagged, bad, kernel="debian:6.12").hint
    assert "--kernel" in failed(checkout, untagged, bad).hint


def patch_of(
    diff: str, name: str = "0001-x.patch", head: str = "From: A <a@example.org>\n"
) -> tuple[Patch, ...]:
    raw = f"{head}Subject: [PATCH] x\n\nWhy.\n---\n{diff}-- \n2.39.5\n"
    return series.parse([("0001-x.patch", raw.encode())], title="t", origin="o").patches


@pytest.mark.parametrize(
    ("diff", "file"),
    [
        ("--- a/nope.c\n+++ b/nope.c\n@@ -1 +1 @@\n-a\n+b\n", "nope.c"),
        ("--- /dev/null\n+++ b/fs.c\n@@ -0,0 +1 @@\n+b\n", "fs.c"),
        ("--- a/link\n+++ b/link\n@@ -1 +1 @@\n-mm/memory.c\n+/etc/passwd\n", "link"),
        ("--- a/link/x\n+++ b/link/x\n@@ -1 +1 @@\n-a\n+b\n", "link/x"),
    ],
)
def test_other_ways_not_to_apply(base: Source, checkout: Checkout, diff: str, file: str) -> None:
    error = failed(checkout, base, patch_of(diff))
    assert error.patch == "0001-x.patch"
    assert file in error.message


def test_a_mail_that_git_does_not_take(base: Source, checkout: Checkout) -> None:
    diff = "--- a/fs.c\n+++ b/fs.c\n@@ -1,1 +1,1 @@\n-dos\r\n+x\n"
    with pytest.raises(UserError, match=r"0001-x\.patch"):
        checkout(base, patch_of(diff, head="From: \n"))


def test_text_that_looks_like_the_next_mail_stays_text(base: Source, checkout: Checkout) -> None:
    diff = "--- a/run.sh\n+++ b/run.sh\n@@ -1 +1,2 @@\n #!/bin/sh\n+exit\n"
    head = "From: A <a@example.org>\n"
    (patch,) = patch_of(diff, head=head)
    trick = "Why.\n\nFrom 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n"
    mail = patch.mail.replace("Why.\n", trick)
    found = checkout(base, (replace(patch, mail=mail),))
    assert found.changed == ("run.sh",)


def test_what_git_made_of_a_patch_is_checked_again(base: Source, checkout: Checkout) -> None:
    (patch,) = patch_of("--- a/fs.c\n+++ b/fs.c\n@@ -1,1 +1,1 @@\n-dos\r\n+x\n")
    link = (
        "diff --git a/l b/l\nnew file mode 120000\nindex 0000000..1111111\n"
        "--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n"
    )
    mail = patch.mail.partition("--- a/")[0] + link
    with pytest.raises(UserError, match="mode 120000"):
        checkout(base, (replace(patch, mail=mail),))
