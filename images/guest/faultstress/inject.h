/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Failures that somebody injects from outside while this program runs: it asks for them thread by
 * thread (/proc/thread-self/make-it-fail) and forgives what they cause, and nothing else.
 *
 *   all	Every call and every fault of the testing threads may fail.
 *   faults	Only those of the threads that fault.
 *   calls	Only system calls: a fault that ends in a signal would need user copies to say so.
 *   device	The device loses writes and fails reads; no thread asks for anything.
 *
 * A failed call says nothing about what it left behind, so it is made again with injection off
 * before the slot's phase ends: all that is checked in a quiet phase stays as strict as ever. Only a
 * device that loses writes may show old content; a wrong place, a torn stamp or one from the future
 * is nobody's old content.
 */
#ifndef FAULTSTRESS_INJECT_H
#define FAULTSTRESS_INJECT_H

#include <errno.h>
#include <fcntl.h>

#include "world.h"

static inline void inject_write(const char *text)
{
	u32 tries = 0;

	/* To switch it off is a call that may itself be made to fail. */
	while (pwrite(self->inject_fd, text, 1, 0) != 1 && tries++ < 100000)
		;
}

static inline bool inject_thread(void)
{
	enum inject inject = world->options.inject;

	return inject == INJECT_ALL || (inject == INJECT_FAULTS && self->role == ROLE_FAULT);
}

static inline void inject_stop(void)
{
	if (inject_thread())
		inject_write("0");
}

static inline void inject_resume(void)
{
	if (inject_thread())
		inject_write("1");
}

/* False: this kernel has no such file. */
static inline bool inject_start(void)
{
	if (world->options.inject == INJECT_NONE || world->options.inject == INJECT_DEVICE)
		return true;
	self->inject_fd = open("/proc/thread-self/make-it-fail", O_RDWR | O_CLOEXEC);
	if (self->inject_fd < 0)
		return false;
	inject_resume();
	return true;
}

/* Around a system call, where only those shall fail. */
static inline void inject_call(bool on)
{
	if (world->options.inject == INJECT_CALLS && self->inject_fd > 0)
		inject_write(on ? "1" : "0");
}

/* Is that error one that injection causes? Then the call is made again, with it off. */
static inline bool inject_forgives(int error)
{
	if (world->options.inject == INJECT_NONE)
		return false;
	if (error != ENOMEM && error != EIO && error != EFAULT && error != EAGAIN && error != EROFS)
		return false;
	count(failed_calls);
	return true;
}

#endif
