"""Suites that bring their own programs, with planted failures: each ends in its right state.

Whole trials, on a machine that is a process of this host: what a toy appends to a file comes on
the machine's console.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

import pytest

from lab import host, trial
from lab.machine import Timeouts
from lab.model import (
    Accelerator,
    CaseResult,
    CaseState,
    Cell,
    Event,
    Kernel,
    MachineEnd,
    RootImage,
    Side,
    Trial,
)
from lab.suites import injection, xfsconfig, xfsguest, xfstree
from lab.suites.injection import Injection
from lab.suites.kselftest import Kselftest
from lab.suites.programs import Userland
from lab.suites.protocol import PlannedCase, Suite
from lab.suites.xfsguest import SCRIPT as XFSTESTS_SH
from lab.suites.xfstests import Xfstests, case_for
from lab.trial import Kit
from tests import records
from tests.conftest import ROOT
from tests.fakeqemu import build_agent, install

pytestmark = [pytest.mark.fake, pytest.mark.timeout(300)]

DATA = ROOT / "tests" / "data"
PROBE = """#!/bin/sh
echo taint 0
printf '[    9.0][  T100] lab: %s\\n' "$1" >>{console}
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_agent(tmp_path_factory.mktemp("agent"))


def machine_files(tmp_path: Path, mode: str) -> tuple[Kernel, RootImage]:
    """A "kernel" that the stand-in for QEMU takes for its mode, and a root disk of nothing."""
    image, config, root = (tmp_path / name for name in ("kernel", "config", "root.ext4"))
    image.write_text(mode)
    config.write_text("CONFIG_TMPFS=y\nCONFIG_USER_NS=y\n")
    root.write_bytes(b"\0" * 4096)
    kernel = replace(
        records.kernel(Side.BASE), folder=tmp_path, image=image, vmlinux=image, config=config
    )
    nothing = replace(records.image(), path=root, size_bytes=4096)
    return kernel, nothing


def run_all(
    suite: Suite,
    cases: tuple[PlannedCase, ...],
    agent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[Trial]:
    """The trials that a cell takes, as a campaign would start them."""
    console = tmp_path / "console"
    install(tmp_path / "bin", monkeypatch)
    probe = tmp_path / "probe.sh"
    probe.write_text(PROBE.format(console=console))
    monkeypatch.setattr(trial, "PROBE", probe)
    kernel, root = machine_files(tmp_path, f"follow {console}")
    kit = Kit(
        kernel=kernel,
        initramfs=agent,
        image=root,
        accelerator=Accelerator(name="tcg", cpu="max", boot_s=1.0),
        timeouts=Timeouts(boot_s=30, silence_s=60, wall_s=200),
        suites=(suite,),
        cases={case.name: case for case in cases},
        scratch_bytes=1 << 20,
    )
    cell = Cell(
        arch="x86_64",
        side=Side.BASE,
        profile="lockdep",
        suites=(suite.name,),
        cases=tuple(kit.cases),
        kernel_key="k",
        image_sha256="2" * 64,
        repeat=0,
        seed=1,
        memory_bytes=1 << 30,
        cpus=1,
    )
    return asyncio.run(_relayed(cell, kit, tmp_path, console))


async def _relayed(cell: Cell, kit: Kit, folder: Path, console: Path) -> list[Trial]:
    trials: list[Trial] = []
    events: list[Event] = []

    def next_one(todo: Cell) -> Awaitable[Trial]:
        console.write_text("")
        return trial.run(todo, kit, folder / f"trial-{len(trials)}", events.append)

    async for one in trial.relay(cell, next_one):
        trials.append(one)
        assert len(trials) < 9
    return trials


def by_end(trials: list[Trial]) -> dict[str, CaseResult]:
    return {result.name.rpartition("/")[2]: result for one in trials for result in one.results}


# --- xfstests ----------------------------------------------------------------------------------


def toy_case(
    test: str, tmp_path: Path, limit_s: float = 3.0, profile: Injection | None = None
) -> PlannedCase:
    config = xfsconfig.configs()["tmpfs"]
    groups = xfstree.read(DATA / "xfstests-toy").groups.get(test, frozenset())
    case = case_for(
        test, config, skip="", expected_s=0.0, timeout_s=limit_s, traits=groups, profile=profile
    )
    results = str(tmp_path / "results")
    arguments = tuple(word.replace(xfsconfig.RESULTS, results) for word in case.arguments)
    return replace(case, arguments=arguments)


def toy_xfstests(tmp_path: Path) -> Xfstests:
    return Xfstests(
        environment=(
            f"LAB_TREE={DATA / 'xfstests-toy'}",
            f"LAB_STATE={tmp_path / 'state'}",
            f"LAB_RESULTS={tmp_path / 'results'}",
            f"LAB_MOUNTS={tmp_path / 'mounts'}",
            f"TOY_CONSOLE={tmp_path / 'console'}",
            f"LAB_DEBUG={tmp_path / 'debug'}",
        )
    )


def test_planted_failures_of_xfstests_end_in_their_states(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = [f"generic/{number:03}" for number in (1, 2, 3, 10, 4, 5, 6, 7, 99)]
    cases = tuple(toy_case(test, tmp_path) for test in tests)
    excluded = replace(toy_case("generic/008", tmp_path), skip="excluded until 2027: it bites")
    lacking = replace(toy_case("generic/009", tmp_path), symbols=("EXT4_FS", "TMPFS"))
    cases = (*cases, excluded, lacking)
    trials = run_all(toy_xfstests(tmp_path), cases, agent, tmp_path, monkeypatch)
    got = by_end(trials)
    assert {name: result.state for name, result in got.items()} == {
        "001": CaseState.PASSED,
        "002": CaseState.FAILED,
        "003": CaseState.SKIPPED,
        "010": CaseState.PASSED,
        "004": CaseState.TIMEOUT,
        "005": CaseState.CRASHED,
        "006": CaseState.FAILED,
        "007": CaseState.PASSED,
        "099": CaseState.MISSING,
        "008": CaseState.SKIPPED,
        "009": CaseState.SKIPPED,
    }
    assert "output mismatch" in got["002"].message and "-quiet" in got["002"].message
    assert got["003"].message == "needs a disk that is not there"
    assert "planted by a test" in got["005"].message
    assert [splat.kind for splat in got["006"].splats] == ["warning"]
    assert [splat.kind for splat in got["010"].splats] == ["fs-error"], "it stays visible"
    assert "it bites" in got["008"].message
    assert got["009"].message == "this kernel lacks CONFIG_EXT4_FS"
    kept = next(one for one in trials if any(r.name.endswith("002") for r in one.results))
    place = tmp_path / kept.id / got["002"].log
    assert (place / "full").read_text() == "what it did\n"
    assert "+loud" in (place / "out.diff").read_text()
    # No process for what nobody reads; and a test has an environment like everybody's.
    assert (tmp_path / "console.properties").read_text() == ""
    # One machine until the hang, one until the crash, one for the rest.
    assert [one.end for one in trials] == [
        MachineEnd.POWERED_OFF,
        MachineEnd.PANICKED,
        MachineEnd.POWERED_OFF,
    ]
    assert not list(tmp_path.glob("trial-*/*.raw")), "disks of gigabytes stay behind"


def test_a_test_is_struck_from_its_first_step_until_it_ends(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute = tmp_path / "debug" / "failslab"
    attribute.mkdir(parents=True)
    profile = injection.read(injection.PROFILES / "failslab.toml")
    for name in (*(word.partition("=")[0] for word in profile.arguments(1)), "probability"):
        (attribute / name).write_text("0\n")
    # The first test waits until something is armed; the second one is over before that.
    cases = tuple(
        replace(
            toy_case(f"generic/{number}", tmp_path, 30.0, profile),
            required=(),  # no kernel of this machine has them
        )
        for number in ("011", "001")
    )
    (one,) = run_all(toy_xfstests(tmp_path), cases, agent, tmp_path, monkeypatch)
    struck, missed = one.results
    assert struck.state is CaseState.PASSED, struck.message
    (log,) = tmp_path.glob("trial-0/cases/*011/faultinject.log")
    assert "the test failed under it, as it may" in log.read_text()
    assert struck.metrics["injected"] == 42.0
    assert (attribute / "probability").read_text() == "0\n"
    assert missed.state is CaseState.UNCOVERED
    assert "not one failure was injected" in missed.message


@pytest.mark.parametrize("name", sorted(xfsconfig.configs()))
def test_file_systems_are_made_on_the_devices_themselves(name: str, tmp_path: Path) -> None:
    """Not on the links to them: btrfs keeps the name, and `check` does not find its device."""
    disks, tools = tmp_path / "disks", tmp_path / "bin"
    for folder in (disks, tools):
        folder.mkdir()
    for number, disk in enumerate((xfsconfig.TEST_DISK, xfsconfig.SCRATCH_DISK)):
        (tmp_path / f"vd{number}").write_bytes(b"")
        (disks / disk).symlink_to(tmp_path / f"vd{number}")
    for kind in ("ext4", "xfs", "btrfs"):
        tool = tools / f"mkfs.{kind}"
        tool.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >>{tmp_path}/made\n')
        tool.chmod(0o755)
    config = xfsconfig.configs()[name]
    case = case_for("generic/001", config, skip="", expected_s=0.0, timeout_s=9.0)
    one = xfsguest.from_text(case.arguments[0])
    made, mkfs, section = one.made, one.mkfs, one.section.replace("/dev/disk/by-lab", str(disks))
    environment = (
        f"PATH={tools}:{os.environ['PATH']}",
        f"LAB_TREE={DATA / 'xfstests-toy'}",
        *(f"LAB_STATE={tmp_path / 'state'}", f"LAB_DISKS={disks}/", f"LAB_MOUNTS={tmp_path / 'm'}"),
    )
    host.run(("env", *environment, "sh", XFSTESTS_SH, "setup", name, made, mkfs, section))
    said = (tmp_path / "made").read_text().splitlines() if made else []
    assert [line.split()[0] for line in said] == ([f"mkfs.{made}"] * 2 if made else [])
    assert [line.split()[-1] for line in said] == [
        str(tmp_path / f"vd{n}") for n in range(len(said))
    ]
    assert all(f" {mkfs} " in line for line in said if mkfs)
    written = (tmp_path / "state" / "config").read_text()
    devices = {key: str(tmp_path / f"vd{n}") for n, key in enumerate(("TEST_DEV", "SCRATCH_DEV"))}
    assert written.startswith(f"[{name}]\n")
    assert all(f"\n{key}={device}\n" in written for key, device in devices.items()) == bool(made)
    assert len(written.strip().splitlines()) == len(section.splitlines())


# --- kselftest ---------------------------------------------------------------------------------


def test_planted_failures_of_kselftest_end_in_their_states(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("good", "bad", "skips", "short", "absent", "hangs", "panics", "splats")
    cases = tuple(
        PlannedCase(name=f"kselftest/toys/{name}", timeout_s=3.0, arguments=("toys", name))
        for name in names
    )
    suite = Kselftest(
        environment=(
            f"LAB_TREE={DATA / 'kselftest-toy'}",
            f"LAB_STATE={tmp_path / 'state'}",
            f"TOY_CONSOLE={tmp_path / 'console'}",
            f"TOY_SPLAT={DATA / 'xfstests-toy/tests/generic/006.splat'}",
        )
    )
    got = by_end(run_all(suite, cases, agent, tmp_path, monkeypatch))
    assert {name: result.state for name, result in got.items()} == {
        "good": CaseState.PASSED,
        "good:left": CaseState.PASSED,
        "good:right": CaseState.SKIPPED,
        "bad": CaseState.FAILED,
        "bad:left": CaseState.PASSED,
        "bad:right": CaseState.FAILED,
        "skips": CaseState.SKIPPED,
        "short": CaseState.MISSING,
        "short:left": CaseState.PASSED,
        "absent": CaseState.SKIPPED,
        "hangs": CaseState.TIMEOUT,
        "panics": CaseState.CRASHED,
        "splats": CaseState.FAILED,
        "splats:left": CaseState.PASSED,
    }
    assert "exit=1" in got["bad"].message
    assert "not built" in got["absent"].message
    assert got["splats"].splats and not got["splats:left"].splats


# --- a tree before the boot --------------------------------------------------------------------


def test_the_toy_is_not_taken_for_a_built_tree(tmp_path: Path) -> None:
    land = Userland(machine="x86_64", libraries=frozenset(), glibc=(2, 36))
    assert "no folder" in xfstree.complaint(tmp_path / "absent", land)
    assert "no tree of xfstests" in xfstree.complaint(tmp_path, land)
    assert "not built: it has no ltp/fsstress" in xfstree.complaint(DATA / "xfstests-toy", land)
    built = tmp_path / "tree"
    shutil.copytree(DATA / "xfstests-toy", built)
    for name in ("ltp/fsstress", "ltp/fsx", "src/lstat64"):
        (built / name).parent.mkdir(exist_ok=True)
        shutil.copy("/bin/true", built / name)
    loader = frozenset({"ld-linux-x86-64.so.2", "libc.so.6"})
    assert xfstree.complaint(built, replace(land, libraries=loader)) == ""
    assert "libc.so.6" in xfstree.complaint(built, replace(land, libraries=loader - {"libc.so.6"}))
    old = replace(land, libraries=loader, glibc=(2, 3))
    assert "the root image has 2.3" in xfstree.complaint(built, old)
    other = replace(land, libraries=loader, machine="aarch64")
    assert "is for x86_64, not for aarch64" in xfstree.complaint(built, other)
