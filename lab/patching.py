"""A `Source` and patches go in, one commit for each prefix of the series comes out: `git am`.

No file of the tree is checked out for it: `git am` runs with a full index and an empty work tree,
fetches from the index the few files that a patch touches, and commits. The commits go into the
lab's own repository; committer and dates are fixed, so that their ids are a function of the base
and the mails. What was applied once is remembered.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import diff, store
from lab.model import Emit, Event, EventKind, Patch, Source, UserError, decode, encode
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

    def git(self, *words: str | Path, stdin: bytes = b"", check: bool = True) -> str:
        env = {"GIT_WORK_TREE": str(self.work)}
        done = git(self.git_dir, *words, env=env, stdin=stdin, check=check, cwd=self.work)
        return done.text if check else f"{done.text}{done.stderr.decode('utf-8', 'replace')}"

    def start(self, commit: str) -> None:
        """Stand at `commit`, with a full index and no file."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self.git_dir / "rebase-apply", ignore_errors=True)
        self.work.mkdir()
        (self.git_dir / "HEAD").write_text(f"{commit}\n")
        self.git("read-tree", commit)

    def head(self) -> Applied:
        commit, tree = self.git("rev-parse", "HEAD", "HEAD^{tree}").split()
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
        if not record.is_file():
            break
        done.append(decode(record.read_bytes(), Applied))
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
    return _Bench(source=source, git_dir=git_dir, work=folder / "work")


# --- one patch ---------------------------------------------------------------------------------


def _am(bench: _Bench, patch: Patch) -> tuple[str, str, str] | None:
    """Apply one patch; (file, hunk, reason) if it does not apply."""
    before = bench.head()
    said = bench.git(
        "am", "--3way", "--quiet", "--no-gpg-sign", "--no-scissors", "--whitespace=nowarn", "-",
        stdin=_undisturbed(patch),
        check=False,
    )  # fmt: skip
    state = bench.git_dir / "rebase-apply"
    if not state.exists():
        # Without its state directory git am has either committed or not begun.
        if bench.head() != before or "already applied" in said:
            return None
        return "", "", said.strip().splitlines()[-1] if said.strip() else "git am refused the mail"
    text = state / "patch"
    content = text.read_bytes() if text.is_file() else b""
    bench.start(before.commit)
    return _diagnosis(bench, content, said)


def _undisturbed(patch: Patch) -> bytes:
    """The mail as `git am` is to see it: one mail whatever its text looks like, and dated."""
    mail = mail_bytes(patch)
    if mail.startswith((b"From ", b">From ")):
        mail = mail.partition(b"\n")[2]
    head = re.split(rb"\r?\n\r?\n", mail, maxsplit=1)[0]
    if not re.search(rb"^Date:", head, re.MULTILINE | re.IGNORECASE):
        mail = b"Date: Thu, 1 Jan 1970 00:00:00 +0000\n" + mail
    return mail


def _diagnosis(bench: _Bench, content: bytes, said: str) -> tuple[str, str, str]:
    """Which file and hunk it was: asked of `git apply`, as `git am --3way` does not say."""
    checked = bench.git("apply", "--check", "--cached", "-", stdin=content, check=False)
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
