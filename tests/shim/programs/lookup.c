/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints, for each function of the table, whose code a door leads to:
 *
 *	lookup DOOR	"symbol library" a line; "-" when the door has nothing
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "cuda.h"
#include "nvml.h"

struct row {
	const char *symbol, *base, *library;
	int since;
	uint64_t flags;
	void *linked;
};

/* Weak: a driver may lack one. */
#define INTERCEPT(library, symbol, base, since, flags, verb)                                       \
	extern __typeof__(symbol) symbol __attribute__((weak));
#include "intercepts.def"
#undef INTERCEPT

#define FILE_CUDA "libcuda.so.1"
#define FILE_NVML "libnvidia-ml.so.1"

static const struct row rows[] = {
#define INTERCEPT(library, symbol, base, since, flags, verb)                                       \
	{#symbol, base, FILE_##library, since, flags, (void *)symbol},
#include "intercepts.def"
#undef INTERCEPT
};

static void *by_linking(const struct row *row)
{
	return row->linked;
}

static void *by_handle(const struct row *row)
{
	void *handle = dlopen(row->library, RTLD_NOW | RTLD_LOCAL);

	return handle ? dlsym(handle, row->symbol) : NULL;
}

static void *by_whole_program(const struct row *row)
{
	return dlsym(dlopen(NULL, RTLD_NOW), row->symbol);
}

static void *by_default(const struct row *row)
{
	return dlsym(RTLD_DEFAULT, row->symbol);
}

static void *by_next(const struct row *row)
{
	return dlsym(RTLD_NEXT, row->symbol);
}

static void *by_resolver(const struct row *row, const char *resolver)
{
	void *handle = dlopen(FILE_CUDA, RTLD_NOW | RTLD_LOCAL), *found = NULL;
	void *resolve = handle && *row->base ? dlsym(handle, resolver) : NULL;
	CUdriverProcAddressQueryResult status;
	CUresult rc = CUDA_ERROR_NOT_FOUND;

	if (!resolve)
		return NULL;
	if (!strcmp(resolver, "cuGetProcAddress"))
		rc = ((__typeof__(&cuGetProcAddress))resolve)(row->base, &found, row->since,
							      row->flags);
	else
		rc = ((__typeof__(&cuGetProcAddress_v2))resolve)(row->base, &found, row->since,
								 row->flags, &status);
	return rc ? NULL : found;
}

static void *by_v1(const struct row *row)
{
	return by_resolver(row, "cuGetProcAddress");
}

static void *by_v2(const struct row *row)
{
	return by_resolver(row, "cuGetProcAddress_v2");
}

static const struct {
	const char *name;
	void *(*open)(const struct row *);
} doors[] = {
	{"link", by_linking},
	{"dlsym", by_handle},
	{"RTLD_DEFAULT", by_default},
	{"RTLD_NEXT", by_next},
	{"whole-program", by_whole_program},
	{"cuGetProcAddress", by_v1},
	{"cuGetProcAddress_v2", by_v2},
};

int main(int argc, char **argv)
{
	for (size_t d = 0; argc == 2 && d < sizeof(doors) / sizeof(doors[0]); d++) {
		if (strcmp(doors[d].name, argv[1]))
			continue;
		for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
			void *address = doors[d].open(&rows[i]);
			Dl_info info = {0};

			if (address)
				dladdr(address, &info);
			printf("%s %s\n", rows[i].symbol,
			       info.dli_fname ? strrchr(info.dli_fname, '/') + 1 : "-");
		}
		return 0;
	}
	return 2;
}
