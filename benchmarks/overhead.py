"""What the lab itself costs: a second `lab run` with nothing changed.

    python benchmarks/overhead.py [SERIES]

Runs the series once (building what is missing), then once more, and of the second run prints
whether make was called, how long it took to the first guest command, and the share of the wall
time of the whole process that is neither make nor guest (the aim: at most 0.05). Exits with 1 if
an aim is missed.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
AIM = 0.05


def main() -> int:
    series = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "patches/demo")
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as name:
        lab = [str(Path(sys.executable).parent / "lab"), "--runs", name]
        arch = "arm64" if platform.machine() == "aarch64" else platform.machine()
        argv = [*lab, "run", "--patch", series, "--arch", arch, "--parallel", "1"]
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=False, timeout=7200)
        began = time.monotonic()
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=False, timeout=7200)
        wall_s = time.monotonic() - began
        newest = max(Path(name).glob("*/record.json"))
        record = json.loads(newest.read_text())
    make_ran = [kernel["make_ran"] for kernel in record["kernels"]]
    guest_s = record["timing"]["guest_s"]
    first = record["trials"][0]
    before_s = record["timing"]["setup_s"] + (first["boot_s"] or 0.0)
    share = (wall_s - record["timing"]["make_s"] - guest_s) / wall_s
    print(f"make called in the second run   {any(make_ran)}    aim: False")
    print(f"to the first guest command      {before_s:6.1f} s")
    print(f"wall {wall_s:.1f} s, in guests {guest_s:.1f} s")
    print(f"the lab's own share             {share:6.3f}    aim: at most {AIM}")
    return 0 if not any(make_ran) and len(make_ran) == 2 and share <= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
