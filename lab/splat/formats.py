"""The table of everything that opens a splat: needle, pattern, kind, title, where the blame lies.

Data only. The detector tests the needles of a line first (a substring test), then the patterns of
the rows with that needle, in the order of the table; the first match wins. The strings are those
that the kernel's own printk calls produce; the comment above a group names their home.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from lab.splat.kinds import FATAL, Kind


class Recipe(StrEnum):
    """Where in a report the function to blame is named."""

    BANNER = "banner"  # in the opening line itself, else as PC
    PC = "pc"  # the instruction pointer, else the first stack
    STACK = "stack"  # the first stack
    STALL = "stall"  # below the interrupt, at the entry of what was going round
    SLEEP = "sleep"  # what the blocked task was waiting in
    DEEP = "deep"  # the entry of what used the stack up, as with a stall
    LOCKDEP = "lockdep"  # who acquires the lock
    HELD = "held"  # who took the lock that is still held
    ALLOCATION = "allocation"  # kmemleak's stack of the allocation
    NONE = "none"  # the line says it all


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way in which a kernel opens a report."""

    needle: str
    pattern: re.Pattern[str]
    kind: Kind
    title: str  # named groups of the pattern may be used; {function} comes from the recipe
    recipe: Recipe
    stack: bool = True  # without a stack the report is not whole

    @property
    def fatal(self) -> bool:
        """Can the machine not be trusted to go on? A sentence that only begins with BUG: can."""
        return self.kind in FATAL and (self.kind is not Kind.BUG or self.recipe is not Recipe.NONE)


def _row(
    needle: str, pattern: str, kind: Kind, title: str, recipe: Recipe, *, stack: bool = True
) -> Format:
    return Format(
        needle=needle,
        pattern=re.compile(pattern),
        kind=kind,
        title=title,
        recipe=recipe,
        stack=stack,
    )


# A function as a banner names it, also a source position that a symboliser put in its place.
_F = r"(?P<function>[A-Za-z_$<][\w.$:<>]*?)"
_AT = r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?"

FORMATS: tuple[Format, ...] = (
    # --- sanitizers: mm/kasan/report.c, mm/kfence/report.c, kernel/kcsan, mm/kmsan, lib/ubsan.c
    _row(
        "KASAN:",
        r"BUG: KASAN: (?P<what>[a-z0-9-]+(?: or [a-z-]+)?)"
        rf"(?: on address .*?| in (?:(?:{_F}{_AT}.*|\S+)))(?: at addr .*)?$",
        Kind.KASAN,
        "KASAN: {what}{access} in {function}",
        Recipe.BANNER,
    ),
    _row(
        "KASAN:",
        r"BUG: KASAN: (?P<what>[a-z0-9-]+(?: or [a-z-]+)?)",
        Kind.KASAN,
        "KASAN: {what}{access} in {function}",
        Recipe.BANNER,
    ),
    _row(
        "KFENCE:",
        rf"BUG: KFENCE: (?P<what>[a-z -]+?)(?: in {_F}{_AT}.*| in .*)?$",
        Kind.KFENCE,
        "KFENCE: {what} in {function}",
        Recipe.BANNER,
    ),
    _row(
        "KCSAN:",
        r"BUG: KCSAN: (?P<what>data-race) in (?P<function>[\w.]+) / (?P<other>[\w.]+)",
        Kind.KCSAN,
        "KCSAN: data-race in {function}",
        Recipe.BANNER,
    ),
    _row(
        "KCSAN:",
        rf"BUG: KCSAN: (?P<what>.+?) in {_F}(?:{_AT}.*)?$",
        Kind.KCSAN,
        "KCSAN: {what} in {function}",
        Recipe.BANNER,
    ),
    _row(
        "KMSAN:",
        rf"BUG: KMSAN: (?P<what>[a-z-]+(?: [a-z-]+)*?)(?: in {_F}(?:{_AT}.*)?)?$",
        Kind.KMSAN,
        "KMSAN: {what} in {function}",
        Recipe.BANNER,
    ),
    _row(
        "UBSAN:",
        r"UBSAN: (?P<what>[A-Za-z-]+(?: [a-z-]+)*?) in ",
        Kind.UBSAN,
        "UBSAN: {what} in {function}",
        Recipe.STACK,
    ),
    _row(
        "memory leak",
        r"BUG: memory leak",
        Kind.KMEMLEAK,
        "memory leak in {function}",
        Recipe.ALLOCATION,
        stack=False,
    ),
    _row(
        "unreferenced object",
        r"^unreferenced object 0x[0-9a-f]+ \(size \d+\)",
        Kind.KMEMLEAK,
        "memory leak in {function}",
        Recipe.ALLOCATION,
        stack=False,
    ),
    _row(
        "suspected memory leak",
        r"kmemleak: \d+ new suspected memory leaks?",
        Kind.KMEMLEAK,
        "memory leak",
        Recipe.NONE,
        stack=False,
    ),
    # --- lockdep: kernel/locking/lockdep.c
    _row(
        "possible circular locking",
        r"possible circular locking dependency detected",
        Kind.LOCKDEP_CIRCULAR,
        "possible deadlock in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "possible recursive locking",
        r"possible recursive locking detected",
        Kind.LOCKDEP_RECURSIVE,
        "possible deadlock in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "irq lock inversion",
        r"possible irq lock inversion dependency detected",
        Kind.LOCKDEP_IRQ_INVERSION,
        "possible deadlock in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "unsafe lock order",
        r"[\w-]+-safe -> [\w-]+-unsafe lock order detected",
        Kind.LOCKDEP_IRQ_ORDER,
        "possible deadlock in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "possible deadlock",
        r"possible deadlock detected",
        Kind.LOCKDEP_DEADLOCK,
        "possible deadlock in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "inconsistent",
        r"inconsistent lock state",
        Kind.LOCKDEP_INCONSISTENT,
        "inconsistent lock state in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "nvalid wait context",
        r"BUG: Invalid wait context",
        Kind.LOCKDEP_WAIT_CONTEXT,
        "WARNING: locking bug in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "bad unlock balance",
        r"bad unlock balance detected",
        Kind.LOCKDEP_UNLOCK_BALANCE,
        "bad unlock balance in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "bad contention detected",
        r"bad contention detected",
        Kind.LOCKDEP_OTHER,
        "bad lock contention in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "chain_key collision",
        r"chain_key collision",
        Kind.LOCKDEP_OTHER,
        "lockdep: chain key collision",
        Recipe.NONE,
    ),
    _row(
        "held lock freed",
        r"held lock freed",
        Kind.LOCKDEP_HELD_LOCK,
        "held lock freed in {function}",
        Recipe.HELD,
    ),
    _row(
        "locks held",
        r"still has locks held",
        Kind.LOCKDEP_HELD_LOCK,
        "still has locks held in {function}",
        Recipe.HELD,
    ),
    _row(
        "lock held when returning",
        r"lock held when returning to user space",
        Kind.LOCKDEP_HELD_LOCK,
        "lock held when returning to user space in {function}",
        Recipe.HELD,
        stack=False,
    ),
    _row(
        "lock held at task exit",
        r"lock held at task exit time",
        Kind.LOCKDEP_HELD_LOCK,
        "lock held at task exit in {function}",
        Recipe.HELD,
    ),
    _row(
        "Nested lock was not taken",
        r"Nested lock was not taken",
        Kind.LOCKDEP_NESTED,
        "WARNING: nested lock was not taken in {function}",
        Recipe.STACK,
    ),
    _row(
        "non-static key",
        r"INFO: trying to register non-static key",
        Kind.LOCKDEP_KEY,
        "INFO: trying to register non-static key in {function}",
        Recipe.STACK,
    ),
    _row(
        "suspicious RCU usage",
        r"suspicious RCU usage",
        Kind.RCU_USAGE,
        "suspicious RCU usage in {function}",
        Recipe.LOCKDEP,
    ),
    _row(
        "has not been registered",
        r"BUG: key [0-9a-f]+ has not been registered",
        Kind.LOCKDEP_KEY,
        "BUG: lock key has not been registered in {function}",
        Recipe.STACK,
        stack=False,
    ),
    _row(
        "invalid subclass",
        r"BUG: looking up invalid subclass",
        Kind.LOCKDEP_OTHER,
        "BUG: looking up invalid lock subclass in {function}",
        Recipe.STACK,
        stack=False,
    ),
    _row(
        "too low!",
        r"BUG: (?P<what>MAX_\w+) too low!",
        Kind.LOCKDEP_LIMIT,
        "BUG: {what} too low",
        Recipe.NONE,
        stack=False,
    ),
    # --- lib/spinlock debug: kernel/locking/spinlock_debug.c
    _row(
        "BUG:",
        r"BUG: (?P<what>(?:spinlock|rwlock|rwsem|rtmutex|mutex) [a-z -]+?)"
        r"(?: on CPU| detected|[,!:]|$)",
        Kind.SPINLOCK_DEBUG,
        "BUG: {what} in {function}",
        Recipe.STACK,
    ),
    # --- context: kernel/sched/core.c, lib/smp_processor_id.c, kernel/workqueue.c
    _row(
        "BUG: workqueue leaked",
        r"BUG: workqueue leaked (?:lock|atomic)",
        Kind.WQ_LEAKED_LOCK,
        "BUG: workqueue leaked lock or atomic in {function}",
        Recipe.STACK,
    ),
    _row(
        "sleeping function called",
        r"BUG: sleeping function called from invalid context",
        Kind.ATOMIC_SLEEP,
        "BUG: sleeping function called from invalid context in {function}",
        Recipe.STACK,
    ),
    _row(
        "while atomic",
        r"BUG: scheduling while atomic",
        Kind.ATOMIC_SLEEP,
        "BUG: scheduling while atomic in {function}",
        Recipe.STACK,
    ),
    _row(
        "BUG: ",
        r"BUG: (?P<what>scheduling in a non-blocking section|assuming (?:atomic|non migratable))",
        Kind.ATOMIC_SLEEP,
        "BUG: {what} in {function}",
        Recipe.STACK,
    ),
    _row(
        "preemptible",
        r"BUG: using (?P<what>\w+)\(\) in preemptible",
        Kind.PREEMPT_DEBUG,
        "BUG: using {what}() in preemptible code in {function}",
        Recipe.STACK,
    ),
    # --- no progress: kernel/hung_task.c, watchdog.c, rcu/tree_stall.h, rcu/tasks.h, workqueue.c
    _row(
        "blocked",
        r"INFO: task \S.{0,60}:\d+ (?:is )?blocked (?:on|for|in)\b",
        Kind.HUNG_TASK,
        "INFO: task hung in {function}",
        Recipe.SLEEP,
    ),
    _row(
        "can't die",
        r"INFO: task .{1,60} can't die for more than",
        Kind.HUNG_TASK,
        "INFO: task can't die in {function}",
        Recipe.SLEEP,
    ),
    _row(
        "soft lockup",
        r"BUG: soft lockup",
        Kind.SOFT_LOCKUP,
        "BUG: soft lockup in {function}",
        Recipe.STALL,
    ),
    _row(
        "hard LOCKUP",
        r"Watchdog detected hard LOCKUP",
        Kind.HARD_LOCKUP,
        "BUG: hard lockup in {function}",
        Recipe.STALL,
    ),
    _row(
        "LOCKUP",
        r"Watchdog detected LOCKUP",
        Kind.HARD_LOCKUP,
        "BUG: hard lockup in {function}",
        Recipe.STALL,
    ),
    _row(
        "stall",
        r"INFO: (?:rcu_?\w*|\S+) (?:self-)?detected (?:expedited )?stalls? on",
        Kind.RCU_STALL,
        "INFO: rcu detected stall in {function}",
        Recipe.STALL,
    ),
    _row(
        "stall",
        r"(?:rcu|srcu)\w*:? .*\b(?:self-)?detected (?:expedited )?stalls?(?: |, but)",
        Kind.RCU_STALL,
        "INFO: rcu detected stall in {function}",
        Recipe.STALL,
    ),
    _row(
        "workqueue lockup",
        r"BUG: workqueue lockup",
        Kind.WQ_LOCKUP,
        "BUG: workqueue lockup",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "unregister_netdevice",
        r"unregister_netdevice: waiting for (?P<what>\S+) to become free",
        Kind.NETDEV_REFLEAK,
        "unregister_netdevice: waiting for DEV to become free",
        Recipe.NONE,
        stack=False,
    ),
    # --- stack: arch/*/kernel/traps.c, kernel/panic.c, kernel/sched/core.c
    _row(
        "stack guard page",
        r"BUG: (?:\S+ )?stack guard page was hit",
        Kind.STACK_OVERFLOW,
        "BUG: stack guard page was hit in {function}",
        Recipe.DEEP,
    ),
    _row(
        "corrupted stack end",
        r"corrupted stack end detected inside scheduler",
        Kind.STACK_OVERFLOW,
        "kernel panic: corrupted stack end in {function}",
        Recipe.DEEP,
    ),
    _row(
        "Insufficient stack space",
        r"Insufficient stack space to handle exception",
        Kind.STACK_OVERFLOW,
        "kernel stack overflow in {function}",
        Recipe.DEEP,
    ),
    _row(
        "kernel stack overflow",
        r"kernel stack overflow",
        Kind.STACK_OVERFLOW,
        "kernel stack overflow in {function}",
        Recipe.DEEP,
    ),
    _row(
        "tack is corrupted",
        rf"[Kk]ernel stack is corrupted in: +(?:{_F}{_AT}|\S+)",
        Kind.STACK_CORRUPTION,
        "kernel panic: stack is corrupted in {function}",
        Recipe.BANNER,
        stack=False,
    ),
    # --- faults: arch/x86/mm/fault.c, arch/x86/kernel/traps.c, arch/arm64/mm/fault.c
    _row(
        "double fault",
        r"(?:PANIC: )?double fault[,:]",
        Kind.DOUBLE_FAULT,
        "PANIC: double fault in {function}",
        Recipe.PC,
    ),
    _row(
        "PANIC: early exception",
        r"^PANIC: early exception",
        Kind.OOPS,
        "early exception in {function}",
        Recipe.PC,
        stack=False,
    ),
    _row(
        "NULL pointer dereference",
        r"(?:BUG: .*NULL pointer dereference|[Uu]nable to handle kernel NULL pointer dereference)",
        Kind.NULL_DEREF,
        "BUG: unable to handle kernel NULL pointer dereference in {function}",
        Recipe.PC,
    ),
    _row(
        "nable to handle",
        r"[Uu]nable to handle (?:kernel \S.*|page fault|userspace)",
        Kind.PAGE_FAULT,
        "BUG: unable to handle kernel paging request in {function}",
        Recipe.PC,
    ),
    _row(
        "nable to handle",
        r"^BUG: unable to handle",
        Kind.PAGE_FAULT,
        "BUG: unable to handle kernel paging request in {function}",
        Recipe.PC,
    ),
    _row(
        "general protection fault",
        r"general protection fault(?:,[^:]*|): (?:maybe |probably )?[0-9a-f]{4}\b",
        Kind.GPF,
        "general protection fault in {function}",
        Recipe.PC,
    ),
    _row(
        "general protection fault",
        r"^(?:Oops: )?general protection fault(?!.* error:\w+ in | ip:)",
        Kind.GPF,
        "general protection fault in {function}",
        Recipe.PC,
    ),
    _row(
        "ernel BUG",
        r"[kK]ernel BUG\b",
        Kind.BUG,
        "kernel BUG in {function}",
        Recipe.PC,
    ),
    _row(
        "divide",
        r"divide[ _]error:",
        Kind.OOPS,
        "divide error in {function}",
        Recipe.PC,
    ),
    _row(
        "invalid opcode",
        r"invalid opcode: [0-9a-f]{4}",
        Kind.OOPS,
        "invalid opcode in {function}",
        Recipe.PC,
    ),
    _row("int3:", r"(?:^|Oops: )int3: ", Kind.OOPS, "int3 in {function}", Recipe.PC),
    _row(
        "segment",
        r"(?P<what>stack segment|segment not present|coprocessor segment overrun): [0-9a-f]{4}",
        Kind.OOPS,
        "{what} fault in {function}",
        Recipe.PC,
    ),
    _row(
        "Internal error:",
        r"Internal error:",
        Kind.OOPS,
        "Internal error in {function}",
        Recipe.PC,
    ),
    _row(
        "exception on CPU",
        r"Unhandled (?:32|64)-bit \S+ \w+ exception on CPU",
        Kind.OOPS,
        "Unhandled exception in {function}",
        Recipe.PC,
    ),
    _row(
        "Unhandled fault:",
        r"Unhandled fault:",
        Kind.OOPS,
        "Unhandled fault in {function}",
        Recipe.PC,
    ),
    _row(
        "Alignment trap:",
        r"Alignment trap:",
        Kind.OOPS,
        "Alignment trap in {function}",
        Recipe.PC,
    ),
    _row(
        "SError Interrupt",
        r"SError Interrupt on CPU",
        Kind.OOPS,
        "SError in {function}",
        Recipe.PC,
    ),
    _row(
        "Oops",
        r"^Oops(?: - [^:]+)?: (?P<what>\D[\w ,-]*?): [0-9a-f]{4} \[#",
        Kind.OOPS,
        "{what} in {function}",
        Recipe.PC,
    ),
    _row("Oops", r"^Oops(?: - [^:]+)?: ", Kind.OOPS, "Oops in {function}", Recipe.PC),
    # die() of x86 before 6.10: whatever the trap is called (arch/x86/kernel/traps.c)
    _row(
        " [#",
        r"^(?P<what>[a-z][\w ,-]*?): [0-9a-f]{4} \[#\d+\]",
        Kind.OOPS,
        "{what} in {function}",
        Recipe.PC,
    ),
    _row(
        "CFI failure",
        rf"CFI failure (?:at {_F}{_AT}|\()",
        Kind.WARNING,
        "CFI failure in {function}",
        Recipe.BANNER,
        stack=False,
    ),
    # --- rust: rust/kernel/lib.rs
    _row(
        "rust_kernel: panicked",
        r"rust_kernel: panicked at ",
        Kind.RUST_PANIC,
        "{message} in {function}",
        Recipe.STACK,
    ),
    # --- memory management and file systems
    _row(
        "BUG: Bad page",
        r"BUG: Bad page (?P<what>state|map|cache)",
        Kind.BAD_PAGE,
        "BUG: Bad page {what} in {function}",
        Recipe.STACK,
    ),
    _row(
        "Bad rss-counter",
        r"BUG: Bad rss-counter state",
        Kind.BAD_PAGE,
        "BUG: Bad rss-counter state",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "BUG: non-zero",
        r"BUG: non-zero (?P<what>\w+) on freeing mm",
        Kind.BAD_PAGE,
        "BUG: non-zero {what} on freeing mm",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "BUG ",
        r"^BUG (?P<what>\S+?)(?: \([^)]*\))?: (?P<how>\S.*?)\s*$",
        Kind.SLAB_CORRUPTION,
        "BUG: {how} in {function}",
        Recipe.STACK,
    ),
    _row(
        "slab error in",
        r"slab error in (?P<what>\w+)\(\): cache `",
        Kind.SLAB_CORRUPTION,
        "slab error in {function}",
        Recipe.STACK,
    ),
    _row(
        "INFO:",
        r"INFO: (?P<what>Allocated|Freed) in (?P<function>\w+)",
        Kind.SLAB_CORRUPTION,
        "INFO: {what} in {function}",
        Recipe.BANNER,
    ),
    _row(
        "INFO:",
        r"INFO: (?P<what>Slab 0x|Object 0x|0x[0-9a-f]+-0x)",
        Kind.SLAB_CORRUPTION,
        "slab corruption in {function}",
        Recipe.STACK,
    ),
    _row(
        "pagealloc: ",
        r"pagealloc: (?P<what>single bit error|memory corruption)",
        Kind.BAD_PAGE,
        "pagealloc: {what} in {function}",
        Recipe.STACK,
        stack=False,
    ),
    _row(
        " swap ",
        r": (?P<what>(?:Bad|Unused) swap (?:file|offset) entry) [0-9a-f]+",
        Kind.BAD_PAGE,
        "{what}",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "Page cache invalidation failure",
        r"Page cache invalidation failure on direct I/O",
        Kind.FS_ERROR,
        "page cache invalidation failure on direct I/O",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "BUG: Dentry",
        r"BUG: Dentry \S+\{.*still in use",
        Kind.VFS,
        "BUG: Dentry still in use in {function}",
        Recipe.STACK,
    ),
    _row(
        "VFS:",
        r"VFS: (?P<what>Busy inodes after unmount|Close: file count is 0|Mount too revealing)",
        Kind.VFS,
        "VFS: {what}",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "invoked oom-killer",
        r"\S+ invoked oom-killer:",
        Kind.OOM,
        "out of memory",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "page allocation failure",
        r"page allocation (?:failure|stalls)",
        Kind.ALLOC_FAILURE,
        "page allocation failure in {function}",
        Recipe.STACK,
    ),
    _row(
        "-fs error",
        r"(?P<fs>EXT\d)-fs error \(device [^)]*\)(?: in)?:? ?(?P<function>\w+):\d+",
        Kind.FS_CORRUPTION,
        "{fs}-fs error in {function}",
        Recipe.BANNER,
        stack=False,
    ),
    _row(
        "-fs error",
        r"(?P<fs>EXT\d)-fs error",
        Kind.FS_CORRUPTION,
        "{fs}-fs error",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "-fs (",
        r"EXT4-fs \([^)]*\): .*(?P<what>Data will be lost|potential data loss)",
        Kind.FS_CORRUPTION,
        "EXT4-fs: data loss",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "detected at",
        r"XFS \([^)]*\): "
        r"(?P<what>(?:Metadata )?(?:corruption|CRC error) detected) at (?P<function>\w+)",
        Kind.FS_CORRUPTION,
        "XFS: {what} in {function}",
        Recipe.BANNER,
        stack=False,
    ),
    _row(
        "Internal error",
        r"XFS \([^)]*\): Internal error .* Caller (?P<function>\w+)",
        Kind.FS_CORRUPTION,
        "XFS: internal error in {function}",
        Recipe.BANNER,
        stack=False,
    ),
    _row(
        "Assertion failed",
        r"XFS(?: \([^)]*\))?: Assertion failed: .*file: (?P<what>\S+?),",
        Kind.FS_CORRUPTION,
        "XFS: assertion failed in {what}",
        Recipe.NONE,
        stack=False,
    ),
    *(
        _row(
            needle,
            r"XFS \([^)]*\): (?P<what>Corruption of (?:in-memory data|on-disk metadata)"
            r"|Corruption detected|Filesystem has been shut down"
            r"|(?:[Mm]etadata|[Ll]og) I/O [Ee]rror)",
            Kind.FS_ERROR,
            "XFS: {what}",
            Recipe.NONE,
            stack=False,
        )
        for needle in ("Corruption", "been shut down", "I/O error", "I/O Error")
    ),
    *(
        _row(
            needle,
            r"BTRFS (?:critical|error|warning) \(device [^)]*\)[^:]*: (?:.*\b)?"
            r"(?P<what>corrupt(?:ed)? (?:leaf|node)|bad tree block|csum failed|"
            r"parent transid verify failed|checksum verify failed|checksum error)",
            Kind.FS_CORRUPTION,
            "BTRFS: {what}",
            Recipe.NONE,
            stack=False,
        )
        for needle in ("BTRFS critical", "BTRFS error", "BTRFS warning")
    ),
    _row(
        "BTRFS critical",
        r"BTRFS critical \(device [^)]*\)[^:]*: (?P<what>\S.*)",
        Kind.FS_ERROR,
        "BTRFS: {what}",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "leak",
        r"BTRFS: (?P<what>buffer|state) leak\b",
        Kind.FS_ERROR,
        "BTRFS: {what} leak",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "BTRFS: error",
        r"BTRFS: error \(device [^)]*\) in (?P<function>\w+):\d+",
        Kind.FS_ERROR,
        "BTRFS: error in {function}",
        Recipe.BANNER,
        stack=False,
    ),
    _row(
        "Transaction aborted",
        r"BTRFS: Transaction aborted",
        Kind.FS_ERROR,
        "BTRFS: transaction aborted in {function}",
        Recipe.PC,
        stack=False,
    ),
    _row(
        "JBD2:",
        r"JBD2: (?P<what>.*\b[Ee]rrors?\b|.*\bcorrupt(?:ion|ed)\b|Invalid checksum|bad block"
        r"|.*assertion failure|.*recovery failed|leaked)",
        Kind.FS_ERROR,
        "JBD2: {what}",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "Aborting journal",
        r"Aborting journal on device",
        Kind.FS_ERROR,
        "JBD2: journal aborted",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "FAT-fs",
        r"FAT-fs \([^)]*\): error, (?P<what>.*)",
        Kind.FS_CORRUPTION,
        "FAT-fs: {what}",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        " error, dev ",
        r"(?:blk_update_request: )?(?P<what>(?:critical \w+|I/O|protection|timeout|nonblocking "
        r"retry|recoverable transport)[\w ]* error), dev \S+, sector \d+",
        Kind.IO_ERROR,
        "block layer: {what}",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "Buffer I/O error",
        r"Buffer I/O error on dev(?:ice)? ",
        Kind.IO_ERROR,
        "buffer I/O error",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "nobody cared",
        r"irq \d+: nobody cared",
        Kind.IRQ_NOBODY,
        "irq: nobody cared",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "NETDEV WATCHDOG",
        r"NETDEV WATCHDOG: \S+ \((?P<what>[^)]*)\)",
        Kind.NETDEV_WATCHDOG,
        "NETDEV WATCHDOG: {what}",
        Recipe.NONE,
        stack=False,
    ),
    _row(
        "[Hardware Error]",
        r"\[Hardware Error\]: .*(?:Machine Check|MC\d|event severity)",
        Kind.MCE,
        "machine check",
        Recipe.NONE,
        stack=False,
    ),
    # --- boot: init/do_mounts.c, init/main.c
    _row(
        "Unable to mount root",
        r"Kernel panic - not syncing: VFS: Unable to mount root fs",
        Kind.PANIC,
        "kernel panic: VFS: unable to mount root fs",
        Recipe.NONE,
        stack=False,
    ),
    # --- panic: kernel/panic.c
    _row(
        "ernel panic",
        r"Kernel panic - not syncing: +(?:\w+: )*?(?P<what>\S.*)",
        Kind.PANIC,
        "kernel panic: {what}",
        Recipe.NONE,
    ),
    _row(
        "ernel panic",
        r"[Kk]ernel panic - not syncing",
        Kind.PANIC,
        "kernel panic",
        Recipe.NONE,
    ),
    # --- unwinder: arch/x86/kernel/unwind_frame.c
    _row(
        "WARNING: kernel stack",
        r"WARNING: kernel stack (?P<what>regs|frame pointer) (?:at|in) .* "
        r"has bad (?P<how>'\w+' )?value",
        Kind.UNWINDER,
        "WARNING: kernel stack {what} has bad {how}value",
        Recipe.NONE,
        stack=False,
    ),
    # --- WARN(): kernel/panic.c, both the old order and that of 6.19 on
    _row(
        "WARNING:",
        rf"WARNING: (?:CPU: \d+ PID: \d+ )?at (?P<what>\S+:\d+)(?: (?:.*/)?{_F}{_AT}.*| .*)?$",
        Kind.WARNING,
        "WARNING in {function}",
        Recipe.BANNER,
    ),
    _row(
        "WARNING:",
        rf"WARNING: (?:\[.*?\] )?(?P<what>\S+:\d+) at (?:{_F}{_AT}|0x[0-9a-f]+|\S+).*",
        Kind.WARNING,
        "WARNING in {function}",
        Recipe.BANNER,
    ),
    _row(
        "WARNING:",
        rf"WARNING: (?:CPU: \d+ PID: \d+ )?at {_F}{_AT}",
        Kind.WARNING,
        "WARNING in {function}",
        Recipe.BANNER,
    ),
    _row(
        "WARNING:",
        r"WARNING: (?:CPU: \d+ PID: \d+|at \S+)",
        Kind.WARNING,
        "WARNING in {function}",
        Recipe.BANNER,
    ),
    _row(
        "WARNING:",
        r"^WARNING: (?P<what>\S.*)$",
        Kind.WARNING,
        "WARNING: {what}",
        Recipe.NONE,
        stack=False,
    ),
    # --- the rest of what calls itself a bug
    _row("BUG:", r"^BUG: (?P<what>\S.*)$", Kind.BUG, "BUG: {what}", Recipe.NONE, stack=False),
)

# A line that holds one of these is never the opening of a report.
IGNORED: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern)
    for pattern in (
        r"lockdep is turned off",  # said inside other reports
        r"Stall ended before state dump",
        r"INFO: NMI handler",
        r"messages suppressed$",  # BUG: Bad page state: 12 messages suppressed
        r"INFO: task \S.* is blocked on an? ",  # who holds it, at the end of a hung task's report
        r"took too long",
        r"recovery required on readonly filesystem",
        r"/proc/kallsyms",
        r"ssh/moduli",
        r"workqueue cpumask: online",
        r"mand mount option",
        r"Unsupported flag value",
        r"(?i)eBPF is enabled with eIBRS",
        r"fbcon: Driver",
        r"(?i)See https?://",  # advice on processor mitigations
        r"kernel not compiled with",
        r"(?i)uses (?:deprecated v\d cap|wireless extensions|\d+-bit cap)",
        r"XFS \([^)]*\): WARNING",
        r"general protection fault (?:ip:|.* error:\w+ in )",  # of a user process
        r"WARNING: (?:Unprivileged eBPF|Spectre)",
        r"no syscalls can create resource",
        r"replaying previous printk message",
    )
)

# Text before the opening that makes it somebody else's: a logger's level, a program, a quotation.
QUOTING: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern)
    for pattern in (
        r"[A-Z_](?:INFO|BUG|WARNING|panic)?$",  # DEBUG:, rmt_INFO:, xlog_panic:
        r"(?:^|[\s/])(?:systemd|dracut|init|udevd|sshd|login|cron|python\d?)[\w.-]*(?:\[\d+\])?: ",
        r"(?i)command line: ",
        r"EXT4-fs(?: \([^)]*\))?: ",
        r"audit: type=.*(?:msg|cmd|proctitle)=",
        r"segfault at ",
    )
)

# The first words of a booting kernel; seen late, the machine has restarted by itself.
BOOT_BANNER = re.compile(
    r"^(?:Linux version \d|Booting Linux on physical CPU|Booting the kernel\.)"
)

NEEDLES: tuple[str, ...] = tuple(dict.fromkeys(row.needle for row in FORMATS))

# Every line that opens a report holds one of these, few others do: they are what a healthy console
# is searched for, so they are what a gigabyte costs. Capitals are rare in a log, long strings are
# skipped fast; " [#" is that of die(), "%s: %04x [#1]".
GATES: tuple[str, ...] = (
    "Aborting journal",
    "Alignment trap",
    "Assertion failed",
    "BTRFS crit",
    "BTRFS warn",
    "Bad swap",
    "BUG",
    "CFI failure",
    "Data will be lost",
    "Filesystem has been shut",
    "INFO: ",
    "Insufficient stack",
    "JBD2",
    "Kernel panic",
    "NETDEV WATCHDOG",
    "Oops",
    "PANIC",
    "Page cache invalidation",
    "UBSAN",
    "Unable to handle",
    "Unhandled ",
    "Unused swap",
    "VFS:",
    "WARNING",
    " [#",
    "ation failure",
    "data loss",
    "detected",
    "leak",
    "nobody cared",
    "oom-killer",
    "pagealloc: ",
    "protection fault",
    "rror",
    "rust_kernel: panicked",
    "unreferenced object",
    "unregister_netdevice",
)

# A boot banner holds one of these.
BOOT_GATES: tuple[str, ...] = ("Booting ", "Linux version")
