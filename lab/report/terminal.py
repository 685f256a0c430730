"""A `RunRecord` goes in, the summary that a terminal shows comes out, verdict first.

Reads the same at 80 columns, without colour and through a pipe. What guests and compilers wrote
is printed as text: never as markup, and without control characters.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab import model
from lab.model import (
    BuildFailure,
    CaseVerdict,
    Comparison,
    Kernel,
    Outcome,
    PrefixState,
    RootImage,
    RunRecord,
    Splat,
)
from lab.prose import printable, printable_line, span
from lab.report import beside, coverage, locks, speed, view
from lab.report import progress as progress_module
from lab.report.layout import grid as _grid
from lab.report.layout import heading as _heading
from lab.report.layout import item as _item
from lab.report.progress import PlainProgress, Progress, TerminalProgress
from lab.splat import places
from lab.verdict import MEASURING, speed_wording

__all__ = [
    "PlainProgress",
    "Progress",
    "TerminalProgress",
    "builds",
    "catalogue",
    "checks",
    "images",
    "progress",
    "removed",
    "splats",
    "summary",
]

_STYLE = {
    Outcome.CLEAN: "bold green",
    Outcome.REGRESSED: "bold red",
    Outcome.INCONCLUSIVE: "bold yellow",
    Outcome.LAB_FAULT: "bold magenta",
}
_CASE_STYLE = {
    Comparison.SAME_PASS: "green",
    Comparison.FIXED: "green",
    Comparison.REGRESSED: "red",
    Comparison.SUSPECT: "yellow",
    Comparison.UNKNOWN: "yellow",
    Comparison.FLAKY: "yellow",
    Comparison.SAME_FAIL: "dim",
}
_PREFIX_STYLE = {
    PrefixState.PASSED: "green",
    PrefixState.BROKEN: "red",
    PrefixState.UNKNOWN: "yellow",
}
_SUBJECT = 44  # columns of a patch's subject
_LISTED = 12  # cases or reasons before "and n more": the report has them all
_DETAIL_LINES = 6
_TOUCHED_LINES = 3  # of a splat's frames that the series has a hand in


def progress(*, quiet: bool) -> Progress:
    """What shows a command's progress on stderr."""
    return progress_module.progress(quiet=quiet, stream=sys.stderr)


# --- a run -------------------------------------------------------------------------------------


def summary(record: RunRecord, folder: Path, console: Console) -> None:
    """The verdict in one sentence, what it rests on, what changed, and where to read on."""
    verdict = record.verdict
    style = _STYLE[verdict.outcome]
    title, _, said = verdict.sentence.partition(f"{str(verdict.outcome).replace('-', ' ')}: ")
    console.print()
    _item(
        console,
        (str(verdict.outcome).upper().replace("-", " "), style),
        "  ",
        (f"{printable(title)} ", "bold"),
        printable(said),
        indent=0,
    )
    source = record.manifest.source
    patches = len(record.manifest.patch_names)
    against = (
        f"{source.name} ({source.version}) against it with {patches} "
        f"patch{'' if patches == 1 else 'es'}; profile {record.manifest.profile}"
    )
    _item(console, (against, "dim"), indent=0)
    for sentence in view.sure(record):
        _item(console, printable(sentence), indent=0)
    console.print()
    _matrix(record, console)
    _prefixes(record, console)
    _findings(record, console)
    _cases(record, console)
    _splats(record, console)
    _allowed(record, console)
    _speeds(record, console)
    _locks(record, folder, console)
    _coverage(folder, console)
    beside.show(record, console)
    _warnings(record, console)
    _reasons(record, console)
    _ending(record, folder, console)


def _matrix(record: RunRecord, console: Console) -> None:
    rows: list[list[str | tuple[str, str]]] = [["arch", "side", "build", "boot", "splats", "cases"]]
    for row in view.matrix(record):
        built = "red" if row.failure else ("yellow" if row.kernel is None else "")
        boots = "" if row.boots == row.boots_tried else "yellow"
        boots = "red" if row.boots_tried and not row.boots else boots
        passed = "red" if row.failed else "yellow" if row.other or not row.passed else "green"
        rows.append(
            [
                row.arch,
                str(row.side),
                (row.build, built),
                (row.boot, boots),
                (row.reports, "red" if row.splats else ""),
                (row.cases, passed),
            ]
        )
    _grid(console, rows, 0)


def _prefixes(record: RunRecord, console: Console) -> None:
    """Each patch by itself, if that was asked for."""
    if not record.prefixes:
        return
    _heading(console, "After each patch")
    rows: list[list[str | tuple[str, str]]] = [["", "patch", "arch", "build", "boot", ""]]
    for row in view.prefixes(record):
        style = _PREFIX_STYLE[row.result.state]
        subject = printable(row.result.subject)
        rows.append(
            [
                str(row.result.number),
                subject if len(subject) <= _SUBJECT else f"{subject[: _SUBJECT - 1]}…",
                row.result.arch,
                row.build,
                row.boot,
                (row.word, style),
            ]
        )
    _grid(console, rows, 2)
    for each in record.prefixes:
        if each.reason:
            _item(console, f"{each.number} [{each.arch}]: ", printable(each.reason), indent=4)


def _findings(record: RunRecord, console: Console) -> None:
    """Everything that makes the run regressed, with the first lines of its evidence."""
    if not record.verdict.findings:
        return
    _heading(console, "What the series does that the base does not")
    for finding in record.verdict.findings:
        _item(
            console,
            (f"{finding.kind}: ", "red"),
            (printable(finding.title), "bold"),
            f"  [{finding.arch}]",
        )
        lines = [printable_line(line) for line in finding.detail.splitlines()]
        seen = view.evidence(record, finding.title, finding.arch)
        if finding.kind == "case" and seen is not None:
            trial, result = seen
            lines.insert(0, f"{result.state}: {printable(result.message)}")
            lines.append(f"trials/{trial.id}/{result.log or trial.console}")
        dead = view.failed_boot(record, finding.arch)
        if finding.kind == "boot" and dead is not None:
            lines.append(f"trials/{dead.id}/{dead.console}")
        for row in view.splat_rows(record) if finding.kind == "splat" else ():
            if row.verdict.title == finding.title and row.verdict.arch == finding.arch:
                lines += [*_blamed(record, row), _console_line(row)]
                lines += map(printable, row.touched[:_TOUCHED_LINES])
        for line in lines[:_DETAIL_LINES]:
            _item(console, line, indent=6)
        if finding.patch:
            _item(console, f"first with patch {printable(finding.patch)}", indent=6)


def _blamed(record: RunRecord, row: view.SplatRow) -> list[str]:
    """The patch that came closest to what the splat names, if any did."""
    names = record.manifest.patch_names
    return [
        printable(f"patch {number} {did}: {names[number - 1] if number <= len(names) else ''}")
        for number, did in row.blamed[:1]
    ]


def _console_line(row: view.SplatRow) -> str:
    return printable(f"trials/{row.trial.id}/{row.trial.console}:{row.splat.first_line}")


def _cases(record: RunRecord, console: Console) -> None:
    """Cases that do not pass everywhere; those that regressed are told as findings."""
    told = (Comparison.SAME_PASS, Comparison.REGRESSED)
    odd = [
        case
        for case in view.by_urgency(record.verdict.cases)
        if case.comparison not in told and not _follows(case, record)
    ]
    if not odd:
        return
    _heading(console, "Cases that do not pass everywhere")
    several = len(record.manifest.archs) > 1
    rows: list[list[str | tuple[str, str]]] = [["", "case", "base", "patched"]]
    for case in odd[:_LISTED]:
        known = "skipped" if view.skipped_alike(case) else str(case.comparison)
        rows.append(
            [
                (known, _CASE_STYLE[case.comparison]),
                printable(f"{case.name} [{case.arch}]" if several else case.name),
                view.counts(case.base),
                view.counts(case.patched),
            ]
        )
    _grid(console, rows, 2)
    if len(odd) > _LISTED:
        _item(console, f"and {len(odd) - _LISTED} more in the report")


def _follows(case: CaseVerdict, record: RunRecord) -> bool:
    """It is unknown only because a kernel does not build or boot: that was said already."""
    if case.comparison is not Comparison.UNKNOWN or view.skipped_alike(case):
        return False
    rows = [row for row in view.matrix(record) if row.arch == case.arch]
    return any(row.kernel is None or (row.boots_tried and not row.boots) for row in rows)


def _splats(record: RunRecord, console: Console) -> None:
    """Splats that are not findings."""
    rows = [
        row for row in view.splat_rows(record) if row.verdict.comparison is not Comparison.REGRESSED
    ]
    if not rows:
        return
    _heading(console, "Splats")
    for row in rows:
        seen = row.verdict
        style = {"new": "red", "vanished": "green"}.get(row.novelty, "dim")
        _item(console, (f"{row.novelty}: ", style), (printable(seen.title), "bold"))
        where = f"{printable(row.splat.file)}, " if row.splat.file else ""
        _item(
            console,
            f"{where}in {seen.patched} of {seen.patched_trials} runs with the series, "
            f"{seen.base} of {seen.base_trials} without",
            indent=6,
        )
        _item(console, (_console_line(row), "dim"), indent=6)
        for line in row.touched[:_TOUCHED_LINES]:
            _item(console, printable(line), indent=6)


def _allowed(record: RunRecord, console: Console) -> None:
    """Known splats that were seen and let pass, and entries that let nothing pass any more."""
    rows = view.allowed_rows(record)
    if rows or record.manifest.notes:
        _heading(console, "Known splats")
    for row in rows:
        _item(console, ("allowed: ", "dim"), printable(row.splat.title), f"  [{row.arch}]")
        _item(console, printable(row.splat.allowed), indent=6)
        text = f"in {row.patched} runs with the series, {row.base} without; first: "
        where = f"trials/{row.trial.id}/{row.trial.console}:{row.splat.first_line}"
        _item(console, (text + printable(where), "dim"), indent=6)
    for note in record.manifest.notes:
        _item(console, ("expired: ", "yellow"), printable(note))


def _speeds(record: RunRecord, console: Console) -> None:
    """What the suites that measure found, with intervals; what is slower for sure first."""
    told = [s for s in record.verdict.speeds if s.case.partition("/")[0] in MEASURING]
    told = [s for s in told if s.slower or s.metric.endswith(("_per_s", "p50_us"))]
    every = speed.speed(record)
    if not told and not (every and every.apart):
        return
    _heading(console, "Speed with the series, against without (95% intervals)")
    if every and every.apart:
        _item(console, printable(every.sentence))
    told.sort(key=lambda one: not one.slower)
    several = len(record.manifest.archs) > 1
    for one in told[:_LISTED]:
        where = f" on {one.arch}" if several else ""
        mark = ("slower: ", "red") if one.slower else ""
        _item(console, mark, printable(f"{one.case} {one.metric}{where}: {speed_wording(one)}"))
    if len(told) > _LISTED:
        _item(console, f"and {len(told) - _LISTED} more in the report")


def _locks(record: RunRecord, folder: Path, console: Console) -> None:
    told = locks.lines(record, folder)
    if told:
        _heading(console, "Lock dependencies")
    for line in told:
        _item(console, printable(line))


def _coverage(folder: Path, console: Console) -> None:
    told = coverage.told(folder)
    if told:
        _heading(console, "Which lines of the series ran")
    for line in told:
        _item(console, printable(line))


def _warnings(record: RunRecord, console: Console) -> None:
    lines: list[tuple[str, str, str]] = []
    for arch in record.manifest.archs:
        new, gone = view.warnings(record, arch)
        lines += [("new: ", "yellow", f"{w.file}:{w.line}: {w.message}") for w in new]
        lines += [("gone: ", "green", f"{w.file}:{w.line}: {w.message}") for w in gone]
    if lines:
        _heading(console, "Compiler warnings")
    for mark, style, text in lines[:_LISTED]:
        _item(console, (mark, style), printable(text))
    if len(lines) > _LISTED:
        _item(console, f"and {len(lines) - _LISTED} more in the report")


def _reasons(record: RunRecord, console: Console) -> None:
    reasons = view.reasons(record)
    if not reasons:
        return
    doubtful = record.verdict.outcome in (Outcome.INCONCLUSIVE, Outcome.LAB_FAULT)
    _heading(console, "Why there is no verdict" if doubtful else "To know")
    for reason in reasons[:_LISTED]:
        _item(console, "- ", printable(reason))
    if len(reasons) > _LISTED:
        _item(console, f"and {len(reasons) - _LISTED} more in the report")


def _ending(record: RunRecord, folder: Path, console: Console) -> None:
    timing = record.timing
    parts = [f"make {span(timing.make_s)}", f"guests {span(timing.guest_s)}"]
    parts += [f"set-up {span(timing.setup_s)}"] if timing.setup_s else []
    parts.append(f"the lab itself {span(timing.other_s)} ({view.own_share(record):.1%})")
    started = len(record.trials)
    machines = "1 machine" if started == 1 else f"{started} machines"
    accelerators = sorted({trial.accelerator.name for trial in record.trials})
    how = f", {' and '.join(accelerators)}" if accelerators else ""
    console.print()
    _item(
        console,
        f"{span(timing.wall_s)} in all: {', '.join(parts)}; {machines}{how}",
        indent=0,
    )
    for name, path in (
        ("report", folder / "report.html"),
        ("junit", folder / "junit.xml"),
        ("run", folder),
    ):
        # Paths are for copying: never broken over lines.
        console.print(Text(f"{name:7}{path}"), soft_wrap=True)
    code = view.EXIT[record.verdict.outcome]
    console.print(Text(f"{'exit':7}{int(code)} ({record.verdict.outcome})"))


# --- other results -----------------------------------------------------------------------------


def builds(results: Sequence[Kernel | BuildFailure], console: Console) -> None:
    """What `lab build` made, or the first error."""
    for result in results:
        head = f"{result.arch} {result.side}: "
        if isinstance(result, Kernel):
            how = (
                f"built in {span(result.build_s)}, {result.compiled} objects compiled"
                if result.make_ran
                else "from the cache"
            )
            console.print(Text.assemble((head, "bold green"), f"{result.release}, {how}"))
            console.print(Text(f"  {result.image}"), soft_wrap=True)
            if result.warnings:
                console.print(Text(f"  {len(result.warnings)} compiler warnings", style="yellow"))
        else:
            since = f" from patch {result.patch} on" if result.patch else ""
            console.print(Text.assemble((head, "bold red"), f"does not build{since}"))
            for line in result.first_error.text.splitlines()[:_DETAIL_LINES]:
                console.print(Text(f"  {printable_line(line)}"))
            console.print(Text(f"  log: {result.log}", style="dim"), soft_wrap=True)


def images(found: Sequence[RootImage], console: Console, *, as_json: bool = False) -> None:
    """Root images, one a line; `as_json` writes them as JSON instead."""
    if as_json:
        console.file.write(model.encode(tuple(found)).decode())
        return
    if not found:
        console.print("no image yet: lab image build makes one")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("arch", "name", "size", "packages", "sha256"):
        table.add_column(name, justify="right" if name in ("size", "packages") else "left")
    for image in found:
        table.add_row(
            image.arch,
            image.name,
            f"{image.size_bytes / (1 << 20):.0f} MiB",
            str(image.packages),
            image.sha256[:16],
        )
    console.print(table)
    for image in found:
        console.print(Text(str(image.path), style="dim"), soft_wrap=True)


def splats(found: Mapping[Path, Sequence[Splat]], console: Console) -> None:
    """Problem reports by file, as `file:line: title`; symbolised ones with their text."""
    for path, reports in found.items():
        if not reports:
            console.print(Text(f"{path}: no problem report"), soft_wrap=True)
        for splat in reports:
            torn = f"  (torn: {printable(splat.corrupted)})" if splat.corrupted else ""
            where = f"  {printable(splat.file)}" if splat.file else ""
            console.print(
                Text.assemble(
                    f"{path}:{splat.first_line}: ",
                    (printable(splat.title), "bold red" if splat.fatal else "bold"),
                    (f"  [{printable(splat.kind)}]{where}{torn}", "dim"),
                ),
                soft_wrap=True,
            )
            if any(frame.file for frame in splat.frames):
                for line in places.decorated(splat).split("\n"):
                    console.print(Text(f"    {printable_line(line)}".rstrip()), soft_wrap=True)
                for note in _unplaced(splat):
                    console.print(Text(f"    ({printable(note)})", style="dim"), soft_wrap=True)


def _unplaced(splat: Splat) -> list[str]:
    """Why frames have no source line, each reason once."""
    missing: dict[str, list[str]] = {}
    for frame in splat.frames:
        if frame.note:
            missing.setdefault(frame.note, []).append(frame.function)
    return [f"{', '.join(dict.fromkeys(names))}: {note}" for note, names in missing.items()]


class Checked(Protocol):
    """One thing that `lab doctor` looked at."""

    @property
    def name(self) -> str: ...
    @property
    def health(self) -> str: ...
    @property
    def found(self) -> str: ...
    @property
    def hint(self) -> str: ...


_HEALTH_STYLE = {"ok": "green", "missing": "bold red", "worse": "yellow", "unknown": "yellow"}


def checks(done: Sequence[Checked], console: Console) -> None:
    """The state of this machine, one check a line, with the way out of whatever is not well."""
    width = max((len(check.name) for check in done), default=0)
    for check in done:
        console.print(
            Text.assemble(
                (f"{check.health!s:8}", _HEALTH_STYLE.get(str(check.health), "")),
                (f"{check.name:{width}}  ", "bold"),
                printable(check.found),
            )
        )
        if check.hint and check.health != "ok":
            console.print(Text(f"{'':8}{check.hint}"), soft_wrap=True)


class Listed(Protocol):
    """One line of `lab suites`."""

    @property
    def name(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def profiles(self) -> tuple[str, ...]: ...
    @property
    def planned(self) -> bool | None: ...


def catalogue(rows: Sequence[Listed], title: str, console: Console) -> None:
    """What can be run; of cases, which a plain `--suite NAME` runs, and profiles that suffice."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    profiles = any(row.profiles for row in rows)
    heads = (title, "what", "profiles" if profiles else "needs")
    # Names are there to be copied: they are never cut.
    marks = [" (if asked for)" if row.planned is False else "" for row in rows]
    names = [f"{row.name}{mark}" for row, mark in zip(rows, marks, strict=True)]
    for number, head in enumerate(heads):
        width = max(map(len, names), default=0) if number == 0 else None
        table.add_column(head, no_wrap=number == 0, min_width=width)
    for row, name in zip(rows, names, strict=True):
        table.add_row(name, row.what, ", ".join(row.profiles if profiles else row.needs))
    console.print(table)


def removed(freed: Mapping[str, int], console: Console, *, dry_run: bool) -> None:
    """What `lab clean` took away, or would."""
    for path, size in freed.items():
        console.print(Text(f"{size / (1 << 20):10.1f} MiB  {path}"), soft_wrap=True)
    total = sum(freed.values()) / (1 << 30)
    verb = "would be freed" if dry_run else "freed"
    console.print(Text(f"{total:.2f} GiB {verb}", style="bold"))
