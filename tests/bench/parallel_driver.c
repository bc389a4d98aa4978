/* SPDX-License-Identifier: Apache-2.0
 *
 * A driver whose allocations never wait for each other: what threads lose to our
 * own code shows on it, and not what they lose to a lock of the simulated driver's.
 * It has one device, whose UUID is in $PARALLEL_UUID as 32 digits, and gives out
 * numbers for memory.
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#define DEVICE_BYTES (1ull << 37)
#define PIECE 512
#define PIECES (1u << 22) /* of one thread, before it begins anew */

static char something;

CUresult cuInit(unsigned int flags)
{
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
	*count = 1;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	*device = ordinal;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
	const char *digits = getenv("PARALLEL_UUID");

	for (int i = 0; i < 16; i++) {
		unsigned int byte;

		if (!digits || sscanf(digits + 2 * i, "%2x", &byte) != 1)
			return CUDA_ERROR_UNKNOWN;
		uuid->bytes[i] = (char)byte;
	}
	return CUDA_SUCCESS;
}

CUresult cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device)
{
	*context = (CUcontext)&something;
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	return cuCtxCreate_v2(context, 0, device);
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
	*context = (CUcontext)&something;
	return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context)
{
	return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
	return cuCtxGetCurrent(context);
}

CUresult cuCtxSetCurrent(CUcontext context)
{
	return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device)
{
	*device = 0;
	return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
	return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
	*module = (CUmodule)&something;
	return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
	*function = (CUfunction)&something;
	return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t *available, size_t *total)
{
	*available = *total = DEVICE_BYTES;
	return CUDA_SUCCESS;
}

/* Each thread has addresses of its own. */
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
	static __thread CUdeviceptr base;
	static __thread unsigned int given;
	static CUdeviceptr threads;

	if (!base)
		base = __atomic_add_fetch(&threads, 1, __ATOMIC_RELAXED) << 40;
	*pointer = base + (CUdeviceptr)(given++ % PIECES) * PIECE;
	return CUDA_SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr pointer)
{
	return CUDA_SUCCESS;
}

/* The rest of what the timing program looks up, which nobody calls here. */
#define ABSENT(symbol, parameters)                                                                 \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		return CUDA_ERROR_NOT_SUPPORTED;                                                   \
	}

ABSENT(cuCtxDestroy_v2, (CUcontext context))
ABSENT(cuMemAllocAsync, (CUdeviceptr * pointer, size_t bytes, CUstream stream))
ABSENT(cuMemFreeAsync, (CUdeviceptr pointer, CUstream stream))
ABSENT(cuLaunchKernel, (CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz,
			unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
			CUstream stream, void **arguments, void **extra))
