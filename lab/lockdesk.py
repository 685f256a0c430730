"""What was named on the command line goes in, a `LockDiff` of it comes out.

A name is a run (its base or its patched side), a file of /proc/lockdep, a folder with such a file
and its neighbours, or a folder of such folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from lab.archive import listing
from lab.lockgraph import stored
from lab.lockgraph.diff import Change, Counts, LockDiff, Observation, diff
from lab.lockgraph.focus import find
from lab.lockgraph.graph import LockGraph
from lab.lockgraph.identity import identify
from lab.model import ExitCode, RunRecord, Side, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison, and what it is of."""

    name: str  # "20260314-demo, x86_64", "a/lockdep against b/lockdep"
    diff: LockDiff
    subjects: tuple[str, ...] = ()  # of the series' patches, where it is known


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSeen:
    """Locks that were held one inside the other, and in how many boots."""

    context: str  # "0": of a process; "softirq", "hardirq"
    held: tuple[str, ...]  # labels, outermost first
    boots: int


def compare(names: Sequence[str], runs: Path, arch: str | None) -> Compared:
    """Base against patched of a run (none named: the newest), or the first name against the second.

    Raises `UserError` if a name is nothing that has locks.
    """
    if len(names) < 2:
        run = names[0] if names else None
        if run is not None and _is_boots(run):
            raise UserError(
                f"{run} is one side only", hint="lab lockgraph diff BASE PATCHED compares two"
            )
        record, folder, arch = _run(run, runs, arch)
        seen = stored.of_run(record.trials, folder, arch)
        name = f"{record.manifest.run}, {arch}"
        return Compared(name=name, diff=diff(seen), subjects=record.manifest.patch_names)
    sides = [observations(name, side, runs, arch) for name, side in zip(names, Side, strict=True)]
    return Compared(name=f"{names[0]} against {names[1]}", diff=diff([*sides[0], *sides[1]]))


def union(seen: Sequence[Observation]) -> LockDiff:
    """All of one side together: what some runs have and others have not varies."""
    whole = diff([replace(observation, side=Side.BASE) for observation in seen])
    return replace(
        whole,
        edges=tuple(replace(edge, change=_steady(edge.counts)) for edge in whole.edges),
        classes=tuple(replace(lock, change=_steady(lock.counts)) for lock in whole.classes),
        doubts=tuple(doubt for doubt in whole.doubts if "patched side" not in doubt),
    )


def _steady(counts: Counts) -> Change:
    return Change.SAME if counts.base == counts.base_runs else Change.VARIES


def observations(
    name: str | None, side: Side, runs: Path, arch: str | None
) -> tuple[Observation, ...]:
    """One side of a run, or the boots of files. A run's side may be named: RUN:base."""
    if name is not None and _is_boots(name):
        graphs = stored.boots(Path(name))
        return tuple(
            Observation(side=side, name=f"{name} #{number}", graphs=(graph,), doubt=_doubt(graph))
            for number, graph in enumerate(graphs, 1)
        )
    wanted = side
    for choice in Side:
        if name is not None and name.endswith(f":{choice}"):
            name, wanted = name.removesuffix(f":{choice}"), choice
    record, folder, arch = _run(name or None, runs, arch)
    found = [o for o in stored.of_run(record.trials, folder, arch) if o.side is wanted]
    return tuple(replace(observation, side=side) for observation in found)


def _doubt(graph: LockGraph) -> str:
    return "lockdep had switched itself off" if graph.alive is False else ""


def _is_boots(name: str) -> bool:
    path = Path(name)
    return path.is_file() or (path.is_dir() and not (path / "record.json").is_file())


def _run(name: str | None, runs: Path, arch: str | None) -> tuple[RunRecord, Path, str]:
    folder = listing.find(runs, name, finished=True)
    record = listing.read_record(folder)
    known = record.manifest.archs
    if arch is not None and arch not in known:
        raise UserError(f"{folder.name} has no {arch}", hint=f"it has {', '.join(known)}")
    chosen = arch or known[0]
    mine = [trial for trial in record.trials if trial.cell.arch == chosen]
    if not any(trial.locks and trial.locks.files for trial in mine):
        why = sorted({trial.locks.missing for trial in mine if trial.locks} - {""})
        raise UserError(
            f"{folder.name} kept no lock data of {chosen}: "
            + ("; ".join(why) or "it is of a lab that did not read it")
        )
    return record, folder, chosen


def chains(
    seen: Sequence[Observation], whole: LockDiff, before: str, after: str
) -> tuple[ChainSeen, ...]:
    """Where `after` was taken with `before` held and nothing in between: who does it.

    `whole` is the union of `seen`. Most often seen first, then shortest. Raises `UserError` if
    there are no such classes.
    """
    labels_of = [lock.label for lock in whole.ids]
    outer, inner = find(labels_of, before), find(labels_of, after)
    flat = [graph for observation in seen for graph in observation.graphs]
    counts: dict[tuple[str, tuple[str, ...]], int] = {}
    for graph, labels in zip(flat, identify(flat).labels, strict=True):
        here = {
            (chain.context, tuple(labels[index] for index in chain.held)) for chain in graph.chains
        }
        for context, held in here:
            pairs = pairwise(held)
            if any(a in outer and b in inner for a, b in pairs):
                counts[context, held] = counts.get((context, held), 0) + 1
    return tuple(
        ChainSeen(context=context, held=held, boots=boots)
        for (context, held), boots in sorted(
            counts.items(), key=lambda item: (-item[1], len(item[0][1]), item[0])
        )
    )


def exit_code(compared: LockDiff) -> ExitCode:
    """1: a new cycle that is certain; 4: nothing to compare, or a possible cycle; else 0."""
    if any(cycle.certain for cycle in compared.cycles):
        return ExitCode.REGRESSED
    if compared.cycles or not compared.runs.base or not compared.runs.patched:
        return ExitCode.INCONCLUSIVE
    return ExitCode.CLEAN
