/* SPDX-License-Identifier: Apache-2.0
 *
 * A driver that has little: what a program must not find in it must not come
 * from the shim either.  It also looks for its own functions, as real ones do.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

#include "cuda.h"

CUresult cuInit(unsigned int flags)
{
	return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr pointer)
{
	return pointer ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* Whether lookups made by the driver find the driver. */
int finds_itself(void)
{
	void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
	Dl_info own, other;

	dladdr((void *)finds_itself, &own);
	return dladdr(dlsym(RTLD_DEFAULT, "cuInit"), &other) && other.dli_fbase == own.dli_fbase &&
	       dladdr(dlsym(self, "cuMemFree_v2"), &other) && other.dli_fbase == own.dli_fbase;
}
