"""A TOML file of known splats in; which splats are excused, by which entry, out.

An entry names what it excuses as narrowly as it can, says why, where that is written down, and
until when. After its date it excuses nothing: somebody looks again.

    [[allow]]
    kind = "warning"                     # optional: a kind of lab.splat.kinds
    function = "inode_init_once"         # at least one of function, title and fingerprint
    title = "WARNING in inode_*"         # a shell pattern
    fingerprint = "0123456789abcdef"
    archs = ["arm64"]                    # optional: only there
    reason = "races with the test's own unmount; harmless"
    link = "https://lore.kernel.org/r/..."
    expires = 2026-12-31
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lab.model import Splat, UserError
from lab.splat.kinds import Kind

_KEYS = {"kind", "function", "title", "fingerprint", "archs", "reason", "link", "expires"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """One known splat."""

    reason: str
    link: str
    expires: datetime.date
    kind: Kind | None = None
    function: str = ""
    title: str = ""  # a shell pattern
    fingerprint: str = ""
    archs: tuple[str, ...] = ()  # empty: on every architecture
    origin: str = ""  # "known.toml, entry 2"

    @property
    def what(self) -> str:
        """What it names, for a message."""
        said = (str(self.kind or ""), self.title, self.function, self.fingerprint)
        return " ".join(part for part in said if part)

    def excuses(self, splat: Splat, *, arch: str, today: datetime.date) -> bool:
        """Does it excuse this splat? All that the entry names must fit; a fatal one never does."""
        return (
            not splat.fatal
            and today <= self.expires
            and (not self.archs or arch in self.archs)
            and (self.kind is None or self.kind == splat.kind)
            and (not self.function or self.function == splat.function)
            and (not self.title or fnmatchcase(splat.title, self.title))
            and (not self.fingerprint or self.fingerprint == splat.fingerprint)
        )


def load(path: Path) -> tuple[Allowed, ...]:
    """The entries of a file. Raises `UserError` that names file, entry and key."""
    try:
        return parse(path.read_bytes(), origin=str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def expired(entries: Sequence[Allowed], *, today: datetime.date) -> tuple[str, ...]:
    """One sentence for each entry whose last day is over: it lets nothing pass any more."""
    return tuple(
        f"{entry.origin}: expired on {entry.expires}, so {entry.what} is no longer allowed"
        for entry in entries
        if entry.expires < today
    )


def parse(raw: bytes, *, origin: str) -> tuple[Allowed, ...]:
    """The entries of an allow-list. Raises `UserError` that names file, entry and key."""
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{origin}: {error}") from error
    unknown = set(document) - {"allow"}
    if unknown:
        raise UserError(f"{origin}: unknown key {min(unknown)!r}", hint="entries are [[allow]]")
    entries = document.get("allow", [])
    if not isinstance(entries, list):
        raise UserError(f"{origin}: allow is not a list", hint="entries are [[allow]]")
    return tuple(
        _entry(entry, where=f"{origin}, entry {number}") for number, entry in enumerate(entries, 1)
    )


def _entry(entry: Any, *, where: str) -> Allowed:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: not a table", hint="entries are [[allow]]")
    unknown = set(entry) - _KEYS
    if unknown:
        raise UserError(f"{where}: unknown key {min(unknown)!r}", hint=f"known: {sorted(_KEYS)}")
    texts = {key: _text(entry, key, where) for key in ("function", "title", "fingerprint", "kind")}
    for key in ("reason", "link"):
        if not (value := _text(entry, key, where)).strip():
            raise UserError(f"{where}: {key} is missing", hint="say why, and where it is discussed")
        texts[key] = value
    if not (texts["function"] or texts["title"] or texts["fingerprint"]):
        raise UserError(
            f"{where}: it would excuse every splat",
            hint="name a function, a title or a fingerprint",
        )
    expires = entry.get("expires")
    if not isinstance(expires, datetime.date) or isinstance(expires, datetime.datetime):
        raise UserError(f"{where}: expires is not a date", hint="expires = 2026-12-31")
    archs = entry.get("archs", [])
    if not isinstance(archs, list) or not all(isinstance(name, str) for name in archs):
        raise UserError(f"{where}: archs is not a list of names", hint='archs = ["arm64"]')
    if texts["kind"] and texts["kind"] not in set(Kind):
        raise UserError(f"{where}: unknown kind {texts['kind']!r}")
    return Allowed(
        reason=texts["reason"],
        link=texts["link"],
        expires=expires,
        kind=Kind(texts["kind"]) if texts["kind"] else None,
        function=texts["function"],
        title=texts["title"],
        fingerprint=texts["fingerprint"],
        archs=tuple(archs),
        origin=where,
    )


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is not a string")
    return value


def excuse(
    splats: Sequence[Splat], allowed: Sequence[Allowed], *, arch: str, today: datetime.date
) -> tuple[tuple[Splat, Allowed | None], ...]:
    """Each splat with the entry that excuses it, None where none does."""
    return tuple(
        (
            splat,
            next(
                (entry for entry in allowed if entry.excuses(splat, arch=arch, today=today)), None
            ),
        )
        for splat in splats
    )
