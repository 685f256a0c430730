"""A request goes in; a bisection runs, or goes on from its log, and its record comes out.

Below the folder of runs lies one folder for each bisection: `bisect.jsonl`, the log from which it
can be replayed, `trials/`, its evidence, and `bisect.json`, the answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import lab
from lab import bisect, intake, model, subject, tree
from lab.arch import arch as arch_row
from lab.archive import listing
from lab.bisect import Bench, Header, Result, Rules, State, Step, StepKind, wording
from lab.config import Config
from lab.culprit import track as tracks
from lab.culprit.bench import KernelBench, Machines, find_cases
from lab.culprit.symptom import Symptom, of_run
from lab.culprit.track import Track
from lab.model import Emit, Event, EventKind, LabFault, RunRecord, Series, Side, UserError
from lab.selection import Selection
from lab.store import Cache, is_locked, locked, write_atomically
from lab.suites.protocol import Ground

LOG = "bisect.jsonl"
RECORD = "bisect.json"
_STEP = "bisect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `lab bisect` was asked for."""

    config: Config  # `arch` is one
    span: str | None = None  # good..bad in the history of the kernel's tree
    patch: str | None = None
    from_run: str | None = None
    fragments: str | None = None  # GOOD..BAD
    cases: tuple[str, ...] = ()
    splat: str = ""
    rules: Rules = field(default_factory=Rules)
    fresh: bool = False
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A bisection and its answer, whole."""

    header: Header
    result: Result
    sentence: str
    rows: tuple[wording.Row, ...]
    confidence: float
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunt:
    """Everything that is decided before the first build."""

    config: Config
    track: Track
    symptom: Symptom
    cases: Selection
    notes: tuple[str, ...] = field(default=())


# --- from request to hunt ----------------------------------------------------------------------


def prepare(request: Request, cache: Cache, emit: Emit) -> Hunt:
    """Series, revisions and cases. Raises `UserError` before anything is built."""
    _check(request)
    config, series, symptom, note = request.config, None, Symptom(cases=()), ""
    if request.from_run is not None:
        config, series, symptom, note = _from_run(request, cache, emit)
    elif request.patch is not None:
        series = tracks.take_series(request.patch, config, cache, emit)
    subject.check_tools(config)
    if request.cases or request.splat:
        names = request.cases or symptom.cases
        symptom, note = Symptom(cases=names, splat=request.splat), ""
    if request.fragments is not None:
        track = tracks.of_fragments(request.fragments, series, config, cache, emit)
    elif request.span is not None:
        track = tracks.of_history(request.span, config, cache, emit)
    else:
        assert series is not None  # `_check`
        track = tracks.of_series(series, config, cache, emit)
    trees = {
        side: tree.at(track.source, point.step, cache=cache, emit=emit)
        for side, point in ((Side.BASE, track.points[0]), (Side.PATCHED, track.points[-1]))
    }
    archs = tuple(arch_row(name).name for name in config.arch)
    ground = Ground(archs=archs, trees=trees, config=config, cache=cache, emit=emit)
    cases = find_cases(symptom.cases, config, ground)
    symptom = replace(symptom, cases=tuple(case.name for case in cases.cases))
    return Hunt(
        config=config, track=track, symptom=symptom, cases=cases, notes=(note,) if note else ()
    )


def _check(request: Request) -> None:
    """One thing to search, one thing to look for."""
    series = [request.patch, request.from_run]
    if request.span is not None and (request.fragments or any(series)):
        raise UserError(
            "a git range and a series or a configuration: which of them is to be searched?",
            hint="give GOOD..BAD alone, with --kernel DIR",
        )
    if all(series):
        raise UserError("--patch and --from-run: which series?", hint="give one of them")
    if request.span is None and request.fragments is None and not any(series):
        raise UserError(
            "nothing to search",
            hint="--patch SERIES, --from-run RUN, --fragments GOOD..BAD, or GOOD..BAD with "
            "--kernel DIR",
        )
    if not request.cases and not request.splat and request.from_run is None:
        raise UserError(
            "nothing to look for", hint="--case CASE, or --splat with a fingerprint or a title"
        )
    if len(request.config.arch) != 1:
        raise UserError(
            f"a bisection is for one architecture, not {', '.join(request.config.arch)}",
            hint="--arch NAME",
        )


def _from_run(request: Request, cache: Cache, emit: Emit) -> tuple[Config, Series, Symptom, str]:
    """Configuration, series and symptom of a finished run."""
    folder = listing.find(request.config.paths.runs_dir, request.from_run, finished=True)
    record = listing.read_record(folder)
    manifest = record.manifest
    if request.cases or request.splat:
        arch, symptom, note = manifest.archs[0], Symptom(cases=()), ""
    else:
        arch, symptom, note = of_run(record)
    kernel = manifest.source.name
    if not kernel.startswith("debian:") and manifest.source.provenance.startswith("git "):
        # The ref that was named may have moved since.
        kernel = f"{kernel.partition('@')[0]}@{manifest.source.commit}"
    config = msgspec.structs.replace(
        request.config, kernel=kernel, arch=(arch,), profile=manifest.profile
    )
    series = _series_of(record, folder, config, cache, emit)
    return config, series, symptom, note


def _series_of(record: RunRecord, folder: Path, config: Config, cache: Cache, emit: Emit) -> Series:
    """The series as the run took it: from its origin, or the copy that the run kept."""
    manifest = record.manifest
    with contextlib.suppress(UserError):
        series = tracks.take_series(manifest.series_origin, config, cache, emit)
        if series.digest == manifest.series_digest:
            return series
    kept = folder / "series"
    series = intake.take(str(kept), repository=None, cache=cache, emit=emit)
    if "series.toml" in manifest.fragments and not series.fragment:
        raise UserError(
            f"{manifest.series_origin} is not what {manifest.run} tested any more, and the copy in "
            "the run lacks its series.toml",
            hint="give the series with --patch",
        )
    return series


# --- the log -----------------------------------------------------------------------------------


def question(hunt: Hunt) -> str:
    """Digest of all that the answers depend on; budget and confidence are not in it."""
    digest = hashlib.sha256()
    for part in (
        hunt.track.what,
        hunt.track.source.tree,
        [(point.revision.id, point.revision.content) for point in hunt.track.points],
        hunt.symptom,
        hunt.cases.cases,
        hunt.config.arch,
        hunt.config.machine,
        hunt.config.run.seed,
        lab.__version__,
    ):
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()


def _find_log(runs: Path, wanted: str) -> Path | None:
    """The newest bisection with this question that nobody works on."""
    for path in sorted(runs.glob(f"bisect-*/{LOG}"), reverse=True):
        with contextlib.suppress(LabFault, OSError):
            header, _, _ = bisect.replay(path.read_bytes())
            if header.question == wanted and not is_locked(path.parent / "lock"):
                return path.parent
    return None


def _new_folder(runs: Path, title: str, now: datetime) -> Path:
    slug = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())[:40]
    name = f"bisect-{now:%Y%m%d-%H%M%S}-{slug or 'search'}"
    for number in range(1, 1000):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise LabFault(f"{runs} is full of {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """An open log: what it says so far, and a way to say more."""

    folder: Path
    header: Header
    state: State
    append: Callable[[Step], None]


@contextlib.contextmanager
def open_log(hunt: Hunt, request: Request, emit: Emit) -> Iterator[Log]:
    """The log of this question, taken up where it ends, or a new one. Locked."""
    runs = hunt.config.paths.runs_dir
    asked = question(hunt)
    folder = None if request.fresh else _find_log(runs, asked)
    now = datetime.now(UTC)
    if folder is None:
        folder = _new_folder(runs, hunt.track.title, now)
        header = Header(
            version=bisect.VERSION,
            created=now.isoformat(timespec="seconds"),
            lab_version=lab.__version__,
            command=request.command,
            question=asked,
            what=hunt.track.what,
            symptom=hunt.symptom.text,
            revisions=hunt.track.revisions,
        )
        write_atomically(folder / LOG, bisect.header(header))
    with locked(folder / "lock"), (folder / LOG).open("r+b") as stream:
        header, state, whole = bisect.replay(stream.read())
        stream.truncate(whole)
        stream.seek(whole)
        if state.steps:
            text = f"{folder.name} goes on: {state.runs} runs and {state.builds} builds are done"
            emit(Event(kind=EventKind.NOTE, step=_STEP, text=text))

        def append(step: Step) -> None:
            stream.write(bisect.line(step))
            stream.flush()
            os.fsync(stream.fileno())

        yield Log(folder=folder, header=header, state=state, append=append)


# --- the hunt ----------------------------------------------------------------------------------


def run(request: Request, emit: Emit) -> Record:
    """Carry it out. Raises `UserError` for what cannot be done, `LabFault` if the lab breaks."""
    cache = Cache(root=request.config.paths.cache_dir)
    cache.sweep()
    hunt = prepare(request, cache, emit)
    for note in hunt.notes:
        emit(Event(kind=EventKind.NOTE, step=_STEP, text=note))
    text = f"{hunt.symptom.text}: {len(hunt.track.points) - 1} steps of {hunt.track.title}"
    emit(Event(kind=EventKind.NOTE, step=_STEP, text=text))
    with open_log(hunt, request, emit) as log:
        machines = Machines(
            cases=hunt.cases, config=hunt.config, cache=cache, emit=emit, symptom=hunt.symptom
        )
        bench = KernelBench(
            track=hunt.track,
            symptom=hunt.symptom,
            cases=hunt.cases,
            config=hunt.config,
            cache=cache,
            folder=log.folder,
            emit=emit,
            boot=machines,
            done=runs_done(log.state),
        )
        return pursue(log, bench, request.rules, emit)


def runs_done(state: State) -> Counter[int]:
    """Runs of each revision, so that a bisection that goes on uses fresh seeds."""
    built = (StepKind.BUILT, StepKind.UNTESTABLE)
    return Counter(step.revision for step in state.steps if step.kind not in built)


def pursue(log: Log, bench: Bench, rules: Rules, emit: Emit) -> Record:
    """Search on from the log's state to the answer, which is stored beside it."""
    state = log.state

    def record(step: Step) -> None:
        nonlocal state
        log.append(step)
        state = bisect.after(state, step)
        text = wording.progress(state, rules, step)
        emit(Event(kind=EventKind.DONE, step=_STEP, text=text))

    result = bisect.search(state, bench, rules, record)
    answer = Record(
        header=log.header,
        result=result,
        sentence=wording.sentence(result, log.header.revisions),
        rows=wording.rows(state),
        confidence=rules.confidence,
        folder=log.folder,
    )
    write_atomically(log.folder / RECORD, model.encode(answer))
    return answer
