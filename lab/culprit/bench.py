"""A revision goes in; its kernel is built, its cases run in QEMU, and a `Step` of the search comes
out. What does not build is untestable; what ran and proved nothing is nothing; never good or bad.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from lab import build, selection, subject, tree, trial
from lab.arch import arch as arch_row
from lab.bisect import Step, StepKind
from lab.build.signature import signature
from lab.config import Config
from lab.culprit.symptom import Symptom, judge
from lab.culprit.track import Point, Track
from lab.equipment import Equipment, cell, equip, kit
from lab.model import (
    BuildFailure,
    Cell,
    Emit,
    Event,
    Kernel,
    LabFault,
    Side,
    Trial,
    UserError,
)
from lab.selection import Selection
from lab.store import Cache, remove_tree
from lab.suites import registry
from lab.suites.protocol import Ground, Needs
from lab.tree import Tree
from lab.trial import Kit

# Runs the cases of one kernel once; (kernel, repeat, folder for the evidence).
Boot = Callable[[Kernel, int, Path], Sequence[Trial]]


def find_cases(names: Sequence[str], config: Config, ground: Ground) -> Selection:
    """The cases of those names; none named are all that would be planned. Raises `UserError`."""
    options = subject.suite_options(config)
    if not names:
        words = config.suites or subject.DEFAULT_SUITES
        return selection.select(selection.parse(words), options, ground=ground)
    wanted = selection.parse(tuple(dict.fromkeys(name.partition("/")[0] for name in names)))
    parts = [name.split("/") for name in names]
    if all(part[0] == "faultstress" and len(part) == 3 for part in parts):
        # Also those that the options at hand would not plan.
        options = dataclasses.replace(
            options,
            filesystems=tuple(dict.fromkeys(part[1] for part in parts)),
            scenarios=tuple(dict.fromkeys(part[2] for part in parts)),
        )
    return selection.select(wanted, options, only=names, ground=ground)


@dataclass(slots=True, kw_only=True)
class KernelBench:
    """Builds the revisions of a track, each from the base's objects, and runs them."""

    track: Track
    symptom: Symptom
    cases: Selection
    config: Config
    cache: Cache
    folder: Path  # of the bisection; evidence goes below it
    emit: Emit
    boot: Boot
    done: Counter[int] = field(default_factory=Counter)  # runs of each revision so far
    kernels: dict[int, Kernel] = field(default_factory=dict)
    _seed: Kernel | BuildFailure | None = None

    # --- building ------------------------------------------------------------------------------

    def build(self, revision: int) -> Step:
        """`BUILT`, or `UNTESTABLE` and why. Raises `UserError` for ends nobody can build."""
        began = time.monotonic()
        built = self._built(revision)
        seconds = time.monotonic() - began
        if not isinstance(built, Kernel):
            return Step(kind=StepKind.UNTESTABLE, revision=revision, seconds=seconds, note=built)
        return Step(
            kind=StepKind.BUILT,
            revision=revision,
            seconds=seconds,
            kernel=signature(built.vmlinux),
            made=built.make_ran,
        )

    def _built(self, revision: int) -> Kernel | str:
        """The kernel, or why there is none."""
        point = self.track.points[revision]
        try:
            made = self._make(point, Side.BASE if revision == 0 else Side.PATCHED)
            if isinstance(made, Kernel):
                self._check_needs(made)
        except UserError as error:
            # Between the ends an option may be without those that it depends on.
            if revision in (0, len(self.track.points) - 1):
                raise
            return error.message.splitlines()[0]
        if isinstance(made, BuildFailure):
            first = made.first_error
            return f"does not build: {first.file}:{first.line}: {first.message}"
        self.kernels[revision] = made
        return made

    def _make(self, point: Point, side: Side) -> Kernel | BuildFailure:
        base = tree.checkout(self.track.source, (), cache=self.cache, emit=self.emit)
        if self._seed is None:
            self._seed = self._compile(base, self.track.points[0], Side.BASE, None)
        if point == self.track.points[0] and point.step.tree == base.tree:
            return self._seed
        seed = self._seed if isinstance(self._seed, Kernel) else None
        standing = tree.at(self.track.source, point.step, cache=self.cache, emit=self.emit)
        return self._compile(standing, point, side, seed)

    def _compile(
        self, standing: Tree, point: Point, side: Side, seed: Kernel | None
    ) -> Kernel | BuildFailure:
        (arch,) = self.config.arch
        return build.build(
            standing,
            arch=arch_row(arch).name,
            side=side,
            fragments=point.fragments,
            cache=self.cache,
            emit=self.emit,
            jobs=self.config.build.job_count,
            seed=seed,
        )

    def _check_needs(self, kernel: Kernel) -> None:
        text = kernel.config.read_text()
        for suite in self.cases.suites:
            symbols = (*suite.needs().symbols, *registry.required(suite, self.cases.cases))
            missing = registry.missing_symbols(Needs(symbols=symbols), text)
            if missing:
                raise UserError(
                    f"suite {suite.name} needs {', '.join(missing)}, which this configuration "
                    "does not set",
                    hint="--profile names another one",
                )

    # --- running -------------------------------------------------------------------------------

    def run(self, revision: int) -> Step:
        """One run of the cases on a fresh machine, judged."""
        if revision not in self.kernels:  # built before an interruption: it is in the cache
            built = self._built(revision)
            if not isinstance(built, Kernel):
                raise LabFault(
                    f"{self.track.points[revision].revision.label} built before: {built}"
                )
        repeat = self.done[revision]
        self.done[revision] += 1
        name = f"{revision:04}-{repeat + 1:03}"
        folder = self.folder / "trials" / name
        remove_tree(folder)  # of a run that was cut off
        began = time.monotonic()
        trials = self.boot(self.kernels[revision], repeat, folder)
        answer = judge(self.symptom, trials)
        return Step(
            kind=answer.kind,
            revision=revision,
            seconds=time.monotonic() - began,
            note=answer.note,
            trial=f"trials/{name}",
        )


@dataclass(slots=True, kw_only=True)
class Machines:
    """Runs cases of a kernel in QEMU: a `Boot`."""

    cases: Selection
    config: Config
    cache: Cache
    emit: Emit
    symptom: Symptom
    _equipment: Equipment | None = None

    def __call__(self, kernel: Kernel, repeat: int, folder: Path) -> tuple[Trial, ...]:
        """In as many machines as it takes: what goes down is charged to one case."""
        return asyncio.run(self._run(self._kit(kernel), repeat, folder))

    async def _run(self, own: Kit, repeat: int, folder: Path) -> tuple[Trial, ...]:
        trials: list[Trial] = []

        def next_one(todo: Cell) -> Awaitable[Trial]:
            return trial.run(todo, own, folder / f"{len(trials) + 1}", _quiet)

        names = [case.name for case in self.cases.cases]
        async for one in trial.relay(cell(own, self.config, names, repeat), next_one):
            trials.append(one)
            if judge(self.symptom, trials).kind is StepKind.BAD:
                break
        return tuple(trials)

    def _equip(self, kernel: Kernel) -> Equipment:
        """Proved by the first kernel that runs, the good end."""
        if self._equipment is None:
            self._equipment = asyncio.run(equip(kernel, self.config, self.cache, self.emit))
        return self._equipment

    def _kit(self, kernel: Kernel) -> Kit:
        return replace(
            kit(kernel, self.cases.suites, self.cases.cases, self.config, self._equip(kernel)),
            allowed=subject.known_splats(self.config),
            today=datetime.now(UTC).date(),
            disks=self.cases.disks.get((kernel.arch, kernel.side), ()),
        )


def _quiet(event: Event) -> None:
    """A bisection says what its runs were, not what was in them."""
