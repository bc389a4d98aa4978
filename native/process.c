/* SPDX-License-Identifier: Apache-2.0
 *
 * Who a process is, as one word that outlives it: pids are used again, so the
 * start time is part of it; pids of another namespace mean nothing here, so a
 * tag of the namespace is too.  exec keeps all of these, and only the random
 * bytes that the kernel hands each new image tell two images apart.
 *
 * "Gone" is said only on proof.  Where procfs is missing or descriptors are
 * exhausted, a process counts as alive: memory stays charged a little longer.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi.h"

#define PID_BITS 22 /* Linux: pid_max is at most 2^22 */
#define TAG_BITS 10
#define PID_MASK ((1u << PID_BITS) - 1)
#define TAG_MASK ((1u << TAG_BITS) - 1)

uint64_t vgpu_owner(uint32_t pid, uint64_t start_ticks, uint64_t pid_namespace)
{
	return start_ticks << (PID_BITS + TAG_BITS) | (pid_namespace & TAG_MASK) << PID_BITS |
	       (pid & PID_MASK);
}

uint32_t vgpu_owner_pid(uint64_t owner)
{
	return (uint32_t)owner & PID_MASK;
}

/* "/proc/<pid>/stat" without stdio, which may allocate or lock. */
static void stat_path(uint32_t pid, char *path)
{
	char digits[10];
	int n = 0;

	memcpy(path, "/proc/", 6);
	path += 6;
	do
		digits[n++] = (char)('0' + pid % 10);
	while (pid /= 10);
	while (n)
		*path++ = digits[--n];
	memcpy(path, "/stat", 6);
}

struct process_stat {
	char state;
	uint64_t threads;
	uint64_t start_ticks;
};

/* Fields 3, 20 and 22 of proc_pid_stat(5); the name before them is in
 * parentheses and may itself hold any character, so the last one counts. */
static int read_stat(uint32_t pid, struct process_stat *stat)
{
	char path[32], text[1024], *at;
	ssize_t size;
	int fd, field = 3;

	stat_path(pid, path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (size <= 0)
		return -1;
	text[size] = 0;
	at = strrchr(text, ')');
	if (!at || !at[1])
		return -1;
	stat->state = at[2];
	for (at += 2; at && field < 20; field++)
		at = strchr(at + 1, ' ');
	if (!at)
		return -1;
	stat->threads = strtoull(at, &at, 10);
	strtoull(at, &at, 10);
	stat->start_ticks = strtoull(at, &at, 10);
	return 0;
}

static uint64_t own_namespace(void)
{
	struct stat status;

	return stat("/proc/self/ns/pid", &status) ? 0 : status.st_ino;
}

uint64_t vgpu_owner_of(uint32_t pid)
{
	struct process_stat stat;

	if (!pid || read_stat(pid, &stat))
		return 0;
	return vgpu_owner(pid, stat.start_ticks, own_namespace());
}

uint64_t vgpu_owner_self(uint64_t *pid_namespace)
{
	uint32_t pid = (uint32_t)syscall(SYS_getpid);
	struct process_stat stat = {0};

	*pid_namespace = own_namespace();
	if (read_stat(pid, &stat))
		stat.start_ticks = 0; /* no procfs: others ask the kernel for the pid alone */
	return vgpu_owner(pid, stat.start_ticks, *pid_namespace);
}

uint64_t vgpu_image_self(void)
{
	const char *random = (const char *)getauxval(AT_RANDOM);
	uint64_t image = 0;

	if (random)
		memcpy(&image, random + 8, sizeof(image)); /* the first 8 are the stack guard */
	return image | 1;
}

int vgpu_process_is_gone(uint64_t owner, uint64_t pid_namespace)
{
	uint64_t here = own_namespace(), ticks = owner >> (PID_BITS + TAG_BITS);
	uint32_t pid = vgpu_owner_pid(owner);
	struct process_stat stat;

	if ((owner >> PID_BITS & TAG_MASK) != (here & TAG_MASK) ||
	    (pid_namespace && pid_namespace != here))
		return 0;
	/* Nobody has pid 0, and to ask for it would be to ask for ourselves. */
	if (!pid || (kill((pid_t)pid, 0) && errno == ESRCH))
		return 1;
	if (!ticks || read_stat(pid, &stat))
		return 0;
	/* A zombie leader with threads left is a process that still runs. */
	if ((stat.state == 'Z' || stat.state == 'X') && stat.threads <= 1)
		return 1;
	return (uint32_t)stat.start_ticks != (uint32_t)ticks;
}
