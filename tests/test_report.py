"""Reports: every story through every renderer, and guests that print what they should not."""

from __future__ import annotations

import html as html_escapes
import io
import json
import os
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase
from rich.console import Console

from lab import model
from lab.model import (
    CaseState,
    Cell,
    CodeFrame,
    Event,
    EventKind,
    FrameKind,
    Outcome,
    RunRecord,
    Side,
    Splat,
    Trial,
)
from lab.report import html, junit, progress, terminal, timeline, view
from tests import records

GOLDEN = Path(__file__).parent / "data/report"
FOLDER = Path("/runs/20260314-092653-7f3a")
EVIL = (
    "\"'><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>&amp; "
    "[red]\x1b[31m\x00"
)
LONG = "x" * 5000


def hostile(evil: str = EVIL) -> RunRecord:
    """A guest, a compiler and a mail that all print markup, escapes and endless lines."""
    splat = replace(
        records.UAF, title=evil, function=evil, file=evil, text=f"{evil}\n{LONG}\n" * 40, kind=evil
    )
    name = f"suite/{evil}/{LONG[:300]}"
    result = replace(records.failed(name, evil + LONG, splats=(splat,)), log="cases/evil.log")
    warning = replace(records.UNUSED, file=evil, message=evil + LONG, text=evil + LONG)
    record = records.run(
        records.well,
        records.failing(name, result),
        kernels=(records.kernel(Side.BASE), records.kernel(Side.PATCHED, warnings=(warning,))),
        cases=(name, *records.CASES),
        patch_names=(evil, LONG),
        series_title=evil,
        series_origin=evil,
        command=("lab", evil),
        host={evil: evil},
        tools={evil: evil},
    )
    trials = tuple(replace(trial, note=evil + LONG) for trial in record.trials)
    return replace(record, trials=trials)


STORIES = {**records.STORIES, "hostile": hostile}


@pytest.fixture(params=STORIES)
def story(request: pytest.FixtureRequest) -> tuple[str, RunRecord]:
    return request.param, STORIES[request.param]()


def on_disk(record: RunRecord, folder: Path, evil: str = EVIL) -> Path:
    """The run's folder with consoles and logs, as a campaign leaves it."""
    for trial in record.trials:
        here = folder / "trials" / trial.id
        here.mkdir(parents=True, exist_ok=True)
        (here / trial.console).write_text(f"[    0.000000] Linux version\n{evil}\n")
        for result in trial.results:
            if result.log and result.log.isprintable() and len(result.log) < 200:
                (here / result.log).parent.mkdir(exist_ok=True)
                (here / result.log).write_text(f"{evil}\n{LONG}\n" * 5)
    return folder


# --- HTML --------------------------------------------------------------------------------------

VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


class Page(HTMLParser):
    """A parser that insists on balance and remembers what could reach outside."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.styles = ""
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "style":
                self.styles += value or ""
            if name.startswith("on"):
                self.handlers.append(name)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    @property
    def files(self) -> list[str]:
        """Links that leave the page."""
        return [link for link in self.links if not link.startswith("#") and link != "data:,"]

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.text += data


def test_page_is_whole_and_reaches_nowhere(story: tuple[str, RunRecord], tmp_path: Path) -> None:
    _, record = story
    for folder in (None, on_disk(record, tmp_path)):
        text = html.page(record, folder)
        page = Page(text)
        assert not page.tags & {"script", "iframe", "object", "embed", "img", "form", "base"}
        assert not page.handlers
        for link in page.files:
            assert folder is not None and (folder / unquote(link)).is_file()
        assert len(page.ids) == len(set(page.ids))
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
        for outside in ("url(", "@import", "//"):
            assert outside not in page.styles
        assert text.startswith("<!DOCTYPE html>")
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)
        assert len(text) < 2_000_000


def test_page_says_the_verdict_first(story: tuple[str, RunRecord]) -> None:
    name, record = story
    page = Page(html.page(record, None))
    if name != "hostile":
        said = record.verdict.sentence.replace(f": {html._label(record)}: ", ": ", 1)
        assert said in page.text
        assert page.text.index(said) < page.text.index("Builds and boots")
        for case in record.verdict.cases:
            assert case.name in page.text
        for reason in record.verdict.reasons:
            assert reason in page.text or f"{reason[:1].upper()}{reason[1:]}" in page.text
        for patch in record.manifest.patch_names:
            assert patch in page.text


def test_page_shows_what_guests_print_as_text(tmp_path: Path) -> None:
    record = hostile()
    text = html.page(record, on_disk(record, tmp_path))
    assert "<script" not in text
    assert "<img" not in text
    assert html_escapes.escape("<script>alert(1)</script>") in text
    assert "<script>alert(1)</script>" in Page(text).text


def test_page_links_only_into_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    record = records.corrupting()
    secret = tmp_path / "secret"
    secret.write_text("not for the page")
    trials = tuple(
        replace(
            trial,
            console="../../../secret",
            results=tuple(replace(r, log="../../../secret") for r in trial.results),
        )
        for trial in record.trials
    )
    on_disk(records.corrupting(), run)
    text = html.page(replace(record, trials=trials), run)
    assert "not for the page" not in text
    assert Page(text).files == []


def test_page_shows_the_end_of_a_log_and_links_it(tmp_path: Path) -> None:
    record = records.corrupting()
    on_disk(record, tmp_path)
    log = next(
        tmp_path / "trials" / t.id / r.log
        for t in record.trials
        for r in t.results
        if r.state is CaseState.FAILED
    )
    log.write_text("early\n" + "middle\n" * 5000 + "generation 4, expected 5\n")
    page = Page(html.page(record, tmp_path))
    assert "generation 4, expected 5\n" in page.text
    assert "early\n" not in page.text
    assert str(log.relative_to(tmp_path)) in page.links


# --- terminal ----------------------------------------------------------------------------------


def printed(record: RunRecord, width: int = 80, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    terminal.summary(record, FOLDER, console)
    return out.getvalue()


@pytest.mark.parametrize("name", records.STORIES)
def test_terminal_summary_is_as_approved(name: str) -> None:
    """To approve a change: LAB_APPROVE=1 pytest tests/test_report.py, then read the diff."""
    text = printed(records.STORIES[name]())
    golden = GOLDEN / f"terminal-{name}.txt"
    if os.environ.get("LAB_APPROVE"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_terminal_reads_well_at_80_columns_and_through_a_pipe(
    story: tuple[str, RunRecord],
) -> None:
    name, record = story
    text = printed(record)
    lines = text.splitlines()
    assert lines[1].startswith(str(record.verdict.outcome).upper().replace("-", " "))
    assert "\x1b" not in text
    assert "\x00" not in text
    assert not [line for line in lines if line != line.rstrip()]
    if name != "hostile":
        assert not [line for line in lines if len(line) > 80 and "/" not in line]
    assert (
        lines[-1] == f"exit   {int(view.EXIT[record.verdict.outcome])} ({record.verdict.outcome})"
    )
    assert f"report {FOLDER}/report.html" in lines


def test_terminal_colours_only_for_a_terminal() -> None:
    assert "\x1b[1;31mREGRESSED" in printed(records.corrupting(), colour=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed(records.corrupting(), colour=True))
    assert plain == printed(records.corrupting())


def test_terminal_takes_markup_as_text() -> None:
    assert "[red]" in printed(hostile(), width=200)


def output(width: int = 100) -> tuple[io.StringIO, Console]:
    out = io.StringIO()
    return out, Console(file=out, width=width)


def test_terminal_lists_builds() -> None:
    broken = records.unbuildable().failures[0]
    out, console = output()
    cached = replace(records.kernel(Side.BASE), make_ran=False)
    terminal.builds((cached, records.kernel(Side.PATCHED), broken), console)
    assert "x86_64 base: 6.1.192-lab, from the cache" in out.getvalue()
    assert "built in 41 s, 96 objects compiled" in out.getvalue()
    assert f"does not build from patch {records.PATCHES[1]} on" in out.getvalue()
    assert "log: /cache/builds/dead01/make.log" in out.getvalue()


def test_terminal_lists_images() -> None:
    out, console = output()
    terminal.images([records.image()], console)
    assert "432 MiB" in out.getvalue()
    out, console = output()
    terminal.images([records.image()], console, as_json=True)
    assert json.loads(out.getvalue())[0]["packages"] == 98
    out, console = output()
    terminal.images([], console)
    assert "lab image build" in out.getvalue()


def test_terminal_lists_splats_by_file() -> None:
    out, console = output()
    torn = replace(records.WARNING, corrupted="cut off")
    terminal.splats({Path("a.log"): [records.UAF, torn], Path("b.log"): []}, console)
    lines = out.getvalue().splitlines()
    assert lines[0] == (
        "a.log:812: KASAN: slab-use-after-free Read in filemap_fault  [kasan]  mm/filemap.c"
    )
    assert "(torn: cut off)" in lines[1]
    assert lines[2] == "b.log: no problem report"


def test_terminal_shows_the_text_of_a_symbolised_splat() -> None:
    out, console = output()
    terminal.splats({Path("a.log"): [symbolised(evil=False)]}, console)
    lines = out.getvalue().splitlines()
    assert "     do_fault mm/memory.c:4750 [inline] <on a line that patch 3 added>" in lines
    assert (
        "    BUG: KASAN: slab-use-after-free in filemap_fault+0x1c4/0x1130 mm/filemap.c:3200 "
        "<in a function that patches 1, 3 changed>"
    ) in lines
    assert lines[-1] == "    (handle_mm_fault: no such function in this file)"
    out, console = output()
    terminal.splats({Path("a.log"): [symbolised(evil=True)]}, console)
    assert "\x1b" not in out.getvalue()


def symbolised(*, evil: bool) -> Splat:
    where = EVIL if evil else "mm/memory.c"

    def frame(text: str, function: str, **facts: object) -> CodeFrame:
        index = next(i for i, line in enumerate(UAF_LINES) if text in line)
        values: dict[str, object] = {"offset": 0x1C4, "size": 0x1130, "kind": FrameKind.RETURN}
        return CodeFrame(index=index, function=function, **{**values, **facts})  # type: ignore[arg-type]

    frames = (
        frame(" filemap_fault+", "filemap_fault", file="mm/filemap.c", line=3200, patches=(1, 3)),
        frame(" __do_fault+", "do_fault", file=where, line=4750, inlined=True, line_patch=3,
              patches=(3,), offset=0, size=0),
        frame(" __do_fault+", "__do_fault", file=where, line=4780, offset=0x71, size=0x2F0),
        frame(" handle_mm_fault+", "handle_mm_fault", note="no such function in this file"),
    )  # fmt: skip
    return replace(records.UAF, frames=frames)


UAF_LINES = records.UAF_TEXT.split("\n")


@pytest.mark.parametrize("evil", [False, True])
def test_source_lines_and_what_the_series_did_there_are_shown(evil: bool) -> None:
    splat = symbolised(evil=evil)

    def answer(of: Cell) -> Trial:
        return records.trial(of, boot_splats=(splat,) if of.side is Side.PATCHED else ())

    record = records.run(answer, answer, max_repeats=8)
    assert [finding.kind for finding in record.verdict.findings] == ["splat"]
    page = html.page(record, None)
    assert "<script" not in page and "&lt;on a line that patch 3 added&gt;" in page
    (row,) = view.splat_rows(record)
    assert row.touched[0] == (
        "filemap_fault mm/filemap.c:3200 <in a function that patches 1, 3 changed>"
    )
    out, console = output()
    terminal.summary(record, FOLDER, console)
    assert "<on a line that patch 3 added>" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_known_splats_are_shown_as_such() -> None:
    known = replace(records.WARNING, allowed=f"known since ever {EVIL}")

    def answer(of: Cell) -> Trial:
        return records.trial(of, boot_splats=(known,))

    record = records.run(answer, answer)
    manifest = replace(record.manifest, notes=(f"old.toml, entry 1: expired {EVIL}",))
    record = replace(record, manifest=manifest)
    (row,) = view.allowed_rows(record)
    assert row.base == row.patched == len(record.trials) / 2
    assert [(one.splats, one.reports) for one in view.matrix(record)] == [(0, "0, 1 allowed")] * 2
    # Allowed at one time and not at another, it counts.
    sometimes = records.run(
        answer, lambda of: records.trial(of, boot_splats=(records.WARNING,) if of.repeat else ())
    )
    assert [one.reports for one in view.matrix(sometimes)] == ["0, 1 allowed", "1"]
    page = html.page(record, None)
    assert "known since ever" in page and "entry 1: expired" in page and "<script" not in page
    out, console = output()
    terminal.summary(record, FOLDER, console)
    assert "allowed: WARNING in ext4_dirty_folio" in out.getvalue()
    assert "expired: old.toml, entry 1" in out.getvalue()
    assert "\x1b" not in out.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    name: str
    health: str
    found: str
    hint: str = ""


def test_terminal_lists_checks_and_the_way_out() -> None:
    out, console = output()
    done = (
        Checked(name="git", health="ok", found="2.39.5", hint="not shown"),
        Checked(
            name="bwrap", health="missing", found="not here", hint="apt-get install bubblewrap"
        ),
    )
    terminal.checks(done, console)
    assert out.getvalue().splitlines() == [
        "ok      git    2.39.5",
        "missing bwrap  not here",
        "        apt-get install bubblewrap",
    ]


def test_terminal_sums_what_was_removed() -> None:
    out, console = output()
    terminal.removed({"/cache/builds/a": 3 << 30, "/cache/trees/b": 1 << 30}, console, dry_run=True)
    assert "4.00 GiB would be freed" in out.getvalue()


# --- progress ----------------------------------------------------------------------------------


def event(kind: EventKind, text: str = "", fraction: float | None = None) -> Event:
    return Event(kind=kind, step="build base x86_64", text=text, fraction=fraction)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_progress_is_a_line_for_each_start_and_end() -> None:
    out, clock = io.StringIO(), Clock()
    with progress.PlainProgress(out, clock) as shown:
        shown.emit(event(EventKind.STARTED))
        for second in range(70):
            clock.now = 100.0 + second
            shown.emit(event(EventKind.PROGRESS, "CC mm/memory.o", second / 100))
        shown.emit(event(EventKind.WARNING, f"odd \x1b[2J{EVIL}"))
        clock.now = 175.0
        shown.emit(event(EventKind.DONE, "2431 objects"))
    lines = out.getvalue().splitlines()
    assert lines[0] == "  0:00  build base x86_64: started"
    assert lines[1] == "  0:30  build base x86_64: 30% CC mm/memory.o"
    assert lines[2] == "  1:00  build base x86_64: 60% CC mm/memory.o"
    assert lines[3].startswith("  1:09  build base x86_64: warning: odd")
    assert lines[4] == "  1:15  build base x86_64: 2431 objects (1m 15s)"
    assert "\x1b" not in out.getvalue()


def test_live_progress_leaves_the_finished_steps() -> None:
    out = io.StringIO()
    shown = progress.progress(quiet=False, stream=out, live=True)
    with shown:
        shown.emit(event(EventKind.STARTED))
        shown.emit(event(EventKind.PROGRESS, "[bold]CC mm/memory.o", 0.5))
        shown.emit(event(EventKind.NOTE, "seeded from the base"))
        shown.emit(event(EventKind.DONE, "2431 objects"))
        shown.emit(event(EventKind.DONE, "from the cache"))  # a step that never started
    text = out.getvalue()
    assert "✓ build base x86_64  2431 objects" in text
    assert "✓ build base x86_64  from the cache" in text
    assert "• build base x86_64: seeded from the base" in text


def test_quiet_still_warns() -> None:
    out = io.StringIO()
    with progress.progress(quiet=True, stream=out) as shown:
        for kind in EventKind:
            shown.emit(event(kind, "text"))
    assert out.getvalue() == "warning: text\n"


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(progress.progress(quiet=False, stream=io.StringIO()), progress.PlainProgress)


# --- JUnit and JSON ----------------------------------------------------------------------------


def junit_cases(record: RunRecord) -> dict[str, TestCase]:
    document = JUnitXml.fromstring(junit.xml(record))
    return {f"{case.classname}.{case.name}": case for suite in document for case in suite}


def kinds(case: TestCase) -> list[type]:
    return [type(result) for result in case.result]


def test_junit_is_green_only_for_a_clean_run(story: tuple[str, RunRecord]) -> None:
    _, record = story
    document = JUnitXml.fromstring(junit.xml(record))
    assert (document.failures + document.errors == 0) == (record.verdict.outcome is Outcome.CLEAN)
    assert document.tests == sum(1 for suite in document for _ in suite)
    assert document.failures == sum(suite.failures for suite in document)


def test_junit_names_every_planned_case_once(story: tuple[str, RunRecord]) -> None:
    _, record = story
    document = JUnitXml.fromstring(junit.xml(record))
    for arch in record.manifest.archs:
        (suite,) = [suite for suite in document if suite.name == arch]
        assert len(list(suite)) == len(record.verdict.cases)


def test_junit_says_how_cases_compare() -> None:
    cases = junit_cases(records.corrupting())
    broken = cases["x86_64.lockdep.faultstress.ext4.truncate"]
    assert kinds(broken) == [Failure]
    assert "generation 4, expected 5" in broken.result[0].text
    assert kinds(cases["x86_64.lockdep.boot.hello"]) == []
    assert kinds(cases["lab.verdict"]) == [Failure]

    cases = junit_cases(records.flaky())
    known = cases["x86_64.lockdep.faultstress.xfs.munmap"]
    assert kinds(known) == [Skipped]
    assert "fails on the base too" in known.result[0].message
    assert kinds(cases["x86_64.lockdep.faultstress.ext4.mprotect"]) == [Skipped]

    cases = junit_cases(records.suspicious())
    assert kinds(cases["x86_64.lockdep.faultstress.tmpfs.truncate"]) == [Error]
    assert kinds(cases["lab.verdict"]) == [Error]


def test_junit_has_findings_that_are_no_cases() -> None:
    cases = junit_cases(records.unbuildable())
    (name,) = [name for name in cases if name.startswith("x86_64.build.")]
    assert kinds(cases[name]) == [Failure]
    assert records.PATCHES[1] in cases[name].result[0].text


def test_junit_is_xml_whatever_a_guest_prints() -> None:
    raw = junit.xml(hostile())
    assert b"<script" not in raw
    assert b"\x1b" not in raw
    assert b"\x00" not in raw


def test_record_round_trips_through_json(story: tuple[str, RunRecord]) -> None:
    _, record = story
    assert model.decode(model.encode(record), RunRecord) == record


# --- view --------------------------------------------------------------------------------------


def test_metrics_of_failed_results_do_not_count() -> None:
    case = "faultstress/ext4/truncate"
    fast = replace(records.failed(case, "wrong page"), metrics={"faults_per_s": 1e9})
    record = records.run(records.well, records.failing(case, fast))
    assert not [metric for metric in view.metrics(record) if metric.case == case]


@pytest.mark.parametrize(
    ("runs", "among", "apart"), [(3, 1, False), (4, 1, True), (4, 2, False), (8, 300, True)]
)
def test_numbers_are_apart_only_beyond_chance(runs: int, among: int, apart: bool) -> None:
    metric = view.Metric(
        arch="x86_64",
        case="c",
        name="p99_ns",
        base=tuple(range(runs)),
        patched=tuple(range(100, 100 + runs)),
    )
    assert metric.apart(among) is apart
    overlapping = replace(metric, patched=tuple(range(runs - 1, 2 * runs - 1)))
    assert not overlapping.apart(1)


def test_the_longest_text_of_a_splat_is_shown() -> None:
    short = replace(records.UAF, text="cut")

    def answer(of: Cell) -> Trial:
        splat: Splat = short if of.repeat else records.UAF
        return records.trial(of, boot_splats=(splat,) if of.side is Side.PATCHED else ())

    (row,) = view.splat_rows(records.run(records.well, answer))
    assert row.splat.text == records.UAF_TEXT
    assert row.novelty == "new"


def test_machines_at_once_get_lanes_of_their_own() -> None:
    def at(second: int, side: Side, shard: int) -> Trial:
        of = replace(records.cell(side, 0), shard=shard, shards=2)
        trial = records.trial(of)
        return replace(trial, started=f"2026-03-14T09:30:{second:02}+00:00", wall_s=20.0)

    record = records.clean()
    trials = (
        at(0, Side.BASE, 0),
        at(5, Side.BASE, 1),
        at(21, Side.BASE, 0),
        at(0, Side.PATCHED, 0),
    )
    told = timeline.timeline(replace(record, trials=trials))
    assert told is not None
    assert [side for _, side in told.lanes] == [Side.BASE, Side.BASE, Side.PATCHED]
    assert sorted((bar.trial.started[-8:-6], bar.lane) for bar in told.bars) == [
        ("00", 0),
        ("00", 2),
        ("05", 1),
        ("21", 0),
    ]
