"""Answers of the archive go in, what a terminal shows of them comes out.

What guests and compilers wrote is printed as text: never as markup, and without control characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from rich.console import Console
from rich.text import Text

from lab.archive.compare import Change, Difference, RunComparison, Speed, drift
from lab.archive.drill import CaseView, RunView, SplatView, TrialView, View
from lab.archive.listing import Entry, RunState
from lab.archive.replay import Replay
from lab.archive.trend import Trend
from lab.model import CaseState, Comparison, MachineEnd, Outcome, Side, Tally
from lab.prose import printable, printable_line, span
from lab.report import view
from lab.report.layout import Cell, grid, heading, item
from lab.verdict.past import told
from lab.verdict.wording import listed

OUTCOME_STYLE = {
    Outcome.CLEAN: "green",
    Outcome.REGRESSED: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.LAB_FAULT: "magenta",
}
_STATE_STYLE = {
    CaseState.PASSED: "green",
    CaseState.SKIPPED: "dim",
    CaseState.MISSING: "yellow",
    CaseState.UNCOVERED: "yellow",
} | dict.fromkeys(view.FAILING, "red")
_COMPARISON_STYLE = {
    Comparison.REGRESSED: "red",
    Comparison.SAME_PASS: "green",
    Comparison.FIXED: "green",
}
_CHANGE_STYLE = {
    Change.WORSE: "bold red",
    Change.BETTER: "green",
    Change.PERHAPS_WORSE: "yellow",
    Change.UNKNOWN: "yellow",
}
_SHOWN_SPEEDS = 8
_NOTABLE = 1.10  # a median that changed by less is not shown
_HASH = 12  # characters of a digest


def _line(console: Console, *parts: Cell) -> None:
    """One line that is never broken: names and paths are for copying."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def _cut(text: str, width: int) -> str:
    flat = printable(text)
    return flat if len(flat) <= width else f"{flat[: width - 1]}…"


# --- lab runs ----------------------------------------------------------------------------------


def listing(entries: Sequence[Entry], console: Console) -> None:
    """One run a line, and its sentence below."""
    if not entries:
        _line(console, "no run yet: lab run --patch SERIES makes one")
        return
    for entry in entries:
        row = entry.row
        if row is None or entry.state is not RunState.FINISHED:
            state = (str(entry.state), "yellow")
            _line(console, (entry.name, "bold"), "  ", state, f"  {printable(entry.note)}")
        else:
            style = OUTCOME_STYLE[row.outcome]
            about = f"  {row.version}  {', '.join(row.archs)}  {span(row.wall_s)}"
            _line(console, (entry.name, "bold"), "  ", (str(row.outcome), style), about)
        if row is not None:
            said = row.sentence.removeprefix(f"{row.title}: ")
            said = said.removeprefix(f"{str(row.outcome).replace('-', ' ')}: ")
            _line(console, "  ", (_cut(said, max(40, console.width - 2)), "dim"))


# --- lab show ----------------------------------------------------------------------------------


def show(found: View, console: Console) -> None:
    match found:
        case RunView():
            _run(found, console)
        case CaseView():
            _case(found, console)
        case TrialView():
            _trial(found, console)
        case SplatView():
            _splat(found, console)
        case _ as unreachable:
            assert_never(unreachable)


def _counted(states: dict[CaseState, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "none"


def _run(found: RunView, console: Console) -> None:
    item(console, (found.run, "bold"), indent=0)
    style = OUTCOME_STYLE[found.outcome] if found.outcome else "yellow"
    item(console, (printable(found.sentence), style), indent=0)
    if found.cases:
        heading(console, "Cases")
        rows: list[list[Cell]] = [["", "case", "arch", "base", "patched"]]
        for case in view.by_urgency(found.cases):
            rows.append(
                [
                    (str(case.comparison), _COMPARISON_STYLE.get(case.comparison, "yellow")),
                    printable(case.name),
                    case.arch,
                    view.counts(case.base),
                    view.counts(case.patched),
                ]
            )
        grid(console, rows, 2)
    if found.splats:
        heading(console, "Splats")
        rows = [["", "fingerprint", "base", "patched", "title"]]
        for splat in found.splats:
            rows.append(
                [
                    (str(splat.comparison), _COMPARISON_STYLE.get(splat.comparison, "yellow")),
                    splat.fingerprint or "torn",
                    f"{splat.base} of {splat.base_trials}",
                    f"{splat.patched} of {splat.patched_trials}",
                    printable(splat.title),
                ]
            )
        grid(console, rows, 2)
    heading(console, "Machines")
    rows = [["trial", "repeat", "end", "boot", "cases", "splats"]]
    for trial in found.trials:
        well = trial.end is MachineEnd.POWERED_OFF
        boot = "-" if trial.boot_s is None else f"{trial.boot_s:.1f} s"
        rows.append(
            [
                trial.id,
                str(trial.repeat),
                (str(trial.end), "" if well else "red"),
                f"{boot} restored" if trial.restored else boot,
                _counted(trial.states),
                (str(trial.splats), "red" if trial.splats else ""),
            ]
        )
    grid(console, rows, 2)
    console.print()
    _line(console, "consoles  ", str(found.folder / "trials"), "/TRIAL/console.log")
    _line(console, "more      ", f"lab show {found.run} CASE | TRIAL | FINGERPRINT")


def _case(found: CaseView, console: Console) -> None:
    item(console, (printable(found.name), "bold"), f"  in {found.run}", indent=0)
    for verdict in found.verdicts:
        style = _COMPARISON_STYLE.get(verdict.comparison, "yellow")
        p = "" if verdict.p_value is None else f", p = {verdict.p_value:.2g}"
        item(console, f"{verdict.arch}: ", (str(verdict.comparison), style), p)
        item(
            console,
            f"base: {view.counts(verdict.base)}; patched: {view.counts(verdict.patched)}",
            indent=4,
        )
        if verdict.reason:
            item(console, printable(verdict.reason), indent=4)
        elif verdict.past is not None:
            item(console, told(verdict.past).removeprefix("; "), indent=4)
    console.print()
    rows: list[list[Cell]] = [["trial", "repeat", "state", "took"]]
    for answer in found.answers:
        rows.append(
            [
                answer.trial,
                str(answer.repeat),
                (str(answer.state), _STATE_STYLE[answer.state]),
                span(answer.duration_s),
            ]
        )
    grid(console, rows, 2)
    for answer in found.answers:
        if answer.state is CaseState.PASSED and not answer.splats:
            continue
        console.print()
        _line(console, (answer.trial, "bold"), f"  {answer.state}")
        if answer.message:
            item(console, printable(answer.message))
        for title in answer.splats:
            item(console, ("splat: ", "red"), printable(title))
        for path in (answer.log, answer.console):
            if path is not None:
                _line(console, "  ", str(path))


def _trial(found: TrialView, console: Console) -> None:
    trial, cell = found.trial, found.trial.cell
    well = trial.end is MachineEnd.POWERED_OFF
    end: Cell = (str(trial.end), "green" if well else "red")
    boot = "never booted" if trial.boot_s is None else f"boot {trial.boot_s:.1f} s"
    item(console, (trial.id, "bold"), f"  in {found.run}", indent=0)
    how = "restored from a snapshot" if trial.restored else boot
    item(console, "ended: ", end, f"; {how}; {span(trial.wall_s)} in all", indent=0)
    about = (
        f"{cell.arch} {cell.side}, profile {cell.profile}, {trial.accelerator.name} "
        f"-cpu {trial.accelerator.cpu}, {cell.cpus} cpus, {cell.memory_bytes >> 20} MiB, "
        f"seed {cell.seed}, kernel {cell.kernel_key[:_HASH]}"
    )
    item(console, (about, "dim"), indent=0)
    if trial.note:
        item(console, printable(trial.note), indent=0)
    console.print()
    rows: list[list[Cell]] = [["state", "case", "took", "message"]]
    heard = {result.name for result in trial.results}
    for result in trial.results:
        rows.append(
            [
                (str(result.state), _STATE_STYLE[result.state]),
                printable(result.name),
                span(result.duration_s),
                _cut(result.message, 60),
            ]
        )
    for name in cell.cases:
        if name not in heard:
            rows.append([("missing", "yellow"), printable(name), "-", ""])
    grid(console, rows, 2)
    for splat in view.splats_of(trial):
        console.print()
        _line(console, (printable(splat.title), "bold red"), f"  {splat.fingerprint}")
        _line(console, "  ", f"{found.console}:{splat.first_line}")
    console.print()
    for name, path in (
        ("console", found.console),
        ("qemu", found.qemu_log),
        ("dump", found.dump),
        ("folder", found.folder),
    ):
        if path is not None:
            _line(console, f"{name:9}", str(path))


def _splat(found: SplatView, console: Console) -> None:
    splat = found.splat
    item(console, (printable(splat.title), "bold red"), f"  in {found.run}", indent=0)
    place = f", {printable(splat.file)}" if splat.file else ""
    item(console, (f"{splat.kind}, fingerprint {splat.fingerprint or 'torn'}{place}", "dim"))
    for verdict in found.verdicts:
        counts = (
            f"in {verdict.patched} of {verdict.patched_trials} runs with the series, "
            f"{verdict.base} of {verdict.base_trials} without"
        )
        item(console, f"{verdict.arch}: {verdict.comparison}; {counts}")
    heading(console, "Seen")
    for _, case, where in found.seen:
        _line(console, "  ", printable(case or "outside of any case"))
        _line(console, "      ", where)
    heading(console, "Text")
    for line in splat.text.splitlines():
        _line(console, "  ", printable_line(line).rstrip())


# --- lab history -------------------------------------------------------------------------------


def trends(found: Sequence[Trend], console: Console) -> None:
    """A table for each ground: runs, newest first, then the rate of each base."""
    for number, trend in enumerate(found):
        if number:
            console.print()
        title = f"  {printable(trend.title)}" if trend.title else ""
        item(console, (printable(trend.name), "bold"), title, indent=0)
        item(console, (printable(str(trend.ground)), "dim"), indent=0)
        rows: list[list[Cell]] = [["run", "base", "without", "with the series", ""]]
        for entry in trend.entries:
            compared = entry.comparison
            style = _COMPARISON_STYLE.get(compared, "yellow") if compared else "dim"
            rows.append(
                [
                    entry.run,
                    entry.version,
                    _rate(entry.base, trend),
                    _rate(entry.patched, trend),
                    (str(compared or "-"), style),
                ]
            )
        grid(console, rows, 2)
        for base in trend.bases:
            verb = "seen in" if trend.title else "fails in"
            item(
                console,
                f"base {base.version} ({base.kernel_key[:_HASH]}): {verb} {base.failed} of "
                f"{base.decided} in {base.runs} run{'' if base.runs == 1 else 's'}, "
                f"so at most {base.at_most:.0%} with 95% confidence",
            )


def _rate(tally: Tally, trend: Trend) -> str:
    if tally == Tally():
        return "-"
    if trend.title:
        return f"seen in {tally.failed} of {tally.decided}"
    return view.counts(tally)


# --- lab compare -------------------------------------------------------------------------------


def comparison(found: RunComparison, console: Console) -> None:
    """What is worse first; what is the same as a number."""
    for mark, name, outcome in zip(
        ("first ", "second"), (found.first, found.second), found.outcomes, strict=True
    ):
        style = OUTCOME_STYLE[outcome]
        _line(console, f"{mark}  ", (name, "bold"), "  ", (str(outcome), style))
    if found.conditions:
        heading(console, "Not the same in both runs")
        for one in found.conditions:
            item(console, f"{printable(one.what)}: {_short(one.first)} -> {_short(one.second)}")
    for title, mark, findings in (
        ("New findings", "red", found.findings_new),
        ("Findings that are gone", "green", found.findings_gone),
    ):
        if findings:
            heading(console, title)
        for finding in findings:
            item(
                console,
                (f"{finding.kind}: ", mark),
                (printable(finding.title), "bold"),
                f"  [{finding.arch}]",
            )
    _differences(found, console)
    _speeds(found.speeds, console)
    for line in found.not_compared:
        item(console, ("not compared: ", "yellow"), printable(line), indent=0)


def _short(text: str) -> str:
    """Digests cut, so that a line can be read; JSON has them whole."""
    words = (word[:_HASH] if len(word) >= 32 and word.isalnum() else word for word in text.split())
    return printable(" ".join(words)) or "(none)"


def _differences(found: RunComparison, console: Console) -> None:
    order = list(Change)
    alone = (Change.ONLY_FIRST, Change.ONLY_SECOND)
    both = [one for one in found.differences if one.change not in alone]
    heading(console, f"Cases and splats of both: {len(both)} differ, {found.same} do not")
    for change in alone:
        names = dict.fromkeys(one.name for one in found.differences if one.change is change)
        if names:
            text = f"{change}: {listed([printable(name) for name in names])}"
            item(console, (text, "dim"))
    if not both:
        return
    rows: list[list[Cell]] = [["", "", "arch, side", "first", "second", "p"]]
    for one in sorted(both, key=lambda one: order.index(one.change)):
        rows.append(
            [
                (str(one.change), _CHANGE_STYLE.get(one.change, "dim")),
                _cut(one.title or one.name, 48),
                f"{one.ground.arch} {one.side}",
                _told(one, one.first),
                _told(one, one.second),
                "-" if one.p_value is None else f"{one.p_value:.2g}",
            ]
        )
    grid(console, rows, 2)


def _told(one: Difference, tally: Tally) -> str:
    if tally == Tally():
        return "-"
    return f"in {tally.failed} of {tally.decided}" if one.kind == "splat" else view.counts(tally)


def _speeds(speeds: Sequence[Speed], console: Console) -> None:
    """The numbers that changed most, and how much the base itself did: that was the machine."""
    notable = [one for one in speeds if one.side is Side.PATCHED and _changed(one)]
    if not notable:
        return
    heading(console, "Numbers with the series (medians, changed by 10% or more)")
    rows: list[list[Cell]] = [["case", "number", "first", "second", "change"]]
    for one in notable[:_SHOWN_SPEEDS]:
        change = f"{one.second / one.first - 1:+.0%}" if one.first else "-"
        numbers = [f"{value:.4g}" for value in (one.first, one.second)]
        rows.append([printable(one.name), printable(one.metric), *numbers, change])
    grid(console, rows, 2)
    if len(notable) > _SHOWN_SPEEDS:
        item(console, f"and {len(notable) - _SHOWN_SPEEDS} more with --json")
    moved = drift(tuple(speeds))
    if moved is not None:
        item(console, (f"the base's own numbers changed by {moved - 1:+.0%} (median)", "dim"))


def _changed(speed: Speed) -> bool:
    least = min(abs(speed.first), abs(speed.second))
    most = max(abs(speed.first), abs(speed.second))
    return most > least * _NOTABLE


# --- lab replay --------------------------------------------------------------------------------


def environment(found: Replay, console: Console) -> None:
    """What is not as it was when the run was made: then -> now."""
    if not found.changed:
        _line(console, f"{found.run}: all that it depended on is as it was")
        return
    item(console, "not as it was for ", (found.run, "bold"), indent=0)
    for one in found.changed:
        item(console, f"{printable(one.what)}: {_short(one.first)} -> {_short(one.second)}")
