/* SPDX-License-Identifier: Apache-2.0
 *
 * The one way in which the shim speaks: a line on stderr, written at once.
 * No stdio, which may allocate or be in use; and no SIGPIPE, which would end a
 * program whose stderr nobody reads.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "say.h"

#define KERNEL_SIGSET_BYTES 8

/* The kernel's own calls: the wrappers live in libpthread on older libcs. */
static void write_without_sigpipe(const char *line, size_t length)
{
	uint64_t pipe_signal = 1ull << (SIGPIPE - 1), before = 0, pending = 0;
	struct timespec at_once = {0, 0};

	syscall(SYS_rt_sigpending, &pending, KERNEL_SIGSET_BYTES);
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &pipe_signal, &before, KERNEL_SIGSET_BYTES);
	if (write(STDERR_FILENO, line, length) < 0 && errno == EPIPE && !(pending & pipe_signal))
		syscall(SYS_rt_sigtimedwait, &pipe_signal, NULL, &at_once, KERNEL_SIGSET_BYTES);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, KERNEL_SIGSET_BYTES);
}

void vgpu_say(const char *const *texts)
{
	char line[1024] = "vgpu: ";
	size_t length = strlen(line);
	int error = errno;

	for (; *texts; texts++) {
		size_t more = strlen(*texts);

		if (more > sizeof(line) - 1 - length)
			more = sizeof(line) - 1 - length;
		memcpy(line + length, *texts, more);
		length += more;
	}
	line[length++] = '\n';
	write_without_sigpipe(line, length);
	errno = error;
}
