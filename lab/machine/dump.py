"""A machine at rest goes in, a file with its guest's memory comes out: kdump-compressed or ELF.

QEMU writes into a pipe, so that the file cannot grow without a limit. Of kdump it writes the
flattened form, which needs no seeking, and which is put together here so that no reader has to.
"""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

from qemu.qmp import QMPClient, QMPError

from lab import arch as architectures

# The others are ELF, and its empty pages holes of the file: QEMU's kdump of an arm64 guest has
# pages of 64 KiB, at which libkdumpfile fails.
_KDUMP: Final = frozenset({"x86_64"})
LIMIT_BYTES: Final = 4 << 30
_LIMIT_S: Final = 300.0  # a guest of 1 GiB takes 3 s; a loaded host more
_BLOCK_BYTES: Final = 4096
_FLAT_MAGIC: Final = b"makedumpfile"
_FLAT_HEADER_BYTES: Final = 4096
_RECORD = struct.Struct(">qq")  # offset, size; the last has offset -1
_UTS_AT: Final = 12  # in the header: after signature and version
_UTS_FIELD_BYTES: Final = 65


class DumpError(Exception):
    """There is no dump; says why."""


def file_name(arch: str) -> str:
    """Of a dump in a trial's folder."""
    return "memory.kdump" if arch in _KDUMP else "memory.elf"


async def take(qmp: QMPClient, path: Path, *, arch: str, release: str) -> str:
    """Write the memory of the machine to `path`, atomically; "" if it is there, else why not."""
    reader, writer = os.pipe()
    receiving = asyncio.create_task(asyncio.to_thread(_receive, reader, path, arch, release))
    try:
        complaint = await _ask(qmp, writer, "kdump-zlib" if arch in _KDUMP else "elf")
    finally:
        os.close(writer)  # QEMU has one of its own: when that is closed, the thread is done
    if complaint:
        receiving.add_done_callback(lambda task: task.exception())  # it ends with QEMU
        return complaint
    try:
        await receiving
    except (DumpError, OSError) as error:
        return str(error)
    return ""


def _receive(reader: int, path: Path, arch: str, release: str) -> None:
    partial = path.with_suffix(".partial")
    try:
        with os.fdopen(reader, "rb") as source, partial.open("wb") as target:
            if arch in _KDUMP:
                join(source, target, LIMIT_BYTES)
                _name_system(target, arch, release)
            else:
                copy_sparse(source, target, LIMIT_BYTES)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


async def _ask(qmp: QMPClient, fd: int, form: str) -> str:
    arguments = {"paging": False, "protocol": "fd:dump", "format": form}
    try:
        async with asyncio.timeout(_LIMIT_S):
            qmp.send_fd_scm(fd)
            await qmp.execute("getfd", {"fdname": "dump"})
            await qmp.execute("dump-guest-memory", arguments)
    except (TimeoutError, QMPError, OSError, EOFError) as error:
        return f"QEMU does not dump: {error or type(error).__name__}"
    return ""


def join(source: BinaryIO, target: BinaryIO, limit_bytes: int) -> None:
    """Put a flattened dump together. Raises `DumpError` if it is none, is cut off or too big."""
    header = source.read(_FLAT_HEADER_BYTES)
    if len(header) < _FLAT_HEADER_BYTES or not header.startswith(_FLAT_MAGIC):
        raise DumpError("QEMU wrote no dump")
    left = limit_bytes
    while True:
        head = source.read(_RECORD.size)
        if len(head) < _RECORD.size:
            raise DumpError("the dump is cut off")
        offset, size = _RECORD.unpack(head)
        if offset == -1:
            return
        left -= size
        if offset < 0 or size < 0 or left < 0 or offset > limit_bytes:
            raise DumpError(f"the dump is larger than {limit_bytes >> 20} MiB")
        data = source.read(size)
        if len(data) < size:
            raise DumpError("the dump is cut off")
        target.seek(offset)
        target.write(data)


def copy_sparse(source: BinaryIO, target: BinaryIO, limit_bytes: int) -> None:
    """Copy an ELF dump, leaving out blocks of zeros. Raises `DumpError` as `join`."""
    size = 0
    while data := source.read(_BLOCK_BYTES):
        if size == 0 and not data.startswith(b"\x7fELF"):
            raise DumpError("QEMU wrote no dump")
        size += len(data)
        if size > limit_bytes:
            raise DumpError(f"the dump is larger than {limit_bytes >> 20} MiB")
        if data.count(0) == len(data):
            target.seek(len(data), os.SEEK_CUR)
        else:
            target.write(data)
    if size == 0:
        raise DumpError("QEMU wrote no dump")
    target.truncate(size)


def _name_system(target: BinaryIO, arch: str, release: str) -> None:
    """Fill in uname's answers. QEMU leaves all but the machine empty, and readers then doubt it."""
    words = ("Linux", "lab", release, "#1", architectures.arch(arch).machine)
    for number, word in enumerate(words):
        target.seek(_UTS_AT + number * _UTS_FIELD_BYTES)
        target.write(word.encode()[: _UTS_FIELD_BYTES - 1].ljust(_UTS_FIELD_BYTES, b"\0"))
