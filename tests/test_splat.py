"""The splat detector: console lines in, splats out."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.model import Splat, UserError
from lab.splat import frames, locks, reading
from lab.splat.detector import Detector, opening, scan
from lab.splat.formats import FORMATS
from lab.splat.kinds import ENDS_LOCKDEP, Kind

DATA = Path(__file__).parent / "data" / "splat"

# Log, and what is on it: kind, function to blame, whether the machine is lost.
GUEST: dict[str, list[tuple[Kind, str, bool]]] = {
    "atomic": [
        (Kind.ATOMIC_SLEEP, "provoke_atomic", False),
        (Kind.WARNING, "do_one_initcall", False),
    ],
    "bug": [(Kind.BUG, "provoke_bug", True)],
    "balance": [(Kind.LOCKDEP_UNLOCK_BALANCE, "provoke_balance", False)],
    "circular": [(Kind.LOCKDEP_CIRCULAR, "provoke_ba", False)],
    "clean": [],
    "fs-ext4": [(Kind.FS_CORRUPTION, "htree_dirblock_to_tree", False)],
    "hung": [
        (Kind.HUNG_TASK, "provoke_hung", False),
        (Kind.HUNG_TASK, "provoke_sleeper", False),
    ]
    * 4,
    "inconsistent": [(Kind.LOCKDEP_INCONSISTENT, "provoke_inconsistent", False)],
    "inversion": [(Kind.LOCKDEP_IRQ_INVERSION, "provoke_tick", False)],
    "list": [(Kind.LIST_CORRUPTION, "provoke_list_fault", True)],
    "null": [(Kind.NULL_DEREF, "provoke_null", True)],
    "oom": [(Kind.OOM, "", False)],
    "order": [(Kind.LOCKDEP_IRQ_ORDER, "provoke_tick", False)],
    "panic": [(Kind.PANIC, "", True)],
    "rcu": [(Kind.RCU_USAGE, "provoke_rcu", False)],
    "recursive": [(Kind.LOCKDEP_RECURSIVE, "provoke_recursive", False)],
    "refcount": [
        (Kind.REFCOUNT, "provoke_refcount", False),
        (Kind.REFCOUNT, "provoke_init", False),
    ],
    "softlockup": [(Kind.SOFT_LOCKUP, "provoke_init", False)] * 2,
    "stack": [(Kind.STACK_OVERFLOW, "provoke_init", True)],
    "warn": [(Kind.WARNING, "provoke_warn", False)],
    "wqleak": [
        (Kind.WQ_LEAKED_LOCK, "provoke_leak_fn", False),
        (Kind.LOCKDEP_CIRCULAR, "process_one_work", False),
    ],
}
WRITTEN: dict[str, list[tuple[Kind, str, bool]]] = {
    "arm64-kasan": [(Kind.KASAN, "filemap_fault", False)],
    "arm64-oops": [(Kind.NULL_DEREF, "vma_interval_tree_remove", True)],
    "bad-page": [(Kind.BAD_PAGE, "do_anonymous_page", False)],
    "filesystems": [
        (Kind.FS_CORRUPTION, "xfs_dinode_verify", False),
        (Kind.FS_CORRUPTION, "", False),
        (Kind.IO_ERROR, "", False),
        (Kind.FS_ERROR, "", False),
    ],
    "hard-lockup": [(Kind.HARD_LOCKUP, "sys_fsync", True)],
    "held-at-exit": [(Kind.LOCKDEP_HELD_LOCK, "ext4_filemap_fault", False)],
    "held-at-return": [(Kind.LOCKDEP_HELD_LOCK, "vm_mmap_pgoff", False)],
    "restart": [(Kind.REBOOT, "", True)],
    "slab": [(Kind.SLAB_CORRUPTION, "stress_release", False)],
    "truncated": [(Kind.PAGE_FAULT, "", True)],
    "two-callers": [(Kind.WARNING, "ext4_rmdir", False), (Kind.WARNING, "provoke_tick", False)],
    "wait-context": [(Kind.LOCKDEP_WAIT_CONTEXT, "shrink_pool", False)],
    "warning-new-format": [(Kind.WARNING, "__vma_enter_locked", False)],
}
# By benchmarks/provoke.py: what each fault looks like on either architecture.
PROVOKED: dict[str, list[tuple[Kind, str, bool]]] = {
    "arm64-CORRUPT_LIST_ADD": [
        (Kind.LIST_CORRUPTION, "lkdtm_CORRUPT_LIST_ADD", True),
        (Kind.WARNING, "ct_kernel_exit", False),
    ],
    "arm64-CORRUPT_STACK": [(Kind.PAGE_FAULT, "", True)],
    "arm64-EXCEPTION": [(Kind.NULL_DEREF, "lkdtm_EXCEPTION", True)],
    "arm64-EXEC_DATA": [(Kind.PAGE_FAULT, "data_area", True)],
    "arm64-EXEC_NULL": [(Kind.NULL_DEREF, "lkdtm_EXEC_NULL", True)],
    "arm64-EXHAUST_STACK": [(Kind.STACK_OVERFLOW, "do_notify_resume", True)],
    "arm64-HUNG_TASK": [
        (Kind.HUNG_TASK, "lkdtm_HUNG_TASK", False),
        (Kind.HUNG_TASK, "lkdtm_HUNG_TASK", False),
        (Kind.HUNG_TASK, "lkdtm_HUNG_TASK", False),
        (Kind.HUNG_TASK, "lkdtm_HUNG_TASK", False),
    ],
    "arm64-PANIC": [(Kind.PANIC, "", True)],
    "arm64-REFCOUNT_INC_ZERO": [(Kind.REFCOUNT, "lkdtm_REFCOUNT_INC_ZERO", False)],
    "arm64-SLAB_FREE_DOUBLE": [(Kind.SLAB_CORRUPTION, "lkdtm_SLAB_FREE_DOUBLE", False)],
    "arm64-SPINLOCKUP": [
        (Kind.ATOMIC_SLEEP, "__fput", False),
        (Kind.LOCKDEP_WAIT_CONTEXT, "rseq_get_rseq_cs_ptr_val", False),
        (Kind.ATOMIC_SLEEP, "do_notify_resume", False),
    ],
    "arm64-WRITE_RO": [(Kind.PAGE_FAULT, "lkdtm_WRITE_RO", True)],
    "arm64-atomic": [
        (Kind.ATOMIC_SLEEP, "provoke_atomic", False),
        (Kind.RCU_USAGE, "file_end_write", False),
        (Kind.ATOMIC_SLEEP, "do_notify_resume", False),
    ],
    "arm64-bad_magic": [
        (Kind.LOCKDEP_KEY, "provoke_bad_magic", False),
        (Kind.ATOMIC_SLEEP, "__fput", False),
        (Kind.ATOMIC_SLEEP, "do_notify_resume", False),
    ],
    "arm64-bad_page": [(Kind.BAD_PAGE, "provoke_bad_page", False)],
    "arm64-balance": [(Kind.LOCKDEP_UNLOCK_BALANCE, "provoke_balance", False)],
    "arm64-bug": [(Kind.BUG, "provoke_bug", True), (Kind.WARNING, "ct_kernel_exit", False)],
    "arm64-circular": [(Kind.LOCKDEP_CIRCULAR, "provoke_ba", False)],
    "arm64-freed": [(Kind.LOCKDEP_HELD_LOCK, "provoke_freed", False)],
    "arm64-fs_btrfs": [(Kind.FS_CORRUPTION, "", False)],
    "arm64-fs_ext4": [(Kind.FS_CORRUPTION, "htree_dirblock_to_tree", False)],
    "arm64-fs_xfs": [
        (Kind.FS_CORRUPTION, "xfs_inode_buf_verify", False),
        (Kind.FS_ERROR, "", False),
    ],
    "arm64-held_exit": [(Kind.LOCKDEP_HELD_LOCK, "provoke_exiting", False)],
    "arm64-held_return": [(Kind.LOCKDEP_HELD_LOCK, "provoke_held_return", False)],
    "arm64-hung": [
        (Kind.HUNG_TASK, "provoke_hung", False),
        (Kind.HUNG_TASK, "provoke_sleeper", False),
        (Kind.HUNG_TASK, "provoke_hung", False),
        (Kind.HUNG_TASK, "provoke_sleeper", False),
    ],
    "arm64-inconsistent": [(Kind.LOCKDEP_INCONSISTENT, "provoke_take", False)],
    "arm64-inversion": [(Kind.LOCKDEP_IRQ_INVERSION, "provoke_tick", False)],
    "arm64-io_error": [
        (Kind.FS_CORRUPTION, "__ext4_find_entry", False),
        (Kind.FS_CORRUPTION, "htree_dirblock_to_tree", False),
    ],
    "arm64-list_del": [
        (Kind.LIST_CORRUPTION, "provoke_list_del", True),
        (Kind.WARNING, "ct_kernel_exit", False),
    ],
    "arm64-noncanonical": [(Kind.PAGE_FAULT, "provoke_noncanonical", True)],
    "arm64-nonstatic": [(Kind.LOCKDEP_KEY, "provoke_nonstatic", False)],
    "arm64-null": [(Kind.NULL_DEREF, "provoke_null", True)],
    "arm64-order": [(Kind.LOCKDEP_IRQ_ORDER, "provoke_tick", False)],
    "arm64-paging": [(Kind.PAGE_FAULT, "provoke_paging", True)],
    "arm64-panic": [(Kind.PANIC, "", True)],
    "arm64-rcu": [(Kind.RCU_USAGE, "provoke_rcu", False)],
    "arm64-rcu_stall": [
        (Kind.SOFT_LOCKUP, "provoke_write", False),
        (Kind.WQ_LOCKUP, "", False),
        (Kind.RCU_STALL, "provoke_write", False),
    ],
    "arm64-recursive": [(Kind.LOCKDEP_RECURSIVE, "provoke_recursive", False)],
    "arm64-refcount": [(Kind.REFCOUNT, "provoke_refcount", False)],
    "arm64-slab_double_free": [
        (Kind.SLAB_CORRUPTION, "provoke_slab_double_free", False),
        (Kind.NULL_DEREF, "alloc_buf", True),
    ],
    "arm64-slab_leftover": [
        (Kind.SLAB_CORRUPTION, "provoke_slab_leftover", False),
        (Kind.WARNING, "provoke_slab_leftover", False),
    ],
    "arm64-slab_poison": [(Kind.SLAB_CORRUPTION, "provoke_slab_poison", False)],
    "arm64-softlockup": [
        (Kind.WQ_LOCKUP, "", False),
        (Kind.SOFT_LOCKUP, "provoke_write", False),
        (Kind.RCU_STALL, "provoke_write", False),
    ],
    "arm64-srcu_stall": [
        (Kind.HUNG_TASK, "provoke_srcu_stall", False),
        (Kind.HUNG_TASK, "__synchronize_srcu", False),
        (Kind.HUNG_TASK, "provoke_srcu_stall", False),
        (Kind.HUNG_TASK, "__synchronize_srcu", False),
    ],
    "arm64-srcu_usage": [(Kind.RCU_USAGE, "provoke_srcu_usage", False)],
    "arm64-stack": [
        (Kind.LOCKDEP_OTHER, "", False),
        (Kind.NULL_DEREF, "", True),
        (Kind.NULL_DEREF, "", True),
        (Kind.NULL_DEREF, "", True),
    ],
    "arm64-sysrq": [(Kind.PANIC, "", True)],
    "arm64-wait_context": [(Kind.LOCKDEP_WAIT_CONTEXT, "provoke_wait_context", False)],
    "arm64-warn": [(Kind.WARNING, "provoke_warn", False)],
    "arm64-work_leak": [
        (Kind.WQ_LEAKED_LOCK, "provoke_leak_fn", False),
        (Kind.LOCKDEP_CIRCULAR, "process_one_work", False),
    ],
    "arm64-workqueue": [
        (Kind.WQ_LOCKUP, "", False),
        (Kind.HUNG_TASK, "provoke_workqueue", False),
        (Kind.HUNG_TASK, "provoke_workqueue", False),
        (Kind.WQ_LOCKUP, "", False),
    ],
    "x86_64-CORRUPT_STACK": [(Kind.PAGE_FAULT, "", True)],
    "x86_64-EXEC_NULL": [(Kind.NULL_DEREF, "execute_location", True)],
    "x86_64-EXHAUST_STACK": [(Kind.STACK_OVERFLOW, "do_task_dead", True)],
    "x86_64-HARDLOCKUP": [
        (Kind.RCU_STALL, "direct_entry", False),
        (Kind.RCU_STALL, "direct_entry", False),
        (Kind.RCU_STALL, "direct_entry", False),
    ],
    "x86_64-SLAB_FREE_DOUBLE": [(Kind.SLAB_CORRUPTION, "direct_entry", False)],
    "x86_64-SPINLOCKUP": [
        (Kind.LOCKDEP_HELD_LOCK, "direct_entry", False),
        (Kind.ATOMIC_SLEEP, "__fput", False),
        (Kind.ATOMIC_SLEEP, "do_task_dead", False),
    ],
    "x86_64-WRITE_RO": [(Kind.PAGE_FAULT, "lkdtm_WRITE_RO", True)],
    "x86_64-bad_page": [(Kind.BAD_PAGE, "provoke_write", False)],
    "x86_64-freed": [(Kind.LOCKDEP_HELD_LOCK, "provoke_freed", False)],
    "x86_64-fs_btrfs": [(Kind.FS_CORRUPTION, "", False)],
    "x86_64-fs_xfs": [(Kind.FS_CORRUPTION, "xfs_buf_ioend", False), (Kind.FS_ERROR, "", False)],
    "x86_64-held_exit": [(Kind.LOCKDEP_HELD_LOCK, "provoke_exiting", False)],
    "x86_64-held_return": [(Kind.LOCKDEP_HELD_LOCK, "provoke_write", False)],
    "x86_64-io_error": [
        (Kind.FS_CORRUPTION, "__ext4_find_entry", False),
        (Kind.FS_CORRUPTION, "htree_dirblock_to_tree", False),
    ],
    "x86_64-noncanonical": [(Kind.GPF, "provoke_noncanonical", True)],
    "x86_64-nonstatic": [(Kind.LOCKDEP_KEY, "provoke_nonstatic", False)],
    "x86_64-paging": [(Kind.PAGE_FAULT, "provoke_paging", True)],
    "x86_64-rcu_stall": [
        (Kind.RCU_STALL, "provoke_write", False),
        (Kind.WQ_LOCKUP, "", False),
        (Kind.WQ_LOCKUP, "", False),
    ],
    "x86_64-slab_double_free": [
        (Kind.SLAB_CORRUPTION, "provoke_write", False),
        (Kind.SLAB_CORRUPTION, "load_elf_binary", False),
    ],
    "x86_64-slab_leftover": [
        (Kind.SLAB_CORRUPTION, "provoke_write", False),
        (Kind.WARNING, "provoke_write", False),
    ],
    "x86_64-slab_poison": [(Kind.SLAB_CORRUPTION, "provoke_write", False)],
    "x86_64-slab_redzone": [(Kind.SLAB_CORRUPTION, "provoke_write", False)],
    "x86_64-srcu_stall": [
        (Kind.HUNG_TASK, "provoke_srcu_stall", False),
        (Kind.HUNG_TASK, "__synchronize_srcu", False),
        (Kind.HUNG_TASK, "provoke_srcu_stall", False),
        (Kind.HUNG_TASK, "__synchronize_srcu", False),
    ],
    "x86_64-srcu_usage": [(Kind.RCU_USAGE, "provoke_srcu_usage", False)],
    "x86_64-wait_context": [(Kind.LOCKDEP_WAIT_CONTEXT, "provoke_wait_context", False)],
    "x86_64-workqueue": [
        (Kind.SOFT_LOCKUP, "provoke_busy", False),
        (Kind.HUNG_TASK, "provoke_write", False),
        (Kind.RCU_STALL, "provoke_busy", False),
        (Kind.HUNG_TASK, "provoke_write", False),
    ],
}
LOGS = [
    *((DATA / "guest" / f"{name}.log", found) for name, found in GUEST.items()),
    *((DATA / "guest" / f"{name}.log", found) for name, found in PROVOKED.items()),
    *((log, []) for log in sorted((DATA / "guest").glob("clean-*.log"))),
    *((DATA / "written" / f"{name}.log", found) for name, found in WRITTEN.items()),
]


def read(log: Path) -> list[Splat]:
    return scan(log.read_text(encoding="utf-8", errors="replace").splitlines())


def facts(splats: list[Splat]) -> list[tuple[str, str, bool]]:
    return [(splat.kind, splat.function, splat.fatal) for splat in splats]


@pytest.mark.parametrize(("log", "found"), LOGS, ids=lambda value: getattr(value, "stem", ""))
def test_what_is_on_a_console(log: Path, found: list[tuple[Kind, str, bool]]) -> None:
    assert facts(read(log)) == [(str(kind), function, fatal) for kind, function, fatal in found]


def test_every_golden_is_in_the_table() -> None:
    on_disk = set(DATA.rglob("*.log"))
    assert on_disk == {log for log, _ in LOGS}


@pytest.mark.parametrize("block_bytes", [64, 1000, 256 * 1024])
@pytest.mark.parametrize(("log", "found"), LOGS, ids=lambda value: getattr(value, "stem", ""))
def test_reading_in_blocks_finds_what_feeding_lines_finds(
    log: Path,
    found: list[tuple[Kind, str, bool]],
    block_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "_BLOCK_BYTES", block_bytes)
    text = log.read_bytes().decode("utf-8", "replace").removesuffix("\n")
    blocks = sorted(
        reading.scan_stream(io.BytesIO(log.read_bytes())), key=lambda splat: splat.first_line
    )
    assert blocks == scan(text.split("\n"))


def test_splats_are_given_as_soon_as_they_are_over() -> None:
    detector = Detector()
    lines = (DATA / "guest" / "warn.log").read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if "end trace" in line)
    given = [splat for line in lines[: end + 1] for splat in detector.feed(line)]
    assert given == [] and detector.opened == (Kind.WARNING,)
    later = "[   99.000000][  T999] something else happened"
    for _ in range(60):
        given += detector.feed(later)
    assert [splat.function for splat in given] == ["provoke_warn"]
    assert detector.finish() == []


def test_a_fatal_report_shows_before_it_is_over() -> None:
    detector = Detector()
    for line in (DATA / "written" / "arm64-oops.log").read_text().splitlines()[:3]:
        assert detector.feed(line) == []
    assert detector.fatal


def test_lines_of_two_callers_are_kept_apart() -> None:
    rmdir, tick = read(DATA / "written" / "two-callers.log")
    assert "[   10" not in rmdir.text and "timer" not in rmdir.text
    assert "ext4" not in tick.text
    assert rmdir.corrupted == tick.corrupted == ""


@pytest.mark.parametrize("name", sorted(GUEST))
def test_a_whole_report_of_a_guest_is_not_called_corrupted(name: str) -> None:
    for splat in read(DATA / "guest" / f"{name}.log"):
        assert splat.corrupted == "" and splat.fingerprint


def test_a_truncated_report_is_kept_with_its_reason_and_without_a_fingerprint() -> None:
    (splat,) = read(DATA / "written" / "truncated.log")
    assert splat.corrupted == "no stack trace"
    assert splat.fingerprint == ""


def test_fingerprints_survive_addresses_cpus_pids_and_clones() -> None:
    lines = (DATA / "guest" / "circular.log").read_text().splitlines()
    (splat,) = scan(lines)
    changed = [
        line.replace("provoke_ba+0x", "provoke_ba.isra.0+0x1")
        .replace("ffff8880", "ffff9991")
        .replace("init/58", "stress/9123")
        .replace("CPU: 0 PID: 58", "CPU: 7 PID: 9123")
        .replace("[   T58]", "[ T9123]")
        for line in lines
    ]
    (other,) = scan(changed)
    assert other.fingerprint == splat.fingerprint != ""
    assert other.text != splat.text


def test_different_bugs_have_different_fingerprints() -> None:
    seen: dict[str, str] = {}
    for log, _ in LOGS:
        for splat in read(log):
            if splat.fingerprint:
                assert seen.setdefault(splat.fingerprint, splat.title) == splat.title
    assert len(seen) > 20


def test_lockdep_chains_name_both_locks_and_who_took_them() -> None:
    (splat,) = read(DATA / "guest" / "circular.log")
    assert splat.locks == ("provoke_a", "provoke_b")
    links = locks.chain(splat.text.split("\n"))
    assert [(link.depth, link.lock) for link in links] == [(1, "provoke_b"), (0, "provoke_a")]
    assert "provoke_ab" in links[0].stack and "provoke_ba" in links[1].stack
    assert splat.kind in ENDS_LOCKDEP


def test_chains_of_reports_about_interrupts_name_both_sides() -> None:
    (splat,) = read(DATA / "guest" / "arm64-inversion.log")
    plain, spin = locks.chain(splat.text.split("\n"))
    assert (plain.lock, plain.usage) == ("provoke_plain", "+.+.")
    assert plain.stack[:3] == ("_raw_spin_lock", "provoke_take", "provoke_nested")
    assert spin.lock == "provoke_spin" and "provoke_tick" in spin.stack
    (splat,) = read(DATA / "guest" / "arm64-order.log")
    assert [link.lock for link in locks.chain(splat.text.split("\n"))] == [
        "provoke_spin",
        "provoke_plain",
    ]


def test_lock_classes_with_brackets_in_their_names() -> None:
    splat = read(DATA / "guest" / "arm64-work_leak.log")[1]
    assert splat.locks == ("(wq_completion)events", "provoke_b")
    assert locks.involved(
        ["ffff888009a3c0b8 ((work_completion)(&(&x)->work)){+.+.}-{0:0}, at: f"]
    ) == ("(work_completion)(&(&x)->work)",)


def test_the_guilty_file_is_no_header_and_no_library() -> None:
    (splat,) = read(DATA / "guest" / "bug.log")
    assert splat.file == "drivers/provoke/provoke.c"
    (splat,) = read(DATA / "guest" / "list.log")
    assert splat.file == ""  # only lib/list_debug.c is named


@pytest.mark.parametrize(
    ("printed", "name"),
    [
        ("do_mmap.isra.0", "do_mmap"),
        ("do_mmap.part.0.cold", "do_mmap"),
        ("__x64_sys_munmap", "sys_munmap"),
        ("__do_sys_munmap", "sys_munmap"),
        ("__arm64_compat_sys_ioctl", "sys_ioctl"),
        ("smp_call_function_many_cond", "smp_call_function"),
        (
            "_RNvMs3_NtCshgDM7dBCdno_11rust_binder7processNtB5_7Process10update_ref",
            "<rust_binder::process::Process>::update_ref",
        ),
    ],
)
def test_names_of_functions(printed: str, name: str) -> None:
    assert frames.name(printed) == name


@pytest.mark.parametrize(
    "line",
    [
        "[    0.1] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
        "[    1.0] Kernel command line: panic_on_warn=1 oops=panic BUG: no",
        "[    2.0] EXT4-fs (vda): INFO: recovery required on readonly filesystem",
        "[    3.0] perf: interrupt took too long (2501 > 2500), lowering kernel.perf_event_max",
        "[    4.0] traps: a.out[71] general protection fault ip:401136 sp:7ffc error:0 in a.out",
        "[    5.0] a.out[72]: segfault at 0 ip 0000000000401136 sp 00007ffc error 6 in a.out",
        "[    6.0] XFS (vdb): Mounting V5 Filesystem",
        "[    7.0] VFS: Mounted root (ext4 filesystem) readonly on device 254:0.",
        "[    8.0] rcu: INFO: Stall ended before state dump start",
        "[    9.0] systemd[1]: WARNING: something of user space's own",
        "[   10.0] NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
        "[   11.0] ACPI: button: Power Button [PWRF] DEBUG: nothing",
        "generic/475 WARNING is only a word here",
    ],
)
def test_harmless_lines_raise_no_alarm(line: str) -> None:
    assert scan([line]) == []


OPENINGS = [
    tuple(line.split(" ", 1))
    for line in (DATA / "openings.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(("kind", "line"), OPENINGS, ids=lambda value: value[:60])
def test_what_the_kernels_printk_calls_open(kind: str, line: str) -> None:
    """Through the gates of the block reader, with the stamp that a console has."""
    found = reading.scan_stream(io.BytesIO(f"[   12.345678][   T64] {line}\n".encode()))
    assert [splat.kind for splat in found] == ([] if kind == "-" else [kind])


def test_every_format_has_a_line_that_opens_it() -> None:
    opened = {id(found[0]) for _, line in OPENINGS if (found := opening(line)) is not None}
    idle = [row for row in FORMATS if id(row) not in opened]
    assert [f"{row.kind}: {row.pattern.pattern}" for row in idle] == []


@settings(deadline=None)  # a loaded machine proves nothing
@given(st.lists(st.text(max_size=200), max_size=60))
def test_no_console_breaks_it(lines: list[str]) -> None:
    for splat in scan(lines):
        assert 1 <= splat.first_line <= splat.last_line <= len(lines)


@settings(deadline=None)
@given(st.binary(max_size=4000))
def test_no_file_breaks_it(raw: bytes) -> None:
    reading.scan_stream(io.BytesIO(b"BUG: Oops\n" + raw))


def test_a_report_without_end_is_bounded() -> None:
    lines = ["[   1.000000] WARNING: CPU: 0 PID: 1 at mm/mmap.c:1 f+0x1/0x2"]
    lines += [f"[   1.000001]  g{number}+0x1/0x2" for number in range(5000)]
    (splat,) = scan(lines)
    assert splat.last_line <= 1600 and len(splat.text) <= 64 * 1024


@pytest.mark.parametrize(
    "block",
    [b"BUG: ", b"x", b"WARNING: [ ] [", b" f+0x1/0x2", b"Tainted: G W "],
    ids=["openings", "nothing", "brackets", "frames", "taints"],
)
def test_a_line_without_end_is_cheap(block: bytes) -> None:
    """A search that went over the whole of it from each place would take minutes."""
    found = reading.scan_stream(io.BytesIO(b"BUG: " + block * (4_000_000 // len(block))))
    assert all(len(splat.text) <= 64 * 1024 for splat in found)


def test_a_kernel_that_only_warns_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.splat.detector._MOST_SPLATS", 5)
    monkeypatch.setattr("lab.splat.detector._MOST_TEXT", 100)
    lines = [f"[    1.0] WARNING: CPU: 0 PID: 1 at a.c:{n} f{n}+0x1/0x2" for n in range(2000)]
    detector = Detector()
    found = [splat for line in lines for splat in detector.feed(line)] + detector.finish()
    assert len(found) == 5 and detector.beyond > 20
    assert [bool(splat.text) for splat in found] == [False] * 5
    assert all(splat.title == f"WARNING in f{splat.first_line - 1}" for splat in found)


# --- files, JSON, the terminal -------------------------------------------------------------------


def test_json_is_a_list_of_the_documented_objects() -> None:
    objects = json.loads(reading.to_json(read(DATA / "guest" / "bug.log")))
    assert objects[0]["kind"] == "bug" and objects[0]["corrupted"] is False
    needed = {"kind", "title", "first_line", "last_line", "function", "file", "fingerprint"}
    assert needed <= set(objects[0])


def test_what_goes_to_a_terminal_cannot_drive_it() -> None:
    assert reading.printable("\x1b]0;x\x07\r\n\x9b31mé") == "\\x1b]0;x\\x07\\r\\n\\x9b31mé"


def test_a_log_that_cannot_be_read_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.log cannot be read"):
        reading.read_files([tmp_path / "missing.log"])


@pytest.mark.fake
def test_the_module_runs_as_a_command() -> None:
    logs = [str(DATA / "written" / "truncated.log"), str(DATA / "guest" / "clean.log")]
    command = [sys.executable, "-m", "lab.splat"]
    text = subprocess.run([*command, *logs], capture_output=True, timeout=60, check=False)
    assert text.returncode == 1
    assert b"\x1b" not in text.stdout and text.stdout.count(b"\n") == 1
    clean = subprocess.run([*command, logs[1], "--json"], capture_output=True, timeout=60)
    assert clean.returncode == 0 and json.loads(clean.stdout) == []
