"""A `RunRecord` goes in; its cases with every run of theirs come out, and the matrix of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lab.model import (
    CaseResult,
    CaseState,
    CaseVerdict,
    Comparison,
    RunRecord,
    Side,
    Trial,
    case_of,
)
from lab.report import view
from lab.report.files import Files
from lab.verdict.past import told

_CASES_WITH_LOGS = 40
_RUNS_WITH_LOGS = 6  # of one case
_LISTED = 12  # cases that pass on both sides are folded away if there are more of them
_BOXES = 48  # of a cell of the matrix: beyond, only cases that are not well have one


# --- cases -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
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
class Case:
    verdict: CaseVerdict
    anchor: str
    base: tuple[Run, ...]
    patched: tuple[Run, ...]
    told: tuple[tuple[Run, str, str], ...]  # runs worth telling, end of their log, link to it

    @property
    def shown(self) -> str:
        return shown(self.verdict)

    @property
    def earlier(self) -> str:
        """Of earlier bases, in few words: "3 of 60 earlier"; "" if none may be compared."""
        past = self.verdict.past
        return f"{past.failed} of {past.decided} earlier" if past and past.decided else ""

    @property
    def earlier_told(self) -> str:
        return told(self.verdict.past).removeprefix("; ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The cases of one architecture, what a reader must act on first."""

    arch: str
    cases: tuple[Case, ...]
    folded: tuple[Case, ...]  # many that pass on both sides


def shown(verdict: CaseVerdict) -> str:
    """The word for how a case compares."""
    return "skipped" if view.skipped_alike(verdict) else str(verdict.comparison)


def anchors(record: RunRecord) -> dict[CaseVerdict, str]:
    """What links within the page call a case."""
    return {verdict: f"case-{n}" for n, verdict in enumerate(record.verdict.cases)}


def groups(record: RunRecord, files: Files) -> list[Group]:
    runs: dict[tuple[str, Side, str], list[Run]] = {}
    judged = dict.fromkeys(verdict.name for verdict in record.verdict.cases)
    parts = tuple(name for name in judged if case_of(name) != name)
    for trial in record.trials:
        said = {result.name: result for result in trial.results}
        # A part is planned by its case alone, and missing wherever that did not tell of it.
        for name in (*trial.cell.cases, *(p for p in parts if case_of(p) in trial.cell.cases)):
            key = (trial.cell.arch, trial.cell.side, name)
            runs.setdefault(key, []).append(Run(trial=trial, result=said.get(name)))
    names = anchors(record)
    found: list[Group] = []
    budget = _CASES_WITH_LOGS
    for arch in record.manifest.archs:
        listed: list[Case] = []
        for verdict in view.by_urgency(c for c in record.verdict.cases if c.arch == arch):
            base, patched = (
                tuple(
                    sorted(
                        runs.get((arch, side, verdict.name), ()), key=lambda r: r.trial.cell.repeat
                    )
                )
                for side in (Side.BASE, Side.PATCHED)
            )
            odd = [run for run in (*base, *patched) if run.state != CaseState.PASSED]
            logs = tuple(_told(run, files) for run in odd[:_RUNS_WITH_LOGS]) if budget > 0 else ()
            budget -= bool(logs)
            listed.append(
                Case(
                    verdict=verdict,
                    anchor=names[verdict],
                    base=base,
                    patched=patched,
                    told=logs,
                )
            )
        well = tuple(c for c in listed if c.verdict.comparison is Comparison.SAME_PASS)
        odd_ones = tuple(c for c in listed if c.verdict.comparison is not Comparison.SAME_PASS)
        many = len(well) > _LISTED
        found.append(
            Group(
                arch=arch,
                cases=odd_ones if many else tuple(listed),
                folded=well if many else (),
            )
        )
    return found


def _told(run: Run, files: Files) -> tuple[Run, str, str]:
    if run.result is None:
        return run, "", ""
    return run, files.end_of(run.trial, run.result), files.log(run.trial, run.result)


# --- the matrix --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One case of a cell, or one side of a build or boot."""

    state: str  # of a comparison, or "good", "bad", "doubt"
    title: str
    anchor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One suite on one file system and architecture."""

    boxes: tuple[Box, ...]
    hidden: int  # cases that pass on both sides and have no box
    words: tuple[tuple[str, str], ...]  # a state, and how many of the cases are in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    suite: str
    part: str  # what a suite names second, mostly the file system; "" where it names nothing
    cells: tuple[Cell | None, ...]  # by architecture; None: nothing of it was planned there


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    archs: tuple[str, ...]
    profile: str
    lines: tuple[Line, ...]


def grid(record: RunRecord) -> Grid:
    """Suites and file systems down, architectures across; builds and boots above."""
    archs = record.manifest.archs
    lines = [
        Line(
            suite=f"kernel {kind}s",
            part="",
            cells=tuple(
                _machine_cell(kind, [row for row in view.matrix(record) if row.arch == arch])
                for arch in archs
            ),
        )
        for kind in ("build", "boot")
    ]
    names = anchors(record)
    found: dict[tuple[str, str], dict[str, list[CaseVerdict]]] = {}
    for verdict in record.verdict.cases:
        found.setdefault(_parts(verdict.name), {}).setdefault(verdict.arch, []).append(verdict)
    lines += [
        Line(
            suite=suite,
            part=part,
            cells=tuple(_cell(cases[arch], names) if arch in cases else None for arch in archs),
        )
        for (suite, part), cases in found.items()
    ]
    return Grid(archs=archs, profile=record.manifest.profile, lines=tuple(lines))


def _parts(name: str) -> tuple[str, str]:
    """ "faultstress/ext4/munmap" -> suite and file system; "boot/hello" -> its suite alone."""
    parts = case_of(name).split("/")
    return parts[0], parts[1] if len(parts) > 2 else ""


def _cell(cases: list[CaseVerdict], names: dict[CaseVerdict, str]) -> Cell:
    few = len(cases) <= _BOXES
    boxes = tuple(
        Box(
            state=shown(case),
            title=f"{case.name}: {shown(case)}; base {view.counts(case.base)}, "
            f"patched {view.counts(case.patched)}",
            anchor=names[case],
        )
        for case in view.by_urgency(cases)
        if few or shown(case) not in (Comparison.SAME_PASS, "skipped")
    )
    counted = Counter(shown(case) for case in view.by_urgency(cases))
    words = tuple((state, str(number)) for state, number in counted.items())
    return Cell(boxes=boxes, hidden=len(cases) - len(boxes), words=words)


def _machine_cell(kind: str, rows: list[view.Row]) -> Cell | None:
    boxes = [_box(kind, row) for row in rows]
    states = Counter(box.state for box in boxes)
    word = "bad" if states["bad"] else "doubt" if states["doubt"] else "good"
    texts = {
        "good": "on both sides",
        "bad": "fails " + " and ".join(str(r.side) for r, b in zip(rows, boxes, strict=True)
                                       if b.state == "bad"),
        "doubt": "not everywhere",
    }  # fmt: skip
    return Cell(boxes=tuple(boxes), hidden=0, words=((word, texts[word]),)) if boxes else None


def _box(kind: str, row: view.Row) -> Box:
    if kind == "build":
        state = "bad" if row.failure else "good" if row.kernel else "doubt"
        return Box(state=state, title=f"{row.side}: {row.build}")
    if row.boots_tried and not row.boots:
        state = "bad"
    else:
        came_up = row.boots + row.restores and row.boots == row.boots_tried
        state = "good" if came_up else "doubt"
    return Box(state=state, title=f"{row.side}: {row.boot}")
