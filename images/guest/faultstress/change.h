/* SPDX-License-Identifier: GPL-2.0-only */
/* What the changing threads do to slots and files: one step function for each scenario. */
#ifndef FAULTSTRESS_CHANGE_H
#define FAULTSTRESS_CHANGE_H

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static inline bool sabotage_is(const char *kind)
{
	return world->options.sabotage && !strcmp(world->options.sabotage, kind);
}

/* Sabotage: claim a change that was not made. */
static inline bool skip_change(void)
{
	if (!sabotage_is("skip-change"))
		return false;
	__atomic_add_fetch(&world->sabotaged, 1, __ATOMIC_SEQ_CST);
	return true;
}

/*
 * A system call that has no reason to fail did: for lack of memory or space that is the
 * environment's fault, anything else is a wrong answer of the kernel.
 */
static inline void call_failed(const char *name, int error)
{
	bool environment = error == ENOSPC || error == ENOMEM || error == EDQUOT ||
			   error == EOPNOTSUPP || error == EROFS || error == EAGAIN ||
			   error == EMFILE || error == EACCES || error == EPERM;
	enum status status = environment ? STATUS_ENVIRONMENT : STATUS_CORRUPTION;

	if (!environment)
		report("corruption", "\"kind\":\"call-failed\",\"call\":\"%s\",\"errno\":%d,"
		       "\"thread\":%u", name, error, self ? self->number : 0);
	report("end", "\"verdict\":\"%s\",\"status\":%d,\"corruptions\":%d,"
	       "\"reason\":\"%s: %s\"", status_name(status), status, !environment, name,
	       strerror(error));
	_exit(status);
}

/* Run `call`, timed; it is a failure if its result is -1, unless that was injected. */
#define timed(which, name, call)						\
	do {									\
		u64 began = now_ns();						\
										\
		self->op = name;						\
		inject_call(true);						\
		if ((long)(call) == -1) {					\
			int error = errno;					\
										\
			inject_call(false);					\
			if (!inject_forgives(error))				\
				call_failed(name, error);			\
			inject_stop();						\
			if ((long)(call) == -1)					\
				call_failed(name, errno);			\
			inject_resume();					\
		} else {							\
			inject_call(false);					\
		}								\
		latency_add(&self->latency[which], now_ns() - began);		\
	} while (0)

static inline size_t slot_bytes(void)
{
	return world->slot_pages * world->page_size;
}

/* Let the others run against the state that is now in force. */
static inline void pause_random(u32 most_us)
{
	u32 us = pick(most_us + 1);
	struct timespec ts = { .tv_nsec = us * 1000 };

	self->op = "pause";
	if (us & 1)
		sched_yield();
	else
		nanosleep(&ts, NULL);
}

/* Between two changes: mostly none, for the races are what the time is for. */
static inline void rest(u32 most_us)
{
	if (!pick(4))
		pause_random(most_us);
}

/* A free slot other than `except`, held by the caller afterwards; NULL if none was found soon. */
static inline struct slot *slot_take(const struct slot *except)
{
	for (u32 tries = 0; tries < 16; tries++) {
		struct slot *slot = &world->slot[pick(world->nr_slots)];

		if (slot != except && slot_trylock(slot))
			return slot;
	}
	sched_yield();
	return NULL;
}

static inline struct entry entry_random(void)
{
	return (struct entry){
		.kind = KIND_WRITE,
		.file = pick(world->nr_files),
		.base = pick(world->options.pages - world->slot_pages + 1),
		.limit = world->options.pages,
	};
}

static inline int entry_prot(struct entry entry)
{
	if (entry.kind == KIND_NONE)
		return PROT_NONE;
	return entry.kind == KIND_READ ? PROT_READ : PROT_READ | PROT_WRITE;
}

static inline int slot_open(const struct file *file)
{
	int fd;

	inject_call(true);
	fd = open(file->path, O_RDWR | O_CLOEXEC);
	inject_call(false);
	if (fd < 0 && inject_forgives(errno)) {
		inject_stop();
		fd = open(file->path, O_RDWR | O_CLOEXEC);
		inject_resume();
	}
	if (fd < 0)
		call_failed("open", errno);
	return fd;
}

/* Map `entry` at the slot: over what is there, or, with `vacant`, into the hole that is there. */
static inline void slot_map(struct slot *slot, struct entry entry, bool vacant)
{
	int flags = MAP_SHARED | (vacant ? MAP_FIXED_NOREPLACE : MAP_FIXED);
	int fd;

	/* To populate pages that cannot be read spins: each try is told to come back (6.1). */
	if (pick(8) == 0 && world->options.inject != INJECT_DEVICE)
		flags |= MAP_POPULATE;
	fd = world->options.scenario->reopens ? slot_open(&world->file[entry.file]) :
						world->file[entry.file].fd;
	timed(CALL_MMAP, "mmap",
	      mmap(slot->address, slot_bytes(), entry_prot(entry), flags, fd,
		   (off_t)entry.base * world->page_size));
	if (world->options.scenario->reopens)
		close(fd);
}

static inline void change_map(struct slot *slot, struct entry entry)
{
	bool vacant = slot_now(slot).kind == KIND_NONE && world->options.scenario->wants_segv;

	change_begin(slot, entry);
	if (!skip_change())
		slot_map(slot, entry, vacant);
	change_end(slot);
	count(changes);
}

static inline void change_unmap(struct slot *slot)
{
	change_begin(slot, (struct entry){ .kind = KIND_NONE });
	if (!skip_change())
		timed(CALL_MUNMAP, "munmap", munmap(slot->address, slot_bytes()));
	change_end(slot);
	count(changes);
}

static inline void step_munmap(void)
{
	struct slot *slot = slot_take(NULL);

	if (!slot)
		return;
	if (slot_now(slot).kind != KIND_NONE) {
		change_unmap(slot);
		pause_random(100);
	}
	/* Some stay unmapped for longer. */
	if (pick(4))
		change_map(slot, entry_random());
	slot_unlock(slot);
	rest(50);
}

static inline void step_mapfixed(void)
{
	struct slot *slot = slot_take(NULL);
	struct entry next;

	if (!slot)
		return;
	next = entry_random();
	next.file = (slot_now(slot).file + 1 + pick(world->nr_files - 1)) % world->nr_files;
	change_map(slot, next);
	slot_unlock(slot);
	rest(100);
}

static inline void witness_read(const struct entry *entry, u64 *words)
{
	for (u32 page = 0; page < world->slot_pages; page++)
		for (u32 word = 0; word < WORDS_PER_PAGE; word++) {
			char *at = (char *)world->file[entry->file].witness +
				   (entry->base + page) * world->page_size;

			*words++ = load(word_at(at, word));
		}
}

/* Sabotage: a good stamp, where nobody may write now. */
static inline void write_late(struct entry entry)
{
	struct file *file = &world->file[entry.file];
	u64 gen = __atomic_add_fetch(&file->clock, 1, __ATOMIC_SEQ_CST);
	u64 value = stamp_make(entry.file, entry.base, 0, gen);

	if (pwrite(file->fd, &value, sizeof(value), (off_t)entry.base * world->page_size) ==
	    sizeof(value))
		__atomic_add_fetch(&world->sabotaged, 1, __ATOMIC_SEQ_CST);
}

/*
 * While the slot is read-only nothing changes its pages: no other slot maps them, and it takes
 * the slot's lock to make it writable again. So two looks through the witness, both after
 * mprotect() returned, must be equal; this sees a late write even if the writer died over it.
 */
static inline void check_frozen(struct slot *slot, struct entry entry)
{
	static __thread u64 before[64 * WORDS_PER_PAGE], after[64 * WORDS_PER_PAGE];

	witness_read(&entry, before);
	if (sabotage_is("late-write"))
		write_late(entry);
	pause_random(200);
	witness_read(&entry, after);
	for (u32 i = 0; i < world->slot_pages * WORDS_PER_PAGE; i++) {
		char was[80], is[80];

		if (before[i] == after[i])
			continue;
		corruption_count();
		report("corruption", "\"kind\":\"changed-while-read-only\",\"thread\":%u,"
		       "\"slot\":%u,\"file\":%u,\"page\":%u,\"word\":%u,\"first\":\"%s\","
		       "\"then\":\"%s\"", self->number, (u32)(slot - world->slot), entry.file,
		       entry.base + i / WORDS_PER_PAGE, i % WORDS_PER_PAGE,
		       describe_word(was, sizeof(was), GOT_VALUE, before[i], i % WORDS_PER_PAGE),
		       describe_word(is, sizeof(is), GOT_VALUE, after[i], i % WORDS_PER_PAGE));
		return;
	}
}

static inline void change_protect(struct slot *slot, enum kind kind)
{
	struct entry entry = slot_now(slot);

	entry.kind = kind;
	if (kind == KIND_NONE) {
		/* Keep where the slot belongs: PROT_NONE is no hole. */
		change_begin(slot, (struct entry){ .kind = KIND_NONE, .file = entry.file,
						   .base = entry.base, .limit = entry.limit });
	} else {
		change_begin(slot, entry);
	}
	if (!skip_change())
		timed(CALL_MPROTECT, "mprotect",
		      mprotect(slot->address, slot_bytes(), entry_prot(entry)));
	change_end(slot);
	count(changes);
}

static inline void step_mprotect(void)
{
	struct slot *slot = slot_take(NULL);

	if (!slot)
		return;
	if (slot_now(slot).kind == KIND_NONE)
		change_map(slot, entry_random());
	change_protect(slot, pick(4) ? KIND_READ : KIND_NONE);
	if (world->options.scenario->exclusive)
		check_frozen(slot, slot_now(slot));
	else
		pause_random(100);
	change_protect(slot, KIND_WRITE);
	slot_unlock(slot);
	rest(100);
}

/*
 * Nobody is in, or can begin, a first stamp over zeroes in the file when this returns true. False:
 * the run ended before the last of them was out; the gate is open again and no content may go.
 */
static inline bool gate_close(u32 file)
{
	store(&world->file[file].gate, 1);
	barrier_full();
	self->op = "wait-for-first-writes";
	for (u32 i = 0; i < world->nr_threads; i++)
		while (load(&world->thread[i].first_write) == file + 1) {
			if (load(&world->stop)) {
				store(&world->file[file].gate, 0);
				return false;
			}
			sched_yield();
		}
	return true;
}

/*
 * Pages [from, to) lost their content: what was drawn from the clock until now must not be seen
 * again. The clock is read after the call returned, for a write may have landed just before it.
 */
static inline void floor_raise(u32 file, u32 from, u32 to)
{
	u64 now = load(&world->file[file].clock);

	for (u32 page = from; page < to; page++)
		store(&world->file[file].floor[page], now);
}

/* False: the run ended first, and the file is as it was. */
static inline bool truncate_to(struct slot *slot, u32 limit)
{
	struct entry entry = slot_now(slot);
	u32 old = entry.limit;

	entry.limit = limit;
	if (limit < old && !gate_close(entry.file))
		return false;
	change_begin(slot, entry);
	if (!skip_change())
		timed(CALL_TRUNCATE, "ftruncate",
		      ftruncate(world->file[entry.file].fd, (off_t)limit * world->page_size));
	if (limit < old)
		floor_raise(entry.file, limit, old);
	change_end(slot);
	store(&world->file[entry.file].gate, 0);
	count(changes);
	return true;
}

static inline void step_truncate(void)
{
	struct slot *slot = slot_take(NULL);
	u32 limit;

	if (!slot)
		return;
	limit = slot_now(slot).limit;
	if (limit && !truncate_to(slot, pick(limit))) {
		slot_unlock(slot);
		return;
	}
	pause_random(200);
	limit = slot_now(slot).limit;
	truncate_to(slot, limit + 1 + pick(world->options.pages - limit));
	slot_unlock(slot);
	rest(300);
}

/* --- a writer of mmap_lock beside ------------------------------------------------------------ */

#define WRITER_BYTES (1024 * 1024)

/* NULL where that failed because of an injected failure. */
static inline char *writer_map(void)
{
	char *at = mmap(NULL, WRITER_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (at != MAP_FAILED)
		return at;
	if (!inject_forgives(errno))
		call_failed("mmap", errno);
	return NULL;
}

/* Holds mmap_lock for write for as long as it takes to change the protection of all the pages. */
static inline void writer_hold(char *at)
{
	if ((mprotect(at, WRITER_BYTES, PROT_READ) ||
	     mprotect(at, WRITER_BYTES, PROT_READ | PROT_WRITE)) && !inject_forgives(errno))
		call_failed("mprotect", errno);
}

/*
 * One more thread, for the scenarios whose changes do not take mmap_lock: a fault that finds it busy
 * may find afterwards that its page has gone.
 */
static inline void help_writer(void)
{
	static char *at;

	self->op = "mprotect-beside";
	if (!at)
		at = writer_map();
	if (at)
		writer_hold(at);
	rest(200);
}

static inline void step_punch(void)
{
	struct slot *slot = slot_take(NULL);
	struct entry entry;
	u32 from, to;

	if (!slot)
		return;
	entry = slot_now(slot);
	from = pick(world->options.pages);
	to = from + 1 + pick(world->options.pages - from);
	if (!gate_close(entry.file)) {
		slot_unlock(slot);
		return;
	}
	/* The same mapping before and after; the odd counter says that pages may vanish. */
	change_begin(slot, entry);
	if (!skip_change())
		timed(CALL_PUNCH, "fallocate",
		      fallocate(world->file[entry.file].fd,
				FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)from * world->page_size,
				(off_t)(to - from) * world->page_size));
	floor_raise(entry.file, from, to);
	change_end(slot);
	store(&world->file[entry.file].gate, 0);
	count(changes);
	slot_unlock(slot);
	rest(300);
}

/* Move a mapping from one slot to another, with its page tables. */
static inline void step_mremap(void)
{
	struct slot *from = slot_take(NULL), *to;
	struct entry moved;

	if (!from)
		return;
	to = slot_take(from);
	if (to) {
		moved = slot_now(from);
		if (moved.kind == KIND_NONE) {
			change_map(from, entry_random());
			moved = slot_now(from);
		}
		change_begin(from, (struct entry){ .kind = KIND_NONE });
		change_begin(to, moved);
		if (!skip_change())
			timed(CALL_MREMAP, "mremap",
			      mremap(from->address, slot_bytes(), slot_bytes(),
				     MREMAP_MAYMOVE | MREMAP_FIXED, to->address));
		change_end(to);
		change_end(from);
		count(changes);
		pause_random(50);
		change_map(from, entry_random());
		slot_unlock(to);
	}
	slot_unlock(from);
	rest(50);
}

/* Page-table entries go, content stays. */
static inline void step_dontneed(void)
{
	struct slot *slot = slot_take(NULL);

	if (!slot)
		return;
	if (slot_now(slot).kind != KIND_NONE) {
		change_begin(slot, slot_now(slot));
		timed(CALL_MADVISE, "madvise",
		      madvise(slot->address, slot_bytes(), MADV_DONTNEED));
		change_end(slot);
		count(changes);
	}
	slot_unlock(slot);
	rest(50);
}

static inline void step_mixed(void)
{
	static void (* const steps[])(void) = {
		step_munmap, step_mapfixed, step_mremap, step_dontneed, step_munmap, step_mprotect,
	};

	steps[pick(sizeof(steps) / sizeof(*steps))]();
}

/*
 * The page below the slot, and with it the page below those that the slot maps: the two mappings are
 * then one VMA, but each lies in a page table of its own.
 */
static inline void anchor_map(const struct slot *slot, struct entry entry)
{
	timed(CALL_MMAP, "mmap",
	      mmap(slot->address - world->page_size, world->page_size, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED, world->file[entry.file].fd,
		   (off_t)(entry.base - 1) * world->page_size));
}

/*
 * The same mapping again, over a page table that went with the old one. The VMA stays while its upper
 * part is cut off and grows again: a fault that waited meanwhile finds nothing changed but the table.
 */
static inline void step_pagetables(void)
{
	static bool anchored[MAX_SLOTS];
	struct slot *slot = slot_take(NULL);
	struct entry entry;

	if (!slot)
		return;
	entry = slot_now(slot);
	if (entry.kind != KIND_NONE)
		change_unmap(slot);
	if (!anchored[slot - world->slot] || !pick(64)) {
		entry = entry_random();
		if (!entry.base)
			entry.base++;
		anchor_map(slot, entry);
		anchored[slot - world->slot] = true;
	}
	if (!pick(8))
		pause_random(50);
	change_map(slot, entry);
	slot_unlock(slot);
	rest(20);
}

static inline void step_procmem(void)
{
	/* No mprotect: this way the kernel reads a PROT_NONE mapping too. */
	static void (* const steps[])(void) = {
		step_munmap, step_mapfixed, step_mremap, step_dontneed,
	};

	steps[pick(sizeof(steps) / sizeof(*steps))]();
}

#define FORK_WORDS 512

/*
 * The child's half of a fork: what the parent wrote before is there for good, whatever it writes
 * afterwards, and the shared files go on being shared. Ends the process.
 */
static inline void fork_child(const u64 *private, u64 pattern)
{
	u32 bad = 0;

	self->op = "read";
	for (u32 round = 0; round < 16 && !bad; round++) {
		struct attempt a = { .slot = &world->slot[pick(world->nr_slots)] };

		for (u32 i = 0; i < FORK_WORDS * world->slot_pages && !bad; i += 61)
			bad = load(&private[i]) != pattern + i;
		a.page = pick(world->slot_pages);
		a.word = pick(WORDS_PER_PAGE);
		attempt_read(&a);
	}
	if (bad) {
		corruption_count();
		report("corruption", "\"kind\":\"copy-on-write\",\"who\":\"child\",\"thread\":%u",
		       self->number);
	}
	_exit(0);
}

/* Fork while the others fault; parent and child must not see each other's private writes. */
static inline void step_fork(void)
{
	static __thread u64 *private;
	u32 words = FORK_WORDS * world->slot_pages;
	struct slot *slot = slot_take(NULL);
	u64 pattern = random_next(&self->random) >> 8, began;
	int status;
	pid_t child;

	if (!slot)
		return;
	if (!private) {
		/* Of a file, so that the first touch is a copy out of the page cache. */
		private = mmap(NULL, words * sizeof(u64), PROT_READ | PROT_WRITE, MAP_PRIVATE,
			       world->file[0].fd, 0);
		if (private == MAP_FAILED)
			call_failed("mmap", errno);
	}
	for (u32 i = 0; i < words; i++)
		store(&private[i], pattern + i);
	self->op = "fork";
	/* The mapping stays; the odd counter counts the accesses that meet the fork. */
	change_begin(slot, slot_now(slot));
	began = now_ns();
	child = fork();
	if (child < 0 && inject_forgives(errno)) {
		inject_stop();
		child = fork();
		if (child)
			inject_resume();
	}
	if (child == 0)
		fork_child(private, sabotage_is("skip-change") ? pattern + 1 : pattern);
	if (child < 0)
		call_failed("fork", errno);
	latency_add(&self->latency[CALL_FORK], now_ns() - began);
	change_end(slot);
	slot_unlock(slot);
	/* The child counts in our place until it is reaped. */
	for (u32 i = 0; i < words; i += 61)
		store(&private[i], ~(pattern + i));
	self->op = "waitpid";
	if (waitpid(child, &status, 0) != child)
		call_failed("waitpid", errno);
	if (sabotage_is("skip-change"))
		__atomic_add_fetch(&world->sabotaged, 1, __ATOMIC_SEQ_CST);
	for (u32 i = 0; i < words; i += 61)
		if (load(&private[i]) != ~(pattern + i) || status) {
			corruption_count();
			report("corruption", "\"kind\":\"copy-on-write\",\"who\":\"parent\","
			       "\"thread\":%u,\"child_status\":%d", self->number, status);
			break;
		}
	madvise(private, words * sizeof(u64), MADV_DONTNEED);
	count(changes);
}

#endif
