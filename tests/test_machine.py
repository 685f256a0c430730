"""QEMU's argv, golden; a machine's life and end against a stand-in for QEMU, and for real."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import io
import os
import pickle
import shlex
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lab import initramfs, machine
from lab.arch import ARCHS
from lab.console import Console
from lab.guest import Down, Exited, Refused, TimedOut
from lab.machine import Disk, MachineSpec, Timeouts, dump
from lab.model import Accelerator, LabFault, MachineEnd, UserError
from lab.store import Cache
from tests.fakeqemu import build_agent, install

GOLDEN = Path(__file__).parent / "data" / "machine"
TCG = Accelerator(name="tcg", cpu="Nehalem", boot_s=5.0)


def a_spec(arch: str = "x86_64", accelerator: Accelerator = TCG) -> MachineSpec:
    return MachineSpec(
        arch=arch,
        kernel=Path("/k/image"),
        initramfs=Path("/i/initramfs.cpio.gz"),
        disks=(
            Disk(path=Path("/d/a,b.qcow2"), format="qcow2", readonly=False, serial="root"),
            Disk(path=Path("/d/s.raw"), format="raw", readonly=True, serial="scratch-1"),
        ),
        memory_bytes=1 << 30,
        cpus=2,
        accelerator=accelerator,
        timeouts=Timeouts(boot_s=30, silence_s=30, wall_s=60),
        append="lab.root=root",
    )


# --- pure --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", sorted(ARCHS))
@pytest.mark.parametrize(("accel", "cpu"), [("tcg", "max"), ("kvm", "host")])
def test_argv(arch: str, accel: str, cpu: str) -> None:
    spec = a_spec(arch, Accelerator(name=accel, cpu=cpu, boot_s=1.0))
    argv = machine.qemu_argv(spec, control_fd=10, console_fd=11, qmp_fd=12)
    golden = GOLDEN / f"argv-{arch}-{accel}.txt"
    text = "\n".join(argv) + "\n"
    if os.environ.get("LAB_GOLDEN") == "write":
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_disk_is_slowed_down() -> None:
    slow = dataclasses.replace(a_spec().disks[0], iops=50)
    spec = dataclasses.replace(a_spec(), disks=(slow, *a_spec().disks[1:]))
    argv = machine.qemu_argv(spec, control_fd=10, console_fd=11, qmp_fd=12)
    drives = [word for word in argv if word.startswith("if=none")]
    assert drives[0].endswith(",throttling.iops-total=50")
    assert "throttling" not in drives[1]


def test_persistent_memory_lies_beyond_the_ram() -> None:
    pmem = Disk(
        path=Path("/d/a,b.raw"), format="raw", readonly=False, serial="pmem", pmem_bytes=256 << 20
    )
    spec = dataclasses.replace(a_spec(), memory_bytes=1 << 30, disks=(pmem, *a_spec().disks))
    argv = machine.qemu_argv(spec, control_fd=10, console_fd=11, qmp_fd=12)
    assert argv[argv.index("-m") + 1] == "1024M,maxmem=2304M"
    backend = "memory-backend-file,id=pmem0,mem-path=/d/a,,b.raw,size=268435456,share=on"
    assert argv[argv.index("-object") + 1] == backend
    assert "virtio-pmem-pci,memdev=pmem0" in argv
    assert not any("serial=pmem" in word for word in argv), "it is no disk"


def test_gdb_is_waited_for_at_a_socket() -> None:
    spec = dataclasses.replace(a_spec(), gdb=Path("/private/gdb,sock"))
    argv = machine.qemu_argv(spec, control_fd=10, console_fd=11, qmp_fd=12)
    assert "socket,id=gdb,path=/private/gdb,,sock,server=on,wait=off" in argv
    assert argv[-3:] == ("-gdb", "chardev:gdb", "-S")


@pytest.mark.parametrize("serial", ["", "a b", "x" * 21, "a,b", "../x", "-a"])
def test_a_serial_that_qemu_or_the_guest_would_misread(serial: str) -> None:
    disk = Disk(path=Path("/d"), format="raw", readonly=False, serial=serial)
    with pytest.raises(LabFault, match="serial"):
        machine.qemu_argv(
            dataclasses.replace(a_spec(), disks=(disk,)), control_fd=1, console_fd=2, qmp_fd=3
        )


def test_console_lines_are_those_of_the_log(tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []
    console = Console(tmp_path / "log", on_line=lambda *line: seen.append(line))
    for chunk in (b"one\r", b"\ntw", b"o\r\n\r\nthree \xff\r\nlast"):
        console.feed(chunk)
    console.close()
    assert seen == [(1, "one"), (2, "two"), (3, ""), (4, "three \ufffd"), (5, "last")]
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n\nthree \xff\nlast"


def flattened(*records: tuple[int, bytes], end: bool = True) -> io.BytesIO:
    """A dump as QEMU sends it down a pipe."""
    raw = b"makedumpfile".ljust(4096, b"\0")
    for offset, data in records:
        raw += struct.pack(">qq", offset, len(data)) + data
    return io.BytesIO(raw + (struct.pack(">qq", -1, -1) if end else b""))


def test_a_flattened_dump_is_put_together() -> None:
    target = io.BytesIO()
    dump.join(flattened((4, b"later"), (0, b"head"), (20, b"tail")), target, 100)
    assert target.getvalue() == b"headlater" + b"\0" * 11 + b"tail"


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (io.BytesIO(b""), "no dump"),
        (io.BytesIO(b"x" * 5000), "no dump"),
        (flattened((0, b"head"), end=False), "cut off"),
        (io.BytesIO(flattened((0, b"head")).getvalue()[:4114]), "cut off"),
        (flattened((0, b"x" * 60), (0, b"x" * 60)), "larger"),
        (flattened((1 << 40, b"x")), "larger"),
        (flattened((-8, b"x")), "larger"),
    ],
)
def test_a_dump_that_is_none_or_has_no_end(stream: io.BytesIO, reason: str) -> None:
    with pytest.raises(dump.DumpError, match=reason):
        dump.join(stream, io.BytesIO(), 100)


def test_an_elf_dump_is_sparse_and_bounded(tmp_path: Path) -> None:
    content = b"\x7fELF".ljust(4096, b"x") + b"\0" * (1 << 20) + b"end"
    path = tmp_path / "memory.elf"
    with path.open("wb") as target:
        dump.copy_sparse(io.BytesIO(content), target, 2 << 20)
    assert path.read_bytes() == content and path.stat().st_blocks * 512 < 100_000
    for raw, reason in ((b"", "no dump"), (b"x" * 99, "no dump"), (content, "larger")):
        with pytest.raises(dump.DumpError, match=reason):
            dump.copy_sparse(io.BytesIO(raw), io.BytesIO(), 1 << 20)


def test_a_log_beyond_its_limit_is_cut_but_lines_go_on(tmp_path: Path) -> None:
    seen: list[str] = []
    console = Console(
        tmp_path / "log", on_line=lambda number, text: seen.append(text), limit_bytes=100
    )
    for number in range(50):
        console.feed(b"line %d\n" % number)
    console.feed(b"[ 1.0] Kernel panic - not syncing: late\n")
    console.close()
    log = (tmp_path / "log").read_text()
    assert len(seen) == 51 and seen[49] == "line 49"
    assert console.panic == "Kernel panic - not syncing: late"
    assert len(log) < 200 and "lab: log cut here, after 100 bytes" in log


def test_a_line_without_end_does_not_fill_memory(tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []
    console = Console(tmp_path / "log", on_line=lambda *line: seen.append(line))
    for _ in range(100):
        console.feed(b"x" * 65536)
    console.feed(b"\nnext\n")
    console.close()
    assert [number for number, _ in seen] == [1, 2]
    assert len(seen[0][1]) == 8192 and seen[1][1] == "next"


# --- a fake QEMU -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def fake_spec(
    tmp_path: Path, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., MachineSpec]]:
    """A specification whose QEMU is the stand-in, in the mode that is asked for."""
    install(tmp_path / "bin", monkeypatch)

    def make(
        mode: str, *, boot_s: float = 20, silence_s: float = 20, wall_s: float = 60
    ) -> MachineSpec:
        kernel = tmp_path / "kernel"
        kernel.write_text(mode)
        return dataclasses.replace(
            a_spec(),
            kernel=kernel,
            initramfs=agent,
            disks=(),
            timeouts=Timeouts(boot_s=boot_s, silence_s=silence_s, wall_s=wall_s),
        )

    yield make


Answer = Exited | TimedOut | Down | None


def live(
    spec: MachineSpec, folder: Path, *words: str, timeout_s: float = 30
) -> tuple[machine.Machine, Answer]:
    """Boot, run one command if the machine is up, and give both ends."""

    async def main() -> tuple[machine.Machine, Answer]:
        answer: Answer = None
        async with machine.boot(spec, folder) as box:
            if box.guest is not None and words:
                answer = await box.guest.run(words, timeout_s=timeout_s)
        return box, answer

    return asyncio.run(main())


@pytest.mark.fake
def test_a_machine_serves_and_powers_off(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path
) -> None:
    box, answer = live(fake_spec("ok"), tmp_path / "t", "echo", "hi")
    assert isinstance(answer, Exited) and answer.stdout == b"hi\n"
    assert (box.end, box.detail) == (MachineEnd.POWERED_OFF, "")
    assert box.boot_s is not None and box.boot_s > 0
    assert "Linux version fake\n" in (tmp_path / "t" / "console.log").read_text()


@pytest.mark.fake
def test_a_qemu_that_dies_is_quoted(fake_spec: Callable[..., MachineSpec], tmp_path: Path) -> None:
    box, _ = live(fake_spec("die"), tmp_path)
    assert box.guest is None and box.boot_s is None
    assert box.end is MachineEnd.QEMU_DIED
    assert "status 3" in box.detail and "could not set up the board" in box.detail


@pytest.mark.fake
def test_a_boot_that_hangs_is_examined(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path
) -> None:
    started = time.monotonic()
    box, _ = live(fake_spec("hang", boot_s=4), tmp_path)
    assert box.guest is None
    assert (box.end, box.detail) == (MachineEnd.HUNG_BOOT, "no hello within 4 s")
    assert time.monotonic() - started < 30
    hang = (tmp_path / "hang.txt").read_text()
    assert '"running": true' in hang and "CPU#0 answered info registers -a" in hang
    console = (tmp_path / "console.log").read_text()
    assert console.count("fake: break") == 3 and "fake: NMI" in console
    assert "lab: no hello within 4 s" in console


@pytest.mark.fake
@pytest.mark.parametrize("mode", ["silent", "deaf"])
def test_a_machine_that_falls_silent(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path, mode: str
) -> None:
    box, answer = live(fake_spec(mode, silence_s=1.5), tmp_path, "sleep", "100", timeout_s=100)
    assert box.end is MachineEnd.HUNG_SILENT and "silent for" in box.detail
    assert isinstance(answer, Down) and answer.end is MachineEnd.HUNG_SILENT


@pytest.mark.fake
def test_a_machine_has_an_end_in_any_case(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path
) -> None:
    box, answer = live(fake_spec("ok", wall_s=2), tmp_path, "sleep", "100", timeout_s=100)
    assert box.end is MachineEnd.WALL_CLOCK
    assert isinstance(answer, Down) and answer.end is MachineEnd.WALL_CLOCK


@pytest.mark.fake
def test_garbage_on_the_port_is_lost(fake_spec: Callable[..., MachineSpec], tmp_path: Path) -> None:
    box, _ = live(fake_spec("garbage"), tmp_path)
    assert box.end is MachineEnd.LOST and "no frame begins with" in box.detail


@pytest.mark.fake
def test_a_root_that_cannot_be_entered_is_said(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path
) -> None:
    box, _ = live(fake_spec("failed-root"), tmp_path)
    assert box.guest is None
    assert box.end is MachineEnd.LOST and "cannot mount the root disk" in box.detail


@pytest.mark.fake
def test_a_panic_while_it_boots_without_pvpanic(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path
) -> None:
    box, _ = live(fake_spec("panic-plain"), tmp_path)
    assert box.guest is None
    assert box.end is MachineEnd.PANICKED
    assert "planted by a test" in box.detail and "no pvpanic" in box.detail


@pytest.mark.fake
def test_a_panic_under_a_command(fake_spec: Callable[..., MachineSpec], tmp_path: Path) -> None:
    lines: list[str] = []

    async def main() -> tuple[machine.Machine, Answer]:
        async with machine.boot(
            fake_spec("panic"), tmp_path, on_line=lambda number, text: lines.append(text)
        ) as box:
            assert box.guest is not None
            task = asyncio.create_task(box.guest.run(["sleep", "100"], timeout_s=100))
            await asyncio.sleep(0.3)
            await box.type_on_console(b"x")
            return box, await asyncio.wait_for(task, 20)

    box, answer = asyncio.run(main())
    assert box.end is MachineEnd.PANICKED and "planted by a test" in box.detail
    assert isinstance(answer, Down) and answer.end is MachineEnd.PANICKED
    assert lines[-1] == "[    1.6] ---[ after pvpanic ]---"


@pytest.mark.fake
def test_a_flood_on_the_console_is_drained_and_cut(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path
) -> None:
    count = 0

    def on_line(number: int, text: str) -> None:
        nonlocal count
        count += 1

    async def main() -> machine.Machine:
        spec = fake_spec("flood 200", boot_s=60)
        async with machine.boot(spec, tmp_path, on_line=on_line) as box:
            assert box.guest is not None
        return box

    box = asyncio.run(main())
    assert box.end is MachineEnd.POWERED_OFF
    assert count > 2_000_000
    log = tmp_path / "console.log"
    assert log.stat().st_size < 70_000_000
    assert b"lab: log cut here" in log.read_bytes()[-200:]


@pytest.mark.fake
@pytest.mark.timeout(600)
def test_a_gigabyte_on_the_console_costs_no_memory(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path
) -> None:
    """A lab of its own, so that its peak is known."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import asyncio, pickle, pathlib, resource
from lab import machine
spec = pickle.loads(pathlib.Path({str(tmp_path / "spec")!r}).read_bytes())
async def main():
    lines = 0
    def count(number, text):
        nonlocal lines
        lines += 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with machine.boot(spec, pathlib.Path({str(tmp_path / "t")!r}), on_line=count) as box:
        assert box.guest is not None
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, lines)
asyncio.run(main())
""")
    spec = fake_spec("flood 1000", boot_s=500, wall_s=550)
    (tmp_path / "spec").write_bytes(pickle.dumps(spec))
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=590, check=True
    )
    grown_kib, lines = map(int, done.stdout.split())
    assert grown_kib < 32 << 10
    assert lines > 10_000_000
    assert (tmp_path / "t" / "console.log").stat().st_size < 70_000_000


@pytest.mark.fake
@pytest.mark.parametrize("mode", ["off-early", "off-between", "off-half"])
def test_a_machine_that_powers_itself_off_at_an_odd_moment(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path, mode: str
) -> None:
    box, answer = live(fake_spec(mode), tmp_path, "sleep", "100", timeout_s=100)
    assert box.end is MachineEnd.POWERED_OFF
    assert box.detail == "the guest powered itself off"
    if mode == "off-early":
        assert box.guest is None and answer is None
    else:
        assert isinstance(answer, Down) and answer.end is MachineEnd.POWERED_OFF


@pytest.mark.fake
def test_a_full_disk_of_the_host_is_a_fault(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "console.log").symlink_to("/dev/full")
    with pytest.raises(LabFault, match="no space left"):
        live(fake_spec("ok"), tmp_path / "t", "sleep", "100")


@pytest.mark.fake
def test_a_missing_qemu_names_its_package(
    fake_spec: Callable[..., MachineSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = fake_spec("ok")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        live(spec, tmp_path / "t")
    assert "qemu-system-x86" in caught.value.hint


@pytest.mark.fake
def test_a_missing_kernel_is_a_fault(fake_spec: Callable[..., MachineSpec], tmp_path: Path) -> None:
    spec = dataclasses.replace(fake_spec("ok"), kernel=tmp_path / "none")
    with pytest.raises(LabFault, match="none"):
        live(spec, tmp_path / "t")


@pytest.mark.fake
@pytest.mark.parametrize("how", ["exception", "cancellation"])
def test_nothing_is_left_when_the_block_is_left(
    fake_spec: Callable[..., MachineSpec],
    tmp_path: Path,
    how: str,
    processes_of: Callable[[str], Sequence[int]],
) -> None:
    async def main() -> None:
        async with machine.boot(fake_spec("ok"), tmp_path / "t") as box:
            assert box.guest is not None
            assert processes_of(str(tmp_path))
            if how == "exception":
                raise KeyError("planted")
            await asyncio.sleep(100)

    async def cancelled() -> None:
        task = asyncio.create_task(main())
        await asyncio.sleep(2)
        task.cancel()
        await task

    with pytest.raises((KeyError, asyncio.CancelledError)):
        asyncio.run(main() if how == "exception" else cancelled())
    assert not processes_of(str(tmp_path))


@pytest.mark.fake
def test_nothing_is_left_when_the_lab_is_killed(
    fake_spec: Callable[..., MachineSpec],
    tmp_path: Path,
    processes_of: Callable[[str], Sequence[int]],
) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"""
import asyncio, pickle, pathlib, sys
from lab import machine
spec = pickle.loads(pathlib.Path({str(tmp_path / "spec")!r}).read_bytes())
async def main():
    async with machine.boot(spec, pathlib.Path({str(tmp_path / "t")!r})) as box:
        task = asyncio.create_task(box.guest.run(["sleep", "1000"], timeout_s=1000))
        await asyncio.sleep(0.5)
        print("up", flush=True)
        await task
asyncio.run(main())
""")
    (tmp_path / "spec").write_bytes(pickle.dumps(fake_spec("ok")))
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        before = processes_of(str(tmp_path / "kernel"))
        assert before
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while processes_of(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_of(str(tmp_path))


# --- a real kernel -----------------------------------------------------------------------------


@pytest.fixture
def real_spec(boot_kernel: Path, tmp_path: Path) -> MachineSpec:
    cache = Cache(root=tmp_path / "cache")
    return dataclasses.replace(
        a_spec(),
        kernel=boot_kernel,
        initramfs=initramfs.initramfs("x86_64", cache=cache, emit=lambda event: None),
        disks=(),
        append="",
        timeouts=Timeouts(boot_s=60, silence_s=30, wall_s=110),
    )


@pytest.mark.vm
def test_a_real_kernel_boots_and_answers(real_spec: MachineSpec, tmp_path: Path) -> None:
    content = os.urandom(300_000)

    async def main() -> machine.Machine:
        disk = tmp_path / "scratch.raw"
        with disk.open("wb") as stream:
            stream.truncate(16 << 20)
        scratch = Disk(path=disk, format="raw", readonly=False, serial="scratch")
        spec = dataclasses.replace(real_spec, disks=(scratch,))
        async with machine.boot(spec, tmp_path / "t") as box:
            assert box.guest is not None, box.detail
            assert await box.guest.push("/tmp/file", content) is None
            assert await box.guest.pull("/tmp/file", limit_bytes=1 << 20) == content
            version = await box.guest.pull("/proc/version", limit_bytes=4096)
            assert isinstance(version, bytes) and box.release.encode() in version
            partitions = await box.guest.pull("/proc/partitions", limit_bytes=4096)
            assert isinstance(partitions, bytes) and b"vda" in partitions
            # Opened through its serial: a block device is no regular file.
            refused = await box.guest.pull("/dev/disk/by-lab/scratch", limit_bytes=1)
            assert refused == Refused(errno=errno.EINVAL, text="Invalid argument")
        return box

    box = asyncio.run(main())
    assert (box.end, box.detail) == (MachineEnd.POWERED_OFF, "")


@pytest.mark.vm
def test_a_real_panic_is_told_by_the_machine(real_spec: MachineSpec, tmp_path: Path) -> None:
    async def main() -> tuple[machine.Machine, Answer]:
        async with machine.boot(real_spec, tmp_path) as box:
            assert box.guest is not None, box.detail
            await box.guest.sysrq("c")
            return box, await box.guest.run(["/init"], timeout_s=30)

    box, answer = asyncio.run(main())
    assert box.end is MachineEnd.PANICKED and "sysrq triggered crash" in box.detail
    assert isinstance(answer, Down) and answer.end is MachineEnd.PANICKED


@pytest.mark.vm
@pytest.mark.timeout(300)
def test_a_real_panic_leaves_the_memory_of_its_moment(
    real_spec: MachineSpec, tmp_path: Path
) -> None:
    async def main() -> machine.Machine:
        spec = dataclasses.replace(real_spec, dump=True)
        async with machine.boot(spec, tmp_path) as box:
            assert box.guest is not None, box.detail
            await box.guest.sysrq("c")
            await box.guest.run(["/init"], timeout_s=100)
        return box

    box = asyncio.run(main())
    assert box.end is MachineEnd.PANICKED and "sysrq triggered crash" in box.detail
    assert box.dump == tmp_path / "memory.kdump"
    content = box.dump.read_bytes()
    assert content.startswith(b"KDUMP   ") and box.release.encode() in content[:500]
    assert len(content) < 200 << 20
    # The kernel had its last words all the same.
    assert "Kernel Offset: disabled" in (tmp_path / "console.log").read_text()


@pytest.mark.vm
@pytest.mark.timeout(300)
def test_a_real_machine_waits_for_gdb(real_spec: MachineSpec, tmp_path: Path) -> None:
    """Gdb's protocol in four packets: why it stopped, where it is, go on, and it boots."""
    path = tmp_path / "gdb"

    async def ask(packet: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        with contextlib.closing(writer):
            for words in (b"?", packet):
                writer.write(b"+$%s#%02x" % (words, sum(words) % 256))
            await writer.drain()
            await reader.readuntil(b"#")  # the answer to "?"
            if packet == b"c":
                await asyncio.sleep(1)
                return b""
            return await reader.readuntil(b"#")

    async def main() -> machine.Machine:
        spec = dataclasses.replace(real_spec, gdb=path)
        booting = machine.boot(spec, tmp_path / "t")
        entering = asyncio.create_task(booting.__aenter__())
        while not path.exists():
            await asyncio.sleep(0.05)
        registers = await ask(b"g")
        assert len(registers) > 300 and b"$E" not in registers
        assert (tmp_path / "t" / "console.log").read_bytes() == b"", "it ran before gdb said so"
        await ask(b"c")
        box = await entering
        assert box.guest is not None, box.detail
        await booting.__aexit__(None, None, None)
        return box

    box = asyncio.run(main())
    assert box.end is MachineEnd.POWERED_OFF


@pytest.mark.vm
@pytest.mark.timeout(400)
def test_real_gdb_stops_in_the_kernel(boot_kernel: Path, tmp_path: Path) -> None:
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    program = Path(sys.executable).with_name("lab")
    argv: list[str | Path] = [program, "--quiet", "boot", "--gdb", "--", "uname", "-r"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as lab:
        assert lab.stderr is not None and lab.stdout is not None
        said = ""
        while "target remote" not in said:
            line = lab.stderr.readline()
            assert line, said
            said = line
        typed = shlex.split(said)
        for _ in range(300):
            if Path(typed[-1].removeprefix("target remote ")).exists():
                break
            time.sleep(0.1)
        stops = ["-batch", "-ex", "hbreak start_kernel", "-ex", "continue", "-ex", "backtrace"]
        # Deleted, and the machine let go: it then boots on.
        done = subprocess.run(
            [*typed, *stops, "-ex", "delete", "-ex", "detach"],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert "#0  start_kernel ()" in done.stdout, done.stdout + done.stderr
        assert lab.stdout.read().startswith("6.1")
        assert lab.wait(60) == 0


@pytest.mark.vm
def test_a_real_root_that_is_absent(real_spec: MachineSpec, tmp_path: Path) -> None:
    box, _ = live(dataclasses.replace(real_spec, append="lab.root=nosuch"), tmp_path)
    assert box.guest is None
    assert box.end is MachineEnd.LOST and "cannot find the root disk nosuch" in box.detail


@pytest.mark.vm
def test_a_real_boot_that_hangs_shows_its_registers(real_spec: MachineSpec, tmp_path: Path) -> None:
    # Init is a program that never says hello.
    spec = dataclasses.replace(
        real_spec,
        append="rdinit=/lab/bin/none init=/none root=/dev/vda rootwait",
        timeouts=Timeouts(boot_s=20, silence_s=30, wall_s=110),
    )
    box, _ = live(spec, tmp_path)
    assert box.guest is None and box.end is MachineEnd.HUNG_BOOT
    assert "RIP=" in (tmp_path / "hang.txt").read_text()


@pytest.mark.vm
def test_a_real_hang_is_made_to_talk(real_spec: MachineSpec, tmp_path: Path) -> None:
    """An init that never says hello: the kernel answers sysrq on its serial line."""
    source = tmp_path / "idle.c"
    source.write_text("#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
    program = tmp_path / "idle"
    subprocess.run(["gcc", "-static", "-o", program, source], check=True, timeout=60)
    entries = (
        initramfs.Entry(path="dev", mode=stat.S_IFDIR | 0o755),
        initramfs.Entry(path="dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1)),
        initramfs.Entry(path="init", mode=stat.S_IFREG | 0o755, content=program.read_bytes()),
    )
    archive = tmp_path / "idle.cpio"
    archive.write_bytes(initramfs.archive(entries))
    lines: list[str] = []

    async def main() -> machine.Machine:
        spec = dataclasses.replace(
            real_spec, initramfs=archive, timeouts=Timeouts(boot_s=25, silence_s=30, wall_s=110)
        )
        async with machine.boot(
            spec, tmp_path / "t", on_line=lambda number, text: lines.append(text)
        ) as box:
            assert box.guest is None
        return box

    box = asyncio.run(main())
    assert box.end is MachineEnd.HUNG_BOOT
    console = (tmp_path / "t" / "console.log").read_text()
    asked = console.partition("lab: no hello within 25 s")[2]
    assert "sysrq: Show Blocked State" in asked and "sysrq: Show backtrace of all" in asked
    # What the lab provoked is no finding about the kernel.
    assert not any("sysrq" in line for line in lines)
    # Last comes the NMI, on which it shows where it was and gives up.
    assert "Kernel panic - not syncing: NMI: Not continuing" in asked.partition("sysrq:")[2]
    hang = (tmp_path / "t" / "hang.txt").read_text()
    assert "RIP=" in hang and '"status": "running"' in hang and '"thread-id"' in hang
    assert "--- inject-nmi\nsent" in hang


@pytest.mark.vm
@pytest.mark.parametrize("readonly", [False, True])
def test_a_real_root_disk_is_entered(
    real_spec: MachineSpec, tmp_path: Path, readonly: bool
) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    for name in ("lab", "proc", "sys", "dev", "run", "tmp"):
        (root / name).mkdir()
    (root / "etc").write_text("of the disk\n")
    source = tmp_path / "look.c"
    source.write_text(
        "#include <unistd.h>\n#include <stdio.h>\n"
        'int main(void) { printf("%d %d %d %d\\n", access("/etc", R_OK), access("/lab/bin",'
        ' X_OK), access("/sys/block", R_OK), access("/dev/disk/by-lab/root", F_OK)); }\n'
    )
    subprocess.run(["gcc", "-static", "-o", root / "bin" / "look", source], check=True, timeout=60)
    disk = tmp_path / "root.ext4"
    subprocess.run(
        ["/sbin/mke2fs", "-q", "-t", "ext4", "-d", root, disk, "16M"], check=True, timeout=60
    )
    spec = dataclasses.replace(
        real_spec,
        disks=(Disk(path=disk, format="raw", readonly=readonly, serial="root"),),
        append="lab.root=root",
    )
    box, answer = live(spec, tmp_path / "t", "/bin/look")
    assert isinstance(answer, Exited), (answer, box.detail)
    assert answer.stdout == b"0 0 0 0\n"
    assert box.end is MachineEnd.POWERED_OFF
