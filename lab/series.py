"""Mails of a patch series go in, a validated, ordered `Series` comes out; nothing is touched.

What a patch may do to a tree is decided here, from its text alone, before any tool sees it: no
binary change, no symbolic link or submodule, no path that leaves the tree or enters `.git`.
`lab.tree` checks the outcome once more against what git made of the patch.
"""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lab.diff import DiffError, parse_diff
from lab.model import FileChange, Patch, Series, UserError

MAX_PATCH_BYTES = 8 << 20
MAX_SERIES_BYTES = 64 << 20
MAX_PATCHES = 500

TOML_NAME = "series.toml"

_HEADER = re.compile(rb"\A(?:>?From [^\n]*\n)?[!-9;-~]+:[ \t]")
_MBOX_FROM = re.compile(
    rb"^From \S+ .*\d{1,2}:\d{2}(?::\d{2})?.*\d{4}\r?$", re.MULTILINE
)  # "From " in running text does not end in a time and a year
_PREFIX = re.compile(r"\s*\[([^\]]*)\]\s*")
_REPLY = re.compile(r"(?i)^\s*(re|aw|fwd?)\s*:")
_PART = re.compile(r"(?:^|[\s,])(\d+)\s*/\s*(\d+)(?:$|[\s,])")
_CONFIG_LINE = re.compile(r"CONFIG_[A-Za-z0-9_]+=\S.*|# CONFIG_[A-Za-z0-9_]+ is not set")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mail:
    """One mail, taken apart."""

    name: str  # "" if it came out of a mailbox
    called: str  # how errors name it
    raw: bytes
    subject: str
    number: int | None
    total: int | None
    author: str
    body: bytes


class _Toml(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What series.toml may say."""

    title: str | None = None
    kernel: str | None = None
    config: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    cover: str | None = None
    counters: tuple[str, ...] = ()


def split_mbox(raw: bytes) -> list[bytes]:
    """The mails of an mbox, or `raw` itself as the only one if it is not an mbox."""
    starts = [
        found.start()
        for found in _MBOX_FROM.finditer(raw)
        if found.start() == 0 or raw[: found.start()].endswith((b"\n\n", b"\n\r\n"))
    ]
    if not starts or raw[: starts[0]].strip():
        return [raw] if raw.strip() else []
    ends = [*starts[1:], len(raw)]
    return [raw[start:end] for start, end in zip(starts, ends, strict=True)]


def parse(
    mails: Sequence[tuple[str, bytes]],
    *,
    title: str,
    origin: str,
    toml: bytes | None = None,
    cover: str = "",
    ordered: bool = False,
) -> Series:
    """Validate and order the mails of one series.

    `mails` are (name, raw mail); an empty name stands for a mail out of a mailbox. With `ordered`
    the order given is final (a quilt series, a git range, one patch that the user named), else
    the numbers of the subjects must be complete and decide. Raises `UserError` that names the
    patch and the reason.
    """
    settings = _settings(toml)
    _check_sizes(mails, origin)
    taken = [_take_apart(name, raw, place) for place, (name, raw) in enumerate(mails, 1)]
    covers = [mail for mail in taken if mail.number == 0]
    parts = [mail for mail in taken if mail.number != 0]
    if len(covers) > 1:
        raise UserError(
            f"{origin}: two cover letters, {covers[0].called} and {covers[1].called}",
            hint="these are two series; give one of them",
        )
    if not parts:
        raise UserError(f"{origin}: the series has no patch", hint="a series is at least one patch")
    if not ordered:
        parts = _in_order(parts, origin)
    patches = tuple(_patch(mail, place) for place, mail in enumerate(parts, 1))
    letter = covers[0] if covers else None
    if letter is not None and _changes(letter):
        raise UserError(
            f"{letter.called}: it is numbered as a cover letter, but carries a diff",
            hint="number patches from 1",
        )
    digest = hashlib.sha256("".join(f"{patch.sha256}\n" for patch in patches).encode())
    return Series(
        title=settings.title or (letter.subject if letter else "") or title or patches[0].subject,
        origin=origin,
        patches=patches,
        digest=digest.hexdigest(),
        kernel=settings.kernel,
        fragment="".join(f"{line}\n" for line in settings.config),
        cover=settings.cover or cover or (_cover_text(letter) if letter else ""),
        suites=settings.suites,
        counters=settings.counters,
    )


def mail_bytes(patch: Patch) -> bytes:
    """The mail of a patch, byte for byte."""
    return patch.mail.encode("utf-8", "surrogateescape")


def toml_text(series: Series) -> str:
    """A `series.toml` that says of the series what its patches do not."""

    def word(text: str) -> str:
        # A string of JSON is one of TOML, but for DEL.
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

    def words(texts: Sequence[str]) -> str:
        return f"[{', '.join(map(word, texts))}]"

    lines = [f"title = {word(series.title)}"]
    if series.kernel is not None:
        lines.append(f"kernel = {word(series.kernel)}")
    lines += [
        f"config = {words(series.fragment.splitlines())}",
        f"suites = {words(series.suites)}",
        f"cover = {word(series.cover)}",
        f"counters = {words(series.counters)}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _settings(toml: bytes | None) -> _Toml:
    if toml is None:
        return _Toml()
    try:
        known = msgspec.convert(tomllib.loads(toml.decode()), type=_Toml)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{TOML_NAME}: not TOML: {error}", hint="see https://toml.io") from error
    except msgspec.ValidationError as error:
        keys = ", ".join(_Toml.__struct_fields__)
        reason = str(error).replace("Object contains unknown field", "unknown key")
        raise UserError(f"{TOML_NAME}: {reason}", hint=f"known keys: {keys}") from error
    for line in known.config:
        if not _CONFIG_LINE.fullmatch(line):
            raise UserError(
                f"{TOML_NAME}: config: {line!r} is not a line of a Kconfig fragment",
                hint='for example config = ["CONFIG_SRCU=y", "# CONFIG_KASAN is not set"]',
            )
    return known


def _check_sizes(mails: Sequence[tuple[str, bytes]], origin: str) -> None:
    if not mails:
        raise UserError(f"{origin}: the series is empty", hint="a series is at least one patch")
    if len(mails) > MAX_PATCHES:
        raise UserError(
            f"{origin}: {len(mails)} mails, more than the {MAX_PATCHES} that a series may have",
            hint="give the part of the history that is under test",
        )
    for place, (name, raw) in enumerate(mails, 1):
        if len(raw) > MAX_PATCH_BYTES:
            raise UserError(
                f"{name or f'mail {place}'}: {len(raw)} bytes, more than the {MAX_PATCH_BYTES} "
                "that a patch may have",
                hint="split the patch",
            )
    if sum(len(raw) for _, raw in mails) > MAX_SERIES_BYTES:
        raise UserError(
            f"{origin}: more than the {MAX_SERIES_BYTES} bytes that a series may have",
            hint="give the part of the history that is under test",
        )


# --- mails -------------------------------------------------------------------------------------


def _take_apart(name: str, raw: bytes, place: int) -> _Mail:
    if not _HEADER.match(raw):
        raw = _dressed(name, raw)
    message = email.message_from_bytes(raw)
    subject = _header(message, "Subject")
    plain, number, total = _strip_prefixes(subject)
    body = _body(message)
    called = name or f"mail {place} ({subject or 'no subject'})"
    return _Mail(
        name=name,
        called=called,
        raw=raw,
        subject=plain,
        number=number,
        total=total,
        author=_in_body_author(body) or _header(message, "From"),
        body=body,
    )


def _dressed(name: str, raw: bytes) -> bytes:
    """A bare diff, as quilt keeps them, as a mail: `git am` takes nothing else."""
    stem = re.sub(r"\.(patch|diff)$", "", name) or "patch"
    subject = re.sub(r"[^\x21-\x7e]+", " ", stem).strip() or "patch"
    head = (
        "From: unknown <unknown@localhost>\n"
        "Date: Thu, 1 Jan 1970 00:00:00 +0000\n"
        f"Subject: [PATCH] {subject}\n"
        "Content-Type: text/plain; charset=UTF-8\n"
        "Content-Transfer-Encoding: 8bit\n\n"
    )
    return head.encode() + raw


def _header(message: email.message.Message, name: str) -> str:
    """A header as one line of text; what cannot be decoded stays as it came."""
    value = message.get(name)
    if value is None:
        return ""
    try:
        text = str(email.header.make_header(email.header.decode_header(value)))
    except (email.errors.MessageError, LookupError, ValueError):
        text = str(value)
    clean = text.encode("utf-8", "replace").decode()
    return " ".join(clean.split())


def _body(message: email.message.Message) -> bytes:
    """All text of the mail, its transfer encoding undone, its parts one after the other."""
    found: list[bytes] = []
    for part in message.walk():
        if part.is_multipart():
            continue
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            found.append(payload)
    return b"\n".join(found)


def _in_body_author(body: bytes) -> str:
    """The author that `git am` takes from a From: line at the head of the text."""
    first = body.lstrip().partition(b"\n")[0]
    if not first.lower().startswith(b"from:"):
        return ""
    return " ".join(first[5:].decode("utf-8", "replace").split())


def _strip_prefixes(subject: str) -> tuple[str, int | None, int | None]:
    """The subject without its [..] prefixes, and the n and m of an n/m among them."""
    number = total = None
    rest = subject
    while found := _PREFIX.match(rest):
        if part := _PART.search(found[1]):
            number, total = int(part[1]), int(part[2])
        rest = rest[found.end() :]
    return rest.strip() or subject, number, total


def _cover_text(letter: _Mail) -> str:
    text = letter.body.decode("utf-8", "replace").replace("\r\n", "\n")
    return text.partition("\n-- \n")[0].strip()


# --- order -------------------------------------------------------------------------------------


def _in_order(parts: list[_Mail], origin: str) -> list[_Mail]:
    """By number, if there are numbers. Raises `UserError` for a part that is missing or twice."""
    seen: dict[int, _Mail] = {}
    total = None
    for mail in parts:
        if mail.number is None:
            continue
        if total is not None and mail.total != total:
            raise UserError(
                f"{mail.called}: numbered {mail.number}/{mail.total}, others are of {total}",
                hint="these are parts of two series; give one, or order them in a quilt `series`",
            )
        total = mail.total
        if mail.number in seen:
            raise UserError(
                f"patch {mail.number}/{total} is there twice: "
                f"{seen[mail.number].called} and {mail.called}",
                hint="keep one version of each patch",
            )
        seen[mail.number] = mail
    if total is None:
        return parts
    # The total comes from the mail: do not count up to it before it is known to be sane.
    if total > MAX_PATCHES or max(seen) > total:
        raise UserError(
            f"{seen[max(seen)].called}: {max(seen)}/{total} is no part of a series",
            hint=f"a series has at most {MAX_PATCHES} patches",
        )
    if missing := [f"{n}/{total}" for n in range(1, total + 1) if n not in seen]:
        raise UserError(
            f"{origin}: the series is not complete, missing: {', '.join(missing)}",
            hint="to test a part on purpose, list its patches in a quilt `series` file",
        )
    if len(seen) != len(parts):
        odd = next(mail for mail in parts if mail.number is None)
        raise UserError(
            f"{odd.called}: not numbered, but others are, of {total}",
            hint="give the order in a quilt `series` file",
        )
    return [seen[n] for n in sorted(seen)]


# --- patches -----------------------------------------------------------------------------------


def _changes(mail: _Mail) -> tuple[FileChange, ...]:
    try:
        return parse_diff(mail.body)
    except DiffError as error:
        raise UserError(f"{mail.called}: {error.reason}", hint=error.hint) from error


def _patch(mail: _Mail, place: int) -> Patch:
    changes = _changes(mail)
    if not changes:
        reply = _REPLY.match(mail.subject)
        raise UserError(
            f"{mail.called}: no diff in it",
            hint=(
                "remove replies from the mailbox, or name the series by its message-id"
                if reply
                else "only a cover letter, numbered 0/n, may come without one"
            ),
        )
    return Patch(
        name=mail.name or f"{place:04d}-{slug(mail.subject)}.patch",
        subject=mail.subject,
        author=mail.author,
        mail=mail.raw.decode("utf-8", "surrogateescape"),
        sha256=hashlib.sha256(mail.raw).hexdigest(),
        changes=changes,
    )


def slug(subject: str) -> str:
    """The subject as git format-patch makes file names of it."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", subject).strip("-.")[:52].rstrip("-.") or "patch"
