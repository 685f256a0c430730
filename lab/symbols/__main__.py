"""`python -m lab.symbols`: a `Request` as JSON on stdin, a `Response` on stdout.

A process of its own: hostile or damaged debug information ends it, not the lab. It lives for all
the splats of a trial, or of a command line, so that a kernel is opened once.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lab.model import decode, encode
from lab.symbols import debuginfo
from lab.symbols.debuginfo import Code, Unreadable
from lab.symbols.query import Answer, Query, Request, Response


def respond(request: Request) -> Response:
    """All answers; files are opened as they are first asked for."""
    try:
        kernel = debuginfo.kernel(Path(request.vmlinux))
    except Unreadable as error:
        return Response(answers=(), complaint=str(error))
    opened: dict[str, Code | str] = {"": kernel}

    def find(query: Query) -> Answer:
        if query.module not in opened:
            opened[query.module] = _module(request, query.module, kernel.root)
        code = opened[query.module]
        return Answer(note=code) if isinstance(code, str) else code.find(query)

    return Response(answers=tuple(find(query) for query in request.queries))


def _module(request: Request, name: str, root: str) -> Code | str:
    """The module's code, or why it cannot be had."""
    path = request.modules.get(name)
    if path is None:
        return f"{name}.ko is not at hand"
    try:
        return debuginfo.module(Path(path), root=root)
    except Unreadable as error:
        return f"{Path(path).name}: {error}"


if __name__ == "__main__":
    sys.stdout.buffer.write(encode(respond(decode(sys.stdin.buffer.read(), Request))))
