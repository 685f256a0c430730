"""Cold boot to the first command: the lab against `vng -r`, one kernel, one accelerator, one run.

    python benchmarks/boot_time.py [ROUNDS]

Times whole commands from start to end, `lab boot -- true` and `vng -r KERNEL -- true`, in turns,
and prints medians and their ratio (the aim: at most 0.5). Both are told to use the accelerator
that the lab has proven. virtme-ng needs the host's udev (Debian: apt-get install udev) to find its
own ports. Exits with 1 if the ratio is missed, 3 if one of them does not boot.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
AIM = 0.5


def timed(argv: list[str], cwd: Path) -> float:
    """Wall time of a command that must succeed, seconds."""
    began = time.monotonic()
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    took = time.monotonic() - began
    if done.returncode != 0:
        sys.stderr.write(f"{argv} ended with {done.returncode}\n{done.stdout}\n{done.stderr}\n")
        sys.exit(3)
    return took


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as name:
        folder = Path(name)
        config = folder / "lab.toml"
        arch = "arm64" if platform.machine() == "aarch64" else platform.machine()
        config.write_text(f'arch = ["{arch}"]\n[build]\nfragments = ["{HERE / "vng.config"}"]\n')
        lab = [str(BIN / "lab"), "--config", str(config), "--quiet"]
        built = subprocess.run(
            [*lab, "build", "--json"], stdout=subprocess.PIPE, check=True, timeout=3600
        )
        (kernel,) = json.loads(built.stdout)
        timed([*lab, "boot", "--", "true"], folder)  # image, initramfs and accelerator are ready
        checks = json.loads(
            subprocess.run(
                [*lab, "doctor", "--arch", arch, "--json"],
                stdout=subprocess.PIPE,
                check=False,
                timeout=300,
            ).stdout
        )
        (found,) = [c["found"] for c in checks if c["name"].startswith("accelerator")]
        vng = [str(BIN / "vng"), "-r", kernel["image"], "--cpus", "2", "--memory", "1G"]
        if not found.startswith("kvm"):
            vng += ["--disable-kvm"]
        if shutil.which(str(BIN / "vng")) is None:
            sys.stderr.write("vng is not installed: pip install '.[bench]'\n")
            return 3
        os.environ["PATH"] = f"{BIN}:{os.environ.get('PATH', '')}"  # vng starts virtme-run
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(rounds):
            ours.append(timed([*lab, "boot", "--", "true"], folder))
            theirs.append(timed([*vng, "--", "true"], folder))
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"accelerator            {found.split(',')[0]}")
    print(f"lab boot -- true       {statistics.median(ours):6.2f} s  (of {rounds})")
    print(f"vng -r KERNEL -- true  {statistics.median(theirs):6.2f} s  (of {rounds})")
    print(f"ratio                  {ratio:6.2f}    aim: at most {AIM}")
    return 0 if ratio <= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
