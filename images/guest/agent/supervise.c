// SPDX-License-Identifier: GPL-2.0-only
/*
 * One supervisor per command.
 *
 * The supervisor is a child of the agent and the sub-reaper of the command, so that whatever the
 * command forks, in whatever session or process group, is found below it. When the command's
 * first process ends, when the agent asks, or when the agent is gone, everything below is killed;
 * then the supervisor reports and ends. It holds no pipe of the command's, and a command that
 * blocks in the kernel blocks neither it nor the agent.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define FD_MAX		1024
#define STUCK_AFTER_MS	3000
#define KILL_AGAIN_MS	10

enum { FD_CONTROL = 3, FD_IN, FD_OUT, FD_ERR, FD_EXEC, FD_FREE };

static void make_parents(char *path)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		mkdir(path, 0755);	/* an error shows when the file is opened */
		*slash = '/';
	}
}

static int write_all(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t done = write(fd, data, size);

		if (done < 0) {
			if (errno == EINTR)
				continue;
			return errno;
		}
		data += done;
		size -= (size_t)done;
	}
	return 0;
}

/* stdin into a file that appears whole or not at all. Returns an errno. */
static int put_file(const struct launch *what)
{
	char temporary[4096 + 16], buffer[16384];
	uint64_t left = what->size;
	int fd, error = 0;
	ssize_t got;

	make_parents(what->path);
	if (snprintf(temporary, sizeof(temporary), "%s.XXXXXX", what->path) >=
	    (int)sizeof(temporary))
		return ENAMETOOLONG;
	fd = mkstemp(temporary);
	if (fd < 0)
		return errno;
	while (!error && (got = read(0, buffer, sizeof(buffer))) != 0) {
		if (got < 0) {
			error = errno == EINTR ? 0 : errno;
			continue;
		}
		if ((uint64_t)got > left) {
			error = EFBIG;
			break;
		}
		left -= (uint64_t)got;
		error = write_all(fd, buffer, (size_t)got);
	}
	if (!error && left)
		error = EPIPE;	/* cut off */
	if (!error && fchmod(fd, what->mode & 07777))
		error = errno;
	if (close(fd) && !error)
		error = errno;
	if (!error && rename(temporary, what->path))
		error = errno;
	if (error)
		unlink(temporary);
	return error;
}

/* A regular file to stdout. Returns an errno; what was written by then is void. */
static int get_file(const struct launch *what)
{
	char buffer[16384];
	uint64_t left = what->size;
	struct stat stat;
	ssize_t got;
	int error, fd = open(what->path, O_RDONLY | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return errno;
	if (fstat(fd, &stat))
		return errno;
	if (S_ISDIR(stat.st_mode))
		return EISDIR;
	if (!S_ISREG(stat.st_mode))
		return EINVAL;
	if (stat.st_size > 0 && (uint64_t)stat.st_size > left)
		return EFBIG;
	while ((got = read(fd, buffer, sizeof(buffer))) != 0) {
		if (got < 0) {
			if (errno == EINTR)
				continue;
			return errno;
		}
		if ((uint64_t)got > left)
			return EFBIG;	/* it grew, or it is in /proc */
		left -= (uint64_t)got;
		error = write_all(1, buffer, (size_t)got);
		if (error)
			return error;
	}
	return 0;
}

static int become(const struct launch *what)
{
	if (what->as_init) {
		write_file("/proc/self/oom_score_adj", "0");
		setpriority(PRIO_PROCESS, 0, 0);
	}
	umask(022);
	if (chdir(what->cwd))
		return errno;
	environ = what->env;
	execvp(what->argv[0], what->argv);
	return errno;
}

/* The command's first process; never returns. */
static void child(const struct launch *what)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	sigset_t none;
	int error;

	for (int number = 1; number < NSIG; number++)
		sigaction(number, &standard, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (what->pty)
		ioctl(FD_IN, TIOCSCTTY, 0);
	dup2(FD_IN, 0);
	dup2(FD_OUT, 1);
	dup2(FD_ERR, 2);
	for (int fd = FD_CONTROL; fd < FD_EXEC; fd++)
		close(fd);
	switch (what->kind) {
	case LAUNCH_PUT:
		_exit(put_file(what));
	case LAUNCH_GET:
		_exit(get_file(what));
	case LAUNCH_EXEC:
		break;
	}
	error = become(what);
	/* Four bytes into a pipe that is empty: they fit, or the supervisor is dead. */
	if (write(FD_EXEC, &error, sizeof(error)) != sizeof(error))
		_exit(126);
	_exit(127);
}

static pid_t parent_of(const char *pid)
{
	char path[64], text[512], *cut;
	ssize_t got;
	int fd, parent = 0;

	snprintf(path, sizeof(path), "/proc/%.20s/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	got = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (got <= 0)
		return 0;
	text[got] = '\0';
	/* The command name may hold spaces and parentheses: cut at the last one. */
	cut = strrchr(text, ')');
	if (!cut || sscanf(cut + 1, " %*c %d", &parent) != 1)
		return 0;
	return parent;
}

struct kin { pid_t pid, parent; bool below; };

/* Kill all processes below us, in one pass; returns how many there were. */
static unsigned int kill_below(void)
{
	unsigned int count = 0, room = 0, found = 0;
	struct kin *all = NULL;
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	bool grew = true;

	if (!proc)
		return 0;
	while ((entry = readdir(proc))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		if (count == room) {
			struct kin *more = realloc(all, (room + 256) * sizeof(*all));

			if (!more)
				break;
			all = more;
			room += 256;
		}
		all[count].pid = atoi(entry->d_name);
		all[count].parent = parent_of(entry->d_name);
		all[count++].below = false;
	}
	closedir(proc);
	while (grew) {
		grew = false;
		for (unsigned int i = 0; i < count; i++) {
			bool below = all[i].parent == getpid();

			for (unsigned int j = 0; j < count && !below && !all[i].below; j++)
				below = all[j].below && all[j].pid == all[i].parent;
			if (below && !all[i].below)
				grew = all[i].below = true;
		}
	}
	for (unsigned int i = 0; i < count; i++)
		if (all[i].below) {
			kill(all[i].pid, SIGKILL);
			found++;
		}
	free(all);
	return found;
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000L + now.tv_nsec / 1000000L;
}

struct watch {
	pid_t main;
	bool main_ended, exec_failed, killing, reported, orphaned;
	struct report report;
	long kill_since;
};

/* Reap. Returns whether any child is left. */
static bool reap(struct watch *watch)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid != watch->main)
			continue;
		watch->main_ended = true;
		if (watch->exec_failed)
			continue;
		if (WIFSIGNALED(status)) {
			watch->report.kind = REPORT_SIGNALLED;
			watch->report.value = (uint32_t)WTERMSIG(status);
		} else {
			watch->report.kind = REPORT_EXITED;
			watch->report.value = (uint32_t)WEXITSTATUS(status);
		}
	}
	return pid == 0;
}

static void listen_to_agent(struct watch *watch)
{
	unsigned char byte;
	ssize_t got = recv(FD_CONTROL, &byte, 1, MSG_DONTWAIT);

	if (got < 0)
		return;
	if (got == 0) {
		watch->orphaned = watch->killing = true;
		return;
	}
	if (byte == 0)
		watch->killing = true;
	else if (!watch->main_ended)	/* unreaped, so the group is still its own */
		kill(-watch->main, byte);
}

static void listen_to_exec(struct watch *watch, struct pollfd *slot)
{
	int error;

	if (read(FD_EXEC, &error, sizeof(error)) == sizeof(error)) {
		watch->exec_failed = true;
		watch->report.kind = REPORT_FAILED;
		watch->report.value = (uint32_t)error;
	}
	close(FD_EXEC);
	slot->fd = -1;
}

static void watch_over(pid_t main)
{
	struct watch watch = { .main = main };
	struct pollfd slots[2] = {
		{ .fd = FD_CONTROL, .events = POLLIN },
		{ .fd = FD_EXEC, .events = POLLIN },
	};
	sigset_t none;

	sigemptyset(&none);
	for (;;) {
		struct timespec again = { .tv_nsec = KILL_AGAIN_MS * 1000000L };
		unsigned int left = 0;
		bool any = reap(&watch);

		/* The errno of a failed exec is in the pipe before its process ends. */
		if (watch.main_ended && slots[1].fd >= 0)
			listen_to_exec(&watch, &slots[1]);
		watch.killing |= watch.main_ended;
		if (watch.killing && !watch.kill_since)
			watch.kill_since = now_ms();
		if (watch.killing && any)
			left = kill_below();
		if (watch.main_ended && !watch.reported &&
		    (!any || now_ms() - watch.kill_since > STUCK_AFTER_MS)) {
			watch.report.stuck = any ? left : 0;
			send(FD_CONTROL, &watch.report, sizeof(watch.report), MSG_NOSIGNAL);
			watch.reported = true;
		}
		if (!any)
			_exit(0);
		if (watch.orphaned)
			slots[0].fd = -1;
		if (ppoll(slots, 2, watch.killing ? &again : NULL, &none) <= 0)
			continue;
		if (slots[0].revents)
			listen_to_agent(&watch);
		if (slots[1].fd >= 0 && slots[1].revents)
			listen_to_exec(&watch, &slots[1]);
	}
}

/* Put the five descriptors where the enum says, and close all others: above all the pipes of
 * other commands, whose readers would never see their end.
 */
static void settle(int control, int in, int out, int err, const int exec[2])
{
	int from[] = { control, in, out, err, exec[0], exec[1] };

	/* First out of the way of their final places. */
	for (int i = 0; i < 6; i++)
		from[i] = fcntl(from[i], F_DUPFD, FD_MAX / 2);
	for (int i = 0; i < 4; i++)
		dup2(from[i], FD_CONTROL + i);
	/* The supervisor reads FD_EXEC, its child writes it: see launch_below. */
	dup2(from[4], FD_EXEC);
	dup2(from[5], FD_FREE);
	for (int fd = FD_FREE + 1; fd < FD_MAX; fd++)
		close(fd);
	fcntl(FD_CONTROL, F_SETFD, FD_CLOEXEC);
}

static void supervise(const struct launch *what, int control, int in, int out, int err)
{
	int exec[2];
	pid_t pid;

	prctl(PR_SET_NAME, "lab-supervisor");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (pipe(exec))
		_exit(1);
	settle(control, in, out, err, exec);
	pid = fork();
	if (pid == 0) {
		dup2(FD_FREE, FD_EXEC);
		close(FD_FREE);
		fcntl(FD_EXEC, F_SETFD, FD_CLOEXEC);
		child(what);
	}
	close(FD_FREE);
	for (int fd = FD_IN; fd <= FD_ERR; fd++)
		close(fd);
	if (pid < 0) {
		struct report report = { .kind = REPORT_FAILED, .value = (uint32_t)errno };

		send(FD_CONTROL, &report, sizeof(report), MSG_NOSIGNAL);
		_exit(0);
	}
	watch_over(pid);
}

static int open_pty(const struct launch *what, int theirs[3], struct ends *ends)
{
	struct winsize size = { .ws_row = what->rows, .ws_col = what->columns };
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	char name[64];
	int slave;

	if (master < 0)
		return errno;
	if (grantpt(master) || unlockpt(master) || ptsname_r(master, name, sizeof(name)))
		goto fail;
	slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		goto fail;
	ioctl(master, TIOCSWINSZ, &size);
	ends->in = master;
	ends->out = fcntl(master, F_DUPFD_CLOEXEC, 0);
	theirs[0] = slave;
	theirs[1] = fcntl(slave, F_DUPFD_CLOEXEC, 0);
	theirs[2] = fcntl(slave, F_DUPFD_CLOEXEC, 0);
	return 0;
fail:
	close(master);
	return errno;
}

static int open_pipes(int theirs[3], struct ends *ends)
{
	int *ours[3] = { &ends->in, &ends->out, &ends->err };

	for (int i = 0; i < 3; i++) {
		int pair[2];

		if (pipe2(pair, O_CLOEXEC))
			return errno;
		*ours[i] = i ? pair[0] : pair[1];
		theirs[i] = i ? pair[1] : pair[0];
		fcntl(*ours[i], F_SETFL, O_NONBLOCK);
	}
	return 0;
}

static void close_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

int launch(const struct launch *what, struct ends *ends)
{
	int theirs[3] = { -1, -1, -1 }, control[2] = { -1, -1 }, error;
	pid_t pid;

	*ends = (struct ends){ -1, -1, -1, -1 };
	error = what->pty ? open_pty(what, theirs, ends) : open_pipes(theirs, ends);
	if (!error && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control))
		error = errno;
	if (!error) {
		pid = fork();
		if (pid == 0)
			supervise(what, control[1], theirs[0], theirs[1], theirs[2]);
		if (pid < 0)
			error = errno;
	}
	for (int i = 0; i < 3; i++)
		close_open(theirs[i]);
	close_open(control[1]);
	ends->control = control[0];
	if (error) {
		close_open(ends->in);
		close_open(ends->out);
		close_open(ends->err);
		close_open(ends->control);
	}
	return error;
}
