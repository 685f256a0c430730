"""What the user names goes in, a validated `Series` comes out: folder, mailbox, range, message-id.

Nothing is written where the series lies: files are read, and git runs without optional locks.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from lab import host, series
from lab.model import Emit, Event, EventKind, Series, UserError
from lab.store import Cache

FORMS = (
    "a series is: a directory of patches (with or without a quilt `series` file), an mbox, one "
    ".patch file, a git range A..B, a lore message-id or a https://lore.kernel.org/ address"
)
# Reading a repository that is not ours: no index refresh, no file system monitor of its own.
READ_ONLY_GIT = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
GIT = ("git", "--no-optional-locks", "--no-pager", "-c", "core.fsmonitor=false")

_MAIL_SUFFIXES = (".patch", ".diff", ".mbox", ".mbx", ".eml")
_MESSAGE_ID = re.compile(r"<?([^\s/<>@]+@[^\s/<>@]+)>?")
_URL = re.compile(r"https?://(?:lore\.kernel\.org|patch\.msgid\.link)/(.+)")
_LORE_TIMEOUT_S = 300.0
_GIT_TIMEOUT_S = 120.0
_DIRECTORY_COVERS = ("0000-cover-letter.patch", "cover-letter.patch")


def take(origin: str, *, repository: Path | None, cache: Cache, emit: Emit) -> Series:
    """The series that `origin` names (see `FORMS`).

    A git range is resolved in `repository`, or else in the repository of the current directory.
    Raises `UserError`.
    """
    emit(Event(kind=EventKind.STARTED, step="series", text=origin))
    found = _take(origin, repository or Path.cwd(), cache)
    emit(Event(kind=EventKind.DONE, step="series", text=f"{len(found.patches)} patches"))
    return found


def _take(origin: str, repository: Path, cache: Cache) -> Series:
    path = Path(origin).expanduser()
    try:
        is_directory, is_file = bool(origin) and path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL, is no path
        is_directory = is_file = False
    if is_directory:
        return _from_directory(path, origin)
    if is_file:
        return _from_file(path, origin)
    if url := _URL.fullmatch(origin):
        return _from_lore(_message_id_of(url[1], origin), origin, cache)
    if ".." in origin and "/.." not in origin and not origin.startswith(".."):
        return _from_range(origin, repository)
    if message_id := _MESSAGE_ID.fullmatch(origin):
        return _from_lore(message_id[1], origin, cache)
    raise UserError(f"{origin!r} is no series: no such file, range or message-id", hint=FORMS)


# --- files -------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """The content of a file of mails, gzip undone, within the limits of a series."""
    try:
        if path.stat().st_size > series.MAX_SERIES_BYTES:
            raise UserError(
                f"{path}: more than the {series.MAX_SERIES_BYTES} bytes that a series may have",
                hint="give the part that is under test",
            )
        raw = path.read_bytes()
        if not raw.startswith(b"\x1f\x8b"):
            return raw
        with gzip.open(path) as stream:
            # One byte more than allowed is enough for the size check of `series.parse`.
            return stream.read(series.MAX_SERIES_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}", hint=FORMS) from error


def _from_file(path: Path, origin: str) -> Series:
    if path.name == series.TOML_NAME:
        raise UserError(f"{path} describes a series", hint=f"name its directory: {path.parent}")
    mails = series.split_mbox(_read(path))
    if len(mails) == 1:
        # The user named just this patch: its number does not matter.
        return series.parse([(path.name, mails[0])], title="", origin=origin, ordered=True)
    return series.parse([("", mail) for mail in mails], title=path.stem, origin=origin)


def _from_directory(path: Path, origin: str) -> Series:
    toml = path / series.TOML_NAME
    quilt = path / "series"
    cover: list[Path] = []
    if quilt.is_file():
        files = _quilt(quilt)
        cover = [path / name for name in _DIRECTORY_COVERS if (path / name).is_file()]
        cover = [file for file in cover if file not in files]
    else:
        files = sorted(
            file for file in path.iterdir() if file.suffix in _MAIL_SUFFIXES and file.is_file()
        )
    mails: list[tuple[str, bytes]] = []
    for file in [*cover, *files]:
        split = series.split_mbox(_read(file))
        if len(split) > 1:
            mails += [(f"{file.stem}-{place}{file.suffix}", m) for place, m in enumerate(split, 1)]
        else:
            mails += [(file.name, mail) for mail in split or [b""]]
    if not mails:
        raise UserError(
            f"{origin}: no patch in this directory",
            hint=f"patches end in {', '.join(_MAIL_SUFFIXES)}, or are listed in a quilt `series`",
        )
    return series.parse(
        mails,
        title=path.resolve().name,
        origin=origin,
        toml=_read(toml) if toml.is_file() else None,
        ordered=quilt.is_file(),
    )


def _quilt(quilt: Path) -> list[Path]:
    """The files that a quilt `series` file lists, in order."""
    files: list[Path] = []
    top = quilt.parent
    for number, raw in enumerate(_read(quilt).decode("utf-8", "replace").splitlines(), 1):
        name, *options = re.sub(r"(^|\s)#.*", "", raw).split() or [""]
        if not name:
            continue
        where = f"{quilt}:{number}"
        if any(option != "-p1" for option in options):
            raise UserError(
                f"{where}: {name} asks for {' '.join(options)}",
                hint="the lab applies patches with -p1 only: quilt refresh -p1 makes them so",
            )
        file = top / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{where}: {name} is outside of the directory", hint="move it there")
        if not file.is_file():
            raise UserError(f"{where}: {name} is not there", hint="correct the `series` file")
        files.append(file)
    if not files:
        raise UserError(f"{quilt} lists no patch", hint="one file name a line")
    return files


# --- a git range -------------------------------------------------------------------------------


def _git(repository: Path, *words: str) -> host.Completed:
    return host.run(
        [*GIT, "-C", repository, *words],
        env=READ_ONLY_GIT,
        check=False,
        timeout_s=_GIT_TIMEOUT_S,
    )


def _commit(repository: Path, revision: str, origin: str) -> str:
    done = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options",
                f"{revision}^{{commit}}")  # fmt: skip
    if done.status != 0:
        raise UserError(
            f"{origin}: {revision!r} is no commit in {repository}"
            + (f":\n{done.complaint}" if done.complaint else ""),
            hint=f"run the lab in the kernel's git repository, or name one; {FORMS}",
        )
    return done.text.strip()


def _from_range(origin: str, repository: Path) -> Series:
    """The commits of A..B, as git format-patch writes them."""
    if "..." in origin:
        raise UserError(f"{origin}: three dots", hint="A..B: the commits of B that A has not")
    first, _, last = origin.partition("..")
    inside = _git(repository, "rev-parse", "--git-dir")
    if inside.status != 0:
        raise UserError(
            f"{origin} looks like a git range, but {repository} is in no usable git repository:\n"
            f"{inside.complaint}",
            hint=FORMS,
        )
    base, top = (_commit(repository, name or "HEAD", origin) for name in (first, last))
    span = f"{base}..{top}"
    listed = _git(repository, "rev-list", "--count", span).text.strip()
    if listed == "0":
        raise UserError(
            f"{origin}: no commit in this range", hint="A..B: the commits of B that A has not"
        )
    if int(listed) > series.MAX_PATCHES:
        raise UserError(
            f"{origin}: {listed} commits, more than the {series.MAX_PATCHES} of a series",
            hint="name a nearer base",
        )
    if merges := _git(repository, "rev-list", "--merges", "--oneline", span).text.strip():
        raise UserError(
            f"{origin}: a merge is no patch: {merges.splitlines()[0]}",
            hint="git rebase makes the history linear",
        )
    done = _git(repository, "-c", "diff.renames=true", "-c", "core.quotePath=true", "-c",
                "format.useAutoBase=false", "-c", "i18n.logOutputEncoding=UTF-8", "format-patch",
                "--stdout", "--numbered", "--subject-prefix=PATCH", "--full-index", "--no-color",
                "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/",
                "--no-attach", "--no-thread", "--no-signature", "--no-notes", "--no-cover-letter",
                "--no-to", "--no-cc", "--no-relative", "--always", span)  # fmt: skip
    if done.status != 0:
        raise UserError(f"{origin}: git format-patch failed:\n{done.complaint}", hint=FORMS)
    mails = [("", mail) for mail in series.split_mbox(done.stdout)]
    if len(mails) != int(listed):
        raise UserError(
            f"{origin}: {listed} commits, but {len(mails)} mails",
            hint="a commit message has a line that looks like the head of a mail",
        )
    return series.parse(mails, title=last or origin, origin=origin, ordered=True)


# --- lore --------------------------------------------------------------------------------------


def _message_id_of(path: str, origin: str) -> str:
    """The message-id in a lore address: LIST/ID/ or r/ID, perhaps with #anchor or T/."""
    for part in path.split("#")[0].split("/"):
        if found := _MESSAGE_ID.fullmatch(part.replace("%40", "@")):
            return found[1]
    raise UserError(f"{origin}: no message-id in this address", hint=FORMS)


def _from_lore(message_id: str, origin: str, cache: Cache) -> Series:
    """The newest version of a series, as b4 takes it from lore.kernel.org."""
    host.tool("b4")
    with cache.staging() as staging:
        done = host.run(
            ["b4", "--no-interactive", "am", "--no-add-trailers", "-o", staging, "-n", "series",
             "--", message_id],
            cwd=staging,
            check=False,
            leash=True,
            timeout_s=_LORE_TIMEOUT_S,
        )  # fmt: skip
        boxes = sorted(staging.glob("*.mbx"))
        if done.status != 0 or len(boxes) != 1:
            raise UserError(
                f"b4 did not get {message_id}:\n{done.complaint}",
                hint="check the message-id at https://lore.kernel.org/all/; an mbox works offline",
            )
        mails = [("", mail) for mail in series.split_mbox(_read(boxes[0]))]
        mails += [(cover.name, _read(cover)) for cover in sorted(staging.glob("*.cover"))]
    return series.parse(mails, title=message_id, origin=origin)
