"""The folder of a run goes in; a `Request` that repeats it, and what has changed since, come out.

The series is the text that the run kept, the kernel the commit that it named, the configuration,
seed, suites and cases the ones in its manifest. What cannot be had again as it was - tools, the
host, the lab itself - is told.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from lab import intake, model, source
from lab.archive.compare import Condition, conditions_of
from lab.campaign import prospect
from lab.config import Config, Paths
from lab.model import Emit, LabFault, Manifest, RunRecord, Source, UserError
from lab.store import Cache
from lab.subject import Request

_DEBIAN_VERSION = re.compile(r"\blinux-source-\S+ ([^\s,]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What would repeat a run."""

    run: str
    folder: Path
    request: Request
    changed: tuple[Condition, ...]  # first: then, second: now


def prepare(
    folder: Path,
    *,
    paths: Paths,
    command: tuple[str, ...],
    emit: Emit,
    accel: str | None = None,
    parallel: int | None = None,
    jobs: int | None = None,
) -> Replay:
    """Read the run in `folder` and plan it again; nothing is built.

    `accel`, `parallel` and `jobs` are for this machine; without `accel` it is what the run had.
    Raises `UserError` for what is missing, each with its way out.
    """
    manifest = _manifest(folder)
    config = _config(manifest, folder)
    cache = Cache(root=paths.cache_dir)
    machine = config.machine
    chosen = accel or _accelerator(folder)
    if chosen is not None:
        machine = msgspec.structs.replace(machine, accel=chosen)
    if parallel is not None:
        machine = msgspec.structs.replace(machine, parallel=parallel)
    build = msgspec.structs.replace(
        config.build,
        jobs=config.build.jobs if jobs is None else jobs,
        fragments=tuple(_fragments(config.build.fragments, manifest, folder)),
    )
    repeated = intake.take(str(folder / "series"), repository=None, cache=cache, emit=emit)
    if repeated.digest != manifest.series_digest:
        raise UserError(
            f"{folder / 'series'} is not the series that {manifest.run} tested any more",
            hint=f"lab run --patch {manifest.series_origin} tests what it is today",
        )
    request = Request(
        patch=manifest.series_origin,
        config=msgspec.structs.replace(config, paths=paths, machine=machine, build=build),
        command=command,
        each_patch=manifest.each_patch,
        coverage=manifest.coverage,
        series=replace(repeated, origin=manifest.series_origin),
        source=_source(manifest.source, cache, emit),
        replays=manifest.run,
    )
    _, planned = prospect(request, cache, emit)
    return Replay(
        run=manifest.run, folder=folder, request=request, changed=_changed(manifest, planned)
    )


def _manifest(folder: Path) -> Manifest:
    try:
        return model.decode((folder / "manifest.json").read_bytes(), Manifest)
    except (OSError, LabFault) as error:
        raise UserError(f"{folder.name} cannot be repeated: {error}") from error


def _config(manifest: Manifest, folder: Path) -> Config:
    said = " ".join(manifest.command)
    if not manifest.config:
        raise UserError(
            f"{folder.name} did not keep its configuration: lab {manifest.lab_version} made it",
            hint=f"it was started by: {said}",
        )
    try:
        return msgspec.json.decode(manifest.config, type=Config)
    except msgspec.MsgspecError as error:
        raise UserError(
            f"{folder.name} has a configuration of another lab ({manifest.lab_version}): {error}",
            hint=f"it was started by: {said}",
        ) from error


def _accelerator(folder: Path) -> str | None:
    """The one that all of its machines had; None: several, none, or it has not finished."""
    with contextlib.suppress(OSError, LabFault):
        record = model.decode((folder / "record.json").read_bytes(), RunRecord)
        names = {trial.accelerator.name for trial in record.trials}
        return names.pop() if len(names) == 1 else None
    return None


def _fragments(names: tuple[str, ...], manifest: Manifest, folder: Path) -> Iterator[str]:
    """The user's own fragments: where they were if they are as they were, else the run's copies."""
    for number, name in enumerate(names, 1):
        wanted = manifest.fragments.get(name)
        kept = folder / "fragments" / f"{number:02}-{Path(name).name}"
        for path in (Path(name).expanduser(), kept):
            with contextlib.suppress(OSError):
                if hashlib.sha256(path.read_bytes()).hexdigest() == wanted:
                    yield name if path != kept else str(kept)
                    break
        else:
            raise UserError(f"the fragment {name} is not what it was, and no copy was kept")


def _source(kept: Source, cache: Cache, emit: Emit) -> Source:
    """The same tree again: in the lab's repository, or from where it came."""
    if kept.git_dir.is_dir():
        there = source.git(kept.git_dir, "cat-file", "-e", f"{kept.commit}^{{tree}}", check=False)
        if there.status == 0:
            return kept
    found: Source | None = None
    for name in _names(kept):
        with contextlib.suppress(UserError):
            found = source.open_source(name, cache=cache, emit=emit)
            if found.tree == kept.tree:
                return replace(found, name=kept.name)
    then = f"{kept.version}, commit {kept.commit[:12]} ({kept.provenance})"
    now = f"; {kept.name} is now {found.version}, commit {found.commit[:12]}" if found else ""
    raise UserError(
        f"the kernel source {kept.name} is not here any more as it was: {then}{now}",
        hint="lab run --kernel TREE tests the series on another one",
    )


def _names(kept: Source) -> Iterator[str]:
    """Under which names that source may be had."""
    version = _DEBIAN_VERSION.search(kept.provenance)
    if kept.name.startswith("debian:") and version and "=" not in kept.name:
        yield f"{kept.name}={version[1]}"
    if not kept.name.startswith("debian:") and "@" in kept.name:
        yield f"{kept.name.rpartition('@')[0]}@{kept.commit}"
    elif Path(kept.name).expanduser().is_dir():
        yield f"{kept.name}@{kept.commit}"
    yield kept.name


def _changed(then: Manifest, now: Manifest) -> tuple[Condition, ...]:
    before, after = conditions_of(then), conditions_of(now)
    found = [
        Condition(what=what, first=before.get(what, ""), second=after.get(what, ""))
        for what in dict.fromkeys((*before, *after))
        if before.get(what, "") != after.get(what, "")
    ]
    gone = [case for case in then.cases if case not in now.cases]
    new = [case for case in now.cases if case not in then.cases]
    if gone or new:
        found.append(
            Condition(
                what="cases",
                first=f"{len(then.cases)}, of these not now: {', '.join(gone) or 'none'}",
                second=f"{len(now.cases)}, of these not then: {', '.join(new) or 'none'}",
            )
        )
    return tuple(found)
