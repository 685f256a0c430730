"""A booted machine goes onto the shelf; from then on a machine of the same specification begins
there instead of booting.

A snapshot is the memory and the devices of a healthy machine at rest, and its disks of the same
moment. Its key covers all that decides what is in it. What is not whole, or not loaded by this
QEMU, is thrown away, and the machine boots. Raises what `machine.boot` raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from lab import arch as architectures
from lab import host, machine, model
from lab.machine import Disk, Machine, MachineSpec, StateError
from lab.store import Cache, publish, recall, remove_tree, sha256_file, tree_bytes

# One takes 70 to 150 MiB: what a guest of 1 GiB has touched by the time it is up.
SHELF_LIMIT_BYTES: Final = 6 << 30
BOOT_LOG: Final = "boot.log"
_RECORD: Final = "snapshot.json"
_STATE: Final = "state"
_FORMAT: Final = "1"  # of the folders: raised when what is in them changes

OnLine = Callable[[int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The record of one on the shelf."""

    key: str
    arch: str
    kernel: Path
    files: dict[str, str]  # name -> sha256
    boot_s: float  # that the machine took to boot
    taken: str  # ISO 8601, UTC


@dataclass(slots=True)
class _Gate:
    """Console lines of a machine that may turn out not to count."""

    on_line: OnLine | None
    held: list[tuple[int, str]] | None = field(default_factory=list)

    def take(self, number: int, text: str) -> None:
        if self.held is not None:
            self.held.append((number, text))
        elif self.on_line is not None:
            self.on_line(number, text)

    def open(self) -> None:
        held, self.held = self.held or [], None
        for number, text in held:
            self.take(number, text)


class Shelf:
    """Where the snapshots lie. Safe against other labs on the same cache."""

    def __init__(self, cache: Cache, *, limit_bytes: int = SHELF_LIMIT_BYTES) -> None:
        self._cache = cache
        self._limit_bytes = limit_bytes
        self._digests: dict[tuple[str, int, int, int], str] = {}
        self._versions: dict[str, str] = {}

    # --- what is there ---------------------------------------------------------------------

    def key(self, spec: MachineSpec) -> str | None:
        """Of all that decides what such a machine is once it has booted; None if there can be no
        snapshot of it."""
        if _why_not(spec):
            return None
        qemu = host.tool(architectures.arch(spec.arch).qemu)
        if qemu not in self._versions:
            info = Path(qemu).stat()
            self._versions[qemu] = f"{host.version(qemu)} {info.st_size} {info.st_mtime_ns}"
        bare = replace(
            spec,
            kernel=Path("kernel"),
            initramfs=Path("initramfs"),
            disks=tuple(replace(disk, path=Path("disk")) for disk in spec.disks),
        )
        parts = (
            _FORMAT,
            qemu,
            self._versions[qemu],
            host.identity(),
            self._digest(spec.kernel),
            self._digest(spec.initramfs),
            *machine.qemu_argv(bare, control_fd=0, console_fd=0, qmp_fd=0),
            *(disk.origin for disk in spec.disks),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def has(self, spec: MachineSpec) -> bool:
        """Whether a machine of that specification need not boot."""
        return self._find(spec) is not None

    def _find(self, spec: MachineSpec) -> Snapshot | None:
        key = self.key(spec)
        if key is None:
            return None
        return recall(self._folder(key) / _RECORD, Snapshot)

    def _folder(self, key: str) -> Path:
        return self._cache.sub("snapshots") / key

    def _digest(self, path: Path) -> str:
        """Of a file; a file that has not changed since is not read again."""
        info = path.stat()
        stamp = (str(path), info.st_ino, info.st_size, info.st_mtime_ns)
        if stamp not in self._digests:
            self._digests[stamp] = sha256_file(path)
        return self._digests[stamp]

    def _damage(self, snapshot: Snapshot) -> str:
        """What is wrong with its files; "" if they are those that were put there."""
        for name, wanted in snapshot.files.items():
            try:
                if self._digest(self._folder(snapshot.key) / name) != wanted:
                    return f"{name} is damaged"
            except OSError as error:
                return f"{name}: {error.strerror}"
        return ""

    # --- taking one ------------------------------------------------------------------------

    async def save(self, box: Machine, spec: MachineSpec, folder: Path) -> str:
        """Put a machine that has booted, and in which no command runs, onto the shelf; it goes
        on then. "" if it is there, else why it is not. `folder` is the machine's own.

        Whether it is healthy is for the caller to know.
        """
        key = self.key(spec)
        if key is None:
            return _why_not(spec)
        if box.boot_s is None:
            return "it did not boot"
        if self._folder(key).is_dir():
            return ""
        with self._cache.staging() as staging:
            made = staging / "snapshot"
            made.mkdir()
            writable = [disk for disk in spec.disks if not disk.readonly]

            def at_rest() -> None:
                for disk in writable:
                    _keep_disk(disk, made)
                shutil.copyfile(folder / "console.log", made / BOOT_LOG)

            try:
                with (made / _STATE).open("wb") as stream:
                    await box.save(stream.fileno(), at_rest)
            except (StateError, OSError) as error:
                return str(error)
            await asyncio.to_thread(self._publish, made, key, spec, box.boot_s)
        self._trim()
        return ""

    def _publish(self, made: Path, key: str, spec: MachineSpec, boot_s: float) -> None:
        # With its kernel gone from the cache, nobody will ask for it again: see Cache.reclaim.
        (made / "kernel").symlink_to(spec.kernel)
        files = {path.name: sha256_file(path) for path in made.iterdir() if not path.is_symlink()}
        record = Snapshot(
            key=key,
            arch=spec.arch,
            kernel=spec.kernel,
            files=files,
            boot_s=boot_s,
            taken=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        (made / _RECORD).write_bytes(model.encode(record))
        publish(made, self._folder(key))

    def _trim(self) -> None:
        """Drop those that were not used for longest until the rest fits."""
        with contextlib.suppress(OSError):  # another lab may be at it too
            entries = sorted(
                self._cache.sub("snapshots").iterdir(),
                key=lambda entry: entry.stat().st_mtime,
                reverse=True,
            )
            total = 0
            for entry in entries:
                total += tree_bytes(entry)
                if total > self._limit_bytes:
                    remove_tree(entry)

    # --- using them ------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def machine(
        self,
        spec: MachineSpec,
        folder: Path,
        *,
        restore: bool,
        note: Callable[[str], None],
        on_line: OnLine | None = None,
    ) -> AsyncIterator[Machine]:
        """As `machine.boot`; with `restore` from a snapshot if there is one that works.

        If there is one and it does not, it is thrown away, `note` says so in one line, and the
        machine boots. The disks of `spec` must be fresh.
        """
        folder.mkdir(parents=True, exist_ok=True)
        found = self._find(spec) if restore else None
        if found is not None:
            reason = ""
            gate = _Gate(on_line)
            # While QEMU reads it. Nobody gets the machine before this is known.
            damage = asyncio.create_task(asyncio.to_thread(self._damage, found))
            async with self._restored(found, spec, folder, gate) as box:
                if box is not None and box.guest is not None:
                    reason = await damage
                    if not reason:
                        gate.open()
                        yield box
                        return
            if not reason:
                reason = await damage or (box.detail if box is not None else "it is not whole")
            remove_tree(self._folder(found.key))
            (folder / BOOT_LOG).unlink(missing_ok=True)
            note(f"booting, because the snapshot of this kernel cannot be restored: {reason}")
        async with machine.boot(spec, folder, on_line=on_line) as booted:
            yield booted

    @contextlib.asynccontextmanager
    async def _restored(
        self, found: Snapshot, spec: MachineSpec, folder: Path, gate: _Gate
    ) -> AsyncIterator[Machine | None]:
        """The machine, or None if the snapshot is gone or lacks a part."""
        source = self._folder(found.key)
        with contextlib.ExitStack() as stack:
            try:
                os.utime(source)  # in use: the cache drops first what was not used for long
                stream = stack.enter_context((source / _STATE).open("rb"))
                shutil.copyfile(source / BOOT_LOG, folder / BOOT_LOG)
                disks = tuple(_with_kept_disk(disk, source) for disk in spec.disks)
            except OSError:
                yield None
                return
            there = replace(spec, disks=disks)
            async with machine.boot(
                there, folder, on_line=gate.take, state_fd=stream.fileno()
            ) as box:
                yield box


def _why_not(spec: MachineSpec) -> str:
    """Why there can be no snapshot of such a machine; "" if there can."""
    if not all(disk.origin for disk in spec.disks):
        return "its disks may hold anything"
    if any(disk.pmem_bytes for disk in spec.disks):
        # Its first flush after a restore would never end: 60 s into mkfs.ext4, on QEMU 7.2.
        return "QEMU does not save the queue of virtio-pmem"
    return ""


def _kept(disk: Disk, folder: Path) -> Path:
    return folder / f"{disk.serial}.{disk.format}"


def _keep_disk(disk: Disk, folder: Path) -> None:
    """Copy what the guest has written; an empty disk must still be one."""
    if disk.format == "raw":
        if disk.path.stat().st_blocks:
            raise StateError(f"something wrote to the disk {disk.serial} during the boot")
        return
    shutil.copyfile(disk.path, _kept(disk, folder))


def _with_kept_disk(disk: Disk, folder: Path) -> Disk:
    """The disk as it was at the snapshot, as a copy beside the fresh one, which a boot may yet
    need. Raises `OSError`."""
    if disk.readonly or disk.format == "raw":
        return disk
    path = disk.path.with_name(f"{disk.path.stem}-restored{disk.path.suffix}")
    shutil.copyfile(_kept(disk, folder), path)
    return replace(disk, path=path)
