/* SPDX-License-Identifier: Apache-2.0
 *
 * The table through which nvidia-smi looks for functions that have no name.
 *
 * nvidia-smi takes a library that has no such table for one of another version
 * and stops.  Nothing public says what a driver's table holds, so ours holds
 * nothing: its first word is its size in bytes, as every table of this kind
 * begins, and each other word is a function that answers "not supported".
 * nvidia-smi then leaves out what it would have asked there, among it its list of
 * processes, and takes the rest from the public functions. */
#include <stdint.h>

#include "nvml_device.h"

enum { WORDS = 256 };

static int unsupported(void)
{
	return NVML_ERROR_NOT_SUPPORTED;
}

static const uintptr_t table_of_nothing[WORDS] = {
	[0] = sizeof(table_of_nothing),
	[1 ... WORDS - 1] = (uintptr_t)unsupported,
};

/* Like the vendor's, it can be had before nvmlInit.  The id says which table is
 * wanted; all are alike here. */
nvmlReturn_t nvmlInternalGetExportTable(const void **table, const void *id)
{
	if (!table || !id)
		return NVML_ERROR_INVALID_ARGUMENT;
	*table = table_of_nothing;
	return NVML_SUCCESS;
}
