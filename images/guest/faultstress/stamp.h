/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a page holds: WORDS_PER_PAGE stamps of 64 bits at equal distances, zeroes between them.
 *
 * A stamp says where it belongs (file, page of the file) and when it was written (generation).
 * It is one aligned 64-bit word, so neither a reader nor a writer can see half of one, and it is
 * only ever replaced by compare-and-swap. That is what makes racing writes safe for the checker:
 * a write that was meant for file A and lands after file B was mapped over it finds a word that
 * differs in its file bits, and changes nothing.
 */
#ifndef FAULTSTRESS_STAMP_H
#define FAULTSTRESS_STAMP_H

#include <stdbool.h>
#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;

#define WORDS_PER_PAGE	8
#define MAX_FILES	4
#define MAX_PAGES	4096
#define FIRST_GEN	1

#define GEN_BITS	40
#define PAGE_BITS	12
#define FILE_BITS	2
#define CHECK_BITS	10

/* check | file | page | generation, from the top. */
struct stamp {
	u32 file;
	u32 page;
	u64 gen;
};

/* Depends on the word's place in its page as well: a stamp that moved within a page is torn. */
static inline u64 stamp_check(u64 body, u32 word)
{
	u64 x = body + 0x9e3779b97f4a7c15ull * (word + 1);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	x ^= x >> 31;
	/* Never 0: a word of zeroes is not a stamp. */
	return x % ((1u << CHECK_BITS) - 1) + 1;
}

static inline u64 stamp_make(u32 file, u32 page, u32 word, u64 gen)
{
	u64 body = ((u64)file << (GEN_BITS + PAGE_BITS)) | ((u64)page << GEN_BITS) | gen;

	return (stamp_check(body, word) << (64 - CHECK_BITS)) | body;
}

/* False: the word is no stamp for this place (torn, or garbage). */
static inline bool stamp_parse(u64 value, u32 word, struct stamp *stamp)
{
	u64 body = value & ((1ull << (64 - CHECK_BITS)) - 1);

	stamp->file = body >> (GEN_BITS + PAGE_BITS);
	stamp->page = (body >> GEN_BITS) & ((1u << PAGE_BITS) - 1);
	stamp->gen = body & ((1ull << GEN_BITS) - 1);
	return value >> (64 - CHECK_BITS) == stamp_check(body, word);
}

#endif
