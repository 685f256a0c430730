"""The closed vocabulary of what a kernel can complain about; the families that group it."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What a splat is. The value is what reports, allow-lists and JSON say."""

    # lock validator
    LOCKDEP_CIRCULAR = "lockdep-circular"
    LOCKDEP_RECURSIVE = "lockdep-recursive"
    LOCKDEP_IRQ_INVERSION = "lockdep-irq-inversion"
    LOCKDEP_IRQ_ORDER = "lockdep-irq-order"
    LOCKDEP_DEADLOCK = "lockdep-deadlock"
    LOCKDEP_INCONSISTENT = "lockdep-inconsistent"
    LOCKDEP_WAIT_CONTEXT = "lockdep-wait-context"
    LOCKDEP_UNLOCK_BALANCE = "lockdep-unlock-balance"
    LOCKDEP_HELD_LOCK = "lockdep-held-lock"
    LOCKDEP_NESTED = "lockdep-nested"
    LOCKDEP_KEY = "lockdep-key"
    LOCKDEP_LIMIT = "lockdep-limit"
    LOCKDEP_OTHER = "lockdep-other"
    RCU_USAGE = "rcu-usage"
    SPINLOCK_DEBUG = "spinlock-debug"
    WQ_LEAKED_LOCK = "wq-leaked-lock"
    # context
    ATOMIC_SLEEP = "atomic-sleep"
    PREEMPT_DEBUG = "preempt-debug"
    # assertions
    WARNING = "warning"
    REFCOUNT = "refcount"
    ODEBUG = "odebug"
    UNWINDER = "unwinder"
    BUG = "bug"
    LIST_CORRUPTION = "list-corruption"
    USERCOPY = "usercopy"
    # faults of the processor
    NULL_DEREF = "null-deref"
    PAGE_FAULT = "page-fault"
    GPF = "gpf"
    OOPS = "oops"
    DOUBLE_FAULT = "double-fault"
    STACK_OVERFLOW = "stack-overflow"
    STACK_CORRUPTION = "stack-corruption"
    # sanitizers
    KASAN = "kasan"
    KMSAN = "kmsan"
    KCSAN = "kcsan"
    KFENCE = "kfence"
    UBSAN = "ubsan"
    KMEMLEAK = "kmemleak"
    # no progress
    HUNG_TASK = "hung-task"
    SOFT_LOCKUP = "soft-lockup"
    HARD_LOCKUP = "hard-lockup"
    RCU_STALL = "rcu-stall"
    WQ_LOCKUP = "wq-lockup"
    # memory management, file systems, devices
    BAD_PAGE = "bad-page"
    SLAB_CORRUPTION = "slab-corruption"
    VFS = "vfs"
    NETDEV_REFLEAK = "netdev-refleak"
    OOM = "oom"
    ALLOC_FAILURE = "alloc-failure"
    FS_ERROR = "fs-error"
    FS_CORRUPTION = "fs-corruption"
    IO_ERROR = "io-error"
    IRQ_NOBODY = "irq-nobody"
    NETDEV_WATCHDOG = "netdev-watchdog"
    MCE = "mce"
    BOOT_FAILURE = "boot-failure"
    # the end
    PANIC = "panic"
    RUST_PANIC = "rust-panic"
    REBOOT = "reboot"


LOCKDEP = frozenset(kind for kind in Kind if kind.value.startswith("lockdep-"))

# Kinds after which lockdep has switched itself off (debug_locks_off()).
ENDS_LOCKDEP = (LOCKDEP - {Kind.LOCKDEP_OTHER}) | {Kind.SPINLOCK_DEBUG}

# Not a bug of the kernel by itself: a full machine, a broken disk, an injected failure.
CIRCUMSTANCES = frozenset(
    {
        Kind.OOM,
        Kind.ALLOC_FAILURE,
        Kind.FS_ERROR,
        Kind.IO_ERROR,
        Kind.IRQ_NOBODY,
        Kind.NETDEV_WATCHDOG,
        Kind.MCE,
    }
)

# After these the machine cannot be trusted to go on, whatever it goes on printing.
FATAL = frozenset(
    {
        Kind.NULL_DEREF,
        Kind.PAGE_FAULT,
        Kind.GPF,
        Kind.OOPS,
        Kind.DOUBLE_FAULT,
        Kind.STACK_OVERFLOW,
        Kind.STACK_CORRUPTION,
        Kind.BUG,
        Kind.LIST_CORRUPTION,
        Kind.PANIC,
        Kind.RUST_PANIC,
        Kind.REBOOT,
        Kind.BOOT_FAILURE,
        Kind.HARD_LOCKUP,
    }
)

# The processor was stuck in something: the top of the stack is where it happened to be.
STALLS = frozenset({Kind.RCU_STALL, Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP})
