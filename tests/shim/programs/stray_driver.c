/* SPDX-License-Identifier: Apache-2.0
 *
 * A driver with one device whose cuGetProcAddress does not always hand out its
 * exports: of some functions it hands out a trampoline, another one for each
 * version asked for, and one function it has by that way alone.  Allocations
 * are numbers that tell which entry made them.
 */
#include <stddef.h>
#include <string.h>

#include "one_device.h"

#define NEW_ABI 13000 /* from this version on a name means another function */

CUresult cuStreamGetCtx(CUstream stream, CUcontext *current)
{
	return cuCtxGetCurrent(current);
}

CUresult cuStreamGetCtx_ptsz(CUstream stream, CUcontext *current)
{
	return cuCtxGetCurrent(current);
}

#define MAKES(pointer, number) (*(pointer) = (number), CUDA_SUCCESS)

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
	return MAKES(pointer, 0x1000000 + bytes);
}

/* What a later toolkit may bring: a name that nobody knows yet, with an ABI of its own. */
CUresult cuMemAlloc_v9(CUdeviceptr *pointer, size_t bytes, int wish)
{
	return MAKES(pointer, 0x9000000 + (unsigned int)wish);
}

CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return MAKES(pointer, 0x2000000 + bytes);
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return MAKES(pointer, 0x3000000 + bytes);
}

static CUresult trampoline_alloc(CUdeviceptr *pointer, size_t bytes)
{
	return cuMemAlloc_v2(pointer, bytes);
}

static CUresult trampoline_alloc_later(CUdeviceptr *pointer, size_t bytes)
{
	return cuMemAlloc_v2(pointer, bytes);
}

static CUresult trampoline_async(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return cuMemAllocAsync(pointer, bytes, stream);
}

static CUresult trampoline_async_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return cuMemAllocAsync_ptsz(pointer, bytes, stream);
}

/* No export has this one. */
static CUresult managed(CUdeviceptr *pointer, size_t bytes, unsigned int flags)
{
	return MAKES(pointer, 0x4000000 + bytes);
}

CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags,
			     CUdriverProcAddressQueryResult *status)
{
	*function = NULL;
	if (!strcmp(symbol, "cuMemAlloc") && version >= 3020)
		*function = version >= NEW_ABI ? (void *)cuMemAlloc_v9
			    : version >= 11000 ? (void *)trampoline_alloc_later
					       : (void *)trampoline_alloc;
	else if (!strcmp(symbol, "cuMemAllocAsync") && version >= 11020)
		*function = flags & 2 ? (void *)trampoline_async_ptsz : (void *)trampoline_async;
	else if (!strcmp(symbol, "cuMemAllocManaged") && version >= 6000)
		*function = (void *)managed;
	else if (!strcmp(symbol, "cuInit"))
		*function = (void *)cuInit;
	if (status)
		*status = *function ? CU_GET_PROC_ADDRESS_SUCCESS
				    : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	return CUDA_SUCCESS;
}
