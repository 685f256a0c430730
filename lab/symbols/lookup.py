"""Splats, a vmlinux and its modules in; the splats with the source lines of their frames out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lab import host
from lab.model import CodeFrame, LabFault, Splat, UserError, decode, encode
from lab.splat import places
from lab.splat.reading import LogSplats
from lab.symbols.query import Answer, Query, Request, Response

_LIMIT_S = 300.0


def symbolise(
    splats: Sequence[Splat], vmlinux: Path, *, modules: Path | None = None
) -> tuple[Splat, ...]:
    """The splats with `frames`, and with a file to blame where the log named none.

    `modules` is a folder that is searched for .ko files. A frame whose function is not in the
    kernel, or has another size there, has no place and a note. Raises `UserError` if the kernel
    cannot be read, `LabFault` if reading it does not end.
    """
    named = [places.named(splat.text) for splat in splats]
    queries = {_query(frame): None for found in named for frame in found}
    if not queries:
        return tuple(splats)
    wanted = {query.module for query in queries if query.module}
    request = Request(
        vmlinux=str(vmlinux.absolute()),
        modules=_files(modules, wanted) if modules is not None and wanted else {},
        queries=tuple(queries),
    )
    answers = dict(zip(queries, _ask(request), strict=True))
    return tuple(
        places.with_frames(
            splat, tuple(placed for frame in found for placed in _placed(frame, answers))
        )
        for splat, found in zip(splats, named, strict=True)
    )


def _query(frame: CodeFrame) -> Query:
    return Query(
        function=frame.function,
        offset=frame.offset,
        size=frame.size,
        module=frame.module,
        exact=places.exact(frame),
    )


def _ask(request: Request) -> tuple[Answer, ...]:
    done = host.run(
        [sys.executable, "-m", "lab.symbols"],
        stdin=encode(request),
        timeout_s=_LIMIT_S,
        check=False,
        leash=True,
    )
    if done.status != 0:
        if "No module named 'drgn'" in done.complaint:
            raise UserError("drgn is not installed", hint="pip install drgn")
        raise LabFault(
            f"reading the debug information of {request.vmlinux} failed: {done.complaint}"
        )
    response = decode(done.stdout, Response)
    if response.complaint:
        raise UserError(
            f"{request.vmlinux}: {response.complaint}",
            hint="a vmlinux with CONFIG_DEBUG_INFO, of the kernel that printed the log",
        )
    return response.answers


def _files(folder: Path, wanted: set[str]) -> dict[str, str]:
    """The module files below a folder by the name that logs have: dashes are underscores there."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", hint="--modules DIR, with .ko files in it")
    found: dict[str, str] = {}
    for path in sorted((*folder.rglob("*.ko"), *folder.rglob("*.ko.debug"))):
        name = path.name.partition(".ko")[0].replace("-", "_")
        if name in wanted:
            # Separate debug information is the better one: the module was stripped for it.
            found[name] = str(path)
    return found


def _placed(frame: CodeFrame, answers: dict[Query, Answer]) -> Iterator[CodeFrame]:
    answer = answers[_query(frame)]
    if not answer.lines:
        yield replace(frame, note=answer.note)
        return
    *inlined, outer = answer.lines
    for place in inlined:
        yield replace(
            frame,
            function=place.function,
            offset=0,
            size=0,
            file=place.file,
            line=place.line,
            inlined=True,
        )
    yield replace(frame, file=outer.file, line=outer.line)


def symbolise_logs(
    logs: Sequence[LogSplats], vmlinux: Path, *, modules: Path | None = None
) -> tuple[LogSplats, ...]:
    """As `symbolise`, for the splats of several logs at once."""
    placed = iter(
        symbolise([splat for log in logs for splat in log.splats], vmlinux, modules=modules)
    )
    return tuple(replace(log, splats=tuple(next(placed) for _ in log.splats)) for log in logs)


def doubts(logs: Sequence[LogSplats]) -> Iterator[str]:
    """Logs that another kernel seems to have printed: many functions have other sizes in it."""
    for log in logs:
        frames = [frame for splat in log.splats for frame in splat.frames if not frame.module]
        other = sum(1 for frame in frames if frame.note)
        if other * 4 > len(frames):
            yield (
                f"{log.path}: {other} of {len(frames)} frames do not fit this vmlinux; "
                "another kernel seems to have printed the log"
            )
