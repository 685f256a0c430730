"""`kill -9` at random moments: nothing runs on, nothing is mounted, and the next run is right.

By default three moments of a run whose base is in the cache. LAB_TEST_KILLS=10 takes ten;
LAB_TEST_COLD=1 goes all the way, from an empty cache (but for downloads and the compiler's):
checkout, root image, configuring, compiling, linking, accelerator, boot, in a case, between two,
writing the report. LAB_TEST_SEED repeats a choice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import model
from lab.config import Config
from lab.model import CaseState, RunRecord, Side
from lab.store import remove_tree
from tests.conftest import Lab, MakeLab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(5400)]

PR_SET_CHILD_SUBREAPER = 36
KILLS = int(os.environ.get("LAB_TEST_KILLS", "3"))
COLD_CACHE = bool(os.environ.get("LAB_TEST_COLD"))
SEED = int(os.environ.get("LAB_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 16)

TOML = """
arch = ["x86_64"]
suites = ["boot", "faultstress"]
[run]
repeats = 2
max_repeats = 2
[faultstress]
filesystems = ["ext4"]
scenarios = ["truncate", "munmap"]
duration_s = 2
"""
# Changes nothing that a kernel does, and is another series for every seed.
PATCH = "\n".join(
    (
        "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001",
        "From: A Tester <tester@example.org>",
        "Date: Mon, 5 Jan 2026 10:00:00 +0000",
        "Subject: [PATCH] mm: mmzone: say nothing ({seed})",
        "",
        "---",
        " mm/mmzone.c | 1 +",
        " 1 file changed, 1 insertion(+)",
        "",
        "diff --git a/mm/mmzone.c b/mm/mmzone.c",
        "--- a/mm/mmzone.c",
        "+++ b/mm/mmzone.c",
        "@@ -8,3 +8,4 @@",
        " ",
        " #include <linux/stddef.h>",
        "+/* {seed} */",
        " #include <linux/mm.h>",
        "",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A lab at work, as seen from outside."""

    lab: Lab
    cache: Path
    log: Path

    def said(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def has(self, pattern: str) -> bool:
        return any(self.cache.glob(pattern))

    def judged(self) -> bool:
        return any(self.lab.runs.glob("*/record.json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When to kill: once `begun` holds, and then up to `within_s` later."""

    name: str
    begun: Callable[[Running], bool]
    within_s: float
    again: bool = False  # the run after a kill comes to it once more


def said(text: str) -> Callable[[Running], bool]:
    return lambda running: running.said(text)


REPORT = Moment(name="writing the report", begun=Running.judged, within_s=0.05)
# In the order in which a run comes to them.
WARM = (
    Moment(name="patched checkout", begun=said("patched tree: "), within_s=0.5),
    Moment(name="patched build", begun=said("build patched x86_64: from"), within_s=15),
    Moment(name="boot", begun=said("test base x86_64 #1: "), within_s=3, again=True),
    Moment(name="in a case", begun=said("test patched x86_64 #1: "), within_s=15, again=True),
    Moment(
        name="between two machines", begun=said("test patched x86_64 #1: 3 passed"), within_s=0.2
    ),
    Moment(name="judging", begun=said("test base x86_64 #2: 3 passed"), within_s=0.1),
    REPORT,
)
COLD = (
    Moment(name="checkout", begun=said("tree"), within_s=5),
    Moment(name="root image", begun=said("image x86_64: started"), within_s=30),
    Moment(
        name="configuring", begun=lambda run: run.has("builds/*.partial/obj/scripts"), within_s=5
    ),
    Moment(name="compiling", begun=lambda run: run.has("builds/*.partial/obj/mm"), within_s=60),
    Moment(
        name="linking", begun=lambda run: run.has("builds/*.partial/obj/vmlinux.o"), within_s=10
    ),
    Moment(name="accelerator", begun=said("accelerator x86_64: started"), within_s=20),
    *WARM[2:5],
    REPORT,
)


def tell(line: str) -> None:
    """For whoever reads the output of a failed test, or runs pytest with -s."""
    sys.stdout.write(f"\n{line}")


def choose(rng: random.Random) -> tuple[Moment, ...]:
    """As many as asked for, in the order in which a run comes to them."""
    table = COLD if COLD_CACHE else WARM
    if len(table) >= KILLS:
        return tuple(table[number] for number in sorted(rng.sample(range(len(table)), KILLS)))
    again = [moment for moment in table if moment.again]
    extra = rng.choices(again, k=KILLS - len(table))
    return tuple(moment for moment in table for _ in range(1 + extra.count(moment)))


@pytest.fixture
def adopted() -> Iterator[None]:
    """Whoever outlives the lab becomes a child of this process, and is found here."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def children() -> list[str]:
    """Command lines of our living children; dead ones are buried."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for word in (task / "children").read_text().split():
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(int(word), os.WNOHANG) != (0, 0):
                    continue
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{word}/cmdline").read_text().replace("\0", " "))
    return found


def mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text().splitlines())


def loops() -> set[str]:
    return {file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file")}


def settled(check: Callable[[], object], limit_s: float = 10) -> object:
    """What `check` still says after up to `limit_s`; something empty is soon enough."""
    deadline = time.monotonic() + limit_s
    while (left := check()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def kill_at(
    running: Running, argv: Sequence[str], moment: Moment, delay_s: float, tmp: Path
) -> str:
    """Start the lab, kill it at that moment; what it did until then. "": it ended before."""
    with running.log.open("wb") as log:
        process = subprocess.Popen(
            argv, stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, "TMPDIR": str(tmp)}
        )
    while not moment.begun(running) and process.poll() is None:
        time.sleep(0.002)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay_s)
    if process.poll() is not None:
        return ""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return running.log.read_text(errors="replace").splitlines()[-1]


def private_cache(folder: Path) -> Path:
    """An empty cache, but for what costs a download or an hour of compiling."""
    mine = Config().paths.cache_dir
    for name in ("sources", "ccache"):
        (mine / name).mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        (folder / name).symlink_to(mine / name)
    return folder


def left_in(cache: Path, runs: Path) -> list[Path]:
    """Half-made things that only the lab could have left; whole ones stay."""
    return [
        *(cache / "staging").glob("*"),
        # A report that was being written stays for an hour: its writer may be another lab's.
        *(path for path in runs.rglob(".*") if ".report.html" not in path.name),
        *runs.glob("*/trials/*/*.qcow2"),
        *runs.glob("*/trials/*/*.raw"),
        *(trial for trial in runs.glob("*/trials/*") if not (trial / "trial.json").exists()),
    ]


def test_killed_at_random_moments(make_lab: MakeLab, tmp_path: Path, adopted: None) -> None:
    rng = random.Random(SEED)
    moments = choose(rng)
    tell(f"LAB_TEST_SEED={SEED}: {', '.join(moment.name for moment in moments)}")
    series = tmp_path / "series"
    series.mkdir()
    (series / "0001-nothing.patch").write_text(PATCH.format(seed=SEED))
    cache = private_cache(tmp_path / "cache") if COLD_CACHE else Config().paths.cache_dir
    lab = make_lab(f'{TOML}\n[paths]\ncache = "{cache}"\n')
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    running = Running(lab=lab, cache=cache, log=tmp_path / "stderr")
    argv = lab.argv("run", "--patch", series)
    before = mounts(), loops(), children()
    kills = 0
    for moment in moments:
        delay_s = rng.uniform(0, moment.within_s)
        last = kill_at(running, argv, moment, delay_s, temporary)
        tell(f"{moment.name} + {delay_s:.2f} s: {last or 'it had ended'}")
        kills += bool(last)
        assert not settled(lambda: set(children()) - set(before[2])), "something runs on"
        assert not settled(lambda: mounts() - before[0]), "something is mounted"
        assert not settled(lambda: loops() - before[1]), "a loop device is in use"
        assert not list(temporary.iterdir()), "a temporary folder is left"
    assert kills >= max(2, len(moments) - 1)
    lab("run", "--patch", series, expect=0)
    newest = sorted(lab.runs.glob("*/record.json"))[-1]
    record = model.decode(newest.read_bytes(), RunRecord)
    for side in Side:
        seen = [
            (result.name, trial.cell.repeat, result.state)
            for trial in record.trials
            if trial.cell.side is side
            for result in trial.results
        ]
        assert sorted(seen) == sorted(
            (name, repeat, CaseState.PASSED) for name in record.manifest.cases for repeat in (0, 1)
        )
    assert (newest.parent / "report.html").exists()
    mine = [path for path in left_in(cache, lab.runs) if COLD_CACHE or lab.runs in path.parents]
    assert not mine
    for kernel in record.kernels:
        if kernel.side is Side.PATCHED:
            remove_tree(kernel.folder)  # nobody else will ever want it
