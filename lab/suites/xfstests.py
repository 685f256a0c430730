"""A tree of xfstests that its user has built goes in, case results come out.

Each case is one test on one file system configuration: XFSTESTS/CONFIG/FOLDER/NUMBER, run by one
call of `check`, so that between two tests the lab looks at the kernel. What a guest reports is
hostile input: bounded, and a pass only if exit status, report and list of times all say so.
"""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_never

from lab import image, prose
from lab.arch import arch as arch_row
from lab.guest import Down, Exited, TimedOut
from lab.machine import Disk
from lab.model import CaseResult, CaseState, Side, UserError
from lab.splat.kinds import Kind
from lab.suites import payload, programs, xfsconfig, xfstree
from lab.suites.protocol import (
    Commands,
    Ground,
    Needs,
    PlannedCase,
    SuiteOptions,
    Supplies,
    Told,
)
from lab.suites.xfsconfig import SCRATCH_DISK, TEST_DISK, FsConfig
from lab.suites.xfstree import XfsTree

SCRIPT = Path(__file__).parent.parent.parent / "images" / "guest" / "xfstests.sh"
TREE_SERIAL = "xfstests"
DEFAULT_GROUP = "fault"
_DISK_BYTES = 2 << 30  # e2fsck and mkfs after every test: under emulation size is time
_SETUP_S = 300.0
_SHOW_S = 60.0
_CANNOT = 3  # status of the script
_FILE_BYTES = 256 << 10
_LINE = 300
_HEADER = re.compile(rb"file ([a-z.]{1,20}) ([0-9]{1,9})")
# What `check` prints when it ends, whatever ended it, and its word on xfstests.sh's `lean`.
_CHATTER = re.compile(
    r"Interrupted!|Passed all 0 tests|Xunit report|SECTION  |=+$|.* readonly function$"
)
# What a sound kernel says in tests of a group: they shut the file system down under its users, let
# its disk fail, or spoil what is on it. No reason to let anything else pass.
_REFUSES, _SPOILT = (Kind.FS_ERROR, Kind.IO_ERROR), Kind.FS_CORRUPTION
_EXPECTS: Mapping[str, tuple[Kind, ...]] = {
    **dict.fromkeys(("shutdown", "recoveryloop", "thin", "eio"), _REFUSES),
    **dict.fromkeys(
        ("fuzzers", "dangerous_fuzzers", "read_repair"), (*_REFUSES, Kind.FS_CORRUPTION)
    ),
}
_HOW = "lab image shell ARCH --bind DIR has what it takes to build one; see docs/xfstests.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Xfstests:
    """The suite. `environment` moves the places of its guest script, so that it also runs
    elsewhere."""

    name: str = "xfstests"
    one_line: str = "the file system tests, from a tree that you have built"
    environment: tuple[str, ...] = ()  # NAME=VALUE

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        return Needs(
            symbols=("EXT4_FS", "FILE_LOCKING", "AIO"),
            disks=(TEST_DISK, SCRATCH_DISK),
            disk_bytes=_DISK_BYTES,
            root_image=True,
            packages=("attr", "acl", "bc", "gawk", "perl", "xfsprogs", "e2fsprogs"),
        )

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        return ()

    # --- before the boot ---------------------------------------------------------------------

    def supply(self, ground: Ground) -> Supplies:
        settings = ground.config.xfstests
        known = xfsconfig.configs()
        for name in settings.configs:
            if name not in known:
                raise UserError(
                    f"xfstests: no file system configuration {name!r}",
                    hint=f"known: {', '.join(known)}",
                )
        disks: dict[tuple[str, Side], tuple[Disk, ...]] = {}
        trees: list[XfsTree] = []
        refused: list[str] = []
        for name in ground.archs:
            try:
                tree, disk = _tree_for(name, ground)
            except _Unusable as why:
                refused.append(str(why))
                continue
            trees.append(tree)
            disks |= {(name, side): (disk,) for side in Side}
        if not trees:
            return Supplies(absent="; ".join(dict.fromkeys(refused)))
        configs = tuple(known[name] for name in settings.configs)
        cases, notes = _plan(trees[0], configs, ground)
        notes += [f"{why}: its cells are skipped" for why in refused]
        return Supplies(cases=cases, disks=disks, notes=tuple(notes))

    # --- in the guest ------------------------------------------------------------------------

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Told | Down:
        began = time.monotonic()
        planned_s, test, config_name, made, mkfs, section, *options = case.arguments
        limit_s = float(planned_s)
        # All three are stretched alike for a slow machine.
        slower = case.timeout_s / (limit_s + _SETUP_S + _SHOW_S)
        setup_s = _SETUP_S * slower
        ready = await self._call(guest, setup_s, "setup", config_name, made, mkfs, section)
        if isinstance(ready, Down):
            return ready
        if (failed := _not_ready(case, ready)) is not None:
            return failed
        checked = await self._call(guest, limit_s * slower, "check", config_name, test, *options)
        if isinstance(checked, Down):
            return checked
        duration_s = time.monotonic() - began
        show_s = _SHOW_S * slower
        shown = await self._call(guest, show_s, "show", config_name, test, str(_FILE_BYTES))
        if isinstance(shown, Down):
            return shown
        files = unpack(shown.stdout)
        state, message = judge(test, checked, files)
        result = CaseResult(name=case.name, state=state, message=message, duration_s=duration_s)
        if state in (CaseState.PASSED, CaseState.SKIPPED):
            return result
        said = (checked.stdout + checked.stderr)[-_FILE_BYTES:]
        return Told(result=result, files={"check.log": said, **files})

    async def _call(
        self, guest: Commands, timeout_s: float, *words: str
    ) -> Exited | TimedOut | Down:
        script = SCRIPT.read_text(encoding="utf-8")
        argv = ("env", *self.environment, "/bin/sh", "-c", script, SCRIPT.name, *words)
        return await guest.run(argv, timeout_s=timeout_s)


# --- the plan ----------------------------------------------------------------------------------


class _Unusable(Exception):
    """There is no tree that guests of an architecture can run."""


def _tree_for(name: str, ground: Ground) -> tuple[XfsTree, Disk]:
    settings = ground.config.xfstests
    named = settings.trees.get(name) or settings.tree
    if not named:
        raise _Unusable(
            f"no tree for {name} ([xfstests] tree in lab.toml, or --xfstests DIR; {_HOW})"
        )
    path = Path(named).expanduser().absolute()
    row = arch_row(name)
    root = image.root_image(name, cache=ground.cache, emit=ground.emit)
    why = xfstree.complaint(path, programs.userland(root, row))
    if why:
        raise _Unusable(f"{why} ({_HOW})")
    try:
        packed = payload.disk_of(
            path,
            f"xfstests-{name}",
            cache=ground.cache,
            emit=ground.emit,
            skip=xfstree.UNUSED,
        )
    except OSError as error:
        raise _Unusable(f"{path} cannot be read: {error}") from error
    disk = Disk(path=packed, format="raw", readonly=True, serial=TREE_SERIAL)
    return xfstree.read(path), disk


def _plan(
    tree: XfsTree, configs: Sequence[FsConfig], ground: Ground
) -> tuple[tuple[PlannedCase, ...], list[str]]:
    """The cases, configuration by configuration, and what the user should know."""
    settings = ground.config.xfstests
    today = datetime.now(UTC).date()
    paths = (xfsconfig.FOLDER / "excludes.toml", *map(Path, settings.excludes))
    excludes = xfsconfig.excludes(paths, today=today)
    version = xfsconfig.version_of(ground.version)
    own = xfsconfig.groups()
    known_s = {test: taken for group in own.values() for test, taken in group.tests.items()}
    cases: list[PlannedCase] = []
    notes: list[str] = []
    for config in configs:
        for test in _tests(tree, config, ground, own):
            skip = ""
            for entry in excludes:
                if not entry.covers(test, config.name, version):
                    continue
                if entry.expires < today:
                    notes.append(f"{test} runs on {config.name}: its exclusion has expired")
                else:
                    skip = entry.told
            cases.append(
                case_for(
                    test,
                    config,
                    skip=skip,
                    expected_s=known_s.get(test, 0.0),
                    timeout_s=settings.timeout_s,
                    groups=tree.groups[test],
                )
            )
    if not cases and not ground.only:
        raise UserError(
            f"xfstests has no test in {', '.join(ground.groups) or DEFAULT_GROUP} for "
            f"{', '.join(config.name for config in configs)}",
            hint=f"groups: {', '.join((*own, *tree.known_groups()))}",
        )
    return tuple(cases), notes


def _tests(
    tree: XfsTree, config: FsConfig, ground: Ground, own: Mapping[str, xfsconfig.Chosen]
) -> tuple[str, ...]:
    """The tests of that configuration that were asked for; of `only`, whatever could be meant."""
    everything = tree.tests(config.folders)
    if ground.only:
        return everything
    chosen: dict[str, None] = {}
    for group in ground.groups or (DEFAULT_GROUP,):
        if group in own:
            mine = tuple(test for test in everything if test in own[group].tests)
        else:
            mine = tree.group(group, config.folders)
            if not mine and group not in tree.known_groups() and "/" not in group:
                raise UserError(
                    f"xfstests has no group {group!r}",
                    hint=f"known: {', '.join((*own, *tree.known_groups()))}",
                )
        chosen |= dict.fromkeys(mine)
    return tuple(chosen)


def case_for(
    test: str,
    config: FsConfig,
    *,
    skip: str,
    expected_s: float,
    timeout_s: float,
    groups: frozenset[str] = frozenset(),
) -> PlannedCase:
    """The case of one test there, which is in those groups; `timeout_s` is for the test alone."""
    # A test that is known to be long gets ten times as long.
    limit_s = max(timeout_s, 10 * expected_s)
    options = ("-overlay",) if config.filesystem == "overlay" else ()
    return PlannedCase(
        name=f"xfstests/{config.name}/{test}",
        timeout_s=limit_s + _SETUP_S + _SHOW_S,
        filesystem=config.name,
        arguments=(
            *(str(limit_s), test, config.name, config.made),
            *(" ".join(config.mkfs), config.section()),
            *options,
        ),
        symbols=config.symbols,
        skip=skip,
        expected_s=expected_s or None,
        expects=tuple({kind: None for name in sorted(groups) for kind in _EXPECTS.get(name, ())}),
    )


# --- results -----------------------------------------------------------------------------------


def _not_ready(case: PlannedCase, ready: Exited | TimedOut) -> CaseResult | None:
    """The result of a case whose setting up went wrong; None if it did not."""
    if isinstance(ready, TimedOut):
        message = f"setting up did not end in {ready.duration_s:.0f} s"
        return CaseResult(name=case.name, state=CaseState.TIMEOUT, message=message)
    if ready.status == 0:
        return None
    why = last_line(ready.stderr or ready.stdout)
    if "there is no tree" in why:
        return CaseResult(name=case.name, state=CaseState.SKIPPED, message=why)
    state = CaseState.MISSING if "left" in why else CaseState.FAILED
    return CaseResult(name=case.name, state=state, message=f"setting up: {why}")


def unpack(shown: bytes) -> dict[str, bytes]:
    """The files in what the script shows; those that came whole, and nothing else."""
    files: dict[str, bytes] = {}
    rest = shown
    while rest:
        line, _, rest = rest.partition(b"\n")
        header = _HEADER.fullmatch(line)
        if header is None:
            break
        size = int(header[2])
        if size > _FILE_BYTES or len(rest) < size:
            break
        files[header[1].decode()] = rest[:size]
        rest = rest[size + 1 :]
    return files


def judge(
    test: str, checked: Exited | TimedOut, files: Mapping[str, bytes]
) -> tuple[CaseState, str]:
    """What became of a test, from how `check` ended and the files that it left."""
    match checked:
        case TimedOut():
            return CaseState.TIMEOUT, "it did not end in its time"
        case Exited():
            status = checked.status
        case _:
            assert_never(checked)
    reported = _reported(test, files.get("result.xml", b""))
    if reported is None:
        if status == 0:
            return CaseState.MISSING, "check ended well and reported nothing of this test"
        said = _last_word(checked.stdout + checked.stderr)
        return CaseState.FAILED, f"check ended with status {status} and no report: {said}"
    state, message = reported
    match state:
        case CaseState.SKIPPED:
            why = message or last_line(files.get("notrun", b""))
            return state, why or "not run, without a reason"
        case CaseState.PASSED if status != 0:
            return CaseState.FAILED, f"reported as passed, but check ended with status {status}"
        case CaseState.PASSED if not _timed(test, files.get("check.time", b"")):
            return CaseState.MISSING, "reported as passed, but it never ran"
        case CaseState.PASSED:
            return state, ""
        case _:
            return state, "; ".join(part for part in (message, _first_difference(files)) if part)


def _reported(test: str, raw: bytes) -> tuple[CaseState, str] | None:
    """What the xunit report says of the test; None if nothing that can be read."""
    # Entities are where XML becomes dangerous, and no report has a use for one.
    if not raw or b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        return None
    try:
        root = ElementTree.fromstring(raw.decode("utf-8", "replace"))
    except (ElementTree.ParseError, ValueError, RecursionError):
        return None
    found = [case for case in root.iter("testcase") if case.get("name") == test]
    if len(found) != 1:
        return None
    for kind, state in (("failure", CaseState.FAILED), ("error", CaseState.FAILED)):
        if (node := found[0].find(kind)) is not None:
            return state, prose.cut(node.get("message") or "it failed", _LINE)
    if (node := found[0].find("skipped")) is not None:
        return CaseState.SKIPPED, prose.cut(node.get("message") or "", _LINE)
    return CaseState.PASSED, ""


def _timed(test: str, times: bytes) -> bool:
    """Whether `check` kept how long the test took, which it does for what has passed."""
    lines = times.decode("utf-8", "replace").splitlines()
    return any(line.split(" ")[0] == test for line in lines)


def _first_difference(files: Mapping[str, bytes]) -> str:
    """The first line that the test said and should not have, or should have and did not."""
    lines = files.get("out.diff", b"").decode("utf-8", "replace").splitlines()
    for line in lines[2:]:
        if line.startswith(("+", "-")):
            return prose.cut(line, _LINE)
    return ""


def _last_word(said: bytes) -> str:
    """The last line of `check` that is not about its own end."""
    lines = said.decode("utf-8", "replace").splitlines()
    told = [line for line in lines if line.strip() and not _CHATTER.match(line)]
    return prose.cut(told[-1], _LINE) if told else "(it said nothing)"


def last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return prose.cut(lines[-1], _LINE) if lines else "(it said nothing)"
