"""Lock graphs for tests: small ones by hand, and real ones from our own guests' /proc files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.lockgraph import graph, stored
from lab.lockgraph.diff import Observation
from lab.lockgraph.graph import LockGraph
from lab.lockgraph.keys import Home
from lab.model import Side

DATA = Path(__file__).parent / "data" / "lockgraph"
BOOTS = ("6.1-x86_64-base1", "6.1-x86_64-base4")  # one kernel; the second took xfs first
HASHED = "6.1-x86_64-hashed"
STATS = " lock-classes:  {classes} [max: 8192]\n direct dependencies: 9 [max: 131072]\n"


def real(name: str) -> LockGraph:
    return stored.read(DATA / name)


def lockdep(edges: Iterable[tuple[str, str]], *, usage: str = "+.+.") -> str:
    """/proc/lockdep of a boot that knows just these edges."""
    pairs = list(edges)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    keys = {name: f"{0xFFFFFFFF82000000 + 64 * n:016x}" for n, name in enumerate(sorted(names))}
    lines = ["all lock classes:"]
    for name in names:
        lines.append(f"{keys[name]} OPS:{7:8} FD:{1:5} BD:{1:5} {usage}: {name}")
        lines += [f" -> [{keys[b]}] {b}" for a, b in pairs if a == name]
        lines.append("")
    return "\n".join(lines) + "\n"


def lock_stat(names: Iterable[str], *, readers: Sequence[str] = ()) -> str:
    """/proc/lock_stat with a line for each lock, or two for those that have readers."""
    numbers = "5 5 0.10 9.90 20.00 4.00 7 100 0.10 50.00 300.00 3.00"
    lines = ["lock_stat version 0.4", "-" * 80, f"{'class name':>40}    con-bounces", "-" * 80, ""]
    for name in names:
        modes = ("-W", "-R") if name in readers else ("",)
        lines += [f"{name + mode:>40}: {numbers}" for mode in modes]
    return "\n".join(lines) + "\n"


def boot(
    *edges: tuple[str, str],
    alive: bool = True,
    readers: Sequence[str] = (),
    classes: int = 9,
    homes: bool = True,
) -> LockGraph:
    """A boot's graph; each lock's key lies in a symbol of its own."""
    text = lockdep(edges)
    names = sorted({name for pair in edges for name in pair})
    at = {f"{0xFFFFFFFF82000000 + 64 * n:016x}": name for n, name in enumerate(names)}
    return graph.build(
        lockdep=text,
        stats=f"{STATS.format(classes=classes)} debug_locks: {alive:d}\n",
        lock_stat=lock_stat(names, readers=readers),
        homes={key: Home(symbol=name) for key, name in at.items()} if homes else {},
    )


def runs(side: Side, *graphs: LockGraph, doubt: str = "", boot: str = "") -> list[Observation]:
    return [
        Observation(side=side, name=f"{side} #{n}", graphs=(one,), doubt=doubt, boot=boot)
        for n, one in enumerate(graphs, 1)
    ]
