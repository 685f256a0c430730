"""Tests of xfstests while something fails: what can be asked for, and each way a case can end."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import host, initramfs
from lab.coverage import lines, study
from lab.guest import Down, Exited, TimedOut
from lab.model import CaseState, MachineEnd, UserError
from lab.splat.kinds import Kind as Splat
from lab.suites import armed, injection, xfsconfig, xfsguest, xfsinject
from lab.suites.injection import Injection, Kind
from lab.suites.protocol import PlannedCase, Told
from lab.suites.xfstests import Xfstests, case_for

PROFILES = {one.name: one for one in injection.profiles()}
TEST = "generic/247"


def exited(status: int, stdout: bytes = b"", stderr: bytes = b"") -> Exited:
    return Exited(status=status, stdout=stdout, stderr=stderr, duration_s=1.0, truncated=False)


# --- what can be asked for -----------------------------------------------------------------------


def test_a_configuration_may_name_what_fails_on_it() -> None:
    assert xfsinject.parse("ext4-4k", PROFILES) == ("ext4-4k", None)
    assert xfsinject.parse("xfs+failslab", PROFILES) == ("xfs", PROFILES["failslab"])


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("ext4-4k+nonesuch", "ext4-4k.nonesuch: no profile 'nonesuch'"),
        ("ext4-4k+", "no profile ''"),
        ("tmpfs+dm-error", "tmpfs has no disk that could fail"),
        ("tmpfs+read-error", "tmpfs has no disk that could fail"),
    ],
)
def test_what_cannot_be_is_an_error(label: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        name, profile = xfsinject.parse(label, PROFILES)
        assert profile is not None
        xfsinject.check(label, xfsconfig.configs()[name], profile)


def case_of(profile: Injection, config: str = "ext4-4k", **more: frozenset[str]) -> PlannedCase:
    return case_for(
        TEST,
        xfsconfig.configs()[config],
        skip="",
        expected_s=0.0,
        timeout_s=40.0,
        profile=profile,
        **more,
    )


def test_a_case_says_what_it_needs_and_what_may_be_on_the_console() -> None:
    case = case_of(PROFILES["read-error"])
    assert case.name == f"xfstests/ext4-4k+read-error/{TEST}"
    assert "FAIL_MAKE_REQUEST" in case.required
    assert {Splat.IO_ERROR, Splat.FS_CORRUPTION, Splat.KMEMLEAK} <= set(case.expects)
    # ext4: "error in ext4_setattr: Out of memory".
    assert set(case_of(PROFILES["failslab"]).expects) == {
        *(Splat.FS_ERROR, Splat.IO_ERROR, Splat.KMEMLEAK)
    }
    assert xfsguest.from_text(case.arguments[0]).profile == PROFILES["read-error"]


def test_coverage_tells_these_tests_from_the_plain_ones() -> None:
    plain, failing = (f"xfstests/{label}/{TEST}" for label in ("xfs", "xfs+failslab"))
    assert lines.suite_of(plain) == "xfstests"
    assert lines.suite_of(plain) not in study.INJECTING
    assert lines.suite_of(failing) in study.INJECTING


@pytest.mark.fake
def test_only_the_programs_that_are_meant_ask_to_be_struck(tmp_path: Path) -> None:
    """strike.so in real programs, with a file in place of /proc/self/make-it-fail."""
    flag, shared = tmp_path / "flag", tmp_path / "strike.so"
    host.run(
        (
            *("gcc", "-shared", "-fPIC", "-nostdlib", f'-DFLAG="{flag}"', "-o", shared),
            initramfs.SOURCES / "shared" / "strike.c",
        )
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    mine = tools / "mine"
    shutil.copy(Path("/bin/true").resolve(), mine)
    for words, program, asked in (
        (f"{tools}/", mine, "1"),
        (f"/nowhere/:{tools}/mine", mine, "1"),
        (f"{tools}/", Path("/bin/true"), "0"),
        (f"/nowhere/:{tools}/other", mine, "0"),
        ("", mine, "0"),
        (":", mine, "0"),
    ):
        flag.write_text("?")
        host.run((program,), env={"LD_PRELOAD": str(shared), "LAB_STRIKE": words})
        assert flag.read_text() == asked, (words, program)
    flag.unlink()
    host.run((mine,), env={"LD_PRELOAD": str(shared), "LAB_STRIKE": f"{tools}/"})
    assert not flag.exists(), "a kernel without fault injection"


# --- how a case ends -----------------------------------------------------------------------------

Answer = Exited | TimedOut | Down


def left(inside: str = "", name: str = TEST) -> bytes:
    """What the guest's script shows of a test that `check` has reported so."""
    report = f'<testsuite><testcase name="{name}">{inside}</testcase></testsuite>'.encode()
    times = f"{TEST} 3\n".encode()
    return b"".join(
        f"file {kind} {len(raw)}\n".encode() + raw + b"\n"
        for kind, raw in (("result.xml", report), ("check.time", times))
    )


@dataclass(slots=True)
class ScriptedGuest:
    """Answers by the first word that fits; everything else ends well. Keeps what it was asked."""

    answers: dict[str, Answer | Callable[[], Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)  # of `check`
    check_s: float = 0.05

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Answer:
        words = list(argv)
        # The innermost script: a memory cgroup is put around `check`.
        script = next(name for name in (xfsguest.SCRIPT.name, armed.SCRIPT.name) if name in words)
        at = words.index(script)
        before, words = words[:at], words[at + 1 :]
        line = " ".join(words)
        self.asked.append(line)
        await asyncio.sleep(0)  # an answer takes its time: what else was begun goes on
        if words[0] == "check":
            pairs = (word.partition("=") for word in before if word.startswith("LAB_"))
            self.environment = {name: value for name, _, value in pairs}
            if armed.SCRIPT.name in before:
                self.asked.append("within")
            await asyncio.sleep(self.check_s)
        for key, answer in self.answers.items():
            if line.startswith(key):
                return answer() if callable(answer) else answer
        if words[0] == "disarm":
            return exited(0, b"injected 17\n")
        if words[0] == "show":
            return exited(0, left())
        return exited(0, b"kmemleak 0\n" if words[0] == "leaks" else b"")

    def at(self, start: str) -> int:
        return next(number for number, line in enumerate(self.asked) if line.startswith(start))


def run(guest: ScriptedGuest, case: PlannedCase | None = None) -> Told:
    told = asyncio.run(Xfstests().run(guest, case or case_of(PROFILES["failslab"]), 5))
    assert isinstance(told, Told)
    return told


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_case_passes_if_all_stays_sound_and_something_was_injected(name: str) -> None:
    profile = injection.from_text(injection.to_text(PROFILES[name]).replace("1.0", "0.01"))
    guest = ScriptedGuest()
    result = run(guest, case_of(profile)).result
    assert (result.state, result.message) == (CaseState.PASSED, "")
    assert result.metrics == {"injected": 17.0}
    steps = ("leaks clear", "setup", "begun", "check", f"arm {profile.kind}", "disarm", "show")
    order = [guest.at(step) for step in (*steps, "sound ext4", "leaks find", "away")]
    assert order == sorted(order)
    assert ("LAB_STRIKE" in guest.environment) == profile.kind.attribute
    assert ("within" in guest.asked) == (profile.kind is Kind.MEMCG)
    # The disks that fail are the ones that it is set up on.
    assert guest.environment.get("LAB_DISKS") == (
        "/dev/mapper/lab-" if profile.kind.mapped else None
    )
    section = guest.asked[guest.at("setup")]
    assert ("TEST_DEV=/dev/mapper/lab-xfstest\n" in section) == profile.kind.mapped
    assert section.startswith(f"setup ext4-4k+{name} "), "no other configuration goes on there"


FAILED = exited(0, left('<failure message="- output mismatch" type="TestFail" />'))
SKIPPED = exited(0, left('<skipped message="no quota here" />'))
ENDS: dict[str, tuple[dict[str, Answer], CaseState, str]] = {
    "the test fails": ({"check": exited(1), "show": FAILED}, CaseState.PASSED, "^$"),
    "it does not run": ({"show": SKIPPED}, CaseState.SKIPPED, "no quota here"),
    "check is hit": (
        {"check": exited(1, b"bash: fork: no memory"), "show": exited(0)},
        CaseState.MISSING,
        "no memory",
    ),
    "check says nothing": ({"show": exited(0)}, CaseState.MISSING, "reported nothing"),
    "it ends too soon": ({"begun": exited(1)}, CaseState.UNCOVERED, "not one failure"),
    "nothing is struck": (
        {"disarm": exited(0, b"injected 0\n")},
        CaseState.UNCOVERED,
        "not one failure",
    ),
    "damage": (
        {"sound": exited(3, b"", b"the file system on the test disk is damaged\n")},
        CaseState.FAILED,
        "afterwards: xfstests.sh sound ext4 test scratch ended with status 3: .* disk is damaged",
    ),
    "damage, and the test fails": (
        {"check": exited(1), "show": FAILED, "sound": exited(3, b"", b"damaged\n")},
        CaseState.FAILED,
        "damaged",
    ),
    "a leak": ({"leaks find": exited(0, b"kmemleak 2\n")}, CaseState.FAILED, "2 objects leaked"),
    "no leak detector": (
        {"leaks find": exited(0, b"kmemleak off\n")},
        CaseState.UNCOVERED,
        "switched itself off",
    ),
    "no such attribute": (
        {"arm": exited(3, b"", b"this kernel has no failslab\n")},
        CaseState.FAILED,
        "no failslab",
    ),
    "no setting up": ({"setup": exited(3, b"", b"mkfs fails\n")}, CaseState.FAILED, "mkfs fails"),
    "no tree": (
        {"setup": exited(3, b"", b"there is no tree of xfstests in this guest\n")},
        CaseState.SKIPPED,
        "no tree",
    ),
    "no device": (
        {"device": exited(1, b"", b"device-mapper: no\n")},
        CaseState.FAILED,
        "setting up: .*device-mapper: no",
    ),
}


@pytest.mark.parametrize("what", ENDS)
def test_every_end_has_its_state(what: str) -> None:
    answers, state, told = ENDS[what]
    profile = PROFILES["dm-delay" if what == "no device" else "failslab"]
    guest = ScriptedGuest(answers=dict(answers))
    got = run(guest, case_of(profile))
    assert got.result.state is state, got.result.message
    assert pytest.approx(0, abs=5) == got.result.duration_s
    assert re.search(told, got.result.message)
    assert guest.asked[-1] == "away", "whatever happened"


def test_what_is_forgiven_is_kept() -> None:
    told = run(ScriptedGuest(answers={"check": exited(1, b"Failures: 247"), "show": FAILED}))
    assert told.files["check.log"] == b"Failures: 247"
    assert b"output mismatch" in told.files["result.xml"]
    log = told.files["faultinject.log"].decode()
    assert "the test failed under it, as it may: - output mismatch" in log


def test_a_test_that_hangs_is_one_and_nothing_more_is_asked() -> None:
    guest = ScriptedGuest(answers={"check": TimedOut(stdout=b"so far", stderr=b"", duration_s=40)})
    told = run(guest)
    assert told.result.state is CaseState.TIMEOUT
    assert told.files["check.log"] == b"so far"
    assert guest.asked[-1].startswith("disarm")


@pytest.mark.parametrize("step", ["leaks clear", "setup", "check", "begun", "arm", "show", "sound"])
def test_a_machine_that_goes_away_is_said_so(step: str) -> None:
    down = Down(end=MachineEnd.PANICKED, detail="panic")
    guest = ScriptedGuest(answers={step: down})
    told = asyncio.run(Xfstests().run(guest, case_of(PROFILES["failslab"]), 5))
    assert told == down


def test_only_what_a_test_does_not_spoil_itself_has_to_be_whole() -> None:
    guest = ScriptedGuest()
    run(guest, case_of(PROFILES["read-error"], traits=frozenset({"fuzzers"})))
    assert "sound ext4 test" in guest.asked
    run(guest, case_of(PROFILES["read-error"]))
    assert "sound ext4 test scratch" in guest.asked
    guest = ScriptedGuest()
    run(guest, case_of(PROFILES["failslab"], "tmpfs"))
    assert not any(line.startswith("sound") for line in guest.asked)
