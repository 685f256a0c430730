/* SPDX-License-Identifier: GPL-2.0-only */
/* What goes on beside faults: pins, unmounts, mlock, userfaultfd, khugepaged, a full memcg, exits. */
#ifndef FAULTSTRESS_BESIDE_H
#define FAULTSTRESS_BESIDE_H

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include "change.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif
#define HUGE_BYTES	(2ul << 20)

/* Anonymous memory of the process's own, aligned to a huge page. */
static inline char *memory_beside(size_t bytes)
{
	char *at = mmap(NULL, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		call_failed("mmap", errno);
	return (char *)(((uintptr_t)at + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));
}

static inline void wrong_beside(const char *kind, u32 page, u64 wanted, u64 seen)
{
	corruption_count();
	report("corruption", "\"kind\":\"%s\",\"thread\":%u,\"page\":%u,\"wanted\":\"%llx\","
	       "\"seen\":\"%llx\"", kind, self ? self->number : 0, page, (unsigned long long)wanted,
	       (unsigned long long)seen);
}

/* --- O_DIRECT out of a mapping ----------------------------------------------------------------- */

/*
 * Write a page of the mapping to a file of this thread's own with O_DIRECT, so that the device reads
 * it where get_user_pages() has pinned it; read it back, and judge each word like a read.
 */
static inline void attempt_direct(const struct attempt *from)
{
	static __thread int sink;
	static __thread u64 *back;
	size_t size = world->page_size;
	struct attempt a[WORDS_PER_PAGE];
	char *page = from->slot->address + from->page * size;
	const char *kind = NULL;
	char path[300];
	ssize_t done;

	if (!sink) {
		snprintf(path, sizeof(path), "%s/sink%u", world->folder, self->number);
		sink = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
		if (sink < 0)
			call_failed("open O_DIRECT", errno == EINVAL ? EOPNOTSUPP : errno);
		unlink(path);
		back = (u64 *)memory_beside(size);
	}
	/* Twice: words may be torn by a writer, see attempt_peek(). */
	for (u32 tries = 0; tries < 2; tries++) {
		u32 word;

		for (word = 0; word < WORDS_PER_PAGE; word++) {
			a[word] = (struct attempt){ .slot = from->slot, .page = from->page,
						    .word = word };
			attempt_begin(&a[word]);
		}
		done = pwrite(sink, page, size, 0);
		if (done < 0 && errno != EFAULT)
			call_failed("pwrite O_DIRECT", errno);
		if (done == (ssize_t)size && pread(sink, back, size, 0) != (ssize_t)size)
			call_failed("pread O_DIRECT", errno);
		if (done == (ssize_t)size)
			count(extras);
		for (word = 0, kind = NULL; word < WORDS_PER_PAGE && !kind; word++) {
			a[word].outcome = done == (ssize_t)size ? GOT_VALUE : GOT_EFAULT;
			if (a[word].outcome == GOT_VALUE)
				a[word].value = *word_at((char *)back, word);
			kind = attempt_close(&a[word]);
			if (kind && tries)
				report_attempt(&a[word], kind);
		}
		count(peeks);
		if (!kind)
			return;
	}
}

/* A word that nobody looks at, between two stamps, written by the kernel without leave to retry. */
static inline void poke(const struct attempt *a)
{
	static const u64 zero;
	u64 *address = word_at(a->slot->address + a->page * world->page_size, a->word) + 1;

	if (pwrite(world->mem, &zero, sizeof(zero), (off_t)(uintptr_t)address) == sizeof(zero))
		count(extras);
}

static inline void prepare_mem(void)
{
	world->mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	if (world->mem < 0)
		call_failed("open /proc/self/mem", errno);
}

/* --- unmount --------------------------------------------------------------------------------- */

/*
 * Map a file by way of a mount of its own, let the others fault on it, unmap it, unmount. A fault
 * in flight may hold the file a little longer than its mapping; nothing may hold it for good.
 */
static inline void step_umount(void)
{
	static char at[300], path[700];
	struct timespec ts = { .tv_nsec = 1000000 };
	struct entry entry = entry_random();
	struct slot *slot;
	u64 began;
	int fd;

	if (self->number) {
		step_mapfixed();
		return;
	}
	slot = slot_take(NULL);
	if (!slot)
		return;
	snprintf(at, sizeof(at), "%s/mount", world->folder);
	if (mkdir(at, 0700) && errno != EEXIST)
		call_failed("mkdir", errno);
	if (mount(world->folder, at, NULL, MS_BIND, NULL))
		call_failed("mount", errno);
	snprintf(path, sizeof(path), "%s/file%u", at, entry.file);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		call_failed("open", errno);
	change_begin(slot, entry);
	timed(CALL_MMAP, "mmap",
	      mmap(slot->address, slot_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		   (off_t)entry.base * world->page_size));
	close(fd);
	change_end(slot);
	pause_random(3000);
	change_unmap(slot);
	self->op = "umount";
	began = now_ns();
	while (umount2(at, 0)) {
		if (errno != EBUSY)
			call_failed("umount", errno);
		if (now_ns() - began > 10000000000ull) {
			wrong_beside("busy-after-munmap", 0, 0, 0);
			umount2(at, MNT_DETACH);
			break;
		}
		nanosleep(&ts, NULL);
	}
	latency_add(&self->latency[CALL_UMOUNT], now_ns() - began);
	count(extras);
	change_map(slot, entry_random());
	slot_unlock(slot);
}

/* --- mlock ------------------------------------------------------------------------------------- */

static inline void step_mlock(void)
{
	struct slot *slot = slot_take(NULL);
	unsigned char resident[64];
	u32 pages = world->slot_pages < 64 ? world->slot_pages : 64;

	if (!slot)
		return;
	if (slot_now(slot).kind == KIND_NONE)
		change_map(slot, entry_random());
	timed(CALL_MLOCK, "mlock", mlock(slot->address, slot_bytes()));
	count(extras);
	if (mincore(slot->address, pages * world->page_size, resident))
		call_failed("mincore", errno);
	for (u32 page = 0; page < pages; page++)
		if (!(resident[page] & 1)) {
			wrong_beside("locked-not-resident", page, 1, resident[page]);
			break;
		}
	pause_random(200);
	/* Locked pages go with their mapping, too. */
	if (pick(2))
		timed(CALL_MLOCK, "munlock", munlock(slot->address, slot_bytes()));
	if (pick(2))
		change_unmap(slot);
	else
		change_map(slot, entry_random());
	slot_unlock(slot);
	rest(50);
}

/* --- userfaultfd --------------------------------------------------------------------------------- */

#define UFFD_PAGES	16	/* half of them anonymous, half of them of a file on tmpfs */

static inline u64 uffd_pattern(u64 page)
{
	return 0x75666664ull << 32 | page;
}

static inline void prepare_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register area = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	size_t half = UFFD_PAGES / 2 * world->page_size;
	int memory = memfd_create("userfaultfd", MFD_CLOEXEC);

	world->beside = memory_beside(UFFD_PAGES * world->page_size);
	if (memory < 0 || ftruncate(memory, half) ||
	    mmap(world->beside + half, half, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory,
		 0) == MAP_FAILED)
		call_failed("memfd_create", errno);
	close(memory);
	world->uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (world->uffd < 0)
		call_failed("userfaultfd", errno == ENOSYS ? EOPNOTSUPP : errno);
	area.range.start = (uintptr_t)world->beside;
	area.range.len = UFFD_PAGES * world->page_size;
	if (ioctl(world->uffd, UFFDIO_API, &api) || ioctl(world->uffd, UFFDIO_REGISTER, &area))
		call_failed("userfaultfd", errno);
}

/* One more thread fills in the pages that the others miss. */
static inline void help_uffd(void)
{
	static u64 page[65536 / sizeof(u64)];
	struct pollfd event = { .fd = world->uffd, .events = POLLIN };
	struct uffdio_copy copy = { .src = (uintptr_t)page, .len = world->page_size };
	struct uffd_msg message;

	self->op = "poll";
	if (poll(&event, 1, 20) != 1 ||
	    read(world->uffd, &message, sizeof(message)) != sizeof(message) ||
	    message.event != UFFD_EVENT_PAGEFAULT)
		return;
	copy.dst = message.arg.pagefault.address & ~(world->page_size - 1);
	page[0] = uffd_pattern((copy.dst - (uintptr_t)world->beside) / world->page_size);
	self->op = "uffd-copy";
	/* EAGAIN: the address space is changing right now; the fault is told to us again. */
	if (ioctl(world->uffd, UFFDIO_COPY, &copy)) {
		if (errno == EAGAIN || errno == EEXIST) {
			struct uffdio_range again = { .start = copy.dst, .len = copy.len };

			ioctl(world->uffd, UFFDIO_WAKE, &again);
		} else {
			call_failed("UFFDIO_COPY", errno);
		}
	}
}

static inline void step_uffd(void)
{
	u32 page = pick(UFFD_PAGES);
	u64 *at = (u64 *)(world->beside + page * world->page_size), seen;

	step_munmap();
	/* Of a file the page must go, too: as long as it is there it is not missing. */
	madvise(at, world->page_size, page < UFFD_PAGES / 2 ? MADV_DONTNEED : MADV_REMOVE);
	self->op = "userfault";
	seen = load(at);
	if (seen != uffd_pattern(page))
		wrong_beside("userfault", page, uffd_pattern(page), seen);
	count(extras);
}

/* --- khugepaged ---------------------------------------------------------------------------------- */

static inline void prepare_huge(void)
{
	world->beside = memory_beside(HUGE_BYTES);
	madvise(world->beside, HUGE_BYTES, MADV_HUGEPAGE);
}

static inline bool collapse(char *at)
{
	u64 began = now_ns();

	self->op = "collapse";
	if (madvise(at, HUGE_BYTES, MADV_COLLAPSE))
		return false;
	latency_add(&self->latency[CALL_COLLAPSE], now_ns() - began);
	count(extras);
	return true;
}

/*
 * What khugepaged does, on demand: small pages and their page table give way to a huge page, private
 * memory on every file system, and the shared file's own where that can do it (tmpfs).
 */
static inline void step_khugepaged(void)
{
	u32 pages = HUGE_BYTES / world->page_size;
	u64 pattern = random_next(&self->random);
	struct slot *slot = slot_take(NULL);

	if (!slot)
		return;
	change_begin(slot, slot_now(slot));
	collapse(slot->address);
	change_end(slot);
	count(changes);
	slot_unlock(slot);
	if (self->number)
		return;
	madvise(world->beside, HUGE_BYTES, MADV_DONTNEED);
	for (u32 page = 0; page < pages; page += 1 + pick(8))
		store((u64 *)(world->beside + page * world->page_size), pattern + page);
	collapse(world->beside);
	for (u32 page = 0; page < pages; page++) {
		u64 seen = load((u64 *)(world->beside + page * world->page_size));

		if (seen && seen != pattern + page) {
			wrong_beside("collapsed", page, pattern + page, seen);
			break;
		}
	}
	/* The file's huge page goes again, so that there is something to collapse. */
	if (!pick(4)) {
		struct slot *other = slot_take(NULL);

		if (other) {
			change_map(other, slot_now(other));
			slot_unlock(other);
		}
	}
	rest(200);
}

/* --- a small memcg ------------------------------------------------------------------------------- */

/* A mount of our own: nobody else's is touched. */
static char cgroup_root[200];

static inline const char *cgroup_path(const char *name)
{
	static char path[300];

	snprintf(path, sizeof(path), "%s/%s", cgroup_root, name);
	return path;
}

static inline bool text_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return done;
}

static inline void leave_memcg(void)
{
	char text[40];

	snprintf(text, sizeof(text), "%d", (int)getpid());
	text_write(cgroup_path("cgroup.procs"), text);
	rmdir(cgroup_path("faultstress"));
	umount2(cgroup_root, MNT_DETACH);
	rmdir(cgroup_root);
}

/* Less memory than the files have pages: each fault may have to reclaim first. */
static inline void prepare_memcg(void)
{
	char text[40];

	snprintf(text, sizeof(text), "%d", (int)getpid());
	snprintf(cgroup_root, sizeof(cgroup_root), "%s/cgroup.%s", world->options.dir, text);
	if (mkdir(cgroup_root, 0700) || mount("none", cgroup_root, "cgroup2", 0, NULL)) {
		rmdir(cgroup_root);
		call_failed("mount cgroup2", EOPNOTSUPP);
	}
	mkdir(cgroup_path("faultstress"), 0755);
	if (!text_write(cgroup_path("cgroup.subtree_control"), "+memory") ||
	    !text_write(cgroup_path("faultstress/memory.max"), "14M") ||
	    !text_write(cgroup_path("faultstress/cgroup.procs"), text)) {
		leave_memcg();
		call_failed("memory cgroup", EOPNOTSUPP);
	}
}

static inline void step_memcg(void)
{
	static char text[600];
	ssize_t length;
	char *at;
	int fd;

	step_mixed();
	if (self->number || pick(64))
		return;
	fd = open(cgroup_path("faultstress/memory.events"), O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		call_failed("memory.events", errno);
	length = read(fd, text, sizeof(text) - 1);
	text[length > 0 ? length : 0] = '\0';
	close(fd);
	at = strstr(text, "\nmax ");
	if (at)
		store(&self->count.extras, strtoull(at + 5, NULL, 10));
}

/* --- exit with faults in flight ------------------------------------------------------------------ */

/* After so many faults the threads of a process are all at it. */
#define EXIT_FAULTS 100
#define EXIT_AT_MOST_NS 500000000ull

struct exit_child {
	char *at;
	u32 *faults;
};

static inline void *exit_thread(void *argument)
{
	const struct exit_child *child = argument;
	char *at = child->at;
	u64 state = (uintptr_t)&state ^ (uintptr_t)argument ^ now_ns();
	size_t size = world->page_size;

	while (1) {
		u64 random = random_next(&state);
		u64 *word = (u64 *)(at + random % world->options.pages * size);

		madvise((void *)((uintptr_t)word & ~(size - 1)), size, MADV_DONTNEED);
		/*
		 * What is in memory is mapped around a read, and its handler not called; a store
		 * to an empty entry calls it. This one changes nothing; where it takes a pair of
		 * instructions (arm64 without LSE) it begins with a load.
		 */
		if (random >> 63)
			load(word);
		__atomic_fetch_add(word, 0, __ATOMIC_SEQ_CST);
		__atomic_add_fetch(child->faults, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* Until the threads of the process fault, and `us` more. */
static inline void exit_wait(const u32 *faults, u32 us)
{
	struct timespec poll = { .tv_nsec = 500000 }, ts = { .tv_nsec = us * 1000 };
	u64 began = now_ns();

	while (load(faults) < EXIT_FAULTS && now_ns() - began < EXIT_AT_MOST_NS)
		nanosleep(&poll, NULL);
	nanosleep(&ts, NULL);
}

/*
 * Has mmap_lock held for write more often than not, so that a fault has to wait for it, and that is
 * what a signal finds. Each mprotect() holds it over all the pages; a new mapping is to free a VMA.
 */
static inline void *exit_changer(void *argument)
{
	(void)argument;
	while (1) {
		char *at = writer_map();

		for (u32 i = 0; at && i < 16; i++)
			writer_hold(at);
		if (at)
			munmap(at, WRITER_BYTES);
	}
	return NULL;
}

/* A process of its own, with threads that fault and one that changes; ends in the midst of it. */
__attribute__((noreturn)) static inline void exit_process(u32 file, u32 us, bool shot)
{
	size_t bytes = (size_t)world->options.pages * world->page_size;
	struct exit_child child = {
		.at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, world->file[file].fd, 0),
		.faults = &self->faults_of_child,
	};
	pthread_t thread;

	if (child.at == MAP_FAILED || pthread_create(&thread, NULL, exit_changer, NULL))
		_exit(1);
	for (u32 i = 0; i < 3; i++)
		if (pthread_create(&thread, NULL, exit_thread, &child))
			_exit(1);
	exit_wait(child.faults, us);
	if (shot)	/* not for ever: the parent may be gone */
		usleep(900000);
	_exit(0);
}

static inline void step_exit(void)
{
	u32 us = pick(20000), file = pick(world->nr_files);
	bool shot = pick(2);
	int status = 0;
	pid_t child;
	u64 began;

	store(&self->faults_of_child, 0);
	self->op = "fork";
	child = fork();
	if (child == 0)
		exit_process(file, us, shot);
	if (child < 0)
		call_failed("fork", errno);
	exit_wait(&self->faults_of_child, us);
	began = now_ns();
	if (shot)
		kill(child, SIGKILL);
	self->op = "waitpid";
	if (waitpid(child, &status, 0) != child)
		call_failed("waitpid", errno);
	latency_add(&self->latency[CALL_EXIT], now_ns() - began);
	if (WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status) != SIGKILL)
		wrong_beside("exit-status", 0, 0, status);
	count(extras);
	step_mapfixed();
}

#endif
