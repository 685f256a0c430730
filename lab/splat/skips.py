"""Functions and files that are not to blame though they stand on top of a stack. Data only.

A skipped function is one that does to an object what its caller asked for, or that only reports:
if it trips, the caller handed it something broken. Patterns are matched against the whole name
(after `frames.name`), those of files against the beginning of the path. The grouping is the
reason; a name that fits no group does not belong here.
"""

from __future__ import annotations

import re


def _whole(text: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in text.split()))


# Those that print the report, and the exception entries on the way to them.
REPORTERS = _whole(
    r"""
    _*dump_(?:stack|backtrace|page|stack_lvl)\w* show_(?:stack|trace|regs)\w* __show_regs
    unwind_\w+ walk_stackframe arch_stack_walk\w* save_stack\w* stack_trace_\w+ get_stack_info\w*
    (?:v|__|nmi_)?panic\w* check_panic_on_warn print_\w+ describe_\w+ \w*_usage_bug\w*
    _*warn(?:_\w+)? warn_slowpath\w* _*report_bug\w* report_\w+ warn_bogus_irq_restore
    _*(?:handle|fixup)_bug\w* bug_handler bug_get_file_line brk_handler call_break_hook
    do_debug_exception early_brk64 el\d+_dbg \w*el1_brk64 cfi_handler \w*bug_brk\w* bug_brk_\w+
    _*die\w* oops_\w+ bust_spinlocks crash_kexec make_task_dead end_report
    _*(?:asm_)?(?:exc|sysvec|common|idtentry)_\w+ exc_\w+ asm_exc_\w+
    do_(?:undefinstr|mem_abort|translation_fault|kern_addr_fault|user_addr_fault|sea|serror)
    do_(?:bad_area|DataAbort|PrefetchAbort|tag_check_fault|tag_recovery|sp_pc_abort|page_fault\w*)
    do_(?:alignment_fault|kernel_fault|bad_\w+|trap\w*|error_trap|invalid_op|general_protection)
    do_(?:int3|divide_error|double_fault|undefinstr) __do_(?:page_fault|kernel_fault|user_fault)
    no_context pgtable_bad \w*bad_area\w* (?:async_)?page_fault(?:_oops)? kernelmode_fixup_or_oops
    spurious_kernel_fault mm_fault_error general_protection invalid_op error_(?:entry|exit)
    divide_error int3 stack_segment double_fault search_exception_tables fixup_exception
    handle_page_fault el\d+\w*_(?:abort|da|ia|sync\w*|undef|inv|error\w*|handler|svc_common)
    el1_\w+ el1h_\w+ arm64_notify_die arm64_serror_panic program_check_\w+ data_access_\w+
    nmi_handle default_do_nmi __dabt_svc __und_svc __pabt_svc bad_mode rust_begin_unwind
    rust_helper_\w+ _RNv\w*rust_begin_unwind (?:\S*::)?rust_begin_unwind
    core::(?:panicking|option|result)\S*
    """
)

# Sanitizers, fault-injection and coverage: they are called for every access.
INSTRUMENTATION = _whole(
    r"""
    _*(?:asan|hwasan|kasan|msan|kmsan|tsan|kcsan|kfence|ubsan|kmemleak|stackleak|fentry|mcount)_\w*
    _*kmsan\w* _*kasan\w* _*ubsan\w* _*sanitizer_\w+ write_comp_data check_kcov_mode
    check_(?:memory_region|region|poison|canary|access|shadow)\w* instrument_\w+
    (?:bytes|memory|address)_is_\w+ handle_overflow val_to_string\w* kunit_\w+ find_report\w*
    internal_kmsan\w* assign_report complete_report_info create_object __stack_chk_fail
    should_fail\w* fail_dump \w*fault_create_debugfs_attr slab_(?:bug|err|pad_check|fix)
    object_err check_(?:slab|object|bytes\w*|unaligned\w*)
    (?:alloc|free)_(?:debug_processing|consistency_checks) on_freelist free_to_partial_list
    qlink_free quarantine_\w+ __x86_indirect_thunk_\w+ __x86_return_thunk retint_kernel
    __rela_dyn_start trace_\w+ perf_trace_\w+ _*traceiter_\w+ ftrace_\w+ perf_tp_\w+
    tp_perf_event_destroy perf_trace_event_\w+ trace_event_\w+ static_(?:call|key)_\w+
    jump_label_\w+
    """
)

# Allocators: who allocates or frees is to blame.
ALLOCATORS = _whole(
    r"""
    _*k[mzv]?v?(?:m?alloc|zalloc|calloc|realloc|free|strn?dup\w*|memdup\w*)\w* memdup_\w+
    _*(?:kv?|v)(?:malloc|zalloc|calloc|realloc|free|map|unmap)\w* _*kmem_cache_\w+
    ____\w*kmalloc\w* _*vunmap\w* _*vfree\w* remove_vm_area free_vmap_area\w* vm_unmap_aliases
    _*purge_vmap\w* _*alloc_(?:pages?|frozen_pages|percpu|contig)\w* _*get_free_pages?\w*
    _*folio_alloc\w*
    _*free_(?:pages?|frozen_pages|unref_\w+|percpu|pcp\w*|large_kmalloc|pages_\w+)\w*
    get_page_from_freelist prep_new_page post_alloc_hook bad_page\w* check_(?:new|free)_page\w*
    free_page_is_bad\w* \w*rmqueue\w* alloc_slab_page allocate_slab new_slab\w* setup_object\w*
    vma_alloc_folio\w* ___slab_\w+ _*slab_\w+ do_slab_free _*cache_(?:alloc|free|grow)\w*
    kmalloc_\w+ warn_alloc\w* fs_reclaim_\w+ virt_to_cache cache_from_obj _*percpu_alloc\w*
    pcpu_\w+ free_percpu mempool_\w+ dma_pool_\w+ ksize might_alloc object_(?:size|is)\w*
    free_debug\w* deferred_free\w* free_block put_cpu_partial devm_k\w+ devres_\w+
    unfreeze_partials\w* __unfreeze\w*
    """
)

# Lock primitives: who takes the lock is to blame.
LOCKS = _whole(
    r"""
    _*lock_(?:acquire|release|acquired|contended|class\w*|is_held\w*|set_\w+|downgrade)\w*
    ___*lock_\w+ reacquire_held_locks _*lockdep\w* validate_chain
    mark_(?:lock\w*|usage|held_locks)
    check_(?:prev\w*|chain\w*|irq\w*|noncircular|deadlock|usage\w*|flags|wait_context|lock\w*)
    register_lock_class assign_lock_key look_up_lock_class debug_check_no_locks_\w+ valid_state
    find_lock_(?:chain|class)\w* rcu_lockdep\w* add_chain_\w+ lookup_chain_\w+ debug_locks_off\w*
    save_trace graph_lock check_redundant hlock_class mark_lock_irq mark_usage
    _*(?:do_)?(?:_*raw_)?_*(?:spin|read|write|seq|rwlock)_(?:try)?(?:un)?lock\w*
    _*raw_(?:spin|read|write)\w* _*spin_(?:lock|unlock|dump|bug|trylock)\w* rwlock_bug do_raw_\w+
    debug_(?:spin|rt_mutex|mutex)_\w+ _*(?:native_)?queued_\w+ _*pv_queued\w*
    pv_(?:wait|hash|kick)\w* _*(?:ww_|rt_|rt)?mutex_\w+ _*rtlock\w* rt_spin_\w+ ww_\w*lock
    osq_(?:un)?lock
    _*(?:down|up)(?:_read|_write|_interruptible|_killable|_timeout|_trylock|grade_write)*(?:_\w+)?
    _*rwsem_\w+ _*percpu_(?:down|up|rwsem|ref)\w* _*bit_spin\w* call_rwsem\w* _*sema_\w+
    (?:seqcount|write_seq|read_seq)\w* _*local_(?:bh|irq|lock)\w* _*lock_sock\w* _*release_sock
    lock_timer_base _*task_rq_lock _*lock_task_sighand lock_buffer _*lock_page\w* _*folio_lock\w*
    folio_unlock unlock_(?:page|buffer) class_\w+(?:con|de)structor
    _*rcu_(?:read_)?(?:lock|unlock|note)\w* rcu_read_\w+ rcu_is_\w+ _*might_\w+
    mmap_(?:read|write)_(?:try)?(?:un)?lock\w* sb_(?:start|end)_\w+ _*sb_(?:start|end)_\w+
    reiserfs_write_(?:un)?lock\w* inode_(?:un)?lock\w* inode_lock_\w+ lock_two_\w+
    _*cond_resched\w* (?:\w+_)?preempt_(?:schedule|count|disable|enable)\w*
    check_preemption_disabled debug_smp_processor_id __this_cpu_preempt_check smp_processor_id\w*
    _*preempt_\w+
    """
)

# Containers, counters, strings, copying: pure helpers on memory that the caller owns.
HELPERS = _whole(
    r"""
    _*(?:arch_|raw_|instrumented?_)?atomic(?:64|_long)?_\w+ _*refcount_\w+ kref_\w+ lockref_\w+
    ref_tracker_\w+ \w*percpu_ref_\w+ _*h?l?list_\w+ klist_\w+ plist_\w+ rht_\w+ _*rhashtable_\w+
    _*rb_(?:insert|erase|next|prev|first|last|replace|add)\w* rb_\w+ interval_tree_\w+
    timerqueue_(?:add|iterate)\w* _*idr_\w+ ida_\w+ _*xa_\w+ _*xas_\w+ xas_\w+
    _*radix_tree_(?:lookup|insert|delete|next|create)\w* find_(?:lock|get)_entries
    _*(?:mem(?:cpy|set|move|cmp|chr|scan|zero)|memset\d+|memcpy_\w+)(?:_\w+)?
    _*str(?:n|r|l|s)?(?:cpy|cmp|len|chr|str|cat|casecmp|dup|nlen|lcpy|scpy|sep|spn|pbrk|ncmp|ncpy)\w*
    _*fortify_\w+ string(?:_nocheck)? pointer v?s[nc]*printf number bitmap_\w+ hex_\w+
    _*v?printk\w* printk_\w+ seq_(?:printf|puts|putc|vprintf|write) vprintk\w* kasprintf
    kvasprintf\w* sized_strscpy kstrto\w+ dynamic_\w*dbg\w* _*test_(?:and_)?\w*bit\w*
    _*(?:set|clear|change)_bit\w* _*find_(?:first|next|last|nth)_\w*bit\w*
    \w*copy_(?:to|from|in)_(?:user|kernel)\w* _*copy_user\w* rep_(?:movs|stos)\w* \w*_nofault\w*
    _*(?:raw_)?copy_(?:to|from)_\w+ _*(?:simple_)?copy_\w*iter\w* iov_iter_\w+ \w*_iovec\w*
    _*(?:get|put)_user\w* _*clear_user\w* strncpy_from_user strnlen_user user_access\w*
    usercopy_\w+ _*check_(?:object_size|heap_object|copy_size|stack_object)\w*
    _*read_(?:once|word)\w* _*(?:READ|WRITE)_ONCE\w* get_unaligned\w* _*swab\w* _*fswab\w*
    jhash\w* _*siphash\w* _*hsiphash\w* _*crc(?:\d+|_)\w* crc\w+ xxh\w+ _*csum_\w+ full_name_hash
    _*debug_(?:object|check|print|work)_?\w* work_is_static_object timer_is_static_object
    debug_\w+_(?:init|activate|deactivate|free|assert)\w* lookup_object_or_alloc\w* _*kobject_\w+
    kobj_\w+ _*kset_\w+ add_uevent_var get_device(?:_parent)? put_device get_current
    _*this_cpu_\w+ page_(?:ref|to|fixed|tail)_?\w* PageHuge PageTail _*put_page
    folio_(?:put|get|ref|test|flags|mapping)\w* const_folio\w* \w*compound_head (?:fast_)?dput
    iput\w* dput_to_list drop_nlink inc_nlink clear_nlink set_nlink mark_buffer_dirty
    truncate_inode_pages\w* fget_\w+ _*dev_(?:printk|info|warn|err)\w*
    _*netdev_(?:printk|warn|err) (?:assertfail|assfail|btrfs_assertfail|BTRFS_ASSERT)
    \w*reiserfs_(?:panic|error) jfs_error
    skb_(?:panic|over_panic|under_panic|put|push|pull|release\w*) _*pskb_\w+ _*skb_put
    kfree_skb\w* sk_skb_reason_drop _*kfree_skb\w* skb_copy_(?:bits|to)\w* nla_\w+ _*nla_\w+
    _*raw_(?:read|write)[bwlq] logic_(?:in|out)[bwl] in[bwl] out[bwl]
    (?:io)?(?:read|write)(?:8|16|32|64) number pcim?_\w*iomap\w* csum\w* sock_poll_wait
    get_random_\w+
    """
)

# Timers, work items, wait queues, threads: the owner of the object is to blame.
DEFERRAL = _whole(
    r"""
    _*(?:init|setup|add|mod|del|detach|enqueue|do_init|destroy)_?timer\w*
    timer_(?:delete|init|fixup|shutdown)\w* del_timer\w* _*mod_timer\w* timer_delete\w*
    try_to_(?:del|grab)_\w+ _*hrtimer_(?:init|setup|start|cancel)\w* internal_add_timer
    _*init_work _*(?:queue|flush|cancel|mod|insert|drain|destroy|start_flush)_\w*work\w*
    cancel_delayed_work\w* work_grab_pending __flush_work\w* _*queue_delayed_work\w* insert_work
    call_rcu\w* _*call_rcu\w* kvfree_call_rcu call_srcu\w* _*call_srcu
    kthread_(?:stop|park|queue|flush|cancel)\w* _*wake_up(?!_new)\w* finish_wait
    prepare_to_wait\w* complete(?:_all)? wait_for_completion\w* wait_for_common do_wait_for_common
    tasklet_(?:kill|schedule|init|unlock)\w* _*wait_for_common try_to_wake_up ttwu_\w+
    default_wake_function autoremove_wake_function
    """
)

# The cores of subsystems that act on an object which a driver registered.
CORES = _whole(
    r"""
    device_(?:add|del|register|unregister|create\w*|destroy|release\w*|for_each_child\w*|rename|move|initialize)
    device_(?:links|pm|remove|shutdown|block|unblock)\w*
    (?:driver|bus)_(?:add|remove|probe|for_each)_\w+ device_remove_\w+ dpm_\w+ sysfs_\w+
    debugfs_(?:create|remove|lookup)\w* remove_files internal_create_group\w*
    proc_(?:register|create\w*|mkdir\w*|remove\w*|net_mk\w*) remove_proc_\w+ _*proc_create\w*
    (?:__)?unregister_netdevice\w* rollback_registered\w* netif_receive_\w+ _*netif_receive_\w+
    _*unregister_client i2c_del_adapter usb_(?:kill|unlink|poison|free)_\w*urb\w*
    usb_(?:put|get)_(?:dev|intf) usb_start_wait_urb usb_internal_\w+
    usb_(?:control|bulk|interrupt)_msg\w* usb_hcd_\w+ hwrng_unregister
    tty_(?:un)?register_device\w* cdev_(?:put|get|del)
    """
)

ALWAYS: tuple[re.Pattern[str], ...] = (
    REPORTERS,
    INSTRUMENTATION,
    ALLOCATORS,
    LOCKS,
    HELPERS,
    DEFERRAL,
    CORES,
)

# Entries of interrupts: what stands above them in a stall is the tick that found it.
INTERRUPTS = _whole(
    r"""
    \w*apic_timer_interrupt\w* asm_sysvec_\w+ el1h?(?:_64)?_irq\w* el1_interrupt __irq_svc
    timer_interrupt\w* ret_from_intr\w* reschedule_interrupt\w* call_function\w*_interrupt
    asm_common_interrupt common_interrupt asm_exc_nmi end_repeat_nmi nmi gic_handle_irq
    do_interrupt_handler call_on_irq_stack decrementer_common\w* smp_trace_\w+ irqentry_\w+
    handle_domain_irq generic_handle\w+ _*irq_exit\w* irq_exit_rcu asm_call\w*_on_stack
    """
)

# Waiting as such: a task that hangs is charged to whoever wanted the wait.
SLEEPING = _whole(
    r"""
    _*schedule\w* _*context_switch _*switch_to\w* io_schedule\w*
    _*wait_(?:for|on|event|woken|var)\w* _*bit_wait\w* out_of_line_wait\w* wait_\w+
    _*(?:folio|page)_(?:lock|wait)\w* filemap_fdata\w* _*filemap_fdata\w* fdatawait_\w+
    do_read_cache_(?:folio|page) rcu_barrier\w* _*rcu_gp\w* _*wait_rcu_gp blk_mq_freeze\w*
    _*percpu_\w+ usleep_range\w* msleep\w* do_nanosleep hrtimer_nanosleep\w* console_lock
    device_lock\w* kthread_\w+ _*flush_\w*work\w* _*cancel_\w*work\w* try_to_grab\w* down\w*
    schedule_\w+ rt_mutex\w* _*synchronize_hardirq synchronize_irq jbd2_log_wait\w* _*lock_sock\w*
    exp_funnel_lock
    """
)

# Giving up the processor where it must not be given up.
SWITCHING = _whole(
    r"""
    _*schedule\w* preempt_schedule\w* io_schedule\w* msleep\w* usleep_range\w* do_nanosleep
    """
)

# Who allocates for somebody else: a leak is charged to whoever asked for the object.
ALLOCATING = _whole(
    r"""
    \w*alloc\w* \w*kmem\w* \w*[sm]e?m?dup\w* kmemdup\w* kvm?alloc\w* create_object \w*_get_free
    pcpu_\w+ usb_alloc_urb idr_\w+ _*build_skb\w* skb_clone skb_copy\w* new_inode\w*
    \w*_new_inode_pseudo getname\w* kobject_\w+ kasprintf kvasprintf\w* \w*radix_tree\w* mas_\w+
    mt_\w+ xas_\w+
    """
)

# Where the kernel dispatches: the frame above is what was asked for.
DISPATCH = _whole(
    r"""
    do_syscall_\w+ x64_sys_call (?:__)?do_fast_syscall_32 do_int80\w* entry_\w+ el0_svc\w*
    \w*invoke_syscall el0t?_\w+ do_el0_svc ret_fast_syscall syscall_\w+ sysenter_\w+ tracesys\w*
    system_call\w* int_ret_from\w* process_one_work process_scheduled_works worker_thread kthread
    ret_from_fork\w* task_work_run exit_to_user\w* prepare_exit_to_user\w* call_timer_fn
    expire_timers _*run_timers run_timer_softirq _*hrtimer_run_\w+ tasklet_action\w*
    _*do_softirq\w* handle_softirqs run_ksoftirqd smpboot_thread_fn _*netif_receive_\w+
    process_backlog net_rx_action _*napi_poll do_idle cpu_startup_entry start_secondary rest_init
    start_kernel \w*vfs_ioctl \w*(?:sys|SyS|SYSC)_ioctl ioctl \w*compat_ioctl \w*blkdev_ioctl
    blkdev_driver_ioctl file_ioctl
    full_proxy_\w+ proc_reg_\w+ proc_sys_call_handler kernfs_fop_\w+ sysfs_kf_\w+ dev_attr_\w+
    \w*vfs_(?:read|write|readv|writev|iter_read|iter_write|fsync\w*) new_sync_(?:read|write)
    call_(?:read|write)_iter do_iter_\w+ do_loop_readv\w*
    _*sock_(?:sendmsg|recvmsg|release|close|ioctl|do_ioctl)\w* kernel_accept _*fput ____fput
    rtnetlink_rcv_msg nfnetlink_rcv\w* rcu_do_batch do_one_initcall do_exit do_group_exit
    do_dentry_open vfs_open chrdev_open _*sys_[gs]etsockopt do_sock_setsockopt security_file_ioctl
    """
)

# Source files that are the machinery of the skipped functions; tested against the path's start.
FILES = re.compile(
    r"""
      include/ | lib/ | arch/[^/]+/(?:include|lib|entry|mm/fault|kernel/(?:apic|irq|process|stack|
      syscall|entry|head|unwind|dumpstack|debug-monitors|time|smp|cpu/mce|kernel/nmi))
    | arch/[^/]+/mm/
    | mm/(?:kasan|kmsan|kfence|kcsan|kmemleak|slab|slub|slob|util\.|vmalloc|page_alloc|percpu|
      mempool|dmapool|usercopy|maccess|folio-compat|debug|failslab|early_ioremap)
    | kernel/(?:panic|locking/|kcsan|rcu/|sched/|workqueue|kthread|fork|exit|stacktrace|trace/|
      printk/|softirq|irq/|time/(?:timer|hrtimer|tick|clockevents)|smp\.|kcov|hung_task|
      watchdog|entry/|task_work|signal|events/|context_tracking|jump_label|static_call|notifier|cpu\.c)
    | net/(?:core/(?:skbuff|sock\.|dev\.|stream|datagram|rtnetlink|neighbour|filter|netpoll|
      ref_tracker)|socket|netlink/|compat|netfilter/(?:core|x_tables|nfnetlink\.|nf_sockopt)|sched/sch_generic)
    | net/ipv[46]/(?:ip_output|ip_input|af_inet6?|ip6_input|ip_sockglue|ipv6_sockglue)\.
    | fs/(?:read_write|ioctl|splice|open|file_table|namei|namespace|super|inode|dcache|buffer|
      fs-writeback|sync|proc/generic|sysfs/|kernfs/|debugfs/|libfs|mpage|seq_file|locks|
      direct-io|iomap/|readdir|file\.|compat|fs_context|xattr\.)
    | drivers/(?:base/|usb/core/|clocksource/|irqchip/|char/mem|char/random|tty/(?:tty_|n_tty|vt/)|
      i2c/i2c-core|hid/hid-core|video/fbdev/core/)
    | sound/core/(?:pcm|init|timer\.|memory|control\.|sound\.|device\.)
    | security/(?:security|selinux|apparmor|smack|tomoyo|lsm)
    | block/(?:blk-core|blk-mq|bio|genhd|ioctl) | init/ | ipc/ipc_sysctl | rust/ | io_uring/io_uring
    """,
    re.VERBOSE,
)
