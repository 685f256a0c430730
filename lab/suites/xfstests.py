"""A tree of xfstests that its user has built goes in, case results come out.

Each case is one test on one file system configuration: XFSTESTS/CONFIG/FOLDER/NUMBER, run by one
call of `check`, so that between two tests the lab looks at the kernel. With CONFIG+PROFILE
something fails meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lab import image
from lab.arch import arch as arch_row
from lab.guest import Down
from lab.machine import Disk
from lab.model import CaseResult, Side, UserError
from lab.splat.kinds import Kind
from lab.suites import injection, payload, programs, xfsconfig, xfsguest, xfsinject, xfstree
from lab.suites.injection import Injection
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
from lab.suites.xfsguest import SETUP_S, SHOW_S, Script
from lab.suites.xfstree import XfsTree

TREE_SERIAL = "xfstests"
DEFAULT_GROUP = "fault"
_DISK_BYTES = 2 << 30  # e2fsck and mkfs after every test: under emulation size is time
# What a sound kernel says in tests of a group: they shut the file system down under its users, let
# its disk fail, or spoil what is on it. No reason to let anything else pass.
_REFUSES, _SPOILT = (Kind.FS_ERROR, Kind.IO_ERROR), Kind.FS_CORRUPTION
_EXPECTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("shutdown", "recoveryloop", "thin", "eio"), _REFUSES),
    **dict.fromkeys(("fuzzers", "dangerous_fuzzers", "read_repair"), (*_REFUSES, _SPOILT)),
    # Direct I/O against what is mapped or buffered, on purpose.
    "_filter_aiodio_dmesg": (f"{Kind.FS_ERROR}:page cache invalidation failure on direct I/O",),
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
        chosen = _chosen(ground)
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
        cases, notes = _plan(trees[0], chosen, ground)
        notes += [f"{why}: its cells are skipped" for why in refused]
        return Supplies(cases=cases, disks=disks, notes=tuple(notes))

    # --- in the guest ------------------------------------------------------------------------

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Told | Down:
        test = xfsguest.from_text(case.arguments[0])
        script = Script(
            guest=guest,
            test=test,
            slower=case.timeout_s / _limit_s(test),
            environment=self.environment,
        )
        if test.profile is None:
            return await xfsguest.run(script, case.name)
        return await xfsinject.run(script, test.profile, case, seed)


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


def _chosen(ground: Ground) -> list[tuple[FsConfig, Injection | None]]:
    """The configurations that were asked for, each with what fails on it."""
    known = xfsconfig.configs()
    profiles = {one.name: one for one in injection.profiles(ground.config.faultinject.profiles)}
    chosen = []
    for label in ground.config.xfstests.configs:
        name, profile = xfsinject.parse(label, profiles)
        if name not in known:
            raise UserError(
                f"xfstests: no file system configuration {name!r}",
                hint=f"known: {', '.join(known)}",
            )
        if profile is not None:
            xfsinject.check(label, known[name], profile)
        chosen.append((known[name], profile))
    return chosen


def _plan(
    tree: XfsTree, chosen: Sequence[tuple[FsConfig, Injection | None]], ground: Ground
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
    traits: dict[str, frozenset[str]] = {}  # a script is read once for all configurations
    for config, profile in chosen:
        for test in _tests(tree, config, ground, own):
            if test not in traits:
                traits[test] = tree.traits(test)
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
                    traits=traits[test],
                    profile=profile,
                )
            )
    if not cases and not ground.only:
        raise UserError(
            f"xfstests has no test in {', '.join(ground.groups) or DEFAULT_GROUP} for "
            f"{', '.join(config.name for config, _ in chosen)}",
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
    traits: frozenset[str] = frozenset(),
    profile: Injection | None = None,
) -> PlannedCase:
    """The case of one test there, with `XfsTree.traits`; `timeout_s` is for the test alone."""
    expects = [kind for name in sorted(traits) for kind in _EXPECTS.get(name, ())]
    one = xfsguest.Test(
        test=test,
        config=config.name,
        made=config.made,
        mkfs=" ".join(config.mkfs),
        section=config.section(),
        options=("-overlay",) if config.filesystem == "overlay" else (),
        # A test that is known to be long gets ten times as long.
        limit_s=max(timeout_s, 10 * expected_s),
        spoils=_SPOILT in expects,
        profile=profile,
    )
    expects += xfsinject.expects(profile) if profile else ()
    return PlannedCase(
        name=f"xfstests/{one.label}/{test}",
        timeout_s=_limit_s(one),
        filesystem=config.name,
        arguments=(xfsguest.to_text(one),),
        symbols=config.symbols,
        required=profile.kind.symbols if profile else (),
        skip=skip,
        expected_s=expected_s or None,
        expects=tuple(dict.fromkeys(expects)),
    )


def _limit_s(test: xfsguest.Test) -> float:
    """Of all steps of the case together."""
    more_s = xfsinject.STEPS_S if test.profile else 0.0
    return test.limit_s + SETUP_S + SHOW_S + more_s
