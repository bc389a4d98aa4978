/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interface from before CUDA 3.2, where device pointers and sizes have 32
 * bits.  Old programs link to these names and drivers still export them.
 *
 * Memory that is asked for here lies below 4 GiB of this process's addresses;
 * when none is free there, that is out of memory.  A figure that needs more than
 * 32 bits reads as the largest that they can hold.
 */
#include "cuda_work.h"

static unsigned clamp(size_t value)
{
	return value > UINT32_MAX ? UINT32_MAX : (unsigned)value;
}

static CUresult alloc(CUdeviceptr_v1 *pointer, size_t bytes)
{
	CUdeviceptr wide;
	ENTER();
	CURRENT(context);
	if (!pointer || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	TRY(heap_alloc_low(context->heap, bytes, &wide));
	*pointer = (CUdeviceptr_v1)wide;
	return CUDA_SUCCESS;
}

API cuMemAlloc(CUdeviceptr_v1 *pointer, unsigned int bytes)
{
	return alloc(pointer, bytes);
}

API cuMemAllocPitch(CUdeviceptr_v1 *pointer, unsigned int *pitch, unsigned int width,
		    unsigned int height, unsigned int element_bytes)
{
	const size_t unit = 512;
	CHECK_READY();
	if (!pitch || !width || !height ||
	    (element_bytes != 4 && element_bytes != 8 && element_bytes != 16))
		return CUDA_ERROR_INVALID_VALUE;
	size_t row = (width + unit - 1) / unit * unit;
	if (row > UINT32_MAX || row * height > UINT32_MAX)
		return CUDA_ERROR_OUT_OF_MEMORY;
	TRY(alloc(pointer, row * height));
	*pitch = (unsigned)row;
	return CUDA_SUCCESS;
}

API cuMemFree(CUdeviceptr_v1 pointer)
{
	return cuMemFree_v2(pointer);
}

API cuMemGetInfo(unsigned int *available, unsigned int *total)
{
	size_t wide_available, wide_total;
	CHECK_READY();
	if (!available || !total)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(cuMemGetInfo_v2(&wide_available, &wide_total));
	*available = clamp(wide_available);
	*total = clamp(wide_total);
	return CUDA_SUCCESS;
}

API cuDeviceTotalMem(unsigned int *bytes, CUdevice device)
{
	size_t wide;
	CHECK_READY();
	if (!bytes)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(cuDeviceTotalMem_v2(&wide, device));
	*bytes = clamp(wide);
	return CUDA_SUCCESS;
}

API cuMemGetAddressRange(CUdeviceptr_v1 *base, unsigned int *size, CUdeviceptr_v1 pointer)
{
	struct allocation found;
	ENTER();
	CURRENT(context);
	(void)context;
	if (!find_allocation(pointer, &found))
		return CUDA_ERROR_NOT_FOUND;
	if (base)
		*base = (CUdeviceptr_v1)found.base;
	if (size)
		*size = clamp(found.size);
	return CUDA_SUCCESS;
}

/* ---- host memory ---- */

API cuMemAllocHost(void **pointer, unsigned int bytes)
{
	return cuMemAllocHost_v2(pointer, bytes);
}

API cuMemHostRegister(void *pointer, size_t bytes, unsigned int flags)
{
	return cuMemHostRegister_v2(pointer, bytes, flags);
}

/* ---- copies and fills ---- */

API cuMemcpyHtoD(CUdeviceptr_v1 to, const void *from, unsigned int bytes)
{
	return cuMemcpyHtoD_v2(to, from, bytes);
}

API cuMemcpyDtoH(void *to, CUdeviceptr_v1 from, unsigned int bytes)
{
	return cuMemcpyDtoH_v2(to, from, bytes);
}

API cuMemsetD8(CUdeviceptr_v1 to, unsigned char value, unsigned int count)
{
	return cuMemsetD8_v2(to, value, count);
}
