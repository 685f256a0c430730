"""A `RunRecord` goes in, one self-contained HTML page comes out: no script, nothing from outside.

All that guests, compilers and mails wrote goes through autoescape, and is bounded in length.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from markupsafe import Markup

from lab.lockgraph import focus, svg
from lab.model import Comparison, Finding, RunRecord, Trial
from lab.prose import span
from lab.report import beside, cases, coverage, locks, pages, speed, timeline, view
from lab.report.files import Files
from lab.verdict import MEASURING, smallest_rate

_RARE = 0.10  # a failure rate that a reader may want to see, and seldom can
_SPLAT_LINES = 400
# What stands at the end of a machine that did not end well, around 0,0: a cross, two bars, a dot.
_MARKS = {
    "crash": Markup('<path class="sign" d="M-3.5 -3.5 L3.5 3.5 M-3.5 3.5 L3.5 -3.5"/>'),
    "hang": Markup('<path class="sign" d="M-2.2 -3.6 V3.6 M2.2 -3.6 V3.6"/>'),
    "lost": Markup('<path class="sign" d="M0 -4 V1 M0 3.4 V4"/>'),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page. What its template leaves empty is not on it."""

    id: str
    title: str  # in the list of links at the top
    template: str


# In this order. A new section is a template, a line in here and, if it needs one, a value in
# `_values`. What several templates share stands in macros.html.j2.
SECTIONS = (
    Section(id="findings", title="Findings", template="findings.html.j2"),
    Section(id="reasons", title="To know", template="reasons.html.j2"),
    Section(id="matrix", title="Matrix", template="matrix.html.j2"),
    Section(id="prefixes", title="Each patch", template="prefixes.html.j2"),
    Section(id="cases", title="Cases", template="cases.html.j2"),
    Section(id="splats", title="Splats", template="splats.html.j2"),
    Section(id="beside", title="Beside", template="beside.html.j2"),
    Section(id="locks", title="Locks", template="locks.html.j2"),
    Section(id="coverage", title="Coverage", template="coverage.html.j2"),
    Section(id="warnings", title="Warnings", template="warnings.html.j2"),
    Section(id="speed", title="Speed", template="speed.html.j2"),
    Section(id="time", title="Time", template="time.html.j2"),
    Section(id="facts", title="What ran", template="facts.html.j2"),
)


def page(record: RunRecord, folder: Path | None) -> str:
    """The whole page. With the run's folder, ends of logs are shown and consoles are linked."""
    environment = pages.environment()
    environment.filters |= {
        "counts": view.counts,
        "percent": lambda share: f"{share * 100:.3f}%",
        "lock": svg.short,
    }
    environment.globals |= _values(record, folder)
    rendered = [
        (section, Markup(environment.get_template(section.template).render().strip()))
        for section in SECTIONS
    ]
    return environment.get_template("run.html.j2").render(
        css=pages.style(),
        sections=[(section, inside) for section, inside in rendered if inside],
    )


def _values(record: RunRecord, folder: Path | None) -> dict[str, object]:
    """What the templates show."""
    files = Files(folder=folder)
    return {
        "record": record,
        "manifest": record.manifest,
        "verdict": record.verdict,
        "timing": record.timing,
        "label": _label(record),
        "headline": record.verdict.sentence.replace(f": {_label(record)}: ", ": ", 1),
        "sure": view.sure(record),
        "reasons": view.reasons(record),
        "findings": [_finding(record, finding) for finding in record.verdict.findings],
        "tiles": _tiles(record),
        "grid": cases.grid(record),
        "matrix": view.matrix(record),
        "prefixes": view.prefixes(record),
        "groups": cases.groups(record, files),
        "splats": view.splat_rows(record),
        "allowed": view.allowed_rows(record),
        "warnings": [(arch, *view.warnings(record, arch)) for arch in record.manifest.archs],
        "speed": speed.speed(record),
        "measuring": MEASURING,
        "beside": beside.beside(record),
        "locks": locks.sections(record, folder),
        "columns": locks.COLUMNS,
        "words": focus.WORDS,
        "coverage": coverage.sections(folder),
        "told_once": coverage.told_once,
        "line_words": coverage.WORDS,
        "timeline": timeline.timeline(record),
        "marks": _MARKS,
        "splat_lines": _SPLAT_LINES,
        "shares": _shares(record),
        "links": files,
        "command": shlex.join(record.manifest.command),
        "accelerators": _accelerators(record),
        "tried": sorted({how for trial in record.trials for how in trial.accelerator.tried}),
    }


def _label(record: RunRecord) -> str:
    return str(record.verdict.outcome).replace("-", " ")


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
        enough = next(n for n in count(runs) if smallest_rate(n) <= _RARE)
        tiles.append(
            _Tile(
                value=f"≥ {smallest_rate(runs):.0%}",
                label="failure rate that would show",
                detail=f"{runs} of {runs} passed leaves anything rarer open (95% confidence)"
                + (f"; --repeats {enough} shows {_RARE:.0%}" if enough > runs else ""),
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
            value=span(record.timing.wall_s),
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
    blamed: tuple[tuple[int, str], ...] = ()  # patches that touched the code a splat names
    anchor: str = ""  # where the page tells more


def _finding(record: RunRecord, finding: Finding) -> _Finding:
    seen = view.evidence(record, finding.title, finding.arch) if finding.kind == "case" else None
    if seen is not None:
        trial, result = seen
        told = f"{result.state}: {result.message}" if result.message else str(result.state)
        anchor = next(
            (
                name
                for case, name in cases.anchors(record).items()
                if (case.name, case.arch) == (finding.title, finding.arch)
            ),
            "",
        )
        return _Finding(finding=finding, message=told, trial=trial, line=0, anchor=anchor)
    for row in view.splat_rows(record) if finding.kind == "splat" else ():
        if (row.verdict.title, row.verdict.arch) == (finding.title, finding.arch):
            return _Finding(
                finding=finding,
                message="",
                trial=row.trial,
                line=row.splat.first_line,
                blamed=row.blamed,
                anchor="splats",
            )
    failed = view.failed_boot(record, finding.arch) if finding.kind == "boot" else None
    return _Finding(finding=finding, message="", trial=failed, line=0)


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
