"""Faults on purpose in guests of the lab: the golden logs of the splat detector.

    python benchmarks/provoke.py --arch x86_64 --into DIR [NAME...]

Builds the kernel with tests/data/splat/provoke, boots it once for each fault and leaves the console
as DIR/ARCH-NAME.log, with what the detector makes of it on stdout. Nothing is judged here: a log
becomes a golden when somebody has read it (tests/test_splat.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from clean_boots import Boot, boot, prepare

from lab.splat.reading import read_files

SERIES = Path(__file__).parent.parent / "tests" / "data" / "splat" / "provoke"
# Written to <debugfs>/provoke.
OWN = (
    "circular", "recursive", "inconsistent", "order", "inversion", "wait_context", "balance",
    "held_return", "held_exit", "freed", "nonstatic", "rcu", "srcu_usage", "atomic", "bad_magic",
    "warn", "bug", "null", "paging", "noncanonical", "list_del", "refcount", "softlockup",
    "rcu_stall", "hung", "srcu_stall", "workqueue", "work_leak", "stack", "slab_redzone",
    "slab_poison", "slab_double_free", "slab_leftover", "bad_page", "panic",
)  # fmt: skip
# The kernel's own, written to <debugfs>/provoke-crash/DIRECT.
LKDTM = (
    "PANIC", "BUG", "WARNING", "WARNING_MESSAGE", "EXCEPTION", "EXHAUST_STACK", "CORRUPT_STACK",
    "CORRUPT_LIST_ADD", "CORRUPT_LIST_DEL", "STACK_GUARD_PAGE_LEADING", "WRITE_RO", "EXEC_NULL",
    "EXEC_DATA", "ACCESS_NULL", "ACCESS_USERSPACE", "REFCOUNT_INC_ZERO", "SLAB_FREE_DOUBLE",
    "WRITE_AFTER_FREE", "SPINLOCKUP", "HARDLOCKUP", "HUNG_TASK", "FORTIFY_STRSCPY",
)  # fmt: skip
_DAMAGED = r"""
mkdir -p /tmp/w /tmp/m
mount -t tmpfs none /tmp/w
truncate -s 600M /tmp/w/disk
"""
SCRIPTS = {
    "oom": "swapoff -a; tail /dev/zero",
    "sysrq": "echo c > /proc/sysrq-trigger",
    "fs_ext4": _DAMAGED
    + r"""
mkfs.ext4 -q -O ^metadata_csum /tmp/w/disk
mount -o loop /tmp/w/disk /tmp/m
mkdir /tmp/m/d; touch $(seq -f /tmp/m/d/file%g 500)
umount /tmp/m
block=$(debugfs -R 'blocks d' /tmp/w/disk 2>/dev/null | tr ' ' '\n' | sed -n 2p)
dd if=/dev/urandom of=/tmp/w/disk bs=4096 seek=$block count=1 conv=notrunc
mount -o loop,errors=continue /tmp/w/disk /tmp/m; ls /tmp/m/d > /dev/null; sync
""",
    "fs_xfs": _DAMAGED
    + r"""
mkfs.xfs -q /tmp/w/disk
mount -o loop /tmp/w/disk /tmp/m
mkdir $(seq -f /tmp/m/dir%g 1500)
umount /tmp/m
for at in 1 2; do dd if=/dev/urandom of=/tmp/w/disk bs=4096 seek=$at count=1 conv=notrunc; done
dd if=/dev/urandom of=/tmp/w/disk bs=4096 seek=9 count=64 conv=notrunc
mount -o loop /tmp/w/disk /tmp/m; ls -lR /tmp/m > /dev/null; touch /tmp/m/new; sync
""",
    "fs_btrfs": _DAMAGED
    + r"""
mkfs.btrfs -q -m single -d single /tmp/w/disk
mount -o loop /tmp/w/disk /tmp/m
cp -r /etc /usr/share/doc /tmp/m; sync; umount /tmp/m
dd if=/dev/urandom of=/tmp/w/disk bs=65536 seek=82 count=200 conv=notrunc
mount -o loop /tmp/w/disk /tmp/m && { find /tmp/m -type f -exec cat {} + > /dev/null; sync; }
""",
    # The disk becomes shorter than its file system.
    "io_error": _DAMAGED
    + r"""
mkfs.ext4 -q /tmp/w/disk
mount -o loop /tmp/w/disk /tmp/m
truncate -s 1M /tmp/w/disk
cp -r /etc /tmp/m; sync; echo 3 > /proc/sys/vm/drop_caches; ls -lR /tmp/m > /dev/null
""",
}
APPEND = (
    "softlockup_all_cpu_backtrace=0 watchdog_thresh=5 rcupdate.rcu_cpu_stall_timeout=8 "
    "workqueue.watchdog_thresh=8 sysctl.kernel.watchdog_thresh=5 "
    "sysctl.kernel.hung_task_timeout_secs=8 ignore_loglevel"
)


def command(name: str) -> str:
    """The shell command that brings the fault about."""
    quiet = "mount -t debugfs none /sys/kernel/debug 2> /dev/null; "
    if name in SCRIPTS:
        return SCRIPTS[name]
    if name in OWN:
        # By a shell of its own: some faults end the process that asked for them.
        return f"{quiet} sh -c 'echo {name} > /sys/kernel/debug/provoke'; sleep 2"
    return f"{quiet} sh -c 'echo {name} > /sys/kernel/debug/provoke-crash/DIRECT'; sleep 2"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="x86_64")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("names", nargs="*", default=[*OWN, *LKDTM, *SCRIPTS], metavar="NAME")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="provoke-") as scratch:
        kit = prepare(options.arch, Path(scratch), patch=str(SERIES))
        (options.into / f"{options.arch}.vmlinux").write_text(f"{kit.kernel.vmlinux}\n")
        for name in options.names:
            what = Boot(
                append=APPEND + (" slub_debug=FZPU" if "slab" in name.lower() else ""),
                cpus=2,
                memory_bytes=1 << 30,
                command=("/bin/sh", "-c", command(name)),
                timeout_s=90.0,
            )
            done = boot(kit, what, Path(scratch) / name)
            log = options.into / f"{options.arch}-{name}.log"
            done.console.rename(log)
            print(f"{log.name}: machine {done.end}, status {done.status}", flush=True)
            for splat in read_files([log])[0].splats:
                torn = f" ({splat.corrupted})" if splat.corrupted else ""
                print(f"    {splat.first_line}: {splat.kind}: {splat.title}{torn}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
