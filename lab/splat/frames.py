"""Lines of a stack trace in; frames out, and which of them names a bug rather than its reporter."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SYMBOL = r"[A-Za-z_$][\w.$]*"
_OFFSET = r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?"
_WHERE = r"(?P<file>[\w./-]+\.(?:c|h|S|rs|cc|y|l)):(?P<line>\d+)"

# " func+0x1/0x2 [module] file.c:1", with one or two addresses or without, x86, arm64, ppc, riscv;
# "(func) from [<addr>]" of 32-bit arm; "func file.c:1 [inline]" of a symboliser.
_FRAME = re.compile(
    r"^\s*(?:#\d+:?\s+)?(?:\[ *<?(?:0x)?[0-9a-f]{4,16}>?\] ?){0,2}\s*(?P<guess>\? +)?"
    rf"\(?(?P<func>{_SYMBOL})(?P<offset>{_OFFSET})?\)?"
    r"(?P<rest>.*)$"
)
_ARM32 = re.compile(rf"^\s*(?:\[ *<?[0-9a-f]+>?\] )?\((?P<func>{_SYMBOL})(?:{_OFFSET})?\) from ")
_INLINE = re.compile(
    rf"^\s*(?:\[<\s*inline\s*>\]\s*)?(?P<func>{_SYMBOL})\s+{_WHERE}(?:\s+\[inline\])?\s*$"
)
_POSITION = re.compile(_WHERE)
_PC = re.compile(
    r"(?:^|\s)(?:RIP|EIP)\s*:?\s*(?:(?P<cs>[0-9a-f]{4}):)?\s*(?:\[<[0-9a-f]+>\]\s*)*"
    rf"(?P<func>{_SYMBOL}){_OFFSET}(?P<rest>.*)"
    rf"|(?:^|\s)(?:pc : |epc : |PC is at |NIP \[[0-9a-f]+\] |PC: )\s*(?:\[<[0-9a-f]+>\]\s*)?"
    rf"(?P<func2>{_SYMBOL}){_OFFSET}(?P<rest2>.*)"
)
_USER_PC = re.compile(r"\b(?:RIP|EIP): (?:0033|0023|0073|002b):")
_LR = re.compile(rf"(?:^|\s)(?:lr : |LR is at |LR \[[0-9a-f]+\] )\s*(?P<func>{_SYMBOL}){_OFFSET}")

STACK_START = re.compile(
    r"(?:^|\s)(?:Call [Tt]race:?|[Bb]acktrace:|stack backtrace:|Stack backtrace:|CPU: \d+ .*PID: )"
)
TRACE_START = re.compile(r"(?:^|\s)(?:Call [Tt]race:?|[Bb]acktrace:)")

# Variants that the configuration chooses between; a bug keeps its name over them.
_ALIASES = (
    (re.compile(r"^synchronize_(?:rcu_\w+|sched|rcu)$"), "synchronize_rcu"),
    (re.compile(r"^smp_call_function(?:_\w+)?$"), "smp_call_function"),
)
_CLONE = re.compile(
    r"\.(?:isra|part|constprop|cold|llvm|localalias|lto_priv|str|clone)(?:\.?\w+)*$"
)
_SYSCALL = re.compile(
    r"^(?:__x64_|__ia32_|__arm64_|__riscv_|__s390x?_|__powerpc_)?"
    r"(?:__se_|__do_)?(?:compat_)?(?:SyS|SYSC|sys|ksys)_(?P<name>\w+)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One entry of a stack."""

    function: str  # as printed, without offset
    file: str = ""
    index: int = 0  # of the line in its report
    inline: bool = False
    pc: bool = False  # from an instruction-pointer line, not from the list of return addresses
    guess: bool = False  # "?": a word on the stack that looks like a return address


def name(function: str) -> str:
    """A function's name without what compilers and syscall wrappers put round it."""
    if function.startswith("<"):
        return function
    plain = _CLONE.sub("", function)
    plain = re.sub(r"^__(?:pfx|cfi)_", "", plain)
    if plain.startswith("_R") and (rust := demangle(plain)):
        return rust
    wrapped = _SYSCALL.match(plain)
    if wrapped:
        return f"sys_{wrapped['name']}"
    for pattern, alias in _ALIASES:
        if pattern.match(plain):
            return alias
    return plain


def demangle(symbol: str) -> str:
    """The path of a Rust v0 symbol, e.g. <rust_binder::process::Process>::update_ref; "" if not."""
    return _walk_rust(symbol)


def _walk_rust(symbol: str) -> str:
    """Identifiers of the mangled path in order; inherent methods get their type in brackets."""
    found: list[str] = []
    place = 2
    while place < len(symbol):
        if symbol[place] == "s" and (skip := re.compile(r"s[0-9A-Za-z]*_").match(symbol, place)):
            place = skip.end()
            continue
        number = re.compile(r"(\d+)_?").match(symbol, place)
        if number is None:
            if symbol[place] == "B":  # a back reference, not a name
                back = re.compile(r"B[0-9A-Za-z]*_").match(symbol, place)
                place = back.end() if back else place + 1
            else:
                place += 1
            continue
        size = int(number[1])
        word = symbol[number.end() : number.end() + size]
        if size and len(word) == size:
            found.append(word)
        place = number.end() + size
    if symbol.startswith("_RNvM") and len(found) >= 3:
        # impl path first, then the type's path, then the method
        path = found[:-1]
        return f"<{'::'.join(path)}>::{found[-1]}"
    return "::".join(found)


def parse(text: str, index: int = 0) -> Frame | None:
    """The frame that a line holds, or None. A line must look like one: an offset or a position."""
    if "+0x" not in text and ".c:" not in text and ".h:" not in text and ".rs:" not in text:
        arm = _ARM32.match(text)
        if arm is None:
            return None
        return Frame(function=arm["func"], index=index)
    pc = _PC.search(text)
    if pc is not None:
        if pc["cs"] in ("0033", "0023", "0073", "002b"):
            return None
        rest = pc["rest"] or pc["rest2"] or ""
        where = _POSITION.search(rest)
        return Frame(
            function=pc["func"] or pc["func2"],
            file=where["file"] if where else "",
            index=index,
            pc=True,
            inline="[inline]" in rest,
        )
    if text.lstrip().startswith(("RIP:", "EIP:", "pc :", "NIP")):
        # symbolised: "RIP: 0010:__lock file.h:1 [inline]"
        inner = re.search(
            rf"(?:RIP|EIP|pc|NIP)\s*:\s*(?:(?P<cs>\w{{4}}):)?\s*(?P<func>{_SYMBOL})\s+{_WHERE}",
            text,
        )
        if inner and inner["cs"] not in ("0033", "0023", "0073", "002b"):
            return Frame(
                function=inner["func"], file=inner["file"], index=index, pc=True, inline=True
            )
        return None
    arm = _ARM32.match(text)
    if arm is not None:
        where = _POSITION.search(text)
        return Frame(function=arm["func"], file=where["file"] if where else "", index=index)
    inline = _INLINE.match(text)
    if inline is not None:
        return Frame(
            function=inline["func"],
            file=inline["file"],
            index=index,
            inline=text.rstrip().endswith("[inline]") or "inline" in text,
        )
    match = _FRAME.match(text)
    if match is None or match["offset"] is None:
        return None
    if match["rest"] and not re.match(r"[\s,)\[(:]", match["rest"]):
        return None
    where = _POSITION.search(match["rest"])
    return Frame(
        function=match["func"],
        file=where["file"] if where else "",
        index=index,
        guess=match["guess"] is not None,
        inline="[inline]" in match["rest"],
    )


def link_register(text: str) -> str:
    """The function of an arm64 or powerpc link-register line; "" if it is none."""
    match = _LR.search(text)
    return match["func"] if match else ""


def user_pc(text: str) -> bool:
    """Is it the instruction pointer of user space, i.e. the end of the kernel's stack?"""
    return bool(_USER_PC.search(text))


# --- who is never to blame -----------------------------------------------------------------------
# Matched against the whole name, unless a pattern says otherwise by .* at its ends.


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


REPORTERS = _any(
    # those who print the report
    r"_*dump_(?:stack|backtrace)\w*$",
    r"show_(?:stack|trace|regs)\w*$",
    r"unwind_backtrace$",
    r"(?:v|nmi_)?panic$|panic_\w+$|check_panic_on_warn$",
    r"_*warn(?:_\w+)?$|__warn_printk$|warn_slowpath\w*$|__report_bug$|report_bug\w*$",
    r"_*(?:handle|fixup)_bug\w*$|bug_(?:handler|get_file_line)$|brk_handler$|do_debug_exception$",
    r"call_break_hook$|early_brk64$|el\d+_dbg$|do_el1_brk64$|el1_brk64$|el\w*_brk64$",
    r"print_\w+$|describe_\w+$|report_\w+_(?:access|error|free|bug)$|.*_usage_bug\w*$",
    r"_*die\w*$|oops_\w+$|__show_regs$|bust_spinlocks$|crash_kexec$",
    r"_*(?:exc|asm_exc|asm_sysvec|sysvec|asm_common|idtentry)_\w+$",
    r"do_(?:trap|error_trap|trap_no_signal|invalid_op|general_protection|page_fault|int3|divide_error|"
    r"double_fault|undefinstr|mem_abort|translation_fault|kern_addr_fault|user_addr_fault|"
    r"bad_area|DataAbort|PrefetchAbort|tag_check_fault|sp_pc_abort|sea|undefinstr|page_fault\w*|"
    r"bad_\w+|tag_recovery|alignment_fault)$",
    r"__do_(?:page_fault|kernel_fault|user_fault)$|no_context$|pgtable_bad$|bad_area\w*$",
    r"page_fault(?:_oops)?$|async_page_fault$|kernelmode_fixup_or_oops$|spurious_kernel_fault$",
    r"general_protection$|invalid_op$|error_entry$|error_exit$|divide_error$|int3$|stack_segment$",
    r"mm_fault_error$|is_prefetch\w*$|search_exception_tables$|fixup_exception$",
    r"el\d+\w*_(?:abort|da|ia|sync\w*|undef|inv|error\w*|handler|svc_common)$|el1_\w+$|el1h_\w+$",
    r"__dabt_svc$|__und_svc$|__pabt_svc$|arm64_notify_die$|arm64_serror_panic$|do_serror$",
    r"program_check_\w+$|handle_page_fault$|data_access_\w+$|nmi_handle$|default_do_nmi$",
    r"rust_begin_unwind$|rust_helper_\w+$|.*rust_begin_unwind|.*core9panicking|.*4core6result13unwrap",
    r"(?:.*::)?panic(?:king)?(?:::.*)?$|.*4core6option",
    # sanitizers
    r"_*(?:asan|hwasan|kasan|msan|kmsan|tsan|kcsan|kfence|ubsan)_\w*$|_*kmsan\w*$|_*kasan\w*$",
    r"_*sanitizer_\w+$|check_memory_region\w*$|memory_is_\w+$|(?:bytes|memory|address)_is_\w+$",
    r"ubsan_\w+$|__ubsan_\w+$|handle_overflow$|ubsan_epilogue$|val_to_string\w*$|end_report$",
    r"kcsan_\w+$|check_access$|find_report\w*$|internal_kmsan\w*$|report_\w+$|stack_trace_\w+$|"
    r"save_stack\w*$|__stack_chk_fail$|stackleak\w*$|__sanitizer_cov\w*$|write_comp_data$",
    r"check_(?:poison|canary)\w*$|assign_report$|complete_report_info$|instrument_\w+$",
    r"slab_(?:bug|err|pad_check|fix)$|object_err$|check_(?:slab|object|bytes\w*|unaligned\w*)$",
    r"(?:alloc|free)_(?:debug_processing|consistency_checks)$|check_bytes_and_report$",
    r"__slab_(?:alloc|free|err)\w*$|slab_\w+$|object_\w+$|free_to_partial_list$|on_freelist$",
)

PLUMBING = _any(
    # memory: who allocates or frees, not the allocator
    r"_*k[mzv]?(?:alloc|zalloc|calloc|realloc|free|vfree|strdup|memdup)\w*$|_*kv?free(?:_\w+)?$",
    r"_*(?:kv?|v)(?:malloc|zalloc|calloc|realloc|free)\w*$|_*kmem_cache_\w+$|_*kmalloc\w*$",
    r"_*kmemdup\w*$|_*kstrdup\w*$|memdup_user\w*$|_*vmalloc\w*$|_*vfree\w*$|_*vmap_\w+$",
    r"_*alloc_pages?\w*$|_*get_free_pages?$|_*free_(?:pages?|frozen_pages|unref_page)\w*$",
    r"_*alloc_frozen_pages\w*$|get_page_from_freelist$|prep_new_page$|post_alloc_hook$|"
    r"bad_page\w*$|check_new_page\w*$|check_free_page\w*$|free_pcp\w*$|free_page_is_bad\w*$|"
    r"(?:__)?rmqueue\w*$|alloc_slab_page$|allocate_slab$|new_slab$|setup_object\w*$|"
    r"folio_alloc\w*$|vma_alloc_folio\w*$|alloc_pages_\w+$|qlist_free_all_never$|"
    r"___slab_alloc$|___kmalloc\w*$|____kasan\w*$|slab_\w+$|do_slab_free$|_*cache_(?:alloc|free)\w*$",
    r"_*krealloc\w*$|_*kzalloc\w*$|kmemleak\w*$|create_object$|_*percpu_alloc\w*$|pcpu_alloc\w*$",
    r"_*kvmalloc\w*$|array_(?:size|map)$|warn_alloc\w*$|fs_reclaim_\w+$|_*alloc_percpu\w*$",
    # locks: who takes them
    r"_*(?:lock_(?:acquire|release|acquired|contended|class\w*|is_held\w*|set_\w+|downgrade))$",
    r"_*lock_(?:acquire|release|set_class)\w*$|___*lock_\w+$|_*reacquire_held_locks$",
    r"lockdep_\w+$|_*lockdep\w*$|check_(?:prev\w*|chain\w*|irq\w*|noncircular|deadlock|usage\w*|"
    r"flags|wait_context|lock\w*|stack_usage)$|validate_chain$|mark_(?:lock\w*|usage|held_locks)$|"
    r"register_lock_class$|assign_lock_key$|look_up_lock_class$|debug_check_no_locks_\w+$|"
    r"valid_state$|find_lock_\w+$|rcu_lockdep\w*$|add_chain_\w+$|lookup_chain_\w+$|"
    r"debug_locks_off\w*$|save_trace$|graph_lock$|check_redundant$|dump_\w+$|hlock_class$",
    r"_*(?:do_)?(?:_*raw_)?_*(?:spin|read|write|seq|rwlock)_(?:try)?(?:un)?lock\w*$",
    r"_*raw_(?:spin|read|write)\w*$|_*spin_(?:lock|unlock|dump|bug|trylock)\w*$|spin_\w+$",
    r"rwlock_bug$|do_raw_\w+$|debug_spin_\w+$|_*(?:native_)?queued_\w*(?:spin|read|write)_\w*$|"
    r"pv_(?:wait|hash|kick|queued)\w*$|kvm_wait$|_*pv_queued\w*$|queued_\w+$|pv_wait\w*$",
    r"_*mutex_(?:lock|unlock|trylock|is_locked|optimistic\w*|remove\w*)\w*$|_*mutex_\w+$",
    r"_*ww_mutex\w*$|_*rt_mutex\w*$|_*rtlock\w*$|rt_spin_\w+$|ww_\w*lock$",
    r"_*(?:down|up)(?:_read|_write|_interruptible|_killable|_timeout|_trylock|grade_write)*\w*$",
    r"_*rwsem_\w+$|_*percpu_(?:down|up|rwsem|ref)\w*$|_*percpu_\w+$|_*bit_spin\w*$|"
    r"(?:seqcount|write_seq|read_seq)\w*$|_*local_(?:bh|irq|lock)\w*$|_*lock_sock\w*$|"
    r"_*release_sock$|do_lock_\w+$|_*lock_page\w*$|_*folio_lock\w*$|lock_buffer$|_*sema_\w+$|"
    r"queue_work_on_never$|call_rwsem\w*$|trace_\w*(?:lock|irq|contention)\w*$|lock_timer_base$|"
    r"_*rcu_read_(?:un)?lock\w*$|rcu_(?:lock|note)\w*$|mmap_(?:read|write)_(?:try)?(?:un)?lock\w*$|"
    r"class_\w*(?:lock|con|de)structor$|_*task_rq_lock$|_*lock_task_sighand$|"
    r"sb_start_\w+$|_*sb_start\w*$|_*sb_end_\w+$|sb_start_intwrite\w*$|"
    r"(?:bh|i)?_*lock_two_\w+$|_*inode_(?:lock|unlock|trylock)\w*$|lock_two_inodes$",
    # atomics, lists, strings, user access
    r"_*(?:arch_|raw_|instrumented?_)?atomic(?:64|_long)?_\w+$|_*refcount_\w+$|kref_\w+$",
    r"_*list_(?:add|del|move|replace|splice|empty|is)\w*$|_*hlist_\w+$|_*h?list_\w*(?:valid|corrupt)\w*$",
    r"__list_\w+$|list_\w+$|rb_(?:insert|erase|next|prev|first)\w*$|_*rb_\w+$|rht_\w+$|_*llist_\w+$",
    r"_*(?:mem(?:cpy|set|move|cmp|chr|zero)|str(?:n|r|l|s)?(?:cpy|cmp|len|chr|str|cat|casecmp|dup|nlen|lcpy|scpy|sep|spn|pbrk))(?:_\w+)?$",
    r"fortify_\w+$|_*fortify\w*$|string(?:_nocheck)?$|pointer$|v?sn?c?printf$|_*printk\w*$|sized_strscpy$",
    r"number$|bitmap_\w+$|hex_\w+$|_*v?printk\w*$|_*bitmap\w*$|_*test_(?:and_)?\w*bit\w*$|_*(?:set|clear|change)_bit\w*$|"
    r"_*find_(?:first|next|last)_\w*bit\w*$|vprintk\w*$|seq_(?:printf|puts|putc|vprintf)$|vprintk_\w+$",
    r"_*(?:raw_)?copy_(?:to|from|in)_\w+$|_*copy_user\w*$|_*(?:get|put)_user\w*$|_*clear_user\w*$|"
    r"usercopy_\w+$|_*check_(?:object_size|heap_object|copy_size|stack_object)\w*$|"
    r"might_(?:fault|sleep|alloc)\w*$|_*might_\w+$|_*copy_\w*iter\w*$|rep_(?:movs|stos)\w*$|"
    r"iov_iter_\w+$|csum_(?:partial|and)\w*$|_*asm_copy\w*$|_*arch_copy\w*$|user_access\w*$|strncpy_from_user$|"
    r"_*read_(?:once|word)\w*$|_*(?:READ|WRITE)_ONCE\w*$|get_unaligned\w*$|_*(?:read|write)_once\w*$|__swab\w*$|"
    r"_*swab\w*$|_*hash_\w+$|jhash\w*$|_*siphash\w*$|crc\w*_le\w*$|_*debug_\w+$|debug_object\w*$|"
    r"work_is_static_object$|_*debug_check_\w+$|_*preempt_\w+$|check_preemption_disabled$|"
    r"smp_processor_id\w*$|debug_smp_processor_id$|__this_cpu_preempt_check$|_*kobject_\w+$|_*kset_\w+$|"
    r"_*this_cpu_\w+$|debug_work_\w+$|_*init_work$|_*init_timer\w*$|timer_(?:init|is)\w*$|get_current$|arch_stack_walk\w*$|"
    r"_*hrtimer_(?:init|setup)\w*$|idr_\w+$|ida_\w+$|_*xa_\w+$|_*xas_\w+$|_*radix_tree_(?:lookup|insert|delete|next)\w*$|"
    r"trace_\w+$|perf_trace_\w+$|_*traceiter_\w+$|_*fentry_*$|ftrace_\w+$|_*cond_resched\w*$|_*sched_text\w*$|"
    r"nmi_enter$|ct_\w+$|rcu_nmi\w*$|irqentry_\w+$|trace_hardirqs\w*$|page_(?:ref|to)\w*$|folio_(?:put|get|ref|test|flags)\w*$|"
    r"PageHuge$|PageTail$|_*put_page$|_*compound_head$|page_fixed_fake_head$|const_folio\w*$|const_\w+flags$|"
    r"dput$|fast_dput$|iput\w*$|_*dput_to_list$|lockref_\w+$|_*fget_\w+$|_*dev_(?:printk|info|warn|err)\w*$|_*dev_\w*printk\w*$",
)

SCHEDULING = _any(
    r"_*schedule\w*$|_*(?:context_switch|__switch_to|switch_to)\w*$|_*cond_resched\w*$|"
    r"preempt_schedule\w*$|io_schedule\w*$|schedule_timeout\w*$|_*wait_(?:for|on|event|woken)\w*$|"
    r"do_wait_for_common$|_*wait_for_common\w*$|wait_for_completion\w*$|bit_wait\w*$|out_of_line_wait\w*$|"
    r"_*(?:flush|cancel|drain)_(?:work|delayed|workqueue)\w*$|_*flush_work\w*$|_*cancel_work\w*$|"
    r"kthread_(?:stop|flush|park)\w*$|__wait_\w+$|wait_\w+$|autoremove_wake\w*$|"
    r"_*folio_(?:lock|wait)\w*$|_*lock_page\w*$|folio_wait\w*$|_*page_(?:lock|wait)\w*$|"
    r"rt_mutex\w*$|rwsem\w*$|_*rcu_(?:barrier|gp)\w*$|blk_mq_freeze\w*$|_*wait_rcu_gp$|__synchronize_\w+$|"
    r"_*percpu_\w+$|usleep_range\w*$|msleep\w*$|do_nanosleep$|hrtimer_nanosleep\w*$|"
    r"read_hpet$|_*synchronize_hardirq$|(?:__)?bread_gfp$|_*jbd2_log_wait\w*$|wait_transaction\w*$|finish_\w+$"
)

INTERRUPTS = _any(
    r"(?:smp_|asm_|sysvec_|local_)*(?:apic_timer_interrupt|sysvec_\w+)$|asm_sysvec\w*$|"
    r"apic_timer_interrupt$|el\d+\w*_irq\w*$|gic_handle_irq$|ret_from_intr$|call_on_irq_stack$|"
    r"asm_common_interrupt$|common_interrupt$|__irq_svc$|irqentry_\w+$|reschedule_interrupt$|"
    r"call_function\w*_interrupt$|el1_interrupt$|asm_call\w*_on_stack$|asm_call_irq_on_stack$|"
    r"__irq_exit_rcu$|irq_exit\w*$|el1_irq$|el1h_64_irq\w*$|nmi$|end_repeat_nmi$|asm_exc_nmi$|"
    r"timer_interrupt\w*$|decrementer_common\w*$|handle_domain_irq$|generic_handle\w*$"
)
