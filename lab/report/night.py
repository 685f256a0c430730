"""A night, those before it and the ledger go in; its page and its mail come out."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from itertools import pairwise
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

from lab.ledger import CaseRow, Ledger, Where
from lab.matrix import Job
from lab.model import Outcome, Side
from lab.night import sentence
from lab.night.record import Change, Count, JobResult, JobState, News, Night
from lab.prose import printable, span
from lab.report import layout, pages

NIGHTS = 30  # columns of the strips
_FLAKES = 60
_TRENDS = 40
_TELLING = ("_per_s", "p50_us", "p99_us", "p50_ns", "p99_ns")
_STYLE = {
    Outcome.CLEAN: "bold green",
    Outcome.REGRESSED: "bold red",
    Outcome.INCONCLUSIVE: "bold yellow",
    Outcome.LAB_FAULT: "bold magenta",
}
_CHANGE_TITLES = {
    Change.NEW: "New",
    Change.SUSPECT: "Looks new, not decided",
    Change.LOST: "Gave no answer tonight",
    Change.FIXED: "Fixed",
    Change.QUIET: "Not seen tonight, too few runs to call it fixed",
    Change.FLAKY: "Flaky: comes and goes, no more often than before",
    Change.FIRST: "Failing, with nothing to compare it with",
    Change.KNOWN: "As in the last good night",
}


# --- what is shown -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A job in one night of a strip."""

    css: str
    title: str
    href: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    result: JobResult
    label: str  # "regressed", "left out", ...
    css: str
    strip: tuple[Box, ...]  # oldest first
    link: str
    again: tuple[str, ...]  # links
    durations: str  # points of a polyline; "" if there are too few


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A piece of news."""

    news: News
    job: str
    where: str
    numbers: str
    link: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flake:
    job: str
    case: str
    side: Side
    strip: tuple[tuple[float, str], ...]  # share of failures, title; oldest first
    total: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """One number of one case over nights, on both sides."""

    job: str
    case: str
    metric: str
    base: str  # points of a polyline
    patched: str
    newest: tuple[float, float]
    change: float | None  # of the patched side against its own median before; None: unknown


def label(outcome: Outcome) -> str:
    return str(outcome).replace("-", " ")


def _job_label(result: JobResult, night: Night) -> tuple[str, str]:
    """Word and CSS class: the verdict of its run, or what is new where that says clean."""
    if result.state is not JobState.RAN or result.outcome is None:
        return str(result.state).replace("-", " "), "none"
    mine = [one.change for one in night.record.news if one.job == result.job.key]
    for change, outcome in (
        (Change.NEW, Outcome.REGRESSED),
        (Change.SUSPECT, Outcome.INCONCLUSIVE),
        (Change.LOST, Outcome.INCONCLUSIVE),
    ):
        if result.outcome is Outcome.CLEAN and change in mine:
            return f"{mine.count(change)} {change}", str(outcome)
    return label(result.outcome), str(result.outcome)


def _run_link(name: str, depth: str = "../..") -> str:
    return f"{depth}/{quote(name)}/report.html" if name else ""


def groups(night: Night) -> list[tuple[str, str, list[Item]]]:
    """(change, heading, items), what must be acted on first."""
    names = {one.job.key: one for one in night.record.results}
    found: list[tuple[str, str, list[Item]]] = []
    for change, heading in _CHANGE_TITLES.items():
        items = [
            Item(
                news=news,
                job=names[news.job].job.name if news.job in names else news.job,
                where=sentence.sides(news.sides),
                numbers=sentence.numbers(news),
                link=_run_link(names[news.job].run) if news.job in names else "",
            )
            for news in night.record.news
            if news.change is change
        ]
        if items:
            found.append((str(change), heading, items))
    return found


def job_rows(night: Night, earlier: Sequence[Night]) -> list[JobRow]:
    """`earlier` come newest first."""
    window = [*reversed(earlier[: NIGHTS - 1]), night]
    rows = []
    for result in night.record.results:
        key = result.job.key
        text, css = _job_label(result, night)
        durations = [
            one.duration_s
            for each in window
            if (one := each.record.result(key)) and one.state is JobState.RAN
        ]
        rows.append(
            JobRow(
                result=result,
                label=text,
                css=css,
                strip=tuple(_box(each, key) for each in window),
                link=_run_link(result.run),
                again=tuple(_run_link(name) for name in result.again),
                durations=_points([durations], [durations])[0],
            )
        )
    return rows


def _box(night: Night, key: str) -> Box:
    result = night.record.result(key)
    if result is None:
        return Box(css="none", title=f"{night.record.id}: not in the matrix", href="")
    text, css = _job_label(result, night)
    title = f"{night.record.id}: {text}{', accepted' if night.accepted else ''}"
    return Box(css=css, title=title, href=_run_link(result.run))


def _points(lines: Sequence[Sequence[float]], every: Sequence[Sequence[float]]) -> list[str]:
    """Polylines in a box of 120 by 24, on one scale; "" for fewer than two points."""
    values = [value for line in every for value in line]
    if len(values) < 2:
        return ["" for _ in lines]
    low, high = min(values), max(values)
    width = max(high - low, abs(high) * 0.1, 1e-12)
    middle = (low + high) / 2
    found = []
    for line in lines:
        step = 112 / max(1, len(line) - 1)
        found.append(
            " ".join(
                f"{4 + n * step:.1f},{12 - (value - middle) / width * 18:.1f}"
                for n, value in enumerate(line)
            )
            if len(line) > 1
            else ""
        )
    return found


def _runs_of(night: Night, earlier: Sequence[Night], job: Job) -> list[tuple[str, str]]:
    """(night, run) of a job, oldest first."""
    window = [*reversed(earlier[: NIGHTS - 1]), night]
    return [
        (each.record.id, one.run)
        for each in window
        if (one := each.record.result(job.key)) and one.state is JobState.RAN and one.run
    ]


def flakes(night: Night, earlier: Sequence[Night], book: Ledger) -> list[Flake]:
    """Cases that come and go, the one nearest to a coin first: over nights of one ground."""
    found: list[Flake] = []
    for result in night.record.results:
        runs = _runs_of(night, earlier, result.job)
        rows: dict[tuple[str, Side, str], dict[str, CaseRow]] = {}
        for name, run in runs:
            for row in book.cases(Where(run=run)):
                if row.tally.decided:
                    rows.setdefault((row.name, row.side, str(row.ground)), {})[name] = row
        for (case, side, _), nights in rows.items():
            bad = sum(row.tally.failed for row in nights.values())
            total = sum(row.tally.decided for row in nights.values())
            strip = tuple(
                (nights[name].tally.failed / nights[name].tally.decided, _rate(name, nights[name]))
                if name in nights
                else (-1.0, f"{name}: no answer")
                for name, _ in runs
            )
            if not _comes_and_goes([share for share, _ in strip if share >= 0]):
                continue
            found.append(
                Flake(
                    job=result.job.name,
                    case=case,
                    side=side,
                    strip=strip,
                    total=Count(bad=bad, runs=total),
                )
            )
    found.sort(key=lambda one: abs(one.total.bad / one.total.runs - 0.5))
    return found[:_FLAKES]


def _comes_and_goes(shares: Sequence[float]) -> bool:
    """Not what broke once and stays so, nor what was broken and is mended."""
    turns = sum(before != after for before, after in pairwise(shares))
    return any(0 < share < 1 for share in shares) or turns > 1


def _rate(night: str, row: CaseRow) -> str:
    return f"{night}: failed {row.tally.failed} of {row.tally.decided}"


def trends(night: Night, earlier: Sequence[Night], book: Ledger) -> list[Trend]:
    """Times and rates over at least two nights, what moved most first."""
    found: list[Trend] = []
    for result in night.record.results:
        lines: dict[tuple[str, str, str], dict[Side, list[float]]] = {}
        for _, run in _runs_of(night, earlier, result.job):
            for row in book.metrics(Where(run=run)):
                if row.metric.endswith(_TELLING):
                    sides = lines.setdefault((row.name, row.metric, str(row.ground)), {})
                    sides.setdefault(row.side, []).append(row.median)
        for (case, metric, _), sides in lines.items():
            base, patched = sides.get(Side.BASE, []), sides.get(Side.PATCHED, [])
            if min(len(base), len(patched)) < 2:
                continue
            points = _points([base, patched], [base, patched])
            before = sorted(patched[:-1])[len(patched[:-1]) // 2]
            found.append(
                Trend(
                    job=result.job.name,
                    case=case,
                    metric=metric.replace("_", " "),
                    base=points[0],
                    patched=points[1],
                    newest=(base[-1], patched[-1]),
                    change=patched[-1] / before - 1 if before else None,
                )
            )
    found.sort(key=lambda one: -abs(one.change or 0.0))
    return found[:_TRENDS]


def _tiles(night: Night) -> list[tuple[str, str, str]]:
    """Number, what it counts, more of it."""
    results, news = night.record.results, night.record.news
    ran = [one for one in results if one.state is JobState.RAN]
    clean = [one for one in ran if one.outcome is Outcome.CLEAN]

    def count(*changes: Change) -> str:
        return str(sum(one.change in changes for one in news))

    start = datetime.fromisoformat(night.record.start.started)
    took_s = (datetime.fromisoformat(night.record.finished) - start).total_seconds()
    budget_s = night.record.start.budget_s
    return [
        (f"{len(ran)} of {len(results)}", "jobs ran", f"{len(clean)} of them clean"),
        (count(Change.NEW), "new", f"{count(Change.SUSPECT)} more look new, not decided"),
        (count(Change.FIXED), "fixed", "by fresh runs"),
        (count(Change.FLAKY), "flaky", "no more often than before"),
        (
            span(took_s),
            "from start to end",
            f"of a budget of {span(budget_s)}" if budget_s is not None else "no budget",
        ),
    ]


def page(night: Night, earlier: Sequence[Night], book: Ledger) -> str:
    """The whole page of a night; `earlier` come newest first."""
    record = night.record
    references = sorted({one.reference for one in record.results if one.reference}, reverse=True)
    return (
        pages.environment()
        .get_template("night.html.j2")
        .render(
            css=pages.style(),
            night=night,
            record=record,
            label=label(record.outcome),
            headline=record.sentence.removeprefix(f"{label(record.outcome)}: "),
            references=references,
            tiles=_tiles(night),
            groups=groups(night),
            rows=job_rows(night, earlier),
            flakes=flakes(night, earlier, book),
            trends=trends(night, earlier, book),
            nights=min(len(earlier) + 1, NIGHTS),
            command=shlex.join(record.start.command),
        )
    )


# --- mail --------------------------------------------------------------------------------------


def mail(night: Night, *, sender: str, to: Sequence[str], page_path: str) -> bytes:
    """The night as a message of plain text, as RFC 5322 wants it."""
    record = night.record
    message = EmailMessage(policy=SMTP)
    message["Subject"] = f"[lab] {record.id}: {printable(record.sentence)[:180]}"
    message["From"] = sender
    message["To"] = ", ".join(to) or "undisclosed-recipients:;"
    message["Date"] = format_datetime(datetime.fromisoformat(record.finished))
    message["Message-ID"] = f"<night-{record.id}@{_domain(sender)}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n".join(_mail_lines(night, page_path)) + "\n")
    return message.as_bytes()


def _domain(sender: str) -> str:
    domain = sender.rpartition("@")[2].strip(" >")
    return domain if domain.replace(".", "").replace("-", "").isalnum() else "localhost"


def _mail_lines(night: Night, page_path: str) -> Iterable[str]:
    record = night.record
    yield record.sentence
    yield ""
    for _, heading, items in groups(night):
        yield f"{heading}:"
        for item in items:
            yield f"  {printable(item.news.title)[:300]}"
            yield f"      {item.job}, {item.where}: {item.numbers}"
        yield ""
    yield "Jobs:"
    for result in record.results:
        text, _ = _job_label(result, night)
        took = f" ({span(result.duration_s)})" if result.duration_s else ""
        yield f"  {text:14} {result.job.name}{took}"
        if result.reason:
            yield f"      {printable(result.reason)[:300]}"
    yield ""
    yield f"Page: {page_path}"
    if record.interrupted:
        yield f"The night was interrupted and went on {record.interrupted} times."


# --- terminal ----------------------------------------------------------------------------------


def summary(night: Night, console: Console) -> None:
    """The night on a terminal."""
    record = night.record
    layout.item(console, (printable(record.sentence), _STYLE[record.outcome]), indent=0)
    for _, heading, items in groups(night):
        layout.heading(console, heading)
        for item in items:
            layout.item(console, printable(item.news.title))
            told = f"{item.job}, {item.where}: {item.numbers}"
            layout.item(console, (told, "dim"), indent=6)
    layout.heading(console, "Jobs")
    for result in record.results:
        text, css = _job_label(result, night)
        style = "yellow" if css == "none" else _STYLE[Outcome(css)]
        took = f", {span(result.duration_s)}" if result.duration_s else ""
        layout.item(console, result.job.name, "  ", (text, style), (took, "dim"))
        if result.reason:
            layout.item(console, (printable(result.reason), "dim"), indent=6)


def listing(nights: Sequence[Night], console: Console) -> None:
    """Kept nights, newest first."""
    if not nights:
        layout.item(console, "no night yet: lab nightly makes one", indent=0)
        return
    rows: list[Sequence[layout.Cell]] = [("night", "outcome", "jobs", "new", "fixed", "flaky", "")]
    for night in nights:
        record = night.record
        counts = [
            str(sum(one.change is change for one in record.news))
            for change in (Change.NEW, Change.FIXED, Change.FLAKY)
        ]
        ran = sum(one.state is JobState.RAN for one in record.results)
        rows.append(
            (
                record.id,
                (label(record.outcome), _STYLE[record.outcome]),
                f"{ran}/{len(record.results)}",
                *counts,
                "accepted" if night.accepted else "",
            )
        )
    layout.grid(console, rows, 0)


def jobs(found: Sequence[Job], console: Console) -> None:
    """The jobs of the matrix, with the command of each."""
    for job in found:
        console.print(Text(printable(job.command)), soft_wrap=True)
