/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the agent share. */
#ifndef LAB_AGENT_H
#define LAB_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CONTROL_PORT "lab.control"

/* supervise.c: one process per command, which outlives it and leaves nothing of it behind */

enum launch_kind { LAUNCH_EXEC, LAUNCH_PUT, LAUNCH_GET };

struct launch {
	enum launch_kind kind;
	bool pty;
	bool as_init;		/* the agent is PID 1 of a guest */
	uint16_t rows, columns;
	char *cwd;		/* exec */
	char **argv, **env;	/* exec; NULL-terminated */
	char *path;		/* put, get */
	uint64_t size;		/* put: exact; get: limit */
	uint32_t mode;		/* put */
};

struct ends {			/* the agent's ends; -1 where there is none */
	int control;		/* bytes out: a signal, or 0 to kill all; a report comes back */
	int in, out, err;
};

enum report_kind { REPORT_EXITED, REPORT_SIGNALLED, REPORT_FAILED };

struct report {
	uint32_t kind;
	uint32_t value;		/* status, signal or errno */
	uint32_t stuck;
};

int launch(const struct launch *what, struct ends *ends);	/* 0 or an errno */

/* setup.c: what PID 1 does before it can serve */

void mount_basics(void);
int open_port(const char *name);		/* a descriptor, or -1 with errno */
bool kernel_argument(const char *name, char *value, size_t size);
void link_disks(void);
const char *enter_root(const char *serial);	/* NULL, or why not */
void raise_loopback(void);
/* After a snapshot: set the clock, mix in randomness. NULL, or what could not be done. */
const char *renew(uint64_t realtime_ns, const void *seed, size_t size);
void write_file(const char *path, const char *text);

#endif
