"""A guest goes in; how often its kernel's lines ran comes out, an archive for each case.

Only a kernel that was built with counters (`build.counted`) has any. What a guest sends is
bounded, and nothing of it is unpacked: members are read by names that the host knows.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from lab.guest import Down, Exited, Guest
from lab.store import write_atomically

SCRIPT = Path(__file__).parent.parent / "images" / "guest" / "counters.sh"
FOLDER: Final = "counters"
BOOTING: Final = "booting"  # what ran before the first case
_SUFFIX = ".tar.gz"
_LIMIT_S = 120.0
_LIMIT_BYTES = 64 << 20  # of one archive
_MEMBER_BYTES = 16 << 20
_MEMBERS = 20_000


async def take(guest: Guest, folder: Path, case: str) -> str:
    """Keep what was counted since the last time, for `case`, in a trial's folder, and begin anew.

    "" if that is done, else why not: the case then has no counts, which says nothing.
    """
    answer = await guest.run(
        ["/bin/sh", "-s"],
        timeout_s=_LIMIT_S,
        stdin=SCRIPT.read_bytes(),
        limit_bytes=_LIMIT_BYTES,
    )
    if isinstance(answer, Down):
        return f"no counters of {case}: the machine ended ({answer.end})"
    if not isinstance(answer, Exited):
        return f"no counters of {case}: they could not be read in {_LIMIT_S:.0f} s"
    if answer.status != 0:
        said = answer.stderr.decode("utf-8", "replace").strip().splitlines()
        return f"no counters of {case}: {said[-1][:200] if said else f'status {answer.status}'}"
    if answer.truncated:
        return f"no counters of {case}: they are larger than {_LIMIT_BYTES >> 20} MiB"
    file = folder / FOLDER / (quote(case, safe="") + _SUFFIX)
    write_atomically(file, gzip.compress(answer.stdout, compresslevel=6, mtime=0))
    return ""


def stored(folder: Path) -> dict[str, Path]:
    """Case -> archive, of a trial's folder."""
    found = sorted((folder / FOLDER).glob(f"*{_SUFFIX}"))
    return {unquote(path.name.removesuffix(_SUFFIX)): path for path in found}


def contents(archive: Path, names: dict[str, str]) -> dict[str, bytes]:
    """Members of an archive; `names` has the path in the guest -> what it is called in the answer.

    Whatever else is in it is passed over. Raises `ValueError` for what is no such archive.
    """
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as stream:
            raw = stream.read(_LIMIT_BYTES + 1)
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for count, member in enumerate(tar):
                if count > _MEMBERS:
                    raise ValueError("it has too many members")
                wanted = names.get(member.name.removeprefix("."))
                if wanted is None or not member.isreg() or member.size > _MEMBER_BYTES:
                    continue
                content = tar.extractfile(member)
                if content is not None:
                    found[wanted] = content.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{archive.name} cannot be read: {error}") from error
    return found
