"""A `RunRecord` goes in, one self-contained HTML page comes out: no script, nothing from outside.

All that guests, compilers and mails wrote goes through autoescape, and is bounded in length.
"""

from __future__ import annotations

import os
import re
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lab.lockgraph import focus, svg
from lab.model import (
    CaseResult,
    CaseState,
    CaseVerdict,
    Comparison,
    Finding,
    RunRecord,
    Side,
    Trial,
)
from lab.report import beside, locks, view
from lab.verdict import smallest_rate

_HERE = Path(__file__).parent
_LOG_BYTES = 8 << 10  # of a case's log on the page: its end, where it says why
_TEXT_CHARS = 24_000  # of a splat's text
_CASES_WITH_LOGS = 40
# Control characters have no place in HTML, whatever a guest printed.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ANSI = re.compile("\x1b\\[[0-9;?]*[ -/]*[@-~]")

_TIMES = ("ns", "µs", "ms", "s")
_TELLING = ("_per_s", "p50_us", "p99_us", "p50_ns", "p99_ns", "_s")
_SPEED_ROWS = 60
_NUMBER_ROWS = 600
# What the end of a metric's name says about its unit; the first that fits.
_UNITS = {"_ns": "ns", "_us": "µs", "_ms": "ms", "_per_s": "/s", "_s": "s", "_bytes": "B"}


def page(record: RunRecord, folder: Path | None) -> str:
    """The whole page. With the run's folder, ends of logs are shown and consoles are linked."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "span": view.span,
        "counts": view.counts,
        "clean": _clean,
        "percent": lambda share: f"{share * 100:.3f}%",
        "number": _number,
        "lock": svg.short,
    }
    template = environment.get_template("run.html.j2")
    links = _Links(folder=folder)
    return template.render(
        record=record,
        manifest=record.manifest,
        verdict=record.verdict,
        timing=record.timing,
        css=(_HERE / "style.css").read_text(encoding="utf-8"),
        label=_label(record),
        headline=record.verdict.sentence.replace(f": {_label(record)}: ", ": ", 1),
        findings=[_finding(record, finding) for finding in record.verdict.findings],
        tiles=_tiles(record),
        matrix=view.matrix(record),
        prefixes=view.prefixes(record),
        groups=_groups(record, links),
        splats=view.splat_rows(record),
        allowed=view.allowed_rows(record),
        warnings=[(arch, *view.warnings(record, arch)) for arch in record.manifest.archs],
        **_speed(record),
        beside=beside.beside(record),
        locks=locks.sections(record, folder),
        columns=locks.COLUMNS,
        words=focus.WORDS,
        timeline=view.timeline(record),
        shares=_shares(record),
        links=links,
        command=shlex.join(record.manifest.command),
        accelerators=_accelerators(record),
        tried=sorted({how for trial in record.trials for how in trial.accelerator.tried}),
    )


def _label(record: RunRecord) -> str:
    return str(record.verdict.outcome).replace("-", " ")


def _clean(text: str, limit: int = _TEXT_CHARS) -> str:
    """Text that may stand on a page: no control characters, bounded."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _ANSI.sub("", text))
    return text if len(text) <= limit else f"{text[:limit]}\n[... {len(text) - limit} more]"


def _finalize(value: object) -> object:
    """Every expression of the template passes here: none can forget to be cleaned."""
    return _clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float) -> str:
    """Three significant digits or whole thousands: "0.0123", "4.56", "21 400"."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.3g}"


# --- files of the run --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Links:
    """Files of the run, relative to the page; "" for what is not there."""

    folder: Path | None

    def to(self, path: str) -> str:
        return quote(path) if self._inside(path) is not None else ""

    def console(self, trial: Trial) -> str:
        return self.to(f"trials/{trial.id}/{trial.console}")

    def log(self, trial: Trial, result: CaseResult) -> str:
        return self.to(f"trials/{trial.id}/{result.log}") if result.log else ""

    def end_of(self, trial: Trial, result: CaseResult) -> str:
        """The end of a case's log, or ""."""
        path = self._inside(f"trials/{trial.id}/{result.log}") if result.log else None
        if path is None:
            return ""
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _LOG_BYTES))
            text = stream.read(_LOG_BYTES).decode("utf-8", "replace")
        return f"[... {size - _LOG_BYTES} bytes before]\n{text}" if size > _LOG_BYTES else text

    def _inside(self, path: str) -> Path | None:
        """The file, if it lies in the folder: a record may come from elsewhere."""
        if self.folder is None:
            return None
        folder = self.folder.resolve()
        try:
            target = (folder / path).resolve()
            return target if target.is_relative_to(folder) and target.is_file() else None
        except (OSError, ValueError):  # too long, or with a NUL: no name of a file of ours
            return None


# --- what the template shows -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    value: str
    label: str
    detail: str = ""


def _tiles(record: RunRecord) -> list[_Tile]:
    """How sure: the few numbers that the verdict rests on."""
    cases = record.verdict.cases
    decided = [case for case in cases if case.base.decided and case.patched.decided]
    tiles = [
        _Tile(
            value=f"{len(decided)} of {len(cases)}",
            label="cases compared",
            detail="ran on both sides and gave an answer",
        )
    ]
    same = [case for case in cases if case.comparison is Comparison.SAME_PASS]
    if same:
        runs = min(case.patched.decided for case in same)
        tiles.append(
            _Tile(
                value=f"≥ {smallest_rate(runs):.0%}",
                label="failure rate that would show",
                detail=f"{runs} of {runs} passed leaves anything rarer open (95 % confidence)",
            )
        )
    p_values = [
        case.p_value
        for case in cases
        if case.comparison is Comparison.REGRESSED and case.p_value is not None
    ]
    if p_values:
        tiles.append(
            _Tile(
                value=f"{min(p_values):.2g}",
                label="smallest p",
                detail="Fisher's exact test on fresh runs, those that raised it left out",
            )
        )
    tiles.append(
        _Tile(
            value=str(len(record.trials)),
            label="machines started",
            detail=", ".join(_accelerators(record)) or "none",
        )
    )
    tiles.append(
        _Tile(
            value=view.span(record.timing.wall_s),
            label="from start to verdict",
            detail=f"the lab's own share {view.own_share(record):.1%}",
        )
    )
    return tiles


def _accelerators(record: RunRecord) -> list[str]:
    return sorted({f"{t.accelerator.name} ({t.accelerator.cpu})" for t in record.trials})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """A finding and where it can be seen."""

    finding: Finding
    message: str  # what the case said
    trial: Trial | None
    line: int  # of its console; 0: all of it


def _finding(record: RunRecord, finding: Finding) -> _Finding:
    seen = view.evidence(record, finding.title, finding.arch) if finding.kind == "case" else None
    if seen is not None:
        trial, result = seen
        told = f"{result.state}: {result.message}" if result.message else str(result.state)
        return _Finding(finding=finding, message=told, trial=trial, line=0)
    for row in view.splat_rows(record) if finding.kind == "splat" else ():
        if (row.verdict.title, row.verdict.arch) == (finding.title, finding.arch):
            return _Finding(finding=finding, message="", trial=row.trial, line=row.splat.first_line)
    failed = view.failed_boot(record, finding.arch) if finding.kind == "boot" else None
    return _Finding(finding=finding, message="", trial=failed, line=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One answer of a case."""

    trial: Trial
    result: CaseResult | None  # None: it was planned, and nothing was heard of it

    @property
    def state(self) -> str:
        return str(self.result.state if self.result else CaseState.MISSING)

    @property
    def title(self) -> str:
        text = f"{self.trial.cell.side} #{self.trial.cell.repeat + 1}: {self.state}"
        return f"{text}: {self.result.message}" if self.result and self.result.message else text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    verdict: CaseVerdict
    base: tuple[_Run, ...]
    patched: tuple[_Run, ...]
    told: tuple[tuple[_Run, str, str], ...]  # runs worth telling, end of their log, link to it

    @property
    def shown(self) -> str:
        return "skipped" if view.skipped_alike(self.verdict) else str(self.verdict.comparison)


def _groups(record: RunRecord, links: _Links) -> list[tuple[str, list[_Case]]]:
    """Cases by architecture, what a reader must act on first."""
    runs: dict[tuple[str, Side, str], list[_Run]] = {}
    for trial in record.trials:
        said = {result.name: result for result in trial.results}
        for name in trial.cell.cases:
            key = (trial.cell.arch, trial.cell.side, name)
            runs.setdefault(key, []).append(_Run(trial=trial, result=said.get(name)))
    groups: list[tuple[str, list[_Case]]] = []
    budget = _CASES_WITH_LOGS
    for arch in record.manifest.archs:
        cases = []
        for verdict in view.by_urgency(c for c in record.verdict.cases if c.arch == arch):
            sides = {
                side: tuple(
                    sorted(
                        runs.get((arch, side, verdict.name), ()), key=lambda r: r.trial.cell.repeat
                    )
                )
                for side in Side
            }
            odd = [r for runs_ in sides.values() for r in runs_ if r.state != CaseState.PASSED]
            told = tuple(_told(run, links) for run in odd[:6]) if budget > 0 else ()
            budget -= bool(told)
            cases.append(
                _Case(
                    verdict=verdict, base=sides[Side.BASE], patched=sides[Side.PATCHED], told=told
                )
            )
        groups.append((arch, cases))
    return groups


def _told(run: _Run, links: _Links) -> tuple[_Run, str, str]:
    if run.result is None:
        return run, "", ""
    return run, links.end_of(run.trial, run.result), links.log(run.trial, run.result)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plot:
    """A metric on one scale for both sides; places are shares of its width."""

    metric: view.Metric
    apart: bool
    name: str
    unit: str
    base: tuple[float, ...]
    patched: tuple[float, ...]
    base_median: float
    patched_median: float
    base_at: float
    patched_at: float


def _speed(record: RunRecord) -> dict[str, list[_Plot]]:
    """Times and rates that most would look at, what differs first; then all other numbers."""
    every = view.metrics(record)
    plots = [_plot(metric, metric.apart(len(every))) for metric in every]
    plots.sort(key=lambda plot: not plot.apart)  # stable: cases stay together
    first = [p for p in plots if p.apart or p.metric.name.endswith(_TELLING)][:_SPEED_ROWS]
    shown = {id(plot) for plot in first}
    rest = [plot for plot in plots if id(plot) not in shown]
    return {"speed": first, "numbers": rest[:_NUMBER_ROWS]}


def _plot(metric: view.Metric, apart: bool) -> _Plot:
    low = min(metric.base[0], metric.patched[0])
    high = max(metric.base[-1], metric.patched[-1])
    # At least a tenth of the value: noise of one percent should look like noise.
    width = max(high - low, abs(high) * 0.1, 1e-12)
    middle = (low + high) / 2

    def place(value: float) -> float:
        return 0.5 + (value - middle) / width * 0.9

    name, unit = metric.name, ""
    for suffix, symbol in _UNITS.items():
        if name.endswith(suffix):
            name, unit = name.removesuffix(suffix), symbol
            break
    before, after = statistics.median(metric.base), statistics.median(metric.patched)
    while unit in _TIMES[:-1] and min(before, after) >= 1000:
        before, after, unit = before / 1000, after / 1000, _TIMES[_TIMES.index(unit) + 1]
    return _Plot(
        metric=metric,
        apart=apart,
        name=name.replace("_", " "),
        unit=unit,
        base=tuple(place(value) for value in metric.base),
        patched=tuple(place(value) for value in metric.patched),
        base_median=before,
        patched_median=after,
        base_at=place(before),
        patched_at=place(after),
    )


def _shares(record: RunRecord) -> list[tuple[str, str, float, float]]:
    """Where the time went: label, CSS class, seconds, share of the sum."""
    timing = record.timing
    parts = [
        ("make", "make", timing.make_s),
        ("guests", "guest", timing.guest_s),
        ("set-up", "setup", timing.setup_s),
        ("the lab", "lab", timing.other_s),
    ]
    total = sum(seconds for _, _, seconds in parts) or 1.0
    return [(name, css, seconds, seconds / total) for name, css, seconds in parts if seconds > 0]
