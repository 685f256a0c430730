"""Text of /proc/lockdep, lockdep_chains, lockdep_stats and lock_stat goes in, values come out.

As kernel/locking/lockdep_proc.c prints them: 6.1 and 6.12 differ in nothing that is read here. A
line that is not understood is counted and passed over; a text that is something else altogether
is a `UserError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lab.model import UserError

# class->name, then "#n" from the second class of that name on, then "/n" for a nesting level.
_NAME = re.compile(r"(?P<name>.+?)(?:#(?P<number>[1-9]\d*))?(?:/(?P<subclass>[1-7]))?", re.S)
_CLASS = re.compile(
    r"(?P<key>[0-9a-f]{8,16})"
    r"(?: OPS:\s*(?P<ops>\d+))?"
    r"(?: FD:\s*(?P<forward>\d+))?"
    r"(?: BD:\s*(?P<backward>\d+))?"
    r"(?: (?P<usage>[-.+?]{4,8}))?"
    r": (?P<name>.+)"
)
_AFTER = re.compile(r" -> \[(?P<key>[0-9a-f]{8,16})\] (?P<name>.+)")
_HELD = re.compile(r"\[(?P<key>[0-9a-f]{8,16})\] (?P<name>.+)")
_STATS = re.compile(r" ?(?P<name>[^:]+): +(?P<value>\d+)(?: \[max: (?P<limit>\d+)\])?")
_TIME = r"\s+(-?\d+\.\d\d)"
_ROW = re.compile(
    rf"\s*(?P<name>.+?)(?P<mode>-[RW])?:\s*(\d+)\s+(\d+){_TIME * 4}\s+(\d+)\s+(\d+){_TIME * 4}"
)
_POINT = re.compile(r"\s*(?P<name>.+?)\s+(?P<count>\d+)\s+\[<[^>]*>\]\s(?P<place>\S.*)")
_RULE = re.compile(r"\s*(?:-+|\.+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A lock class as a kernel names it: "&type->s_umount_key#4/1"."""

    key: str  # of the class: an address in hex, or its hash (different in every boot)
    name: str
    number: int = 1  # among classes of this name, in the order in which the boot met them
    subclass: int = 0  # nesting level

    @property
    def full(self) -> str:
        """The name as the kernel prints it."""
        number = f"#{self.number}" if self.number > 1 else ""
        return f"{self.name}{number}{f'/{self.subclass}' if self.subclass else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassEntry:
    """One class of /proc/lockdep with its direct dependencies."""

    named: Named
    ops: int  # acquisitions; -1: this kernel does not count them
    forward: int  # classes that can be reached from it; -1: not told
    backward: int
    usage: str  # ".+.+": state of hardirq, hardirq-read, softirq, softirq-read; "" if not told
    after: tuple[Named, ...]  # taken directly while this one was held


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainEntry:
    """Locks that were really held one inside the other, outermost first."""

    context: str  # "0", "hardirq", "softirq", "hardirq|softirq"
    held: tuple[Named, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatRow:
    """One line of /proc/lock_stat. Times in microseconds."""

    name: str  # as printed: at most 38 characters, numbers cut to one digit
    mode: str  # "R", "W", or "" for a lock that is only taken exclusively
    con_bounces: int
    contentions: int
    wait_min_us: float
    wait_max_us: float
    wait_total_us: float
    acq_bounces: int
    acquisitions: int
    hold_min_us: float
    hold_max_us: float
    hold_total_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A place in the code that waited for a lock, or (`holds`) had it while others waited."""

    name: str  # of the lock, as printed
    place: str  # "do_madvise+0x7ed/0x1610"
    count: int
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """One line of /proc/lockdep_stats. `limit` is None where lockdep has none."""

    name: str
    value: int
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    entries: tuple[ClassEntry, ...]
    unread: int  # lines that were not understood


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    entries: tuple[ChainEntry, ...]
    unread: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LockStat:
    rows: tuple[StatRow, ...]
    waiters: tuple[Waiter, ...]
    alive: bool  # lockdep was on when it was read
    unread: int


def named(key: str, text: str) -> Named:
    """Take a printed name apart.

    A name may itself end in "#4" or "/1" (a work queue's, say): then number and subclass are
    wrong, but alike in every boot.
    """
    match = _NAME.fullmatch(text)
    if match is None or match["number"] == "1":
        return Named(key=key, name=text)
    return Named(
        key=key,
        name=match["name"],
        number=int(match["number"] or 1),
        subclass=int(match["subclass"] or 0),
    )


def classes(text: str) -> Classes:
    """/proc/lockdep. Raises `UserError` if it is something else."""
    lines = _after_title(text, "all lock classes:", "/proc/lockdep")
    entries: list[ClassEntry] = []
    head: re.Match[str] | None = None
    after: list[Named] = []
    unread = 0

    def close() -> None:
        if head is not None:
            entries.append(_class_entry(head, tuple(after)))

    for line in lines:
        if arrow := _AFTER.fullmatch(line):
            if head is None:
                unread += 1
            else:
                after.append(named(arrow["key"], arrow["name"]))
        elif found := _CLASS.fullmatch(line):
            close()
            head, after = found, []
        elif line:
            unread += 1
    close()
    return Classes(entries=tuple(entries), unread=unread)


def _class_entry(head: re.Match[str], after: tuple[Named, ...]) -> ClassEntry:
    return ClassEntry(
        named=named(head["key"], head["name"]),
        ops=-1 if head["ops"] is None else int(head["ops"]),
        forward=-1 if head["forward"] is None else int(head["forward"]),
        backward=-1 if head["backward"] is None else int(head["backward"]),
        usage=head["usage"] or "",
        after=after,
    )


def chains(text: str) -> Chains:
    """/proc/lockdep_chains. Raises `UserError` if it is something else."""
    # "(buggered) all lock chains:" if lockdep ran out of room for them.
    lines = _after_title(text, "all lock chains:", "/proc/lockdep_chains")
    entries: list[ChainEntry] = []
    context: str | None = None
    held: list[Named] = []
    unread = 0

    def close() -> None:
        if context is not None and held:
            entries.append(ChainEntry(context=context, held=tuple(held)))

    for line in lines:
        if line.startswith("irq_context: "):
            close()
            context, held = line.removeprefix("irq_context: "), []
        elif lock := _HELD.fullmatch(line):
            if context is None:
                unread += 1
            else:
                held.append(named(lock["key"], lock["name"]))
        elif line:
            unread += 1
    close()
    return Chains(entries=tuple(entries), unread=unread)


def stats(text: str) -> tuple[Amount, ...]:
    """/proc/lockdep_stats. Raises `UserError` if it is something else."""
    found = tuple(
        Amount(
            name=match["name"].strip(),
            value=int(match["value"]),
            limit=None if match["limit"] is None else int(match["limit"]),
        )
        for line in text.splitlines()
        if (match := _STATS.fullmatch(line.rstrip()))
    )
    if not any(amount.name == "lock-classes" for amount in found):
        raise UserError("this is not the text of /proc/lockdep_stats")
    return found


def lock_stat(text: str) -> LockStat:
    """/proc/lock_stat. Raises `UserError` if it is something else."""
    if not text.startswith("lock_stat version"):
        raise UserError("this is not the text of /proc/lock_stat")
    rows: list[StatRow] = []
    waiters: list[Waiter] = []
    rules, unread, alive = 0, 0, True
    for line in text.splitlines()[1:]:
        if row := _ROW.fullmatch(line):
            rows.append(_stat_row(row))
            rules = 0
        elif point := _POINT.fullmatch(line):
            waiters.append(
                Waiter(
                    name=point["name"],
                    place=point["place"],
                    count=int(point["count"]),
                    holds=rules > 1,
                )
            )
        elif line.startswith("*WARNING* lock debugging disabled"):
            alive = False
        elif _RULE.fullmatch(line):
            rules += line.lstrip().startswith("-")
        elif not line.lstrip().startswith("class name "):
            unread += 1
    return LockStat(rows=tuple(rows), waiters=tuple(waiters), alive=alive, unread=unread)


def _stat_row(match: re.Match[str]) -> StatRow:
    # Averages are left out: they follow from totals and counts.
    numbers = match.groups()[2:]
    wait_min, wait_max, wait_total = (float(value) for value in numbers[2:5])
    hold_min, hold_max, hold_total = (float(value) for value in numbers[8:11])
    return StatRow(
        name=match["name"],
        mode=(match["mode"] or "").removeprefix("-"),
        con_bounces=int(numbers[0]),
        contentions=int(numbers[1]),
        wait_min_us=wait_min,
        wait_max_us=wait_max,
        wait_total_us=wait_total,
        acq_bounces=int(numbers[6]),
        acquisitions=int(numbers[7]),
        hold_min_us=hold_min,
        hold_max_us=hold_max,
        hold_total_us=hold_total,
    )


def _after_title(text: str, title: str, what: str) -> Iterator[str]:
    lines = iter(text.splitlines())
    if not next(lines, "").removeprefix("(buggered) ").startswith(title):
        raise UserError(f"this is not the text of {what}: it does not begin with “{title}”")
    return lines
