"""Edges of several boots of one kernel go in; cycles that no single boot could see come out.

Lockdep checks every dependency against those of the same boot. Two boots that each drew half of a
cycle are both content; their union is not. A cycle that lies in one boot as a whole is none of
our business: lockdep saw it, and reported it or knows why it is harmless (recursive readers).
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Pair = tuple[str, str]

# Locks whose readers wait for a waiting writer (rwsem, percpu-rwsem), so that readers close a cycle
# like writers: lockdep treats them so (read == 1 in lock_acquire()). The files do not tell them
# from locks with recursive readers, and names of other locks that have readers are left in doubt.
_FAIR_READERS = re.compile(
    r"&mm->mmap_lock|mmap_lock|sb_(writers|pagefaults|internal)|mapping\.invalidate_lock|"
    r"&(sb->s_type|type)->(i_mutex_key|i_mutex_dir_key|s_umount_key)|&type->s_umount_key|"
    r"&inode->i_sb->s_type->i_mutex_dir_key|jbd2_handle|&xfs_(non)?dir_ilock_class|"
    r"&mapping->i_mmap_rwsem|&anon_vma->rwsem|&ei->i_data_sem|&ei->xattr_sem"
)
_MOST_CYCLES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One edge of a cycle, and the boots that drew it."""

    before: str
    after: str
    boots: tuple[str, ...]
    on_base: bool  # the base has it too


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """Each lock waited for while the one before was held, all around."""

    steps: tuple[Step, ...]
    certain: bool  # a deadlock if these threads meet, and the series' own
    doubt: str = ""  # why it may be harmless, or the base's as well; "" if it is certain

    @property
    def text(self) -> str:
        """ "A -> B -> A"."""
        return " -> ".join([*(step.before for step in self.steps), self.steps[0].before])


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """What a class's part in a cycle depends on."""

    name: str
    exact: bool  # the same lock in all boots
    shared: bool  # it has readers, or it is not known whether it has


def new_cycles(
    patched: Mapping[str, Iterable[Pair]],
    base: Iterable[Pair],
    traits: Mapping[str, Trait],
    *,
    direct: Iterable[Pair],
) -> tuple[Cycle, ...]:
    """Cycles in the union of the patched boots, each through an edge that no base boot has.

    `patched` gives the edges of each boot by its name; `direct` those that lockdep itself listed.
    One cycle, the shortest, for each new edge; the same locks are told once.
    """
    where: dict[Pair, set[str]] = defaultdict(set)
    for boot, pairs in patched.items():
        for pair in pairs:
            where[pair].add(boot)
    old, listed = frozenset(base), frozenset(direct)
    after: dict[str, list[str]] = defaultdict(list)
    for before, behind in sorted(where):
        after[before].append(behind)
    inside = _in_cycles(after)
    found: dict[frozenset[str], Cycle] = {}
    for pair in sorted(where):
        if pair in old or inside.get(pair[0], -1) != inside.get(pair[1], -2):
            continue
        path = _around(pair, after, where)
        if path is None or frozenset(path) in found:
            continue
        pairs = [(path[n], path[(n + 1) % len(path)]) for n in range(len(path))]
        steps = tuple(
            Step(before=a, after=b, boots=tuple(sorted(where[a, b])), on_base=(a, b) in old)
            for a, b in pairs
        )
        doubt = _doubt(steps, traits, listed)
        found[frozenset(path)] = Cycle(steps=steps, certain=not doubt, doubt=doubt)
    cycles = sorted(found.values(), key=lambda cycle: (not cycle.certain, len(cycle.steps)))
    return tuple(cycles[:_MOST_CYCLES])


def _around(
    pair: Pair, after: Mapping[str, Sequence[str]], where: Mapping[Pair, set[str]]
) -> list[str] | None:
    """The shortest way from the pair's end back to its beginning that no boot has as a whole."""
    start, goal = pair[1], pair[0]
    first = (start, frozenset(where[pair]))
    ways: dict[tuple[str, frozenset[str]], list[str]] = {first: [goal, start]}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        node, common = state
        for behind in after.get(node, ()):
            left = common & where[node, behind]
            if behind == goal:
                if not left:
                    return ways[state]
                continue
            reached = (behind, left)
            if reached not in ways and behind not in ways[state]:
                ways[reached] = [*ways[state], behind]
                queue.append(reached)
    return None


def _doubt(steps: Sequence[Step], traits: Mapping[str, Trait], listed: frozenset[Pair]) -> str:
    """Why the cycle may be no deadlock; "" if nothing speaks against it."""
    reasons = []
    vague = sorted({step.before for step in steps if not traits[step.before].exact})
    if vague:
        reasons.append(f"{', '.join(vague)} may be different locks in different boots")
    shared = sorted(
        {
            step.before
            for step in steps
            if traits[step.before].shared and not _FAIR_READERS.fullmatch(traits[step.before].name)
        }
    )
    if shared:
        reasons.append(f"{', '.join(shared)} may have been taken by recursive readers only")
    if any((step.before, step.after) not in listed for step in steps):
        reasons.append("an edge of it follows from lock chains and is not listed by lockdep")
    return "; ".join(reasons)


def _in_cycles(after: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Node -> number of its strongly connected component, for components of two nodes or more.

    Tarjan's algorithm, without recursion: a lock graph is deeper than Python's stack.
    """
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    component: dict[str, int] = {}
    for root in list(after):
        if root in order:
            continue
        work = [(root, iter(after.get(root, ())))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, rest = work[-1]
            for behind in rest:
                if behind not in order:
                    order[behind] = low[behind] = len(order)
                    stack.append(behind)
                    on_stack.add(behind)
                    work.append((behind, iter(after.get(behind, ()))))
                    break
                if behind in on_stack:
                    low[node] = min(low[node], order[behind])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    members = stack[stack.index(node) :]
                    del stack[-len(members) :]
                    on_stack -= set(members)
                    if len(members) > 1:
                        component |= dict.fromkeys(members, order[node])
    return component
