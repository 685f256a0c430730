"""The lines of one report in; a `Splat` out: title, function, file, locks, fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise

from lab.model import Splat
from lab.splat import frames, locks, skips
from lab.splat.formats import Format, Recipe
from lab.splat.frames import Frame
from lab.splat.kinds import FATAL, Kind
from lab.splat.lines import Line

_TEXT_LIMIT = 64 * 1024
_NUMBERS = (
    (re.compile(r"\b0x[0-9a-fA-F]+\b"), "ADDR"),
    (re.compile(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{8,16}\b"), "ADDR"),
    (re.compile(r"\b\d+\b"), "NUM"),
    (re.compile(r"(?<=[a-z/:.])\d+\b"), "NUM"),
)

# What a report says near its opening that makes its kind more precise: (kinds it applies to,
# pattern over the lines round the opening, the kind it becomes, its title).
_REFINEMENTS: tuple[tuple[frozenset[Kind], re.Pattern[str], Kind, str], ...] = (
    (
        frozenset({Kind.WARNING}),
        re.compile(r"\brefcount_t: "),
        Kind.REFCOUNT,
        "WARNING: refcount bug in {function}",
    ),
    (
        frozenset({Kind.WARNING}),
        re.compile(r"\bODEBUG: (?:\S+ )+(?:active|not available|object)|lib/debugobjects\.c:"),
        Kind.ODEBUG,
        "WARNING: ODEBUG bug in {function}",
    ),
    (
        frozenset({Kind.WARNING}),
        re.compile(r"Bad or missing usercopy whitelist"),
        Kind.USERCOPY,
        "WARNING: bad usercopy in {function}",
    ),
    (
        frozenset({Kind.WARNING}),
        re.compile(r"DEBUG_LOCKS_WARN_ON|kernel/locking/(?:lockdep|mutex|rwsem|rtmutex)\S*:\d+"),
        Kind.LOCKDEP_OTHER,
        "WARNING: locking bug in {function}",
    ),
    (
        frozenset({Kind.WARNING}),
        re.compile(r"lib/kobject\.c:"),
        Kind.WARNING,
        "WARNING: kobject bug in {function}",
    ),
    (
        frozenset({Kind.WARNING}),
        re.compile(r"mm/(?:slab|slub|page_alloc)\w*\.c:\d+ .*(?:kmalloc|alloc_page)"),
        Kind.WARNING,
        "WARNING: kmalloc bug in {function}",
    ),
    (
        frozenset({Kind.BUG, Kind.WARNING}),
        re.compile(r"list_(?:add|del)\w* (?:double add|corruption)|lib/list_debug\.c"),
        Kind.LIST_CORRUPTION,
        "BUG: corrupted list in {function}",
    ),
    (
        frozenset({Kind.BUG}),
        re.compile(r"usercopy: Kernel memory|mm/usercopy\.c"),
        Kind.USERCOPY,
        "BUG: bad usercopy in {function}",
    ),
)


def judge(
    *,
    form: Format,
    match: re.Match[str],
    lines: Sequence[Line],
    opening: int,
    fatal: bool,
    lost: bool,
) -> Splat:
    """Make the splat of a report. `lines` hold it whole, as far as it was printed."""
    texts = [line.text for line in lines]
    kind, title = _refine(form, texts, opening)
    stack = [
        frame
        for index, text in enumerate(texts[opening:])
        if (frame := frames.parse(text, index)) is not None and not frame.guess
    ]
    function = _blame(form, kind, match, texts[opening:], stack)
    file = guilty_file(texts[opening:])
    said = locks.involved(texts[opening:])
    corrupted = _corrupted(form, lines[opening:], stack, function, lost)
    title = _title(title, kind, match, texts[opening:], function)
    return Splat(
        kind=kind,
        title=title,
        first_line=lines[0].number,
        last_line=lines[-1].number,
        function=function,
        file=file,
        fingerprint="" if corrupted else fingerprint(kind, title),
        corrupted=corrupted,
        fatal=fatal or (kind in FATAL and (kind is not form.kind or form.fatal)),
        locks=said,
        text="\n".join(texts)[:_TEXT_LIMIT],
    )


def _refine(form: Format, texts: Sequence[str], opening: int) -> tuple[Kind, str]:
    near = "\n".join(texts[max(0, opening - 5) : opening + 4])
    for kinds, pattern, kind, title in _REFINEMENTS:
        if form.kind in kinds and form.recipe is not Recipe.NONE and pattern.search(near):
            return kind, title
    return form.kind, form.title


# --- the function to blame -----------------------------------------------------------------------


def skipped(function: str, *extra: re.Pattern[str]) -> bool:
    """Is this a function that only reports, or only does to an object what it was told to?"""
    plain = frames.name(function)
    return any(pattern.fullmatch(plain) for pattern in (*skips.ALWAYS, skips.INTERRUPTS, *extra))


def _first(stack: Sequence[Frame], *extra: re.Pattern[str]) -> Frame | None:
    return next((frame for frame in stack if not skipped(frame.function, *extra)), None)


def _blame(
    form: Format, kind: Kind, match: re.Match[str], texts: Sequence[str], stack: list[Frame]
) -> str:
    """Name of the function to blame, "" if the report does not tell."""
    groups = match.groupdict()
    named = groups.get("function") or ""
    match form.recipe:
        case Recipe.NONE:
            return ""
        case Recipe.BANNER:
            if groups.get("other"):
                return " / ".join(sorted((frames.name(named), frames.name(groups["other"]))))
            if named and not skipped(named) and named != "usb_submit_urb":
                return frames.name(named)
            frame = _first(_primary(texts, stack))
            if frame is None and named:
                # The stack is cut short: what it went over by guess is better than nothing.
                frame = _first(_primary(texts, _guessed(texts)))
        case Recipe.PC:
            frame = _first(_primary(texts, stack))
        case Recipe.STACK:
            if kind is Kind.WQ_LEAKED_LOCK and (
                said := _LAST_FUNCTION.search("\n".join(texts[:4]))
            ):
                return frames.name(said[1])  # the work is over: it is not on the stack any more
            frame = _first(_traced(texts, stack), skips.SWITCHING)
        case Recipe.ALLOCATION:
            frame = _first(_traced(texts, stack), skips.ALLOCATING)
        case Recipe.SLEEP:
            frame = _first(_asleep(_traced(texts, stack)), skips.SLEEPING)
        case Recipe.STALL:
            frame = _stalled(texts, stack)
        case Recipe.DEEP:
            frame = _asked(_primary(texts, stack))
        case Recipe.LOCKDEP | Recipe.HELD:
            return _locking(form, kind, texts, stack)
    if frame is None:
        return ""
    function = frames.name(frame.function)
    if function == "usb_submit_urb":
        # Every driver's broken URB trips in the same function: name the driver's as well.
        caller = _first([later for later in stack if later.index > frame.index])
        if caller is not None:
            driver = frames.name(caller.function)
            return f"{driver}/usb_submit_urb" if kind is Kind.WARNING else driver
    return function


_LAST_FUNCTION = re.compile(r"(?:last function: |workfn=)([A-Za-z_][\w.]*)")


def _guessed(texts: Sequence[str]) -> list[Frame]:
    found = (frames.parse(text, index) for index, text in enumerate(texts))
    return [frame for frame in found if frame is not None]


_OTHER_STACK = re.compile(
    r"\s*(?:(?:Allocated|Freed)(?: by task \d+)?:|Uninit was|Local variable|Last potentially|"
    r"page last |Memory state|Showing all locks|The buggy address|Preemption disabled at|"
    r"Sending NMI|NMI backtrace for cpu)"
)


def _primary(texts: Sequence[str], stack: list[Frame]) -> list[Frame]:
    """The stack of what happened: up to the second trace, user space, or another object's story."""
    end = len(texts)
    traces = 0
    for index, text in enumerate(texts):
        if frames.TRACE_START.search(text):
            traces += 1
        if traces > 1 or (
            index > 0 and ((traces and frames.user_pc(text)) or _OTHER_STACK.match(text))
        ):
            end = index
            break
    return [frame for frame in stack if frame.index < end]


def _traced(texts: Sequence[str], stack: list[Frame]) -> list[Frame]:
    """The first trace that begins with a header; the whole report where none does."""
    start = next((i for i, text in enumerate(texts) if frames.TRACE_START.search(text)), None)
    if start is None:
        return _primary(texts, stack)
    end = next(
        (
            i
            for i in range(start + 1, len(texts))
            if frames.TRACE_START.search(texts[i])
            or frames.user_pc(texts[i])
            or _OTHER_STACK.match(texts[i])
        ),
        len(texts),
    )
    return [frame for frame in stack if start <= frame.index < end]


def _asleep(stack: list[Frame]) -> list[Frame]:
    """What is below the switch to another task."""
    last = -1
    for place, frame in enumerate(stack[:6]):
        if re.fullmatch(r"__switch_to|__schedule|schedule|context_switch", frame.function):
            last = place
    return stack[last + 1 :]


def _asked(stack: Sequence[Frame]) -> Frame | None:
    """What was asked for: the frame above the first point where the kernel dispatches."""
    previous: Frame | None = None
    for frame in stack:
        if previous is not None and skips.DISPATCH.fullmatch(frames.clean(frame.function)):
            return previous
        if not skipped(frame.function, skips.SWITCHING):
            previous = frame
            if frames.name(frame.function) == "smp_call_function":
                break
    return previous


def _stalled(texts: Sequence[str], stack: list[Frame]) -> Frame | None:
    """What was asked for in the stack that the processor was stuck in."""
    spare: Frame | None = None
    for part in _stacks(texts, stack):
        running, sure = _interrupted(part)
        if not running or re.search(r"idle|swapper", " ".join(f.function for f in running[:3])):
            continue
        frame = _asked(running)
        if frame is None or frame.function in ("__switch_to", "_stext"):
            continue
        if sure:
            return frame
        spare = spare or frame
    return spare


_NEW_STACK = re.compile(
    r"^CPU: \d+ .*PID: |NMI backtrace for cpu|Sending NMI|kthread stack dump|^task:|^Task dump for|"
    r"^\S+ +[RDSI] .*\d+ +\d+ +\d+ +0x|stack backtrace:"
)


def _stacks(texts: Sequence[str], stack: list[Frame]) -> list[list[Frame]]:
    """The report's traces, one list each; the grace-period thread's own is left out."""
    starts = [0]
    traced = False
    for index, text in enumerate(texts):
        fresh = bool(_NEW_STACK.search(text))
        header = bool(frames.TRACE_START.search(text))
        if fresh or (header and traced):
            starts.append(index)
            traced = False
        traced = traced or header
    parts = []
    for begin, end in pairwise([*starts, len(texts)]):
        part = [frame for frame in stack if begin <= frame.index < end]
        if part and not any(frame.function.startswith("rcu_gp_") for frame in part):
            parts.append(part)
    return parts


def _interrupted(part: list[Frame]) -> tuple[list[Frame], bool]:
    """What ran when the tick or the NMI found it, and whether the trace shows that it ran."""
    if part[0].pc:
        return part, True
    for place, frame in enumerate(part):
        if skips.INTERRUPTS.fullmatch(frames.clean(frame.function)):
            while place + 1 < len(part) and skips.INTERRUPTS.fullmatch(
                frames.clean(part[place + 1].function)
            ):
                place += 1
            return part[place + 1 :], True
    return part, False


_AT = re.compile(r"\bat: (?:\[<[0-9a-f]+>\] ?)*(?P<func>[A-Za-z_][\w.]*)(?=[+\s]|$)")
_CHAIN_BEGINS = re.compile(r"existing dependency|stack backtrace")
_SAFE = re.compile(r"which became \w+-irq-safe at")


def _locking(form: Format, kind: Kind, texts: Sequence[str], stack: list[Frame]) -> str:
    """Who takes the lock, by lockdep's own "at:", unless that is a primitive; else by the stack."""
    if kind is Kind.LOCKDEP_IRQ_ORDER:
        begin = next((i for i, text in enumerate(texts) if _SAFE.search(text)), None)
        if begin is not None:
            frame = _first([f for f in stack if f.index > begin])
            if frame is not None:
                return frames.name(frame.function)
    limit = next(
        (
            i
            for i, text in enumerate(texts)
            if re.search(r"existing dependency|stack backtrace", text)
        ),
        len(texts),
    )
    for index, text in enumerate(texts[:limit]):
        at = _AT.search(text)
        if at is not None:
            if (form.recipe is Recipe.HELD or not re.match(r" *#\d+: ", text)) and not skipped(
                at["func"]
            ):
                return frames.name(at["func"])
        elif index and texts[index - 1].rstrip().endswith(" at:") and form.recipe is Recipe.LOCKDEP:
            frame = frames.parse(text, index)
            if (
                frame is not None
                and "became" not in texts[index - 1]
                and "registered" not in (texts[index - 1])
                and not skipped(frame.function)
            ):
                return frames.name(frame.function)
    start = next((i for i, t in enumerate(texts) if "stack backtrace:" in t), None)
    if start is None:
        start = next((i for i, t in enumerate(texts) if frames.TRACE_START.search(t)), 0)
    frame = _first([f for f in stack if f.index >= start], skips.SWITCHING)
    return frames.name(frame.function) if frame is not None else ""


# --- the file to blame ---------------------------------------------------------------------------

_POSITION = re.compile(r"(?<![\w.])([A-Za-z][\w.+-]*(?:/[\w.+-]+)+\.(?:c|h|S|rs)):\d+")


def guilty_file(texts: Sequence[str]) -> str:
    """The first source file that is not the machinery of skipped functions; "" if none is named."""
    spare = ""
    for index, text in enumerate(texts):
        for found in _POSITION.finditer(text):
            path = found[1]
            frame = frames.parse(text, index)
            if (frame is not None and frame.guess) or skips.FILES.match(path):
                continue
            if frame is not None and skipped(frame.function):
                spare = spare or path
                continue
            return path
    return spare


# --- title, fingerprint, soundness ---------------------------------------------------------------


def _title(
    template: str, kind: Kind, match: re.Match[str], texts: Sequence[str], function: str
) -> str:
    groups = {key: value or "" for key, value in match.groupdict().items()}
    groups["function"] = function or "an unknown function"
    groups["access"] = _access(texts) if kind is Kind.KASAN else ""
    groups["message"] = next((t.strip() for t in texts[1:2]), "rust panic")
    if "what" in groups and "{what}" in template:
        groups["what"] = normalise(groups["what"]).strip(" .:;!")
    title = template.format_map(groups)
    if kind is Kind.UBSAN:
        title = title.replace("Undefined", "undefined").replace(" behaviour", "-behaviour")
    return " ".join(title.split())[:200]


def _access(texts: Sequence[str]) -> str:
    for text in texts[1:6]:
        found = re.match(r"\s*(Read|Write) (?:of size \d+ )?at addr", text)
        if found:
            return f" {found[1]}"
    return ""


def normalise(text: str) -> str:
    """Numbers, addresses, CPUs and pids out of a title."""
    for pattern, word in _NUMBERS:
        text = pattern.sub(word, text)
    return text


def fingerprint(kind: Kind, title: str) -> str:
    """Equal for equal bugs: over addresses, CPUs, pids, boots, builds and inlining."""
    family = "lockdep" if kind.value.startswith("lockdep-") else kind.value
    return hashlib.sha256(f"{family}\n{title}".encode()).hexdigest()[:16]


# A line that begins another stack dump: its frames cannot be told from those of this report.
_INTRUDER = re.compile(
    r"FAULT_INJECTION: |(?:page )?allocation failure|invoked oom-killer|^CPU: \d+ .*PID: |"
    r"^-+\[ cut here \]|^={20,}|^(?:BUG|WARNING|INFO): |general protection fault|^Oops"
)


def _intruder(lines: Sequence[Line]) -> str:
    """The line inside the first trace at which another dump begins; "" if there is none."""
    start = next((i for i, line in enumerate(lines) if frames.TRACE_START.search(line.text)), None)
    if start is None:
        return ""
    found = ""
    for line in lines[start + 1 :]:
        text = line.text
        if frames.TRACE_START.search(text) or frames.user_pc(text) or _OTHER_STACK.match(text):
            return ""
        if _INTRUDER.search(text):
            found = text.strip()
        elif found and frames.parse(text) is not None:
            return found
    return ""


def _corrupted(
    form: Format, lines: Sequence[Line], stack: list[Frame], function: str, lost: bool
) -> str:
    """Why the report may not be whole; "" if it looks whole."""
    texts = [line.text for line in lines]
    if lines[0].torn:
        return "another message in the opening line"
    if form.stack and not stack:
        return "no stack trace"
    if form.stack and form.recipe is not Recipe.NONE and not function:
        return "no frame of the stack can be blamed"
    if form.recipe is Recipe.PC and all(frame.pc for frame in stack):
        return "the stack trace is missing"
    freed = "free in" in texts[0]
    if form.kind is Kind.KASAN and not freed and not any(map(_ACCESS.match, texts[1:8])):
        return "the line that names the access is missing"
    if lost:
        return "printk dropped messages"
    intruder = _intruder(lines)
    if intruder:
        return f"another message inside the stack trace: {intruder[:60]}"
    return ""


_ACCESS = re.compile(r"\s*(?:Read|Write|Free) (?:of (?:size \d+|addr)|at addr)|.*by task ")
