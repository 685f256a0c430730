"""Config, series and kernels go in, the cells of a run come out, in the order they should run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest

from lab import model
from lab.model import Cell, Kernel, Side, case_of

_NEARLY = 1.05  # an end so little later is worth every boot that it saves
_USUAL_SHARE = 1 / 20  # of its limit that a case takes, where none has been measured
_PIECE_S = 600.0  # what a run that is cut off may lose of each machine's work
_PIECE_CASES = 4  # so few are worth a machine of their own


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
    sides of a repeat share its seed. `cases` narrows them to suspects; for a part of a case the
    whole case runs.
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
                cases=matrix.cases if cases is None else tuple(dict.fromkeys(map(case_of, cases))),
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


def apart(cell: Cell, alone: Sequence[str], *, keep: bool) -> tuple[Cell, ...]:
    """The cell without the cases `alone`; with `keep`, each of these in a cell of its own."""
    if not alone or (keep and len(cell.cases) == 1):
        return (cell,)
    shared = tuple(case for case in cell.cases if case not in set(alone))
    parts = ([shared] if shared else []) + ([(case,) for case in alone] if keep else [])
    return tuple(_part(cell, part, number, len(parts)) for number, part in enumerate(parts))


def _part(cell: Cell, cases: tuple[str, ...], number: int, parts: int) -> Cell:
    """One of `parts` of a cell; parts of parts are told apart too."""
    if parts == 1:
        return replace(cell, cases=cases)
    return replace(cell, cases=cases, shard=cell.shard * parts + number, shards=cell.shards * parts)


# --- several machines at once ------------------------------------------------------------------


def costs(planned: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """How long each planned case may take: as measured before, else in proportion to its limit.

    `planned` has each case's time limit. Only ratios matter to whoever splits.
    """
    known = [measured[name] / limit_s for name, limit_s in planned.items() if name in measured]
    share = sum(known) / len(known) if known else _USUAL_SHARE
    return {name: measured.get(name, limit_s * share) for name, limit_s in planned.items()}


def split(cell: Cell, shards: int, costs: Mapping[str, float]) -> tuple[Cell, ...]:
    """The cell's cases over at most `shards` cells: longest first, each to the shortest so far.

    Within a shard the cases keep their order. The shards come longest first.
    """
    shards = min(shards, len(cell.cases))
    if shards < 2:
        return (cell,)
    loads: list[tuple[float, list[str]]] = [(0.0, []) for _ in range(shards)]
    for case in sorted(cell.cases, key=lambda case: -costs.get(case, 0.0)):
        shortest = min(range(shards), key=lambda number: loads[number][0])
        load_s, cases = loads[shortest]
        # A case that costs nothing still fills a place: else all such go to one shard.
        loads[shortest] = (load_s + max(costs.get(case, 0.0), 1e-6), [*cases, case])
    loads.sort(key=lambda load: -load[0])
    order = {case: number for number, case in enumerate(cell.cases)}
    return tuple(
        _part(cell, tuple(sorted(cases, key=order.__getitem__)), number, shards)
        for number, (_, cases) in enumerate(loads)
    )


def spread(cells: Sequence[Cell], shards: int, costs: Mapping[str, float]) -> tuple[Cell, ...]:
    """Every cell in `shards`, those of the two sides of a repeat in turn.

    Machines that take the next cell whenever they are free then carry both sides at any time, and
    whatever loads the host meets both alike.
    """
    order: list[Cell] = []
    for _, group in groupby(cells, key=lambda cell: cell.repeat):
        parts = [split(cell, shards, costs) for cell in group]
        for same in zip_longest(*parts):
            order += [part for part in same if part is not None]
    return tuple(order)


def longest_first(cells: Sequence[Cell], costs: Mapping[str, float]) -> tuple[Cell, ...]:
    """The order for many machines that each take the next cell when they are free: none is then
    left with a long one at the end. Cells of equal cost, as the two sides of a pair are, keep
    their order."""
    return tuple(sorted(cells, key=lambda cell: -sum(costs.get(case, 0.0) for case in cell.cases)))


def shard_count(cells: int, *, machines: int, cases: int, work_s: float, boot_s: float) -> int:
    """Into how many shards to split each of `cells` so that all are done soonest, or nearly so.

    Every shard costs a boot; too few leave machines idle at the end.
    """
    if machines < 2 or not cells:
        return 1

    def makespan_s(shards: int) -> float:
        return -(-cells * shards // machines) * (work_s / shards + boot_s)

    choices = range(1, min(machines, cases) + 1)
    soonest_s = min(map(makespan_s, choices))
    return next(shards for shards in choices if makespan_s(shards) <= soonest_s * _NEARLY)


def pieces(cases: int, work_s: float) -> int:
    """Into how many shards to split a cell at least, however many machines there are.

    What a cut-off run keeps are whole trials, and two sides are compared best when they run soon
    after each other: no trial should take long.
    """
    return max(1, min(-(-cases // _PIECE_CASES), math.ceil(work_s / _PIECE_S)))


def digest(cell: Cell) -> str:
    """Equal for equal cells: the name under which a finished trial is found again."""
    return hashlib.sha256(model.encode(cell)).hexdigest()
