// SPDX-License-Identifier: GPL-2.0-only
/*
 * The lab's agent in the guest: PID 1 of the initramfs, or `agent --fd N` as a plain process, with
 * `--quiet` in the state in which a snapshot finds it.
 *
 * It serves frames (wire.h) on the virtio-serial port "lab.control": runs commands, several at
 * once, carries their output and status, and writes and reads files. Its memory is bounded:
 * output goes through one queue of a fixed size, and while that is full no pipe is read, so a
 * command that writes without end waits for the host. When the port breaks, the guest has no
 * purpose left and is powered off.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "agent/agent.h"
#include "wire.h"

#define HEADER		sizeof(struct wire_header)
#define COMMANDS_MAX	64
#define CHUNK		16384u
#define OUT_MAX		(256u * 1024u)
/* Kept free for frames that are not streams: EXIT, ERROR, ROOM, PONG. */
#define OUT_RESERVE	16384u
#define HEARTBEAT_US	1000000u
/* What is still in a terminal when its last process is gone comes through a kernel worker. */
#define DRAIN_US	500000u

struct command {
	uint32_t id;		/* 0: the slot is free */
	enum launch_kind kind;
	struct ends ends;
	bool pty;
	char *input;		/* stdin not yet written; a ring of WIRE_STDIN_WINDOW */
	uint32_t input_start, input_length;
	bool input_ends;
	uint64_t started_us, deadline_us, drain_until_us;
	bool timed_out, lost, ended;
	struct report report;
};

static bool is_init;
static int port = -1;
static struct command commands[COMMANDS_MAX];
static unsigned char out[OUT_MAX];
static uint32_t out_start, out_length;
static unsigned char in[HEADER + WIRE_PAYLOAD_MAX];
static uint32_t in_length;
static uint64_t heartbeat_us;
/* Between QUIESCE and RESUME. Once quiet, nothing is sent: a snapshot holds no half of a frame. */
static bool quiescing, quiet;

static uint64_t clock_us(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

static uint64_t now_us(void)
{
	return clock_us(CLOCK_MONOTONIC);
}

static void __attribute__((noreturn)) finish(const char *complaint)
{
	if (complaint)
		dprintf(2, "lab: agent: %s\n", complaint);
	if (is_init) {
		/* No sync: the disks are thrown away, and one of them may hang. */
		reboot(RB_POWER_OFF);
		for (;;)
			pause();
	}
	exit(complaint ? 1 : 0);
}

/* --- output ---------------------------------------------------------------------------------- */

static uint32_t out_free(void)
{
	return OUT_MAX - out_length;
}

static void out_append(const void *data, uint32_t size)
{
	uint32_t at = (out_start + out_length) % OUT_MAX;
	uint32_t first = size < OUT_MAX - at ? size : OUT_MAX - at;

	memcpy(out + at, data, first);
	memcpy(out, (const char *)data + first, size - first);
	out_length += size;
}

static bool send_frame(enum wire_type type, uint32_t id, const void *data, uint32_t size)
{
	struct wire_header header = {
		.magic = WIRE_MAGIC, .type = (uint16_t)type, .id = id, .length = size,
	};

	if (out_free() < HEADER + size)
		return false;
	out_append(&header, HEADER);
	out_append(data, size);
	return true;
}

static bool send_error(uint32_t id, int number, const char *about)
{
	char text[256];
	uint32_t code = (uint32_t)number;
	int length;

	memcpy(text, &code, sizeof(code));
	length = snprintf(text + sizeof(code), sizeof(text) - sizeof(code), "%s%s%s", about,
			  *about ? ": " : "", strerror(number));
	if (length > (int)(sizeof(text) - sizeof(code)) - 1)
		length = (int)(sizeof(text) - sizeof(code)) - 1;
	return send_frame(WIRE_ERROR, id, text, (uint32_t)sizeof(code) + (uint32_t)length + 1);
}

static void flush_out(void)
{
	while (out_length) {
		uint32_t run = OUT_MAX - out_start;
		ssize_t done = write(port, out + out_start, out_length < run ? out_length : run);

		if (done < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (done <= 0)
			finish(is_init ? "the control port is gone" : NULL);
		out_start = (out_start + (uint32_t)done) % OUT_MAX;
		out_length -= (uint32_t)done;
	}
}

static void say_hello(const char *failure)
{
	struct wire_hello hello = {
		.version = WIRE_VERSION, .uptime_us = clock_us(CLOCK_BOOTTIME),
	};
	struct utsname name;
	char payload[sizeof(hello) + sizeof(name.release) + 512];
	int length;

	uname(&name);
	memcpy(payload, &hello, sizeof(hello));
	length = snprintf(payload + sizeof(hello), sizeof(payload) - sizeof(hello), "%s%c%.400s",
			  name.release, '\0', failure ? failure : "");
	send_frame(WIRE_HELLO, 0, payload, (uint32_t)sizeof(hello) + (uint32_t)length + 1);
}

static void say_quiesced(void)
{
	for (int i = 0; i < COMMANDS_MAX; i++)
		if (commands[i].id)
			return;
	quiet = send_frame(WIRE_QUIESCED, 0, NULL, 0);
	quiescing = !quiet;
}

static bool on_resume(const unsigned char *payload, uint32_t size)
{
	struct wire_resumed resumed = { .uptime_us = clock_us(CLOCK_BOOTTIME) };
	const char *failure = NULL;
	struct wire_resume resume;
	struct utsname name;
	char text[sizeof(resumed) + sizeof(name.release) + 512];
	int length;

	if (!quiet || size != sizeof(resume))
		return false;
	memcpy(&resume, payload, sizeof(resume));
	if (is_init)
		failure = renew(resume.realtime_ns, resume.seed, sizeof(resume.seed));
	quiet = false;
	heartbeat_us = now_us() + HEARTBEAT_US;
	uname(&name);
	resumed.nonce = resume.nonce;
	memcpy(text, &resumed, sizeof(resumed));
	length = snprintf(text + sizeof(resumed), sizeof(text) - sizeof(resumed), "%s%c%.400s",
			  name.release, '\0', failure ? failure : "");
	return send_frame(WIRE_RESUMED, 0, text, (uint32_t)sizeof(resumed) + (uint32_t)length + 1);
}

/* --- commands -------------------------------------------------------------------------------- */

static struct command *find(uint32_t id)
{
	for (int i = 0; i < COMMANDS_MAX; i++)
		if (commands[i].id == id)
			return &commands[i];
	return NULL;
}

static void close_end(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void grant(struct command *command, uint32_t size)
{
	send_frame(WIRE_ROOM, command->id, &size, sizeof(size));
}

/* Nobody reads its stdin any more: what comes is taken and dropped, so that the host goes on. */
static void drop_input(struct command *command)
{
	if (command->input_length)
		grant(command, command->input_length);
	command->input_length = 0;
	close_end(&command->ends.in);
}

static void write_input(struct command *command)
{
	uint32_t run = WIRE_STDIN_WINDOW - command->input_start;
	ssize_t done;

	if (command->input_length < run)
		run = command->input_length;
	if (run) {
		done = write(command->ends.in, command->input + command->input_start, run);
		if (done < 0) {
			if (errno != EAGAIN && errno != EINTR)
				drop_input(command);
			return;
		}
		command->input_start = (command->input_start + (uint32_t)done) % WIRE_STDIN_WINDOW;
		command->input_length -= (uint32_t)done;
		grant(command, (uint32_t)done);
	}
	if (command->input_ends && !command->input_length && !command->pty)
		close_end(&command->ends.in);
}

static void take_input(struct command *command, const unsigned char *data, uint32_t size)
{
	uint32_t at, first;

	if (command->ends.in < 0) {
		grant(command, size);
		return;
	}
	if (!command->input)
		command->input = malloc(WIRE_STDIN_WINDOW);
	if (!command->input || size > WIRE_STDIN_WINDOW - command->input_length) {
		drop_input(command);
		return;
	}
	at = (command->input_start + command->input_length) % WIRE_STDIN_WINDOW;
	first = size < WIRE_STDIN_WINDOW - at ? size : WIRE_STDIN_WINDOW - at;
	memcpy(command->input + at, data, first);
	memcpy(command->input, data + first, size - first);
	command->input_length += size;
}

static void tell_supervisor(struct command *command, unsigned char signal)
{
	if (command->ends.control >= 0)
		send(command->ends.control, &signal, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void start(uint32_t id, const struct launch *what, uint32_t timeout_ms)
{
	struct command *command = find(0);
	int error = command ? 0 : EAGAIN;

	if (find(id)) {
		send_error(id, EEXIST, "command");
		return;
	}
	if (!error) {
		memset(command, 0, sizeof(*command));
		error = launch(what, &command->ends);
	}
	if (error) {
		send_error(id, error, "cannot start");
		return;
	}
	command->id = id;
	command->kind = what->kind;
	command->pty = what->pty;
	command->started_us = now_us();
	if (timeout_ms)
		command->deadline_us = command->started_us + timeout_ms * 1000ull;
	if (what->kind == LAUNCH_GET)
		close_end(&command->ends.in);
}

static void read_report(struct command *command)
{
	ssize_t got = recv(command->ends.control, &command->report, sizeof(command->report),
			   MSG_DONTWAIT);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	/* A supervisor that dies without a word leaves a command without a status. */
	command->lost = got != sizeof(command->report);
	command->ended = true;
	command->drain_until_us = now_us() + DRAIN_US;
	close_end(&command->ends.control);
	drop_input(command);
}

static enum wire_type stream_type(const struct command *command, const int *fd)
{
	if (fd == &command->ends.err)
		return WIRE_STDERR;
	return command->kind == LAUNCH_GET ? WIRE_FILE : WIRE_STDOUT;
}

/* One chunk from a pipe into the queue. */
static void read_output(struct command *command, int *fd)
{
	static char chunk[CHUNK];
	ssize_t got = read(*fd, chunk, sizeof(chunk));

	if (got > 0) {
		send_frame(stream_type(command, fd), command->id, chunk, (uint32_t)got);
		return;
	}
	if (got < 0 && errno == EINTR)
		return;
	if (got < 0 && errno == EAGAIN) {
		/* Its processes are gone; an end that somebody else still holds proves nothing. */
		if (!command->ended || (command->pty && now_us() < command->drain_until_us))
			return;
	}
	close_end(fd);
}

static bool send_end(const struct command *command)
{
	struct wire_exit end = {
		.kind = WIRE_EXITED,
		.value = command->report.value,
		.stuck = command->report.stuck,
		.duration_us = now_us() - command->started_us,
	};

	if (command->lost)
		return send_error(command->id, ESRCH, "the supervisor was killed");
	if (command->timed_out) {
		end.kind = WIRE_TIMED_OUT;
		end.value = 0;
	} else if (command->report.kind == REPORT_FAILED) {
		return send_error(command->id, (int)command->report.value, "");
	} else if (command->report.kind == REPORT_SIGNALLED) {
		end.kind = WIRE_SIGNALLED;
	} else if (command->kind != LAUNCH_EXEC && command->report.value) {
		return send_error(command->id, (int)command->report.value, "");
	}
	return send_frame(WIRE_EXIT, command->id, &end, sizeof(end));
}

static void end_if_done(struct command *command)
{
	if (!command->ended || command->ends.out >= 0 || command->ends.err >= 0)
		return;
	if (!send_end(command))
		return;
	close_end(&command->ends.in);
	free(command->input);
	memset(command, 0, sizeof(*command));
}

/* --- frames from the host -------------------------------------------------------------------- */

/* Split NUL-terminated strings; false if there are not exactly `count`. */
static bool split(char *text, uint32_t size, char **words, uint32_t count)
{
	char *end = text + size;

	for (uint32_t i = 0; i < count; i++) {
		char *nul = memchr(text, '\0', (size_t)(end - text));

		if (!nul)
			return false;
		words[i] = text;
		text = nul + 1;
	}
	return text == end;
}

static bool on_exec(uint32_t id, unsigned char *payload, uint32_t size)
{
	struct launch what = { .kind = LAUNCH_EXEC, .as_init = is_init };
	struct wire_exec exec;
	char **words;
	bool whole;

	if (size < sizeof(exec))
		return false;
	memcpy(&exec, payload, sizeof(exec));
	/* cwd, argv, NULL, env, NULL */
	words = calloc((size_t)exec.argc + exec.envc + 3, sizeof(*words));
	if (!words) {
		send_error(id, ENOMEM, "cannot start");
		return true;
	}
	whole = exec.argc && split((char *)payload + sizeof(exec), size - (uint32_t)sizeof(exec),
				   words, 1u + exec.argc + exec.envc);
	if (whole) {
		memmove(words + exec.argc + 2, words + exec.argc + 1, exec.envc * sizeof(*words));
		words[exec.argc + 1] = NULL;
		words[exec.argc + exec.envc + 2] = NULL;
		what.cwd = words[0];
		what.argv = words + 1;
		what.env = words + exec.argc + 2;
		what.pty = exec.flags & WIRE_EXEC_PTY;
		what.rows = exec.rows;
		what.columns = exec.columns;
		start(id, &what, exec.timeout_ms);
	}
	free(words);	/* the supervisor has its own copy */
	return whole;
}

static bool on_put(uint32_t id, unsigned char *payload, uint32_t size)
{
	struct launch what = { .kind = LAUNCH_PUT };
	struct wire_put put;

	if (size <= sizeof(put))
		return false;
	memcpy(&put, payload, sizeof(put));
	if (!split((char *)payload + sizeof(put), size - (uint32_t)sizeof(put), &what.path, 1))
		return false;
	what.size = put.size;
	what.mode = put.mode;
	start(id, &what, 0);
	return true;
}

static bool on_get(uint32_t id, unsigned char *payload, uint32_t size)
{
	struct launch what = { .kind = LAUNCH_GET };

	if (size <= sizeof(what.size))
		return false;
	memcpy(&what.size, payload, sizeof(what.size));
	if (!split((char *)payload + sizeof(what.size), size - (uint32_t)sizeof(what.size),
		   &what.path, 1))
		return false;
	start(id, &what, 0);
	return true;
}

static bool on_signal(uint32_t id, const unsigned char *payload, uint32_t size)
{
	struct command *command = find(id);
	uint32_t number;

	if (size != sizeof(number))
		return false;
	memcpy(&number, payload, sizeof(number));
	if (number >= NSIG)
		return false;
	if (command)	/* it may have ended while the frame was under way */
		tell_supervisor(command, (unsigned char)number);
	return true;
}

static bool on_winsize(uint32_t id, const unsigned char *payload, uint32_t size)
{
	struct command *command = find(id);
	struct winsize window = { 0 };

	if (size != 4)
		return false;
	memcpy(&window.ws_row, payload, 2);
	memcpy(&window.ws_col, payload + 2, 2);
	if (command && command->pty && command->ends.out >= 0)
		ioctl(command->ends.out, TIOCSWINSZ, &window);
	return true;
}

static bool on_sysrq(const unsigned char *payload, uint32_t size)
{
	if (size > 16)
		return false;
	for (uint32_t i = 0; i < size && is_init; i++)
		write_file("/proc/sysrq-trigger", (char[]){ (char)payload[i], '\0' });
	return true;
}

static bool on_frame(uint16_t type, uint32_t id, unsigned char *payload, uint32_t size)
{
	struct command *command = id ? find(id) : NULL;

	if (quiet && type != WIRE_RESUME && type != WIRE_POWEROFF)
		return false;
	switch (type) {
	case WIRE_EXEC:
		return id && on_exec(id, payload, size);
	case WIRE_PUT:
		return id && on_put(id, payload, size);
	case WIRE_GET:
		return id && on_get(id, payload, size);
	case WIRE_STDIN:
		if (command)
			take_input(command, payload, size);
		return id && size;
	case WIRE_STDIN_EOF:
		if (command) {
			command->input_ends = true;
			if (!command->input_length && !command->pty)
				close_end(&command->ends.in);
		}
		return id && !size;
	case WIRE_SIGNAL:
		return id && on_signal(id, payload, size);
	case WIRE_WINSIZE:
		return id && on_winsize(id, payload, size);
	case WIRE_PING:
		return !id && size <= 64 && send_frame(WIRE_PONG, 0, payload, size);
	case WIRE_SYSRQ:
		return !id && on_sysrq(payload, size);
	case WIRE_QUIESCE:
		quiescing = true;
		return !id && !size;
	case WIRE_RESUME:
		return !id && on_resume(payload, size);
	case WIRE_POWEROFF:
		finish(NULL);
	default:
		return false;
	}
}

/* Handle the whole frames that are here, as long as there is room for the answers. */
static void handle_frames(void)
{
	uint32_t at = 0;

	while (in_length - at >= HEADER && out_free() >= OUT_RESERVE / 2) {
		struct wire_header header;

		memcpy(&header, in + at, HEADER);
		if (header.magic != WIRE_MAGIC || header.zero ||
		    header.length > WIRE_PAYLOAD_MAX)
			finish("garbage on the control port");
		if (in_length - at < HEADER + header.length)
			break;
		if (!on_frame(header.type, header.id, in + at + HEADER, header.length))
			finish("a bad frame on the control port");
		at += (uint32_t)HEADER + header.length;
	}
	memmove(in, in + at, in_length - at);
	in_length -= at;
}

static void read_port(void)
{
	ssize_t got = read(port, in + in_length, sizeof(in) - in_length);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0)
		finish(is_init ? "the control port is gone" : NULL);
	in_length += (uint32_t)got;
}

/* --- the loop -------------------------------------------------------------------------------- */

static struct pollfd slots[1 + 4 * COMMANDS_MAX];

static void prepare(void)
{
	bool room = out_free() >= HEADER + CHUNK + OUT_RESERVE;

	slots[0].fd = port;
	slots[0].events = out_length ? POLLOUT : 0;
	if (in_length < sizeof(in))
		slots[0].events |= POLLIN;
	for (int i = 0; i < COMMANDS_MAX; i++) {
		struct command *command = &commands[i];
		struct pollfd *slot = slots + 1 + 4 * i;

		for (int j = 0; j < 4; j++)
			slot[j] = (struct pollfd){ .fd = -1, .events = POLLIN };
		if (!command->id)
			continue;
		slot[0].fd = command->ends.control;
		slot[1].events = POLLOUT;
		if (command->input_length)
			slot[1].fd = command->ends.in;
		if (room) {
			slot[2].fd = command->ends.out;
			slot[3].fd = command->ends.err;
		}
	}
}

static int wait_ms(void)
{
	uint64_t now = now_us(), until = heartbeat_us;

	for (int i = 0; i < COMMANDS_MAX; i++) {
		const struct command *command = &commands[i];

		if (!command->id)
			continue;
		if (command->deadline_us && !command->timed_out && command->deadline_us < until)
			until = command->deadline_us;
		if (command->ended && out_free() >= HEADER + CHUNK + OUT_RESERVE)
			return 10;	/* draining */
	}
	return until <= now ? 0 : (int)((until - now) / 1000) + 1;
}

static void serve_command(struct command *command, const struct pollfd *slot)
{
	if (slot[0].fd >= 0 && slot[0].revents)
		read_report(command);
	if (slot[1].fd >= 0 && slot[1].revents && command->ends.in >= 0)
		write_input(command);
	/* When it has ended, read on until nothing is there. */
	for (int i = 2; i < 4; i++) {
		int *fd = i == 2 ? &command->ends.out : &command->ends.err;

		if (*fd >= 0 && out_free() >= HEADER + CHUNK + OUT_RESERVE &&
		    (slot[i].revents || command->ended))
			read_output(command, fd);
	}
	if (command->deadline_us && !command->timed_out && !command->ended &&
	    now_us() >= command->deadline_us) {
		command->timed_out = true;
		tell_supervisor(command, 0);
	}
	end_if_done(command);
}

static void __attribute__((noreturn)) serve(void)
{
	sigset_t none;

	sigemptyset(&none);
	for (;;) {
		struct timespec span;
		int ms;

		prepare();
		ms = wait_ms();
		span = (struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };
		if (ppoll(slots, sizeof(slots) / sizeof(*slots), &span, &none) < 0)
			for (size_t i = 0; i < sizeof(slots) / sizeof(*slots); i++)
				slots[i].revents = 0;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;	/* supervisors, and orphans of theirs if we are PID 1 */
		if (slots[0].revents & (POLLIN | POLLHUP | POLLERR))
			read_port();
		handle_frames();
		for (int i = 0; i < COMMANDS_MAX; i++)
			if (commands[i].id)
				serve_command(&commands[i], slots + 1 + 4 * i);
		if (quiescing)
			say_quiesced();
		if (now_us() >= heartbeat_us) {
			uint64_t uptime = clock_us(CLOCK_BOOTTIME);

			if (!quiet && out_free() >= OUT_RESERVE)
				send_frame(WIRE_HEARTBEAT, 0, &uptime, sizeof(uptime));
			heartbeat_us = now_us() + HEARTBEAT_US;
		}
		flush_out();
	}
}

static void on_child(int number)
{
	(void)number;	/* it only interrupts ppoll */
}

static void prepare_signals(void)
{
	struct sigaction action = { .sa_handler = on_child };
	sigset_t child;

	sigaction(SIGCHLD, &action, NULL);
	action.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &action, NULL);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
}

static const char *set_up_guest(void)
{
	const char *failure = NULL;
	char serial[64];

	mount_basics();
	write_file("/proc/self/oom_score_adj", "-1000");
	setpriority(PRIO_PROCESS, 0, -5);
	sethostname("lab", 3);
	raise_loopback();
	link_disks();
	if (kernel_argument("lab.root", serial, sizeof(serial)))
		failure = enter_root(serial);
	dprintf(1, "lab: agent ready%s%s\n", failure ? ", but " : "", failure ? failure : "");
	port = open_port(CONTROL_PORT);
	if (port < 0)
		finish("there is no port " CONTROL_PORT);
	return failure;
}

int main(int argc, char **argv)
{
	const char *failure = NULL;

	prepare_signals();
	if (argc >= 3 && !strcmp(argv[1], "--fd")) {
		quiet = argc == 4 && !strcmp(argv[3], "--quiet");
		port = atoi(argv[2]);
		fcntl(port, F_SETFD, FD_CLOEXEC);
		fcntl(port, F_SETFL, fcntl(port, F_GETFL) | O_NONBLOCK);
	} else if (getpid() == 1) {
		is_init = true;
		failure = set_up_guest();
	} else {
		fprintf(stderr, "usage: agent --fd N [--quiet], or as PID 1 of a guest\n");
		return 2;
	}
	heartbeat_us = now_us() + HEARTBEAT_US;
	if (!quiet)
		say_hello(failure);
	serve();
}
