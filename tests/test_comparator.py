"""`--comparator`: another kernel beside a run. It is shown, and nothing rests on it."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from lab.model import Comparator, RunRecord, Side
from lab.report import beside, html
from tests import records

CASE = "faultstress/ext4/munmap"


def trials(cases: tuple[str, ...] = records.CASES) -> Comparator:
    ran = tuple(records.trial(records.cell(Side.BASE, repeat, cases=cases)) for repeat in range(2))
    return Comparator(
        name="debian:6.12", version="6.12.<b>", arch="x86_64", kernel_key="k", trials=ran
    )


def run(*comparators: Comparator) -> RunRecord:
    return replace(records.clean(), comparators=comparators)


def shown(record: RunRecord) -> str:
    stream = StringIO()
    beside.show(record, Console(file=stream, width=100))
    return stream.getvalue()


def test_its_numbers_stand_beside_those_of_both_sides() -> None:
    (one,) = beside.beside(run(trials()))
    row = next(row for row in one.rows if (row.case, row.metric) == (CASE, "faults_per_s"))
    assert row.base == row.comparator  # the same machines
    assert row.patched != row.base
    text = " ".join(shown(run(trials())).split())
    assert "No verdict rests on it" in text
    assert CASE in text
    assert "18 passed" in text


def test_a_case_that_only_one_of_them_ran_is_left_out() -> None:
    (one,) = beside.beside(run(trials(cases=(CASE,))))
    assert {row.case for row in one.rows} == {CASE}


def test_why_there_is_nothing_beside() -> None:
    missing = Comparator(name="x", version="6.12", arch="arm64", missing="it does not build: oh")
    assert "nothing to compare with: it does not build: oh" in shown(run(missing))
    assert shown(run()) == ""


def test_the_page_shows_it_and_a_page_without_one_does_not() -> None:
    page = html.page(run(trials()), None)
    assert "Beside: debian:6.12" in page
    assert "6.12.&lt;b&gt;" in page
    assert "Beside" not in html.page(run(), None)
