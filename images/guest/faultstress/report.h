/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * JSON lines on stdout: one write(2) an event, so that lines of several threads do not mix and
 * nothing is left in a buffer when the process dies. No stdio and no malloc: memory that the C
 * library maps by itself could land in an address range that a scenario has just unmapped.
 */
#ifndef FAULTSTRESS_REPORT_H
#define FAULTSTRESS_REPORT_H

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EVENT_MAX 3500	/* below PIPE_BUF */

enum status {
	STATUS_PASS = 0,
	STATUS_CORRUPTION = 1,
	STATUS_USAGE = 2,
	STATUS_ENVIRONMENT = 3,
	STATUS_NOTHING = 4,
	STATUS_HANG = 5,
};

static inline const char *status_name(enum status status)
{
	static const char * const names[] = {
		"pass", "corruption", "usage", "environment", "tested-nothing", "hang",
	};

	return names[status];
}

static inline void report_raw(const char *text, size_t length)
{
	unsigned int tries = 0;

	while (length > 0) {
		ssize_t done = write(STDOUT_FILENO, text, length);

		/* Injected failures (inject.h) strike this call too, and must not swallow a report. */
		if (done <= 0 && (errno == ENOMEM || errno == EFAULT) && tries++ < 10000)
			continue;
		if (done <= 0)
			return;
		text += done;
		length -= done;
	}
}

/* `format` makes the inside of one JSON object, after the event's name. */
__attribute__((format(printf, 2, 3)))
static inline void report(const char *event, const char *format, ...)
{
	char line[EVENT_MAX + 4];
	va_list args;
	int used, more;

	used = snprintf(line, EVENT_MAX, "{\"event\":\"%s\"%s", event, *format ? "," : "");
	va_start(args, format);
	more = vsnprintf(line + used, EVENT_MAX - used, format, args);
	va_end(args);
	if (more < 0 || more >= EVENT_MAX - used) {
		/* Cut text would not be JSON: say which event did not fit. */
		used = snprintf(line, EVENT_MAX, "{\"event\":\"too-long\",\"of\":\"%s\"", event);
		more = 0;
	}
	memcpy(line + used + more, "}\n", 2);
	report_raw(line, used + more + 2);
}

/* A string's characters as they may stand between the quotes of JSON; cut if there is no room. */
static inline const char *json_text(char *out, size_t size, const char *text)
{
	size_t used = 0;

	for (; *text && used + 7 < size; text++) {
		unsigned char c = *text;

		if (c == '"' || c == '\\') {
			out[used++] = '\\';
			out[used++] = c;
		} else if (c < 0x20 || c >= 0x7f) {
			used += snprintf(out + used, size - used, "\\u%04x", c);
		} else {
			out[used++] = c;
		}
	}
	out[used] = '\0';
	return out;
}

#endif
