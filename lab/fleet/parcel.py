"""The folder of a trial <-> bytes that can be sent.

What comes from another host is not trusted: only plain files below the folder are unpacked, and
only so much.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath
from typing import Final

from lab.model import LabFault
from lab.store import disk_full_explained

LIMIT_BYTES: Final = 1 << 30  # unpacked; a trial takes some MB
_COPY_BYTES = 1 << 20


def pack(folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """The plain files below `folder`. Raises `LabFault` if they are too many bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    total = sum(path.stat().st_size for path in files)
    if total > limit_bytes:
        raise LabFault(f"the trial's folder has {total >> 20} MiB, which is too much to be sent")
    stream = io.BytesIO()
    # Level 1: consoles shrink to a tenth, in no time.
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for path in files:
            archive.add(path, arcname=path.relative_to(folder).as_posix(), recursive=False)
    return stream.getvalue()


def unpack(raw: bytes, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
    """Make `folder` of it, which must not exist. Raises `LabFault` for a parcel that is damaged,
    too big, or holds anything but plain files below it; the folder is then not whole."""
    folder.mkdir(parents=True)
    left = limit_bytes
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or not name.parts:
                    raise LabFault(f"a trial that was sent names {member.name!r}")
                if not member.isreg():
                    raise LabFault(f"a trial that was sent has {member.name!r}, which is no file")
                content = archive.extractfile(member)
                assert content is not None
                target = folder / name
                with disk_full_explained(folder):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as out:
                        while block := content.read(_COPY_BYTES):
                            left -= len(block)
                            if left < 0:
                                raise LabFault("a trial that was sent is too big")
                            out.write(block)
    except (tarfile.TarError, EOFError, FileExistsError, NotADirectoryError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(
            error, (FileExistsError, NotADirectoryError)
        ):
            # gzip says so of damaged data, too.
            raise LabFault(f"a trial that was sent cannot be unpacked: {error}") from error
        raise LabFault(f"a trial that was sent is damaged: {error}") from error
