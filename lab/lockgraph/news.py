"""A `LockDiff` goes in; one sentence on it, and what a verdict must know of it, come out."""

from __future__ import annotations

from lab.lockgraph.cycles import Cycle
from lab.lockgraph.diff import ADDED, LOST, Change, EdgeDiff, LockDiff
from lab.lockgraph.focus import belongs, find, plain
from lab.model import UserError
from lab.verdict import LockNews

_TOLD = 4  # edges of the focus in the sentence


def news(diff: LockDiff, arch: str) -> LockNews:
    """What may change the verdict: new cycles, by whether they are certain."""
    return LockNews(
        arch=arch,
        cycles=tuple((cycle.text, _evidence(cycle)) for cycle in diff.cycles if cycle.certain),
        doubts=tuple(
            f"lock cycle {cycle.text} in the union of the patched runs and not in the base's; "
            f"not certain: {cycle.doubt}; {_evidence(cycle)}"
            for cycle in diff.cycles
            if not cycle.certain
        ),
    )


def _evidence(cycle: Cycle) -> str:
    """ "A -> B in patched #1 (not on the base); B -> A in patched #2"."""
    return "; ".join(
        f"{step.before} -> {step.after} in {', '.join(step.boots)}"
        + ("" if step.on_base else " (in no run of the base)")
        for step in cycle.steps
    )


def sentence(diff: LockDiff, around: str | None = None) -> str:
    """ "5 edges gone, 2 new, no new cycle; mmap_lock -> sb_pagefaults (ext4) gone: ..."."""
    if not diff.runs.base or not diff.runs.patched:
        return "; ".join(diff.doubts)
    few = _few(diff)
    sure = f"{_edges(diff, Change.GONE)} gone, {_count(diff, Change.NEW)} new"
    if diff.changed(Change.GONE, Change.NEW) and not few:
        sure += _by_chance(diff, " ({})")
    parts = [
        sure,
        few,
        _cycles(diff),
        *_focused(diff, around),
    ]
    return "; ".join(part for part in parts if part)


def _count(diff: LockDiff, change: Change) -> int:
    return len(diff.changed(change))


def _edges(diff: LockDiff, change: Change) -> str:
    number = _count(diff, change)
    return "1 edge" if number == 1 else f"{number} edges"


def _few(diff: LockDiff) -> str:
    """What too few runs leave open, and how much of it chance would make."""
    lost, added = _count(diff, Change.NOT_SEEN), _count(diff, Change.ONLY_SEEN)
    if not lost and not added:
        return ""
    runs = f"{diff.runs.base_runs} against {diff.runs.patched_runs} runs are too few to say more"
    if diff.shared_boots:
        runs += ", for some go on from one boot"
    told = f"{lost} not seen with the series and {added} only with it ({runs}"
    return f"{told}{_by_chance(diff, '; {}')})"


def _by_chance(diff: LockDiff, frame: str) -> str:
    if diff.by_chance is None:
        return ""
    return frame.format(f"chance alone would make about {diff.by_chance:.0f}")


def _cycles(diff: LockDiff) -> str:
    certain = sum(cycle.certain for cycle in diff.cycles)
    open_ = len(diff.cycles) - certain
    parts = [f"{certain} new cycle{'' if certain == 1 else 's'}"] if certain else []
    parts += [f"{open_} possible cycle{'' if open_ == 1 else 's'} to look at"] if open_ else []
    return " and ".join(parts) or "no new cycle"


def _focused(diff: LockDiff, around: str | None) -> list[str]:
    """What the class that the reader asked about lost and gained inside of it."""
    if around is None:
        return []
    try:
        centre = find({e.before for e in diff.edges}, around)
    except UserError:
        return []
    parts = []
    for words, which in (("no more", LOST), ("now", ADDED)):
        mine = [e for e in diff.changed(*which) if e.before in centre]
        if mine:
            shown = ", ".join(e.after for e in sorted(mine, key=_telling)[:_TOLD])
            more = f" and {len(mine) - _TOLD} more" if len(mine) > _TOLD else ""
            parts.append(f"{plain(centre[0])} {words} -> {shown}{more}{_how_often(mine)}")
    return parts


def _telling(edge: EdgeDiff) -> tuple[bool, bool, str]:
    """Significant ones first; then locks that belong to something, like a file system's."""
    return edge.change not in (Change.GONE, Change.NEW), not belongs(edge.after), edge.after


def _how_often(edges: list[EdgeDiff]) -> str:
    """ " (in 4 of 4 base runs, 0 of 4 patched)", where it holds for all of them."""
    counts = {e.counts for e in edges}
    if len(counts) != 1:
        return ""
    seen = counts.pop()
    return (
        f" ({seen.base} of {seen.base_runs} base runs, "
        f"{seen.patched} of {seen.patched_runs} patched)"
    )
