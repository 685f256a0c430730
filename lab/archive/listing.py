"""The folder of runs goes in, one entry for each run comes out: finished, running or cut off."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lab import ledger, model
from lab.ledger import RunRow
from lab.model import LabFault, Manifest, RunRecord, UserError
from lab.store import is_locked

_OF_A_RUN = ("manifest.json", "record.json")  # one of them makes a folder a run


class RunState(StrEnum):
    FINISHED = "finished"
    RUNNING = "running"
    CUT_OFF = "cut-off"  # the same request takes it up again
    UNREADABLE = "unreadable"  # its record is of another lab, or torn
    GONE = "gone"  # the ledger knows it, its folder has been removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run, as far as it got."""

    name: str
    folder: Path
    state: RunState
    created: str  # ISO 8601; "" if that cannot be read
    title: str  # of its series; "" if that cannot be read
    row: RunRow | None = None  # of a finished one
    note: str = ""  # of one that is not: how far it got, or what is wrong


def listed(runs: Path, *, limit: int | None = None) -> tuple[Entry, ...]:
    """All runs of that folder, newest first."""
    with ledger.opened(runs) as book:
        rows = book.runs()
        unreadable = dict(book.synced.unreadable)
    found = {row.name: _finished(row, runs) for row in rows}
    for path in runs.glob("*/manifest.json"):
        name = path.parent.name
        if name in found:
            continue
        if name in unreadable:
            found[name] = _unfinished(path, RunState.UNREADABLE, unreadable[name])
        elif not (path.parent / "record.json").exists():
            whole = len(list(path.parent.glob("trials/*/trial.json")))
            state = RunState.RUNNING if is_locked(path.parent / "lock") else RunState.CUT_OFF
            found[name] = _unfinished(path, state, f"{whole} trials are whole")
    ordered = sorted(found.values(), key=lambda one: (one.created, one.name), reverse=True)
    return tuple(ordered[:limit])


def _finished(row: RunRow, runs: Path) -> Entry:
    folder = runs / row.name
    return Entry(
        name=row.name,
        folder=folder,
        state=RunState.FINISHED if (folder / "record.json").exists() else RunState.GONE,
        created=row.created,
        title=row.title,
        row=row,
    )


def _unfinished(path: Path, state: RunState, note: str) -> Entry:
    created = title = ""
    with contextlib.suppress(LabFault, OSError):
        manifest = model.decode(path.read_bytes(), Manifest)
        created, title = manifest.created, manifest.series_title
    return Entry(
        name=path.parent.name,
        folder=path.parent,
        state=state,
        created=created,
        title=title,
        note=note,
    )


def find(runs: Path, name: str | None, *, finished: bool = False) -> Path:
    """The folder of a run: its name, the beginning of one, a folder; the newest if it is None or
    `latest`.

    With `finished`, one that has a record. Raises `UserError` if there is none, or if the beginning
    fits several.
    """
    if name and any((Path(name) / file).is_file() for file in _OF_A_RUN):
        return _whole(Path(name)) if finished else Path(name)
    found = {path.parent for file in _OF_A_RUN for path in runs.glob(f"*/{file}")}
    folders = sorted(found, reverse=True)
    done = [folder for folder in folders if (folder / "record.json").is_file()]
    wanted = done if finished else folders
    if name is None or name == "latest":
        if wanted:
            return wanted[0]
        kind = "finished run" if finished else "run"
        raise UserError(f"no {kind} in {runs}", hint="lab run --patch SERIES makes one")
    fitting = [folder for folder in wanted if folder.name.startswith(name)]
    exact = [folder for folder in folders if folder.name == name]
    chosen = exact or fitting or [folder for folder in folders if folder.name.startswith(name)]
    if len(chosen) == 1:
        return _whole(chosen[0]) if finished else chosen[0]
    if chosen:
        names = ", ".join(folder.name for folder in chosen[:5])
        raise UserError(f"{name} fits {len(chosen)} runs", hint=names)
    newest = f"; the newest is {wanted[0].name}" if wanted else ""
    raise UserError(f"no run {name} in {runs}", hint=f"lab runs lists them{newest}")


def read_record(folder: Path) -> RunRecord:
    """The record of a finished run. Raises `UserError` if it has none."""
    return model.decode((_whole(folder) / "record.json").read_bytes(), RunRecord)


def _whole(folder: Path) -> Path:
    if (folder / "record.json").is_file():
        return folder
    if is_locked(folder / "lock"):
        raise UserError(f"{folder.name} is still running", hint="wait for it, or end it")
    raise UserError(
        f"{folder.name} was cut off",
        hint="the lab run that made it takes it up again; lab show lists its whole trials",
    )
