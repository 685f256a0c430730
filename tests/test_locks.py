"""Reading a guest's locks: what is kept, and what is said where something cannot be had."""

from __future__ import annotations

import asyncio
import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from lab import locks, model
from lab.guest import Down, Exited, Guest, TimedOut
from lab.lockgraph import stored
from lab.lockgraph.keys import KeyHome
from lab.model import LockFiles, MachineEnd
from tests.locks import BOOTS, DATA, HASHED

GONE = Down(end=MachineEnd.PANICKED, detail="planted")


def exited(stdout: bytes = b"", status: int = 0, stderr: bytes = b"", cut: bool = False) -> Exited:
    return Exited(status=status, stdout=stdout, stderr=stderr, duration_s=0.1, truncated=cut)


class ProcGuest:
    """Answers like a guest whose /proc has the files of a folder, but for what is planted."""

    def __init__(self, folder: Path, **planted: Exited | TimedOut | Down) -> None:
        self.folder, self.planted = folder, planted
        self.asked: list[tuple[str, ...]] = []

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        limit_bytes: int = 0,
    ) -> Exited | TimedOut | Down:
        assert timeout_s > 0
        self.asked.append((*argv, stdin.decode()))
        name = argv[-1].removeprefix("/proc/")
        if name in self.planted:
            return self.planted[name]
        if argv[0] == "/bin/sed":
            return exited(b"ffffffff81000000 T _stext\n")
        if argv[0] == "/usr/bin/tee":
            return exited(stdin)
        path = self.folder / name
        if not path.is_file():
            said = f"/bin/cat: {argv[-1]}: No such file or directory\n"
            return exited(status=1, stderr=said.encode())
        return exited(path.read_bytes())


def collected(guest: ProcGuest, folder: Path, vmlinux: str = "/no/vmlinux") -> LockFiles:
    return asyncio.run(locks.collect(cast(Guest, guest), Path(vmlinux), folder))


def test_all_four_files_are_kept_and_named(tmp_path: Path) -> None:
    kept = collected(ProcGuest(DATA / HASHED), tmp_path)
    assert kept.missing == "", "hashed keys need no symbols"
    assert kept.alive is True
    assert kept.full == ()
    assert kept.placed == 0
    for name in stored.FILES:
        packed = tmp_path / "locks" / f"{name}.gz"
        assert f"locks/{name}.gz" in kept.files
        assert gzip.decompress(packed.read_bytes()) == (DATA / HASHED / name).read_bytes()
    assert stored.read(tmp_path).classes, "a trial's folder is read as it is written"


@pytest.mark.fake
@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils are not installed")
def test_a_kernel_without_symbols_is_said(tmp_path: Path) -> None:
    kept = collected(ProcGuest(DATA / BOOTS[0]), tmp_path)
    assert "nm" in kept.missing
    assert len(kept.files) == 5
    raw = gzip.decompress((tmp_path / "locks/keys.json.gz").read_bytes())
    assert model.decode(raw, tuple[KeyHome, ...]) == ()


@pytest.mark.parametrize(
    ("planted", "missing", "files"),
    [
        ({"lockdep": GONE}, "the machine ended while its locks were read (panicked)", 0),
        ({"lock_stat": GONE}, "the machine ended while", 0),
        ({"lockdep": exited(status=1, stderr=b"no lockdep\n")}, "no lockdep", 0),
        ({"lock_stat": exited(status=1)}, "no /proc/lock_stat", 4),
        ({"lockdep_chains": exited(b"all lock chains:\n", cut=True)}, "larger than 64 MiB", 4),
        (
            {"lockdep_chains": TimedOut(stdout=b"", stderr=b"", duration_s=9.0)},
            "could not be read in 120 s",
            4,
        ),
        ({"lockdep_stats": exited(b"not this\n")}, "not the text of /proc/lockdep_stats", 5),
    ],
)
def test_what_cannot_be_had_is_said(
    planted: dict[str, Exited | TimedOut | Down], missing: str, files: int, tmp_path: Path
) -> None:
    kept = collected(ProcGuest(DATA / HASHED, **planted), tmp_path)
    assert missing in kept.missing
    assert len(kept.files) == files
    assert all((tmp_path / name).is_file() for name in kept.files)


def test_a_dead_lockdep_and_full_tables_are_in_the_record(tmp_path: Path) -> None:
    text = (DATA / HASHED / "lockdep_stats").read_text()
    text = text.replace("debug_locks:                             1", "debug_locks:            0")
    rows = text.splitlines()
    index = next(n for n, row in enumerate(rows) if "dependency chains:" in row)
    rows[index] = " dependency chains:                  262143 [max: 262144]"
    stats = exited("\n".join(rows).encode())
    kept = collected(ProcGuest(DATA / HASHED, lockdep_stats=stats), tmp_path)
    assert kept.alive is False
    assert kept.full == ("dependency chains: 262143 of 262144",)


def test_contention_is_counted_from_the_first_case_on() -> None:
    guest = ProcGuest(DATA / HASHED)
    asyncio.run(locks.start(cast(Guest, guest)))
    assert guest.asked == [
        ("/usr/bin/tee", "/proc/sys/kernel/lock_stat", "1\n"),
        ("/usr/bin/tee", "/proc/lock_stat", "0\n"),
    ]
