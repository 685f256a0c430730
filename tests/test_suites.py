"""Suites: plans, what a kernel lacks for them, and real runs through a guest that is this host."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab import host
from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState, LabFault, MachineEnd, UserError
from lab.rig import PMEM_BYTES
from lab.suites import registry
from lab.suites.boot import Boot
from lab.suites.faultstress import DEFAULT_SCENARIOS, SCENARIOS, Faultstress, judge, read
from lab.suites.protocol import Commands, Needs, PlannedCase, SuiteOptions
from lab.suites.scratch import FILESYSTEMS, Filesystem

GUEST_SOURCES = Path(__file__).parent.parent / "images" / "guest"
END = {"event": "end", "verdict": "pass", "status": 0, "missing": "", "reads": 12, "races": 3}


def said(*events: dict[str, object]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def exited(
    status: int, stdout: bytes = b"", stderr: bytes = b"", truncated: bool = False
) -> Exited:
    return Exited(status=status, stdout=stdout, stderr=stderr, duration_s=1.0, truncated=truncated)


# --- plans -------------------------------------------------------------------------------------


def test_dax_needs_persistent_memory_and_says_so() -> None:
    options = SuiteOptions(filesystems=("ext4", "xfs-dax"), scenarios=("munmap",))
    plain, dax = Faultstress().plan(options)
    assert not plain.pmem
    assert dax.pmem
    assert "FS_DAX" in dax.required
    assert {"XFS_FS", "VIRTIO_PMEM"} <= set(Faultstress().needs(options).symbols)
    assert PMEM_BYTES > 300 << 20, "mkfs.xfs makes nothing smaller"
    with pytest.raises(UserError, match="fio has no file system 'xfs-dax'"):
        registry.find(["fio"])[0].plan(options)


def test_the_registry_is_keyed_by_name() -> None:
    assert all(name == suite.name for name, suite in registry.SUITES.items())
    assert all(suite.one_line for suite in registry.SUITES.values())


def test_find_keeps_the_order_and_drops_repeats() -> None:
    found = registry.find(["faultstress", "boot", "faultstress"])
    assert [suite.name for suite in found] == ["faultstress", "boot"]


def test_find_names_what_is_known() -> None:
    with pytest.raises(UserError, match="'shoes'") as caught:
        registry.find(["shoes"])
    assert "faultstress" in caught.value.hint


def test_cases_are_named_after_their_suite_and_unique() -> None:
    options = SuiteOptions(filesystems=tuple(FILESYSTEMS), scenarios=SCENARIOS)
    cases = [case for suite in registry.SUITES.values() for case in suite.plan(options)]
    assert len({case.name for case in cases}) == len(cases)
    for suite in registry.SUITES.values():
        for case in suite.plan(options):
            assert case.name.startswith(f"{suite.name}/")
            assert case.timeout_s > options.duration_s


def test_faultstress_plans_filesystem_by_filesystem() -> None:
    cases = Faultstress().plan(SuiteOptions(filesystems=("xfs", "tmpfs")))
    assert [case.name for case in cases] == [
        f"faultstress/{filesystem}/{scenario}"
        for filesystem in ("xfs", "tmpfs")
        for scenario in DEFAULT_SCENARIOS
    ]
    assert {case.filesystem for case in cases} == {"xfs", "tmpfs"}


@pytest.mark.parametrize(
    "options",
    [
        SuiteOptions(filesystems=("reiserfs",)),
        SuiteOptions(scenarios=("dance",)),
        SuiteOptions(threads=1),
    ],
)
def test_faultstress_refuses_what_it_does_not_know(options: SuiteOptions) -> None:
    with pytest.raises(UserError):
        Faultstress().plan(options)


def test_missing_symbols() -> None:
    config = "CONFIG_MMU=y\nCONFIG_XFS_FS=m\n# CONFIG_BTRFS_FS is not set\nCONFIG_EXT4_FS_X=y\n"
    needs = Needs(symbols=("MMU", "XFS_FS", "BTRFS_FS", "EXT4_FS"))
    assert registry.missing_symbols(needs, config) == ("BTRFS_FS", "EXT4_FS")


def test_needs_grow_with_the_file_systems() -> None:
    options = SuiteOptions(filesystems=("btrfs",))
    assert "BTRFS_FS" in Faultstress().needs(options).symbols
    assert "btrfs-progs" in Faultstress().needs(options).packages
    assert Faultstress().needs(SuiteOptions(filesystems=("tmpfs",))).disks == ()


# --- what the program said ------------------------------------------------------------------------


def test_a_pass_needs_status_and_end_event() -> None:
    latency = {"event": "latency", "call": "mmap", "count": 5, "p50_us": 1.5, "max_us": 9}
    result = judge("a/b", exited(0, said({"event": "start", "seed": 3}, latency, END)))
    assert result.state is CaseState.PASSED
    assert result.metrics["reads"] == 12 and result.metrics["mmap_p50_us"] == 1.5


def test_throughput_is_over_the_time_that_the_program_ran() -> None:
    counted = {**END, "faults": 90, "reads": 40, "writes": 20}
    result = judge("a/b", replace(exited(0, said(counted)), duration_s=5.0))
    assert result.metrics["faults_per_s"] == 18.0 and result.metrics["accesses_per_s"] == 12.0
    unknown = judge("a/b", replace(exited(0, said(counted)), duration_s=0.0))
    assert not [name for name in unknown.metrics if name.endswith("_per_s")]


SEEN = {
    "event": "corruption",
    "kind": "wrong-file",
    "access": "read",
    "file": 1,
    "page": 4,
    "word": 2,
    "mapped": "write",
    "seen": "file 0 page 4 generation 9",
    "again": "the same",
    "pread": "file 1 page 4 generation 3",
}


@pytest.mark.parametrize(
    ("status", "stdout", "state", "message"),
    [
        (0, b"", CaseState.FAILED, "no word about its end"),
        (0, said({"event": "start", "seed": 3}), CaseState.FAILED, "no word about its end"),
        (0, said(END)[:-3], CaseState.FAILED, "no word about its end"),
        (0, said({**END, "status": 1}), CaseState.FAILED, "status 0 after 'pass'"),
        (0, said(SEEN, END), CaseState.FAILED, "wrong-file"),
        (0, b"\xff\xfenoise\n" + said(END), CaseState.FAILED, "garbage"),
        (137, said(END), CaseState.FAILED, "status 137 after 'pass'"),
        (139, b"", CaseState.FAILED, "status 139"),
        (9, said({**END, "verdict": "odd", "status": 9}), CaseState.FAILED, "unknown status 9"),
        (
            1,
            said(SEEN, {**END, "verdict": "corruption", "status": 1}),
            CaseState.FAILED,
            "wrong-file: read of file 1 page 4 word 2 (mapped for write) saw file 0 page 4",
        ),
        (
            3,
            said({"event": "end", "verdict": "environment", "status": 3, "reason": "open: full"}),
            CaseState.FAILED,
            "could not run: open: full",
        ),
        (
            4,
            said({**END, "verdict": "tested-nothing", "status": 4, "missing": "races segv"}),
            CaseState.FAILED,
            "tested nothing: no races, no segv",
        ),
        (
            5,
            said(
                {"event": "hang", "thread": 2, "op": "munmap", "stuck_s": 61, "wchan": "down"},
                {**END, "verdict": "hang", "status": 5},
            ),
            CaseState.HUNG,
            "thread 2 stuck in munmap for 61 s (down)",
        ),
    ],
)
def test_judge(status: int, stdout: bytes, state: CaseState, message: str) -> None:
    result = judge("a/b", exited(status, stdout))
    assert result.state is state
    assert message in result.message


def test_output_that_was_cut_is_no_pass() -> None:
    assert judge("a/b", exited(0, said(END), truncated=True)).state is CaseState.FAILED


def test_a_wrong_argument_is_the_labs_fault() -> None:
    with pytest.raises(LabFault, match="--threads: 0"):
        judge("a/b", exited(2, b"", b"faultstress: --threads: 0 is not a number\n"))


def test_a_timeout_says_what_was_seen_before() -> None:
    answer = TimedOut(stdout=said(SEEN), stderr=b"", duration_s=9.0)
    result = judge("a/b", answer)
    assert result.state is CaseState.TIMEOUT and "wrong-file" in result.message


@pytest.mark.parametrize("line", [b"[]", b"3", b'{"event": []}', b"{}", b"[" * 100_000, b"\0"])
def test_nothing_that_a_guest_says_breaks_the_reader(line: bytes) -> None:
    report = read(line + b"\n")
    assert report.verdict is None


# --- real runs ---------------------------------------------------------------------------------


class HostGuest:
    """Commands run on this machine, in a mount namespace of their own: tmpfs can be mounted."""

    def __init__(self, holder: int) -> None:
        self._enter = ("nsenter", "--target", str(holder), "--user", "--mount")

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Exited | TimedOut | Down:
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(*self._enter, "--preserve-credentials", "--", *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), timeout_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            return TimedOut(stdout=b"", stderr=b"", duration_s=time.monotonic() - began)
        assert process.returncode is not None
        return Exited(
            status=process.returncode if process.returncode >= 0 else 128 - process.returncode,
            stdout=out,
            stderr=err,
            duration_s=time.monotonic() - began,
            truncated=False,
        )


@asynccontextmanager
async def host_guest() -> AsyncIterator[HostGuest]:
    """A guest whose namespace lives as long as the block."""
    words = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private")
    script = ("/bin/sh", "-c", "echo ready; exec sleep 100")
    async with host.spawn((*words, *script), stdout=asyncio.subprocess.PIPE) as leash:
        assert leash.stdout is not None
        assert await asyncio.wait_for(leash.stdout.readline(), 20) == b"ready\n"
        # The leash's only child is unshare, which has become the shell, then sleep.
        children = Path(f"/proc/{leash.pid}/task/{leash.pid}/children").read_text().split()
        yield HostGuest(int(children[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadGuest:
    """A machine that goes away at its n-th command."""

    after: int
    seen: list[str]

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Exited | TimedOut | Down:
        self.seen.append(argv[0])
        if len(self.seen) > self.after:
            return Down(end=MachineEnd.PANICKED, detail="gone")
        # `mountpoint` says no, the others succeed.
        return exited(1 if argv[0] == "mountpoint" else 0)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("programs") / "faultstress"
    source = GUEST_SOURCES / "faultstress.c"
    host.run(("gcc", "-std=gnu11", "-O2", "-static", "-pthread", "-o", out, source))
    return out


def run_on_host(suite: Faultstress, case: PlannedCase) -> CaseResult:
    async def whole() -> CaseResult | Down:
        async with host_guest() as guest:
            return await suite.run(guest, case, 5)

    result = asyncio.run(whole())
    assert isinstance(result, CaseResult)
    return result


def tmpfs_case(scenario: str, duration_s: float = 1.0) -> PlannedCase:
    options = SuiteOptions(filesystems=("tmpfs",), scenarios=(scenario,), duration_s=duration_s)
    return Faultstress().plan(options)[0]


@pytest.mark.fake
def test_faultstress_runs_on_a_fresh_tmpfs(program: Path, tmp_path: Path) -> None:
    suite = Faultstress(program=str(program), mount_point=str(tmp_path / "mnt"))
    result = run_on_host(suite, tmpfs_case("truncate", duration_s=2.0))
    assert result.state is CaseState.PASSED, result.message
    assert result.name == "faultstress/tmpfs/truncate"
    assert result.metrics["sigbus"] > 0 and result.metrics["ftruncate_p99_us"] > 0
    assert result.duration_s >= 2.0


@pytest.mark.fake
def test_a_kernel_without_the_file_system_is_a_skip(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Filesystem(symbol="NOSUCH_FS", mkfs=("mkfs.nosuch",), mount=("-t", "nosuch"))
    monkeypatch.setitem(FILESYSTEMS, "nosuch", row)
    suite = Faultstress(program=str(program), mount_point=str(tmp_path / "mnt"))
    case = Faultstress().plan(SuiteOptions(filesystems=("nosuch",)))[0]
    result = run_on_host(suite, case)
    assert result.state is CaseState.SKIPPED
    assert "CONFIG_NOSUCH_FS" in result.message


@pytest.mark.fake
def test_a_file_system_that_cannot_be_made_is_a_failure(program: Path, tmp_path: Path) -> None:
    suite = Faultstress(
        program=str(program), mount_point=str(tmp_path / "mnt"), disk=str(tmp_path / "absent")
    )
    case = Faultstress().plan(SuiteOptions(filesystems=("ext4",)))[0]
    result = run_on_host(suite, case)
    assert result.state is CaseState.FAILED
    assert "setting up: mkfs.ext4" in result.message


def script(tmp_path: Path, body: str) -> str:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.fake
def test_a_mount_that_stays_busy_is_a_failure(tmp_path: Path) -> None:
    line = json.dumps(END)
    body = f"cd \"$2\" && {{ sleep 5 >/dev/null 2>&1 & }}\necho '{line}'"
    suite = Faultstress(program=script(tmp_path, body), mount_point=str(tmp_path / "mnt"))
    result = run_on_host(suite, tmpfs_case("munmap"))
    assert result.state is CaseState.FAILED
    assert "umount" in result.message and "busy" in result.message


@pytest.mark.fake
def test_a_program_that_dies_is_a_failure(tmp_path: Path) -> None:
    suite = Faultstress(program=script(tmp_path, "kill -9 $$"), mount_point=str(tmp_path / "mnt"))
    result = run_on_host(suite, tmpfs_case("munmap"))
    assert result.state is CaseState.FAILED
    assert "status 137" in result.message


@pytest.mark.fake
def test_a_mount_that_an_earlier_case_left_proves_nothing(program: Path, tmp_path: Path) -> None:
    mount_point = str(tmp_path / "mnt")
    suite = Faultstress(program=str(program), mount_point=mount_point)

    async def whole() -> CaseResult | Down:
        async with host_guest() as guest:
            await guest.run(("mkdir", mount_point), timeout_s=5)
            await guest.run(("mount", "-t", "tmpfs", "tmpfs", mount_point), timeout_s=5)
            return await suite.run(guest, tmpfs_case("munmap"), 5)

    result = asyncio.run(whole())
    assert isinstance(result, CaseResult)
    assert result.state is CaseState.MISSING


@pytest.mark.parametrize("after", range(7))
def test_a_machine_that_goes_away_is_said_so(after: int) -> None:
    case = Faultstress().plan(SuiteOptions(filesystems=("ext4",)))[0]
    guest = DeadGuest(after=after, seen=[])
    result = asyncio.run(Faultstress().run(guest, case, 1))
    commands = ("mountpoint", "grep", "mkdir", "mkfs.ext4", "mount", "/lab/bin/faultstress")
    assert isinstance(result, Down) and result.end is MachineEnd.PANICKED
    assert guest.seen == [*commands, "umount"][: after + 1]


@pytest.mark.fake
def test_boot_passes_on_a_kernel_that_runs() -> None:
    async def whole() -> CaseResult | Down:
        async with host_guest() as guest:
            return await Boot().run(guest, Boot().plan(SuiteOptions())[0], 1)

    result = asyncio.run(whole())
    assert isinstance(result, CaseResult)
    assert result.state is CaseState.PASSED, result.message


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionDroppingGuest:
    """Mounts without DAX what was to be mounted with it."""

    seen: list[tuple[str, ...]]

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Exited | TimedOut | Down:
        self.seen.append(tuple(argv))
        return exited(1 if argv[0] == "mountpoint" or argv[-1] == "/proc/mounts" else 0)


def test_what_is_mounted_without_dax_is_no_test_of_dax() -> None:
    guest = OptionDroppingGuest(seen=[])
    case = Faultstress().plan(SuiteOptions(filesystems=("xfs-dax",), scenarios=("munmap",)))[0]
    result = asyncio.run(Faultstress().run(guest, case, 1))
    assert isinstance(result, CaseResult)
    assert result.state is CaseState.FAILED
    assert result.message == "setting up: it is mounted without DAX"
    assert ("mkfs.xfs", "-q", "-f", "-m", "reflink=0", "/dev/pmem0") in guest.seen


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatteringGuest:
    """Everything ends well there, whatever it was."""

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Exited | TimedOut | Down:
        return exited(0, b"hello\n")


def test_boot_is_not_flattered() -> None:
    guest: Commands = FlatteringGuest()
    result = asyncio.run(Boot().run(guest, Boot().plan(SuiteOptions())[0], 1))
    assert isinstance(result, CaseResult)
    assert result.state is CaseState.FAILED
    assert "status 0, not 43" in result.message
