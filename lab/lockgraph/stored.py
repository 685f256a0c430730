"""Files that were read from /proc, gzipped or not, go in; a `LockGraph` comes out.

A trial's folder has them under `FOLDER`, with the homes of the keys beside them; what a user saved
by hand may be one of them only.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path

from lab import model
from lab.lockgraph import graph
from lab.lockgraph.diff import Observation
from lab.lockgraph.graph import LockGraph
from lab.lockgraph.keys import KeyHome
from lab.model import CaseState, LabFault, Side, Trial, UserError

FOLDER = "locks"
FILES = ("lockdep", "lockdep_chains", "lockdep_stats", "lock_stat")
KEYS = "keys.json"
SUFFIX = ".gz"
_LIMIT_BYTES = 256 << 20  # of one file, unpacked


def read(path: Path) -> LockGraph:
    """The graph of one boot: from a folder with the files, or from a file of /proc/lockdep.

    Raises `UserError` if that is not what they are.
    """
    folder, name = (path, FILES[0]) if path.is_dir() else (path.parent, path.name)
    if path.is_dir() and not _find(folder, FILES[0]) and (path / FOLDER).is_dir():
        folder = path / FOLDER
    lockdep = _text(folder, name.removesuffix(SUFFIX))
    if lockdep is None:
        raise UserError(
            f"no lockdep file in {folder}",
            hint="a folder with copies of /proc/lockdep, lockdep_chains, lockdep_stats, lock_stat",
        )
    beside = path.is_dir() or name.removesuffix(SUFFIX) == FILES[0]
    chains, stats, lock_stat, keys = (
        _text(folder, file) if beside else None for file in (*FILES[1:], KEYS)
    )
    homes = model.decode(keys, tuple[KeyHome, ...]) if keys is not None else ()
    try:
        return graph.build(
            lockdep=lockdep,
            chains=chains,
            stats=stats,
            lock_stat=lock_stat,
            homes={entry.key: entry.home for entry in homes},
        )
    except UserError as error:
        raise UserError(f"{path}: {error.message}", hint=error.hint) from error


def boots(path: Path) -> tuple[LockGraph, ...]:
    """The graphs of a file, of a folder with one boot's files, or of one with a folder per boot."""
    inside = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    several = [p for p in inside if p.name != FOLDER and is_boot(p)]
    if path.is_dir() and not is_boot(path) and several:
        return tuple(read(folder) for folder in several)
    return (read(path),)


def is_boot(folder: Path) -> bool:
    """It has a file of /proc/lockdep, itself or in its `FOLDER`."""
    return any(_find(place, FILES[0]) is not None for place in (folder, folder / FOLDER))


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}{SUFFIX}") if p.is_file()), None)


def _text(folder: Path, name: str) -> str | None:
    path = _find(folder, name)
    if path is None:
        return None
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    try:
        if packed:
            with gzip.open(path) as unpacked:
                raw = unpacked.read(_LIMIT_BYTES + 1)
        else:
            with path.open("rb") as stream:
                raw = stream.read(_LIMIT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if len(raw) > _LIMIT_BYTES:
        raise UserError(f"{path} is larger than {_LIMIT_BYTES >> 20} MiB")
    return raw.decode("utf-8", "replace")


# --- runs --------------------------------------------------------------------------------------


def of_run(trials: Iterable[Trial], folder: Path, arch: str) -> tuple[Observation, ...]:
    """What each repeat of `arch` showed in the run kept in `folder`.

    Files that are damaged count as not there.
    """
    groups: dict[tuple[Side, int], list[Trial]] = {}
    for trial in trials:
        if trial.cell.arch == arch:
            groups.setdefault((trial.cell.side, trial.cell.repeat), []).append(trial)
    passed = {
        key: {r.name for t in group for r in t.results if r.state is CaseState.PASSED}
        for key, group in groups.items()
    }
    # What some run did, all must have done, or they had no occasion to take the same locks.
    wanted = set().union(*passed.values()) if passed else set()
    # The first boot of a side is the one that its snapshot is of, or as good as that.
    restored = {side for (side, _), group in groups.items() if any(t.restored for t in group)}
    first = {side: min(repeat for of, repeat in groups if of is side) for side in restored}
    found = []
    for key, group in groups.items():
        graphs, lost = _graphs(group, folder)
        shares = any(t.restored for t in group) or first.get(key[0]) == key[1]
        doubt = lost or _left_out(wanted - passed[key])
        found.append(
            Observation(
                side=key[0],
                name=f"{key[0]} #{key[1] + 1}",
                graphs=tuple(graphs),
                doubt=doubt,
                boot="snapshot" if shares else "",
            )
        )
    return tuple(found)


def _graphs(trials: Iterable[Trial], folder: Path) -> tuple[list[LockGraph], str]:
    """The graphs of one repeat's machines, and why they may lack something."""
    graphs: list[LockGraph] = []
    doubt = ""
    for trial in trials:
        if trial.locks is None or not trial.locks.files:
            why = trial.locks.missing if trial.locks else "this run kept no lock data"
            doubt = doubt or why
            continue
        try:
            graphs.append(read(folder / "trials" / trial.id / FOLDER))
        except (UserError, LabFault) as error:
            doubt = doubt or error.message
            continue
        if graphs[-1].alive is False:
            doubt = doubt or "lockdep had switched itself off"
        elif graphs[-1].limits:
            doubt = doubt or f"lockdep had no room left ({graphs[-1].limits[0]})"
    return graphs, doubt


def _left_out(cases: set[str]) -> str:
    if not cases:
        return ""
    return f"{min(cases)} did not pass there" if len(cases) == 1 else "not all cases passed there"
