"""The suite faultinject: profiles, each way a case can end, and its guest script for real."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import host, selection, subject, trial
from lab.config import Config
from lab.guest import Down, Exited, TimedOut
from lab.model import CaseResult, CaseState, MachineEnd, Splat, UserError
from lab.splat.kinds import Kind as SplatKind
from lab.suites import injection, registry
from lab.suites.armed import SCRIPT
from lab.suites.faultinject import Faultinject
from lab.suites.injection import Injection, Kind, Threads
from lab.suites.protocol import PlannedCase, SuiteOptions, Told
from lab.trial import Console, Progress

END = {"event": "end", "verdict": "pass", "status": 0, "missing": "", "failed_calls": 4}
LEAK = """\
unreferenced object 0xffff888003a5c0c8 (size 200):
  comm "fs-change0", pid 212, jiffies 4294900000 (age 9.112s)
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  ................
  backtrace:
    [<00000000b2b4b1ab>] kmem_cache_alloc+0x116/0x3a0
    [<000000003f7cd1a7>] vm_area_dup+0x26/0x100
    [<00000000e6e0b6a3>] __split_vma+0x8b/0x220
"""


def said(*events: dict[str, object]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def exited(status: int, stdout: bytes = b"", stderr: bytes = b"") -> Exited:
    return Exited(status=status, stdout=stdout, stderr=stderr, duration_s=1.0, truncated=False)


# --- profiles ----------------------------------------------------------------------------------


def test_every_kind_has_a_profile_and_each_names_what_it_needs() -> None:
    profiles = injection.profiles()
    assert {profile.kind for profile in profiles} == set(Kind)
    assert all(profile.what and profile.kind.symbols for profile in profiles)
    cases = Faultinject().plan(SuiteOptions())
    assert {case.name.split("/")[1] for case in cases} == {profile.name for profile in profiles}
    for case in cases:
        profile = injection.from_text(case.arguments[0])
        assert set(profile.kind.symbols) < set(case.required)


def test_the_seed_picks_the_interval_and_nothing_else_does() -> None:
    profile = Injection(
        name="some",
        what="",
        kind=Kind.FAILSLAB,
        scenario="mixed",
        filesystems=("ext4",),
        interval=(5, 500),
        settings={"ignore-gfp-wait": "N"},
    )
    assert profile.arguments(3) == profile.arguments(3)
    assert len({profile.arguments(seed) for seed in range(20)}) > 10
    words = profile.arguments(3)
    # Nothing is armed before the filter keeps it from everybody else.
    assert words[0] == "task-filter=Y" and words[-1] == "probability=100"
    assert "ignore-gfp-wait=N" in words


GOOD = """\
what = "something"
kind = "failslab"
scenario = "mixed"
filesystems = ["ext4"]
"""


def test_a_profile_of_the_users_own_is_planned(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    cases = Faultinject().plan(SuiteOptions(injections=(str(path),)))
    assert "faultinject/mine/ext4" in {case.name for case in cases}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("mine", GOOD.replace("failslab", "failure"), "kind"),
        ("mine", GOOD + 'colour = "red"\n', "colour"),
        ("mine", GOOD + 'threads = "device"\n', "threads"),
        ("mine", GOOD + 'name = "other"\n', "name"),
        ("mine", GOOD + "probability = 0\n", "probability"),
        ("mine", GOOD + "interval = [9, 3]\n", "interval"),
        ("mine", GOOD + "times = 0\n", "times"),
        ("mine", GOOD + 'expects = ["noise"]\n', "expects"),
        ("mine", GOOD + '[settings]\n"../task" = "1"\n', "settings"),
        ("mine", GOOD.replace("failslab", "memcg") + 'threads = "none"\n', "memory_max"),
        ("mine", GOOD.replace("ext4", "tmpfs").replace("failslab", "fail_make_request"), "tmpfs"),
        ("mine", GOOD.replace('"mixed"', '"dance"'), "dance"),
        ("mine", GOOD.replace("ext4", "reiserfs"), "reiserfs"),
        ("mine", "what = ", "mine.toml"),
        ("failslab", GOOD, "another profile"),
        ("..mine", GOOD, "name"),
    ],
)
def test_a_bad_profile_is_an_error_that_names_it(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        Faultinject().plan(SuiteOptions(injections=(str(path),)))


def selected(*groups: str) -> selection.Selection:
    words = [f"faultinject:{group}" for group in groups] or ["faultinject"]
    return selection.select(selection.parse(words), SuiteOptions(filesystems=("ext4",)))


def test_a_profile_that_cannot_inject_is_refused_before_anything_is_built() -> None:
    with pytest.raises(UserError, match="FAILSLAB") as caught:
        subject.check_asked(selected(), Config(profile="lockdep"), "x86_64")
    assert "faultinject:dm-error" in caught.value.hint
    assert "faultinject:failslab" not in caught.value.hint
    subject.check_asked(selected("memcg", "dm-flakey"), Config(profile="lockdep"), "x86_64")
    subject.check_asked(selected(), Config(profile="faultinject"), "x86_64")


def test_a_kernel_that_lost_an_option_runs_what_does_without() -> None:
    suite = Faultinject()
    cases = suite.plan(SuiteOptions(filesystems=("ext4",)))
    assert {"FAILSLAB", "DM_FLAKEY", "EXT4_FS"} <= set(registry.required(suite, cases))
    config = "CONFIG_EXT4_FS=y\nCONFIG_MEMCG=y\n"
    assert registry.runnable(suite, cases, config) == ("faultinject/memcg/ext4",)


# --- how a case ends ---------------------------------------------------------------------------

Answer = Exited | TimedOut | Down


@dataclass(slots=True)
class ScriptedGuest:
    """Answers by the first word that fits; everything else ends well. Keeps what it was asked."""

    answers: dict[str, Answer | Callable[[], Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Answer:
        words = list(argv)
        if SCRIPT.name in words:
            words = words[words.index(SCRIPT.name) + 1 :]
        if words[0] == "within":
            words = words[1:]
        line = " ".join(words)
        self.asked.append(line)
        for key, answer in self.answers.items():
            if line.startswith(key):
                return answer() if callable(answer) else answer
        if words[0] == "mountpoint":
            return exited(1)
        if "--scenario" in words:
            await asyncio.sleep(0.05)  # as long as the profile waits before it arms
            return exited(0, said(END))
        if words[0] == "disarm":
            return exited(0, b"injected 17\n")
        return exited(0, b"kmemleak 0\n" if words[0] == "leaks" else b"")

    def at(self, start: str) -> int:
        return next(number for number, line in enumerate(self.asked) if line.startswith(start))


def case_of(kind: Kind = Kind.FAILSLAB, filesystem: str = "ext4") -> PlannedCase:
    threads = Threads.ALL if kind.attribute else Threads.DEVICE if kind.beside else Threads.NONE
    profile = Injection(
        name="some",
        what="",
        kind=kind,
        scenario="mixed",
        filesystems=(filesystem,),
        threads=threads,
        after_s=0.01,
        memory_max="14M",
    )
    return PlannedCase(
        name=f"faultinject/some/{filesystem}",
        timeout_s=9.0,
        filesystem=filesystem,
        arguments=(injection.to_text(profile), "1.0", "4"),
    )


def run(guest: ScriptedGuest, case: PlannedCase | None = None) -> CaseResult:
    told = asyncio.run(Faultinject().run(guest, case or case_of(), 5))
    assert isinstance(told, Told)
    assert told.files == {} or "faultinject.log" in told.files
    return told.result


@pytest.mark.parametrize("kind", Kind)
def test_a_case_passes_if_all_is_well_and_something_was_injected(kind: Kind) -> None:
    guest = ScriptedGuest()
    result = run(guest, case_of(kind))
    assert result.state is CaseState.PASSED, result.message
    assert result.metrics["injected"] == (4 if kind.beside else 17)
    program, arm, disarm = (
        guest.at("/lab/bin/faultstress"),
        guest.at(f"arm {kind}"),
        guest.at("disarm"),
    )
    # A device fails while the program runs: it could not make its files otherwise.
    assert (program < arm) == kind.beside
    assert max(program, arm) < disarm < guest.at("kept") < guest.at("e2fsck") < guest.at("away")
    assert guest.asked[-1] == "away"


WRONG: dict[str, tuple[dict[str, Answer], str]] = {
    "a corruption": (
        {
            "/lab/bin/faultstress": exited(
                1,
                said(
                    {"event": "corruption", "kind": "stale"},
                    {**END, "verdict": "corruption", "status": 1},
                ),
            )
        },
        "stale",
    ),
    "lost data": ({"kept": exited(1, b"", b"kept: FAILED\n")}, "data that was synced"),
    "damage": ({"e2fsck": exited(4, b"", b"Inode 12 has a bad block\n")}, "Inode 12"),
    "a busy mount": ({"umount": exited(32, b"", b"umount: target is busy\n")}, "busy"),
    "no second mount": ({"disarm": exited(1, b"", b"no such device\n")}, "disarming"),
    "a leak": ({"leaks find": exited(0, b"kmemleak 2\n" + LEAK.encode())}, "2 objects leaked"),
    "arming": ({"arm": exited(3, b"", b"this kernel has no failslab\n")}, "no failslab"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_an_error_path_leaves_behind_fails_the_case(what: str) -> None:
    answers, told = WRONG[what]
    result = run(ScriptedGuest(answers=dict(answers)))
    assert result.state is CaseState.FAILED
    assert told in result.message


def test_a_leak_names_who_lost_the_memory() -> None:
    answers: dict[str, Answer | Callable[[], Answer]] = {
        "leaks find": exited(0, b"kmemleak 1\n" + LEAK.encode())
    }
    message = run(ScriptedGuest(answers=answers)).message
    assert 'comm "fs-change0"' in message and "vm_area_dup+0x26/0x100" in message


def test_it_must_pass_again_once_nothing_fails() -> None:
    runs = iter([exited(0, said(END)), exited(4, said({**END, "verdict": "x", "status": 4}))])
    guest = ScriptedGuest(answers={"/lab/bin/faultstress": lambda: next(runs)})
    result = run(guest)
    assert result.state is CaseState.FAILED
    assert "without failures it does not pass" in result.message


@pytest.mark.parametrize("disarmed", [b"injected 0\n", b"", b"injected -4\n"])
def test_no_injected_failure_is_no_pass(disarmed: bytes) -> None:
    result = run(ScriptedGuest(answers={"disarm": exited(0, disarmed)}))
    assert result.state is CaseState.UNCOVERED
    assert "nothing was tested" in result.message


def test_a_device_that_failed_unnoticed_is_no_pass() -> None:
    quiet = exited(0, said({**END, "failed_calls": 0, "failed_faults": 0}))
    guest = ScriptedGuest(answers={"/lab/bin/faultstress": quiet})
    assert run(guest, case_of(Kind.DM_FLAKEY)).state is CaseState.UNCOVERED


def test_without_kmemleak_it_passes_and_says_so() -> None:
    result = run(ScriptedGuest(answers={"leaks": exited(0, b"kmemleak absent\n")}))
    assert result.state is CaseState.PASSED
    assert "leaks were not looked for" in result.message


def test_kmemleak_that_gave_up_is_no_pass() -> None:
    result = run(ScriptedGuest(answers={"leaks find": exited(0, b"kmemleak off\n")}))
    assert result.state is CaseState.UNCOVERED


def test_a_kernel_without_the_file_system_is_a_skip() -> None:
    guest = ScriptedGuest(answers={"grep": exited(1)})
    assert run(guest).state is CaseState.SKIPPED
    assert guest.asked[-1] == "away"


def test_a_hang_is_one_and_nothing_more_is_asked() -> None:
    events = ({"event": "hang", "thread": 0, "op": "mmap", "stuck_s": 60}, END | {"status": 5})
    guest = ScriptedGuest(answers={"/lab/bin/faultstress": exited(5, said(*events))})
    assert run(guest).state is CaseState.HUNG
    assert not any(line.startswith(("umount", "e2fsck")) for line in guest.asked)
    late = TimedOut(stdout=b"", stderr=b"", duration_s=9.0)
    assert run(ScriptedGuest(answers={"/lab/bin/faultstress": late})).state is CaseState.TIMEOUT


STEPS = ("leaks clear", "grep", "keep", "arm", "/lab/bin/faultstress", "disarm", "e2fsck", "away")


@pytest.mark.parametrize("step", STEPS)
def test_a_machine_that_goes_away_is_said_so(step: str) -> None:
    down = Down(end=MachineEnd.PANICKED, detail="gone")
    ended = asyncio.run(Faultinject().run(ScriptedGuest(answers={step: down}), case_of(), 5))
    assert ended == down


@pytest.mark.parametrize(
    ("kind", "state"),
    [(SplatKind.IO_ERROR, CaseState.PASSED), (SplatKind.KASAN, CaseState.FAILED)],
)
def test_only_what_a_profile_expects_may_be_on_the_console(
    kind: SplatKind, state: CaseState
) -> None:
    plan = Faultinject().plan(SuiteOptions(filesystems=("xfs",)))
    (case,) = (case for case in plan if case.name == "faultinject/dm-error/xfs")
    progress = Progress(results=[CaseResult(name=case.name, state=CaseState.PASSED)])
    progress.begun, progress.ended = {case.name: 1}, {case.name: 9}
    console = Console()
    console.splats = [Splat(kind=kind, title="said", first_line=5, last_line=5)]
    ((result,), _) = trial._charge(progress, console, {case.name: case})
    assert result.state is state
    assert bool(result.splats[0].allowed) == (state is CaseState.PASSED)


# --- the script, on this machine -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Files that look like debugfs, and what the script is told of them."""

    root: Path
    more: dict[str, str] = field(default_factory=dict)  # of the environment

    def step(self, *words: str) -> tuple[int, str, str]:
        env = {
            "PATH": os.environ["PATH"],
            "LAB_DEBUG": str(self.root / "debug"),
            "LAB_STATE": str(self.root / "state"),
            "LAB_KMSG": str(self.root / "kmsg"),
            **self.more,
        }
        done = host.run(("/bin/sh", SCRIPT, *words), env=env, check=False, timeout_s=60)
        return done.status, done.text, done.complaint


@pytest.fixture
def place(tmp_path: Path) -> Place:
    attribute = tmp_path / "debug" / "failslab"
    attribute.mkdir(parents=True)
    for name in ("probability", "interval", "times", "space", "verbose", "task-filter"):
        (attribute / name).write_text("0\n")
    return Place(tmp_path)


@pytest.mark.fake
def test_the_script_counts_what_was_injected(place: Place) -> None:
    attribute = place.root / "debug" / "failslab"
    assert place.step("arm", "failslab", "times=1000", "interval=7", "probability=100")[0] == 0
    assert (attribute / "probability").read_text() == "100\n"
    assert (attribute / "interval").read_text() == "7\n"
    (attribute / "times").write_text("958\n")
    assert place.step("disarm", "failslab")[:2] == (0, "injected 42\n")
    assert (attribute / "probability").read_text() == "0\n"


@pytest.mark.fake
@pytest.mark.parametrize("kind", ["dm-error", "dm-flakey"])
def test_what_a_dead_device_fails_is_counted_in_the_log(place: Place, kind: str) -> None:
    tools = place.root / "bin"
    tools.mkdir()
    for name, text in (
        ("dmsetup", f"echo $* >>{place.root}/tables"),
        ("blockdev", "echo 4096"),
        ("dmesg", f"cat {place.root}/log; cat {place.root}/kmsg {place.root}/later"),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    (place.root / "log").write_text("[1.0] Buffer I/O error on dev dm-0, logical block 1\n")
    place.more["PATH"] = f"{tools}:{os.environ['PATH']}"
    place.more["LAB_FAILING"] = "/dev/a /dev/b"
    assert place.step("arm", kind, *(["2", "1"] if kind == "dm-flakey" else []))[0] == 0
    (place.root / "later").write_text(
        "[2.0] Buffer I/O error on dev dm-1, logical block 7, lost async page write\n"
        "[2.1] EXT4-fs (dm-0): I/O error while writing superblock\n"
        "[2.2] EXT4-fs (dm-0): unmounting filesystem.\n"
        "[2.3] Buffer I/O error on dev vdb, logical block 7\n"
    )
    assert place.step("disarm", kind)[:2] == (0, "injected 2\n")
    tables = (place.root / "tables").read_text()
    target = {"dm-error": "error\n", "dm-flakey": "flakey /dev/b 0 2 1"}[kind]
    assert f"load lab-b --table 0 4096 {target}" in tables
    assert "load lab-a --table 0 4096 linear /dev/a 0" in tables


@pytest.mark.fake
def test_the_script_says_what_the_kernel_lacks(place: Place) -> None:
    status, _, complaint = place.step("arm", "fail_futex", "times=9")
    assert status == 3 and "fail_futex" in complaint
    assert place.step("leaks", "find")[:2] == (0, "kmemleak absent\n")


@pytest.mark.fake
def test_the_script_sees_a_file_that_changed(place: Place) -> None:
    folder = place.root / "mnt"
    folder.mkdir()
    assert place.step("keep", str(folder))[0] == 0
    assert place.step("kept", str(folder))[0] == 0
    with (folder / "kept").open("r+b") as stream:
        stream.seek(70_000)
        stream.write(b"not what it was")
    assert place.step("kept", str(folder))[0] != 0


@pytest.mark.fake
def test_the_script_forgets_older_leaks(place: Place) -> None:
    kmemleak = place.root / "debug" / "kmemleak"
    kmemleak.write_text(LEAK)
    assert place.step("leaks", "clear")[:2] == (0, "kmemleak 0\n")
    assert kmemleak.read_text() == "clear\n"
