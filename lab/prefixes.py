"""A series and its base go in; each prefix of it, built and booted, comes out (`--each-patch`).

A patch breaks the build, warns or breaks the boot on its own account only: each prefix is compared
with the one before it. The kernel of a prefix starts from the objects of that one, so that what a
patch costs is what it touches. Trials of a run that was cut off are taken from its folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab import build, verdict
from lab.config import Config
from lab.equipment import cell, equip, kit
from lab.model import (
    BuildFailure,
    CaseState,
    Diagnostic,
    Emit,
    Event,
    EventKind,
    Kernel,
    Patch,
    PrefixResult,
    PrefixState,
    Side,
    Trial,
)
from lab.pool import Pool, Split
from lab.store import Cache
from lab.subject import Plan, prefix_fragments
from lab.suites.boot import CASE, Boot
from lab.suites.protocol import SuiteOptions
from lab.tree import checkout
from lab.trial import Kit

# A failed boot is a patch's fault after so many in a row, as in a verdict.
TRIES = 3
_BOOT = Boot()
_SCRATCH_BYTES = 64 << 20  # nobody writes to it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the boots of one kernel showed."""

    state: PrefixState
    broken: str  # "boot" | "case" | "splat" | ""
    reason: str
    boot_s: float | None
    log: str
    splats: frozenset[str]  # fingerprints, or titles


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What all prefixes of one architecture have in common."""

    arch: str
    config: Config
    kit: Kit  # but for its kernel
    folder: Path
    trials: list[Trial]
    emit: Emit


async def check(
    base: Kernel, planned: Plan, config: Config, cache: Cache, folder: Path, emit: Emit
) -> tuple[PrefixResult, ...]:
    """Build and boot the source with the first 1, 2, ... patches, on the base's architecture."""
    bench = await _bench(base, config, cache, folder, emit)
    below = await _look(base, Side.BASE, bench, known=frozenset())
    series, source = planned.subject.series, planned.subject.source
    previous = base
    results: list[PrefixResult] = []
    for number, patch in enumerate(series.patches, 1):
        step = f"patch {number}/{len(series.patches)} {base.arch}"
        emit(Event(kind=EventKind.STARTED, step=step, text=patch.subject))
        tree = await asyncio.to_thread(
            checkout, source, series.patches[:number], cache=cache, emit=emit
        )
        built = await asyncio.to_thread(
            build.build,
            tree,
            arch=base.arch,
            side=Side.PATCHED,
            fragments=prefix_fragments(planned, base.arch),
            cache=cache,
            emit=emit,
            jobs=config.build.job_count,
            seed=previous if (previous.folder / "obj").is_dir() else base,
            # Of two patches the second is the series itself: nothing would start from the first.
            keep=2 < len(series.patches) > number,
        )
        if isinstance(built, BuildFailure):
            result = _unbuilt(number, patch, built)
        else:
            seen = await _look(built, Side.PATCHED, bench, known=below.splats)
            fresh = tuple(
                one for one in verdict.new_warnings(previous, built) if one.file in tree.changed
            )
            result = _result(number, patch, built, seen, below, fresh)
            previous = built
        results.append(result)
        emit(Event(kind=EventKind.DONE, step=step, text=result.reason or str(result.state)))
    return tuple(results)


async def _bench(base: Kernel, config: Config, cache: Cache, folder: Path, emit: Emit) -> _Bench:
    equipment = await equip(base, config, cache, emit)
    whole = kit(base, (_BOOT,), _BOOT.plan(SuiteOptions()), config, equipment)
    return _Bench(
        arch=base.arch,
        config=config,
        kit=replace(whole, scratch_bytes=_SCRATCH_BYTES),
        folder=folder / "prefixes",
        trials=[],
        emit=emit,
    )


# --- one prefix --------------------------------------------------------------------------------


async def _look(kernel: Kernel, side: Side, bench: _Bench, known: frozenset[str]) -> _Look:
    """Boot it; once if all is well, else until it is clear whether it always fails."""
    own = replace(bench.kit, kernel=kernel)
    machines = Pool(
        arch=bench.arch,
        kits={side: own},
        folder=bench.folder,
        split=Split(machines=1, costs={}),
        trials=bench.trials,
        emit=bench.emit,
    )
    problems: list[tuple[str, str]] = []
    for repeat in range(TRIES):
        trial = await machines.one_trial(cell(own, bench.config, (CASE,), repeat))
        bench.trials.append(trial)
        problems.append(problem(trial, known))
        if not problems[-1][0]:
            break
    state, broken, reason = conclude(problems)
    splats = (
        *trial.boot_splats,
        *(splat for result in trial.results for splat in result.splats),
    )
    return _Look(
        state=state,
        broken=broken,
        reason=reason,
        boot_s=trial.boot_s,
        log=f"prefixes/trials/{trial.id}/{trial.console}",
        splats=frozenset(splat.fingerprint or splat.title for splat in splats),
    )


def conclude(problems: Sequence[tuple[str, str]]) -> tuple[PrefixState, str, str]:
    """(state, what is broken, why) of a kernel from the problems of its boots, the last one last.

    A result that got lost says nothing, neither for nor against it.
    """
    bad = [one for one in problems if one[0] not in ("", "lost")]
    lost = [one for one in problems if one[0] == "lost"]
    if len(bad) == TRIES:
        return PrefixState.BROKEN, *bad[0]
    if not bad and len(lost) < len(problems):
        return PrefixState.PASSED, "", ""
    worst = (bad or lost)[0][1]
    return PrefixState.UNKNOWN, "", f"{len(bad) or len(lost)} of {len(problems)} boots: {worst}"


def problem(trial: Trial, known: frozenset[str]) -> tuple[str, str]:
    """("boot" | "splat" | "case" | "lost", why), or ("", "") if the kernel booted and all is well.

    `known` are fingerprints of splats that the base has as well.
    """
    if trial.boot_s is None:
        return "boot", f"it does not boot: {trial.end}"
    everywhere = (
        *trial.boot_splats,
        *(splat for result in trial.results for splat in result.splats),
    )
    for splat in everywhere:
        if (splat.fingerprint or splat.title) not in known:
            return "splat", splat.title
    for result in trial.results:
        if result.state in (CaseState.MISSING, CaseState.UNCOVERED, CaseState.SKIPPED):
            return "lost", f"{result.name} {result.state}: {result.message}"
        if result.state is not CaseState.PASSED and not result.splats:
            return "case", f"{result.name} {result.state}: {result.message}"
    return ("", "") if trial.results else ("lost", f"no case ran: {trial.note or trial.end}")


def _unbuilt(number: int, patch: Patch, failure: BuildFailure) -> PrefixResult:
    error = failure.first_error
    place = f"{error.file}:{error.line}: " if error.line else ""
    return PrefixResult(
        number=number,
        patch=patch.name,
        subject=patch.subject,
        arch=failure.arch,
        state=PrefixState.BROKEN,
        build_s=failure.build_s,
        compiled=0,
        boot_s=None,
        broken="build",
        reason=f"it does not build: {place}{error.message}",
        log=str(failure.log),
    )


def _result(
    number: int,
    patch: Patch,
    kernel: Kernel,
    seen: _Look,
    below: _Look,
    fresh: tuple[Diagnostic, ...],
) -> PrefixResult:
    state, broken, reason = seen.state, seen.broken, seen.reason
    if below.state is not PrefixState.PASSED and state is PrefixState.BROKEN:
        # What the base cannot do either says nothing about a patch.
        state, broken, reason = PrefixState.UNKNOWN, "", f"nor does the base: {below.reason}"
    if fresh and state is not PrefixState.BROKEN:
        one = fresh[0]
        state, broken = PrefixState.BROKEN, "warning"
        reason = f"new compiler warning: {one.file}:{one.line}: {one.message}"
    return PrefixResult(
        number=number,
        patch=patch.name,
        subject=patch.subject,
        arch=kernel.arch,
        state=state,
        build_s=kernel.build_s if kernel.make_ran else 0.0,
        compiled=kernel.compiled if kernel.make_ran else 0,
        boot_s=seen.boot_s,
        broken=broken,
        reason=reason,
        warnings=fresh,
        log=seen.log,
    )
