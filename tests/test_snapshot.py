"""The shelf of booted machines: what decides a key, what is not whole, what a restore owes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import image, initramfs, machine, model, snapshot, trial
from lab.guest import Exited
from lab.machine import Disk, MachineSpec, Timeouts
from lab.model import Accelerator, MachineEnd, RootImage, Side
from lab.rig import Rig
from lab.snapshot import Shelf
from lab.store import Cache, sha256_file
from tests import records
from tests.fakeqemu import build_agent, install

TCG = Accelerator(name="tcg", cpu="Nehalem", boot_s=5.0)


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_agent(tmp_path_factory.mktemp("agent"))


@dataclasses.dataclass(slots=True)
class Bench:
    """A shelf and machines for it, whose QEMU is the stand-in."""

    folder: Path
    agent: Path
    notes: list[str] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)
    lives: int = 0

    @property
    def shelf(self) -> Shelf:
        return Shelf(Cache(root=self.folder / "cache"))

    def spec(self, mode: str = "ok", **changes: Any) -> MachineSpec:
        kernel = self.folder / f"kernel-{mode.replace(' ', '-')}"
        if not kernel.exists():
            kernel.write_text(mode)
        disks = self.folder / f"disks-{self.lives}"
        disks.mkdir(exist_ok=True)
        (disks / "root.qcow2").write_text("of a fresh disk")
        (disks / "scratch.raw").touch()
        os.truncate(disks / "scratch.raw", 1 << 20)
        spec = MachineSpec(
            arch="x86_64",
            kernel=kernel,
            initramfs=self.agent,
            disks=(
                Disk(
                    path=disks / "root.qcow2",
                    format="qcow2",
                    readonly=False,
                    serial="root",
                    origin="root 1",
                ),
                Disk(
                    path=disks / "scratch.raw",
                    format="raw",
                    readonly=False,
                    serial="scratch",
                    origin="empty",
                ),
            ),
            memory_bytes=1 << 30,
            cpus=2,
            accelerator=TCG,
            timeouts=Timeouts(boot_s=10, silence_s=20, wall_s=60),
        )
        return dataclasses.replace(spec, **changes)

    def live(
        self, spec: MachineSpec, *, restore: bool = True, save: bool = False, write: str = ""
    ) -> tuple[machine.Machine, str]:
        """One machine's life: saved if asked for; its end, and what `save` said."""
        self.lives += 1
        folder = self.folder / f"trial-{self.lives}"
        said = ""

        async def main() -> machine.Machine:
            nonlocal said
            async with self.shelf.machine(
                spec,
                folder,
                restore=restore,
                note=self.notes.append,
                on_line=lambda number, text: self.lines.append(text),
            ) as box:
                if box.guest is not None:
                    if write:
                        spec.disks[0].path.write_text(write)
                    if save:
                        said = await self.shelf.save(box, spec, folder)
                    answer = await box.guest.run(["echo", "hi"], timeout_s=20)
                    assert isinstance(answer, Exited) and answer.stdout == b"hi\n"
            return box

        return asyncio.run(main()), said

    @property
    def only(self) -> Path:
        """The folder of the one snapshot there is."""
        (found,) = (self.folder / "cache" / "snapshots").iterdir()
        return found


@pytest.fixture
def bench(tmp_path: Path, agent: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    install(tmp_path / "bin", monkeypatch)
    yield Bench(folder=tmp_path, agent=agent)


# --- keys --------------------------------------------------------------------------------------


@pytest.mark.fake
@pytest.mark.parametrize(
    "change",
    [
        {"memory_bytes": 2 << 30},
        {"cpus": 1},
        {"append": "quiet"},
        {"accelerator": Accelerator(name="tcg", cpu="max", boot_s=5.0)},
        {"accelerator": Accelerator(name="kvm", cpu="Nehalem", boot_s=5.0)},
        {"disks": ()},
    ],
)
def test_whatever_decides_the_state_is_in_the_key(bench: Bench, change: dict[str, Any]) -> None:
    assert bench.shelf.key(bench.spec()) != bench.shelf.key(bench.spec(**change))


@pytest.mark.fake
def test_a_key_does_not_know_where_things_lie(bench: Bench) -> None:
    before = bench.shelf.key(bench.spec())
    bench.lives += 1  # disks in another folder
    slower = Accelerator(name="tcg", cpu="Nehalem", boot_s=50.0)
    assert bench.shelf.key(bench.spec(accelerator=slower)) == before
    moved = bench.folder / "moved"
    moved.write_text("ok")
    assert bench.shelf.key(bench.spec(kernel=moved)) == before


@pytest.mark.fake
def test_the_content_of_kernel_and_initramfs_and_qemu_is_in_the_key(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bench.shelf.key(bench.spec())
    assert bench.shelf.key(bench.spec("silent")) != before
    other = bench.folder / "initramfs"
    other.write_text("other")
    assert bench.shelf.key(bench.spec(initramfs=other)) != before
    (bench.folder / "elsewhere").mkdir()
    install(bench.folder / "elsewhere" / "bin", monkeypatch)
    assert bench.shelf.key(bench.spec()) != before


@pytest.mark.fake
def test_a_disk_that_may_hold_anything_has_no_snapshot(bench: Bench) -> None:
    spec = bench.spec()
    spec = dataclasses.replace(
        spec, disks=(dataclasses.replace(spec.disks[0], origin=""), spec.disks[1])
    )
    assert bench.shelf.key(spec) is None and not bench.shelf.has(spec)
    box, said = bench.live(spec, save=True)
    assert "may hold anything" in said and box.end is MachineEnd.POWERED_OFF


@pytest.mark.fake
def test_persistent_memory_has_no_snapshot(bench: Bench) -> None:
    spec = bench.spec()
    pmem = dataclasses.replace(spec.disks[0], pmem_bytes=1 << 20)
    spec = dataclasses.replace(spec, disks=(pmem, *spec.disks[1:]))
    assert bench.shelf.key(spec) is None and not bench.shelf.has(spec)


# --- a life ------------------------------------------------------------------------------------


@pytest.mark.fake
def test_a_machine_is_saved_goes_on_and_is_restored(bench: Bench) -> None:
    spec = bench.spec()
    assert not bench.shelf.has(spec)
    box, said = bench.live(spec, save=True, write="what the boot wrote")
    assert (said, box.restored, box.end) == ("", False, MachineEnd.POWERED_OFF)
    bench.lines.clear()
    spec = bench.spec()
    assert bench.shelf.has(spec)
    box, _ = bench.live(spec)
    assert (box.restored, box.end, box.detail) == (True, MachineEnd.POWERED_OFF, "")
    assert bench.notes == []
    assert "[    0.1] Linux version fake" not in bench.lines
    folder = bench.folder / "trial-2"
    assert "Linux version fake" in (folder / "boot.log").read_text()
    assert (folder / "console.log").read_text().startswith("lab: restored from a snapshot")
    # The root disk is the one of that moment, in a copy; the fresh one was not touched.
    restored = spec.disks[0].path.with_name("root-restored.qcow2")
    assert restored.read_text() == "what the boot wrote"
    assert spec.disks[0].path.read_text() == "of a fresh disk"
    assert str(restored) in " ".join(box.argv)


@pytest.mark.fake
def test_who_wants_a_boot_gets_one(bench: Bench) -> None:
    bench.live(bench.spec(), save=True)
    box, _ = bench.live(bench.spec(), restore=False)
    assert not box.restored and not bench.notes


@pytest.mark.fake
@pytest.mark.parametrize("name", ["state", "root.qcow2", "boot.log"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_what_is_not_whole_is_thrown_away_and_the_machine_boots(
    bench: Bench, name: str, damage: str
) -> None:
    bench.live(bench.spec(), save=True)
    path = bench.only / name
    match damage:
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "changed":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        case "gone":
            path.unlink()
    box, _ = bench.live(bench.spec())
    assert not box.restored and box.end is MachineEnd.POWERED_OFF
    (note,) = bench.notes
    assert note.startswith("booting, because the snapshot of this kernel cannot be restored")
    assert not bench.shelf.has(bench.spec())
    assert "[    0.1] Linux version fake" in bench.lines


@pytest.mark.fake
def test_a_record_that_is_half_written_is_none(bench: Bench) -> None:
    bench.live(bench.spec(), save=True)
    record = bench.only / "snapshot.json"
    record.write_bytes(record.read_bytes()[:50])
    assert not bench.shelf.has(bench.spec())


@pytest.mark.fake
def test_a_state_that_this_qemu_does_not_take(bench: Bench) -> None:
    bench.live(bench.spec(), save=True)
    (bench.only / "state").write_text("of another QEMU")
    record = model.decode((bench.only / "snapshot.json").read_bytes(), snapshot.Snapshot)
    files = {**record.files, "state": sha256_file(bench.only / "state")}
    (bench.only / "snapshot.json").write_bytes(
        model.encode(dataclasses.replace(record, files=files))
    )
    box, _ = bench.live(bench.spec())
    assert not box.restored
    assert "load of migration failed" in bench.notes[0]


@pytest.mark.fake
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stale", "a Heartbeat from before the snapshot"),
        ("other", "a Resumed from before the snapshot"),
        ("mute", "no hello within"),
    ],
)
def test_an_answer_that_is_not_this_machines_own_is_never_taken(
    bench: Bench, word: str, reason: str
) -> None:
    spec = bench.spec(f"ok {word}", timeouts=Timeouts(boot_s=3, silence_s=20, wall_s=60))
    bench.live(spec, save=True)
    box, _ = bench.live(spec)
    assert not box.restored and box.end is MachineEnd.POWERED_OFF
    assert reason in bench.notes[0]


@pytest.mark.fake
def test_a_scratch_disk_that_was_written_to_is_no_fresh_one(bench: Bench) -> None:
    spec = bench.spec()
    spec.disks[1].path.write_bytes(b"x" * (1 << 20))
    _, said = bench.live(spec, save=True)
    assert "something wrote to the disk scratch" in said
    assert not bench.shelf.has(spec)


@pytest.mark.fake
def test_the_shelf_is_bounded(bench: Bench) -> None:
    cache = Cache(root=bench.folder / "cache")
    for number in range(3):
        bench.live(bench.spec(f"ok {number}"), save=True)
        os.utime(cache.sub("snapshots") / str(bench.shelf.key(bench.spec(f"ok {number}"))), (9, 9))
    Shelf(cache, limit_bytes=1)._trim()
    assert list(cache.sub("snapshots").iterdir()) == []


@pytest.mark.fake
def test_a_snapshot_goes_with_its_kernel(bench: Bench) -> None:
    builds = bench.folder / "cache" / "builds" / "0123"
    builds.mkdir(parents=True)
    (builds / "image").write_text("ok")
    bench.live(bench.spec(kernel=builds / "image"), save=True)
    cache = Cache(root=bench.folder / "cache")
    day_s = 86400.0
    assert cache.reclaim(older_than_s=day_s, everything=False, dry_run=False) == {}
    old = time.time() - 2 * day_s
    os.utime(builds, (old, old))
    planned = cache.reclaim(older_than_s=day_s, everything=False, dry_run=True)
    assert set(planned) == {str(builds), str(bench.only)}
    cache.reclaim(older_than_s=day_s, everything=False, dry_run=False)
    assert not list(cache.sub("snapshots").iterdir())


# --- a real kernel -----------------------------------------------------------------------------

_ASK = """
date +%s.%N
cut -d' ' -f1 /proc/uptime
cat /proc/sys/kernel/random/uuid
od -An -N16 -tx1 /dev/urandom
cat /root/kept
echo trial >/root/mine
cat /sys/block/vdb/size
od -An -N65536 -tx1 /dev/disk/by-lab/scratch | sort -u
echo dirt >/dev/disk/by-lab/scratch
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a restored guest said about itself."""

    restored: bool
    off_s: float  # its clock against ours
    uptime_s: float
    random: tuple[str, str]
    disks: tuple[str, ...]


@pytest.mark.vm
@pytest.mark.timeout(400)
def test_real_machines_from_one_snapshot_are_right_and_differ(
    boot_kernel: Path, tmp_path: Path
) -> None:
    """Clock, entropy and disks of two restores of one snapshot, and of the machine it is of."""
    home = Cache(root=Path.home() / ".cache" / "kernel-patch-lab")
    root = image.root_image("x86_64", cache=home, emit=lambda event: None)
    cache = Cache(root=tmp_path / "cache")
    rig = _rig(boot_kernel, root, cache)
    shelf = Shelf(cache)
    notes: list[str] = []

    async def main() -> list[Seen]:
        seen: list[Seen] = []
        for number in range(3):
            folder = tmp_path / f"trial-{number}"
            console = trial.Console()
            async with rig.machine(
                folder, shelf=shelf, restore=True, note=notes.append, on_line=console.on_line
            ) as box:
                assert box.guest is not None, box.detail
                if number == 0:
                    made = await box.guest.push("/root/kept", b"kept")
                    assert made is None
                    health = await trial.probe(box.guest, console, "boot")
                    assert isinstance(health, trial.Health) and trial.healthy(health, console)
                    assert await rig.keep(box, shelf, folder) == ""
                before = time.time()
                answer = await box.guest.run(["/bin/sh", "-c", _ASK], timeout_s=60)
                assert isinstance(answer, Exited) and answer.status == 0, answer
            assert (box.end, box.detail) == (MachineEnd.POWERED_OFF, "")
            assert not list(folder.glob("*.qcow2")) and not list(folder.glob("*.raw"))
            clock, uptime, uuid, noise, *disks = answer.stdout.decode().splitlines()
            seen.append(
                Seen(
                    restored=box.restored,
                    # The command was under way for at most so long.
                    off_s=max(before - float(clock), float(clock) - time.time(), 0.0),
                    uptime_s=float(uptime),
                    random=(uuid, noise),
                    disks=tuple(disks),
                )
            )
        return seen

    seen = asyncio.run(main())
    assert notes == []
    assert [one.restored for one in seen] == [False, True, True]
    assert all(one.off_s < 0.5 for one in seen), seen
    # Monotonic time goes on from the snapshot: no leap by the time that lay between.
    assert all(0 <= one.uptime_s - seen[0].uptime_s + 30 < 60 for one in seen), seen
    assert len({one.random[0] for one in seen}) == len({one.random[1] for one in seen}) == 3
    # "kept", 2 GiB, and nothing but zeros: the dirt of the one before is not there.
    wanted = ("kept" + str((2 << 30) // 512), " " + " ".join(["00"] * 16), "*")
    assert all(sorted(one.disks) == sorted(wanted) for one in seen), seen


def _rig(kernel_image: Path, root: RootImage, cache: Cache) -> Rig:
    kernel = dataclasses.replace(records.kernel(Side.BASE), image=kernel_image)
    return Rig(
        kernel=kernel,
        initramfs=initramfs.initramfs("x86_64", cache=cache, emit=lambda event: None),
        image=root,
        accelerator=TCG,
        timeouts=Timeouts(boot_s=100, silence_s=100, wall_s=300),
        memory_bytes=1 << 30,
        cpus=2,
    )
