"""Trees with one more patch each come in; the index of the first that is broken goes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lab.model import BuildFailure, Kernel, LabFault
from lab.tree import Tree


def first_broken(trees: Sequence[Tree], probe: Callable[[Tree], BuildFailure | Kernel]) -> int:
    """Index of a tree that does not build while the one before it does, by bisection.

    `trees[0]` is the base, `trees[i]` has the first i patches: patch `index - 1` is to blame. 0
    means that the base itself is broken, and no patch is. Both ends are probed first. Raises
    `LabFault` if the last tree builds: then there is nothing to find, and the failure that
    brought the caller here did not come from the source alone.
    """
    if not trees:
        raise ValueError("no trees")
    if isinstance(probe(trees[0]), BuildFailure):
        return 0
    if not isinstance(probe(trees[-1]), BuildFailure):
        raise LabFault(
            "the whole series builds now, though its build failed before",
            hint="run again; if it comes and goes, look for memory or disk trouble on this machine",
        )
    good, bad = 0, len(trees) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if isinstance(probe(trees[middle]), BuildFailure):
            bad = middle
        else:
            good = middle
    return bad
