/* SPDX-License-Identifier: Apache-2.0
 *
 * A driver with one device, on which nothing can be measured: it launches, but
 * makes no events.
 */
#include <stddef.h>
#include <string.h>

#include "one_device.h"

CUresult cuCtxPushCurrent_v2(CUcontext pushed)
{
	return pushed ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuCtxPopCurrent_v2(CUcontext *popped)
{
	*popped = (CUcontext)&context;
	return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned int gx, unsigned int gy, unsigned int gz,
			unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
			CUstream stream, void **arguments, void **extra)
{
	return function ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
