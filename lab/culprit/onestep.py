"""One checked-out commit goes in, what `git bisect run` wants to know of it comes out.

The user's tree is read, never written to: what is tested is the commit that it stands at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from lab import intake, source, subject, tree
from lab.arch import arch as arch_row
from lab.bisect import Rates, Revision, Step, StepKind, settled
from lab.config import Config
from lab.culprit.bench import KernelBench, Machines, find_cases
from lab.culprit.symptom import Symptom
from lab.culprit.track import Point, Track, profile
from lab.host import run as host_run
from lab.model import Emit, Event, EventKind, Side, Source, UserError
from lab.patching import Applied
from lab.store import Cache
from lab.suites.protocol import Ground

_PATIENCE = 3  # runs in a row that prove nothing


class StepExit(IntEnum):
    """The protocol of `git bisect run`."""

    GOOD = 0
    BAD = 1
    SKIP = 125


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `lab bisect step` was asked for."""

    config: Config  # `kernel` is the directory; `arch` is one
    cases: tuple[str, ...]
    splat: str = ""
    base: str = ""  # what later steps start their builds from; "": the bisection's first good
    rates: Rates | None = None
    repeats: int | None = None  # that many passing runs are good, one failure is bad

    def verdict(self, failed: int, passed: int) -> StepKind | None:
        if self.repeats is not None:
            done = StepKind.GOOD if passed >= self.repeats else None
            return StepKind.BAD if failed else done
        return settled(failed, passed, self.rates or Rates())


def run(request: Request, emit: Emit) -> StepExit:
    """Test the commit. Raises `UserError` and `LabFault`: then git bisect must stop."""
    config = request.config
    cache = Cache(root=config.paths.cache_dir)
    subject.check_tools(config)
    track = _track(request, cache, emit)
    archs = tuple(arch_row(name).name for name in config.arch)
    here = tree.at(track.source, track.points[-1].step, cache=cache, emit=emit)
    ground = Ground(
        archs=archs,
        trees={Side.BASE: here, Side.PATCHED: here},
        config=config,
        cache=cache,
        emit=emit,
    )
    cases = find_cases(request.cases, config, ground)
    symptom = Symptom(cases=tuple(case.name for case in cases.cases), splat=request.splat)
    with tempfile.TemporaryDirectory(prefix="lab-bisect-") as name:
        bench = KernelBench(
            track=track,
            symptom=symptom,
            cases=cases,
            config=config,
            cache=cache,
            folder=Path(name),
            emit=emit,
            boot=Machines(cases=cases, config=config, cache=cache, emit=emit, symptom=symptom),
        )
        return answer(request, bench.build, bench.run, emit)


def answer(
    request: Request,
    build: Callable[[int], Step],
    run_once: Callable[[int], Step],
    emit: Emit,
) -> StepExit:
    """Build revision 1 of a track of two and run it until that settles it."""
    built = build(1)
    if built.kind is StepKind.UNTESTABLE:
        _say(emit, f"skip: {built.note}")
        return StepExit.SKIP
    failed = passed = silent = 0
    while True:
        step = run_once(1)
        failed += step.kind is StepKind.BAD
        passed += step.kind is StepKind.GOOD
        silent = 0 if step.kind in (StepKind.BAD, StepKind.GOOD) else silent + 1
        _say(emit, f"{step.kind}: {step.note} ({failed} of {failed + passed} failed)")
        if silent >= _PATIENCE:
            return StepExit.SKIP
        match request.verdict(failed, passed):
            case StepKind.GOOD:
                return StepExit.GOOD
            case StepKind.BAD:
                return StepExit.BAD
            case _:
                continue


def _say(emit: Emit, text: str) -> None:
    emit(Event(kind=EventKind.DONE, step="bisect step", text=text))


def _track(request: Request, cache: Cache, emit: Emit) -> Track:
    """The commit that the tree stands at, as what differs from the base of all steps."""
    name = request.config.kernel
    if not name or name.startswith("debian:") or not Path(name).is_dir():
        raise UserError(
            f"--kernel {name or '(none)'}: git bisect stands in a directory",
            hint="git bisect run lab bisect step --kernel . --case CASE",
        )
    here = source.open_source(name, cache=cache, emit=emit)
    wanted = request.base or _first_good(Path(name))
    base = source.open_source(f"{name}@{wanted}", cache=cache, emit=emit) if wanted else here
    fragments = profile(request.config.profile, request.config)

    def point(what: Source, label: str) -> Point:
        return Point(
            revision=Revision(id=what.commit, label=label, title=what.version),
            step=Applied(commit=what.commit, tree=what.tree),
            fragments=fragments,
        )

    # Two ends and this in between: an end that cannot be configured would be the user's error.
    points = (point(base, "the base"), point(here, here.commit[:12]), point(here, "the bad end"))
    return Track(what="history", title=here.commit[:12], source=base, points=points)


def _first_good(directory: Path) -> str:
    """The oldest good commit of the bisection in this tree; "" if there is none."""
    done = host_run(
        [*intake.GIT, "-C", directory, "for-each-ref", "--sort=committerdate",
         "--format=%(objectname)", "refs/bisect/good-*"],
        env=intake.READ_ONLY_GIT,
        check=False,
    )  # fmt: skip
    found = done.text.split()
    return found[0] if done.status == 0 and found else ""
