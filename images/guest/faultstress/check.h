/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One access to one word of one slot, and the judgement on it.
 *
 * What an access must not show, and why the check cannot accuse a sound kernel:
 *
 *   wrong-file, wrong-page	The word names another place than the phase maps. Writers replace a
 *				word only by one of the same place (stamp.h), so a word in the wrong
 *				place was put there by nobody.
 *   future			The generation is above the file's clock, read after the access.
 *				Generations are drawn from the clock before they are written.
 *   stale			The generation is below one that was known to be in the word before
 *				the access began. A writer draws its generation after it read the
 *				word that it replaces, so generations in one word only grow.
 *   old-data			The generation is not above the floor, read before the access: the
 *				clock's reading after a truncation or punch of this page returned.
 *				First stamps over zeroes are kept out while that runs (`gate`), and
 *				other writes expect a word that is gone, so they change nothing.
 *   zeroes			There was a stamp, and no truncation or punch overlapped the access.
 *   without-mapping, write-through-read-only, beyond-end, spurious-sigsegv, spurious-sigbus,
 *   spurious-efault
 *				The access succeeded or failed against every phase it may have met.
 */
#ifndef FAULTSTRESS_CHECK_H
#define FAULTSTRESS_CHECK_H

#include <sys/statvfs.h>

#include "access.h"
#include "inject.h"
#include "world.h"

struct scenario {
	const char *name;
	const char *checks;
	void (*step)(void);	/* one change, by a thread that changes */
	bool whole_files;	/* a slot is a whole file, and its mapping never moves */
	bool exclusive;		/* no two slots map the same page of a file */
	bool zeroes;		/* pages lose their content rightly */
	bool wants_segv, wants_sigbus;	/* seen none: tested nothing */
	bool peeks;		/* half of the reads are the kernel's (process_vm_readv) */
	bool mem;		/* or /proc/self/mem, whose faults cannot be retried; writes too */
	bool direct;		/* or O_DIRECT writes out of the mapping */
	bool futex;		/* or futex calls, which look the page up by its address */
	bool far;		/* each slot in a page table of its own, with nothing beside it */
	bool reopens;		/* each mapping holds the only reference to its struct file */
	u32 pages;		/* of a file, if not the default */
	const char *extra;	/* what counts in `extras`; none: tested nothing */
	void (*prepare)(void);	/* before there are files */
	void (*help)(void);	/* a step of one more thread */
};

struct attempt {
	struct slot *slot;
	u32 page;		/* of the slot */
	u32 word;
	bool write;
	u64 s1, s2;
	struct entry first;	/* phase s1/2, if it was still in the ring */
	u64 done, floor;	/* of that phase's place, read before the access */
	u64 wanted;
	u64 value;
	bool swapped;
	bool blind;		/* it tells whether there is a page, but not what it holds */
	enum outcome outcome;
};

static inline bool attempt_quiet(const struct attempt *a)
{
	return a->s1 == a->s2 && !(a->s1 & 1);
}

static inline const char *judge_value(const struct attempt *a, u32 file, u32 page)
{
	struct stamp stamp;
	bool known = file == a->first.file && page == a->first.base + a->page;
	bool loses = world->options.inject == INJECT_DEVICE;

	if (a->blind || (loses && a->value == 0))
		return NULL;
	if (a->value == 0) {
		if (world->options.scenario->zeroes &&
		    (!attempt_quiet(a) || a->done <= a->floor))
			return NULL;
		return "zeroes";
	}
	if (!stamp_parse(a->value, a->word, &stamp))
		return "torn";
	if (stamp.file != file)
		return "wrong-file";
	if (stamp.page != page)
		return "wrong-page";
	if (stamp.gen > load(&world->file[file].clock))
		return "future";
	if (loses)
		return NULL;
	if (known && stamp.gen <= a->floor)
		return "old-data";
	if (known && stamp.gen < a->done)
		return "stale";
	return NULL;
}

/*
 * An injected failure of a fault is a SIGBUS or an EFAULT. A change that failed half-way may leave a
 * hole, which it closes before its phase ends.
 */
static inline bool attempt_forgiven(const struct attempt *a)
{
	if (world->options.inject == INJECT_NONE)
		return false;
	return a->outcome == GOT_BUS || a->outcome == GOT_EFAULT ||
	       (a->outcome == GOT_SEGV && !attempt_quiet(a));
}

/* NULL if the attempt may look like that in this phase. */
static inline const char *judge_phase(const struct attempt *a, struct entry entry)
{
	u32 page = entry.base + a->page;

	if (entry.kind == KIND_NONE)
		return a->outcome == GOT_SEGV || a->outcome == GOT_EFAULT ? NULL : "without-mapping";
	if (a->outcome == GOT_SEGV)
		return a->write && entry.kind == KIND_READ ? NULL : "spurious-sigsegv";
	if (a->swapped && entry.kind == KIND_READ)
		return "write-through-read-only";
	if (page >= entry.limit)
		return a->outcome != GOT_VALUE ? NULL : "beyond-end";
	if (a->outcome == GOT_BUS)
		return "spurious-sigbus";
	if (a->outcome == GOT_EFAULT)
		return "spurious-efault";
	return judge_value(a, entry.file, page);
}

/* A word out of place says little: in the phase that the access met, more may be known of it. */
static inline u32 nearness(const char *kind)
{
	static const char * const far[] = { "without-mapping", "wrong-file", "wrong-page" };
	const u32 nr = sizeof(far) / sizeof(*far);

	for (u32 i = 0; kind && i < nr; i++) {
		if (!strcmp(kind, far[i]))
			return i + 1;
	}
	return kind ? nr + 1 : 0;
}

/*
 * NULL, or the kind of the corruption. A racing attempt may look like any phase that it met; if it
 * looks like none, its kind is that of the phase which it comes nearest to.
 */
static inline const char *judge(const struct attempt *a)
{
	u64 first = a->s1 / 2, last = (a->s2 + 1) / 2;
	struct entry entries[RING];
	const char *verdict = NULL;

	if (last - first >= RING - 1)
		return NULL;	/* the ring has gone round meanwhile: nothing can be said */
	for (u64 phase = first; phase <= last; phase++)
		entries[phase - first] = slot_entry(a->slot, phase);
	barrier_full();
	if ((load(&a->slot->seq) + 1) / 2 - first >= RING)
		return NULL;
	for (u64 phase = first; phase <= last; phase++) {
		const char *kind = judge_phase(a, entries[phase - first]);

		if (!kind)
			return NULL;
		if (nearness(kind) > nearness(verdict))
			verdict = kind;
	}
	if (attempt_forgiven(a)) {
		count(failed_faults);
		return NULL;
	}
	return verdict;
}

static inline const char *outcome_name(enum outcome outcome)
{
	static const char * const names[] = { "value", "SIGSEGV", "SIGBUS", "EFAULT" };

	return names[outcome];
}

static inline char *describe_word(char *out, size_t size, enum outcome outcome, u64 value, u32 word)
{
	struct stamp stamp;

	if (outcome != GOT_VALUE)
		snprintf(out, size, "%s", outcome_name(outcome));
	else if (value == 0)
		snprintf(out, size, "zeroes");
	else if (!stamp_parse(value, word, &stamp))
		snprintf(out, size, "no stamp: 0x%016llx", (unsigned long long)value);
	else
		snprintf(out, size, "file %u page %u generation %llu", stamp.file, stamp.page,
			 (unsigned long long)stamp.gen);
	return out;
}

/* A full file system makes SIGBUS of a write to a hole: no fault of the page-fault path. */
static inline void exit_if_full(void)
{
	struct statvfs fs;

	if (statvfs(world->folder, &fs) || fs.f_bavail > world->options.pages / 4 + 16)
		return;
	report("end", "\"verdict\":\"environment\",\"status\":%d,"
	       "\"reason\":\"the file system is full\"", STATUS_ENVIRONMENT);
	_exit(STATUS_ENVIRONMENT);
}

static inline void corruption_count(void)
{
	if (__atomic_add_fetch(&world->corruptions, 1, __ATOMIC_SEQ_CST) >= MAX_CORRUPTIONS)
		store(&world->stop, 1);
}

/*
 * The details, and two more looks: through the same address (a stale page-table entry stays, a
 * passing race does not), and with pread (what the page cache says).
 */
static inline void report_attempt(const struct attempt *a, const char *kind)
{
	u64 *address = word_at(a->slot->address + a->page * world->page_size, a->word);
	char seen[80], again[80], cache[80];
	u64 value = 0;
	enum outcome outcome;
	off_t offset;

	corruption_count();
	outcome = access_load(address, &value);
	describe_word(again, sizeof(again), outcome, value, a->word);
	offset = (off_t)(a->first.base + a->page) * world->page_size +
		 a->word * (world->page_size / WORDS_PER_PAGE);
	value = 0;
	if (pread(world->file[a->first.file].fd, &value, sizeof(value), offset) == sizeof(value))
		describe_word(cache, sizeof(cache), GOT_VALUE, value, a->word);
	else
		snprintf(cache, sizeof(cache), "nothing");
	describe_word(seen, sizeof(seen), a->outcome, a->value, a->word);
	report("corruption",
	       "\"kind\":\"%s\",\"thread\":%u,\"access\":\"%s\",\"swapped\":%s,\"slot\":%u,"
	       "\"address\":\"%p\",\"word\":%u,\"seq_before\":%llu,\"seq_after\":%llu,"
	       "\"mapped\":\"%s\",\"file\":%u,\"page\":%u,\"pages\":%u,\"done\":%llu,"
	       "\"floor\":%llu,\"clock\":%llu,\"seen\":\"%s\",\"again\":\"%s\",\"pread\":\"%s\"",
	       kind, self->number, self->op, a->swapped ? "true" : "false",
	       (u32)(a->slot - world->slot), (void *)address, a->word,
	       (unsigned long long)a->s1, (unsigned long long)a->s2,
	       a->first.kind == KIND_NONE ? "none" : a->first.kind == KIND_READ ? "read" : "write",
	       a->first.file, a->first.base + a->page, a->first.limit,
	       (unsigned long long)a->done, (unsigned long long)a->floor,
	       (unsigned long long)load(&world->file[a->first.file].clock), seen, again, cache);
}

static inline void attempt_begin(struct attempt *a)
{
	a->s1 = load(&a->slot->seq);
	a->first = slot_entry(a->slot, a->s1 / 2);
	if (a->first.file < MAX_FILES && a->first.base + a->page < MAX_PAGES) {
		struct file *file = &world->file[a->first.file];

		a->done = load(&file->done[a->first.base + a->page][a->word]);
		a->floor = load(&file->floor[a->first.base + a->page]);
	}
	barrier_full();
}

/* NULL, or the kind of the corruption. */
static inline const char *attempt_close(struct attempt *a)
{
	barrier_full();
	a->s2 = load(&a->slot->seq);
	if (!attempt_quiet(a))
		count(races);
	if (a->outcome == GOT_SEGV)
		count(segv);
	else if (a->outcome == GOT_BUS)
		count(sigbus);
	else if (a->outcome == GOT_EFAULT)
		count(efault);
	else if (a->value == 0 && !a->blind)
		count(zeroes);
	return judge(a);
}

static inline void attempt_end(struct attempt *a)
{
	const char *kind = attempt_close(a);

	if (!kind)
		return;
	if (a->outcome == GOT_BUS)
		exit_if_full();
	report_attempt(a, kind);
}

static inline u64 *attempt_address(const struct attempt *a)
{
	return word_at(a->slot->address + a->page * world->page_size, a->word);
}

static inline void attempt_read(struct attempt *a)
{
	a->write = a->swapped = a->blind = false;
	a->value = 0;
	attempt_begin(a);
	a->outcome = access_load(attempt_address(a), &a->value);
	count(reads);
	attempt_end(a);
}

/*
 * Nothing promises that the kernel copies 8 bytes in one piece, so a single bad word may be torn
 * by a writer. What a stale page-table entry shows is still there at the second look.
 */
static inline enum outcome peek(const struct attempt *a, u64 *value)
{
	u64 *address = attempt_address(a);
	enum outcome outcome;

	inject_call(true);
	outcome = a->blind ? access_futex((uint32_t *)address) :
		  world->options.scenario->mem ? access_mem(world->mem, address, value) :
						 access_peek(address, value);
	inject_call(false);
	return outcome;
}

static inline void attempt_peek(struct attempt *a)
{
	const char *kind = NULL;

	a->write = a->swapped = false;
	a->blind = world->options.scenario->futex;
	for (u32 tries = 0; tries < 2; tries++) {
		a->value = 0;
		attempt_begin(a);
		a->outcome = peek(a, &a->value);
		count(peeks);
		kind = attempt_close(a);
		if (!kind)
			return;
	}
	report_attempt(a, kind);
}

/* Replace `expected` (0: a first stamp over zeroes in `file`, `page`) by its next generation. */
static inline void attempt_write(struct attempt *a, u64 expected, u32 file, u32 page)
{
	struct file *f = &world->file[file];
	u64 gen;

	a->write = true;
	a->blind = false;
	a->value = expected;
	attempt_begin(a);
	gen = __atomic_add_fetch(&f->clock, 1, __ATOMIC_SEQ_CST);
	a->wanted = stamp_make(file, page, a->word, gen);
	a->outcome = access_swap(attempt_address(a), &a->value, a->wanted, &a->swapped);
	if (a->swapped) {
		raise_to(&f->done[page][a->word], gen);
		count(writes);
	} else if (a->outcome == GOT_VALUE) {
		count(swaps_lost);
	}
	attempt_end(a);
}

#endif
