"""Cells: interleaved, with equal seeds on both sides, and what is left after a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import plan
from lab.model import Kernel, Side
from lab.plan import Matrix

MATRIX = Matrix(
    arch="x86_64",
    profile="lockdep",
    suites=("boot", "faultstress"),
    cases=("boot/hello", "faultstress/ext4/truncate", "faultstress/ext4/munmap"),
    image_sha256="1" * 64,
    seed=7,
    memory_bytes=1 << 30,
    cpus=2,
)


def kernel(side: Side) -> Kernel:
    here = Path("/k") / side
    return Kernel(
        key=f"key-{side}",
        arch="x86_64",
        side=side,
        release="6.1.0-lab",
        folder=here,
        image=here / "image",
        vmlinux=here / "vmlinux",
        config=here / "config",
        image_sha256="2" * 64,
        compiler="gcc",
        build_s=1.0,
        make_ran=True,
        seeded_from=None,
        compiled=1,
        sandbox="bwrap",
    )


BASE, PATCHED = kernel(Side.BASE), kernel(Side.PATCHED)


def test_sides_alternate_and_the_first_one_too() -> None:
    cells = plan.rounds(MATRIX, BASE, PATCHED, range(4))
    assert [cell.side.value[0] for cell in cells] == list("bppbbppb")
    assert [cell.repeat for cell in cells] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_both_sides_of_a_repeat_share_its_seed() -> None:
    cells = plan.rounds(MATRIX, BASE, PATCHED, range(3))
    seeds = {(cell.repeat, cell.seed) for cell in cells}
    assert seeds == {(0, 7), (1, 8), (2, 9)}


def test_suspects_narrow_the_cases() -> None:
    (first, _) = plan.rounds(MATRIX, BASE, PATCHED, range(2, 3), cases=["boot/hello"])
    assert first.cases == ("boot/hello",)
    assert first.repeat == 2


def test_what_a_crash_leaves_over() -> None:
    (cell, _) = plan.rounds(MATRIX, BASE, PATCHED, range(1))
    left = plan.remaining(cell, ["boot/hello", "faultstress/ext4/truncate"])
    assert left is not None
    assert left.cases == ("faultstress/ext4/munmap",)
    assert plan.remaining(left, left.cases) is None


def test_a_case_that_is_left_out_is_gone_or_alone() -> None:
    (cell, _) = plan.rounds(MATRIX, BASE, PATCHED, range(1))
    assert plan.apart(cell, [], keep=True) == (cell,)
    (only,) = plan.apart(cell, ["boot/hello"], keep=False)
    assert only.cases == cell.cases[1:]
    shared, alone = plan.apart(cell, ["boot/hello"], keep=True)
    assert (shared.cases, alone.cases) == (cell.cases[1:], ("boot/hello",))
    assert {(part.shard, part.shards) for part in (shared, alone)} == {(0, 2), (1, 2)}
    assert plan.apart(cell, cell.cases, keep=False) == ()
    assert plan.apart(alone, ["boot/hello"], keep=True) == (alone,)


COSTS = dict(zip(MATRIX.cases, (1.0, 5.0, 3.0), strict=True))


def test_shards_take_the_longest_first_and_lose_nothing() -> None:
    (cell, _) = plan.rounds(MATRIX, BASE, PATCHED, range(1))
    long, short = plan.split(cell, 2, COSTS)
    assert long.cases == ("faultstress/ext4/truncate",)
    assert short.cases == ("boot/hello", "faultstress/ext4/munmap")  # in their own order
    assert [(part.shard, part.shards) for part in (long, short)] == [(0, 2), (1, 2)]
    assert plan.split(cell, 1, COSTS) == (cell,)
    assert len(plan.split(cell, 9, COSTS)) == 3
    assert sorted(case for part in plan.split(cell, 3, {}) for case in part.cases) == sorted(
        cell.cases
    )


def test_shards_of_both_sides_go_in_turn() -> None:
    cells = plan.spread(plan.rounds(MATRIX, BASE, PATCHED, range(2)), 3, COSTS)
    assert [cell.side.value[0] for cell in cells] == list("bpbpbp" + "pbpbpb")
    assert [cell.repeat for cell in cells] == [0] * 6 + [1] * 6
    assert len({plan.digest(cell) for cell in cells}) == 12


@pytest.mark.parametrize(
    ("cells", "machines", "work_s", "boot_s", "shards"),
    [
        (4, 1, 80.0, 6.0, 1),
        (4, 2, 80.0, 6.0, 1),  # whole cells keep both machines busy: no boot is worth more
        (4, 8, 80.0, 6.0, 2),
        (2, 8, 80.0, 1.0, 4),
        (2, 8, 1.0, 60.0, 1),  # a boot costs more than all the work
        (4, 3, 80.0, 1.0, 3),  # 12 shards on 3 machines: nobody idles at the end
        (0, 4, 0.0, 1.0, 1),
    ],
)
def test_as_many_shards_as_end_soonest(
    cells: int, machines: int, work_s: float, boot_s: float, shards: int
) -> None:
    count = plan.shard_count(cells, machines=machines, cases=12, work_s=work_s, boot_s=boot_s)
    assert count == shards


@pytest.mark.parametrize(
    ("cases", "work_s", "count"),
    [(12, 200, 1), (29, 1300, 3), (700, 40_000, 67), (3, 9000, 1), (9, 9000, 3), (0, 0, 1)],
)
def test_long_cells_come_in_pieces(cases: int, work_s: float, count: int) -> None:
    assert plan.pieces(cases, work_s) == count


def test_unmeasured_cases_cost_in_proportion_to_their_limit() -> None:
    planned = {"a": 100.0, "b": 100.0, "c": 300.0}
    assert plan.costs(planned, {}) == {"a": 5.0, "b": 5.0, "c": 15.0}
    assert plan.costs(planned, {"a": 10.0, "b": 30.0}) == {"a": 10.0, "b": 30.0, "c": 60.0}


def test_a_digest_tells_cells_apart() -> None:
    cells = plan.rounds(MATRIX, BASE, PATCHED, range(3))
    assert len({plan.digest(cell) for cell in cells}) == len(cells)
    assert plan.digest(cells[0]) == plan.digest(plan.rounds(MATRIX, BASE, PATCHED, range(1))[0])
