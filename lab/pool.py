"""Cells and the kits to run them go in, their trials come out: several machines at once.

A machine that goes down is charged to the case that ran, and the rest of its cell goes on in a
fresh one. A case that takes its machine down twice on one side is left out of cells that other
cases share. Whole trials of a run that was cut off are taken from its folder.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from lab import model, plan, trial, verdict
from lab.accel import AcceleratorLost
from lab.config import Machine
from lab.model import (
    Accelerator,
    CaseState,
    Cell,
    Emit,
    Event,
    EventKind,
    LabError,
    LabFault,
    MachineEnd,
    Side,
    Trial,
)
from lab.store import remove_tree, write_atomically
from lab.trial import Kit

# What a QEMU needs beside its guest's memory: under TCG, most of it is translated code.
OVERHEAD_BYTES = {"kvm": 128 << 20, "tcg": 512 << 20}
MEMORY_SHARE = 0.8  # of what is available now: others want some too
_RUNS_REMEMBERED = 5
# Cells on their way for each far machine: the next ones are there when the last one ends.
_AHEAD = 4

Execute = Callable[[Cell, Kit, Path, Emit], Awaitable[Trial]]


# --- how many at once --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How one architecture's work is split. Kept in the run's folder, for a run that goes on
    where it was cut off must make the same cells."""

    machines: int
    costs: dict[str, float]  # case -> seconds that it is expected to take


def capacity(machine: Machine, accelerator: Accelerator, *, cores: int, free_bytes: int) -> int:
    """How many machines run at once: as asked for, or as many as cores and memory carry.

    A machine whose CPUs share cores with another's measures the other's load: none shares.
    """
    if machine.parallel:
        return machine.parallel
    each_bytes = machine.memory_bytes + OVERHEAD_BYTES[accelerator.name]
    return max(1, min(cores // machine.cpus, int(free_bytes * MEMORY_SHARE) // each_bytes))


def crowding(machine: Machine, machines: int) -> float:
    """By how much machines that share cores are slower than one alone."""
    return max(1.0, machines * machine.cpus / cores())


def cores() -> int:
    return len(os.sched_getaffinity(0))


def free_bytes() -> int:
    """Memory that new processes of ours may take: the host's, or what our control group leaves."""
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = int(found[1]) * 1024 if found else 0
    group = Path("/proc/self/cgroup").read_text().partition("::")[2].splitlines()
    folder = Path("/sys/fs/cgroup") / (group[0].lstrip("/") if group else "")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def durations(runs: Path, *, arch: str, accelerator: str) -> dict[str, float]:
    """How long cases took in the newest runs there, on that accelerator, in seconds."""
    seen: dict[str, list[float]] = {}
    folders = sorted((path for path in runs.glob("*") if path.is_dir()), reverse=True)
    for folder in folders[:_RUNS_REMEMBERED]:
        for file in folder.glob(f"trials/{arch}-*/trial.json"):
            try:
                old = model.decode(file.read_bytes(), Trial)
            except (LabFault, OSError):
                continue  # of another version of the lab, or just being removed
            if old.cell.arch != arch or old.accelerator.name != accelerator:
                continue
            for result in old.results:
                if result.state is CaseState.PASSED and result.duration_s > 0:
                    seen.setdefault(result.name, []).append(result.duration_s)
    return {name: fmean(taken) for name, taken in seen.items()}


def settle(folder: Path, arch: str, make: Callable[[], Split]) -> Split:
    """The split of that architecture in the run's folder; made there if it is not yet."""
    file = folder / f"split-{arch}.json"
    if file.exists():
        return model.decode(file.read_bytes(), Split)
    split = make()
    write_atomically(file, model.encode(split))
    return split


# --- running -----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Pool:
    """The machines of one architecture, and where the records of their trials go."""

    arch: str
    kits: Mapping[Side, Kit]
    folder: Path  # of the run
    split: Split
    trials: list[Trial]  # of the whole run, in the order in which they ended
    emit: Emit
    execute: Execute = trial.run
    far: bool = False  # the machines are on other hosts: cells are sent ahead, longest first
    busy_s: float = 0.0  # with at least one machine up
    _faults: list[LabError] = field(default_factory=list)
    _began: dict[str, bool] = field(default_factory=dict)  # cell of both sides -> restored
    _tried: Counter[str] = field(default_factory=Counter)  # of the first `_counted` trials
    _counted: int = 0
    _lost: list[Trial] = field(default_factory=list)  # of the first `_seen` trials
    _seen: int = 0

    async def run(self, cells: Sequence[Cell], *, asked: bool = False) -> None:
        """Run all cells, as many at once as the split says, each in as many machines as it takes.

        With `asked`, the judge wants just these: a case that takes machines down then runs on its
        own instead of not at all. After a fault of the lab no new machine starts, those that run
        end what they are at, and the first fault is raised: none of their work is lost.
        """
        began = time.monotonic()
        queue = deque(self._sharded(cells))

        async def work() -> None:
            while queue and not self._faults:
                for cell in self._due(queue.popleft(), asked=asked):
                    await self._run_cell(cell)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.split.machines * (_AHEAD if self.far else 1), len(queue))):
                group.create_task(work())
        self.busy_s += time.monotonic() - began
        for other in self._faults[1:]:
            self.emit(Event(kind=EventKind.WARNING, step="machines", text=other.message))
        if self._faults:
            raise self._faults[0]

    def _sharded(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        kit = next(iter(self.kits.values()))
        most = max((sum(map(self._cost, cell.cases)) for cell in cells), default=0.0)
        cases = max((len(cell.cases) for cell in cells), default=1)
        shards = plan.shard_count(
            len(cells),
            machines=self.split.machines,
            cases=cases,
            work_s=most,
            boot_s=kit.accelerator.boot_s,
        )
        shards = max(shards, plan.pieces(cases, most))
        spread = plan.spread(cells, shards, self.split.costs)
        return plan.longest_first(spread, self.split.costs) if self.far else spread

    def _cost(self, case: str) -> float:
        return self.split.costs.get(case, 0.0)

    def _due(self, cell: Cell, *, asked: bool) -> tuple[Cell, ...]:
        """The cell without the cases that are left out by now; these on their own if `asked`."""
        out = verdict.left_out(self._downs(), cell.arch)
        alone = [case for case in cell.cases if cell.repeat > out.get(case, cell.repeat)]
        return plan.apart(cell, alone, keep=asked)

    async def _run_cell(self, cell: Cell) -> None:
        """One cell, in as many machines as it takes.

        A machine that did not boot, or that died before its first case, is left to the judge, who
        asks for more runs if they can tell anything.
        """
        if self._faults:
            return
        try:
            async for record in trial.relay(cell, self.one_trial):
                self.trials.append(record)
                if _lost_kvm(record):
                    self._faults.append(AcceleratorLost(f"KVM is lost: {record.note}"))
                if self._faults:  # one of its own, or of another machine's
                    return
        except LabError as error:
            self._faults.append(error)

    async def one_trial(self, cell: Cell) -> Trial:
        """Run the cell, or take its whole record from the run that was cut off."""
        digest = plan.digest(cell)
        attempts = self._attempts(digest)
        name = f"{cell.arch}-{cell.side}-{cell.repeat + 1:02}-{digest[:6]}-{attempts + 1}"
        folder = self.folder / "trials" / name
        step = trial.step_name(cell)
        record_file = folder / "trial.json"
        if record_file.exists():
            record = model.decode(record_file.read_bytes(), Trial)
            if (
                record.cell == cell
                and record.accelerator.name == self.kits[cell.side].accelerator.name
            ):
                self._began.setdefault(_both_sides(cell), record.restored)
                text = "whole, from the run before"
                self.emit(Event(kind=EventKind.DONE, step=step, text=text))
                return record
        remove_tree(folder)  # of a trial that was cut off: nothing of it is whole
        self.emit(Event(kind=EventKind.STARTED, step=step, text=_cases(cell)))
        kit = replace(self.kits[cell.side], restore=self._may_restore(cell))
        record = await self.execute(cell, kit, folder, self.emit)
        self.emit(Event(kind=EventKind.DONE, step=step, text=_digest_line(record)))
        return record

    def _attempts(self, digest: str) -> int:
        """How many trials of that cell have ended. Each trial is looked at once, for a run may
        have thousands."""
        for old in self.trials[self._counted :]:
            self._tried[plan.digest(old.cell)] += 1
        self._counted = len(self.trials)
        return self._tried[digest]

    def _downs(self) -> list[Trial]:
        """The trials whose machines went down."""
        self._lost += [
            old for old in self.trials[self._seen :] if verdict.took_down(old) is not None
        ]
        self._seen = len(self.trials)
        return self._lost

    def _may_restore(self, cell: Cell) -> bool:
        """Whether the cell's machine may begin from a snapshot.

        Each kernel boots once in every run, so that a series which breaks the boot is seen; one
        whose boot shows anything goes on booting. What is compared is treated alike: the side
        that comes second begins as the first one did.
        """
        return self._began.setdefault(_both_sides(cell), self._restorable(cell))

    def _restorable(self, cell: Cell) -> bool:
        """Both kernels have booted in this run, always well, and left a snapshot."""
        for kit in self.kits.values():
            if kit.shelf is None:
                return False
            boots = [
                record
                for record in self.trials
                if record.cell.kernel_key == kit.kernel.key and not record.restored
            ]
            well = [record.boot_s is not None and not record.boot_splats for record in boots]
            rig = kit.rig(memory_bytes=cell.memory_bytes, cpus=cell.cpus)
            if not well or not all(well) or not rig.restorable(kit.shelf):
                return False
        return True


def _lost_kvm(record: Trial) -> bool:
    """QEMU ended before the guest was up, under an accelerator that had booted a kernel here."""
    name = record.accelerator.name
    return name == "kvm" and record.boot_s is None and record.end is MachineEnd.QEMU_DIED


def _both_sides(cell: Cell) -> str:
    """Equal for a cell and its counterpart on the other side."""
    return plan.digest(replace(cell, side=Side.BASE, kernel_key=""))


def _cases(cell: Cell) -> str:
    return f"{len(cell.cases)} cases" if len(cell.cases) > 1 else cell.cases[0]


def _digest_line(record: Trial) -> str:
    if record.boot_s is None:
        return f"did not boot ({record.end})"
    counts = dict.fromkeys(CaseState, 0)
    for result in record.results:
        counts[result.state] += 1
    began = trial.began(record.boot_s, record.restored)
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    ended = "" if record.end is MachineEnd.POWERED_OFF else f"; machine {record.end}"
    return f"{said or 'no case ran'}{ended} ({record.wall_s:.0f} s, {began})"
