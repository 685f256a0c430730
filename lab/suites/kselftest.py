"""The self-tests of the very kernel under test: built from each side's tree, KTAP in, cases out.

A case is one test of a collection, KSELFTEST/COLLECTION/TEST; what it reports inside becomes its
parts, which are compared one by one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import image
from lab.arch import arch as arch_row
from lab.guest import Down, Exited, TimedOut
from lab.machine import Disk
from lab.model import PART, CaseResult, CaseState, Side
from lab.suites import collections, ktap, programs
from lab.suites.collections import Built
from lab.suites.protocol import Commands, Ground, Needs, PlannedCase, SuiteOptions, Supplies, Told

SCRIPT = Path(__file__).parent.parent.parent / "images" / "guest" / "kselftest.sh"
SERIAL = "kselftest"
_CANNOT = 3  # status of the script
_LOG_BYTES = 512 << 10
# Collections of many programs, each with needs of its own, which skip or fail by themselves: not
# to run any because one option is missing would be too strict.
_MIXED = ("mm", "vm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kselftest:
    """The suite. `environment` moves the places of its guest script, so that it also runs
    elsewhere."""

    name: str = "kselftest"
    one_line: str = "the kernel's own self-tests, built from the tree under test"
    environment: tuple[str, ...] = ()  # NAME=VALUE

    def needs(self, options: SuiteOptions | None = None) -> Needs:
        return Needs(symbols=("EXT4_FS",), root_image=True, packages=("perl", "procps"))

    def plan(self, options: SuiteOptions) -> tuple[PlannedCase, ...]:
        return ()

    def supply(self, ground: Ground) -> Supplies:
        """Builds the collections of both sides. A group is a collection."""
        asked = ground.groups or ground.config.kselftest.collections
        if ground.only and not any("kselftest" in one or "*" in one for one in ground.only):
            return Supplies()  # built for nothing otherwise
        built: dict[tuple[str, Side], Built] = {}
        disks: dict[tuple[str, Side], tuple[Disk, ...]] = {}
        notes: list[str] = []
        for name in ground.archs:
            row = arch_row(name)
            root = image.root_image(name, cache=ground.cache, emit=ground.emit)
            land = programs.userland(root, row)
            for side, tree in ground.trees.items():
                names, absent = collections.present(tree.path, asked)
                notes += [f"this kernel has no self-tests {one!r}" for one in absent]
                if not names:
                    continue
                built[name, side] = made = collections.build(
                    tree,
                    row,
                    names,
                    land,
                    cache=ground.cache,
                    emit=ground.emit,
                    jobs=ground.config.build.job_count,
                )
                packed = collections.disk(made, row, cache=ground.cache, emit=ground.emit)
                if packed is not None:
                    disk = Disk(path=packed, format="raw", readonly=True, serial=SERIAL)
                    disks[name, side] = (disk,)
        cases, more = plan(built, ground.config.kselftest.timeout_s)
        notes += more
        if not any(not case.skip for case in cases):
            why = "; ".join(dict.fromkeys((*notes, *(case.skip for case in cases))))
            return Supplies(absent=why or "nothing was asked for")
        return Supplies(cases=cases, disks=disks, notes=tuple(dict.fromkeys(notes)))

    async def run(self, guest: Commands, case: PlannedCase, seed: int) -> CaseResult | Told | Down:
        began = time.monotonic()
        collection, test = case.arguments
        script = SCRIPT.read_text(encoding="utf-8")
        words = ("/bin/sh", "-c", script, SCRIPT.name, collection, test)
        answer = await guest.run(("env", *self.environment, *words), timeout_s=case.timeout_s)
        if isinstance(answer, Down):
            return answer
        told = judge(case.name, test, answer)
        duration_s = time.monotonic() - began
        result = CaseResult(
            name=told.result.name,
            state=told.result.state,
            message=told.result.message,
            duration_s=duration_s,
        )
        return Told(result=result, parts=told.parts, files=told.files)


def plan(
    built: Mapping[tuple[str, Side], Built], timeout_s: float
) -> tuple[tuple[PlannedCase, ...], list[str]]:
    """The cases of all that was built, on either side and any architecture, and what to know.

    What is built nowhere is planned too, to be skipped with its reason.
    """
    tests: dict[str, None] = {}
    unbuilt: dict[str, str] = {}
    symbols: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for one in built.values():
        tests |= dict.fromkeys(one.tests)
        unbuilt |= {name: why for name, why in one.unbuilt.items() if name not in unbuilt}
        symbols |= one.symbols
    for name, wanted in symbols.items():
        if name in _MIXED and wanted:
            notes.append(f"{name} wants {', '.join(wanted)}; what the kernel lacks, its parts tell")
    cases = [
        PlannedCase(
            name=_case_name(test),
            timeout_s=timeout_s,
            arguments=(test.partition(":")[0], test.partition(":")[2]),
            symbols=_needed(test, symbols),
        )
        for test in tests
    ]
    cases += [
        PlannedCase(name=_case_name(test), timeout_s=1.0, skip=why)
        for test, why in unbuilt.items()
        if test not in tests
    ]
    return tuple(cases), notes


def _case_name(test: str) -> str:
    return f"kselftest/{test.replace(PART, '/')}"


def _needed(test: str, symbols: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    collection = test.partition(":")[0]
    return () if collection in _MIXED else tuple(symbols.get(collection, ()))


def judge(name: str, test: str, answer: Exited | TimedOut) -> Told:
    """The result of a test and of its parts, from what it printed and how it ended."""
    said = (answer.stdout + answer.stderr)[-_LOG_BYTES:]
    report = ktap.read(answer.stdout.decode("utf-8", "replace"), test)
    if isinstance(answer, TimedOut):
        state, message = CaseState.TIMEOUT, "it did not end in its time"
    elif answer.status == _CANNOT and report.outer is None:
        why = ktap.plain(answer.stderr.decode("utf-8", "replace"))
        # A side without this test: not a failure, and not a pass either.
        skips = "not built" in why or "no self-tests" in why
        state, message = CaseState.SKIPPED if skips else CaseState.FAILED, why
    else:
        state, message = ktap.judge(report)
        if answer.truncated and state is CaseState.PASSED:
            state, message = CaseState.FAILED, "it said more than the lab keeps"
    parts = tuple(
        CaseResult(name=f"{name}{PART}{part.name}", state=part.state, message=part.message)
        for part in report.parts
    )
    result = CaseResult(name=name, state=state, message=message)
    keep = state is not CaseState.PASSED and bool(said)
    return Told(result=result, parts=parts, files={"output.log": said} if keep else {})
