"""What one boot's /proc said goes in, its `LockGraph` comes out: classes, edges, chains.

An edge A -> B says that B was waited for while A was held. /proc/lockdep lists only edges with
nothing in between; those that lockdep drew past a lock taken by trylock follow from the chains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lab.lockgraph import proc
from lab.lockgraph.keys import Home, base


@dataclass(frozen=True, slots=True, kw_only=True)
class LockClass:
    """A lock class of one boot."""

    name: str
    number: int
    subclass: int
    home: Home | None  # of its key without the nesting level; None: not known
    usage: str
    ops: int

    @property
    def read(self) -> bool:
        """It was seen taken by readers, as far as its state in interrupts tells."""
        return any(state not in ".." for state in self.usage[1::2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """`after` was waited for while `before` was held. Indices of classes."""

    before: int
    after: int
    direct: bool = True  # False: with locks in between that were taken by trylock


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Classes held one inside the other, outermost first."""

    context: str
    held: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """A line of lock_stat with the classes that it may be about: more than one if the kernel cut
    the name so that they cannot be told apart."""

    classes: tuple[int, ...]
    row: proc.StatRow


@dataclass(frozen=True, slots=True, kw_only=True)
class LockGraph:
    """The locks of one boot."""

    classes: tuple[LockClass, ...]
    edges: tuple[Edge, ...]
    chains: tuple[Chain, ...] = ()
    stats: tuple[Stat, ...] = ()
    waiters: tuple[proc.Waiter, ...] = ()
    amounts: tuple[proc.Amount, ...] = ()
    unread: int = 0  # lines that were not understood

    @property
    def alive(self) -> bool | None:
        """Lockdep was still on when this was read; None: not told."""
        return next((bool(a.value) for a in self.amounts if a.name == "debug_locks"), None)

    @property
    def limits(self) -> tuple[str, ...]:
        """What lockdep has no more room for: "dependency chains: 65536 of 65536"."""
        return limits(self.amounts)


def limits(amounts: tuple[proc.Amount, ...]) -> tuple[str, ...]:
    """The amounts that are at their maximum.

    The last slot of some tables is never used, so one less than the maximum is full as well.
    """
    return tuple(
        f"{amount.name}: {amount.value} of {amount.limit}"
        for amount in amounts
        if amount.limit is not None and amount.value >= amount.limit - 1
    )


def build(
    *,
    lockdep: str,
    chains: str | None = None,
    stats: str | None = None,
    lock_stat: str | None = None,
    homes: Mapping[str, Home] | None = None,
) -> LockGraph:
    """From the texts; what was not read is None. Raises `UserError` if a text is not what it
    should be."""
    listed = proc.classes(lockdep)
    homes = homes or {}
    entries: dict[str, proc.ClassEntry] = {}
    for entry in listed.entries:
        entries.setdefault(entry.named.key, entry)
    index = {key: number for number, key in enumerate(entries)}
    classes = [_lock_class(entry.named, homes, entry) for entry in entries.values()]

    def number_of(named: proc.Named) -> int:
        """A class that came into being while the file was read is in no entry of its own."""
        if named.key not in index:
            index[named.key] = len(classes)
            classes.append(_lock_class(named, homes))
        return index[named.key]

    direct = {(index[key], number_of(b)) for key, entry in entries.items() for b in entry.after}
    told = proc.chains(chains) if chains is not None else proc.Chains(entries=(), unread=0)
    kept = tuple(
        Chain(context=chain.context, held=tuple(number_of(lock) for lock in chain.held))
        for chain in told.entries
    )
    past = _past_trylocks(kept) - direct
    stat = proc.lock_stat(lock_stat) if lock_stat is not None else None
    return LockGraph(
        classes=tuple(classes),
        edges=(
            *(Edge(before=a, after=b) for a, b in sorted(direct)),
            *(Edge(before=a, after=b, direct=False) for a, b in sorted(past)),
        ),
        chains=kept,
        stats=_stats(stat.rows, classes) if stat else (),
        waiters=stat.waiters if stat else (),
        amounts=proc.stats(stats) if stats is not None else (),
        unread=listed.unread + told.unread + (stat.unread if stat else 0),
    )


def _lock_class(
    named: proc.Named, homes: Mapping[str, Home], entry: proc.ClassEntry | None = None
) -> LockClass:
    return LockClass(
        name=named.name,
        number=named.number,
        subclass=named.subclass,
        home=homes.get(base(named.key, named.subclass)),
        usage=entry.usage if entry else "",
        ops=entry.ops if entry else -1,
    )


def _past_trylocks(chains: tuple[Chain, ...]) -> set[tuple[int, int]]:
    """Edges that lockdep drew past a lock taken by trylock, and does not list.

    A chain is recorded when its last lock is waited for. Lockdep then draws an edge to it from
    each lock held, from the innermost outwards, up to the first that was itself waited for: one
    whose own chain was recorded (check_prevs_add() in kernel/locking/lockdep.c).
    """
    recorded = {(chain.context, chain.held) for chain in chains}
    found: set[tuple[int, int]] = set()
    for chain in chains:
        *held, last = chain.held
        for depth in range(len(held) - 1, -1, -1):
            if depth < len(held) - 1 and held[depth] != last:
                found.add((held[depth], last))
            if (chain.context, tuple(held[: depth + 1])) in recorded:
                break
    return found


def _stats(rows: tuple[proc.StatRow, ...], classes: list[LockClass]) -> tuple[Stat, ...]:
    named: dict[str, list[int]] = {}
    for number, lock in enumerate(classes):
        named.setdefault(cut_name(lock), []).append(number)
    return tuple(Stat(classes=tuple(named.get(row.name, ())), row=row) for row in rows)


def cut_name(lock: LockClass) -> str:
    """A class's name as /proc/lock_stat cuts it (seq_stats() in kernel/locking/lockdep_proc.c)."""
    room = 38 - 2 * (lock.number > 1) - 2 * (lock.subclass > 0)
    name = lock.name[: room - 1]  # snprintf keeps one for the end of the string
    number = f"#{lock.number}"[:2] if lock.number > 1 else ""
    return f"{name}{number}{f'/{lock.subclass}' if lock.subclass else ''}"
