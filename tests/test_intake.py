"""What a user may name as a series, with real git, real files and a b4 that is a real process."""

from __future__ import annotations

import gzip
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import host, intake
from lab.model import Event, Series, UserError
from lab.store import Cache

DIFF = "--- a/mm/x.c\n+++ b/mm/x.c\n@@ -1 +1 @@\n-a\n+b\n"
Take = Callable[..., Series]


def mail(subject: str, body: str = DIFF) -> str:
    return (
        "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n"
        f"From: A <a@example.org>\nSubject: {subject}\n\nBecause.\n---\n{body}-- \n2.39.5\n\n"
    )


@pytest.fixture
def take(tmp_path: Path) -> Take:
    cache = Cache(root=tmp_path / "cache")

    def run(origin: str | Path, repository: Path | None = None) -> Series:
        seen: list[Event] = []
        return intake.take(str(origin), repository=repository, cache=cache, emit=seen.append)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "demo"
    path.mkdir()
    return path


def refused(take: Take, origin: str | Path, word: str, **more: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        take(origin, **more)
    assert word in caught.value.message, caught.value.message
    assert caught.value.hint
    return caught.value


def snapshot(top: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything below `top`: mode, modification and change times, content."""
    seen = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        seen[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ctime_ns, content)
    return seen


def subjects(found: Series) -> list[str]:
    return [patch.subject for patch in found.patches]


# --- directories and files ---------------------------------------------------------------------


def test_a_directory_in_the_order_of_its_names(take: Take, folder: Path) -> None:
    (folder / "0002-b.patch").write_text(mail("[PATCH 2/2] b"))
    (folder / "0001-a.patch").write_text(mail("[PATCH 1/2] a"))
    (folder / "0000-cover-letter.patch").write_text(mail("[PATCH 0/2] Demo", ""))
    (folder / "README").write_text("not a patch\n")
    (folder / "series.toml").write_text('kernel = "debian:6.1"\n')
    before = snapshot(folder)
    found = take(folder)
    assert snapshot(folder) == before
    assert subjects(found) == ["a", "b"]
    assert (found.title, found.kernel, found.origin) == ("Demo", "debian:6.1", str(folder))


def test_unnumbered_patches_and_the_name_of_the_folder(take: Take, folder: Path) -> None:
    (folder / "b.patch").write_text(mail("b"))
    (folder / "a.eml").write_text(mail("a"))
    found = take(folder)
    assert subjects(found) == ["a", "b"]
    assert found.title == "demo"


def test_a_quilt_series(take: Take, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/z.patch").write_text(DIFF)
    (folder / "a.diff").write_text(mail("[PATCH 7/9] a"))
    (folder / "unused.patch").write_text("rubbish")
    (folder / "series").write_text("# mine\n\nsub/z.patch # first\n  a.diff -p1\n#a.diff\n")
    before = snapshot(folder)
    assert subjects(take(folder)) == ["z", "a"]
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("a.patch -p0", "-p0"),
        ("a.patch -R", "-R"),
        ("../a.patch", "outside"),
        ("/etc/passwd", "outside"),
        ("gone.patch", "not there"),
        ("# nothing", "lists no patch"),
    ],
)
def test_quilt_lines_that_are_refused(take: Take, folder: Path, line: str, word: str) -> None:
    (folder / "a.patch").write_text(mail("a"))
    (folder.parent / "a.patch").write_text(mail("a"))
    (folder / "series").write_text(f"{line}\n")
    assert "series" in refused(take, folder, word).message


def test_an_empty_directory(take: Take, folder: Path) -> None:
    refused(take, folder, "no patch")


def test_an_empty_patch_is_named(take: Take, folder: Path) -> None:
    (folder / "0001-a.patch").write_text("")
    refused(take, folder, "0001-a.patch")


def test_a_wrong_key_in_series_toml(take: Take, folder: Path) -> None:
    (folder / "a.patch").write_text(mail("a"))
    (folder / "series.toml").write_text("kernle = 'x'\n")
    refused(take, folder, "kernle")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_an_mbox(take: Take, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    box = tmp_path / "t.mbox"
    box.write_bytes(pack((mail("[PATCH 2/2] b") + mail("[PATCH 1/2] a")).encode()))
    found = take(box)
    assert subjects(found) == ["a", "b"]
    assert [patch.name for patch in found.patches] == ["0001-a.patch", "0002-b.patch"]


def test_an_mbox_with_a_reply(take: Take, tmp_path: Path) -> None:
    box = tmp_path / "t.mbox"
    box.write_text(mail("[PATCH] a") + mail("Re: [PATCH] a", ""))
    refused(take, box, "no diff")


def test_a_broken_gzip_file(take: Take, tmp_path: Path) -> None:
    box = tmp_path / "t.mbox"
    box.write_bytes(gzip.compress(mail("a").encode())[:-12])
    refused(take, box, "cannot be read")


def test_one_patch_of_a_series_by_its_name(take: Take, tmp_path: Path) -> None:
    file = tmp_path / "0003-c.patch"
    file.write_text(mail("[PATCH 3/7] c"))
    assert subjects(take(file)) == ["c"]


@pytest.mark.parametrize("origin", ["nothing-like-it", "", "x" * 5000, "a\0b", "https://x.org/a"])
def test_what_looks_like_nothing_known(take: Take, origin: str) -> None:
    assert "git range A..B" in refused(take, origin, "no series").hint


# --- git ---------------------------------------------------------------------------------------


def git(where: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgSign=false")
    return host.run(["git", "-C", where, *identity, *words]).text.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(path))
    for number in range(3):
        (path / "x.c").write_text("".join(f"line {n}\n" for n in range(number + 1)))
        git(path, "add", ".")
        git(path, "commit", "--quiet", "-m", f"mm: commit {number}\n\nBecause.")
    return path


@pytest.mark.fake
def test_a_range(take: Take, repository: Path) -> None:
    # A configuration that would break the mails, and a file whose time git would like to note.
    hostile = {
        "diff.noprefix": "true",
        "diff.external": "/bin/false",
        "format.attach": "x",
        "format.subjectPrefix": "NOPE",
        "format.coverLetter": "true",
        "color.ui": "always",
        "core.fsmonitor": "/bin/false",
    }
    for key, value in hostile.items():
        git(repository, "config", key, value)
    os.utime(repository / "x.c")
    before = snapshot(repository)
    found = take("main~2..main", repository)
    assert snapshot(repository) == before
    assert subjects(found) == ["mm: commit 1", "mm: commit 2"]
    assert found.patches[0].name == "0001-mm-commit-1.patch"
    assert found.patches[0].changes[0].path == "x.c"
    assert subjects(take("main~1..", repository)) == ["mm: commit 2"]


@pytest.mark.fake
def test_the_current_directory_is_the_repository(
    take: Take, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    assert subjects(take("HEAD~1..HEAD")) == ["mm: commit 2"]


@pytest.mark.fake
@pytest.mark.parametrize(
    ("origin", "word"),
    [
        ("main..main", "no commit in this range"),
        ("main...main~1", "three dots"),
        ("nope..main", "'nope' is no commit"),
        ("--output=/tmp/x..main", "no commit"),
    ],
)
def test_ranges_that_are_refused(take: Take, repository: Path, origin: str, word: str) -> None:
    refused(take, origin, word, repository=repository)


@pytest.mark.fake
def test_a_merge_in_the_range(take: Take, repository: Path) -> None:
    git(repository, "checkout", "--quiet", "-b", "side", "main~1")
    (repository / "y.c").write_text("y\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "side")
    git(repository, "merge", "--quiet", "-m", "Merge them", "main")
    assert "Merge them" in refused(take, "main~2..side", "merge", repository=repository).message


@pytest.mark.fake
def test_a_binary_file_in_the_range(take: Take, repository: Path) -> None:
    (repository / "logo").write_bytes(b"\0\1\2" * 99)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "logo")
    refused(take, "main~1..main", "binary", repository=repository)


@pytest.mark.fake
def test_a_range_outside_of_a_repository(take: Take, tmp_path: Path) -> None:
    refused(take, "a..b", "no usable git repository", repository=tmp_path)


# --- lore --------------------------------------------------------------------------------------

FAKE_B4 = """#!{python}
import pathlib, sys
args = sys.argv[1:]
if args[-1] == "gone@example.org":
    sys.exit("Looking up gone@example.org\\nServer returned an error: 404")
assert args[:2] == ["--no-interactive", "am"] and args[-2] == "--", args
out = pathlib.Path(args[args.index("-o") + 1])
(out / "series.mbx").write_text({mails!r})
(out / "series.cover").write_text({cover!r})
(out / "asked").write_text(args[-1])
print("---\\nTotal patches: 2", file=sys.stderr)
"""


@pytest.fixture
def b4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/b4"
    program.parent.mkdir()
    mails = mail("[PATCH v2 1/2] a") + mail("[PATCH v2 2/2] b")
    cover = mail("[PATCH v2 0/2] All of it", "")
    program.write_text(FAKE_B4.format(python=sys.executable, mails=mails, cover=cover))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.fake
@pytest.mark.usefixtures("b4")
@pytest.mark.parametrize(
    "origin",
    [
        "20130117.1234@quack.example",
        "<20130117.1234@quack.example>",
        "https://lore.kernel.org/linux-mm/20130117.1234@quack.example/",
        "https://lore.kernel.org/all/20130117.1234@quack.example/T/#t",
        "https://lore.kernel.org/r/20130117.1234%40quack.example",
        "https://patch.msgid.link/20130117.1234@quack.example",
    ],
)
def test_a_message_id(take: Take, origin: str) -> None:
    found = take(origin)
    assert subjects(found) == ["a", "b"]
    assert found.title == "All of it"
    assert found.origin == origin


@pytest.mark.fake
@pytest.mark.usefixtures("b4")
def test_a_message_id_that_lore_does_not_have(take: Take) -> None:
    refused(take, "gone@example.org", "404")


@pytest.mark.fake
def test_a_missing_b4(take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(take, "1@example.org", "b4 is not installed")
    assert "pip install" in error.hint


@pytest.mark.usefixtures("b4")
def test_an_address_without_a_message_id(take: Take) -> None:
    refused(take, "https://lore.kernel.org/linux-mm/", "no message-id")
