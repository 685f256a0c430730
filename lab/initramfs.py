"""The sources of the guest's programs go in, a bootable initramfs comes out, by digest.

The archive holds the agent as /init and every other program in /lab/bin. It is written here, in
the kernel's "newc" format, with no time stamps and in a fixed order: the same programs give the
same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import stat
from dataclasses import dataclass
from pathlib import Path

from lab import arch as architectures
from lab import host
from lab.model import Emit, Event, EventKind
from lab.store import Cache, publish, write_atomically

SOURCES = Path(__file__).parent.parent / "images" / "guest"
_FOLDERS = ("dev", "lab", "lab/bin", "proc", "root", "run", "sys", "tmp")
_CONSOLE = (5, 1)  # device number of /dev/console, which the kernel opens for /init


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member of the archive."""

    path: str
    mode: int  # with the type bits
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def compiler(arch: str) -> str:
    """The C compiler for guests of that architecture."""
    row = architectures.arch(arch)
    return "gcc" if platform.machine() == row.machine else f"{row.cross}gcc"


def archive(entries: tuple[Entry, ...]) -> bytes:
    """A cpio archive of format newc, as the kernel's early-userspace/buffer-format.rst has it."""
    out = bytearray()
    trailer = Entry(path="TRAILER!!!", mode=0)
    for inode, entry in enumerate((*entries, trailer), start=1):
        name = entry.path.encode() + b"\0"
        fields = (
            0 if entry is trailer else inode,
            entry.mode,
            0,  # uid
            0,  # gid
            2 if stat.S_ISDIR(entry.mode) else 1,  # links
            0,  # mtime
            len(entry.content),
            0,  # device of the archive, major and minor
            0,
            *entry.device,
            len(name),
            0,  # checksum: unused in this format
        )
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += b"\0" * (-len(out) % 4)
        out += entry.content
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def _entries(programs: Path) -> tuple[Entry, ...]:
    folders = [Entry(path=name, mode=stat.S_IFDIR | 0o755) for name in _FOLDERS]
    console = Entry(path="dev/console", mode=stat.S_IFCHR | 0o600, device=_CONSOLE)
    files = [
        Entry(
            path="init" if program.name == "agent" else f"lab/bin/{program.name}",
            mode=stat.S_IFREG | 0o755,
            content=program.read_bytes(),
        )
        for program in sorted(programs.iterdir())
    ]
    return (*folders, console, *files)


def _digest(words: tuple[str, ...], sources: Path) -> str:
    """Of the compiler and of every file that a program is made from."""
    digest = hashlib.sha256("\0".join(words).encode())
    for path in sorted(sources.rglob("*")):
        if path.suffix in (".c", ".h") or path.name == "Makefile":
            content = path.read_bytes()
            digest.update(f"{path.relative_to(sources)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def programs(arch: str, *, cache: Cache, emit: Emit, sources: Path = SOURCES) -> Path:
    """The folder of the compiled programs. Raises `UserError` without a compiler or make,
    `CommandFailed` if a program does not compile."""
    gcc = compiler(arch)
    key = _digest((arch, gcc, host.version(gcc)), sources)
    final = cache.sub("images") / f"guest-{arch}-{key}"
    with cache.lock(final.name):
        if final.is_dir():
            return final
        step = f"guest programs {arch}"
        emit(Event(kind=EventKind.STARTED, step=step))
        with cache.staging() as folder:
            out = folder / "out"
            out.mkdir()
            host.run(
                ["make", "-s", f"-j{os.cpu_count()}", "-C", sources, f"OUT={out}", f"CC={gcc}"],
                timeout_s=300,
                leash=True,
            )
            publish(out, final)
        emit(Event(kind=EventKind.DONE, step=step))
    return final


def initramfs(arch: str, *, cache: Cache, emit: Emit, sources: Path = SOURCES) -> Path:
    """The archive for guests of that architecture, made if the cache lacks it."""
    folder = programs(arch, cache=cache, emit=emit, sources=sources)
    path = folder.with_name(f"{folder.name}.cpio.gz")
    if not path.exists():
        # mtime=0: gzip would put the time of day into the bytes.
        raw = archive(_entries(folder))
        write_atomically(path, gzip.compress(raw, compresslevel=6, mtime=0))
    return path
