// SPDX-License-Identifier: GPL-2.0-only
/*
 * Preloaded into what a test of xfstests starts. A program whose path begins with a word of
 * LAB_STRIKE asks the kernel's fault injection to strike it; any other asks to be spared, for a
 * shell that cannot fork ends the test before it has tested anything. The flag outlives fork and
 * exec, so both have to be said.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef FLAG /* a test has it elsewhere */
#define FLAG "/proc/self/make-it-fail"
#endif

static int is_meant(const char *words, const char *path)
{
	while (*words) {
		size_t length = strcspn(words, ":");

		if (length && !strncmp(words, path, length))
			return 1;
		words += length + (words[length] == ':');
	}
	return 0;
}

__attribute__((constructor)) static void ask(void)
{
	const char *words = getenv("LAB_STRIKE");
	char path[512];
	ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
	int fd = open(FLAG, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return; /* a kernel without fault injection, which arming has told already */
	path[length < 0 ? 0 : length] = '\0';
	(void)write(fd, words && is_meant(words, path) ? "1" : "0", 1);
	close(fd);
}
