"""What the user asked for: SUITE:GROUP, single cases, and suites that cannot run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab import selection, subject
from lab.config import Config
from lab.guest import Down
from lab.machine import Disk
from lab.model import CaseResult, Event, EventKind, Side, Source, UserError
from lab.selection import matches, parse, select
from lab.store import Cache
from lab.suites import registry
from lab.suites.protocol import (
    Commands,
    Ground,
    Needs,
    PlannedCase,
    SuiteOptions,
    Supplied,
    Supplies,
)
from lab.tree import Tree
from lab.verdict import JudgeInput, judge

OPTIONS = SuiteOptions(filesystems=("ext4", "tmpfs"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bringer:
    """A suite that brings what it is told to bring."""

    supplies: Supplies
    name: str = "bringer"
    one_line: str = "for tests"

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        return Needs()

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        return ()

    def supply(self, ground: Ground) -> Supplies:
        return self.supplies

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Down:
        raise AssertionError("not to be run")


CASES = tuple(PlannedCase(name=f"bringer/{name}", timeout_s=1.0) for name in ("a/1", "a/2", "b/1"))
DISK = Disk(path=Path("/disk"), format="raw", readonly=True, serial="programs")


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def ground(tmp_path: Path, events: list[Event]) -> Ground:
    source = Source(
        name="x", git_dir=tmp_path, commit="c", tree="t", version="6.1.9", provenance="here"
    )
    tree = Tree(path=tmp_path, tree="t", commit="c", source=source, patches=(), changed=())
    return Ground(
        archs=("x86_64",),
        trees={side: tree for side in Side},  # noqa: C420
        config=Config(),
        cache=Cache(root=tmp_path),
        emit=events.append,
    )


@pytest.fixture
def bring(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """The registry, open for one more suite."""
    monkeypatch.setattr(registry, "SUITES", dict(registry.SUITES))
    yield registry.SUITES  # type: ignore[misc]


def test_both_kinds_of_suites_are_told_apart() -> None:
    supplied = {name for name, suite in registry.SUITES.items() if isinstance(suite, Supplied)}
    assert supplied == {"xfstests", "kselftest"}


def test_groups_of_one_suite_come_together() -> None:
    got = parse(["xfstests:quick", "boot", "xfstests:mmap", "xfstests:quick"])
    assert [(one.suite.name, one.groups) for one in got] == [
        ("xfstests", ("quick", "mmap")),
        ("boot", ()),
    ]


@pytest.mark.parametrize(("word", "said"), [("shoes", "'shoes'"), ("boot:", "names no group")])
def test_words_that_mean_nothing(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse([word])


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("generic/247", True),
        ("xfstests/ext4-4k/generic/247", True),
        ("ext4-*/generic/24?", True),
        ("*/247", True),
        ("247", True),
        ("47", False),
        ("generic/2", False),
    ],
)
def test_patterns_of_cases(pattern: str, fits: bool) -> None:
    assert matches("xfstests/ext4-4k/generic/247", pattern) is fits


def test_a_group_of_a_plain_suite_is_a_part_of_its_names() -> None:
    got = select(parse(["faultstress:tmpfs", "faultstress:munmap"]), OPTIONS)
    assert {case.name for case in got.cases} > {"faultstress/tmpfs/truncate"}
    assert all("tmpfs" in case.name or "munmap" in case.name for case in got.cases)
    with pytest.raises(UserError, match="no group 'vfat'") as caught:
        select(parse(["faultstress:vfat"]), OPTIONS)
    assert "truncate" in caught.value.hint


def test_only_narrows_and_drops_suites_without_a_case() -> None:
    got = select(parse(["boot", "faultstress"]), OPTIONS, only=["tmpfs/truncate"])
    assert [case.name for case in got.cases] == ["faultstress/tmpfs/truncate"]
    assert [suite.name for suite in got.suites] == ["faultstress"]


def test_only_that_names_nothing() -> None:
    with pytest.raises(UserError, match="--only generic/999: no such case"):
        select(parse(["boot"]), OPTIONS, only=["boot/hello", "generic/999"])


def test_supplied_cases_come_with_their_disks(ground: Ground, bring: dict[str, object]) -> None:
    disks = {("x86_64", side): (DISK,) for side in Side}
    bring["bringer"] = Bringer(supplies=Supplies(cases=CASES, disks=disks))
    got = select(parse(["bringer"]), OPTIONS, only=["a/*"], ground=ground)
    assert [case.name for case in got.cases] == ["bringer/a/1", "bringer/a/2"]
    assert got.disks["x86_64", Side.BASE] == (DISK,)
    assert select(parse(["bringer"]), OPTIONS).cases == (), "whoever only builds needs none"


def test_what_cannot_run_says_so_in_one_line_and_the_rest_runs(
    ground: Ground, bring: dict[str, object], events: list[Event]
) -> None:
    bring["bringer"] = Bringer(supplies=Supplies(absent="there is no tree"))
    got = select(parse(["boot", "bringer"]), OPTIONS, ground=ground)
    assert [case.name for case in got.cases] == ["boot/hello"]
    assert got.absent == ("bringer does not run: there is no tree",)
    (event,) = events
    assert event.kind is EventKind.WARNING and event.text == "skipped: there is no tree"


def test_what_nobody_asked_for_casts_no_doubt(
    ground: Ground, bring: dict[str, object], events: list[Event]
) -> None:
    bring["bringer"] = Bringer(supplies=Supplies(absent="there is no tree"))
    got = select(parse(["boot", "bringer"]), OPTIONS, only=["boot/hello"], ground=ground)
    assert [case.name for case in got.cases] == ["boot/hello"]
    assert got.absent == () and events == []


def test_nothing_but_what_cannot_run_is_an_error(ground: Ground, bring: dict[str, object]) -> None:
    bring["bringer"] = Bringer(supplies=Supplies(absent="there is no tree"))
    with pytest.raises(UserError, match="there is no tree"):
        select(parse(["bringer"]), OPTIONS, ground=ground)


def test_xfstests_without_a_tree_is_absent(ground: Ground) -> None:
    with pytest.raises(UserError, match="no tree for x86_64") as caught:
        select(parse(["xfstests"]), OPTIONS, ground=ground)
    assert "--xfstests DIR" in caught.value.message


def test_an_unknown_configuration_is_an_error(ground: Ground) -> None:
    table = {"xfstests": {"configs": ["ext5"]}}
    config = Config(xfstests=type(Config().xfstests)(configs=tuple(table["xfstests"]["configs"])))
    with pytest.raises(UserError, match="no file system configuration 'ext5'"):
        select(parse(["xfstests"]), OPTIONS, ground=replace(ground, config=config))


def test_a_run_that_lacks_what_was_asked_for_is_not_clean() -> None:
    given = JudgeInput(
        title="t",
        archs=(),
        cases=(),
        profile="lockdep",
        trials=(),
        kernels=(),
        failures=(),
        repeats=1,
        max_repeats=1,
        absent=("xfstests does not run: no tree",),
    )
    verdict = judge(given)
    assert verdict.outcome == "inconclusive"
    assert "xfstests does not run: no tree" in verdict.reasons
    assert selection.Selection(suites=(), cases=()).absent == ()


@pytest.mark.fake
def test_an_emulator_without_persistent_memory_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = tmp_path / "qemu-system-aarch64"
    qemu.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version 1.0"\nexit 0\n')
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    cases = (PlannedCase(name="faultstress/ext4/munmap", timeout_s=1.0),)
    subject.check_devices(cases, "arm64")
    needy = (*cases, PlannedCase(name="faultstress/ext4-dax/munmap", timeout_s=1.0, pmem=True))
    with pytest.raises(UserError, match=r"version 1\.0 has no virtio-pmem-pci") as caught:
        subject.check_devices(needy, "arm64")
    assert "leave arm64 out" in caught.value.hint
    qemu.write_text("#!/bin/sh\necho 'name \"virtio-pmem-pci\", bus PCI'\n")
    subject.check_devices(needy, "arm64")
