"""A `RunRecord` goes in, its rows of the ledger come out. Pure.

Repeats are folded as the judge folds them: several machines of one repeat are one answer. Trials
of different grounds are never folded together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from lab.ledger.rows import CaseRow, Extract, Ground, MetricRow, RunRow, SplatRow, Stand
from lab.model import (
    CaseState,
    CaseVerdict,
    Manifest,
    RunRecord,
    Side,
    Splat,
    SplatVerdict,
    Tally,
    Trial,
    case_of,
)
from lab.verdict.observe import BOOT, Observed, observe, splat_key, tally


def extract(record: RunRecord) -> Extract:
    """The rows of that run, in a stable order."""
    parts = [part for trials in _by_ground(record).values() for part in _parts(record, trials)]
    return Extract(
        run=_run(record),
        cases=tuple(row for part in parts for row in _cases(part)),
        splats=tuple(row for part in parts for row in _splats(part)),
        metrics=tuple(row for part in parts for row in _metrics(part)),
    )


def ground_of(trial: Trial, manifest: Manifest) -> Ground:
    """The ground on which that trial stands."""
    cell = trial.cell
    shape = [f"{cell.cpus} cpus", f"{cell.memory_bytes >> 20} MiB", _stress(manifest)]
    shape += [f"{name}={value}" for name, value in sorted(cell.settings.items())]
    return Ground(
        arch=cell.arch,
        profile=cell.profile,
        accelerator=trial.accelerator.name,
        cpu=trial.accelerator.cpu,
        setup=", ".join(part for part in shape if part),
    )


def _stress(manifest: Manifest) -> str:
    """How long and with how many threads stress programs ran; "" if the manifest does not say."""
    table = json.loads(manifest.config)["faultstress"] if manifest.config else None
    return f"stress {table['duration_s']:g} s x {table['threads']}" if table else ""


def _by_ground(record: RunRecord) -> dict[Ground, list[Trial]]:
    found: dict[Ground, list[Trial]] = defaultdict(list)
    for trial in record.trials:
        found[ground_of(trial, record.manifest)].append(trial)
    return dict(sorted(found.items()))


def _run(record: RunRecord) -> RunRow:
    manifest, source = record.manifest, record.manifest.source
    return RunRow(
        name=manifest.run,
        created=manifest.created,
        finished=record.finished,
        outcome=record.verdict.outcome,
        sentence=record.verdict.sentence,
        title=manifest.series_title,
        series_digest=manifest.series_digest,
        kernel=source.name,
        version=source.version,
        commit=source.commit,
        tree=source.tree,
        profile=manifest.profile,
        archs=manifest.archs,
        plan_digest=manifest.plan_digest,
        lab_version=manifest.lab_version,
        findings=len(record.verdict.findings),
        trials=len(record.trials),
        wall_s=record.timing.wall_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One side of one ground."""

    record: RunRecord
    ground: Ground
    side: Side
    kernel_key: str
    names: tuple[str, ...]  # of cases and their parts
    trials: tuple[Trial, ...]  # of this side
    observed: Observed  # of both sides

    @property
    def stand(self) -> Stand:
        manifest = self.record.manifest
        return Stand(
            run=manifest.run,
            created=manifest.created,
            ground=self.ground,
            side=self.side,
            kernel_key=self.kernel_key,
            version=manifest.source.version,
        )


def _parts(record: RunRecord, trials: list[Trial]) -> Iterator[_Part]:
    ground = ground_of(trials[0], record.manifest)
    told = (result.name for trial in trials for result in trial.results)
    names = tuple(
        dict.fromkeys(
            (
                *(case for trial in trials for case in trial.cell.cases),
                *(name for name in told if case_of(name) != name),
            )
        )
    )
    observed = observe(trials, arch=ground.arch, profile=ground.profile, planned=names)
    for side in Side:
        mine = tuple(trial for trial in trials if trial.cell.side is side)
        if mine:
            yield _Part(
                record=record,
                ground=ground,
                side=side,
                kernel_key=mine[0].cell.kernel_key,
                names=names,
                trials=mine,
                observed=observed,
            )


def _cases(part: _Part) -> Iterator[CaseRow]:
    verdicts: dict[str, CaseVerdict] = {
        case.name: case
        for case in part.record.verdict.cases
        if (case.arch, case.profile) == (part.ground.arch, part.ground.profile)
    }
    took: dict[str, list[float]] = defaultdict(list)
    for trial in part.trials:
        for result in trial.results:
            if result.state is CaseState.PASSED:
                took[result.name].append(result.duration_s)
    for name in (BOOT, *part.names):
        answers = part.observed.of(part.side, name)
        if not answers:
            continue
        counts = tally(answers, repeats=0)
        verdict = verdicts.get(name)
        if verdict and not _counted(verdict, part.side, counts):
            verdict = None
        yield CaseRow(
            **part.stand,
            name=name,
            tally=counts,
            duration_s=median(took[name]) if took[name] else 0.0,
            comparison=verdict.comparison if verdict else None,
            reason=verdict.reason if verdict else "",
        )


def _counted(verdict: CaseVerdict, side: Side, counts: Tally) -> bool:
    """Whether these are what the judge counted: of two accelerators in a run it took only one."""
    judged = verdict.base if side is Side.BASE else verdict.patched
    return (judged.passed, judged.failed, judged.skipped) == (
        counts.passed,
        counts.failed,
        counts.skipped,
    )


def _splats(part: _Part) -> Iterator[SplatRow]:
    verdicts: dict[tuple[str, str, str], SplatVerdict] = {
        (splat.fingerprint, splat.kind, splat.title): splat
        for splat in part.record.verdict.splats
        if splat.arch == part.ground.arch
    }

    def row(splat: Splat, *, seen: int, exposed: int, allowed: bool) -> SplatRow:
        verdict = verdicts.get((splat.fingerprint, splat.kind, splat.title))
        return SplatRow(
            **part.stand,
            key=splat_key(splat),
            kind=splat.kind,
            title=splat.title,
            seen=seen,
            exposed=exposed,
            allowed=allowed,
            comparison=verdict.comparison if verdict and not allowed else None,
        )

    for key, known in part.observed.splats.items():
        seen, exposed = len(known.seen[part.side]), len(known.exposed[part.side])
        if seen or exposed:
            whole = row(known.splat, seen=seen, exposed=exposed, allowed=False)
            assert whole.key == key
            yield whole
    excused: dict[str, tuple[Splat, set[int]]] = {}
    for trial in part.trials:
        for splat in (*trial.boot_splats, *(s for r in trial.results for s in r.splats)):
            if splat.allowed and splat_key(splat) not in part.observed.splats:
                excused.setdefault(splat_key(splat), (splat, set()))[1].add(trial.cell.repeat)
    repeats = len({trial.cell.repeat for trial in part.trials})
    for splat, where in excused.values():
        yield row(splat, seen=len(where), exposed=repeats, allowed=True)


def _metrics(part: _Part) -> Iterator[MetricRow]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for trial in part.trials:
        for result in trial.results:
            if result.state is CaseState.PASSED:
                for metric, value in result.metrics.items():
                    found[result.name, metric].append(value)
    for (name, metric), values in found.items():
        yield MetricRow(
            **part.stand,
            name=name,
            metric=metric,
            median=median(values),
            count=len(values),
        )
