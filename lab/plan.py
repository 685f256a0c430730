"""Config, series and kernels go in, the cells of a run come out, in the order they should run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lab import model
from lab.model import Cell, Kernel, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """What every cell of one architecture has in common."""

    arch: str
    profile: str
    suites: tuple[str, ...]
    cases: tuple[str, ...]
    image_sha256: str
    seed: int
    memory_bytes: int
    cpus: int


def rounds(
    matrix: Matrix,
    base: Kernel,
    patched: Kernel,
    repeats: range,
    cases: Sequence[str] | None = None,
) -> tuple[Cell, ...]:
    """Cells for `repeats`, base and patched interleaved (A B B A A B ...).

    Drift of the host hits both sides alike: every second round starts with the other side. Both
    sides of a repeat share its seed. `cases` narrows them to suspects.
    """
    cells: list[Cell] = []
    for repeat in repeats:
        pair = [(Side.BASE, base), (Side.PATCHED, patched)]
        if repeat % 2:
            pair.reverse()
        cells += [
            Cell(
                arch=matrix.arch,
                side=side,
                profile=matrix.profile,
                suites=matrix.suites,
                cases=matrix.cases if cases is None else tuple(cases),
                kernel_key=kernel.key,
                image_sha256=matrix.image_sha256,
                repeat=repeat,
                seed=matrix.seed + repeat,
                memory_bytes=matrix.memory_bytes,
                cpus=matrix.cpus,
            )
            for side, kernel in pair
        ]
    return tuple(cells)


def remaining(cell: Cell, reported: Sequence[str]) -> Cell | None:
    """The cell of what `reported` leaves over, for a fresh machine; None if nothing is left."""
    left = tuple(case for case in cell.cases if case not in set(reported))
    return replace(cell, cases=left) if left else None


def digest(cell: Cell) -> str:
    """Equal for equal cells: the name under which a finished trial is found again."""
    return hashlib.sha256(model.encode(cell)).hexdigest()
