"""Several machines at once: crashes resumed, cases left out, faults that lose nobody's work."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from lab import model, plan, pool
from lab.accel import AcceleratorLost
from lab.config import Machine
from lab.machine import MachineSpec, Timeouts
from lab.model import (
    Accelerator,
    CaseState,
    Cell,
    Emit,
    Event,
    LabFault,
    MachineEnd,
    Outcome,
    Side,
    Trial,
)
from lab.plan import Matrix
from lab.pool import Pool, Split
from lab.rig import PMEM_BYTES
from lab.snapshot import Shelf
from lab.store import write_atomically
from lab.suites.protocol import PlannedCase
from lab.trial import Kit
from lab.verdict import JudgeInput, judge, left_out, needs_more
from tests import records

CASES = ("boot/hello", "faultstress/ext4/truncate", "faultstress/ext4/munmap")
MATRIX = Matrix(
    arch="x86_64",
    profile="lockdep",
    suites=("boot", "faultstress"),
    cases=CASES,
    image_sha256="5e1f" * 16,
    seed=1,
    memory_bytes=1 << 30,
    cpus=2,
)
WELL = MachineEnd.POWERED_OFF
KERNELS = {side: records.kernel(side) for side in Side}

# How the machine of a cell ends that has reached that case: None is well.
Fate = Callable[[Cell, str], MachineEnd | None]


def kits() -> Mapping[Side, Kit]:
    return {
        side: Kit(
            kernel=kernel,
            initramfs=Path("/initramfs"),
            image=records.image(),
            accelerator=records.TCG,
            timeouts=Timeouts(boot_s=1, silence_s=1, wall_s=1),
            suites=(),
            cases={},
            scratch_bytes=0,
        )
        for side, kernel in KERNELS.items()
    }


def test_only_machines_of_cases_that_need_it_have_persistent_memory() -> None:
    plain = kits()[Side.BASE]
    dax = replace(plain, cases={"a": PlannedCase(name="a", timeout_s=1.0, pmem=True)})
    for kit, wanted in ((plain, 0), (dax, PMEM_BYTES)):
        spec = kit.rig(memory_bytes=1 << 30, cpus=2).spec(Path("folder"))
        assert sum(disk.pmem_bytes for disk in spec.disks) == wanted


class Machines:
    """Answers as machines would, and counts how many were up at once."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.up = self.most = 0
        self.ran: Counter[tuple[Side, str]] = Counter()
        self.cells: list[Cell] = []

    async def __call__(self, cell: Cell, kit: Kit, folder: Path, emit: Emit) -> Trial:
        self.up += 1
        self.most = max(self.most, self.up)
        self.cells.append(cell)
        try:
            trial = replace(self.answer(cell), id=folder.name)
            for _ in cell.cases:  # a cell with more cases takes longer
                await asyncio.sleep(0.001)
            write_atomically(folder / "trial.json", model.encode(trial))
            return trial
        finally:
            self.up -= 1

    def answer(self, cell: Cell) -> Trial:
        results = []
        for name in cell.cases:
            self.ran[cell.side, name] += 1
            end = self.fate(cell, name)
            if end is MachineEnd.HUNG_BOOT:
                return records.trial(cell, boots=False, end=end)
            if end is MachineEnd.LOST:
                return records.trial(cell, results=(), end=MachineEnd.PANICKED)
            if end is not None:
                hung = end is MachineEnd.HUNG_SILENT
                state = CaseState.HUNG if hung else CaseState.CRASHED
                results.append(records.failed(name, f"machine {end}", state))
                return records.trial(cell, results=tuple(results), end=end)
            results.append(records.passed(name, cell))
        return records.trial(cell, results=tuple(results))


def well(cell: Cell, name: str) -> MachineEnd | None:
    return None


def open_pool(
    folder: Path, fate: Fate = well, *, machines: int = 1
) -> tuple[Pool, Machines, list[Event]]:
    events: list[Event] = []
    answers = Machines(fate)
    opened = Pool(
        arch="x86_64",
        kits=kits(),
        folder=folder,
        split=Split(machines=machines, costs=dict.fromkeys(CASES, 20.0)),
        trials=[],
        emit=events.append,
        execute=answers,
    )
    return opened, answers, events


def rounds(repeats: range) -> tuple[Cell, ...]:
    return plan.rounds(MATRIX, KERNELS[Side.BASE], KERNELS[Side.PATCHED], repeats)


def given(trials: list[Trial], repeats: int, max_repeats: int = 16) -> JudgeInput:
    return JudgeInput(
        title="demo",
        archs=("x86_64",),
        cases=CASES,
        profile="lockdep",
        trials=tuple(trials),
        kernels=tuple(KERNELS.values()),
        failures=(),
        repeats=repeats,
        max_repeats=max_repeats,
    )


def whole_run(opened: Pool, repeats: int, max_repeats: int = 16) -> JudgeInput:
    """The loop of a run: screening, then what the judge asks for."""
    asyncio.run(opened.run(rounds(range(repeats))))
    for _ in range(100):
        told = given(opened.trials, repeats, max_repeats)
        wanted = needs_more(told)
        if not wanted:
            return told
        for more in wanted:
            cells = plan.rounds(
                MATRIX, KERNELS[Side.BASE], KERNELS[Side.PATCHED], more.repeats, cases=more.cases
            )
            asyncio.run(opened.run(cells, asked=True))
    raise AssertionError("it never ends")


# --- shards ------------------------------------------------------------------------------------


def test_one_machine_runs_whole_cells_in_their_order(tmp_path: Path) -> None:
    opened, machines, _ = open_pool(tmp_path)
    cells = rounds(range(2))
    asyncio.run(opened.run(cells))
    assert machines.most == 1
    assert tuple(trial.cell for trial in opened.trials) == cells


@pytest.mark.parametrize("count", [2, 4, 16])
def test_shards_together_are_the_cells(tmp_path: Path, count: int) -> None:
    opened, machines, events = open_pool(tmp_path, machines=count)
    asyncio.run(opened.run(rounds(range(2))))
    assert machines.most == min(count, 12)
    ran = Counter(
        (trial.cell.side, trial.cell.repeat, result.name)
        for trial in opened.trials
        for result in trial.results
    )
    assert set(ran.values()) == {1}
    assert len(ran) == 2 * 2 * len(CASES)
    assert judge(given(opened.trials, 2)).outcome == "clean"
    steps = Counter(event.step for event in events if event.kind == "started")
    assert set(steps.values()) == {1}, "two machines share a line of progress"


def test_a_long_cell_runs_in_pieces_and_its_sides_in_turn(tmp_path: Path) -> None:
    """One trial for half an hour of tests would be lost whole when the run is cut off."""
    opened, machines, _ = open_pool(tmp_path)
    names = tuple(f"xfstests/ext4-4k/generic/{number:03}" for number in range(1, 31))
    opened.split = Split(machines=1, costs=dict.fromkeys(names, 60.0))
    asyncio.run(opened.run([replace(cell, cases=names) for cell in rounds(range(1))]))
    assert [len(cell.cases) for cell in machines.cells] == [10] * 6
    assert [cell.side for cell in machines.cells] == [Side.BASE, Side.PATCHED] * 3


def test_a_fault_of_one_machine_loses_no_other_and_a_second_call_goes_on(tmp_path: Path) -> None:
    broken = {"once"}

    def fate(cell: Cell, name: str) -> MachineEnd | None:
        if cell.side is Side.PATCHED and broken:
            broken.clear()
            raise LabFault("no space left")
        return None

    opened, machines, _ = open_pool(tmp_path, fate, machines=2)
    with pytest.raises(LabFault, match="no space left"):
        asyncio.run(opened.run(rounds(range(2))))
    whole = list(tmp_path.glob("trials/*/trial.json"))
    assert [trial.cell.side for trial in opened.trials] == [Side.BASE]
    assert len(whole) == 1
    before = whole[0].read_bytes()
    again, machines, events = open_pool(tmp_path, machines=2)
    asyncio.run(again.run(rounds(range(2))))
    assert len(again.trials) == 4
    assert len(machines.cells) == 3, "the whole trial was run again"
    assert whole[0].read_bytes() == before
    assert any(event.text == "whole, from the run before" for event in events)


# --- crashes -----------------------------------------------------------------------------------


def crashes_in(case: str, *sides: Side, end: MachineEnd = MachineEnd.PANICKED) -> Fate:
    def fate(cell: Cell, name: str) -> MachineEnd | None:
        return end if name == case and cell.side in sides else None

    return fate


@pytest.mark.parametrize("machines", [1, 3])
@pytest.mark.parametrize("end", [MachineEnd.PANICKED, MachineEnd.HUNG_SILENT, MachineEnd.QEMU_DIED])
def test_a_crash_is_charged_and_the_rest_goes_on(
    tmp_path: Path, end: MachineEnd, machines: int
) -> None:
    fate = crashes_in(CASES[1], Side.PATCHED, end=end)
    opened, _, _ = open_pool(tmp_path, fate, machines=machines)
    asyncio.run(opened.run(rounds(range(1))))
    states = {
        result.name: result.state
        for trial in opened.trials
        if trial.cell.side is Side.PATCHED
        for result in trial.results
    }
    assert states.pop(CASES[1]) in (CaseState.CRASHED, CaseState.HUNG)
    assert states == {CASES[0]: CaseState.PASSED, CASES[2]: CaseState.PASSED}


def test_a_case_that_crashes_twice_is_left_out_on_both_sides(tmp_path: Path) -> None:
    case = CASES[1]
    opened, machines, _ = open_pool(tmp_path, crashes_in(case, *Side))
    told = whole_run(opened, repeats=6)
    assert machines.ran[Side.BASE, case] == 2
    assert machines.ran[Side.PATCHED, case] == 2
    assert machines.ran[Side.PATCHED, CASES[2]] == 6
    assert left_out(opened.trials, "x86_64") == {case: 1}
    verdict = judge(told)
    (about,) = [v for v in verdict.cases if v.name == case]
    assert about.comparison == "same-fail"
    assert verdict.outcome == "clean"
    assert any("left out after 2 crashes" in r and case in r for r in verdict.reasons)


def test_a_case_that_crashes_with_the_series_alone_is_decided_alone(tmp_path: Path) -> None:
    case = CASES[1]
    opened, machines, _ = open_pool(tmp_path, crashes_in(case, Side.PATCHED))
    told = whole_run(opened, repeats=4)
    verdict = judge(told)
    assert verdict.outcome == "regressed"
    assert [finding.title for finding in verdict.findings] == [case]
    # Twice among others, then on its own until the verdict stands, and no more.
    assert machines.ran[Side.PATCHED, case] == 2 + 6
    later = [cell for cell in machines.cells if case in cell.cases and cell.repeat >= 2]
    assert {cell.cases for cell in later} == {(case,)}
    assert machines.ran[Side.PATCHED, CASES[2]] == 4


def test_a_case_that_begins_to_crash_while_others_are_asked_for(tmp_path: Path) -> None:
    """Two suspects share cells until one of them takes machines down."""

    def fate(cell: Cell, name: str) -> MachineEnd | None:
        down = name == CASES[1] and cell.side is Side.PATCHED and cell.repeat in (2, 3, 4)
        return MachineEnd.PANICKED if down else None

    opened, machines, _ = open_pool(tmp_path, fate)
    cells = plan.rounds(
        MATRIX, KERNELS[Side.BASE], KERNELS[Side.PATCHED], range(2, 6), cases=CASES[1:]
    )
    asyncio.run(opened.run(cells, asked=True))
    shapes = {(cell.repeat, cell.cases) for cell in machines.cells if cell.side is Side.BASE}
    assert shapes == {
        (2, CASES[1:]),
        (3, CASES[1:]),
        *((repeat, (case,)) for repeat in (4, 5) for case in CASES[1:]),
    }


@pytest.mark.parametrize("end", [MachineEnd.HUNG_BOOT, MachineEnd.LOST])
def test_machines_that_die_before_their_first_case_end_the_run(
    tmp_path: Path, end: MachineEnd
) -> None:
    """Not booting, and panicking right after the hello (here: LOST), are findings, not loops."""

    def fate(cell: Cell, name: str) -> MachineEnd | None:
        return end if cell.side is Side.PATCHED else None

    opened, machines, _ = open_pool(tmp_path, fate)
    told = whole_run(opened, repeats=2)
    verdict = judge(told)
    assert verdict.outcome == "regressed"
    assert [finding.kind for finding in verdict.findings] == ["boot"]
    assert sum(cell.side is Side.PATCHED for cell in machines.cells) == 3


def test_a_machine_that_dies_idle_after_a_crash_is_made_up_for(tmp_path: Path) -> None:
    fates = iter([MachineEnd.PANICKED, MachineEnd.LOST])

    def fate(cell: Cell, name: str) -> MachineEnd | None:
        first = cell.side is Side.PATCHED and cell.repeat == 0 and name == cell.cases[0]
        return next(fates, None) if first else None

    opened, _, _ = open_pool(tmp_path, fate)
    verdict = judge(whole_run(opened, repeats=2))
    for case in verdict.cases[1:]:
        assert case.patched.passed >= 2, f"{case.name} was not made up for"


# --- how many at once --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "free_gib", "parallel", "count"),
    [(2, 20, 0, 1), (8, 64, 0, 4), (64, 8, 0, 4), (1, 1, 0, 1), (2, 4, 4, 4)],
)
def test_capacity(cores: int, free_gib: int, parallel: int, count: int) -> None:
    machine = Machine(cpus=2, memory="1G", parallel=parallel)
    tcg = Accelerator(name="tcg", cpu="max", boot_s=3.0)
    assert pool.capacity(machine, tcg, cores=cores, free_bytes=free_gib << 30) == count


def test_memory_of_this_host_is_known() -> None:
    assert 64 << 20 < pool.free_bytes() < 1 << 50


def test_durations_of_earlier_runs(tmp_path: Path) -> None:
    of = rounds(range(1))[0]
    for run, seconds in (("20260101-a", 4.0), ("20260102-b", 8.0)):
        trial = records.trial(of)
        results = tuple(replace(result, duration_s=seconds) for result in trial.results)
        folder = tmp_path / run / "trials" / "x86_64-base-01-abcdef-1"
        write_atomically(folder / "trial.json", model.encode(replace(trial, results=results)))
    (tmp_path / "20260103-c" / "trials" / "x86_64-base-01-abcdef-1").mkdir(parents=True)
    damaged = tmp_path / "20260104-d" / "trials" / "x86_64-base-01-abcdef-1" / "trial.json"
    write_atomically(damaged, b"{")
    known = pool.durations(tmp_path, arch="x86_64", accelerator="tcg")
    assert known == dict.fromkeys(CASES, 6.0)
    assert pool.durations(tmp_path, arch="x86_64", accelerator="kvm") == {}
    assert pool.durations(tmp_path, arch="arm64", accelerator="tcg") == {}


def test_a_run_that_goes_on_splits_as_it_did(tmp_path: Path) -> None:
    first = pool.settle(tmp_path, "arm64", lambda: Split(machines=3, costs={"a": 1.5}))
    again = pool.settle(tmp_path, "arm64", lambda: Split(machines=1, costs={}))
    assert again == first == Split(machines=3, costs={"a": 1.5})


# --- snapshots and accelerators ----------------------------------------------------------------


def test_a_qemu_that_kvm_fails_ends_the_round_and_blames_no_kernel(tmp_path: Path) -> None:
    opened, _, _ = open_pool(tmp_path)

    async def died(cell: Cell, kit: Kit, folder: Path, emit: Emit) -> Trial:
        trial = records.trial(cell, boots=False, end=MachineEnd.QEMU_DIED, accelerator=records.KVM)
        return replace(trial, note="Could not access KVM kernel module")

    opened.execute = died
    with pytest.raises(AcceleratorLost, match="Could not access KVM"):
        asyncio.run(opened.run(rounds(range(2))))
    assert len(opened.trials) == 1  # the rest is not tried
    # Under TCG the same end says something about this machine, not about KVM.
    opened, machines, _ = open_pool(tmp_path / "tcg", lambda cell, name: MachineEnd.QEMU_DIED)
    asyncio.run(opened.run(rounds(range(1))))
    assert len(machines.cells) > 1


def test_after_kvm_was_lost_only_tcg_counts(tmp_path: Path) -> None:
    cells = rounds(range(2))
    lost = records.trial(cells[0], boots=False, end=MachineEnd.QEMU_DIED, accelerator=records.KVM)
    before = [lost, records.trial(cells[0], accelerator=records.KVM)]
    again = [records.trial(cell, accelerator=records.TCG) for cell in cells]
    verdict = judge(given([*before, *again], 2))
    assert verdict.outcome is Outcome.CLEAN
    assert any("never compared" in reason for reason in verdict.reasons)


class OneShelf:
    """A shelf that has, or lacks, what is asked for; it stands in for `Shelf`."""

    def __init__(self, *kernels: str) -> None:
        self.kernels = kernels

    def has(self, spec: MachineSpec) -> bool:
        return str(spec.kernel) in self.kernels


BOTH = tuple(str(kernel.image) for kernel in KERNELS.values())


@pytest.mark.parametrize(
    ("on_shelf", "boots", "restored"),
    [
        (BOTH, True, True),
        (BOTH[:1], True, False),
        ((), True, False),
        (BOTH, False, False),
    ],
)
def test_each_kernel_boots_once_then_both_sides_are_restored_or_both_boot(
    tmp_path: Path, on_shelf: tuple[str, ...], boots: bool, restored: bool
) -> None:
    opened, _, _ = open_pool(tmp_path)
    shelf = cast(Shelf, OneShelf(*on_shelf))
    opened.kits = {side: replace(kit, shelf=shelf) for side, kit in opened.kits.items()}
    began: list[tuple[int, bool]] = []

    async def note(cell: Cell, kit: Kit, folder: Path, emit: Emit) -> Trial:
        began.append((cell.repeat, kit.restore))
        ok = boots or cell.side is Side.BASE
        return records.trial(
            cell, boots=ok, restored=kit.restore, end=MachineEnd.PANICKED if not ok else WELL
        )

    opened.execute = note
    asyncio.run(opened.run(rounds(range(3))))
    first, later = began[:2], began[2:]
    assert first == [(0, False), (0, False)]
    assert later == [(repeat, restored) for repeat in (1, 1, 2, 2)]
    assert all(type(asked) is bool for _, asked in began)


def test_the_side_that_comes_second_begins_as_the_first(tmp_path: Path) -> None:
    opened, _, _ = open_pool(tmp_path)
    shelf = cast(Shelf, OneShelf(*BOTH))
    opened.kits = {side: replace(kit, shelf=shelf) for side, kit in opened.kits.items()}
    base, patched = rounds(range(1))
    assert not opened._may_restore(base)
    opened.trials += [records.trial(base), records.trial(patched)]
    # By now it could be restored; its counterpart booted.
    assert opened._restorable(patched) and not opened._may_restore(patched)
