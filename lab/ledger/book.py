"""The runs' folder goes in; a SQLite file of their results that can be asked comes out.

Several labs may read and write it at once: write-ahead log, a busy timeout, and one transaction a
run. A file of another schema, or a broken one, is put aside and made anew from the records.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from lab import model
from lab.ledger.extract import extract
from lab.ledger.rows import (
    EVERYTHING,
    CaseRow,
    Extract,
    Ground,
    MetricRow,
    RunRow,
    SplatRow,
    Stand,
    Where,
)
from lab.model import Comparison, LabFault, Outcome, RunRecord, Side, Tally
from lab.store import locked

FILE_NAME = "ledger.sqlite"
SCHEMA = 1  # of schema.sql and of what `extract` makes: a change of either raises it
_BUSY_S = 60.0
_TABLES = ("run", "unreadable", "ground", "case_count", "splat_count", "metric")
_RUN_FIELDS = (
    "name, created, finished, outcome, sentence, title, series_digest, kernel, version, "
    '"commit", tree, profile, archs, plan_digest, lab_version, findings, trials, wall_s'
)
_Counted = CaseRow | SplatRow | MetricRow
_GROUND_FIELDS = "ground.arch, ground.profile, ground.accelerator, ground.cpu, ground.setup"
_STAND_FIELDS = f"run, run.created, {_GROUND_FIELDS}, side, kernel_key, run.version"
_IN_A_RUN = f"{_GROUND_FIELDS}, side"


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What a look through the runs' folder brought."""

    added: tuple[str, ...]  # names of runs that are new, or whose record changed
    unreadable: tuple[tuple[str, str], ...]  # name and reason: written by another lab, or torn


@contextlib.contextmanager
def opened(runs: Path, *, sync: bool = True) -> Iterator[Ledger]:
    """The ledger of that folder, brought up to date with the records in it.

    Where the folder cannot be written to, it is made in memory. Raises `LabFault`.
    """
    with _explained(runs):
        connection = _connect(runs)
        try:
            book = Ledger(connection, runs)
            if sync:
                book.synced = book.sync()
            yield book
        finally:
            connection.close()


@contextlib.contextmanager
def _explained(runs: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LabFault(
            f"{runs / FILE_NAME}: {error}",
            hint="it is made from the records of the runs: remove it, and it is made anew",
        ) from error


def _connect(runs: Path) -> sqlite3.Connection:
    if not runs.is_dir() or not os.access(runs, os.W_OK):
        return _prepared(sqlite3.connect(":memory:", isolation_level=None))
    try:
        return _connect_file(runs)
    except OSError as error:
        raise LabFault(f"{runs / FILE_NAME}: {error}") from error


def _connect_file(runs: Path) -> sqlite3.Connection:
    path = runs / FILE_NAME
    with locked(runs / "ledger.lock"):  # two labs that both find no file, or a bad one
        with contextlib.suppress(sqlite3.DatabaseError):
            if (connection := _usable(path)) is not None:
                return connection
        _put_aside(path)
        return _prepared(_open(path))


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _usable(path: Path) -> sqlite3.Connection | None:
    """The file, if it is whole and of this schema; None: make it anew."""
    if not path.exists():
        return None
    connection = _open(path)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        # Not quick_check, which reads all of it; a torn file lacks the roots of some tables.
        for table in _TABLES if version == SCHEMA else ():
            connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    except BaseException:
        connection.close()
        raise
    if version != SCHEMA:
        connection.close()
        return None
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _put_aside(path: Path) -> None:
    """Keep what cannot be used: it may hold runs whose folders have gone."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            part = path.with_name(path.name + suffix)
            part.rename(path.with_name(f"{path.name}.old{suffix}"))


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    schema = files("lab.ledger").joinpath("schema.sql").read_text(encoding="utf-8")
    connection.executescript(f"BEGIN;\n{schema}\nPRAGMA user_version = {SCHEMA};\nCOMMIT;")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


class Ledger:
    """An open ledger. Results always name their ground and kernel; nothing is summed over them."""

    def __init__(self, connection: sqlite3.Connection, runs: Path) -> None:
        self._db = connection
        self.folder = runs
        self.synced = Synced(added=(), unreadable=())  # by `opened`

    # --- writing ---

    def sync(self) -> Synced:
        """Take in the records that are new or have changed. What has gone is kept."""
        known = dict(self._db.execute("SELECT name, stamp FROM run").fetchall())
        bad = dict(self._db.execute("SELECT name, stamp FROM unreadable").fetchall())
        added: list[str] = []
        for path in sorted(self.folder.glob("*/record.json")):
            name = path.parent.name
            try:
                stat = path.stat()
                stamp = f"{stat.st_size}:{stat.st_mtime_ns}"
                if stamp in (known.get(name), bad.get(name)):
                    continue
                record = model.decode(path.read_bytes(), RunRecord)
                rows = extract(record)
            except FileNotFoundError:
                continue  # just being removed
            except (LabFault, OSError, ValueError) as error:
                self._note_unreadable(name, stamp, str(error))
                continue
            self._put(name, stamp, rows)
            added.append(name)
        told = self._db.execute("SELECT name, reason FROM unreadable ORDER BY name").fetchall()
        return Synced(added=tuple(added), unreadable=tuple((name, why) for name, why in told))

    def put(self, record: RunRecord) -> None:
        """Take in one record that is not in the folder (yet); it replaces that of its name."""
        self._put(record.manifest.run, "", extract(record))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a transaction that first reads could not wait for another writer.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _note_unreadable(self, name: str, stamp: str, reason: str) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM run WHERE name = ?", (name,))
            self._db.execute("REPLACE INTO unreadable VALUES (?, ?, ?)", (name, stamp, reason))

    def _put(self, name: str, stamp: str, rows: Extract) -> None:
        """One run, in one transaction. The folder's name counts: a run may have been copied."""
        run = rows.run
        with self._transaction():
            self._db.execute("DELETE FROM unreadable WHERE name = ?", (name,))
            self._db.execute("DELETE FROM run WHERE name = ?", (name,))
            values = (
                *(name, stamp, run.created, run.finished, run.outcome, run.sentence, run.title),
                *(run.series_digest, run.kernel, run.version, run.commit, run.tree, run.profile),
                *(",".join(run.archs), run.plan_digest, run.lab_version, run.findings),
                *(run.trials, run.wall_s),
            )
            self._insert("run", [values])
            counted: tuple[_Counted, ...] = (*rows.cases, *rows.splats, *rows.metrics)
            grounds = {row.ground for row in counted}
            number = {ground: self._ground(ground) for ground in grounds}

            def head(row: _Counted) -> tuple[Any, ...]:
                return (name, number[row.ground], row.side, row.kernel_key)

            self._insert(
                "case_count",
                [
                    (
                        *head(row),
                        *(row.name, row.tally.passed, row.tally.failed, row.tally.skipped),
                        *(row.tally.unknown, row.duration_s, row.comparison, row.reason),
                    )
                    for row in rows.cases
                ],
            )
            self._insert(
                "splat_count",
                [
                    (
                        *head(row),
                        *(row.key, row.kind, row.title, row.seen, row.exposed),
                        *(int(row.allowed), row.comparison),
                    )
                    for row in rows.splats
                ],
            )
            self._insert(
                "metric",
                [(*head(row), row.name, row.metric, row.median, row.count) for row in rows.metrics],
            )

    def _insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

    def _ground(self, ground: Ground) -> int:
        values = (ground.arch, ground.profile, ground.accelerator, ground.cpu, ground.setup)
        self._db.execute(
            "INSERT OR IGNORE INTO ground (arch, profile, accelerator, cpu, setup) "
            "VALUES (?, ?, ?, ?, ?)",
            values,
        )
        found = self._db.execute(
            "SELECT id FROM ground WHERE (arch, profile, accelerator, cpu, setup) "
            "= (?, ?, ?, ?, ?)",
            values,
        )
        (number,) = found.fetchone()
        return int(number)

    # --- reading ---

    def runs(self, *, limit: int | None = None, title: str | None = None) -> tuple[RunRow, ...]:
        """Runs, newest first; with `title`, those of the series of that title."""
        wanted: list[tuple[str, Any]] = [("title = ?", title)]
        return tuple(
            RunRow(
                name=row[0],
                created=row[1],
                finished=row[2],
                outcome=Outcome(row[3]),
                sentence=row[4],
                title=row[5],
                series_digest=row[6],
                kernel=row[7],
                version=row[8],
                commit=row[9],
                tree=row[10],
                profile=row[11],
                archs=tuple(row[12].split(",")) if row[12] else (),
                plan_digest=row[13],
                lab_version=row[14],
                findings=row[15],
                trials=row[16],
                wall_s=row[17],
            )
            for row in self._select(_RUN_FIELDS, "run", wanted, "created DESC, name DESC", limit)
        )

    def cases(self, where: Where = EVERYTHING) -> tuple[CaseRow, ...]:
        """Counts of cases, newest run first; within a run by name and ground."""
        fields = (
            f"{_STAND_FIELDS}, case_count.name, "
            "passed, failed, skipped, unknown, duration_s, comparison, reason"
        )
        wanted = _terms("case_count.name", where)
        return tuple(
            CaseRow(
                **_as_stand(row),
                name=row[10],
                tally=Tally(passed=row[11], failed=row[12], skipped=row[13], unknown=row[14]),
                duration_s=row[15],
                comparison=Comparison(row[16]) if row[16] else None,
                reason=row[17],
            )
            for row in self._joined(fields, "case_count", wanted, "case_count.name")
        )

    def splats(self, where: Where = EVERYTHING) -> tuple[SplatRow, ...]:
        """Counts of splats, newest run first; `Where.name` is a `SplatRow.key`."""
        fields = (
            f"{_STAND_FIELDS}, key, kind, splat_count.title, seen, exposed, allowed, comparison"
        )
        wanted = _terms("key", where)
        return tuple(
            SplatRow(
                **_as_stand(row),
                key=row[10],
                kind=row[11],
                title=row[12],
                seen=row[13],
                exposed=row[14],
                allowed=bool(row[15]),
                comparison=Comparison(row[16]) if row[16] else None,
            )
            for row in self._joined(fields, "splat_count", wanted, "key")
        )

    def metrics(self, where: Where = EVERYTHING) -> tuple[MetricRow, ...]:
        """Numbers that cases measured, newest run first."""
        fields = f"{_STAND_FIELDS}, metric.name, metric, median, count"
        wanted = _terms("metric.name", where)
        return tuple(
            MetricRow(
                **_as_stand(row),
                name=row[10],
                metric=row[11],
                median=row[12],
                count=row[13],
            )
            for row in self._joined(fields, "metric", wanted, "metric.name, metric")
        )

    def counts(self, where: Where) -> list[tuple[str, str, str, int, int]]:
        """Name, run, version, failed and decided, of cases and then of splats, newest run first.

        For sums over many runs: a `CaseRow` for each of a hundred thousand takes seconds.
        """
        fields = "case_count.name, run, run.version, failed, passed + failed"
        cases = self._joined(fields, "case_count", _terms("case_count.name", where), "", lean=True)
        fields = "key, run, run.version, seen, exposed"
        splats = self._joined(fields, "splat_count", _terms("key", where), "", lean=True)
        return [(row[0], row[1], row[2], row[3], row[4]) for row in (*cases, *splats)]

    def grounds(self) -> tuple[Ground, ...]:
        """All grounds on which anything ran, sorted."""
        rows = self._db.execute(f"SELECT {_GROUND_FIELDS} FROM ground").fetchall()
        return tuple(sorted(_as_ground(row) for row in rows))

    def _joined(
        self,
        fields: str,
        table: str,
        wanted: list[tuple[str, Any]],
        order: str,
        *,
        lean: bool = False,  # ordered by run only
    ) -> list[tuple[Any, ...]]:
        tables = f"{table} JOIN run ON run.name = {table}.run JOIN ground ON ground.id = ground"
        order = "run.created DESC" if lean else f"run.created DESC, run DESC, {order}, {_IN_A_RUN}"
        return self._select(fields, tables, wanted, order)

    def _select(
        self,
        fields: str,
        tables: str,
        wanted: list[tuple[str, Any]],
        order: str,
        limit: int | None = None,
    ) -> list[tuple[Any, ...]]:
        given = [(term, value) for term, value in wanted if value is not None]
        where = f"WHERE {' AND '.join(term for term, _ in given)}" if given else ""
        query = f"SELECT {fields} FROM {tables} {where} ORDER BY {order} LIMIT ?"
        values = [*(value for _, value in given), -1 if limit is None else limit]
        return self._db.execute(query, values).fetchall()


def _as_stand(row: Sequence[Any]) -> Stand:
    """Of a row that begins with `_STAND_FIELDS`."""
    return Stand(
        run=row[0],
        created=row[1],
        ground=_as_ground(row[2:7]),
        side=Side(row[7]),
        kernel_key=row[8],
        version=row[9],
    )


def _as_ground(row: Sequence[str]) -> Ground:
    arch, profile, accelerator, cpu, setup = row
    return Ground(arch=arch, profile=profile, accelerator=accelerator, cpu=cpu, setup=setup)


def _terms(column: str, where: Where) -> list[tuple[str, Any]]:
    """SQL terms and their values; a value of None means that the term does not count."""
    exact = where.name is None or not any(sign in where.name for sign in "*?[")
    wanted: list[tuple[str, Any]] = [
        (f"{column} = ?" if exact else f"{column} GLOB ?", where.name),
        ("run = ?", where.run),
        ("ground.arch = ?", where.arch),
        ("ground.profile = ?", where.profile),
        ("side = ?", where.side),
        ("run.created < ?", where.before),
    ]
    if where.ground is not None:
        for field in ("arch", "profile", "accelerator", "cpu", "setup"):
            wanted.append((f"ground.{field} = ?", getattr(where.ground, field)))
    return wanted
