"""The text of a lockdep report in; the lock classes involved and the chains between them out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lab.splat import frames

_CLASS = r"\((?P<name>[^()\s][^()]*(?:\([^()]*\)[^()]*)*)\)"
_CHAIN = re.compile(rf"^\s*-> #(?P<depth>\d+) {_CLASS}(?:\{{(?P<usage>[^}}]*)\}})?")
_HELD = re.compile(rf"^\s*(?:#\d+:\s+)?(?:[0-9a-f]{{8,16}}\s+)?{_CLASS}\{{(?P<usage>[^}}]*)\}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One step of the dependency chain: `lock` was taken with the next one held, by `stack`."""

    depth: int  # lockdep's number: 0 is the newest
    lock: str
    usage: str  # "+.+.", "-...", "4:4": lockdep's state letters and wait types
    stack: tuple[str, ...]


def chain(texts: Sequence[str]) -> tuple[Link, ...]:
    """The chain that lockdep prints ("-> #1 ... -> #0"), in its order."""
    links: list[Link] = []
    current: re.Match[str] | None = None
    stack: list[str] = []

    def close() -> None:
        if current is not None:
            links.append(
                Link(
                    depth=int(current["depth"]),
                    lock=current["name"],
                    usage=current["usage"] or "",
                    stack=tuple(stack),
                )
            )

    for index, text in enumerate(texts):
        head = _CHAIN.match(text)
        if head is not None:
            close()
            current, stack = head, []
        elif current is not None:
            if re.search(r"other info that might|stack backtrace:", text):
                break
            frame = frames.parse(text, index)
            if frame is not None and not frame.guess:
                stack.append(frames.name(frame.function))
    close()
    return tuple(links)


def involved(texts: Sequence[str]) -> tuple[str, ...]:
    """Names of the lock classes that the report names, in order, each once."""
    names: list[str] = []
    for text in texts:
        match = _CHAIN.match(text) or _HELD.match(text)
        if match is not None and match["name"] not in names:
            names.append(match["name"])
    return tuple(names)
