"""A file goes in, its digest and an address come out; from these the same file, on another host.

An address is any URL that fsspec opens: a folder that all hosts see, an object store, a web
server. Where the bytes came from does not matter: they are the artefact if their digest says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lab
from lab.model import LabFault, UserError
from lab.store import Cache, disk_full_explained, sha256_file

_CHECKOUT = Path(lab.__file__).parent.parent
HINT = shlex.join((sys.executable, "-m", "pip", "install", "--editable", f"{_CHECKOUT}[fleet]"))
_FILE = "file://"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A file that cells need, whatever it is called where it is."""

    sha256: str
    size_bytes: int
    url: str


def _open(url: str) -> tuple[Any, str]:
    """The file system behind a URL, and the path there. Raises `UserError`."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UserError("fsspec is not installed", hint=HINT) from error
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be opened: {error}", hint="[fleet] artefacts") from error
    return system, str(path)


@dataclass(slots=True)
class Depot:
    """Where this host puts artefacts for others.

    Without a store they stay where they are, for workers that see this host's files.
    """

    store: str  # URL of a folder; "": none
    cache: Cache
    _known: dict[tuple[str, int, int], Artefact] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, path: Path) -> Artefact:
        """The artefact that `path` holds, in the store when this returns.

        Raises `UserError` for a store that cannot be opened, `LabFault` if writing fails.
        """
        info = path.stat()
        identity = (str(path), info.st_size, info.st_mtime_ns)
        with self._lock:
            if identity not in self._known:
                self._known[identity] = self._put(path, info.st_size)
            return self._known[identity]

    def _put(self, path: Path, size_bytes: int) -> Artefact:
        digest = sha256_file(path)
        if not self.store:
            return Artefact(sha256=digest, size_bytes=size_bytes, url=path.resolve().as_uri())
        url = f"{self.store.rstrip('/')}/{digest[:2]}/{digest}"
        system, target = _open(url)
        try:
            with self.cache.lock(f"artefact {url}"):
                if not (system.exists(target) and system.size(target) == size_bytes):
                    # Under another name until it is whole: a reader sees all of it or nothing.
                    part = f"{target}.{uuid.uuid4().hex}.part"
                    system.makedirs(part.rpartition("/")[0], exist_ok=True)
                    system.put_file(str(path), part)
                    system.mv(part, target)
        except OSError as error:
            raise LabFault(
                f"{url} cannot be written: {error}", hint="[fleet] artefacts in lab.toml"
            ) from error
        return Artefact(sha256=digest, size_bytes=size_bytes, url=url)


def fetch(artefact: Artefact, cache: Cache) -> Path:
    """The artefact in this host's cache, brought there and verified unless it is there.

    Raises `LabFault` if it cannot be read, or is not what its digest says; then nothing of it
    stays.
    """
    if not _DIGEST.fullmatch(artefact.sha256):
        raise LabFault(f"{artefact.sha256!r} is no digest")
    final = cache.sub("artefacts") / artefact.sha256
    with cache.lock(f"artefact {artefact.sha256}"):
        if final.is_file():
            with contextlib.suppress(OSError):
                os.utime(final)  # in use: `lab clean` looks at this
            return final
        with cache.staging() as staging:
            part = staging / "artefact"
            _bring(artefact, part)
            found = sha256_file(part)
            if found != artefact.sha256:
                raise LabFault(f"{artefact.url} is not {artefact.sha256[:16]}..., but {found[:16]}")
            part.replace(final)
    return final


def _bring(artefact: Artefact, part: Path) -> None:
    system, path = _open(artefact.url)
    if artefact.url.startswith(_FILE):
        # On one file system a second name is enough; the lab never writes into a whole file.
        with contextlib.suppress(OSError):
            os.link(path, part)
            return
    try:
        with disk_full_explained(part.parent):
            system.get_file(path, str(part))
    except OSError as error:
        raise LabFault(
            f"{artefact.url} cannot be read: {error or type(error).__name__}",
            hint="[fleet] artefacts in lab.toml names a place that every worker can reach",
        ) from error
