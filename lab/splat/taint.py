"""A kernel's taint and the splats found in; the taints out that no splat accounts for.

A taint that says "something went wrong" without a report of it means a splat was missed: printk
dropped it, the console was cut, or the detector does not know it. That is a fault of the lab's
evidence, never a clean run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab.model import Splat
from lab.splat.kinds import Kind

# Bit, letter (include/linux/panic.h, kernel/panic.c taint_flags) and what it says.
FLAGS: tuple[tuple[int, str, str], ...] = (
    (0, "P", "a proprietary module was loaded"),
    (1, "F", "a module was force loaded"),
    (2, "S", "the kernel runs on an out of specification system"),
    (3, "R", "a module was force unloaded"),
    (4, "M", "the processor reported a machine check"),
    (5, "B", "a bad page was referenced, or memory was corrupted"),
    (6, "U", "user space asked for it"),
    (7, "D", "the kernel died: an oops or a BUG"),
    (8, "A", "an ACPI table was overridden"),
    (9, "W", "the kernel issued a warning"),
    (10, "C", "a staging driver was loaded"),
    (11, "I", "a bug of the firmware was worked around"),
    (12, "O", "a module from outside the tree was loaded"),
    (13, "E", "an unsigned module was loaded"),
    (14, "L", "a soft lockup occurred"),
    (15, "K", "the kernel was live patched"),
    (16, "X", "auxiliary taint of the distribution"),
    (17, "T", "structure layout was randomised"),
    (18, "N", "an in-kernel test was run"),
    (19, "J", "userspace used a mutating debug operation in fwctl"),
)

# Who may have set the flags that say that something went wrong. Every report may bring D and W
# along: an oops taints D, and most reporters call add_taint(TAINT_WARN) or end in WARN().
_OOPSES = frozenset(
    {
        Kind.BUG,
        Kind.LIST_CORRUPTION,
        Kind.USERCOPY,
        Kind.NULL_DEREF,
        Kind.PAGE_FAULT,
        Kind.GPF,
        Kind.OOPS,
        Kind.DOUBLE_FAULT,
        Kind.STACK_OVERFLOW,
        Kind.STACK_CORRUPTION,
        Kind.RUST_PANIC,
        Kind.PANIC,
        Kind.KFENCE,
        Kind.KASAN,
    }
)
_NOT_A_WARNING = frozenset({Kind.OOM, Kind.IO_ERROR, Kind.REBOOT, Kind.KMEMLEAK})
_EXPLAINS: dict[str, frozenset[Kind]] = {
    "M": frozenset({Kind.MCE}),
    "B": frozenset(
        {
            Kind.BAD_PAGE,
            Kind.SLAB_CORRUPTION,
            Kind.KASAN,
            Kind.KFENCE,
            Kind.KMSAN,
            Kind.WARNING,
            Kind.BUG,
        }
    ),
    "D": _OOPSES,
    "W": frozenset(Kind) - _NOT_A_WARNING,
    "L": frozenset({Kind.SOFT_LOCKUP, Kind.RCU_STALL}),
}

_CONSOLE = re.compile(r"\bTainted: ((?:[A-Z](?: |$|\b)| |\[[A-Z]\]=\w+,? ?){1,60})")
_VERBOSE = re.compile(r"\[([A-Z])\]=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unexplained:
    """A taint without a report."""

    letter: str
    meaning: str


def letters(value: int) -> str:
    """The letters of a /proc/sys/kernel/tainted value; bits nobody knows are left out."""
    return "".join(letter for bit, letter, _ in FLAGS if value >> bit & 1)


def from_console(lines: Iterable[str]) -> str:
    """The letters of every "Tainted:" that a console shows, in the order of `FLAGS`."""
    seen: set[str] = set()
    for line in lines:
        if "Tainted: " not in line:
            continue
        match = _CONSOLE.search(line)
        if match is not None:
            verbose = _VERBOSE.findall(match[1])
            seen.update(verbose or re.findall(r"\b[A-Z]\b", match[1]))
    return "".join(letter for _, letter, _ in FLAGS if letter in seen)


def unexplained(
    after: int | str, splats: Sequence[Splat], *, before: int | str = 0
) -> tuple[Unexplained, ...]:
    """Taints that came between `before` and `after` and that none of `splats` explains.

    Values are what /proc/sys/kernel/tainted holds, or letters. Only taints that say that something
    went wrong are asked for (M B D W L); a loaded module is nobody's splat.
    """
    then = letters(before) if isinstance(before, int) else before
    now = letters(after) if isinstance(after, int) else after
    kinds = {Kind(splat.kind) for splat in splats}
    meanings = {letter: meaning for _, letter, meaning in FLAGS}
    return tuple(
        Unexplained(letter=letter, meaning=meanings[letter])
        for letter in now
        if letter in _EXPLAINS and letter not in then and not kinds & _EXPLAINS[letter]
    )
