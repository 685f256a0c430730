"""Files of the xfstests suite: configurations, excludes, groups; and what a report may say."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lab.guest import Exited, TimedOut
from lab.model import CaseState, UserError
from lab.suites import xfsconfig
from lab.suites.xfsguest import judge, unpack
from lab.suites.xfstests import Xfstests, case_for
from lab.suites.xfstree import XfsTree

TODAY = datetime.date(2026, 6, 1)
ENTRY = """
[[exclude]]
tests = ["generic/4*"]
configs = ["ext4-*"]
kernels = ">=6.1, <6.6"
reason = "hangs"
link = "https://lore.kernel.org/r/1"
expires = 2026-12-31
"""


def test_the_configurations_that_were_promised() -> None:
    assert set(xfsconfig.configs()) == {
        *(f"ext4-{n}" for n in ("4k", "1k", "data-journal", "bigalloc", "nojournal", "encrypt")),
        *("xfs", "xfs-1k", "xfs-noreflink", "xfs-rmapbt", "xfs-quota"),
        *("btrfs", "btrfs-compress", "tmpfs", "overlay-ext4"),
    }


def test_sections() -> None:
    known = xfsconfig.configs()
    journal = known["ext4-data-journal"].section()
    assert journal.startswith("[ext4-data-journal]\nFSTYP=ext4\n")
    assert 'MKFS_OPTIONS="-b 4096"\n' in journal
    assert 'MOUNT_OPTIONS="-o data=journal"\n' in journal
    assert 'TEST_FS_MOUNT_OPTS="-o data=journal"\n' in journal
    assert "FSTYP=ext4\n" in known["overlay-ext4"].section()
    assert known["overlay-ext4"].folders == ("generic", "overlay")
    assert "/dev/" not in known["tmpfs"].section() and known["tmpfs"].made == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('filesystem = "ext4"\nsymbols = []', "missing required field `about`"),
        ('about = ""\nfilesystem = "vfat"\nsymbols = []', "'vfat'"),
        ('about = ""\nfilesystem = "xfs"\nsymbols = []\nshoes = 1', "shoes"),
        ('about = ""\nfilesystem = "xfs"\nsymbols = []\nname = "x"', "unknown key 'name'"),
        ('about = ""\nfilesystem = "overlay"\nsymbols = []', "base"),
        ('about = ""\nfilesystem = "xfs"\nsymbols = []\nmkfs = ["`id`"]', "not one option"),
        ('about = ""\nfilesystem = "xfs"\nsymbols = []\nmount = ["a b"]', "not one option"),
        ("= 3", "Invalid"),
    ],
)
def test_configurations_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        xfsconfig.parse_config(text.encode(), name="mine", origin="mine.toml")
    assert said in caught.value.message and "mine.toml" in caught.value.message


@pytest.mark.parametrize(
    ("test", "config", "version", "covered"),
    [
        ("generic/475", "ext4-4k", (6, 1, 190), True),
        ("generic/475", "xfs", (6, 1, 190), False),
        ("generic/475", "ext4-4k", (6, 12), False),
        ("generic/475", "ext4-4k", (5, 10), False),
        ("xfs/475", "ext4-4k", (6, 1), False),
    ],
)
def test_what_an_exclude_covers(
    test: str, config: str, version: tuple[int, ...], covered: bool
) -> None:
    (entry,) = xfsconfig.parse_excludes(ENTRY.encode(), origin="x", today=TODAY)
    assert entry.covers(test, config, version) is covered
    assert "hangs" in entry.told and "2026-12-31" in entry.told and "lore" in entry.told


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('reason = "hangs"\n', "", "reason"),
        ('"hangs"', '" "', "reason is empty"),
        ("https://", "", "no address"),
        ("expires = 2026-12-31\n", "", "expires"),
        ("2026-12-31", "2029-01-01", "more than a year"),
        (">=6.1, <6.6", "new", "kernels"),
        ("generic/4*", "475", "names like"),
        ("[[exclude]]", "[[excuse]]", "only [[exclude]]"),
        ("reason", "raisin", "raisin"),
    ],
)
def test_excludes_that_are_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        raw = ENTRY.replace(old, new).encode()
        xfsconfig.parse_excludes(raw, origin="mine.toml", today=TODAY)
    assert said in caught.value.message and "mine.toml" in caught.value.message


def test_the_labs_own_files_can_be_read() -> None:
    xfsconfig.excludes([xfsconfig.FOLDER / "excludes.toml"], today=TODAY)
    fault = xfsconfig.groups()["fault"]
    assert len(fault.tests) > 20 and fault.about


def test_versions() -> None:
    assert xfsconfig.version_of("6.1.192") == (6, 1, 192)
    assert xfsconfig.version_of("6.12-rc3") == (6, 12)


def test_groups_of_a_tree() -> None:
    groups = {"generic/010": frozenset({"quick"}), "generic/002": frozenset({"auto", "quick"})}
    groups["xfs/001"] = frozenset({"quick"})
    tree = XfsTree(path=xfsconfig.FOLDER, groups=groups)
    assert tree.group("quick", ("generic", "ext4")) == ("generic/002", "generic/010")
    assert tree.group("xfs/quick", ("generic", "xfs")) == ("xfs/001",)
    assert tree.group("all", ("generic",)) == ("generic/002", "generic/010")


@pytest.mark.parametrize(
    ("traits", "expects"),
    [
        ("auto quick shutdown mmap", {"fs-error", "io-error"}),
        ("auto rw eio mmap", {"fs-error", "io-error"}),
        ("dangerous_fuzzers scrub", {"fs-error", "io-error", "fs-corruption"}),
        ("auto quick rw mmap freeze", set()),
        (
            "auto aio _filter_aiodio_dmesg",
            {"fs-error:page cache invalidation failure on direct I/O"},
        ),
    ],
)
def test_what_a_test_makes_of_a_sound_kernel(traits: str, expects: set[str]) -> None:
    """A file system that is shut down on purpose says so: no fault of the kernel's."""
    case = case_for(
        "generic/623",
        xfsconfig.configs()["ext4-4k"],
        skip="",
        expected_s=0.0,
        timeout_s=9.0,
        traits=frozenset(traits.split()),
    )
    assert set(case.expects) == expects


def test_a_script_says_which_reports_it_lets_pass(tmp_path: Path) -> None:
    script = tmp_path / "tests" / "generic" / "247"
    script.parent.mkdir(parents=True)
    script.write_text("# _check_dmesg cannot tell\n_check_dmesg _filter_aiodio_dmesg\n")
    (script.parent / "248").write_text("_check_dmesg\necho done\n")
    groups = {f"generic/{number}": frozenset({"auto"}) for number in (247, 248, 249)}
    tree = XfsTree(path=tmp_path, groups=groups)
    assert tree.traits("generic/247") == {"auto", "_filter_aiodio_dmesg"}
    assert tree.traits("generic/248") == tree.traits("generic/249") == {"auto"}


class Clock:
    """A guest in which everything ends well at once; it keeps the limits that it was given."""

    def __init__(self) -> None:
        self.limits: list[float] = []

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Exited:
        self.limits.append(timeout_s)
        return ended(0)


def test_every_step_of_a_case_is_stretched_alike_for_a_slow_machine() -> None:
    """A test that hangs ends in its own limit, not in what is left of all three."""
    config = xfsconfig.configs()["ext4-4k"]
    case = case_for("generic/001", config, skip="", expected_s=0.0, timeout_s=40.0)
    clocks = Clock(), Clock()
    for clock, slower in zip(clocks, (1.0, 13.0), strict=True):
        slow = replace(case, timeout_s=case.timeout_s * slower)
        asyncio.run(Xfstests().run(clock, slow, 1))
    plain, stretched = (clock.limits for clock in clocks)
    assert plain[1] == 40.0
    assert stretched == pytest.approx([13.0 * limit_s for limit_s in plain])


# --- reports -----------------------------------------------------------------------------------


def report(inside: str, name: str = "generic/001") -> bytes:
    return f'<testsuite><testcase name="{name}">{inside}</testcase></testsuite>'.encode()


def ended(status: int, stdout: bytes = b"") -> Exited:
    return Exited(status=status, stdout=stdout, stderr=b"", duration_s=1.0, truncated=False)


TIMES = b"generic/001 3\n"


@pytest.mark.parametrize(
    ("status", "xml", "times", "state", "message"),
    [
        (0, report(""), TIMES, CaseState.PASSED, ""),
        (0, report(""), b"", CaseState.MISSING, "never ran"),
        (0, report(""), b"generic/0012 3\n", CaseState.MISSING, "never ran"),
        (1, report(""), TIMES, CaseState.FAILED, "status 1"),
        (0, report("", "generic/002"), TIMES, CaseState.MISSING, "reported nothing"),
        (0, b"", TIMES, CaseState.MISSING, "reported nothing"),
        (1, b"", b"", CaseState.FAILED, "no report: mkfs failed"),
        (0, report("<skipped message='no disk'/>"), b"", CaseState.SKIPPED, "no disk"),
        (1, report("<failure message='output &#10; mismatch'/>"), b"", CaseState.FAILED, "output"),
        (0, b"<!DOCTYPE a [<!ENTITY b 'c'>]>" + report(""), TIMES, CaseState.MISSING, "nothing"),
        (0, report("")[:-9], TIMES, CaseState.MISSING, "nothing"),
        (0, report("") + b"\xff", TIMES, CaseState.MISSING, "nothing"),
    ],
)
def test_what_a_test_is_judged_by(
    status: int, xml: bytes, times: bytes, state: CaseState, message: str
) -> None:
    files = {"result.xml": xml, "check.time": times}
    got = judge("generic/001", ended(status, b"mkfs failed\n"), files)
    assert got[0] is state and message in got[1]
    assert got[1].isprintable()


def test_why_check_gave_up_is_not_its_good_bye() -> None:
    said = b"""./common/report: line 101: _xunit_add_property: readonly function
FSTYP         -- overlay

check: failed to mount $SCRATCH_DEV using specified options
Interrupted!
Passed all 0 tests
Xunit report: /result.xml

SECTION       -- overlay-ext4
=========================
Passed all 0 tests

"""
    _, message = judge("generic/001", ended(1, said), {})
    assert message.endswith(
        "no report: check: failed to mount $SCRATCH_DEV using specified options"
    )
    assert judge("generic/001", ended(1), {})[1].endswith("(it said nothing)")


def test_a_timeout_is_one_whatever_was_reported() -> None:
    timed_out = TimedOut(stdout=b"", stderr=b"", duration_s=9.0)
    files = {"result.xml": report(""), "check.time": TIMES}
    assert judge("generic/001", timed_out, files)[0] is CaseState.TIMEOUT


@pytest.mark.parametrize(
    ("shown", "files"),
    [
        (b"file full 3\na\nb\nfile dmesg 0\n\nend\n", {"full": b"a\nb", "dmesg": b""}),
        (b"file full 9\nabc\n", {}),
        (b"file ../../x 1\na\nend\n", {}),
        (b"file full 999999999\n", {}),
        (b"file full -1\n", {}),
        (b"", {}),
        (b"end\n", {}),
    ],
)
def test_files_that_a_guest_shows(shown: bytes, files: dict[str, bytes]) -> None:
    assert unpack(shown) == files
