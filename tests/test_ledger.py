"""The ledger: what is kept of a run, what is never mixed, and two labs on one file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lab import ledger, model
from lab.config import Config
from lab.ledger import Where, extract
from lab.model import (
    Cell,
    Comparison,
    LabFault,
    Outcome,
    RunRecord,
    Side,
    Tally,
    Trial,
)
from tests import records


def store(runs: Path, record: RunRecord, **changes: object) -> Path:
    """The record as a run would have left it, under the name in its manifest."""
    told = replace(record.manifest, **changes)  # type: ignore[arg-type]
    folder = runs / told.run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_bytes(model.encode(replace(record, manifest=told)))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs: a flaky one, a clean one after it, and one that does not build."""
    folder = tmp_path / "runs"
    store(folder, records.flaky(), run="a-flaky", created="2026-03-01T00:00:00+00:00")
    store(folder, records.clean(), run="b-clean", created="2026-03-02T00:00:00+00:00")
    store(folder, records.unbuildable(), run="c-broken", created="2026-03-03T00:00:00+00:00")
    return folder


def test_counts_are_the_judges(runs: Path) -> None:
    with ledger.opened(runs) as book:
        rows = {
            (row.name, row.side): row
            for row in book.cases(Where(run="a-flaky"))
            if row.name != "boot"
        }
    verdicts = records.flaky().verdict.cases
    assert len(rows) == 2 * len(verdicts)
    for verdict in verdicts:
        for side, tally in ((Side.BASE, verdict.base), (Side.PATCHED, verdict.patched)):
            row = rows[verdict.name, side]
            assert (row.tally, row.comparison) == (tally, verdict.comparison)
            assert row.reason == verdict.reason


def test_runs_come_newest_first_with_their_verdict(runs: Path) -> None:
    with ledger.opened(runs) as book:
        rows = book.runs()
        assert [row.name for row in rows] == ["c-broken", "b-clean", "a-flaky"]
        assert [row.outcome for row in rows] == [
            Outcome.REGRESSED,
            Outcome.CLEAN,
            Outcome.CLEAN,
        ]
        assert rows[0].findings == 1
        assert book.runs(limit=1) == rows[:1]
        assert book.runs(title="another") == ()
        assert book.cases(Where(run="c-broken")) == (), "nothing ran"


def test_boots_are_counted_beside_the_cases(runs: Path) -> None:
    store(runs, records.panicking(), run="d-panics")
    with ledger.opened(runs) as book:
        rows = {row.side: row.tally for row in book.cases(Where(run="d-panics", name="boot"))}
    assert rows[Side.BASE].failed == 0
    assert rows[Side.PATCHED] == Tally(failed=3)


def test_filters(runs: Path) -> None:
    with ledger.opened(runs) as book:
        name = "faultstress/xfs/truncate"
        rows = book.cases(Where(name=name, side=Side.BASE))
        assert [row.run for row in rows] == ["b-clean", "a-flaky"]
        assert book.cases(Where(name=name, side=Side.BASE, before=rows[0].created)) == rows[1:]
        assert {row.name for row in book.cases(Where(name="faultstress/xfs/*"))} == {
            "faultstress/xfs/munmap",
            "faultstress/xfs/truncate",
        }
        assert book.cases(Where(arch="arm64")) == ()
        assert book.cases(Where(profile="kasan")) == ()
        assert book.cases(Where(ground=book.grounds()[0], name=name, side=Side.BASE)) == rows


def test_splats_are_counted_by_fingerprint(runs: Path) -> None:
    store(runs, records.use_after_free(), run="d-uaf")
    with ledger.opened(runs) as book:
        rows = {row.side: row for row in book.splats(Where(name=records.UAF.fingerprint))}
        assert {row.title for row in book.splats(Where(run="a-flaky"))} == {records.WARNING.title}
    base, patched = rows[Side.BASE], rows[Side.PATCHED]
    assert (base.seen, patched.seen) == (0, 7)
    assert base.exposed == patched.exposed == 7
    assert patched.comparison is Comparison.REGRESSED


def test_an_excused_splat_is_kept_as_such(tmp_path: Path) -> None:
    case = "faultstress/ext4/read"
    excused = replace(records.WARNING, allowed="known")

    def answer(of: Cell) -> Trial:
        results = tuple(
            replace(records.passed(name, of), splats=(excused,) if name == case else ())
            for name in of.cases
        )
        return records.trial(of, results=results)

    store(tmp_path, records.run(answer, answer))
    with ledger.opened(tmp_path) as book:
        rows = book.splats()
    assert {(row.side, row.seen, row.exposed, row.allowed) for row in rows} == {
        (side, 2, 2, True) for side in Side
    }
    assert {row.comparison for row in rows} == {None}


def test_numbers_are_medians_over_repeats(runs: Path) -> None:
    case = "faultstress/ext4/munmap"
    record = records.clean()
    with ledger.opened(runs) as book:
        rows = book.metrics(Where(run="b-clean", name=case, side=Side.BASE))
    told = {row.metric: row for row in rows}
    values = sorted(
        result.metrics["faults_per_s"]
        for trial in record.trials
        for result in trial.results
        if result.name == case and trial.cell.side is Side.BASE
    )
    assert told["faults_per_s"].count == len(values) == 2
    assert told["faults_per_s"].median == sum(values) / 2


# --- what is never mixed -----------------------------------------------------------------------


def test_accelerators_of_one_run_stay_apart() -> None:
    """KVM was lost after the first repeat; what it said counts for itself only."""

    def answer(of: Cell) -> Trial:
        lost = of.repeat == 0
        fails = records.failing("boot/hello", records.failed("boot/hello", "no"))(of)
        return replace(fails, accelerator=records.KVM) if lost else records.well(of)

    told = extract(records.run(answer, answer))
    counts = {
        (row.ground.accelerator, row.side): row.tally
        for row in told.cases
        if row.name == "boot/hello"
    }
    for side in Side:
        assert counts["kvm", side].failed == 1
        assert counts["kvm", side].passed == 0
        assert counts["tcg", side].failed == 0
        assert counts["tcg", side].passed > 0


def _of_size(memory_bytes: int) -> records.Answer:
    def answer(of: Cell) -> Trial:
        return records.trial(replace(of, memory_bytes=memory_bytes))

    return answer


def test_grounds_differ_by_all_that_shapes_a_result(tmp_path: Path) -> None:
    small, plain = _of_size(512 << 20), records.well
    longer = model.encode(Config()).decode().replace('"duration_s": 5.0', '"duration_s": 60.0')
    config = model.encode(Config()).decode()
    assert longer != config
    store(tmp_path, records.run(plain, plain, archs=("x86_64", "arm64")), run="a")
    store(tmp_path, records.run(small, small), run="b")
    store(tmp_path, records.run(plain, plain), run="c", config=config)
    store(tmp_path, records.run(plain, plain), run="d", config=longer)
    with ledger.opened(tmp_path) as book:
        setups = {(ground.arch, ground.setup) for ground in book.grounds()}
        rows = book.cases(Where(name="boot/hello", side=Side.BASE))
        for ground in book.grounds():
            assert len(book.cases(Where(name="boot/hello", side=Side.BASE, ground=ground))) == 1
    assert setups == {
        ("x86_64", "2 cpus, 1024 MiB"),
        ("arm64", "2 cpus, 1024 MiB"),
        ("x86_64", "2 cpus, 512 MiB"),
        ("x86_64", "2 cpus, 1024 MiB, stress 5 s x 4"),
        ("x86_64", "2 cpus, 1024 MiB, stress 60 s x 4"),
    }
    assert len(rows) == len(setups)


def test_every_count_names_its_kernel(runs: Path) -> None:
    with ledger.opened(runs) as book:
        keys = {(row.side, row.kernel_key) for row in book.cases()}
    assert keys == {(side, records.kernel(side).key) for side in Side}


# --- an index, nothing more --------------------------------------------------------------------


def _everything(runs: Path) -> tuple[object, ...]:
    with ledger.opened(runs) as book:
        return (book.runs(), book.cases(), book.splats(), book.metrics(), book.grounds())


def test_taking_in_twice_changes_nothing(runs: Path) -> None:
    with ledger.opened(runs) as book:
        assert book.synced.added == ("a-flaky", "b-clean", "c-broken")
        assert book.sync().added == ()
    first = _everything(runs)
    with ledger.opened(runs) as book:
        assert book.synced.added == ()
        book.put(replace(records.clean(), manifest=replace(records.manifest(), run="b-clean")))
    with ledger.opened(runs) as book:
        assert book.synced.added == ("b-clean",), "the record in the folder counts"
    assert _everything(runs) == first


def test_a_record_that_changed_replaces_its_rows(runs: Path) -> None:
    assert len(_everything(runs)) == 5
    store(runs, records.corrupting(), run="b-clean")
    with ledger.opened(runs) as book:
        assert book.synced.added == ("b-clean",)
        (row,) = (row for row in book.runs() if row.name == "b-clean")
        assert row.outcome is Outcome.REGRESSED


def test_it_is_made_again_from_the_folders(runs: Path) -> None:
    before = _everything(runs)
    (runs / ledger.FILE_NAME).unlink()
    assert _everything(runs) == before


def test_what_a_folder_said_outlives_it(runs: Path) -> None:
    before = _everything(runs)
    (runs / "a-flaky" / "record.json").unlink()
    assert _everything(runs) == before


@pytest.mark.parametrize("damage", ["schema", "garbage", "torn"])
def test_a_file_that_cannot_be_used_is_put_aside_and_made_anew(runs: Path, damage: str) -> None:
    before = _everything(runs)
    path = runs / ledger.FILE_NAME
    match damage:
        case "schema":
            with sqlite3.connect(path) as connection:
                connection.execute("PRAGMA user_version = 999")
            connection.close()
        case "garbage":
            path.write_bytes(b"no database" * 1000)
        case _:
            path.write_bytes(path.read_bytes()[:4096])
    assert _everything(runs) == before
    assert (runs / f"{ledger.FILE_NAME}.old").exists()


def test_a_record_that_cannot_be_read_is_named_once_and_costs_nothing(runs: Path) -> None:
    (runs / "b-clean" / "record.json").write_text('{"manifest": 1}')
    for _ in range(2):
        with ledger.opened(runs) as book:
            ((name, reason),) = book.synced.unreadable
            assert name == "b-clean"
            assert "RunRecord" in reason
            assert [row.name for row in book.runs()] == ["c-broken", "a-flaky"]
    store(runs, records.clean(), run="b-clean")
    with ledger.opened(runs) as book:
        assert book.synced.unreadable == ()
        assert len(book.runs()) == 3


def test_it_leaves_nothing_that_looks_half_made(runs: Path) -> None:
    """Names that begin with a dot are temporary files of somebody who was killed."""
    _everything(runs)
    assert not list(runs.rglob(".*"))
    assert {path.name for path in runs.iterdir() if path.is_file()} == {
        ledger.FILE_NAME,
        "ledger.lock",
    }


def test_no_folder_is_an_empty_ledger(tmp_path: Path) -> None:
    with ledger.opened(tmp_path / "none") as book:
        assert book.runs() == ()
    assert not (tmp_path / "none").exists()


def test_a_failure_of_the_file_is_one_sentence(runs: Path) -> None:
    with pytest.raises(LabFault, match=r"ledger\.sqlite: ") as caught, ledger.opened(runs) as book:
        book._db.execute("SELECT nothing")
    assert "made anew" in caught.value.hint


@pytest.mark.fake
def test_labs_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four processes take the same new folder in, again and again, while records still come."""
    runs = tmp_path / "runs"
    for number in range(12):
        store(runs, records.flaky(), run=f"{number:02}")
    code = (
        "import sys, pathlib\n"
        "from lab import ledger\n"
        "for _ in range(10):\n"
        "    with ledger.opened(pathlib.Path(sys.argv[1])) as book:\n"
        "        assert len(book.runs()) >= 12, book.runs()\n"
    )
    labs = [
        subprocess.Popen([sys.executable, "-c", code, str(runs)], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for number in range(12, 18):
        store(runs, records.clean(), run=f"{number:02}")
    for each in labs:
        _, said = each.communicate(timeout=110)
        assert each.returncode == 0, said
    before = _everything(runs)
    assert len(before[0]) == 18  # type: ignore[arg-type]
    assert not (runs / f"{ledger.FILE_NAME}.old").exists()
    (runs / ledger.FILE_NAME).unlink()
    assert _everything(runs) == before


def test_a_kernel_keeps_its_version() -> None:
    source = replace(records.manifest().source, version="6.1.190")
    told = extract(records.run(records.well, records.well, source=source))
    assert {row.version for row in told.cases} == {"6.1.190"}
