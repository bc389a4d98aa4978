/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuGetProcAddress: from a name and a toolkit version to an entry point.
 *
 * What it returns is the exported symbol itself, never a copy or a trampoline
 * (unless a test asks for one): whoever compares it with dlsym()'s answer finds them equal, as with
 * the real driver.  Works before cuInit().
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda_driver.h"
#include "cuda_lookup.h"

#define PER_THREAD CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM
#define KNOWN_FLAGS (CU_GET_PROC_ADDRESS_LEGACY_STREAM | PER_THREAD)
#define NEWEST 13000 /* what we answer for when there is no machine to say */

/* A few instructions that go to a function. */
static void *make_jump(void *to)
{
#if defined(__x86_64__)
	unsigned char code[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* mov, jmp rax */
	memcpy(code + 2, &to, sizeof(to));
#elif defined(__aarch64__)
	unsigned char code[] = {0x50, 0, 0, 0x58, 0, 2, 0x1f, 0xd6, /* ldr x16, .+8; br x16 */
				0,    0, 0, 0,    0, 0, 0,    0};
	memcpy(code + 8, &to, sizeof(to));
#endif
	void *page = mmap(NULL, sizeof(code), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	if (page == MAP_FAILED)
		return NULL;
	memcpy(page, code, sizeof(code));
	mprotect(page, sizeof(code), PROT_READ | PROT_EXEC);
	__builtin___clear_cache((char *)page, (char *)page + sizeof(code));
	return page;
}

static int driver_version(void)
{
	const struct sim_machine *machine = sim_attach();
	return machine ? (int)machine->cuda_version : NEWEST;
}

API cuDriverGetVersion(int *version)
{
	if (!version)
		return CUDA_ERROR_INVALID_VALUE;
	*version = driver_version();
	return CUDA_SUCCESS;
}

/* An export that the machine's driver is described to be without. */
static bool lacks(const char *symbol)
{
	const struct sim_machine *machine = sim_attach();
	size_t length = strlen(symbol);
	for (const char *at = machine ? machine->lacks : NULL; at && *at; at = strchr(at, '\n'))
		if (!strncmp(++at, symbol, length) && (at[length] == '\n' || !at[length]))
			return true;
	return false;
}

/* With VGPU_SIM_TRAMPOLINE naming an export, its pointer is a jump to it: what
 * no real driver was ever seen to do, for those who check that it does not. */
static void *entry_of(const struct abi_row *row)
{
	static void *trampoline;
	const char *name = getenv("VGPU_SIM_TRAMPOLINE");
	if (!name || strcmp(name, row->symbol))
		return row->function;
	if (!trampoline)
		trampoline = make_jump(row->function);
	return trampoline ? trampoline : row->function;
}

static int first_row(const char *name)
{
	int low = 0, high = abi_row_count;
	while (low < high) {
		int middle = (low + high) / 2;
		if (strcmp(abi_rows[middle].name, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The newest row that is old enough; *known says if this driver has the name. */
static void *best_row(const char *name, int version, int flags, int newest, bool *known)
{
	const struct abi_row *best = NULL;
	*known = false;
	for (int i = first_row(name); i < abi_row_count && !strcmp(abi_rows[i].name, name); i++) {
		const struct abi_row *row = &abi_rows[i];
		if (row->flags != flags || row->version > newest || lacks(row->symbol))
			continue;
		*known = true;
		if (row->version <= version && (!best || row->version >= best->version))
			best = row;
	}
	return best ? entry_of(best) : NULL;
}

static void *look_up(const char *name, int version, uint64_t flags,
		     CUdriverProcAddressQueryResult *status)
{
	int newest = driver_version();
	bool known = false;
	void *found = NULL;
	if (flags & PER_THREAD)
		found = best_row(name, version, PER_THREAD, newest, &known);
	if (!known)
		found = best_row(name, version, 0, newest, &known);
	if (found)
		*status = CU_GET_PROC_ADDRESS_SUCCESS;
	else if (known)
		*status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
	else
		*status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	return found;
}

/* The real driver crashes here; a message makes a faulty caller easier to find. */
static void refuse_null(const char *symbol, void **function)
{
	if (symbol && function)
		return;
	fprintf(stderr, "simulated GPU: cuGetProcAddress was called with a null %s\n",
		symbol ? "function" : "symbol");
	abort();
}

API cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags,
			CUdriverProcAddressQueryResult *status)
{
	CUdriverProcAddressQueryResult result;
	refuse_null(symbol, function);
	if (flags & ~(uint64_t)KNOWN_FLAGS)
		return CUDA_ERROR_INVALID_VALUE;
	*function = look_up(symbol, version, flags, &result);
	if (status)
		*status = result;
	return CUDA_SUCCESS;
}

API cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags)
{
	CUdriverProcAddressQueryResult result;
	refuse_null(symbol, function);
	if (flags & ~(uint64_t)KNOWN_FLAGS)
		return CUDA_ERROR_INVALID_VALUE;
	void *found = look_up(symbol, version, flags, &result);
	if (!found)
		return CUDA_ERROR_NOT_FOUND;
	*function = found;
	return CUDA_SUCCESS;
}

/* Private tables are NVIDIA's own; we have none and imitate none. */
API cuGetExportTable(const void **table, const CUuuid *id)
{
	(void)table;
	(void)id;
	return CUDA_ERROR_INVALID_VALUE;
}
