"""A `LockDiff` and a class to look at go in, the part of the graph worth drawing comes out."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from lab.lockgraph.diff import ADDED, LOST, Change, EdgeDiff, LockDiff
from lab.model import UserError

_UNCHANGED = 14  # neighbours that nothing happened to, before "and n more"
_NODES = 60
_BEYOND_CHANCE = 1.5
_CHANGED = LOST | ADDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """What is drawn: the classes around `centre`, and the edges between them."""

    centre: tuple[str, ...]  # labels: a lock with its nesting levels
    nodes: tuple[str, ...]
    edges: tuple[EdgeDiff, ...]
    hidden_before: int  # unchanged neighbours that are not drawn: taken outside of the centre
    hidden_after: int  # ... and inside of it
    left_out: int = 0  # changed edges that are not drawn, because there are too many


def find(labels: Iterable[str], around: str) -> tuple[str, ...]:
    """The classes that `around` means: a label, a lock's name, or the last part of one.

    "mmap_lock" means "&mm->mmap_lock" and its nesting levels. Raises `UserError` if there is no
    such class.
    """
    every = sorted(labels)
    for fits in (
        lambda label: label == around,
        lambda label: plain(label) == around,
        lambda label: plain(label).partition(" (")[0] == around,
        lambda label: around in label,
    ):
        found = tuple(label for label in every if fits(label))
        if found:
            # The lock itself leads; its nesting levels follow.
            return tuple(sorted(found, key=lambda label: (len(label), label)))
    near = difflib.get_close_matches(around, [plain(label) for label in every], n=3, cutoff=0.4)
    raise UserError(
        f"no lock class {around!r} was seen",
        hint=f"there is {', '.join(near)}" if near else f"{len(every)} classes are known",
    )


def belongs(label: str) -> bool:
    """The label says whose the lock is, like a file system's, and not only where it is made."""
    return label.endswith(")") and " (" in label and not label.endswith(".c)")


def centre(diff: LockDiff, around: str | None) -> tuple[str, ...]:
    """The classes of a comparison that `around` means; () for None. Raises `UserError`."""
    if around is None:
        return ()
    return find({label for e in diff.edges for label in (e.before, e.after)}, around)


def plain(label: str) -> str:
    """ "&mm->mmap_lock/1" -> "mmap_lock"; "sb_pagefaults (ext4)" stays."""
    head, space, place = label.partition(" (")
    if not head.startswith("("):
        head = head.rpartition("/")[0] if head[-2:-1] == "/" and head[-1:].isdigit() else head
        head = head.rpartition("->")[2].lstrip("&")
    return f"{head}{space}{place}"


def suggest(diff: LockDiff, subjects: Iterable[str] = ()) -> str | None:
    """The class to look at if nobody says: for an mm series mmap_lock, else where most changed.

    None if no more changed than chance would make.
    """
    changed = diff.changed(*_CHANGED)
    if any(subject.startswith("mm:") for subject in subjects):
        touched = {label for edge in changed for label in (edge.before, edge.after)}
        found = sorted(label for label in touched if plain(label) == "mmap_lock")
        if found:
            return min(found, key=len)
    sure = diff.changed(Change.GONE, Change.NEW)
    usual = diff.by_chance
    if len(sure) > _BEYOND_CHANCE * (usual or 0):
        changed = sure
    elif usual is None or len(changed) <= _BEYOND_CHANCE * usual:
        return None
    often = Counter(label for edge in changed for label in (edge.before, edge.after))
    # Locks that everything takes vary in every kernel: what is steady beside the change counts.
    unsteady = Counter(
        label for edge in diff.changed(Change.VARIES) for label in (edge.before, edge.after)
    )
    return max(sorted(often), key=lambda label: often[label] / (1 + unsteady[label]), default=None)


def focus(diff: LockDiff, around: str, *, depth: int = 1, every: bool = False) -> Focus:
    """The neighbourhood of `around`: all that changed within `depth` steps, and what is next to it.

    With `every`, all that is within `depth` steps, changed or not. Raises `UserError` if there is
    no such class.
    """
    told = frozenset(Change) if every else _CHANGED
    direct = [edge for edge in diff.edges if edge.direct]
    centre = find({label for e in direct for label in (e.before, e.after)}, around)
    beside: dict[str, list[EdgeDiff]] = defaultdict(list)
    for edge in direct:
        beside[edge.before].append(edge)
        beside[edge.after].append(edge)
    nodes = dict.fromkeys(centre)
    shown: dict[tuple[str, str], EdgeDiff] = {}
    left_out: set[tuple[str, str]] = set()
    rim = set(centre)
    for _ in range(depth):
        changed = [e for label in sorted(rim) for e in beside[label] if e.change in told]
        for edge in changed:
            fresh = {edge.before, edge.after} - nodes.keys()
            if len(nodes) + len(fresh) > _NODES:
                left_out.add((edge.before, edge.after))
                continue
            nodes |= dict.fromkeys(sorted(fresh))
            shown[edge.before, edge.after] = edge
        rim = {label for e in changed for label in (e.before, e.after)} & nodes.keys()
    for edge in direct:  # between what is drawn already
        if edge.change in _CHANGED and {edge.before, edge.after} <= nodes.keys():
            shown.setdefault((edge.before, edge.after), edge)
    hidden = _calm_neighbours(centre, beside, nodes, shown)
    return Focus(
        centre=centre,
        nodes=tuple(nodes),
        edges=tuple(shown[pair] for pair in sorted(shown)),
        hidden_before=hidden[0],
        hidden_after=hidden[1],
        left_out=len(left_out - shown.keys()),
    )


def _calm_neighbours(
    centre: tuple[str, ...],
    beside: dict[str, list[EdgeDiff]],
    nodes: dict[str, None],
    shown: dict[tuple[str, str], EdgeDiff],
) -> tuple[int, int]:
    """Add some neighbours that nothing happened to; how many are left before and after."""
    calm = [e for label in centre for e in beside[label] if e.change not in _CHANGED]
    for edge in calm:
        if edge.before in nodes and edge.after in nodes:
            shown[edge.before, edge.after] = edge
    # Locks of a file system first: what stays of them is asked as often as what goes. Then those
    # with the most dependencies of their own, which place the centre best.
    around = {label for e in calm for label in (e.before, e.after)} - nodes.keys()
    ranked = sorted(around, key=lambda label: (not belongs(label), -len(beside[label]), label))
    room = max(0, min(_UNCHANGED, _NODES - len(nodes)))
    chosen = set(ranked[:room])
    nodes |= dict.fromkeys(ranked[:room])
    before: set[str] = set()
    after: set[str] = set()
    for edge in calm:
        other = {edge.before, edge.after} - set(centre)
        if other <= chosen:
            shown[edge.before, edge.after] = edge
        elif not other <= nodes.keys():
            (before if edge.after in centre else after).update(other)
    return len(before), len(after)


def counts_text(edge: EdgeDiff) -> str:
    """ "3 of 3 base runs, 0 of 3 with the series"."""
    seen = edge.counts
    if not seen.patched_runs:
        return f"{seen.base} of {seen.base_runs} runs"
    return (
        f"{seen.base} of {seen.base_runs} base runs, "
        f"{seen.patched} of {seen.patched_runs} with the series"
    )


WORDS: dict[Change, str] = {
    Change.GONE: "gone",
    Change.NEW: "new",
    Change.NOT_SEEN: "not seen with the series",
    Change.ONLY_SEEN: "seen only with the series",
    Change.VARIES: "varies between runs",
    Change.UNTOLD: "cannot be told",
    Change.SAME: "the same",
}
