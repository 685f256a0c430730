"""A run's folder and the name of one of its parts go in; counts, ends, splats and paths come out.

A run that has not finished is shown as far as its trials are whole.
"""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lab import model
from lab.archive.listing import read_record
from lab.model import (
    CaseState,
    CaseVerdict,
    Finding,
    LabFault,
    MachineEnd,
    Manifest,
    Outcome,
    RunRecord,
    Side,
    Splat,
    SplatVerdict,
    Trial,
    UserError,
)
from lab.verdict.observe import splat_key


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLine:
    """One machine of a run."""

    id: str
    arch: str
    side: Side
    repeat: int  # 1-based
    end: MachineEnd
    accelerator: str
    boot_s: float | None
    restored: bool
    wall_s: float
    states: dict[CaseState, int]
    splats: int
    console: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run on one page."""

    run: str
    folder: Path
    outcome: Outcome | None  # None: it has not finished
    sentence: str
    findings: tuple[Finding, ...]
    cases: tuple[CaseVerdict, ...]
    splats: tuple[SplatVerdict, ...]
    trials: tuple[TrialLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What one machine said of one case."""

    trial: str
    arch: str
    side: Side
    repeat: int  # 1-based
    state: CaseState
    duration_s: float
    message: str
    splats: tuple[str, ...]  # titles
    log: Path | None  # of the case; None: it kept none
    console: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseView:
    """One case of a run: the verdicts, and every answer."""

    run: str
    name: str
    verdicts: tuple[CaseVerdict, ...]  # one for each architecture
    answers: tuple[Sighting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialView:
    """One machine of a run, whole."""

    run: str
    folder: Path
    console: Path
    qemu_log: Path | None
    dump: Path | None
    trial: Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class SplatView:
    """One splat of a run: where it was seen, and its longest text."""

    run: str
    splat: Splat
    verdicts: tuple[SplatVerdict, ...]
    seen: tuple[tuple[str, str, str], ...]  # trial, case ("" outside of any), console:line


View = RunView | CaseView | TrialView | SplatView


def show(folder: Path, what: str | None) -> View:
    """The whole run, or one case, trial or splat (by fingerprint) of it.

    A trial may be named by its beginning. Raises `UserError` that names what is near.
    """
    record, trials = _read(folder)
    if what is None:
        return _run(folder, record, trials)
    cases = {r.name for t in trials for r in t.results} | {c for t in trials for c in t.cell.cases}
    cases |= {case.name for case in record.verdict.cases} if record else set()
    if what in cases:
        return _case(folder, what, record, trials)
    fitting = [trial for trial in trials if trial.id.startswith(what)]
    exact = [trial for trial in fitting if trial.id == what]
    if len(exact or fitting) == 1:
        return _trial(folder, (exact or fitting)[0])
    if fitting:
        names = ", ".join(trial.id for trial in fitting[:6])
        raise UserError(f"{what} fits {len(fitting)} trials of {folder.name}", hint=names)
    sightings = [
        (trial, case, splat)
        for trial in trials
        for case, splats in (("", trial.boot_splats), *((r.name, r.splats) for r in trial.results))
        for splat in splats
        if what in (splat_key(splat), splat.title)
    ]
    if sightings:
        return _splat(folder, record, sightings)
    known = [*cases, *(trial.id for trial in trials)]
    within = [name for name in known if what in name]
    near = (within or difflib.get_close_matches(what, known) or sorted(known))[:4]
    raise UserError(
        f"{folder.name} has no case, trial or splat {what}", hint=f"it has: {', '.join(near)}"
    )


def _read(folder: Path) -> tuple[RunRecord | None, tuple[Trial, ...]]:
    if (folder / "record.json").exists():
        record = read_record(folder)
        return record, record.trials
    trials = []
    for path in sorted(folder.glob("trials/*/trial.json")):
        with contextlib.suppress(LabFault, OSError):
            trials.append(model.decode(path.read_bytes(), Trial))
    return None, tuple(trials)


def _console(folder: Path, trial: Trial) -> Path:
    return folder / "trials" / trial.id / trial.console


def _run(folder: Path, record: RunRecord | None, trials: tuple[Trial, ...]) -> RunView:
    verdict = record.verdict if record else None
    name = folder.name
    if record is None:
        with contextlib.suppress(LabFault, OSError):
            name = model.decode((folder / "manifest.json").read_bytes(), Manifest).run
    return RunView(
        run=record.manifest.run if record else name,
        folder=folder,
        outcome=verdict.outcome if verdict else None,
        sentence=verdict.sentence if verdict else "not finished: nothing has been judged",
        findings=verdict.findings if verdict else (),
        cases=verdict.cases if verdict else (),
        splats=verdict.splats if verdict else (),
        trials=tuple(_line(folder, trial) for trial in trials),
    )


def _line(folder: Path, trial: Trial) -> TrialLine:
    said = {result.name: result.state for result in trial.results}
    states = Counter(said.get(case, CaseState.MISSING) for case in trial.cell.cases)
    return TrialLine(
        id=trial.id,
        arch=trial.cell.arch,
        side=trial.cell.side,
        repeat=trial.cell.repeat + 1,
        end=trial.end,
        accelerator=trial.accelerator.name,
        boot_s=trial.boot_s,
        restored=trial.restored,
        wall_s=trial.wall_s,
        states={state: states[state] for state in CaseState if states[state]},
        splats=len(trial.boot_splats) + sum(len(result.splats) for result in trial.results),
        console=_console(folder, trial),
    )


def _case(folder: Path, name: str, record: RunRecord | None, trials: tuple[Trial, ...]) -> CaseView:
    answers = []
    for trial in trials:
        said = next((result for result in trial.results if result.name == name), None)
        if said is None and name not in trial.cell.cases:
            continue
        log = folder / "trials" / trial.id / said.log if said and said.log else None
        answers.append(
            Sighting(
                trial=trial.id,
                arch=trial.cell.arch,
                side=trial.cell.side,
                repeat=trial.cell.repeat + 1,
                state=said.state if said else CaseState.MISSING,
                duration_s=said.duration_s if said else 0.0,
                message=said.message if said else f"the machine ended before: {trial.end}",
                splats=tuple(splat.title for splat in said.splats) if said else (),
                log=log if log and log.is_file() else None,
                console=_console(folder, trial),
            )
        )
    verdicts = record.verdict.cases if record else ()
    return CaseView(
        run=folder.name,
        name=name,
        verdicts=tuple(verdict for verdict in verdicts if verdict.name == name),
        answers=tuple(answers),
    )


def _trial(folder: Path, trial: Trial) -> TrialView:
    here = folder / "trials" / trial.id
    dump = here / trial.dump if trial.dump else None
    qemu_log = here / "qemu.log"
    return TrialView(
        run=folder.name,
        folder=here,
        console=_console(folder, trial),
        qemu_log=qemu_log if qemu_log.is_file() else None,
        dump=dump if dump and dump.is_file() else None,
        trial=trial,
    )


def _splat(
    folder: Path, record: RunRecord | None, sightings: list[tuple[Trial, str, Splat]]
) -> SplatView:
    longest = max((splat for _, _, splat in sightings), key=lambda splat: len(splat.text))
    verdicts = record.verdict.splats if record else ()
    return SplatView(
        run=folder.name,
        splat=longest,
        verdicts=tuple(
            verdict
            for verdict in verdicts
            if (verdict.fingerprint, verdict.title) == (longest.fingerprint, longest.title)
        ),
        seen=tuple(
            (trial.id, case, f"{_console(folder, trial)}:{splat.first_line}")
            for trial, case, splat in sightings
        ),
    )
