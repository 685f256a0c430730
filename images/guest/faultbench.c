// SPDX-License-Identifier: GPL-2.0-only
/*
 * faultbench: how long mmap() and munmap() of one thread take while others fault, and how many
 * faults a second there are. Nothing is checked here; faultstress does that.
 *
 *	faultbench latency read|write DIR SECONDS
 *	faultbench rate read|write|cow DIR SECONDS THREADS
 *	faultbench remap beside|over DIR SECONDS THREADS
 *
 * One line of JSON on stdout. DIR is on the file system in question; for "latency" it should have a
 * slow disk. Ends with 2 for arguments that make no sense, with 3 if a system call fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "faultstress/latency.h"

#define LATENCY_PAGES	4096	/* 16 MiB: more than is read from a slow disk in the time */
#define RATE_PAGES	512	/* of each thread: one page table */
#define MOST_THREADS	16
#define PAIR_PAUSE_NS	500000

struct worker {
	pthread_t thread;
	char *area;	/* RATE_PAGES pages of its own */
	u64 touched;	/* pages */
	u64 random;
} __attribute__((aligned(128)));

static struct worker workers[MOST_THREADS];
static struct latency maps, unmaps;
static size_t page_size;
static char *mapping;
static u32 pages;
static int fd, prot, flags;
static bool stores, over, stop;

static void need(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "faultbench: %s: %s\n", what, strerror(errno));
	exit(3);
}

static u64 random_next(u64 *state)
{
	u64 x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	return x ^ (x >> 31);
}

static bool stopped(void)
{
	return __atomic_load_n(&stop, __ATOMIC_RELAXED);
}

static void touch(char *at)
{
	if (stores)
		__atomic_store_n((u64 *)at, 1, __ATOMIC_RELAXED);
	else
		__atomic_load_n((u64 *)at, __ATOMIC_RELAXED);
}

/* --- latency ------------------------------------------------------------------------------- */

/* Random pages, none of them in the page cache if they are only read. */
static void *slow_faulter(void *argument)
{
	struct worker *self = argument;

	while (!stopped()) {
		size_t offset = random_next(&self->random) % pages * page_size;

		if (!stores) {
			madvise(mapping + offset, page_size, MADV_DONTNEED);
			posix_fadvise(fd, offset, page_size, POSIX_FADV_DONTNEED);
		}
		touch(mapping + offset);
		self->touched++;
	}
	return NULL;
}

/* Writes back, so that each page has to be made writable by the file system again and again. */
static void *syncer(void *argument)
{
	while (!stopped())
		need(!fdatasync(fd), "fdatasync");
	return argument;
}

static void pairs(double seconds)
{
	struct timespec pause = { .tv_nsec = PAIR_PAUSE_NS };
	u64 until = now_ns() + (u64)(seconds * 1e9), began;

	while (now_ns() < until) {
		char *at;

		began = now_ns();
		at = mmap(NULL, 16 * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			  0);
		latency_add(&maps, now_ns() - began);
		need(at != MAP_FAILED, "mmap");
		began = now_ns();
		munmap(at, 16 * page_size);
		latency_add(&unmaps, now_ns() - began);
		nanosleep(&pause, NULL);
	}
}

/* --- rates --------------------------------------------------------------------------------- */

static void *rate_faulter(void *argument)
{
	struct worker *self = argument;

	while (!stopped()) {
		madvise(self->area, RATE_PAGES * page_size, MADV_DONTNEED);
		for (u32 page = 0; page < RATE_PAGES && !stopped(); page++) {
			touch(self->area + page * page_size);
			self->touched++;
		}
	}
	return NULL;
}

/* Maps and unmaps without a rest: mmap_lock is wanted for write all the time. */
static void remap(double seconds, u32 threads)
{
	u64 until = now_ns() + (u64)(seconds * 1e9), began;
	size_t bytes = RATE_PAGES * page_size;
	char *beside = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	u32 turn = 0;

	need(beside != MAP_FAILED, "mmap");
	while (now_ns() < until) {
		u32 number = turn++ % threads;
		char *at = over ? workers[number].area : beside;

		began = now_ns();
		need(mmap(at, bytes, prot, flags | MAP_FIXED, fd, number * bytes) != MAP_FAILED, "mmap");
		latency_add(&maps, now_ns() - began);
	}
}

/* --- all of them --------------------------------------------------------------------------- */

static void file_make(const char *dir)
{
	char path[4096], *page;
	const u32 at_once = 256;

	snprintf(path, sizeof(path), "%s/faultbench", dir);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	need(fd >= 0, path);
	unlink(path);
	page = calloc(at_once, page_size);
	need(page, "calloc");
	memset(page, 1, at_once * page_size);
	for (u32 done = 0; done < pages; done += at_once)
		need(write(fd, page, at_once * page_size) == (ssize_t)(at_once * page_size), "write");
	free(page);
	need(!fsync(fd), "fsync");
}

static void report(double took_s)
{
	struct rusage usage;
	u64 touched = 0;

	getrusage(RUSAGE_SELF, &usage);
	for (u32 i = 0; i < MOST_THREADS; i++)
		touched += workers[i].touched;
	printf("{\"seconds\":%.3f,\"touched\":%llu,\"faults\":%ld,\"maps\":%llu,\"mmap_p50_us\":%.1f,"
	       "\"mmap_p99_us\":%.1f,\"mmap_max_us\":%.1f,\"munmap_p50_us\":%.1f,\"munmap_p99_us\":%.1f,"
	       "\"munmap_max_us\":%.1f}\n", took_s, (unsigned long long)touched,
	       usage.ru_minflt + usage.ru_majflt, (unsigned long long)maps.count,
	       latency_percentile(&maps, 0.5) / 1e3, latency_percentile(&maps, 0.99) / 1e3,
	       maps.max_ns / 1e3, latency_percentile(&unmaps, 0.5) / 1e3,
	       latency_percentile(&unmaps, 0.99) / 1e3, unmaps.max_ns / 1e3);
}

static void run(const char *mode, double seconds, u32 threads, bool slow)
{
	u64 began;

	mapping = mmap(NULL, pages * page_size, prot, flags, fd, 0);
	need(mapping != MAP_FAILED, "mmap");
	if (slow)	/* no readahead: each fault waits for its own page */
		madvise(mapping, pages * page_size, MADV_RANDOM);
	began = now_ns();
	for (u32 i = 0; i < threads; i++) {
		workers[i].random = i + 1;
		workers[i].area = mapping + i * RATE_PAGES * page_size;
		need(!pthread_create(&workers[i].thread, NULL, slow ? slow_faulter : rate_faulter,
				     &workers[i]), "pthread_create");
	}
	if (slow && stores) {
		pthread_t thread;

		need(!pthread_create(&thread, NULL, syncer, NULL), "pthread_create");
	}
	if (slow)
		pairs(seconds);
	else if (!strcmp(mode, "remap"))
		remap(seconds, threads);
	else
		usleep(seconds * 1e6);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	report((now_ns() - began) / 1e9);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "", *kind = argc > 2 ? argv[2] : "";
	bool slow = !strcmp(mode, "latency"), remaps = !strcmp(mode, "remap");
	bool known = slow ? !strcmp(kind, "read") || !strcmp(kind, "write") :
		     remaps ? !strcmp(kind, "beside") || !strcmp(kind, "over") :
		     !strcmp(mode, "rate") && (!strcmp(kind, "read") || !strcmp(kind, "write") ||
					       !strcmp(kind, "cow"));
	u32 threads = slow ? 2 : argc > 5 ? atoi(argv[5]) : 0;
	double seconds = argc > 4 ? atof(argv[4]) : 0;

	if (!known || argc != (slow ? 5 : 6) || seconds <= 0 || !threads || threads > MOST_THREADS) {
		fprintf(stderr, "usage: faultbench latency read|write DIR SECONDS\n"
			"       faultbench rate read|write|cow DIR SECONDS THREADS\n"
			"       faultbench remap beside|over DIR SECONDS THREADS\n");
		return 2;
	}
	page_size = sysconf(_SC_PAGESIZE);
	stores = strcmp(kind, "read");
	over = !strcmp(kind, "over");
	prot = PROT_READ | PROT_WRITE;
	flags = strcmp(kind, "cow") ? MAP_SHARED : MAP_PRIVATE;
	pages = slow ? LATENCY_PAGES : threads * RATE_PAGES;
	file_make(argv[3]);
	run(mode, seconds, threads, slow);
	/* Threads that still wait for the disk go with the process. */
	fflush(stdout);
	_exit(0);
}
