/* SPDX-License-Identifier: Apache-2.0
 *
 * Somebody else's interposer of dlsym: it counts the lookups and answers one
 * name itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

#if defined(__x86_64__)
#define BASE_VERSION "GLIBC_2.2.5"
#else
#define BASE_VERSION "GLIBC_2.17"
#endif

static int lookups;

__attribute__((visibility("default"))) int interposed_lookups(void)
{
	return lookups;
}

__attribute__((visibility("default"))) void *dlsym(void *handle, const char *name)
{
	static void *(*next)(void *, const char *);

	if (!next)
		next = (__typeof__(next))dlvsym(RTLD_NEXT, "dlsym", BASE_VERSION);
	__atomic_fetch_add(&lookups, 1, __ATOMIC_RELAXED);
	if (!strcmp(name, "answered_by_the_interposer"))
		return (void *)interposed_lookups;
	return next(handle, name);
}
