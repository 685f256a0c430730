"""The text of a lockdep report in; the lock classes involved and the chains between them out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lab.splat import frames

# A class as lockdep names it: "(&mm->mmap_lock){++++}-{3:3}"; the name itself may have brackets:
# "((wq_completion)events){+.+.}-{0:0}".
_CLASS = r"\((?P<name>\S[^{]*?)\)\{(?P<usage>[^}]*)\}"
_CHAIN = re.compile(rf"^\s*-> (?:#(?P<depth>\d+) )?{_CLASS}")
_HELD = re.compile(rf"^\s*(?:#\d+:\s+)?(?:[0-9a-f]{{8,16}}\s+)?{_CLASS}")
_ACQUIRED = re.compile(r"^\s*\.\.\. acquired at:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One step of the dependency chain: `lock` was taken with the next one held, by `stack`."""

    depth: int  # lockdep's number: 0 is the newest
    lock: str
    usage: str  # "+.+.", "-...", "4:4": lockdep's state letters and wait types
    stack: tuple[str, ...]


def chain(texts: Sequence[str]) -> tuple[Link, ...]:
    """The chain that lockdep prints, in its order: "-> #1 ... -> #0" with a stack each.

    A report about interrupts prints "-> (lock) ... acquired at:" instead, for the locks on both
    sides; these are numbered in the order in which they are printed.
    """
    links: list[Link] = []
    current: re.Match[str] | None = None
    stack: list[str] = []
    taken = False  # the stack of the acquisition has begun

    def close() -> None:
        if current is not None:
            depth = current["depth"]
            links.append(
                Link(
                    depth=len(links) if depth is None else int(depth),
                    lock=current["name"],
                    usage=current["usage"],
                    stack=tuple(stack),
                )
            )

    for index, text in enumerate(texts):
        head = _CHAIN.match(text)
        if head is not None:
            close()
            current, stack, taken = head, [], head["depth"] is not None
        elif current is not None:
            if "stack backtrace:" in text or (
                current["depth"] is not None and "other info that might" in text
            ):
                break
            if _ACQUIRED.match(text):
                taken = True
            frame = frames.parse(text, index) if taken else None
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
