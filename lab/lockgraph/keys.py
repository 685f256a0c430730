"""Keys of lock classes and the kernel's symbols go in; where each key lies comes out.

A lock class *is* its key: an object of the kernel's, mostly a static one. Its name and the number
behind the name are neither unique nor the same in every boot, but the symbol that the key lies in
is: `sb_pagefaults` of ext4 has its key in `ext4_fs_type`. That needs a boot with
`no_hash_pointers`; otherwise a kernel prints hashes, made anew in every boot.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

_SYMBOL = re.compile(r"(?P<address>[0-9a-f]{8,16}) (?P<kind>[A-Za-z]) (?P<name>\S+)")
_MARK = ("$", ".L")  # of assemblers: "$d" begins data in an arm64 object
_KERNEL_HALF = 1 << 63
_KEY_DIGITS = 16
_DATA = frozenset("bBdDrRvVgGsS")
# "__key.12": a static variable of a function, numbered by the compiler.
_NUMBERED = re.compile(r"(?P<name>.+?)\.(?P<number>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where a key lies. Equal in every boot of one kernel."""

    symbol: str  # "ext4_fs_type"; a static variable without the compiler's number ("__key")
    offset: int = 0  # in bytes
    file: str = ""  # base name of the source file, for a static symbol: "inode.c"
    nth_file: int = 0  # among the files of that name, in link order
    # Which of the file's static variables of that name, and how many there are (`__key.7` is the
    # compiler's number: it changes with the file's text, its rank hardly ever).
    rank: int = 0
    of: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHome:
    """One line of the table that is stored beside a trial's /proc/lockdep."""

    key: str
    home: Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """The data symbols of a kernel, by address."""

    addresses: tuple[int, ...]  # ascending
    homes: tuple[Home, ...]  # at offset 0
    text: int | None  # address of _stext, as linked
    end: int  # of the kernel's data


def symbols(nm: str) -> Symbols:
    """From the output of `nm -p -a vmlinux`: in the symbol table's order, file names included."""
    found: dict[int, tuple[int, Home]] = {}  # address -> the compiler's number, home
    files: Counter[str] = Counter()
    file, text, end = "", None, 0
    for line in nm.splitlines():
        match = _SYMBOL.fullmatch(line)
        if match is None or match["name"].startswith(_MARK):
            continue
        address, kind, name = int(match["address"], 16), match["kind"], match["name"]
        if kind == "a" and address == 0:
            file = name
            files[name] += 1
        elif name == "_stext":
            text = address
        elif name == "_end":
            end = address
        elif kind in _DATA and address >= _KERNEL_HALF:
            numbered = _NUMBERED.fullmatch(name)
            home = Home(
                symbol=numbered["name"] if numbered else name,
                file=file if kind.islower() else "",
                nth_file=files[file] if kind.islower() else 0,
            )
            found.setdefault(address, (int(numbered["number"]) if numbered else -1, home))
    ranked = _ranked(found)
    addresses = tuple(sorted(ranked))
    return Symbols(
        addresses=addresses,
        homes=tuple(ranked[address] for address in addresses),
        text=text,
        end=end,
    )


def _ranked(found: dict[int, tuple[int, Home]]) -> dict[int, Home]:
    """Numbered variables of one file by rank instead."""
    alike: dict[Home, list[tuple[int, int]]] = defaultdict(list)
    for address, (number, home) in found.items():
        if number >= 0:
            alike[home].append((number, address))
    ranked = {address: home for address, (_, home) in found.items()}
    for home, numbered in alike.items():
        for rank, (_, address) in enumerate(sorted(numbered), 1):
            ranked[address] = replace(home, rank=rank, of=len(numbered))
    return ranked


def homes(keys: Iterable[str], known: Symbols, *, text: int | None = None) -> tuple[KeyHome, ...]:
    """The homes of those keys that lie in a symbol; heap, per-CPU memory and hashes have none.

    `text` is where _stext was in the boot, if it may not be where it was linked.
    """
    slide = 0 if text is None or known.text is None else text - known.text
    found: list[KeyHome] = []
    for key in sorted(set(keys)):
        address = int(key, 16) - slide
        index = bisect_right(known.addresses, address) - 1
        if index < 0 or address >= known.end:
            continue
        home = replace(known.homes[index], offset=address - known.addresses[index])
        found.append(KeyHome(key=key, home=home))
    return tuple(found)


def base(key: str, subclass: int) -> str:
    """The key that all nesting levels of a lock share: lockdep adds the level to its address."""
    return f"{max(0, int(key, 16) - subclass):0{_KEY_DIGITS}x}"


def are_hashed(keys: Iterable[str]) -> bool:
    """The keys are no addresses of a 64-bit kernel."""
    return not any(int(key, 16) >= _KERNEL_HALF for key in keys)
