/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A frozen file system: nothing of it changes, and who waits for it keeps nobody else waiting.
 *
 * A freeze writes all pages back and makes their page-table entries read-only, so that every store
 * after it is a fault that sleeps until the thaw.
 */
#ifndef FAULTSTRESS_FROZEN_H
#define FAULTSTRESS_FROZEN_H

#include <linux/fs.h>
#include <sys/ioctl.h>

#include "change.h"

#define LOOKED_AT	64	/* pages of each file */
#define PAIRS		1000
#define FROZEN_MOST_NS	6000000000ull
#define LEAK_PAIRS	(PAIRS / 2)

static inline int frozen_folder(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = open(world->options.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		call_failed("open", errno);
	return fd;
}

static inline u32 look(u64 *words)
{
	u32 pages = world->options.pages < LOOKED_AT ? world->options.pages : LOOKED_AT, n = 0;

	for (u32 file = 0; file < world->nr_files; file++)
		for (u32 page = 0; page < pages; page++)
			for (u32 word = 0; word < WORDS_PER_PAGE; word++)
				words[n++] = load(word_at((char *)world->file[file].witness +
							  page * world->page_size, word));
	return n;
}

static inline void report_frozen_change(const u64 *before, const u64 *after, u32 words)
{
	u32 pages = world->options.pages < LOOKED_AT ? world->options.pages : LOOKED_AT;

	for (u32 i = 0; i < words; i++) {
		u32 word = i % WORDS_PER_PAGE, page = i / WORDS_PER_PAGE % pages;
		char was[80], is[80];

		if (before[i] == after[i])
			continue;
		corruption_count();
		report("corruption", "\"kind\":\"changed-while-frozen\",\"thread\":%u,\"file\":%u,"
		       "\"page\":%u,\"word\":%u,\"first\":\"%s\",\"then\":\"%s\"", self->number,
		       i / WORDS_PER_PAGE / pages, page, word,
		       describe_word(was, sizeof(was), GOT_VALUE, before[i], word),
		       describe_word(is, sizeof(is), GOT_VALUE, after[i], word));
		return;
	}
}

/* Between freeze and thaw every word of every file stays what it is. */
static inline void step_freeze(void)
{
	static u64 before[MAX_FILES * LOOKED_AT * WORDS_PER_PAGE];
	static u64 after[MAX_FILES * LOOKED_AT * WORDS_PER_PAGE];
	struct timespec ts = { .tv_nsec = 1000000 * (1 + pick(40)) };
	u32 words;

	/* Contention for mmap_lock up to the last moment; and one thread only freezes. */
	for (u32 i = 0; i < 4; i++)
		step_mapfixed();
	if (self->number)
		return;
	timed(CALL_FREEZE, "freeze", ioctl(frozen_folder(), FIFREEZE, 0));
	self->op = "look";
	words = look(before);
	nanosleep(&ts, NULL);
	look(after);
	if (sabotage_is("late-write")) {
		/* A write(2) would sleep: the sabotage is in what is looked at. */
		after[pick(words)] ^= 1;
		__atomic_add_fetch(&world->sabotaged, 1, __ATOMIC_SEQ_CST);
	}
	report_frozen_change(before, after, words);
	timed(CALL_THAW, "thaw", ioctl(frozen_folder(), FITHAW, 0));
	count(extras);
	pause_random(1000);
}

/* --- siblings of a fault that sleeps ----------------------------------------------------------- */

/* Objects of VMAs, or kilobytes of unreclaimable slab where the cache was merged with another. */
static inline long vmas_in_use(long *least_leak)
{
	static char text[65536];
	const char *files[] = { "/proc/slabinfo", "/proc/meminfo" };
	const char *names[] = { "\nvm_area_struct ", "\nSUnreclaim:" };
	const long leaks[] = { LEAK_PAIRS, LEAK_PAIRS * 160 / 1024 };

	for (u32 i = 0; i < 2; i++) {
		int fd = open(files[i], O_RDONLY | O_CLOEXEC);
		size_t used = 0;
		ssize_t got;
		char *at;

		if (fd < 0)
			continue;
		while ((got = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
			used += got;
		close(fd);
		text[used] = '\0';
		at = strstr(text, names[i]);
		if (!at)
			continue;
		*least_leak = leaks[i];
		return strtol(at + strlen(names[i]), NULL, 10);
	}
	return -1;
}

/* A mapping of its own page of a file, and away with it. */
static inline bool pair(void)
{
	void *at = mmap(NULL, world->page_size, PROT_READ, MAP_SHARED, world->file[0].fd, 0);

	return at != MAP_FAILED && !munmap(at, world->page_size);
}

/*
 * Another process: 1,000 pairs of its own while the file system is frozen, then it waits for the
 * word to thaw, or for the time after which it must: a sibling of the sleeping fault may hang.
 */
__attribute__((noreturn)) static inline void frozen_helper(void)
{
	struct timespec ts = { .tv_nsec = 1000000 };
	long least = 0, before, after;
	u64 began = now_ns();
	u32 done = 0;

	while (!load(&world->frozen) && now_ns() - began < FROZEN_MOST_NS)
		nanosleep(&ts, NULL);
	began = now_ns();
	before = vmas_in_use(&least);
	while (done < PAIRS && now_ns() - began < FROZEN_MOST_NS / 2 && pair())
		done++;
	after = vmas_in_use(&least);
	store(&world->pairs_elsewhere, load(&world->pairs_elsewhere) + done);
	if (done >= PAIRS && before >= 0 && after - before >= least) {
		corruption_count();
		report("corruption", "\"kind\":\"unmapped-not-freed\",\"pairs\":%u,\"before\":%ld,"
		       "\"after\":%ld", done, before, after);
	}
	while (!load(&world->thaw) && now_ns() - began < FROZEN_MOST_NS)
		nanosleep(&ts, NULL);
	store(&world->thaw, 2);
	ioctl(frozen_folder(), FITHAW, 0);
	_exit(0);
}

/* Has a faulting thread been in one and the same store for a while? */
static inline bool store_sleeps(void)
{
	struct timespec ts = { .tv_nsec = 30000000 };
	u64 beat[MAX_THREADS];

	for (u32 i = 0; i < world->nr_threads; i++)
		beat[i] = __atomic_load_n(&world->thread[i].beat, __ATOMIC_RELAXED);
	nanosleep(&ts, NULL);
	for (u32 i = 0; i < world->nr_threads; i++)
		if (world->thread[i].role == ROLE_FAULT &&
		    !strcmp(world->thread[i].op, "write") &&
		    beat[i] == __atomic_load_n(&world->thread[i].beat, __ATOMIC_RELAXED))
			return true;
	return false;
}

/* While one fault sleeps: how long do mmap() and munmap() of its siblings and of others take? */
static inline void step_frozen(void)
{
	u64 began, last;
	int status;
	pid_t child;
	u32 done = 0;

	if (self->number) {
		pause_random(1000);
		return;
	}
	for (u32 i = 0; i < 16; i++)
		step_mapfixed();
	store(&world->thaw, 0);
	store(&world->frozen, 0);
	/* Before the freeze: to fork changes this address space, too. */
	self->op = "fork";
	child = fork();
	if (child == 0)
		frozen_helper();
	if (child < 0)
		call_failed("fork", errno);
	timed(CALL_FREEZE, "freeze", ioctl(frozen_folder(), FIFREEZE, 0));
	began = now_ns();
	self->op = "wait-for-a-store";
	while (!store_sleeps() && now_ns() - began < FROZEN_MOST_NS / 2)
		;
	if (store_sleeps())
		count(extras);
	store(&world->frozen, 1);
	/* From here on a change of this address space may wait for the helper's thaw. */
	self->op = "pairs";
	for (u32 i = 0; i < PAIRS && load(&world->thaw) != 2; i++) {
		last = now_ns();
		if (!pair())
			call_failed("mmap", errno);
		latency_add(&self->latency[CALL_PAIR], now_ns() - last);
		if (load(&world->thaw) != 2)
			done++;
	}
	world->pairs_frozen += done;
	store(&world->thaw, load(&world->thaw) == 2 ? 2 : 1);
	self->op = "waitpid";
	if (waitpid(child, &status, 0) != child)
		call_failed("waitpid", errno);
	count(changes);
	pause_random(1000);
}

#endif
