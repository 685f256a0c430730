"""Console lines in, one at a time; finished splats out. Knows openings, callers and endings."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lab.model import Splat
from lab.splat.blame import fingerprint, judge
from lab.splat.formats import BOOT_BANNER, FORMATS, GATES, IGNORED, NEEDLES, QUOTING, Format, Recipe
from lab.splat.kinds import STALLS, Kind
from lab.splat.lines import Line, dropped, parse

# A report ends that many lines after the last line that looked like a part of it.
_QUIET_LINES = 40
# With caller ids, lines of others are not counted so strictly: they prove nothing.
_FOREIGN_LINES = 400
_FOREIGN_AFTER_END = 60
_LONGEST = 1500  # lines of one report; a stall on many processors prints hundreds
# A kernel that does nothing but warn must not fill the memory: what comes after is only counted.
_MOST_SPLATS = 10_000
_MOST_TEXT = 16 * 1024 * 1024  # characters of all reports together
_MOST_INLINED = 30  # functions at one place
LOOK_BACK = 12  # lines before an opening that may belong to it

_BY_NEEDLE: dict[str, tuple[Format, ...]] = {
    needle: tuple(row for row in FORMATS if row.needle == needle) for needle in NEEDLES
}
_ORDER: dict[int, int] = {id(row): place for place, row in enumerate(FORMATS)}

# What stands inside reports, one line of patterns for each source of it.
_PART = re.compile(
    r"\+0x[0-9a-f]+/0x[0-9a-f]+|\[inline\]|\.[chS]:\d+|\[<[0-9a-f]+>\]"  # frames
    r"|Call [Tt]race|[Bb]acktrace|</?(?:IRQ|TASK|NMI|EOI|SOFTIRQ|#?DF|EXCEPTION)|[Ss]tack:"
    r"|^CPU: \d|^CPU#\d|Hardware name|Modules linked in|Comm:|PID:|[Tt]ainted|Workqueue|PREEMPT"
    r"|\bR[A-DS0-9][0-9XIP]: |\b[RE]SP: |^Code: |^CR2: |\bCS: |^FS: |^D?R\d+: "  # x86
    r"|\b[xX]\d{1,2} ?: |pstate|\bsp : |\blr : |\bpc : "  # arm64
    r"|lock|hardirq|softirq|irq event|^#\d|-> #|^ *\*\*\*|CPU\d+|holding"  # lockdep
    r"|Freed by|Allocated by|Memory state|^[ >]*[0-9a-f]{8,16}: |^(?: [0-9a-f]{2,16}){4,}"
    r"|belongs to the|located |buggy address|value changed|by task|by interrupt|Uninit|created at"
    r"|origin|Reported by|unreferenced|hex dump|comm \""  # sanitizers
    r"|^page:|flags: |raw: |page dumped|Mem-Info|Redzone|Object |Slab |Bytes b4"  # memory
    r"|task:|state:[A-Z]|\bjiffies|Showing|stall|GPs|stack dump|trace "  # no progress
    r"|^Oops|panic|^Kernel Offset|Rebooting in|ftrace|^=+$|^-{10,}$|cut here|INFO:"
    r"|\b(?:mm|kernel|fs|net|drivers)/"
)
_END = re.compile(r"---\[ end (?:trace|Kernel panic)|^Rebooting in |\[ end Kernel panic")
# More than a second after the start, or a wall clock: a system is up.
_RUNNING = re.compile(r"(?:<\d+>)?\[ *(?:[1-9]|\d{2,})\d*\.\d{6}\]|\d{4}[-/]\d\d[-/]\d\d \d\d:\d\d")
_RULE = re.compile(r"^\s*={20,}\s*$")
_DECORATION = re.compile(
    r"^\s*[=-]{6,}(?:\[ cut here \]-+)?\s*$|^\s*$|list_(?:add|del)(?:_\w+)?\.? "
    r"|list_(?:add|del) corruption|^usercopy: |^refcount_t: |^kernel BUG|ODEBUG:|^\S*kobject"
)
# Formats whose report is over at the second rule of "=====".
_RULED = frozenset({Kind.KASAN, Kind.KFENCE, Kind.KCSAN, Kind.KMSAN, Kind.UBSAN})
_REPEATED = frozenset({*_RULED, Kind.WARNING, Kind.LOCKDEP_OTHER})
_FAULTS = frozenset({Kind.OOPS, Kind.GPF, Kind.NULL_DEREF, Kind.PAGE_FAULT})
_OVERRUNS = frozenset({Kind.STACK_OVERFLOW, Kind.DOUBLE_FAULT})
_ASSERTIONS = frozenset({Kind.BUG, Kind.LIST_CORRUPTION, Kind.RUST_PANIC, Kind.KASAN, Kind.KFENCE})
# An opening of the second kind, so few lines after one of the first, belongs to the first report.
_SENTENCES: tuple[tuple[frozenset[Kind], frozenset[Kind], int], ...] = (
    (_ASSERTIONS | _FAULTS | _OVERRUNS, _FAULTS, 25),  # "kernel BUG at", then "invalid opcode"
    (frozenset({Kind.RUST_PANIC}), frozenset({Kind.BUG}), 25),
    (_OVERRUNS, _OVERRUNS, 25),
    (frozenset({Kind.SLAB_CORRUPTION}), frozenset({Kind.SLAB_CORRUPTION}), 40),
    (frozenset({Kind.VFS}), frozenset({Kind.WARNING}), 8),
    (frozenset({Kind.RCU_STALL}), frozenset({Kind.RCU_STALL}), 4),
    (STALLS, frozenset({Kind.WARNING}), 6),  # the reporter tripped before it printed a stack
    (frozenset({Kind.KMEMLEAK}), frozenset({Kind.KMEMLEAK}), 3),
    (frozenset({Kind.FS_CORRUPTION}), frozenset({Kind.FS_CORRUPTION, Kind.FS_ERROR}), _LONGEST),
    (frozenset({Kind.FS_ERROR}), frozenset({Kind.FS_CORRUPTION, Kind.FS_ERROR}), _LONGEST),
    (frozenset({Kind.IO_ERROR}), frozenset({Kind.IO_ERROR}), _LONGEST),
    (frozenset({Kind.OOM}), frozenset({Kind.OOM}), _LONGEST),
)


@dataclass(slots=True)
class Report:
    """A report that is being collected."""

    format: Format
    match: re.Match[str]
    opening: int  # index into `lines`
    lines: list[Line]
    callers: set[str]
    last_part: int  # index of the last line that looked like a part
    fatal: bool = False
    lost: bool = False  # printk dropped messages meanwhile
    rules: int = 0
    foreign: int = 0
    whole: bool = False  # its own end was seen


class Detector:
    """Finds the splats of one console. Feed it every line, then call `finish`.

    `feed` returns the reports that are over; a report that is still open shows in `opened`
    (so that a runner may stop a machine early). Memory is bounded: after `_MOST_SPLATS` reports
    the others are only counted, in `beyond`, and after `_MOST_TEXT` characters they come without
    their text.
    """

    def __init__(self) -> None:
        self._number = 0
        self._recent: deque[tuple[int, str]] = deque(maxlen=LOOK_BACK)
        self._open: list[Report] = []
        self._ran = False  # since the last boot banner the system came up
        self.fatal = False  # something fatal was opened
        self._given = 0
        self._text_left = _MOST_TEXT
        self.beyond = 0  # reports that were found and not given

    @property
    def idle(self) -> bool:
        """Is no report being collected?"""
        return not self._open

    @property
    def opened(self) -> tuple[Kind, ...]:
        """Kinds of the reports that are still being collected."""
        return tuple(report.format.kind for report in self._open)

    def feed(self, line: str) -> list[Splat]:
        """Take the next line of the console; the splats that it finished."""
        self._number += 1
        if not self._ran:
            self._ran = bool(_RUNNING.match(line))
        if not self._open:
            for gate in GATES:
                if gate in line:
                    break
            else:
                if "Booting " in line or "Linux version" in line:
                    return self._boot(line)
                self._recent.append((self._number, line))
                return []
        return self._slow(line)

    def skip(self, count: int, tail: Sequence[str]) -> None:
        """Pass over `count` lines that hold no gate; `tail` are the last of them (LOOK_BACK do)."""
        assert not self._open
        self._number += count
        for place, line in enumerate(tail, self._number - len(tail) + 1):
            self._recent.append((place, line))
            if not self._ran:
                self._ran = bool(_RUNNING.match(line))

    def finish(self) -> list[Splat]:
        """The console has ended: what was still open, as far as it came."""
        ended = [judge_report(report) for report in self._open]
        self._open.clear()
        return self._counted(sorted(ended, key=lambda splat: splat.first_line))

    # --- inside ------------------------------------------------------------------------------

    def _counted(self, ended: list[Splat]) -> list[Splat]:
        """What may still be given of these."""
        kept: list[Splat] = []
        for splat in ended:
            if self._given >= _MOST_SPLATS:
                self.beyond += 1
                continue
            self._given += 1
            self._text_left -= len(splat.text)
            kept.append(splat if self._text_left >= 0 else replace(splat, text=""))
        return kept

    def _slow(self, raw: str) -> list[Splat]:
        line = parse(self._number, raw)
        if BOOT_BANNER.match(line.text):
            return self._boot(raw)
        found = opening(line.text)
        ended: list[Splat] = []
        if found is not None and not self._continues(line, found[0]):
            ended += self._start(line, *found)
        else:
            self._collect(line, raw, part=found is not None)
        ended += self._close()
        self._recent.append((self._number, raw))
        return self._counted(ended)

    def _owner(self, line: Line) -> Report | None:
        for report in reversed(self._open):
            if line.caller in report.callers:
                return report
        return None

    def _continues(self, line: Line, form: Format) -> bool:
        """Is this opening only a further sentence of the report that is open?"""
        owner = self._owner(line)
        if owner is None:
            return False
        before, now = owner.format.kind, form.kind
        if now is Kind.PANIC or before is Kind.PANIC:
            # A panic is how another report ends; what follows a panic is news.
            return before is not Kind.PANIC
        if owner.whole:
            return False
        if now is before and now in _REPEATED:
            # A symboliser repeats the opening line once for each inlined function.
            said = owner.lines[owner.opening].text[:20]
            later = owner.lines[owner.opening :]
            return len(later) <= _MOST_INLINED and all(
                each.text[:20] == said for each in (*later, line)
            )
        distance = len(owner.lines) - owner.opening
        return any(
            before in befores and now in nows and distance < within
            for befores, nows, within in _SENTENCES
        )

    def _start(self, line: Line, form: Format, match: re.Match[str]) -> list[Splat]:
        ended: list[Splat] = []
        before = self._before(line)
        owner = self._owner(line)
        if owner is not None:
            # The same context begins another report: the former one is over.
            self._open.remove(owner)
            while before and len(owner.lines) - 1 > owner.opening:
                if owner.lines[-1].number < before[0].number:
                    break
                owner.lines.pop()
            owner.last_part = min(owner.last_part, len(owner.lines) - 1)
            ended.append(judge_report(owner))
        report = Report(
            format=form,
            match=match,
            opening=len(before),
            lines=[*before, line],
            callers={line.caller},
            last_part=len(before),
        )
        report.rules = sum(bool(_RULE.match(each.text)) for each in before)
        report.fatal = form.fatal
        self.fatal |= report.fatal
        self._open.append(report)
        return ended

    def _before(self, line: Line) -> list[Line]:
        """The lines just before an opening that belong to it: "cut here", rules, what was found."""
        kept: list[Line] = []
        for number, raw in reversed(self._recent):
            earlier = parse(number, raw)
            if earlier.caller != line.caller:
                continue
            if not _DECORATION.search(earlier.text) or len(kept) >= 5:
                break
            kept.append(earlier)
            if "cut here" in earlier.text:
                # What was found stands right above the cut ("list_del corruption ...").
                continue
        kept.reverse()
        while kept and not kept[0].text.strip():
            kept.pop(0)
        return kept

    def _collect(self, line: Line, raw: str, *, part: bool) -> None:
        owner = self._owner(line)
        if owner is None and line.text.startswith("NMI backtrace for cpu"):
            for report in self._open:
                if report.format.kind in STALLS or report.format.kind is Kind.HUNG_TASK:
                    report.callers.add(line.caller)
                    owner = report
        for report in self._open:
            if dropped(raw):
                report.lost = True
            if report is not owner:
                report.foreign += 1
        if owner is None:
            return
        owner.lines.append(line)
        if part or _PART.search(line.text):
            owner.last_part = len(owner.lines) - 1
        if "Kernel panic" in line.text or line.text.startswith(("Oops", "Internal error")):
            owner.fatal = True
            self.fatal = True
            owner.whole = False
        if _END.search(line.text):
            owner.whole = True
            owner.last_part = len(owner.lines) - 1
        if owner.format.kind in _RULED and _RULE.match(line.text):
            owner.rules += 1
            if owner.rules >= 2 or len(owner.lines) - owner.opening > 6:
                owner.whole = True
                owner.last_part = len(owner.lines) - 1

    def _close(self) -> list[Splat]:
        ended: list[Splat] = []
        for report in list(self._open):
            quiet = len(report.lines) - 1 - report.last_part
            limit, foreign = _QUIET_LINES, _FOREIGN_LINES
            if report.whole:
                limit, foreign = 4, _FOREIGN_AFTER_END
            elif report.format.recipe is Recipe.NONE and not report.format.stack:
                limit, foreign = 6, _FOREIGN_AFTER_END  # the opening line says it all
            if quiet >= limit or report.foreign >= foreign or len(report.lines) >= _LONGEST:
                self._open.remove(report)
                ended.append(judge_report(report))
        return ended

    def _boot(self, raw: str) -> list[Splat]:
        """A boot banner: of the machine's start, or of a restart that nobody asked for."""
        line = parse(self._number, raw)
        self._recent.append((self._number, raw))
        if not BOOT_BANNER.match(line.text):
            return []
        ended = self.finish()
        # The decompressor and the kernel have a banner each: only a system that was up restarts.
        again, self._ran = self._ran, False
        if again:
            self.fatal = True
            ended.append(
                Splat(
                    kind=Kind.REBOOT,
                    title="unexpected kernel reboot",
                    first_line=self._number,
                    last_line=self._number,
                    fingerprint=fingerprint(Kind.REBOOT, "unexpected kernel reboot"),
                    fatal=True,
                    text=line.text,
                )
            )
        return ended


def opening(text: str) -> tuple[Format, re.Match[str]] | None:
    """The format that this line opens, or None."""
    best: tuple[Format, re.Match[str]] | None = None
    if not any(gate in text for gate in GATES):
        return None
    for needle in NEEDLES:
        if needle not in text:
            continue
        for row in _BY_NEEDLE[needle]:
            if best is not None and _ORDER[id(row)] > _ORDER[id(best[0])]:
                break
            match = row.pattern.search(text)
            if match is not None:
                best = (row, match)
                break
    if best is None or any(pattern.search(text) for pattern in IGNORED):
        return None
    before = text[: best[1].start()]
    if before and any(pattern.search(before) for pattern in QUOTING):
        return None
    return best


def judge_report(report: Report) -> Splat:
    """The report's lines up to the last that belongs to it, judged."""
    lines = report.lines[: report.last_part + 1]
    return judge(
        form=report.format,
        match=report.match,
        lines=lines,
        opening=report.opening,
        fatal=report.fatal,
        lost=report.lost,
    )


def scan(lines: Iterable[str]) -> list[Splat]:
    """All splats of a console log, in the order in which they begin."""
    detector = Detector()
    found: list[Splat] = []
    for line in lines:
        found += detector.feed(line)
    found += detector.finish()
    return sorted(found, key=lambda splat: splat.first_line)
