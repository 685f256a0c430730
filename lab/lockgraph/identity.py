"""Graphs of several boots go in; for each class a label that is the same in all of them comes out.

A boot numbers classes of one name in the order in which it meets them ("sb_pagefaults#2" is xfs
in one boot and ext4 in the next), so numbers are used only where nothing better is known: where
the class's key lies (lab.lockgraph.keys).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from lab.lockgraph.graph import LockClass, LockGraph

_FILE_SYSTEM = "_fs_type"
_LINE = re.compile(r"([\w./-]+\.[ch]):\d+")
_KEY = "__key"  # what the macros that initialize locks call their static variable


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassId:
    """A lock class, over all boots that were looked at together. Its label is unique in them."""

    label: str  # "sb_pagefaults (ext4)", "&mm->mmap_lock", "&mm->mmap_lock/1", "lock#4"
    name: str
    subclass: int
    place: str  # "ext4", "virtio_blk.c", "": where its key lies
    # False: only its number tells it from others of its name, so that two boots may mean
    # different locks by it.
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """Labels by class of each graph, and what the labels stand for."""

    labels: tuple[tuple[str, ...], ...]  # graph -> class -> label
    ids: dict[str, ClassId]
    by_number: bool  # at least one boot hid its keys, so that numbers had to do for all


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _Trait:
    """What makes a class the same in two boots. Empty fields do not count."""

    name: str
    symbol: str = ""
    file: str = ""
    nth_file: int = 0
    rank: int = 0
    offset: int = -1
    number: int = 0  # only where there is no symbol
    subclass: int = 0


def identify(graphs: Sequence[LockGraph]) -> Identified:
    """Label every class of every graph. Deterministic, and independent of the graphs' order."""
    by_number = any(
        graph.classes and all(lock.home is None for lock in graph.classes) for graph in graphs
    )
    crowded, moved = (set(), set()) if by_number else _crowded(graphs)
    traits = [[_trait(lock, by_number, crowded) for lock in graph.classes] for graph in graphs]
    every = sorted({trait for here in traits for trait in here})
    places: dict[str, set[_Trait]] = defaultdict(set)  # name -> where its keys lie
    for trait in every:
        places[trait.name].add(replace(trait, subclass=0))
    ids: dict[str, ClassId] = {}
    labels: dict[_Trait, str] = {}
    for trait in every:
        where = replace(trait, subclass=0)
        place = "" if len(places[trait.name]) == 1 else _place(where, places[trait.name])
        text = _text(trait, place)
        again = (f"{text} [{number}]" for number in count(2))
        label = text if text not in ids else next(t for t in again if t not in ids)
        labels[trait] = label
        known = trait.symbol and _spot(trait) not in moved
        ids[label] = ClassId(
            label=label,
            name=trait.name,
            subclass=trait.subclass,
            place=place,
            exact=bool(known) or len(places[trait.name]) == 1,
        )
    return Identified(
        labels=tuple(tuple(labels[trait] for trait in here) for here in traits),
        ids=ids,
        by_number=by_number,
    )


def _crowded(graphs: Sequence[LockGraph]) -> tuple[set[_Trait], set[_Trait]]:
    """Places with several keys of one name in a boot; those of them whose ranks may have moved."""
    crowded: set[_Trait] = set()
    counts: dict[_Trait, set[int]] = defaultdict(set)
    for graph in graphs:
        inside: dict[_Trait, set[tuple[int, int]]] = defaultdict(set)
        for lock in graph.classes:
            if lock.home is not None:
                spot = _spot(_trait(lock, False, set()))
                inside[spot].add((lock.home.rank, lock.home.offset))
                counts[spot].add(lock.home.of)
        crowded |= {spot for spot, keys in inside.items() if len(keys) > 1}
    return crowded, {spot for spot in crowded if len(counts[spot]) > 1}


def _trait(lock: LockClass, by_number: bool, crowded: set[_Trait]) -> _Trait:
    home = lock.home
    if home is None or by_number:
        return _Trait(name=lock.name, number=lock.number, subclass=lock.subclass)
    trait = _Trait(
        # A name that is a place in the source moves with every line above it; the key does not.
        name=_LINE.sub(r"\1", lock.name),
        symbol=home.symbol,
        file=home.file,
        nth_file=home.nth_file,
        subclass=lock.subclass,
    )
    if _spot(trait) not in crowded:
        return trait
    return replace(trait, rank=home.rank, offset=home.offset)


def _spot(trait: _Trait) -> _Trait:
    """The symbol that the key lies in, without what is told apart inside of it."""
    return replace(trait, rank=0, offset=-1, subclass=0)


def _text(trait: _Trait, place: str) -> str:
    level = f"/{trait.subclass}" if trait.subclass else ""
    if not trait.symbol:
        number = f"#{trait.number}" if trait.number > 1 else ""
        return f"{trait.name}{number}{level}"
    return f"{trait.name}{level}" + (f" ({place})" if place else "")


def _place(where: _Trait, others: set[_Trait]) -> str:
    """Where the key lies, in the fewest words that tell it from the name's other places."""
    file = where.file if where.nth_file <= 1 else f"{where.file}:{where.nth_file}"
    symbol = where.symbol.removesuffix(_FILE_SYSTEM)
    key = f"{file} {where.rank}" if where.rank else f"{symbol}+{where.offset:#x} {file}"

    def told_by(trait: _Trait) -> tuple[tuple[object, ...], ...]:
        return (
            (trait.symbol,) if trait.symbol != _KEY else (None, trait),
            (trait.file,) if trait.file else (None, trait),
            (trait.file, trait.nth_file) if trait.file else (None, trait),
            (trait.symbol, trait.file, trait.nth_file),
        )

    words = (symbol, where.file, file, f"{symbol} {file}")
    for index, (told, word) in enumerate(zip(told_by(where), words, strict=True)):
        if told[0] is not None and sum(told_by(other)[index] == told for other in others) == 1:
            return word
    return key
