/* SPDX-License-Identifier: Apache-2.0
 *
 * An interposer of somebody else's: it wraps a function of the libc and finds
 * the original as they do, by RTLD_NEXT.  A lookup that begins in the wrong
 * place finds the wrapper itself, and recurses to death.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

int atoi(const char *text)
{
	int (*next)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "atoi");

	if (next == atoi)
		abort();
	return next(text) + 1000;
}
