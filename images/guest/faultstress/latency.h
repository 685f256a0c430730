/* SPDX-License-Identifier: GPL-2.0-only */
/* How long calls took: counts in buckets of at most 6 % width, percentiles out. */
#ifndef FAULTSTRESS_LATENCY_H
#define FAULTSTRESS_LATENCY_H

#include <time.h>

#include "stamp.h"

#define SUB_BITS	4
#define BUCKETS		(60 << SUB_BITS)

struct latency {
	u64 count;
	u64 max_ns;
	u64 bucket[BUCKETS];
};

static inline u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (u64)ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

/* Power of two, then SUB_BITS of mantissa; values below 2^SUB_BITS stand for themselves. */
static inline u32 latency_bucket(u64 ns)
{
	u32 shift;

	if (ns < 1u << SUB_BITS)
		return ns;
	shift = 63 - __builtin_clzll(ns) - SUB_BITS;
	return ((shift + 1) << SUB_BITS) + ((ns >> shift) & ((1u << SUB_BITS) - 1));
}

/* The largest value that falls into the bucket. */
static inline u64 latency_top(u32 bucket)
{
	u32 shift;

	if (bucket < 1u << SUB_BITS)
		return bucket;
	shift = (bucket >> SUB_BITS) - 1;
	return ((((u64)1 << SUB_BITS) + (bucket & ((1u << SUB_BITS) - 1)) + 1) << shift) - 1;
}

/* One writer a histogram: each thread has its own. */
static inline void latency_add(struct latency *latency, u64 ns)
{
	u32 bucket = latency_bucket(ns);

	latency->count++;
	latency->bucket[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
	if (ns > latency->max_ns)
		latency->max_ns = ns;
}

static inline void latency_merge(struct latency *into, const struct latency *from)
{
	into->count += from->count;
	if (from->max_ns > into->max_ns)
		into->max_ns = from->max_ns;
	for (u32 i = 0; i < BUCKETS; i++)
		into->bucket[i] += from->bucket[i];
}

static inline u64 latency_percentile(const struct latency *latency, double fraction)
{
	u64 wanted = latency->count * fraction, seen = 0;

	for (u32 i = 0; i < BUCKETS; i++) {
		seen += latency->bucket[i];
		if (seen > wanted)
			return latency_top(i) < latency->max_ns ? latency_top(i) : latency->max_ns;
	}
	return latency->max_ns;
}

#endif
