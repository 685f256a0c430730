"""Cells: interleaved, with equal seeds on both sides, and what is left after a crash."""

from __future__ import annotations

from pathlib import Path

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


def test_a_digest_tells_cells_apart() -> None:
    cells = plan.rounds(MATRIX, BASE, PATCHED, range(3))
    assert len({plan.digest(cell) for cell in cells}) == len(cells)
    assert plan.digest(cells[0]) == plan.digest(plan.rounds(MATRIX, BASE, PATCHED, range(1))[0])
