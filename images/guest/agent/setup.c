// SPDX-License-Identifier: GPL-2.0-only
/* What PID 1 of a guest does before it can serve: mounts, the control port, disks, the root. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define NEW_ROOT "/newroot"
#define BY_LAB "/dev/disk/by-lab"
/* Devices are there before init starts, unless a patch makes their probing asynchronous. */
#define DEVICE_WAIT_MS 10000
#define DEVICE_POLL_MS 5

static char why[256];

static void pause_ms(long ms)
{
	struct timespec span = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	nanosleep(&span, NULL);
}

static ssize_t read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		return -1;
	got = read(fd, text, size - 1);
	close(fd);
	if (got < 0)
		return -1;
	if (got && text[got - 1] == '\n')
		got--;
	text[got] = '\0';
	return got;
}

void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		fprintf(stderr, "lab: %s: %s\n", path, strerror(errno));
	close(fd);
}

static void mount_at(const char *type, const char *target, const char *options)
{
	mkdir(target, 0755);
	/* A kernel without one of these is still of use; what needs it will say so. */
	mount(type, target, type, MS_NOSUID, options);
}

void mount_basics(void)
{
	mount_at("proc", "/proc", NULL);
	mount_at("sysfs", "/sys", NULL);
	mount_at("devtmpfs", "/dev", "mode=0755");
	mount_at("devpts", "/dev/pts", "ptmxmode=0666,mode=0620");
	mount_at("tmpfs", "/dev/shm", "mode=1777");
	mount_at("debugfs", "/sys/kernel/debug", NULL);
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
}

void raise_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return;
	ioctl(fd, SIOCSIFFLAGS, &request);
	close(fd);
}

/* NAME=VALUE of /proc/cmdline. */
bool kernel_argument(const char *name, char *value, size_t size)
{
	static char line[8192];
	size_t length = strlen(name);

	if (read_file("/proc/cmdline", line, sizeof(line)) < 0)
		return false;
	for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
		if (!strncmp(word, name, length) && word[length] == '=') {
			snprintf(value, size, "%s", word + length + 1);
			return true;
		}
	return false;
}

static int try_port(const char *name)
{
	DIR *ports = opendir("/sys/class/virtio-ports");
	char path[512], found[128];
	struct dirent *entry;
	int fd = -1;

	if (!ports)
		return -1;
	while (fd < 0 && (entry = readdir(ports))) {
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
		if (entry->d_name[0] == '.' || read_file(path, found, sizeof(found)) < 0 ||
		    strcmp(found, name))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	}
	closedir(ports);
	return fd;
}

/* The port of that name, once the host has opened its end. */
int open_port(const char *name)
{
	for (int waited = 0; waited < DEVICE_WAIT_MS; waited += DEVICE_POLL_MS) {
		int fd = try_port(name);
		struct pollfd slot = { .fd = fd, .events = POLLOUT };

		if (fd >= 0 && poll(&slot, 1, 0) >= 0 && !(slot.revents & POLLHUP))
			return fd;
		if (fd >= 0)
			close(fd);
		pause_ms(DEVICE_POLL_MS);
	}
	errno = ENODEV;
	return -1;
}

/* /dev/disk/by-lab/SERIAL for every disk that has a serial. */
void link_disks(void)
{
	DIR *disks = opendir("/sys/block");
	char path[512], serial[64], target[512];
	struct dirent *entry;

	if (!disks)
		return;
	mkdir("/dev/disk", 0755);
	mkdir(BY_LAB, 0755);
	while ((entry = readdir(disks))) {
		snprintf(path, sizeof(path), "/sys/block/%s/serial", entry->d_name);
		if (entry->d_name[0] == '.' || read_file(path, serial, sizeof(serial)) <= 0 ||
		    strchr(serial, '/') || serial[0] == '.')
			continue;
		snprintf(path, sizeof(path), BY_LAB "/%s", serial);
		snprintf(target, sizeof(target), "/dev/%s", entry->d_name);
		symlink(target, path);
	}
	closedir(disks);
}

static const char *failed(const char *what, const char *on)
{
	snprintf(why, sizeof(why), "cannot %s %s: %s", what, on, strerror(errno));
	return why;
}

static bool find_disk(const char *path)
{
	for (int waited = 0; waited < DEVICE_WAIT_MS; waited += DEVICE_POLL_MS) {
		link_disks();
		if (!access(path, F_OK))
			return true;
		pause_ms(DEVICE_POLL_MS);
	}
	errno = ENODEV;
	return false;
}

/*
 * Make the ext4 disk of that serial the root, with /proc, /sys, /dev and the initramfs's /lab in
 * it. Returns NULL, or why not; then the initramfs is still the root.
 */
const char *enter_root(const char *serial)
{
	static const char *const moved[] = { "/proc", "/sys", "/dev" };
	char path[512];

	snprintf(path, sizeof(path), BY_LAB "/%s", serial);
	if (!find_disk(path))
		return failed("find the root disk", serial);
	mkdir(NEW_ROOT, 0755);
	if (mount(path, NEW_ROOT, "ext4", MS_NOATIME, NULL) &&
	    (errno != EACCES || mount(path, NEW_ROOT, "ext4", MS_RDONLY, NULL)))
		return failed("mount the root disk", serial);
	mkdir(NEW_ROOT "/lab", 0755);	/* may be there already */
	if (mount("/lab", NEW_ROOT "/lab", NULL, MS_BIND, NULL))
		return failed("bind /lab in the root", serial);
	for (size_t i = 0; i < sizeof(moved) / sizeof(*moved); i++) {
		snprintf(path, sizeof(path), NEW_ROOT "%s", moved[i]);
		mkdir(path, 0755);
		if (mount(moved[i], path, NULL, MS_MOVE, NULL))
			return failed("move into the root:", moved[i]);
	}
	if (chdir(NEW_ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		return failed("switch to the root disk", serial);
	mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
	mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	return NULL;
}

/*
 * A machine that begins from a snapshot has the time and the random pool of the moment when that
 * was taken, and shares them with all others that begin there.
 */
const char *renew(uint64_t realtime_ns, const void *seed, size_t size)
{
	struct timespec now = {
		.tv_sec = (time_t)(realtime_ns / 1000000000u),
		.tv_nsec = (long)(realtime_ns % 1000000000u),
	};
	struct {
		struct rand_pool_info info;
		unsigned char bytes[256];
	} pool = { .info = { .entropy_count = (int)size * 8, .buf_size = (int)size } };
	const char *failure = NULL;
	int fd;

	if (clock_settime(CLOCK_REALTIME, &now))
		return failed("set", "the clock");
	fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return failed("open", "/dev/urandom");
	memcpy(pool.info.buf, seed, size < sizeof(pool.bytes) ? size : sizeof(pool.bytes));
	/* The pool alone is not read again for minutes: the generator has to be told. */
	if (ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG))
		failure = failed("seed", "the random generator");
	close(fd);
	return failure;
}
