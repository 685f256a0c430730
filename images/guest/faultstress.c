// SPDX-License-Identifier: GPL-2.0-only
/*
 * faultstress: threads fault shared file mappings while other threads take the mappings, their
 * protection or the files' pages away. Every access is checked: see faultstress/check.h for what
 * counts as a corruption and why, faultstress/world.h for how races are told from lies.
 *
 * JSON lines on stdout: start, progress, corruption, hang, latency, end. The exit status says
 * the same as the end event: 0 pass, 1 corruption, 2 usage, 3 environment, 4 tested nothing,
 * 5 hang. A run lasts --duration, and up to --at-most while it has tested nothing.
 * All random decisions come from the seed; the interleaving of threads does not.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "faultstress/beside.h"
#include "faultstress/frozen.h"

static const struct scenario scenarios[] = {
	{ .name = "munmap", .step = step_munmap, .wants_segv = true,
	  .checks = "no access without a mapping, the right page after each new one" },
	{ .name = "mapfixed", .step = step_mapfixed,
	  .checks = "never the old file's page after MAP_FIXED returned" },
	{ .name = "mprotect", .step = step_mprotect, .exclusive = true, .wants_segv = true,
	  .checks = "no write lands after PROT_READ returned" },
	{ .name = "truncate", .step = step_truncate, .whole_files = true, .zeroes = true,
	  .wants_sigbus = true, .help = help_writer,
	  .checks = "SIGBUS beyond the end, zeroes after growing, never old data" },
	{ .name = "punch", .step = step_punch, .whole_files = true, .zeroes = true,
	  .help = help_writer,
	  .checks = "zeroes after a hole was punched, never old data" },
	{ .name = "mremap", .step = step_mremap, .wants_segv = true,
	  .checks = "a moved mapping shows its own pages at the new place only" },
	{ .name = "dontneed", .step = step_dontneed,
	  .checks = "no write is lost with the page-table entries" },
	{ .name = "fork", .step = step_fork, .whole_files = true,
	  .checks = "copy-on-write keeps parent and child apart" },
	{ .name = "mixed", .step = step_mixed, .wants_segv = true,
	  .checks = "munmap, mapfixed, mprotect, mremap and dontneed on the same slots" },
	{ .name = "gup", .step = step_mixed, .wants_segv = true, .peeks = true,
	  .checks = "the same where the kernel reads the pages for a system call" },
	{ .name = "futex", .step = step_mixed, .wants_segv = true, .peeks = true, .futex = true,
	  .checks = "the same where futex calls look the pages up" },
	{ .name = "procmem", .step = step_procmem, .wants_segv = true, .peeks = true, .mem = true,
	  .prepare = prepare_mem, .extra = "pokes",
	  .checks = "the same by way of /proc/self/mem, where a fault cannot be retried" },
	{ .name = "odirect", .step = step_mixed, .wants_segv = true, .direct = true,
	  .extra = "transfers", .checks = "the same where the device reads the pages (O_DIRECT)" },
	{ .name = "pagetables", .step = step_pagetables, .wants_segv = true, .far = true,
	  .checks = "the same mapping again over a page table that went with the old one" },
	{ .name = "reopen", .step = step_munmap, .wants_segv = true, .reopens = true,
	  .checks = "munmap, where the mapping holds the only reference to its file" },
	{ .name = "umount", .step = step_umount, .wants_segv = true, .extra = "umounts",
	  .checks = "a mount is not busy once what was mapped from it is unmapped" },
	{ .name = "freeze", .step = step_freeze, .extra = "freezes",
	  .checks = "nothing changes between freeze and thaw" },
	{ .name = "frozen", .step = step_frozen, .extra = "sleepers",
	  .checks = "others map and unmap, and free it, while a fault sleeps until the thaw" },
	{ .name = "mlock", .step = step_mlock, .wants_segv = true, .extra = "locks",
	  .checks = "locked pages are resident, and go with their mapping" },
	{ .name = "userfaultfd", .step = step_uffd, .wants_segv = true, .prepare = prepare_uffd,
	  .help = help_uffd, .extra = "userfaults",
	  .checks = "munmap beside faults that user space resolves" },
	{ .name = "khugepaged", .step = step_khugepaged, .whole_files = true, .far = true,
	  .pages = 512, .prepare = prepare_huge, .extra = "collapses",
	  .checks = "content stays where a huge page replaces a page table" },
	{ .name = "memcg", .step = step_memcg, .wants_segv = true, .pages = 1536,
	  .prepare = prepare_memcg, .extra = "reclaims",
	  .checks = "mixed, in a memory cgroup that is always full" },
	{ .name = "exit", .step = step_exit, .extra = "exits",
	  .checks = "processes end with faults in flight" },
};

#define NR_SCENARIOS (sizeof(scenarios) / sizeof(*scenarios))

static const char * const sabotages[] = {
	"skip-change", "late-write", "future", "stale", "torn", "wrong-file", "wrong-page", "zero", "hang",
	"nothing", "stray-signal",
};

#define NR_SABOTAGES (sizeof(sabotages) / sizeof(*sabotages))

static const char * const call_names[NR_CALLS] = {
	"munmap", "mmap", "mprotect", "ftruncate", "mremap", "madvise", "fallocate", "fork",
	"mlock", "freeze", "thaw", "frozen_pair", "umount", "collapse", "exit",
};

/* Starting the threads alone takes up to a hundred. */
#define LEAST_FAULTS 200

static u32 go, finished;
static struct rusage usage_before;

/* --- faulting ---------------------------------------------------------------------------- */

/* A first stamp over zeroes: kept out while the file is being cut (see gate_close). */
static void first_write(struct attempt *a, u32 file, u32 page)
{
	store(&self->first_write, file + 1);
	barrier_full();
	if (!load(&world->file[file].gate))
		attempt_write(a, 0, file, page);
	store(&self->first_write, 0);
}

/*
 * Empty the page-table entry under a page, so that the next access is a fault: without it almost
 * all accesses hit, and nearly no time is spent where the races are. A hole is no error.
 */
static void zap(const struct attempt *a)
{
	self->op = "zap";
	madvise(a->slot->address + a->page * world->page_size, world->page_size, MADV_DONTNEED);
}

static void step_fault(void)
{
	struct attempt a = {
		.slot = &world->slot[pick(world->nr_slots)],
		.page = pick(world->slot_pages),
		.word = pick(WORDS_PER_PAGE),
	};
	u32 how = pick(8);
	struct stamp stamp;

	if (!pick(8))
		zap(&a);
	if (how < 2) {
		/* Write first: what the word should hold is known, no read fault comes before. */
		attempt_begin(&a);
		if (a.done > a.floor) {
			self->op = "write";
			attempt_write(&a, stamp_make(a.first.file, a.first.base + a.page, a.word,
						     a.done), a.first.file, a.first.base + a.page);
			return;
		}
	}
	if (world->options.scenario->mem && !pick(4)) {
		self->op = "poke";
		poke(&a);
	}
	if (world->options.scenario->direct && !pick(4)) {
		self->op = "O_DIRECT";
		attempt_direct(&a);
		return;
	}
	if (world->options.scenario->peeks && pick(2)) {
		self->op = "peek";
		attempt_peek(&a);
	} else {
		self->op = "read";
		attempt_read(&a);
	}
	if (how >= 5 || a.outcome != GOT_VALUE)
		return;
	self->op = "write";
	if (a.value == 0) {
		if (world->options.scenario->zeroes)
			first_write(&a, a.first.file, a.first.base + a.page);
	} else if (stamp_parse(a.value, a.word, &stamp) && stamp.file < world->nr_files &&
		   stamp.page < world->options.pages) {
		attempt_write(&a, a.value, stamp.file, stamp.page);
	}
}

/* --- cleaning: makes pages clean and absent, so that faults reach the file system ----------- */

static void sabotage_word(void)
{
	u32 file = pick(world->nr_files), page = pick(world->options.pages);
	u32 word = pick(WORDS_PER_PAGE);
	struct file *f = &world->file[file];
	u64 done = load(&f->done[page][word]), value = 0;

	if (world->options.scenario->whole_files)
		page = 0;	/* the least likely to lie beyond the end */
	if (sabotage_is("future"))
		value = stamp_make(file, page, word, load(&f->clock) + 1000000);
	else if (sabotage_is("stale"))
		value = stamp_make(file, page, word, FIRST_GEN);
	else if (sabotage_is("torn"))
		value = stamp_make(file, page, word, done) ^ 1;
	else if (sabotage_is("wrong-file"))
		value = stamp_make((file + 1) % world->nr_files, page, word, FIRST_GEN);
	else if (sabotage_is("wrong-page"))
		value = stamp_make(file, (page + 1) % world->options.pages, word, FIRST_GEN);
	if (pwrite(f->fd, &value, sizeof(value), (off_t)page * world->page_size +
		   word * (world->page_size / WORDS_PER_PAGE)) == sizeof(value))
		__atomic_add_fetch(&world->sabotaged, 1, __ATOMIC_SEQ_CST);
}

static void step_clean(void)
{
	struct timespec ts = { .tv_nsec = 1000000 + pick(5000000) };
	struct file *file = &world->file[pick(world->nr_files)];

	/* Writing back write-protects the page-table entries: the next store is a mkwrite. */
	self->op = "fdatasync";
	inject_call(true);
	if (fdatasync(file->fd) && !inject_forgives(errno))
		call_failed("fdatasync", errno);
	inject_call(false);
	if (pick(2)) {
		/* Mapped pages are kept by fadvise: unmap the witness's and one slot's first. */
		struct slot *slot = &world->slot[pick(world->nr_slots)];

		self->op = "fadvise";
		madvise(file->witness, world->options.pages * world->page_size, MADV_DONTNEED);
		madvise(slot->address, slot_bytes(), MADV_PAGEOUT);
		posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
	}
	if (sabotage_is("hang")) {
		self->op = "sabotage";
		__atomic_add_fetch(&world->sabotaged, 1, __ATOMIC_SEQ_CST);
		while (1)
			pause();
	}
	if (sabotage_is("stray-signal"))
		*(volatile char *)world->area = 1;	/* the guard page */
	if (world->options.sabotage && !sabotage_is("skip-change") && !sabotage_is("late-write"))
		sabotage_word();
	count(cleans);
	self->op = "pause";
	nanosleep(&ts, NULL);
}

/* --- threads ------------------------------------------------------------------------------- */

/* Whom the others may be waiting for goes on until they have all ended. */
static bool still_needed(void)
{
	return self->role == ROLE_HELP && load(&finished) + 1 < world->nr_threads;
}

static void *thread_main(void *argument)
{
	static const char * const names[] = { "fs-fault", "fs-change", "fs-clean", "fs-help" };
	char name[16];

	self = argument;
	self->tid = syscall(SYS_gettid);
	snprintf(name, sizeof(name), "%s%u", names[self->role], self->number);
	prctl(PR_SET_NAME, name);
	prctl(PR_SET_TIMERSLACK, 1);	/* the pauses are shorter than the default slack */
	while (!load(&go))
		sched_yield();
	if (!inject_start())
		call_failed("make-it-fail", EOPNOTSUPP);
	while (!load(&world->stop) || still_needed()) {
		if (sabotage_is("nothing"))
			pause_random(1000);
		else if (self->role == ROLE_FAULT)
			step_fault();
		else if (self->role == ROLE_CHANGE)
			world->options.scenario->step();
		else if (self->role == ROLE_HELP)
			world->options.scenario->help();
		else
			step_clean();
		__atomic_store_n(&self->beat, self->beat + 1, __ATOMIC_RELAXED);
	}
	inject_stop();
	self->op = "finished";
	__atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void threads_start(void)
{
	u32 changers = world->options.threads > 4 ? world->options.threads / 4 : 1;
	pthread_attr_t attr;

	world->nr_threads = world->options.threads + 1 + !!world->options.scenario->help;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 * 1024);
	for (u32 i = 0; i < world->nr_threads; i++) {
		struct thread *thread = &world->thread[i];
		int error;

		thread->number = i;
		thread->op = "start";
		thread->role = i < changers ? ROLE_CHANGE :
			       i < world->options.threads ? ROLE_FAULT :
			       i == world->options.threads ? ROLE_CLEAN : ROLE_HELP;
		thread->random = world->options.seed * 0x2545f4914f6cdd1dull + i;
		error = pthread_create(&thread->pthread, &attr, thread_main, thread);
		if (error)
			call_failed("pthread_create", error);
	}
	pthread_attr_destroy(&attr);
}

/* --- setting up and clearing away ------------------------------------------------------------ */

static void folder_remove(void)
{
	char path[300];

	for (u32 i = 0; i < world->nr_files; i++) {
		if (world->file[i].witness)
			munmap(world->file[i].witness,
			       (size_t)world->options.pages * world->page_size);
		if (world->file[i].fd > 0)
			close(world->file[i].fd);
		unlink(world->file[i].path);
	}
	if (world->area)
		munmap(world->area, world->area_bytes);
	snprintf(path, sizeof(path), "%s/mount", world->folder);
	if (umount2(path, MNT_DETACH) || 1)
		rmdir(path);
	rmdir(world->folder);
	if (world->options.scenario->prepare == prepare_memcg)
		leave_memcg();
}

__attribute__((noreturn)) static void environment(const char *what, int error)
{
	char path[300];

	report("end", "\"verdict\":\"environment\",\"status\":%d,\"reason\":\"%s: %s (%s)\"",
	       STATUS_ENVIRONMENT, what, strerror(error),
	       json_text(path, sizeof(path), world->options.dir));
	folder_remove();
	exit(STATUS_ENVIRONMENT);
}

static void file_make(u32 number)
{
	struct file *file = &world->file[number];
	size_t size = (size_t)world->options.pages * world->page_size;
	char *page = calloc(1, world->page_size);

	snprintf(file->path, sizeof(file->path), "%s/file%u", world->folder, number);
	file->fd = open(file->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (file->fd < 0 || !page)
		environment("open", errno);
	file->clock = FIRST_GEN;
	for (u32 i = 0; i < world->options.pages; i++) {
		for (u32 word = 0; word < WORDS_PER_PAGE; word++) {
			*word_at(page, word) = stamp_make(number, i, word, FIRST_GEN);
			file->done[i][word] = FIRST_GEN;
		}
		errno = ENOSPC;
		if (pwrite(file->fd, page, world->page_size, (off_t)i * world->page_size) !=
		    (ssize_t)world->page_size)
			environment("write", errno);
	}
	free(page);
	if (fsync(file->fd))
		environment("fsync", errno);
	file->witness = mmap(NULL, size, PROT_READ, MAP_SHARED, file->fd, 0);
	if (file->witness == MAP_FAILED) {
		file->witness = NULL;
		environment("mmap", errno);
	}
}

/*
 * One range of addresses for all slots. Side by side, so that mappings merge and split, with a guard
 * at each end; or far from each other: then each has the page table of its addresses for itself.
 */
static void area_make(void)
{
	bool far = world->options.scenario->far;
	size_t stride = far ? 2 * HUGE_BYTES : slot_bytes(), least = far ? HUGE_BYTES : world->page_size;
	char *first;

	world->area_bytes = world->nr_slots * stride + 2 * least;
	world->area = mmap(NULL, world->area_bytes, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (world->area == MAP_FAILED) {
		world->area = NULL;
		environment("mmap", errno);
	}
	first = (char *)(((uintptr_t)world->area + 2 * least - 1) & ~(least - 1));
	if (!far)
		first = world->area + world->page_size;
	for (u32 i = 0; i < world->nr_slots; i++)
		world->slot[i].address = first + i * stride;
}

/* Late: while threads are made, their stacks must not come to lie there. */
static void area_clear_between(void)
{
	char *from = world->area;

	if (!world->options.scenario->far)
		return;
	for (u32 i = 0; i < world->nr_slots; i++) {
		munmap(from, world->slot[i].address - from);
		from = world->slot[i].address + slot_bytes();
	}
	munmap(from, world->area + world->area_bytes - from);
}

static void world_make(void)
{
	const struct scenario *scenario = world->options.scenario;
	u32 pages = world->options.pages;

	snprintf(world->folder, sizeof(world->folder), "%s/faultstress.%d", world->options.dir,
		 (int)getpid());
	if (mkdir(world->folder, 0700))
		environment("mkdir", errno);
	world->nr_files = scenario->whole_files ? 2 : 3;
	if (scenario->exclusive)
		world->nr_files = 1;
	for (u32 i = 0; i < world->nr_files; i++)
		file_make(i);
	world->slot_pages = scenario->whole_files ? pages : 4;
	world->nr_slots = scenario->whole_files ? world->nr_files : pages / world->slot_pages;
	if (scenario->far && !scenario->whole_files && world->nr_slots > 8)
		world->nr_slots = 8;	/* few, so that each is changed often */
	area_make();
	for (u32 i = 0; i < world->nr_slots; i++) {
		struct slot *slot = &world->slot[i];
		struct entry entry = {
			.kind = KIND_WRITE,
			.file = scenario->whole_files ? i : 0,
			.base = scenario->whole_files ? 0 : i * world->slot_pages,
			.limit = pages,
		};

		slot->ring[0] = entry_pack(entry);
		slot_map(slot, entry, false);
	}
}

/* --- watching ------------------------------------------------------------------------------ */

static void counters_sum(struct counters *sum)
{
	memset(sum, 0, sizeof(*sum));
	for (u32 i = 0; i < world->nr_threads; i++) {
		const u64 *from = (const u64 *)&world->thread[i].count;
		u64 *into = (u64 *)sum;

		for (u32 j = 0; j < sizeof(*sum) / sizeof(u64); j++)
			into[j] += __atomic_load_n(&from[j], __ATOMIC_RELAXED);
	}
}

static u64 faults_now(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt - usage_before.ru_minflt -
	       usage_before.ru_majflt;
}

static const char *counters_json(char *out, size_t size)
{
	struct counters c;

	counters_sum(&c);
	snprintf(out, size, "\"reads\":%llu,\"writes\":%llu,\"swaps_lost\":%llu,\"segv\":%llu,"
		 "\"sigbus\":%llu,\"efault\":%llu,\"zeroes\":%llu,\"peeks\":%llu,\"changes\":%llu,"
		 "\"races\":%llu,\"cleans\":%llu,\"extras\":%llu,\"pairs_frozen\":%llu,"
		 "\"pairs_elsewhere\":%llu,\"faults\":%llu,\"failed_calls\":%llu,"
		 "\"failed_faults\":%llu,\"corruptions\":%u,\"sabotaged\":%u",
		 (unsigned long long)c.reads, (unsigned long long)c.writes,
		 (unsigned long long)c.swaps_lost, (unsigned long long)c.segv,
		 (unsigned long long)c.sigbus, (unsigned long long)c.efault,
		 (unsigned long long)c.zeroes, (unsigned long long)c.peeks,
		 (unsigned long long)c.changes, (unsigned long long)c.races,
		 (unsigned long long)c.cleans, (unsigned long long)c.extras,
		 (unsigned long long)load(&world->pairs_frozen),
		 (unsigned long long)load(&world->pairs_elsewhere), (unsigned long long)faults_now(),
		 (unsigned long long)c.failed_calls, (unsigned long long)c.failed_faults,
		 load(&world->corruptions), load(&world->sabotaged));
	return out;
}

static void proc_text(char *out, size_t size, pid_t tid, const char *name)
{
	char path[64], raw[1024];
	ssize_t length = -1;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/%s", (int)tid, name);
	fd = open(path, O_RDONLY);
	if (fd >= 0) {
		length = read(fd, raw, sizeof(raw) - 1);
		close(fd);
	}
	raw[length > 0 ? length : 0] = '\0';
	json_text(out, size, raw);
}

static void report_hang(const struct thread *thread, double stuck_s)
{
	char stack[1500], wait[100], call[200];

	proc_text(stack, sizeof(stack), thread->tid, "stack");
	proc_text(wait, sizeof(wait), thread->tid, "wchan");
	proc_text(call, sizeof(call), thread->tid, "syscall");
	report("hang", "\"thread\":%u,\"tid\":%d,\"op\":\"%s\",\"stuck_s\":%.1f,\"wchan\":\"%s\","
	       "\"syscall\":\"%s\",\"stack\":\"%s\"", thread->number, (int)thread->tid, thread->op,
	       stuck_s, wait, call, stack);
}

/* Threads that have made no step for too long. Called every now and then, with the time. */
static u32 watch(u64 now)
{
	static u64 beat[MAX_THREADS], since[MAX_THREADS];
	u32 hung = 0;

	for (u32 i = 0; i < world->nr_threads; i++) {
		u64 beats = __atomic_load_n(&world->thread[i].beat, __ATOMIC_RELAXED);

		if (beats != beat[i] || !since[i]) {
			beat[i] = beats;
			since[i] = now;
		} else if (now - since[i] > world->options.hang_s * 1e9) {
			report_hang(&world->thread[i], (now - since[i]) / 1e9);
			hung++;
		}
	}
	return hung;
}

/* What did not happen, and without which the run has proved nothing; "" if all did. */
static const char *missing(char *out, size_t size)
{
	const struct scenario *scenario = world->options.scenario;
	struct counters c;
	int used;

	counters_sum(&c);
	used = snprintf(out, size, "%s%s%s%s%s%s%s%s%s%s%s%s%s",
			c.reads ? "" : " reads", c.writes ? "" : " writes",
			c.changes ? "" : " changes", c.races ? "" : " races",
			c.cleans ? "" : " cleans",
			faults_now() >= LEAST_FAULTS ? "" : " faults",
			scenario->wants_segv && !c.segv ? " segv" : "",
			scenario->wants_sigbus && !c.sigbus ? " sigbus" : "",
			scenario->zeroes && !c.zeroes ? " zeroes" : "",
			/* EFAULT alone is what a kernel without process_vm_readv() would show. */
			scenario->peeks && (!c.efault || c.peeks == c.efault) ? " peeks" : "",
			scenario->extra && !c.extras ? " " : "",
			scenario->extra && !c.extras ? scenario->extra : "",
			world->options.sabotage && !load(&world->sabotaged) ? " sabotage" : "");
	return used ? out + 1 : out;
}

/* A device that fails does it when somebody has made it fail: has it? */
static bool waits_for_failures(void)
{
	struct counters c;

	counters_sum(&c);
	return world->options.inject == INJECT_DEVICE && !world->options.sabotage &&
	       !c.failed_calls && !c.failed_faults;
}

/* Is there a reason to go on? A slow machine gets more time, until all has happened once. */
static bool go_on(double elapsed_s)
{
	char absent[120];

	if (load(&world->stop) || elapsed_s >= world->options.at_most_s)
		return false;
	return elapsed_s < world->options.duration_s || *missing(absent, sizeof(absent)) ||
	       waits_for_failures();
}

/* Until the time is over or something is found; the number of hung threads. */
static u32 run(void)
{
	u64 began = now_ns(), now = began, next = began + 1000000000ull;
	struct timespec tick = { .tv_nsec = 50000000 };
	char counters[600];
	u32 hung = 0;

	area_clear_between();
	store(&go, 1);
	while (!hung && go_on((now - began) / 1e9)) {
		nanosleep(&tick, NULL);
		now = now_ns();
		hung = watch(now);
		if (now >= next) {
			next += 1000000000ull;
			report("progress", "\"elapsed_s\":%.1f,%s", (now - began) / 1e9,
			       counters_json(counters, sizeof(counters)));
		}
	}
	store(&world->stop, 1);
	now = now_ns();
	while (!hung && load(&finished) < world->nr_threads) {
		nanosleep(&tick, NULL);
		if (now_ns() - now < world->options.hang_s * 1e9)
			continue;
		for (u32 i = 0; i < world->nr_threads; i++)
			if (strcmp(world->thread[i].op, "finished")) {
				report_hang(&world->thread[i], world->options.hang_s);
				hung++;
			}
		break;
	}
	return hung;
}

/* --- the end --------------------------------------------------------------------------------- */

/* Whether `value` was ever written there. */
static bool fits(u64 value, u32 file, u32 page, u32 word)
{
	struct stamp stamp;

	return stamp_parse(value, word, &stamp) && stamp.file == file && stamp.page == page &&
	       stamp.gen <= world->file[file].clock;
}

/* With nobody racing any more, each word of each file through pread, and through the witness. */
static void check_finally(void)
{
	bool loses = world->options.inject == INJECT_DEVICE;

	for (u32 f = 0; f < world->nr_files; f++) {
		struct file *file = &world->file[f];
		struct stat st;

		if (fstat(file->fd, &st))
			call_failed("fstat", errno);
		for (u32 i = 0; i < (u32)(st.st_size / world->page_size) * WORDS_PER_PAGE; i++) {
			u32 page = i / WORDS_PER_PAGE, word = i % WORDS_PER_PAGE;
			u64 *mapped = word_at((char *)file->witness + page * world->page_size, word);
			struct stamp stamp = { 0 };
			u64 value = 0, done = file->done[page][word];
			char text[80];
			bool good;

			if (pread(file->fd, &value, sizeof(value), page * world->page_size +
				  word * (world->page_size / WORDS_PER_PAGE)) != sizeof(value)) {
				if (loses && inject_forgives(errno))
					continue;
				call_failed("pread", errno);
			}
			good = fits(value, f, page, word) && stamp_parse(value, word, &stamp) &&
			       stamp.gen >= done && stamp.gen > file->floor[page];
			if (value == 0 && world->options.scenario->zeroes)
				good = done <= file->floor[page];
			if (loses && (value == 0 || fits(value, f, page, word)))
				continue;
			if (good && value == load(mapped))
				continue;
			corruption_count();
			report("corruption", "\"kind\":\"at-the-end\",\"file\":%u,\"page\":%u,"
			       "\"word\":%u,\"done\":%llu,\"floor\":%llu,\"pread\":\"%s\","
			       "\"mapped_equal\":%s", f, page, word, (unsigned long long)done,
			       (unsigned long long)file->floor[page],
			       describe_word(text, sizeof(text), GOT_VALUE, value, word),
			       value == load(mapped) ? "true" : "false");
			if (world->corruptions > 2 * MAX_CORRUPTIONS)
				return;
		}
	}
}

static void report_latencies(void)
{
	static struct latency sum;

	for (u32 call = 0; call < NR_CALLS; call++) {
		memset(&sum, 0, sizeof(sum));
		for (u32 i = 0; i < world->nr_threads; i++)
			latency_merge(&sum, &world->thread[i].latency[call]);
		if (!sum.count)
			continue;
		report("latency", "\"call\":\"%s\",\"count\":%llu,\"p50_us\":%.1f,\"p99_us\":%.1f,"
		       "\"max_us\":%.1f", call_names[call], (unsigned long long)sum.count,
		       latency_percentile(&sum, 0.50) / 1e3, latency_percentile(&sum, 0.99) / 1e3,
		       sum.max_ns / 1e3);
	}
}

static enum status conclude(u32 hung)
{
	char absent[120], counters[600];
	const char *nothing = "";
	enum status status = STATUS_PASS;

	if (hung) {
		status = STATUS_HANG;
	} else {
		check_finally();
		nothing = missing(absent, sizeof(absent));
		if (*nothing)
			status = STATUS_NOTHING;
	}
	if (load(&world->corruptions)) {
		status = STATUS_CORRUPTION;
		nothing = "";	/* the run was cut short, and it proved something */
	}
	report_latencies();
	report("end", "\"verdict\":\"%s\",\"status\":%d,\"hung\":%u,\"missing\":\"%s\",%s",
	       status_name(status), status, hung, nothing,
	       counters_json(counters, sizeof(counters)));
	return status;
}

/* --- arguments ------------------------------------------------------------------------------- */

__attribute__((noreturn, format(printf, 1, 2))) static void usage(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "faultstress: ");
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\nusage: faultstress --dir DIR --scenario NAME [--duration SECONDS]\n"
		"       [--at-most SECONDS] [--threads N] [--pages N] [--seed N] [--hang SECONDS]\n"
		"       [--inject all|faults|calls|device] [--sabotage KIND]\n"
		"       faultstress --list\n");
	exit(STATUS_USAGE);
}

static double number_arg(const char *name, const char *text, double least, double most)
{
	char *end;
	double value = strtod(text, &end);

	if (*end || end == text || !(value >= least && value <= most))
		usage("--%s: %s is not a number from %g to %g", name, text, least, most);
	return value;
}

static void list_all(void)
{
	for (u32 i = 0; i < NR_SCENARIOS; i++)
		report("scenario", "\"name\":\"%s\",\"checks\":\"%s\"", scenarios[i].name,
		       scenarios[i].checks);
	for (u32 i = 0; i < NR_SABOTAGES; i++)
		report("sabotage", "\"name\":\"%s\"", sabotages[i]);
	exit(STATUS_PASS);
}

static const struct scenario *scenario_arg(const char *name)
{
	for (u32 i = 0; i < NR_SCENARIOS; i++)
		if (!strcmp(name, scenarios[i].name))
			return &scenarios[i];
	usage("--scenario: %s is unknown (--list shows them)", name);
}

static const char *sabotage_arg(const char *name)
{
	for (u32 i = 0; i < NR_SABOTAGES; i++)
		if (!strcmp(name, sabotages[i]))
			return sabotages[i];
	usage("--sabotage: %s is unknown (--list shows them)", name);
}

static enum inject inject_arg(const char *name)
{
	static const char * const names[] = { "", "all", "faults", "calls", "device" };

	for (u32 i = 1; i < sizeof(names) / sizeof(*names); i++)
		if (!strcmp(name, names[i]))
			return i;
	usage("--inject: %s is unknown", name);
}

static u64 seed_arg(const char *text)
{
	char *end;
	u64 seed = strtoull(text, &end, 0);

	if (*end || end == text || *text == '-')
		usage("--seed: %s is not a number", text);
	return seed;
}

static void parse(int argc, char **argv, struct options *options)
{
	static const struct option longs[] = {
		{ "dir", required_argument, NULL, 'd' },
		{ "scenario", required_argument, NULL, 's' },
		{ "duration", required_argument, NULL, 't' },
		{ "at-most", required_argument, NULL, 'm' },
		{ "threads", required_argument, NULL, 'n' },
		{ "pages", required_argument, NULL, 'p' },
		{ "seed", required_argument, NULL, 'r' },
		{ "hang", required_argument, NULL, 'h' },
		{ "sabotage", required_argument, NULL, 'x' },
		{ "inject", required_argument, NULL, 'i' },
		{ "list", no_argument, NULL, 'l' },
		{ 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (option) {
		case 'd': options->dir = optarg; break;
		case 's': options->scenario = scenario_arg(optarg); break;
		case 't': options->duration_s = number_arg("duration", optarg, 0.1, 1e6); break;
		case 'm': options->at_most_s = number_arg("at-most", optarg, 0.1, 1e6); break;
		case 'n': options->threads = number_arg("threads", optarg, 2, MAX_THREADS - 1); break;
		case 'p': options->pages = number_arg("pages", optarg, 8, MAX_PAGES); break;
		case 'r': options->seed = seed_arg(optarg); break;
		case 'h': options->hang_s = number_arg("hang", optarg, 0.5, 1e6); break;
		case 'x': options->sabotage = sabotage_arg(optarg); break;
		case 'i': options->inject = inject_arg(optarg); break;
		case 'l': list_all(); break;
		default: usage("see above");
		}
	}
	if (optind < argc)
		usage("%s is not understood", argv[optind]);
	if (!options->dir || !options->scenario)
		usage("--dir and --scenario are needed");
	if (strlen(options->dir) > 150)
		usage("--dir: the path is too long");
	if (!options->pages)
		options->pages = options->scenario->pages ? options->scenario->pages : 64;
	options->pages -= options->pages % 4;
	if (options->at_most_s < options->duration_s)
		options->at_most_s = options->duration_s;
}

int main(int argc, char **argv)
{
	struct options options = {
		.duration_s = 5, .hang_s = 30, .threads = 4,
	};
	enum status status;
	char dir[700];
	u32 hung;

	options.seed = now_ns();
	parse(argc, argv, &options);
	world = mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (world == MAP_FAILED) {
		perror("faultstress: mmap");
		return STATUS_ENVIRONMENT;
	}
	world->options = options;
	address_may_lack = options.inject == INJECT_ALL;
	world->page_size = sysconf(_SC_PAGESIZE);
	self = &world->thread[0];
	self->random = options.seed;
	if (options.scenario->prepare)
		options.scenario->prepare();
	world_make();
	access_init();
	threads_start();
	report("start", "\"scenario\":\"%s\",\"dir\":\"%s\",\"seed\":%llu,\"duration_s\":%g,"
	       "\"threads\":%u,\"pages\":%u,\"page_size\":%zu,\"slots\":%u,\"files\":%u,"
	       "\"hang_s\":%g,\"sabotage\":\"%s\"", options.scenario->name,
	       json_text(dir, sizeof(dir), options.dir), (unsigned long long)options.seed,
	       options.duration_s, options.threads, options.pages, world->page_size,
	       world->nr_slots, world->nr_files, options.hang_s,
	       options.sabotage ? options.sabotage : "");
	getrusage(RUSAGE_SELF, &usage_before);
	hung = run();
	if (hung)
		_exit(conclude(hung));	/* its threads hold on to their mappings */
	for (u32 i = 0; i < world->nr_threads; i++)
		pthread_join(world->thread[i].pthread, NULL);
	self = &world->thread[0];
	status = conclude(0);
	folder_remove();
	return status;
}
