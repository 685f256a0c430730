"""The lines of one report in; a `Splat` out: title, function, file, locks, fingerprint, soundness."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence

from lab.model import Splat
from lab.splat import frames, locks
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
# pattern over the lines round the opening, the kind it becomes, title or "" to keep it).
_REFINEMENTS: tuple[tuple[tuple[Kind, ...], re.Pattern[str], Kind, str], ...] = (
    (
        (Kind.WARNING,),
        re.compile(r"\brefcount_t: "),
        Kind.REFCOUNT,
        "WARNING: refcount bug in {function}",
    ),
    (
        (Kind.WARNING,),
        re.compile(r"\bODEBUG: (?:\S+ )+(?:active|not available|object)|lib/debugobjects\.c:"),
        Kind.ODEBUG,
        "WARNING: ODEBUG bug in {function}",
    ),
    (
        (Kind.WARNING,),
        re.compile(r"Bad or missing usercopy whitelist"),
        Kind.USERCOPY,
        "WARNING: bad usercopy in {function}",
    ),
    (
        (Kind.WARNING,),
        re.compile(
            r"DEBUG_LOCKS_WARN_ON|kernel/locking/(?:lockdep|mutex|rwsem|rtmutex)\S*\.[ch]:\d+"
        ),
        Kind.LOCKDEP_OTHER,
        "WARNING: locking bug in {function}",
    ),
    (
        (Kind.WARNING,),
        re.compile(r"WARNING: .*kobject|lib/kobject\.c:"),
        Kind.WARNING,
        "WARNING: kobject bug in {function}",
    ),
    (
        (Kind.WARNING,),
        re.compile(
            r"mm/(?:slab_common|slab|slub|page_alloc)\.c:\d+ .*(?:kmalloc|__alloc_page|alloc_pages)"
        ),
        Kind.WARNING,
        "WARNING: kmalloc bug in {function}",
    ),
    (
        (Kind.BUG, Kind.WARNING),
        re.compile(r"list_(?:add|del)\w* (?:double add|corruption)|lib/list_debug\.c"),
        Kind.LIST_CORRUPTION,
        "BUG: corrupted list in {function}",
    ),
    (
        (Kind.BUG,),
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
    mixed: bool,
    truncated: bool,
) -> Splat:
    """Make the splat of a report. `lines` hold it whole, as far as it was printed."""
    texts = [line.text for line in lines]
    kind, title = _refine(form, texts, opening)
    stack = [
        frame
        for index, text in enumerate(texts[opening:])
        if (frame := frames.parse(text, index)) is not None and not frame.guess
    ]
    function, file = _blame(form, kind, match, texts[opening:], stack)
    said = locks.involved(texts[opening:])
    corrupted = _corrupted(form, kind, texts[opening:], stack, function, lost, mixed, truncated)
    title = _title(title, kind, match, texts[opening:], function)
    return Splat(
        kind=kind,
        title=title,
        first_line=lines[0].number,
        last_line=lines[-1].number,
        function=function,
        file=file,
        fingerprint="" if corrupted and not function else _fingerprint(kind, title),
        corrupted=corrupted,
        fatal=fatal or kind in FATAL,
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


def _skipped(function: str, extra: re.Pattern[str] | None = None) -> bool:
    plain = frames.name(function)
    return bool(
        frames.REPORTERS.match(plain)
        or frames.PLUMBING.match(plain)
        or frames.INTERRUPTS.match(plain)
        or (extra is not None and extra.match(plain))
    )


def _first(stack: Sequence[Frame], extra: re.Pattern[str] | None = None) -> Frame | None:
    """The first frame that is to blame; the first at all where every one is skipped."""
    for frame in stack:
        if not _skipped(frame.function, extra):
            return frame
    return None


def _blame(
    form: Format, kind: Kind, match: re.Match[str], texts: Sequence[str], stack: list[Frame]
) -> tuple[str, str]:
    frame: Frame | None
    named = match.groupdict().get("function") or ""
    match form.recipe:
        case Recipe.NONE:
            return "", ""
        case Recipe.BANNER:
            other = match.groupdict().get("other")
            if other:
                return " / ".join(sorted((frames.name(named), frames.name(other)))), ""
            frame = None
            if named and not _skipped(named):
                frame = next((f for f in stack if f.function == named), None)
                return frames.name(named), _file(stack, frame)
            frame = _first(_primary(texts, stack))
        case Recipe.PC | Recipe.STACK:
            frame = _first(_primary(texts, stack))
        case Recipe.ALLOCATION | Recipe.SLEEP:
            frame = _first(_trace(texts, stack), frames.SCHEDULING)
        case Recipe.STALL:
            frame = _stalled(texts, stack)
        case Recipe.LOCKDEP:
            return _locking(texts, stack)
    if frame is None:
        return "", ""
    function = frames.name(frame.function)
    if function == "usb_submit_urb":
        after = [f for f in stack if f.index > frame.index]
        caller = _first(after)
        if caller is not None:
            function = f"{frames.name(caller.function)}/usb_submit_urb"
    return function, _file(stack, frame)


def _primary(texts: Sequence[str], stack: list[Frame]) -> list[Frame]:
    """The stack of what happened: up to the second trace header or the user's registers."""
    end = len(texts)
    traces = 0
    for index, text in enumerate(texts):
        if frames.user_pc(text) and index > 0 and traces:
            end = index
            break
        if frames.TRACE_START.search(text):
            traces += 1
            if traces > 1:
                end = index
                break
        if re.match(
            r"(?:Allocated|Freed)(?: by task \d+)?:|Uninit was|Local variable", text.strip()
        ):
            end = index
            break
    return [frame for frame in stack if frame.index < end]


def _trace(texts: Sequence[str], stack: list[Frame]) -> list[Frame]:
    start = next(
        (i for i, text in enumerate(texts) if re.search(r"Call [Tt]race|[Bb]acktrace", text)), 0
    )
    return _primary(texts[start:], []) or [
        frame
        for frame in stack
        if frame.index >= start and frame.index < _end_of_trace(texts, start)
    ]


def _end_of_trace(texts: Sequence[str], start: int) -> int:
    for index in range(start + 1, len(texts)):
        if frames.TRACE_START.search(texts[index]) or "NMI backtrace" in texts[index]:
            return index
    return len(texts)


# Where the kernel dispatches: the frame above one of these is what was asked for.
_DISPATCH = re.compile(
    r"(?:do_syscall_\w+|x64_sys_call|do_fast_syscall_32|__do_fast_syscall_32|do_int80\w*|entry_\w+|"
    r"el0_svc\w*|invoke_syscall|el0t?_\w+|ret_fast_syscall|syscall_\w+|sysenter_\w+|tracesys\w*|"
    r"system_call\w*|process_one_work|process_scheduled_works|worker_thread|kthread|ret_from_fork\w*|"
    r"task_work_run|exit_to_user\w*|call_timer_fn|expire_timers|_*run_timers|run_timer_softirq|"
    r"__hrtimer_run_queues|hrtimer_run_\w+|tasklet_action\w*|_*do_softirq\w*|handle_softirqs|"
    r"run_ksoftirqd|smpboot_thread_fn|_*netif_receive_skb\w*|netif_receive_generic\w*|process_backlog|net_rx_action|_*napi_poll|"
    r"do_idle|cpu_startup_entry|start_secondary|rest_init|start_kernel|"
    r"vfs_ioctl|do_vfs_ioctl|_*(?:se_|x64_|ia32_|arm64_|compat_)*sys_ioctl|ksys_ioctl|compat_ioctl|SyS_ioctl|SYSC_ioctl|"
    r"blkdev_ioctl|compat_blkdev_ioctl|blkdev_driver_ioctl|_*blkdev_driver_ioctl|"
    r"_*vfs_(?:read|write|iter_read|iter_write|fsync\w*|readv|writev)|new_sync_(?:read|write)|call_(?:read|write)_iter|do_iter_\w+|"
    r"_*sock_(?:sendmsg|recvmsg|release|close|ioctl|do_ioctl)\w*|_*__fput|rtnetlink_rcv_msg|nfnetlink_rcv\w*|"
    r"genl_\w*rcv_msg\w*|netlink_rcv_skb|rcu_do_batch|rcu_core\w*|do_one_initcall|"
    r"notifier_call_chain|do_exit|do_group_exit|_*sys_setsockopt|do_sock_setsockopt|_*sys_getsockopt)$"
)


def _stalled(texts: Sequence[str], stack: list[Frame]) -> Frame | None:
    """The function that was asked for in the stack that the processor was stuck in."""
    for part in _stacks(texts, stack):
        below = _below_interrupt(part)
        if not below:
            continue
        if frames.name(below[0].function) == "smp_call_function":
            return below[0]
        useful = [f for f in below if not _skipped(f.function)]
        if not useful:
            continue
        if _DISPATCH.match(useful[0].function) and "idle" in " ".join(
            f.function for f in below[:4]
        ):
            continue  # an idle processor: not the one that is stuck
        previous = useful[0]
        if frames.name(previous.function) == "smp_call_function":
            return previous
        for frame in below:
            if _DISPATCH.match(_clean(frame.function)):
                return previous
            if not _skipped(frame.function):
                previous = frame
        return previous if len(useful) > 1 else useful[0]
    return None


def _clean(function: str) -> str:
    return re.sub(r"\.(?:isra|part|constprop|cold)[.\w]*$", "", function)


def _stacks(texts: Sequence[str], stack: list[Frame]) -> list[list[Frame]]:
    """The report's traces, one list each; the grace-period thread's own is left out."""
    starts = [0] + [i for i, text in enumerate(texts) if _NEW_STACK.search(text)] + [len(texts)]
    parts: list[list[Frame]] = []
    for begin, end in itertools.pairwise(starts):
        part = [frame for frame in stack if begin <= frame.index < end]
        if part and not any(
            "rcu_gp_kthread" in f.function or "rcu_gp_fqs" in f.function for f in part
        ):
            parts.append(part)
    return parts


_NEW_STACK = re.compile(
    r"^CPU: \d+ .*PID: |NMI backtrace for cpu|Sending NMI|kthread stack dump|^task:|^\S+ +[RDSI] .*\d+ +\d+ +\d+ +0x|"
    r"^Task dump for CPU|stack backtrace:"
)
_INTERRUPTED = re.compile(
    r"(?:asm_)?(?:sysvec|smp|exc)?_?apic_timer_interrupt|asm_sysvec_\w+|el1h?(?:_64)?_irq\w*|apic_timer_interrupt|"
    r"__irq_svc|timer_interrupt\w*|ret_from_intr|reschedule_interrupt|call_function\w*_interrupt|"
    r"asm_common_interrupt|common_interrupt|asm_exc_nmi|end_repeat_nmi|nmi|el1_interrupt|asm_sysvec_apic\w*"
)


def _below_interrupt(part: list[Frame]) -> list[Frame]:
    """What was interrupted: the frames after the last entry of the timer interrupt or NMI."""
    last = -1
    for place, frame in enumerate(part):
        if _INTERRUPTED.fullmatch(_clean(frame.function)):
            last = place
            break
    return part[last + 1 :]


_ACQUIRES = re.compile(r"is trying to (?:acquire|release|contend) lock")
_AT = re.compile(r"\bat: (?:\[<[0-9a-f]+>\] ?)*(?P<func>[A-Za-z_][\w.]*)(?:\+0x|\s|$)(?P<rest>.*)")


def _locking(texts: Sequence[str], stack: list[Frame]) -> tuple[str, str]:
    """Who takes the lock: lockdep's own "at:" unless that is a lock primitive, else the stack."""
    for index, text in enumerate(texts):
        if _ACQUIRES.search(text):
            for later in texts[index : index + 3]:
                at = _AT.search(later)
                if at and not _skipped(at["func"]):
                    return frames.name(at["func"]), _file(
                        stack, next((f for f in stack if f.function == at["func"]), None)
                    )
            break
    start = next((i for i, t in enumerate(texts) if "stack backtrace:" in t), None)
    if start is None:
        start = next((i for i, t in enumerate(texts) if frames.TRACE_START.search(t)), 0)
    tail = [frame for frame in stack if frame.index >= start]
    frame = _first(tail)
    if frame is None:
        return "", ""
    return frames.name(frame.function), _file(stack, frame)


# Files that are never to blame: the machinery whose frames are skipped anyway, and headers.
_FILES_SKIPPED = re.compile(
    r"^(?:include/|lib/|mm/(?:kasan|kmsan|kfence|slab|slub|slab_common|util|vmalloc|page_alloc|percpu|kmemleak)|"
    r"kernel/(?:panic|locking/|kcsan|rcu/|sched/|workqueue|kthread|fork|exit|stacktrace|trace/|printk)|"
    r"arch/\w+/(?:include|kernel|lib|mm|entry)/|arch/\w+/entry|security/(?:selinux|security)|"
    r"net/core/(?:skbuff|sock|dev)\.c|net/socket\.c|fs/(?:read_write|ioctl|splice|open|file_table|namei)\.c)"
)


def _file(stack: list[Frame], frame: Frame | None) -> str:
    """The source file to blame, where the frames have positions."""
    if frame is not None and frame.file and not frame.file.endswith(".h"):
        return _path(frame.file)
    start = 0 if frame is None else frame.index
    for later in stack:
        if later.index >= start and later.file and not _FILES_SKIPPED.match(_path(later.file)):
            return _path(later.file)
    return _path(frame.file) if frame is not None else ""


def _path(file: str) -> str:
    return file.removeprefix("./")


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


def _fingerprint(kind: Kind, title: str) -> str:
    family = "lockdep" if kind.value.startswith("lockdep-") else kind.value
    return hashlib.sha256(f"{family}\n{title}".encode()).hexdigest()[:16]


def _corrupted(
    form: Format,
    kind: Kind,
    texts: Sequence[str],
    stack: list[Frame],
    function: str,
    lost: bool,
    mixed: bool,
    truncated: bool,
) -> str:
    """Why the report may not be whole; "" if it looks whole."""
    if re.search(r"\[ *\d+\.\d{6}\]", texts[0]):
        return "another message in the opening line"
    if form.stack and not stack:
        return "no stack trace"
    if form.stack and form.recipe is not Recipe.NONE and not function:
        return "no frame of the stack can be blamed"
    if lost:
        return "printk dropped messages"
    return ""
