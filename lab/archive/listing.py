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


def find(runs: Path, name: str) -> Path:
    """The folder of a run, finished or not: its name, the beginning of one, a folder, or `latest`.

    Raises `UserError` if there is none, or if the beginning fits several.
    """
    if (Path(name) / "manifest.json").is_file():
        return Path(name)
    folders = sorted((path.parent for path in runs.glob("*/manifest.json")), reverse=True)
    if name == "latest" and folders:
        return folders[0]
    fitting = [folder for folder in folders if folder.name.startswith(name)]
    exact = [folder for folder in fitting if folder.name == name]
    if len(exact or fitting) == 1:
        return (exact or fitting)[0]
    if fitting:
        names = ", ".join(folder.name for folder in fitting[:5])
        raise UserError(f"{name} fits {len(fitting)} runs", hint=names)
    raise UserError(f"no run {name} in {runs}", hint="lab runs lists them")


def read_record(folder: Path) -> RunRecord:
    """The record of a finished run. Raises `UserError` if it has none."""
    try:
        return model.decode((folder / "record.json").read_bytes(), RunRecord)
    except FileNotFoundError:
        raise UserError(
            f"{folder.name} has not finished",
            hint="the lab run that made it takes it up again; lab show lists its whole trials",
        ) from None
