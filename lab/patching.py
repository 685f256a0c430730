"""A `Source` and patches go in, one commit for each prefix of the series comes out: `git am`.

The tree is not checked out for it: `git am` runs with a full index and a work tree of the few files
that the patches touch. The commits go into the lab's own repository; committer and dates are fixed,
so that their ids are a function of the base and the mails. What was applied once is remembered.

git renews the time of an object that it finds instead of writing it, in borrowed repositories too.
So the user's objects are mounted read-only for it, where bubblewrap can; then git writes its own.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import diff, host, store
from lab.model import Emit, Event, EventKind, Patch, Source, UserError, encode
from lab.series import mail_bytes
from lab.source import git
from lab.store import Cache

_FAILED_HUNK = re.compile(r"^error: patch failed: (.+):(\d+)$", re.MULTILINE)
_FAILED_FILE = re.compile(r"^error: (.+?): (.+)$", re.MULTILINE)
_CONFLICT = re.compile(r"^CONFLICT \([^)]*\): (?:Merge conflict in (.+)|(.+))$", re.MULTILINE)
_TAGS_TRIED = 8
_TAGS_ASKED = 200
_TAG_SEARCH_S = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The source after a number of patches."""

    commit: str
    tree: str


class ApplyFailed(UserError):
    """A patch that does not apply: which, to which file, at which hunk."""

    def __init__(self, *, patch: str, file: str, hunk: str, reason: str, hint: str) -> None:
        place = f": {file}" if file else ""
        at = f", hunk {hunk}" if hunk else ""
        super().__init__(f"{patch} does not apply{place}{at}: {reason}", hint)
        self.patch = patch
        self.file = file
        self.hunk = hunk
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """A work tree and a git directory of our own, with the source's objects."""

    source: Source
    git_dir: Path
    work: Path
    wrapper: tuple[str | Path, ...]  # what git runs in

    def git(self, *words: str | Path, stdin: bytes = b"", check: bool = True) -> host.Completed:
        return git(
            self.git_dir,
            *words,
            env={"GIT_WORK_TREE": str(self.work)},
            stdin=stdin,
            check=check,
            cwd=self.work,
            wrapper=self.wrapper,
            leash=words[0] == "am",
        )

    def start(self, commit: str) -> None:
        """Stand at `commit`, with a full index and no file."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self.git_dir / "rebase-apply", ignore_errors=True)
        self.work.mkdir()
        (self.git_dir / "HEAD").write_text(f"{commit}\n")
        self.git("read-tree", commit)

    def head(self) -> Applied:
        commit, tree = self.git("rev-parse", "HEAD", "HEAD^{tree}").text.split()
        return Applied(commit=commit, tree=tree)


def apply(
    source: Source,
    patches: Sequence[Patch],
    *,
    cache: Cache,
    emit: Emit,
    kernel: str | None = None,
) -> tuple[Applied, ...]:
    """The source with the first 0, 1, ... len(patches) patches.

    `kernel` is the source that the series says it is for. Raises `ApplyFailed`.
    """
    keys = _keys(source, patches)
    done = [Applied(commit=source.commit, tree=source.tree)]
    for key in keys:
        record = cache.sub("applied") / f"{key}.json"
        known = store.recall(record, Applied)
        if known is None:
            break
        done.append(known)
    # The repository may have been removed and made again since: then its commits are gone.
    if len(done) > 1 and not _exists(source, done[-1].commit):
        del done[1:]
    if len(done) == len(patches) + 1:
        return tuple(done)
    step = "apply"
    emit(Event(kind=EventKind.STARTED, step=step, text=f"{len(patches)} patches"))
    with cache.staging() as staging:
        bench = _bench(source, staging)
        bench.start(done[-1].commit)
        for number in range(len(done), len(patches) + 1):
            patch = patches[number - 1]
            failed = _am(bench, patch)
            if failed is not None:
                hint = _hint(bench, patches, kernel)
                raise ApplyFailed(
                    patch=patch.name, file=failed[0], hunk=failed[1], reason=failed[2], hint=hint
                )
            done.append(bench.head())
            _check_outcome(bench, patch, done[-2].commit, done[-1].commit)
            if done[-1].tree == done[-2].tree:
                emit(Event(kind=EventKind.NOTE, step=step, text=f"{patch.name} changes nothing"))
            fraction = number / len(patches)
            emit(Event(kind=EventKind.PROGRESS, step=step, text=patch.subject, fraction=fraction))
    for key, applied in zip(keys, done[1:], strict=True):
        store.write_atomically(cache.sub("applied") / f"{key}.json", encode(applied))
    emit(Event(kind=EventKind.DONE, step=step, text=done[-1].commit[:12]))
    return tuple(done)


def _keys(source: Source, patches: Sequence[Patch]) -> list[str]:
    """One key for each non-empty prefix."""
    digest = hashlib.sha256(source.commit.encode())
    keys = []
    for patch in patches:
        digest.update(patch.sha256.encode())
        keys.append(digest.hexdigest())
    return keys


def _exists(source: Source, commit: str) -> bool:
    return git(source.git_dir, "cat-file", "-e", f"{commit}^{{tree}}", check=False).status == 0


def _bench(source: Source, folder: Path) -> _Bench:
    """A git directory as a linked work tree has it: objects shared, HEAD and index its own."""
    git_dir = folder / "git"
    git_dir.mkdir()
    (git_dir / "commondir").write_text(f"{source.git_dir.resolve()}\n")
    return _Bench(
        source=source, git_dir=git_dir, work=folder / "work", wrapper=_sealed(source.git_dir)
    )


def _sealed(git_dir: Path) -> tuple[str | Path, ...]:
    """The command in front of git under which the object stores that it borrows are read-only."""
    borrowed: list[Path] = []
    queue = [git_dir / "objects"]
    while queue:
        objects = queue.pop()
        listed = objects / "info/alternates"
        if listed.is_file():
            found = [objects / line for line in listed.read_text().splitlines() if line]
            queue += [path for path in found if path not in borrowed]
            borrowed += found
    binds = [word for path in borrowed if path.is_dir() for word in ("--ro-bind", path, path)]
    return ("bwrap", "--dev-bind", "/", "/", *binds, "--") if binds and _has_bwrap() else ()


@functools.cache
def _has_bwrap() -> bool:
    try:
        return host.run(["bwrap", "--dev-bind", "/", "/", "true"], check=False).status == 0
    except UserError:
        return False


# --- one patch ---------------------------------------------------------------------------------


def _am(bench: _Bench, patch: Patch) -> tuple[str, str, str] | None:
    """Apply one patch; (file, hunk, reason) if it does not apply."""
    before = bench.head()
    # Three-way merges want the files, and an index that knows their times.
    paths = {path for change in patch.changes for path in (change.old_path, change.new_path)}
    names = "".join(f"{path}\0" for path in sorted(path for path in paths if path))
    bench.git("checkout-index", "--force", "--quiet", "--index", "-z", "--stdin",
              stdin=names.encode(), check=False)  # fmt: skip
    mail, carriage_returns = _undisturbed(patch)
    done = bench.git(
        "am", "--3way", "--no-gpg-sign", "--no-scissors", "--whitespace=nowarn",
        "--keep-cr" if carriage_returns else "--no-keep-cr", "-",
        stdin=mail, check=False,
    )  # fmt: skip
    if done.status == 0:
        return None
    said = f"{done.text}\n{done.stderr.decode('utf-8', 'replace')}"
    text = bench.git_dir / "rebase-apply/patch"
    content = text.read_bytes() if text.is_file() else b""
    bench.start(before.commit)
    return _diagnosis(bench, content, said)


def _undisturbed(patch: Patch) -> tuple[bytes, bool]:
    """The mail as `git am` is to see it: one mail whatever its text looks like, and dated.

    And whether carriage returns in it belong to the files: not if the headers have them too.
    """
    mail = mail_bytes(patch)
    if mail.startswith((b"From ", b">From ")):
        mail = mail.partition(b"\n")[2]
    head = re.split(rb"\r?\n\r?\n", mail, maxsplit=1)[0]
    if not re.search(rb"^Date:", head, re.MULTILINE | re.IGNORECASE):
        mail = b"Date: Thu, 1 Jan 1970 00:00:00 +0000\n" + mail
    return mail, b"\r" not in head


def _diagnosis(bench: _Bench, content: bytes, said: str) -> tuple[str, str, str]:
    """Which file and hunk it was: asked of `git apply`, as `git am --3way` does not say."""
    checked = bench.git(
        "apply", "--check", "--cached", "-", stdin=content, check=False
    ).stderr.decode("utf-8", "replace")
    if match := _FAILED_HUNK.search(checked):
        file, line = match[1], int(match[2])
        hunks = diff.hunks(content, file)
        for number, (start, header) in enumerate(hunks, 1):
            if start == line:
                return file, f"{number} of {len(hunks)} ({header})", "the lines are not there"
        return file, f"at line {line}", "the lines are not there"
    if match := _CONFLICT.search(said):
        return match[1] or match[2], "", "it conflicts with the source"
    if match := _FAILED_FILE.search(checked):
        return match[1], "", match[2]
    lines = [line for line in said.splitlines() if line.startswith(("error:", "fatal:"))]
    return "", "", lines[0] if lines else "git am stopped"


def _check_outcome(bench: _Bench, patch: Patch, before: str, after: str) -> None:
    """What git made of the patch must be what the validation would let through."""
    for change in changes(bench.source, before, after):
        reason = diff.bad_path(change.path)
        modes = {change.old_mode, change.new_mode} - {"000000", "100644", "100755"}
        if reason or modes:
            raise UserError(
                f"{patch.name}: {change.path!r} {reason or f'has mode {min(modes)}'}",
                hint="a patch may change plain files inside the tree only",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RawChange:
    """One line of `git diff-tree --raw`."""

    path: str
    old_mode: str  # "000000": it is new
    new_mode: str  # "000000": it is removed
    old_blob: str
    new_blob: str


def changes(source: Source, before: str, after: str) -> tuple[RawChange, ...]:
    """What differs between two commits or trees, renames as removal and addition."""
    raw = git(source.git_dir, "diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev",
              before, after).text  # fmt: skip
    words = raw.split("\0")[:-1]
    found = []
    for info, path in zip(words[0::2], words[1::2], strict=True):
        old_mode, new_mode, old_blob, new_blob, _ = info.lstrip(":").split(" ")
        found.append(
            RawChange(
                path=path,
                old_mode=old_mode,
                new_mode=new_mode,
                old_blob=old_blob,
                new_blob=new_blob,
            )
        )
    return tuple(found)


# --- where it would apply ----------------------------------------------------------------------


def _hint(bench: _Bench, patches: Sequence[Patch], kernel: str | None) -> str:
    """The way out: the nearest tag that takes the whole series, or the kernel it is for."""
    says = f"the series says that it is for {kernel} (--kernel {kernel})" if kernel else ""
    tags = _tags_by_distance(bench)
    if not tags:
        return says or "name the kernel that the series was made for with --kernel"
    deadline = time.monotonic() + _TAG_SEARCH_S
    likely = _tags_with_preimages(bench, tags, patches)
    tried = list(dict.fromkeys([*likely[:_TAGS_TRIED], *tags[:_TAGS_TRIED]]))
    for tag in tried:
        if time.monotonic() > deadline:
            break
        if _applies_to(bench, tag, patches):
            return f"it applies to {tag} (--kernel DIR@{tag})" + (f"; {says}" if says else "")
    return says or f"it applies to none of the {len(tried)} tags nearest to the source"


def _tags_by_distance(bench: _Bench) -> list[str]:
    """Names of tags, nearest in time to the source's commit first."""
    listed = git(bench.source.git_dir, "for-each-ref", "--format=%(creatordate:unix) %(refname)",
                 "refs/tags", check=False).text  # fmt: skip
    shown = git(
        bench.source.git_dir, "show", "-s", "--format=%ct", bench.source.commit
    ).text.strip()
    dated = []
    for line in listed.splitlines():
        date, _, name = line.partition(" ")
        if date.isdigit():
            dated.append((abs(int(date) - int(shown)), name.removeprefix("refs/tags/")))
    return [name for _, name in sorted(dated)][:_TAGS_ASKED]


def _tags_with_preimages(bench: _Bench, tags: Sequence[str], patches: Sequence[Patch]) -> list[str]:
    """Tags that have, byte for byte, the files that the series was made from."""
    wanted: dict[str, str] = {}
    for patch in patches:
        text = mail_bytes(patch)
        for match in re.finditer(
            rb"^diff --git a/(\S+) b/\S+\n(?:[a-z].*\n)*?index ([0-9a-f]{7,64})\.\.", text, re.M
        ):
            wanted.setdefault(match[1].decode("utf-8", "replace"), match[2].decode())
    known = {path: blob for path, blob in wanted.items() if set(blob) != {"0"}}
    if not known:
        return []
    asked = "".join(f"refs/tags/{tag}^{{commit}}:{path}\n" for tag in tags for path in known)
    answers = git(bench.source.git_dir, "cat-file", "--batch-check=%(objectname)",
                  stdin=asked.encode(), check=False).text.splitlines()  # fmt: skip
    if len(answers) != len(tags) * len(known):
        return []
    found = []
    for place, tag in enumerate(tags):
        mine = answers[place * len(known) : (place + 1) * len(known)]
        if all(got.startswith(blob) for got, blob in zip(mine, known.values(), strict=True)):
            found.append(tag)
    return found


def _applies_to(bench: _Bench, tag: str, patches: Sequence[Patch]) -> bool:
    shown = git(
        bench.source.git_dir, "rev-parse", "--verify", f"refs/tags/{tag}^{{commit}}", check=False
    )
    if shown.status != 0:
        return False
    bench.start(shown.text.strip())
    return all(_am(bench, patch) is None for patch in patches)
