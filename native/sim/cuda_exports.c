/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every entry point of the driver, whether it is implemented or not.
 *
 * Each name of cuda_exports.def is defined here as a weak function that answers
 * "not supported"; an implementation elsewhere is an ordinary definition of the
 * same name and takes its place.  So the export table is complete by
 * construction, and nothing unimplemented can ever seem to succeed.
 *
 * The CUDA headers are not included: these definitions have no parameters.
 *
 * With VGPU_SIM_TRACE naming a file, the first call of each missing function is
 * written there with the library that called.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cuda_lookup.h"

#define NOT_SUPPORTED 801

static int not_supported(const char *name, int *said, void *caller)
{
	Dl_info from;
	const char *trace = getenv("VGPU_SIM_TRACE");
	if (!trace || __atomic_exchange_n(said, 1, __ATOMIC_RELAXED))
		return NOT_SUPPORTED;
	int file = open(trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
	if (file >= 0) {
		dprintf(file, "%s from %s\n", name, dladdr(caller, &from) ? from.dli_fname : "?");
		close(file);
	}
	return NOT_SUPPORTED;
}

#define EXPORT(symbol)                                                                             \
	__attribute__((weak, visibility("default"))) int symbol(void);                             \
	int symbol(void)                                                                           \
	{                                                                                          \
		static int said;                                                                   \
		return not_supported(#symbol, &said, __builtin_return_address(0));                 \
	}
#include "cuda_exports.def"

#define ABI(name, version, flags, symbol) {name, version, flags, #symbol, (void *)symbol},
const struct abi_row abi_rows[] = {
#include "cuda_exports.def"
};
const int abi_row_count = sizeof(abi_rows) / sizeof(abi_rows[0]);
