/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The state that all threads share: files, slots, threads, and the clock of generations.
 *
 * A slot is a range of addresses whose mapping one thread at a time may change. It has a sequence
 * counter: even 2p while phase p is in force, odd 2p+1 while the change to phase p+1 runs. What a
 * phase maps stands in a ring, entered before the change begins. A reader takes the counter
 * before (s1) and after (s2) its access:
 *
 *	s1 == s2, even	the access lay wholly within one phase, and must show exactly that
 *	otherwise	the access raced: it may show any phase from s1/2 to (s2+1)/2
 *
 * The first line is sound because the counter turns even only after the system call returned, and
 * the call's return is the kernel's promise that the old mapping is out of every page table and
 * every TLB. A fault that started in the old phase and installs its page late is thus seen by the
 * next access, as the wrong file, page or content in a quiet phase.
 */
#ifndef FAULTSTRESS_WORLD_H
#define FAULTSTRESS_WORLD_H

#include <pthread.h>
#include <sys/types.h>

#include "latency.h"
#include "stamp.h"

#define RING		16
#define MAX_SLOTS	1024
#define MAX_THREADS	64
#define MAX_CORRUPTIONS	8	/* reported in full; then the run ends */

enum kind {
	KIND_NONE = 0,	/* no mapping, or PROT_NONE */
	KIND_READ = 1,
	KIND_WRITE = 2,	/* read and write */
};

/* What a slot maps in one phase; packed into one word so that the ring can be read without lock. */
struct entry {
	enum kind kind;
	u32 file;
	u32 base;	/* page of the file at the slot's first address */
	u32 limit;	/* pages of the file before its end */
};

struct slot {
	u64 seq;
	u64 ring[RING];
	u32 lock;
	char *address;
} __attribute__((aligned(128)));

struct file {
	int fd;
	char path[256];
	u64 *witness;	/* a mapping of the whole file that nobody changes */
	u64 clock;	/* the last generation that was given out */
	u32 gate;	/* 1: nobody may write a first stamp over zeroes */
	/* Largest generation known to be in the word; past ones must never be seen again. */
	u64 done[MAX_PAGES][WORDS_PER_PAGE];
	/* Generations up to this one were cut off with their page. */
	u64 floor[MAX_PAGES];
};

enum role { ROLE_FAULT, ROLE_CHANGE, ROLE_CLEAN, ROLE_HELP };

enum call { CALL_MUNMAP, CALL_MMAP, CALL_MPROTECT, CALL_TRUNCATE, CALL_MREMAP, CALL_MADVISE,
	    CALL_PUNCH, CALL_FORK, CALL_MLOCK, CALL_FREEZE, CALL_THAW, CALL_PAIR, CALL_UMOUNT,
	    CALL_COLLAPSE, CALL_EXIT, NR_CALLS };

struct counters {
	u64 reads, writes, swaps_lost, segv, sigbus, efault, zeroes, peeks, changes, races, cleans,
	    extras,		/* what the scenario is named for: freezes, collapses, ... */
	    failed_calls, failed_faults;	/* forgiven, because failures are injected */
};

/* Which of the failures that somebody injects the threads meet, and forgive: inject.h. */
enum inject { INJECT_NONE, INJECT_ALL, INJECT_FAULTS, INJECT_CALLS, INJECT_DEVICE };


struct thread {
	pthread_t pthread;
	pid_t tid;
	u32 number;
	enum role role;
	u64 random;
	u64 beat;		/* grows with every step */
	const char *op;		/* what it is in */
	u32 first_write;	/* 1 + file in which it may be writing a first stamp; 0: none */
	int inject_fd;		/* /proc/thread-self/make-it-fail */
	u32 faults_of_child;	/* as far as the process that it has forked has come */
	struct counters count;
	struct latency latency[NR_CALLS];
} __attribute__((aligned(128)));

struct scenario;

struct options {
	const char *dir;
	const struct scenario *scenario;
	const char *sabotage;
	double duration_s;
	double at_most_s;	/* how long it may go on if it has tested nothing yet */
	double hang_s;
	u32 threads;
	u32 pages;
	u64 seed;
	enum inject inject;
};

struct world {
	struct options options;
	size_t page_size;
	u32 nr_files, nr_slots, slot_pages, nr_threads;
	u32 stop;
	u32 corruptions;
	u32 sabotaged;	/* how often the sabotage was done */
	char folder[200];
	char *area;
	size_t area_bytes;
	int mem;	/* /proc/self/mem, where the scenario wants it */
	int uffd;
	char *beside;	/* memory of the process's own, where the scenario wants it */
	u32 frozen;	/* 1: the helper shall begin */
	u32 thaw;	/* 1: it shall thaw, 2: it has */
	u64 pairs_frozen, pairs_elsewhere;
	struct file file[MAX_FILES];
	struct slot slot[MAX_SLOTS];
	struct thread thread[MAX_THREADS];
};

/* Children of fork() count and check in it too: it lives in a shared mapping. */
static struct world *world;
static __thread struct thread *self;

#define load(pointer)		__atomic_load_n(pointer, __ATOMIC_SEQ_CST)
#define store(pointer, value)	__atomic_store_n(pointer, value, __ATOMIC_SEQ_CST)
#define barrier_full()		__atomic_thread_fence(__ATOMIC_SEQ_CST)
/* Counters have one writer each; the main thread may look at any time. */
#define count(name)		__atomic_store_n(&self->count.name, self->count.name + 1, \
						 __ATOMIC_RELAXED)

static inline u64 random_next(u64 *state)
{
	u64 x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static inline u32 pick(u32 below)
{
	return random_next(&self->random) % below;
}

static inline void raise_to(u64 *pointer, u64 value)
{
	u64 old = load(pointer);

	while (old < value &&
	       !__atomic_compare_exchange_n(pointer, &old, value, true, __ATOMIC_SEQ_CST,
					    __ATOMIC_SEQ_CST))
		;
}

static inline u64 entry_pack(struct entry entry)
{
	return (u64)entry.kind << 48 | (u64)entry.file << 40 | (u64)entry.base << 16 | entry.limit;
}

static inline struct entry entry_unpack(u64 word)
{
	return (struct entry){
		.kind = word >> 48,
		.file = (word >> 40) & 0xff,
		.base = (word >> 16) & 0xffff,
		.limit = word & 0xffff,
	};
}

static inline struct entry slot_entry(struct slot *slot, u64 phase)
{
	return entry_unpack(load(&slot->ring[phase % RING]));
}

/* The caller holds the slot, or looks at a phase that cannot leave the ring. */
static inline struct entry slot_now(struct slot *slot)
{
	return slot_entry(slot, load(&slot->seq) / 2);
}

static inline bool slot_trylock(struct slot *slot)
{
	return __atomic_exchange_n(&slot->lock, 1, __ATOMIC_SEQ_CST) == 0;
}

static inline void slot_unlock(struct slot *slot)
{
	store(&slot->lock, 0);
}

static inline void change_begin(struct slot *slot, struct entry next)
{
	u64 seq = load(&slot->seq);

	store(&slot->ring[(seq / 2 + 1) % RING], entry_pack(next));
	store(&slot->seq, seq + 1);
	barrier_full();
}

static inline void change_end(struct slot *slot)
{
	barrier_full();
	store(&slot->seq, load(&slot->seq) + 1);
}

static inline u64 *word_at(char *page, u32 word)
{
	return (u64 *)(page + word * (world->page_size / WORDS_PER_PAGE));
}

#endif
