"""The splat detector on a long healthy console with a few splats, against a bare read of it.

    python benchmarks/splat_speed.py [MEGABYTES]

Writes the log itself (1000 MB by default) to a temporary folder, reads it line by line and with the
detector, each in a process of its own, and prints rates (by CPU time), their ratio and the peak
memory. Exit status 1: it is slower than 20 MB/s, needs 200 MB or more, or misses a splat.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

_QUIET = (
    "EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.",
    "virtio_blk virtio1: [vda] 4194304 512-byte logical blocks (2.15 GB/2.00 GiB)",
    "random: crng init done",
    "run fstests generic/013 at 2026-01-01 12:00:00",
    "XFS (vdb): Mounting V5 Filesystem",
    "XFS (vdb): Ending clean mount",
    "systemd[1]: Started Journal Service.",
    "faultstress: pass 4711, 16 threads, 262144 pages, no complaint",
)
_SPLAT = """\
------------[ cut here ]------------
WARNING: CPU: 1 PID: 71 at mm/mmap.c:1234 unmap_region+0x1f/0x40
CPU: 1 PID: 71 Comm: stress Not tainted 6.1.192 #1
RIP: 0010:unmap_region+0x1f/0x40
Call Trace:
 <TASK>
 do_mas_align_munmap+0x2f/0x400
 __x64_sys_munmap+0x10/0x20
 </TASK>
---[ end trace 0000000000000000 ]---""".splitlines()
_EVERY_BYTES = 50_000_000

_PLAIN = """
import sys, time
start = time.process_time(); lines = 0
with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
    for line in log:
        lines += 1
print(time.process_time() - start, lines, 0)
"""
_DETECT = """
import resource, sys, time
from pathlib import Path
from lab.splat.reading import read_files
start = time.process_time()
splats = read_files([Path(sys.argv[1])])[0].splats
print(time.process_time() - start, len(splats), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
_FEED = """
import resource, sys, time
from lab.splat.detector import Detector
detector = Detector(); found = 0
start = time.process_time()
with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
    for line in log:
        found += len(detector.feed(line))
found += len(detector.finish())
print(time.process_time() - start, found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_log(path: Path, size_bytes: int) -> int:
    """Write a console log of that size; the number of splats in it."""
    chance = random.Random(1)
    time_s, written, splats = 0.0, 0, 0
    with path.open("w", encoding="utf-8") as log:
        while written < size_bytes:
            block = []
            for _ in range(10_000):
                time_s += chance.random() * 0.01
                caller = f"T{chance.randrange(900)}"
                block.append(f"[{time_s:12.6f}][{caller:>6}] {chance.choice(_QUIET)}")
            if written // _EVERY_BYTES >= splats:
                block += [f"[{time_s:12.6f}][   T71] {line}" for line in _SPLAT]
                splats += 1
            written += log.write("\n".join(block) + "\n")
    return splats


def measure(program: str, path: Path) -> tuple[float, int, int]:
    """Seconds, what was counted, peak memory in KiB, of a program of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    seconds, count, peak = done.stdout.split()
    return float(seconds), int(count), int(peak)


def main() -> int:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory(prefix="splat-speed-") as folder:
        path = Path(folder) / "console.log"
        expected = write_log(path, megabytes * 1_000_000)
        size_mb = path.stat().st_size / 1e6
        plain_s, _, _ = measure(_PLAIN, path)
        detect_s, found, peak_kib = measure(_DETECT, path)
        feed_s, fed, feed_kib = measure(_FEED, path)
    out = sys.stdout.write
    out(f"log             {size_mb:8.0f} MB, {expected} splats in it\n")
    out(f"plain read      {size_mb / plain_s:8.1f} MB/s\n")
    out(f"read_files      {size_mb / detect_s:8.1f} MB/s  ratio {plain_s / detect_s:.3f}")
    out(f"  peak {peak_kib / 1024:.0f} MB  found {found}\n")
    out(f"Detector.feed   {size_mb / feed_s:8.1f} MB/s  ratio {plain_s / feed_s:.3f}")
    out(f"  peak {feed_kib / 1024:.0f} MB  found {fed}\n")
    good = size_mb / detect_s >= 20 and peak_kib < 200 * 1024 and found == fed == expected
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
