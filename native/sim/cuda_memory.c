/* SPDX-License-Identifier: Apache-2.0 */
/* Allocating and freeing memory: device, managed and pinned host memory. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "cuda_work.h"

#define PITCH 512UL

/* A driver's own cost, where the machine has one to imitate. */
static void spend(void)
{
	uint64_t ns = driver.machine->knobs.alloc_cpu_ns;
	if (!ns)
		return;
	uint64_t end = sim_now() + ns;
	while (sim_now() < end)
		;
}

API cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
	ENTER();
	CURRENT(context);
	if (!pointer || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	spend();
	return heap_alloc(context->heap, RANGE_DEVICE, bytes, pointer);
}

API cuMemAllocPitch_v2(CUdeviceptr *pointer, size_t *pitch, size_t width, size_t height,
		       unsigned int element_bytes)
{
	size_t bytes, row;
	ENTER();
	CURRENT(context);
	if (!pointer || !pitch || !width || !height)
		return CUDA_ERROR_INVALID_VALUE;
	if (element_bytes != 4 && element_bytes != 8 && element_bytes != 16)
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	spend();
	if (__builtin_add_overflow(width, PITCH - 1, &row) ||
	    __builtin_mul_overflow(row / PITCH * PITCH, height, &bytes))
		return CUDA_ERROR_INVALID_VALUE;
	TRY(heap_alloc(context->heap, RANGE_DEVICE, bytes, pointer));
	*pitch = row / PITCH * PITCH;
	return CUDA_SUCCESS;
}

/* Charged as if it were all on the device, while there is room for that. */
API cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned int flags)
{
	ENTER();
	CURRENT(context);
	if (!pointer || !bytes || (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST))
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	spend();
	return heap_alloc(context->heap, RANGE_MANAGED, bytes, pointer);
}

static bool is_device_allocation(CUdeviceptr pointer, struct allocation *found)
{
	if (!find_allocation((uintptr_t)pointer, found) || found->base != (uintptr_t)pointer)
		return false;
	return found->range->kind == RANGE_BLOCK || found->range->kind == RANGE_DEVICE ||
	       found->range->kind == RANGE_MANAGED;
}

/* Memory may still be used by queued work: a free waits for that first. */
API cuMemFree_v2(CUdeviceptr pointer)
{
	struct allocation found;
	uint64_t served;
	ENTER();
	CURRENT(context);
	(void)context;
	if (!pointer)
		return CUDA_SUCCESS;
	UNSAFE();
	spend();
	if (!is_device_allocation(pointer, &found))
		return CUDA_ERROR_INVALID_VALUE;
	struct device *device = found.range->device;
	if (!driver.machine->knobs.null_mode) {
		wait_for(device, sim_enqueue(device->number, driver.slot, 0, 0, &served));
		if (!is_device_allocation(pointer, &found))
			return CUDA_ERROR_INVALID_VALUE;
	}
	allocation_free(&found);
	return CUDA_SUCCESS;
}

API cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr pointer)
{
	struct allocation found;
	ENTER();
	CURRENT(context);
	(void)context;
	if (!find_allocation((uintptr_t)pointer, &found))
		return CUDA_ERROR_NOT_FOUND;
	if (base)
		*base = (CUdeviceptr)found.base;
	if (size)
		*size = found.size;
	return CUDA_SUCCESS;
}

/* ---- host memory ---- */

static CUresult host_alloc(void **pointer, size_t bytes, unsigned flags)
{
	ENTER();
	CURRENT(context);
	if (!pointer || !bytes || flags > 7)
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	void *memory =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	struct range *range = range_add(RANGE_HOST, (uintptr_t)memory, bytes);
	if (!range) {
		munmap(memory, bytes);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	range->context = context;
	range->device = context->device;
	range->flags = flags | 2; /* always mapped: there is one address space */
	range->id = next_buffer_id();
	*pointer = memory;
	return CUDA_SUCCESS;
}

API cuMemHostAlloc(void **pointer, size_t bytes, unsigned int flags)
{
	return host_alloc(pointer, bytes, flags);
}

API cuMemAllocHost_v2(void **pointer, size_t bytes)
{
	return host_alloc(pointer, bytes, 0);
}

API cuMemFreeHost(void *pointer)
{
	ENTER();
	struct range *range = range_at((uintptr_t)pointer);
	if (!range || range->kind != RANGE_HOST || range->base != (uintptr_t)pointer)
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	munmap(pointer, range->size);
	range_remove(range);
	return CUDA_SUCCESS;
}

API cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned int flags)
{
	ENTER();
	CURRENT(context);
	if (!pointer || !bytes || flags > 15)
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	if (!range_free_between((uintptr_t)pointer, bytes))
		return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	struct range *range = range_add(RANGE_REGISTERED, (uintptr_t)pointer, bytes);
	if (!range)
		return CUDA_ERROR_OUT_OF_MEMORY;
	range->context = context;
	range->device = context->device;
	range->flags = flags;
	range->id = next_buffer_id();
	return CUDA_SUCCESS;
}

API cuMemHostUnregister(void *pointer)
{
	ENTER();
	struct range *range = range_at((uintptr_t)pointer);
	if (!pointer)
		return CUDA_ERROR_INVALID_VALUE;
	if (!range || range->kind != RANGE_REGISTERED || range->base != (uintptr_t)pointer)
		return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
	UNSAFE();
	range_remove(range);
	return CUDA_SUCCESS;
}

static struct range *host_range(const void *pointer)
{
	struct range *range = range_at((uintptr_t)pointer);
	return range && (range->kind == RANGE_HOST || range->kind == RANGE_REGISTERED) ? range
										       : NULL;
}

API cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *pointer, unsigned int flags)
{
	ENTER();
	if (!device || flags || !host_range(pointer))
		return CUDA_ERROR_INVALID_VALUE;
	*device = (CUdeviceptr)(uintptr_t)pointer;
	return CUDA_SUCCESS;
}

API cuMemHostGetFlags(unsigned int *flags, void *pointer)
{
	ENTER();
	const struct range *range = host_range(pointer);
	if (!flags || !range || range->kind != RANGE_HOST)
		return CUDA_ERROR_INVALID_VALUE;
	*flags = range->flags;
	return CUDA_SUCCESS;
}
