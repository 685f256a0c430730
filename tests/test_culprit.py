"""`lab bisect` short of QEMU: symptoms, git histories, toy kernels really built, git bisect run."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import bisect, source
from lab.bisect import Ending, Rules, Step, StepKind
from lab.build.signature import signature
from lab.config import Config, Paths
from lab.culprit import hunt, track
from lab.culprit.bench import KernelBench
from lab.culprit.symptom import Symptom, judge
from lab.culprit.track import Point, Track
from lab.kconfig import Fragment
from lab.model import (
    CaseResult,
    CaseState,
    Cell,
    Event,
    Kernel,
    LabFault,
    MachineEnd,
    Side,
    Splat,
    Trial,
    UserError,
)
from lab.patching import Applied
from lab.selection import Selection
from lab.store import Cache
from tests.records import TCG
from tests.test_build import FRAGMENT, TOY

CASE = "faultstress/ext4/truncate"


def a_trial(
    state: CaseState | None,
    *,
    end: MachineEnd = MachineEnd.POWERED_OFF,
    booted: bool = True,
    splat: str = "",
    case: str = CASE,
) -> Trial:
    splats = (Splat(kind="warning", title=splat, first_line=1, last_line=2, fingerprint="f00d"),)
    result = CaseResult(name=case, state=state or CaseState.PASSED, splats=splats if splat else ())
    return Trial(
        id="t",
        cell=Cell(
            arch="x86_64",
            side=Side.PATCHED,
            profile="lockdep",
            suites=("faultstress",),
            cases=(case,),
            kernel_key="k",
            image_sha256="",
            repeat=0,
            seed=1,
            memory_bytes=1 << 30,
            cpus=2,
        ),
        end=end,
        accelerator=TCG,
        started="2026-01-01T00:00:00+00:00",
        boot_s=3.0 if booted else None,
        guest_s=1.0,
        wall_s=4.0,
        results=(result,) if state else (),
    )


# --- what a run says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "end", "booted", "kind"),
    [
        (CaseState.PASSED, MachineEnd.POWERED_OFF, True, StepKind.GOOD),
        (CaseState.FAILED, MachineEnd.POWERED_OFF, True, StepKind.BAD),
        (CaseState.CRASHED, MachineEnd.PANICKED, True, StepKind.BAD),
        (CaseState.HUNG, MachineEnd.HUNG_SILENT, True, StepKind.BAD),
        (CaseState.SKIPPED, MachineEnd.POWERED_OFF, True, StepKind.NOTHING),
        (CaseState.UNCOVERED, MachineEnd.POWERED_OFF, True, StepKind.NOTHING),
        (CaseState.CRASHED, MachineEnd.QEMU_DIED, True, StepKind.LOST),
        (CaseState.CRASHED, MachineEnd.LOST, True, StepKind.LOST),
        (None, MachineEnd.HUNG_BOOT, False, StepKind.NOTHING),
        (None, MachineEnd.QEMU_DIED, False, StepKind.LOST),
        (None, MachineEnd.POWERED_OFF, True, StepKind.NOTHING),
    ],
)
def test_a_case_is_bad_only_if_the_kernel_failed_it(
    state: CaseState | None, end: MachineEnd, booted: bool, kind: StepKind
) -> None:
    trial = a_trial(state, end=end, booted=booted)
    assert judge(Symptom(cases=(CASE,)), [trial]).kind is kind


def test_not_booting_is_bad_where_booting_is_the_case() -> None:
    dead = a_trial(None, end=MachineEnd.PANICKED, booted=False)
    assert judge(Symptom(cases=("boot/hello",)), [dead]).kind is StepKind.BAD


@pytest.mark.parametrize("wanted", ["f00d", "in truncate_PAGECACHE"])
def test_a_splat_is_known_by_fingerprint_or_title(wanted: str) -> None:
    symptom = Symptom(cases=(CASE,), splat=wanted)
    shown = a_trial(CaseState.FAILED, splat="WARNING in truncate_pagecache")
    assert judge(symptom, [shown]).kind is StepKind.BAD
    assert judge(symptom, [a_trial(CaseState.FAILED)]).kind is StepKind.GOOD
    other = a_trial(CaseState.CRASHED, end=MachineEnd.PANICKED, splat="BUG in other")
    if wanted != "f00d":
        # Another crash cut it short: that it did not show proves nothing.
        assert judge(symptom, [other]).kind is StepKind.NOTHING


# --- a real git repository ---------------------------------------------------------------------


def git(where: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgSign=false")
    done = subprocess.run(
        ["git", "-C", str(where), *identity, *words],
        capture_output=True, text=True, check=True, timeout=280,
    )  # fmt: skip
    return done.stdout.strip()


def long_history(folder: Path, commits: int, culprit: int) -> Path:
    """A repository that passes for a kernel; from commit `culprit` on its file `bug` says yes."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 0\n")
    (folder / "Kconfig").write_text("")
    (folder / "bug").write_text("no\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "start")
    git(folder, "tag", "good")
    stream = []
    for number in range(1, commits + 1):
        bug = "yes" if number >= culprit else "no"
        message = f"mm: step {number}"
        stream.append(
            f"commit refs/heads/main\ncommitter a <a@example.org> {1700000000 + number} +0000\n"
            f"data {len(message)}\n{message}\n"
            + ("from refs/heads/main^0\n" if number == 1 else "")
            + f"M 100644 inline bug\ndata {len(bug) + 1}\n{bug}\n\n"
            f"M 100644 inline step\ndata {len(str(number))}\n{number}\n\n"
        )
    subprocess.run(
        ["git", "-C", str(folder), "fast-import", "--quiet"],
        input="".join(stream).encode(), check=True, timeout=60,
    )  # fmt: skip
    git(folder, "reset", "-q", "--hard")
    return folder


def looks(repository: Path) -> tuple[str, ...]:
    """What git says of a tree that nobody may write to."""
    asked = (("status", "--porcelain", "--ignored"), ("for-each-ref",), ("count-objects", "-v"))
    return tuple(git(repository, *words) for words in asked)


@dataclass
class GitBench:
    """Tests a commit by what git says is in it; fails at the given rates."""

    folder: Path
    commits: Sequence[str]
    bad: float
    good: float
    dice: random.Random
    known: dict[int, bool] = field(default_factory=dict)

    def build(self, revision: int) -> Step:
        said = git(self.folder, "show", f"{self.commits[revision]}:bug")
        self.known[revision] = said == "yes"
        kernel = f"kernel {revision}"
        return Step(kind=StepKind.BUILT, revision=revision, kernel=kernel, seconds=40)

    def run(self, revision: int) -> Step:
        fails = self.dice.random() < (self.bad if self.known[revision] else self.good)
        kind = StepKind.BAD if fails else StepKind.GOOD
        return Step(kind=kind, revision=revision, seconds=10)


@pytest.mark.fake
@pytest.mark.timeout(300)
def test_a_commit_of_a_real_history_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = long_history(tmp_path / "linux", 128, 77)
    before = git(repository, "status", "--porcelain", "--ignored") + git(
        repository, "rev-parse", "HEAD"
    )
    config = Config(kernel=str(repository), arch=("x86_64",))
    events: list[Event] = []
    cache = Cache(root=tmp_path / "cache")
    found = track.of_history("good..main", config, cache, events.append)
    assert len(found.points) == 129
    commits = [point.step.commit for point in found.points]
    right = 0
    for seed, (bad, good) in enumerate([(1.0, 0.0), (1.0, 0.02), (0.3, 0.0), (0.1, 0.0)] * 2):
        bench = GitBench(repository, commits, bad, good, random.Random(seed))
        result = bisect.search(bisect.begin(found.revisions), bench, Rules(), lambda step: None)
        right += result.ending is Ending.FOUND and result.first == 77
    assert right >= 7
    assert found.revisions[77].title == "mm: step 77"
    after = git(repository, "status", "--porcelain", "--ignored") + git(
        repository, "rev-parse", "HEAD"
    )
    assert after == before


@pytest.mark.fake
@pytest.mark.parametrize("span", ["main", "..main", "main..good", "main..main", "good...main"])
def test_a_range_that_is_none_is_refused(tmp_path: Path, span: str) -> None:
    repository = long_history(tmp_path / "linux", 2, 1)
    config = Config(kernel=str(repository), arch=("x86_64",))
    with pytest.raises(UserError):
        track.of_history(span, config, Cache(root=tmp_path / "cache"), lambda event: None)


# --- toy kernels, built for real ---------------------------------------------------------------

COMMENT = "/* words */\n"


def toy_history(folder: Path) -> Path:
    """Toy kernels: 2 changes a comment, 3 does not build, 4 repairs that, 5 brings the bug."""
    shutil.copytree(TOY, folder)
    git(folder, "init", "-q", "-b", "main")
    memory = folder / "mm/memory.c"
    whole = memory.read_text()
    texts = [
        whole,
        whole + "int first_step = 1;\n",
        whole + "int first_step = 1;\n" + COMMENT,
        whole + "int first_step = 1\n" + COMMENT,
        whole + "int first_step = 1;\n" + COMMENT + "int fourth_step = 1;\n",
        whole + "int first_step = 1;\n" + COMMENT + "int fourth_step = 1;\nint planted_bug = 1;\n",
        whole + "int first_step = 1;\n" + COMMENT + "int fourth_step = 1;\nint planted_bug = 2;\n",
    ]
    for number, text in enumerate(texts):
        memory.write_text(text)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"mm: step {number}")
    return folder


def toy_track(repository: Path, cache: Cache) -> Track:
    first = git(repository, "rev-list", "--max-parents=0", "HEAD")
    base = source.open_source(f"{repository}@{first}", cache=cache, emit=lambda event: None)
    points: list[Point] = []
    fragments: tuple[Fragment, ...] = (FRAGMENT,)
    for line in git(repository, "log", "--reverse", "--format=%H %T %s").splitlines():
        commit, tree, title = line.split(maxsplit=2)
        step = Applied(commit=commit, tree=tree)
        points.append(track._point(step, fragments, label=commit[:8], title=title))
    return Track(what="history", title="toys", source=base, points=tuple(points))


@dataclass
class Booted:
    """Instead of QEMU: a kernel with the planted symbol fails its case."""

    calls: list[str] = field(default_factory=list)
    stop_after: int = 10**6

    def __call__(self, kernel: Kernel, repeat: int, folder: Path) -> Sequence[Trial]:
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(kernel.key)
        bad = b"planted_bug" in kernel.vmlinux.read_bytes()
        return [a_trial(CaseState.FAILED if bad else CaseState.PASSED)]


MakeBench = Callable[[Booted, Path], KernelBench]


@pytest.fixture
def toys(tmp_path: Path) -> MakeBench:
    cache = Cache(root=tmp_path / "cache")
    found = toy_track(toy_history(tmp_path / "linux"), cache)

    def make(booted: Booted, folder: Path) -> KernelBench:
        return KernelBench(
            track=found,
            symptom=Symptom(cases=(CASE,)),
            cases=Selection(suites=(), cases=()),
            config=Config(arch=("x86_64",)),
            cache=cache,
            folder=folder,
            emit=lambda event: None,
            boot=booted,
        )

    return make


@pytest.mark.fake
def test_toy_kernels_are_built_skipped_and_recognised(toys: MakeBench, tmp_path: Path) -> None:
    bench = toys(Booted(), tmp_path / "out")
    steps = [bench.build(revision) for revision in range(7)]
    kinds = [step.kind for step in steps]
    assert kinds == [StepKind.BUILT] * 3 + [StepKind.UNTESTABLE] + [StepKind.BUILT] * 3
    assert "mm/memory.c" in steps[3].note
    kernels = [step.kernel for step in steps]
    assert kernels[1] == kernels[2] != kernels[0]  # only a comment
    assert len({kernels[0], kernels[1], kernels[4], kernels[5]}) == 4
    assert all(bench.kernels[place].seeded_from for place in (1, 2, 4, 5, 6))


@pytest.mark.fake
@pytest.mark.timeout(240)
def test_a_bisection_that_was_cut_off_goes_on(toys: MakeBench, tmp_path: Path) -> None:
    config = Config(arch=("x86_64",), paths=_paths(tmp_path))
    emitted: list[Event] = []

    def go_on(booted: Booted) -> hunt.Record:
        bench = toys(booted, tmp_path / "out")
        whole = hunt.Hunt(
            config=config, track=bench.track, symptom=bench.symptom, cases=bench.cases
        )
        with hunt.open_log(whole, hunt.Request(config=config), emitted.append) as log:
            bench.folder, bench.done = log.folder, hunt.runs_done(log.state)
            return hunt.pursue(log, bench, Rules(), emitted.append)

    with pytest.raises(KeyboardInterrupt):
        go_on(Booted(stop_after=3))
    booted = Booted()
    record = go_on(booted)
    assert any("goes on: 3 runs" in event.text for event in emitted)
    assert record.result.ending is Ending.FOUND
    assert record.header.revisions[record.result.first].title == "mm: step 5"
    assert record.result.runs == 3 + len(booted.calls)
    (folder,) = (tmp_path / "runs").iterdir()  # one log for both
    _, state, _ = bisect.replay((folder / hunt.LOG).read_bytes())
    assert state.runs == record.result.runs
    # Asked once more, nothing runs.
    again = go_on(Booted(stop_after=0))
    assert again.result == record.result


def _paths(folder: Path) -> Paths:
    return Paths(cache=str(folder / "cache"), runs=str(folder / "runs"))


@pytest.mark.fake
def test_what_is_no_kernel_has_no_signature(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_text("not ELF")
    with pytest.raises(LabFault):
        signature(tmp_path / "vmlinux")


# --- git bisect run ----------------------------------------------------------------------------

STEP = """
import sys
from pathlib import Path
from lab.bisect import Rates, Step, StepKind
from lab.config import Config, Paths
from lab.culprit import onestep

step = int(Path("step").read_text()) if Path("step").exists() else 0
bad = Path("bug").read_text() == "yes\\n"
runs = [0]

def build(revision):
    kind = StepKind.UNTESTABLE if step % 5 == 0 and step else StepKind.BUILT
    return Step(kind=kind, revision=revision, note="does not build")

def run(revision):
    runs[0] += 1
    fails = bad and runs[0] % 3 == 0
    return Step(kind=StepKind.BAD if fails else StepKind.GOOD, revision=revision)

request = onestep.Request(config=Config(), cases=("x",), rates=Rates(bad=0.3))
sys.exit(onestep.answer(request, build, run, lambda event: None))
"""


@pytest.mark.fake
@pytest.mark.timeout(300)
def test_git_bisect_run_understands_a_step(tmp_path: Path) -> None:
    repository = long_history(tmp_path / "linux", 14, 9)
    program = tmp_path / "step.py"
    program.write_text(STEP)
    git(repository, "bisect", "start", "main", "good")
    said = git(repository, "bisect", "run", sys.executable, str(program))
    assert "is the first bad commit" in said
    assert "mm: step 9" in said


@pytest.mark.fake
@pytest.mark.parametrize("words", [["--bogus"], [], ["--case", "no/such/case"]])
def test_git_bisect_run_stops_at_a_usage_error(tmp_path: Path, words: list[str]) -> None:
    repository = long_history(tmp_path / "linux", 8, 4)
    git(repository, "bisect", "start", "main", "good")
    lab = str(Path(sys.executable).with_name("lab"))
    argv = ["git", "bisect", "run", lab, "--cache", str(tmp_path / "cache"), "bisect", "step"]
    done = subprocess.run(
        [*argv, *words], cwd=repository, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode != 0
    assert "first bad commit" not in done.stdout
    assert "exit code 130" in done.stdout + done.stderr
    assert "refs/bisect/bad" in git(repository, "for-each-ref")  # it can go on by hand
