/* SPDX-License-Identifier: Apache-2.0
 *
 * A library that meets the driver as a statically linked CUDA runtime does: it
 * loads it, and asks cuGetProcAddress for every function that it may need.
 * With EAGER it does so in its constructor already.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

#include "cuda.h"
#include "nvml.h"

static const struct {
	const char *symbol, *base;
	int since;
	uint64_t flags;
} rows[] = {
#define INTERCEPT(library, symbol, base, since, flags, verb) {#symbol, base, since, flags},
#include "intercepts.def"
#undef INTERCEPT
};

static int is_of(const char *owner, const void *function)
{
	Dl_info info;

	return dladdr(function, &info) && strstr(info.dli_fname, owner);
}

/* Answers for functions of the table, by name and by version, that are not of `owner`. */
__attribute__((visibility("default"))) int strangers(const char *owner)
{
	void *driver = dlopen("libcuda.so.1", RTLD_NOW);
	__typeof__(&cuGetProcAddress_v2) resolve =
		driver ? (__typeof__(resolve))dlsym(driver, "cuGetProcAddress_v2") : NULL;
	CUdriverProcAddressQueryResult status;
	int count = 0;

	if (!resolve)
		return -1;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		void *found = NULL, *named = dlsym(driver, rows[i].symbol);

		count += named && !is_of(owner, named);
		if (!*rows[i].base ||
		    resolve(rows[i].base, &found, rows[i].since, rows[i].flags, &status) || !found)
			continue;
		count += !is_of(owner, found);
	}
	return count;
}

#ifdef EAGER
static int at_start = -1;

__attribute__((constructor)) static void begin(void)
{
	at_start = strangers(EAGER);
}

__attribute__((visibility("default"))) int strangers_at_start(void)
{
	return at_start;
}
#endif
