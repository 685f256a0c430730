/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The wire between the lab and its guest: frames on one virtio-serial port.
 *
 * The other end is lab/wire.py; a test runs both against each other. A frame is a header and
 * `length` bytes of payload. All numbers are little-endian, all strings end in NUL.
 */
#ifndef LAB_WIRE_H
#define LAB_WIRE_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire is little-endian, and so must be the guest"
#endif

#define WIRE_MAGIC		0x5742414cu	/* "LABW" */
#define WIRE_VERSION		2u
#define WIRE_PAYLOAD_MAX	65536u
/* Bytes of stdin that the host may send ahead of the ROOM frames that it got. */
#define WIRE_STDIN_WINDOW	65536u

struct wire_header {
	uint32_t magic;
	uint16_t type;
	uint16_t zero;
	uint32_t id;		/* of the command; 0 where the frame belongs to none */
	uint32_t length;
} __attribute__((packed));

enum wire_type {
	/* host to guest */
	WIRE_EXEC	= 0x01,	/* wire_exec; cwd, argv..., env... */
	WIRE_STDIN	= 0x02,	/* data */
	WIRE_STDIN_EOF	= 0x03,
	WIRE_SIGNAL	= 0x04,	/* u32: signal to the group; 0: kill all that is left of it */
	WIRE_PUT	= 0x05,	/* wire_put; path. The content follows as STDIN, STDIN_EOF */
	WIRE_GET	= 0x06,	/* u64 limit; path. The content comes as FILE */
	WIRE_WINSIZE	= 0x07,	/* u16 rows, u16 columns */
	WIRE_PING	= 0x08,	/* up to 64 bytes, echoed in PONG */
	WIRE_POWEROFF	= 0x09,
	WIRE_SYSRQ	= 0x0a,	/* keys for /proc/sysrq-trigger, up to 16 */
	WIRE_QUIESCE	= 0x0b,	/* say QUIESCED once nothing runs, then nothing until RESUME */
	WIRE_RESUME	= 0x0c,	/* wire_resume: this machine goes on, or begins, from here */

	/* guest to host */
	WIRE_HELLO	= 0x81,	/* wire_hello; kernel release, failure ("" if none) */
	WIRE_STDOUT	= 0x82,	/* data */
	WIRE_STDERR	= 0x83,	/* data */
	WIRE_EXIT	= 0x84,	/* wire_exit: the last frame of a command that ran */
	WIRE_FILE	= 0x85,	/* data */
	WIRE_ERROR	= 0x86,	/* u32 errno; text: the last frame of one that could not */
	WIRE_PONG	= 0x87,	/* the bytes of the PING */
	WIRE_HEARTBEAT	= 0x88,	/* u64 uptime in microseconds, once a second */
	WIRE_ROOM	= 0x89,	/* u32: so many bytes of stdin were consumed */
	WIRE_QUIESCED	= 0x8a,
	WIRE_RESUMED	= 0x8b,	/* wire_resumed; kernel release, failure ("" if none) */
};

#define WIRE_EXEC_PTY	0x1u

struct wire_exec {
	uint32_t timeout_ms;	/* 0: none */
	uint16_t flags;
	uint16_t rows;
	uint16_t columns;
	uint16_t argc;
	uint16_t envc;
} __attribute__((packed));

struct wire_put {
	uint64_t size;
	uint32_t mode;
} __attribute__((packed));

struct wire_hello {
	uint32_t version;
	uint64_t uptime_us;
} __attribute__((packed));

/*
 * A snapshot is taken of a quiet guest. Any number of machines may go on from it: each is told
 * the time, which has passed without it, and is given randomness of its own.
 */
#define WIRE_SEED_BYTES		64

struct wire_resume {
	uint64_t nonce;		/* comes back in RESUMED */
	uint64_t realtime_ns;	/* since 1970 */
	uint8_t seed[WIRE_SEED_BYTES];
} __attribute__((packed));

struct wire_resumed {
	uint64_t nonce;
	uint64_t uptime_us;
} __attribute__((packed));

enum wire_exit_kind {
	WIRE_EXITED	= 1,	/* value: status */
	WIRE_SIGNALLED	= 2,	/* value: signal */
	WIRE_TIMED_OUT	= 3,	/* value: 0 */
};

struct wire_exit {
	uint32_t kind;
	uint32_t value;
	uint32_t stuck;		/* processes that it left and that cannot be killed */
	uint64_t duration_us;
} __attribute__((packed));

#endif
