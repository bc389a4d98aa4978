/* SPDX-License-Identifier: Apache-2.0
 *
 * Every name that libnvidia-ml.so.1 exports, as a weak function that answers
 * "not supported".
 *
 * A function that we implement is an ordinary, strong definition under its
 * public name in another file and takes this one's place when they are linked.
 * So the library exports what a driver exports, whatever we implement, and what
 * is missing can never look like a success.
 *
 * This file must not see nvml.h: its definitions have no parameters, which is
 * harmless in the C calling convention, and the true prototypes would contradict
 * them.
 *
 * VGPU_SIM_TRACE=FILE appends each missing function once, with the number of the
 * process that called it: the list of what a new client needs. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "nvml_state.h"

enum { UNINITIALIZED = 1, NOT_SUPPORTED = 3 };

static void trace(const char *symbol)
{
	const char *path = getenv("VGPU_SIM_TRACE");
	char line[128];
	int length, file;

	if (!path || !*path)
		return;
	file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
	if (file < 0)
		return;
	length = snprintf(line, sizeof(line), "%d %s\n", (int)getpid(), symbol);
	if (write(file, line, (size_t)length) != length) {
		/* A trace that cannot be written is no reason to disturb the program. */
	}
	close(file);
}

static int missing(const char *symbol, unsigned char *seen)
{
	if (!__atomic_exchange_n(seen, 1, __ATOMIC_RELAXED))
		trace(symbol);
	return nvml_ready() ? NOT_SUPPORTED : UNINITIALIZED;
}

#define EXPORT(symbol)                                                                             \
	__attribute__((weak, visibility("default"))) int symbol(void);                             \
	int symbol(void)                                                                           \
	{                                                                                          \
		static unsigned char seen;                                                         \
		return missing(#symbol, &seen);                                                    \
	}
#include "nvml_exports.def"
