"""A guest goes in, gzip files of what its kernel knows of its locks come out.

Read once, at the end of a machine's life: lockdep only ever adds. It costs the guest less than a
second, under emulation too.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from lab import host, model
from lab.guest import Down, Exited, Guest
from lab.lockgraph import graph, keys, proc, stored
from lab.model import LabError, LockFiles
from lab.store import write_atomically

# Static keys then print as addresses, which are the same in every boot of a kernel: with hashed
# ones, two boots' classes of one name cannot be told apart.
CMDLINE = "no_hash_pointers"
_LIMIT_BYTES = 64 << 20  # of one file
_READ_LIMIT_S = 120.0
_NONE = LockFiles(files=(), alive=None, full=(), placed=0, duration_s=0.0)


def none(why: str) -> LockFiles:
    """There are no files, because of that."""
    return replace(_NONE, missing=why)


async def start(guest: Guest) -> None:
    """Count contention from here on. What goes wrong shows in what `collect` finds."""
    for path, value in (("/proc/sys/kernel/lock_stat", b"1\n"), ("/proc/lock_stat", b"0\n")):
        await guest.run(["/usr/bin/tee", path], timeout_s=_READ_LIMIT_S, stdin=value)


async def collect(guest: Guest, vmlinux: Path, folder: Path) -> LockFiles:
    """Read the files into `folder`, a trial's. What cannot be had is named, never an exception."""
    began = time.monotonic()
    texts: dict[str, bytes] = {}
    lacking: list[str] = []
    for name in stored.FILES:
        answer = await guest.run(
            ["/bin/cat", f"/proc/{name}"], timeout_s=_READ_LIMIT_S, limit_bytes=_LIMIT_BYTES
        )
        if isinstance(answer, Down):
            return none(f"the machine ended while its locks were read ({answer.end})")
        if not isinstance(answer, Exited):
            lacking.append(f"/proc/{name} could not be read in {_READ_LIMIT_S:.0f} s")
        elif answer.status != 0:
            said = answer.stderr.decode("utf-8", "replace").strip()
            lacking.append(said.splitlines()[-1][:200] if said else f"no /proc/{name}")
        elif answer.truncated:
            lacking.append(f"/proc/{name} is larger than {_LIMIT_BYTES >> 20} MiB")
        else:
            texts[name] = answer.stdout
    if stored.FILES[0] not in texts:
        return none("; ".join(lacking))
    text = await _text_address(guest)
    spent = time.monotonic() - began
    return await asyncio.to_thread(_keep, texts, vmlinux, text, folder, lacking, spent)


async def _text_address(guest: Guest) -> int | None:
    """Where this boot put the kernel; None: not told."""
    answer = await guest.run(
        ["/bin/sed", "-n", "/ _stext$/{p;q}", "/proc/kallsyms"], timeout_s=_READ_LIMIT_S
    )
    if not isinstance(answer, Exited):
        return None
    match = re.match(rb"([0-9a-f]{8,16}) ", answer.stdout)
    return int(match[1], 16) or None if match else None


def _keep(
    texts: dict[str, bytes],
    vmlinux: Path,
    text: int | None,
    folder: Path,
    lacking: list[str],
    spent_s: float,
) -> LockFiles:
    plain = {name: raw.decode("utf-8", "replace") for name, raw in texts.items()}
    amounts: tuple[proc.Amount, ...] = ()
    homes: tuple[keys.KeyHome, ...] = ()
    try:
        if "lockdep_stats" in plain:
            amounts = proc.stats(plain["lockdep_stats"])
        homes = _homes(plain[stored.FILES[0]], vmlinux, text)
    except LabError as error:
        lacking.append(error.message)
    texts[stored.KEYS] = model.encode(homes)
    for name, raw in texts.items():
        # Without a time in it, equal texts are equal files.
        write_atomically(
            folder / stored.FOLDER / f"{name}{stored.SUFFIX}", gzip.compress(raw, mtime=0)
        )
    alive = next((bool(a.value) for a in amounts if a.name == "debug_locks"), None)
    return LockFiles(
        files=tuple(f"{stored.FOLDER}/{name}{stored.SUFFIX}" for name in texts),
        alive=alive,
        full=graph.limits(amounts),
        placed=len(homes),
        duration_s=spent_s,
        missing="; ".join(lacking),
    )


def _homes(lockdep: str, vmlinux: Path, text: int | None) -> tuple[keys.KeyHome, ...]:
    listed = proc.classes(lockdep).entries
    printed = [keys.base(e.named.key, e.named.subclass) for e in listed]
    if keys.are_hashed(printed):
        return ()
    return keys.homes(printed, _symbols(vmlinux), text=text)


@lru_cache(maxsize=4)
def _symbols(vmlinux: Path) -> keys.Symbols:
    """Of a kernel in the cache: its path is its content."""
    return keys.symbols(host.run(["nm", "-p", "-a", str(vmlinux)], timeout_s=120).text)
