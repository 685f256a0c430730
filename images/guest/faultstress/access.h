/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Loads and compare-and-swaps that may fault: SIGSEGV and SIGBUS at the address are results.
 * A signal at any other address is none of ours: the kernel broke something else of the process
 * (or the program is wrong), and it ends as a corruption.
 */
#ifndef FAULTSTRESS_ACCESS_H
#define FAULTSTRESS_ACCESS_H

#include <linux/futex.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "report.h"
#include "stamp.h"

enum outcome {
	GOT_VALUE = 0,	/* what sigsetjmp returns the first time */
	GOT_SEGV = 1,
	GOT_BUS = 2,
	GOT_EFAULT = 3,	/* from a system call, which does not say which of the two it was */
};

struct guard {
	sigjmp_buf env;
	volatile sig_atomic_t armed;
	const volatile char *address;
};

static __thread struct guard guard;

/*
 * Where allocations are made to fail, a signal may come without its address: the kernel sends it even
 * if it has no memory for that (si_code is then that of kill()).
 */
static bool address_may_lack;

static inline void on_fault(int sig, siginfo_t *info, void *context)
{
	const volatile char *at = info->si_addr;

	(void)context;
	/* An access of 8 aligned bytes: the address in the signal is exact on both machines. */
	if (guard.armed && address_may_lack && info->si_code == SI_USER && !info->si_pid)
		at = guard.address;
	if (guard.armed && at >= guard.address && at < guard.address + sizeof(u64)) {
		guard.armed = 0;
		siglongjmp(guard.env, sig == SIGSEGV ? GOT_SEGV : GOT_BUS);
	}
	report("corruption",
	       "\"kind\":\"stray-signal\",\"signal\":%d,\"code\":%d,\"address\":\"%p\",\"armed\":\"%p\"",
	       sig, info->si_code, info->si_addr, guard.armed ? (void *)guard.address : NULL);
	report("end", "\"verdict\":\"corruption\",\"status\":%d,\"corruptions\":1,"
	       "\"reason\":\"a signal at an address that no thread was reading or writing\"",
	       STATUS_CORRUPTION);
	_exit(STATUS_CORRUPTION);
}

static inline void access_init(void)
{
	/* NODEFER: the handler leaves by siglongjmp, and no mask is saved (a system call less). */
	struct sigaction action = {
		.sa_sigaction = on_fault,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

static inline enum outcome access_load(u64 *address, u64 *value)
{
	int sig;

	guard.address = (const volatile char *)address;
	sig = sigsetjmp(guard.env, 0);
	if (sig)
		return sig;
	guard.armed = 1;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	*value = __atomic_load_n(address, __ATOMIC_SEQ_CST);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	guard.armed = 0;
	return GOT_VALUE;
}

/*
 * The same by the kernel's own hand: get_user_pages() faults the page in, not the instruction.
 * What is copied may be older than the call's return, but not older than its beginning.
 */
static inline enum outcome access_peek(u64 *address, u64 *value)
{
	struct iovec here = { .iov_base = value, .iov_len = sizeof(*value) };
	struct iovec there = { .iov_base = address, .iov_len = sizeof(*value) };

	if (process_vm_readv(getpid(), &here, 1, &there, 1, 0) == sizeof(*value))
		return GOT_VALUE;
	return GOT_EFAULT;
}

/* By way of /proc/self/mem: get_user_pages() without leave to drop mmap_lock. */
static inline enum outcome access_mem(int mem, u64 *address, u64 *value)
{
	return pread(mem, value, sizeof(*value), (off_t)(uintptr_t)address) == sizeof(*value) ?
		       GOT_VALUE : GOT_EFAULT;
}

/*
 * The same by a futex call on a shared mapping: the kernel looks up the page, and says whether there
 * is one. It wakes nobody and does not sleep.
 */
static inline enum outcome access_futex(uint32_t *address)
{
	struct timespec none = { 0 };

	/* A stamp's lower half is a generation, and no run comes to this one. */
	if (syscall(SYS_futex, address, FUTEX_WAIT, 0xfffffffe, &none, NULL, 0) == -1 &&
	    errno == EFAULT)
		return GOT_EFAULT;
	if (syscall(SYS_futex, address, FUTEX_WAKE, 1) == -1 && errno == EFAULT)
		return GOT_EFAULT;
	return GOT_VALUE;
}

/* `value`: in, what is expected; out, what was there. `swapped` says whether `wanted` is now. */
static inline enum outcome access_swap(u64 *address, u64 *value, u64 wanted, bool *swapped)
{
	int sig;

	*swapped = false;
	guard.address = (const volatile char *)address;
	sig = sigsetjmp(guard.env, 0);
	if (sig)
		return sig;
	guard.armed = 1;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	*swapped = __atomic_compare_exchange_n(address, value, wanted, false, __ATOMIC_SEQ_CST,
					       __ATOMIC_SEQ_CST);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	guard.armed = 0;
	return GOT_VALUE;
}

#endif
