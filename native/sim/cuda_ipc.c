/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of another process by a handle of 64 bytes, which travels as the
 * client likes.
 *
 * A handle keeps nothing alive: the memory is there while the process that
 * allocated it, or one that opened it, has it.  Small allocations share a block,
 * and the block is what is shared; opening it again gives the same addresses and
 * counts.
 */
#include <string.h>

#include "cuda_share.h"

#define MAGIC 0x76677075697063ULL

struct ipc {
	uint64_t magic;
	uint64_t generation; /* of the shared thing */
	uint64_t process;    /* generation of the exporter's slot */
	uint64_t offset;     /* of the allocation in it */
	uint32_t number;
	int32_t slot;
};

_Static_assert(sizeof(struct ipc) <= sizeof(CUipcMemHandle), "it fits a handle");

API cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr pointer)
{
	struct allocation found;
	ENTER();
	CURRENT(context);
	(void)context;
	if (!handle || !find_allocation((uintptr_t)pointer, &found))
		return CUDA_ERROR_INVALID_VALUE;
	struct range *range = found.range;
	if ((range->kind != RANGE_BLOCK && range->kind != RANGE_DEVICE) || range->heap == NULL ||
	    range->heap->pool || range->external || range->flags & RANGE_OF_GRAPH)
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	TRY(range_share(range));
	const struct ipc ipc = {
		.magic = MAGIC,
		.generation = share_entry(range->shared)->generation,
		.process = driver.machine->processes[driver.slot].generation,
		.offset = found.base - range->base,
		.number = range->shared - 1,
		.slot = driver.slot,
	};
	memset(handle, 0, sizeof(*handle));
	memcpy(handle, &ipc, sizeof(ipc));
	return CUDA_SUCCESS;
}

static struct range *opened_in(const struct context *context, uint32_t shared)
{
	for (struct range *range = context->heap->ranges; range; range = range->next)
		if (range->kind == RANGE_IMPORTED && range->shared == shared)
			return range;
	return NULL;
}

/* The memory goes when the exporter frees it, unless somebody has it open. */
static bool exporter_lives(const struct ipc *ipc)
{
	return ipc->slot >= 0 && ipc->slot < SIM_PROCESSES &&
	       driver.machine->processes[ipc->slot].generation == ipc->process;
}

static CUresult open_new(struct context *context, const struct ipc *ipc, struct range **made)
{
	uint32_t shared;
	if (share_hold((int)ipc->number, ipc->generation, &shared))
		return CUDA_ERROR_MAP_FAILED; /* it is gone */
	struct device *device = device_numbered(share_entry(shared)->device);
	CUresult result = device ? heap_adopt(context->heap, RANGE_IMPORTED, shared, made)
				 : CUDA_ERROR_MAP_FAILED;
	if (result) {
		share_drop(shared);
		return result;
	}
	(*made)->wanted = (*made)->size;
	(*made)->device = device;
	return CUDA_SUCCESS;
}

static CUresult open_handle(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned flags)
{
	struct ipc ipc;
	ENTER();
	CURRENT(context);
	memcpy(&ipc, &handle, sizeof(ipc));
	if (!pointer || flags > 1)
		return CUDA_ERROR_INVALID_VALUE;
	if (ipc.magic != MAGIC || ipc.number >= SIM_SHARED)
		return CUDA_ERROR_INVALID_HANDLE;
	if (ipc.slot == driver.slot && exporter_lives(&ipc))
		return CUDA_ERROR_INVALID_CONTEXT; /* a process cannot open its own */
	UNSAFE();
	struct range *range = opened_in(context, ipc.number + 1);
	if (!range || share_entry(range->shared)->generation != ipc.generation)
		TRY(open_new(context, &ipc, &range));
	range->opened++;
	*pointer = (CUdeviceptr)(range->base + ipc.offset);
	return CUDA_SUCCESS;
}

API cuIpcOpenMemHandle(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags)
{
	return open_handle(pointer, handle, flags);
}

API cuIpcOpenMemHandle_v2(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags)
{
	return open_handle(pointer, handle, flags);
}

API cuIpcCloseMemHandle(CUdeviceptr pointer)
{
	uint64_t served;
	ENTER();
	CURRENT(context);
	(void)context;
	struct range *range = range_at((uintptr_t)pointer);
	if (!range || range->kind != RANGE_IMPORTED)
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	if (!driver.machine->knobs.null_mode) {
		struct device *device = range->device;
		wait_for(device, sim_enqueue(device->number, driver.slot, 0, 0, &served));
		range = range_at((uintptr_t)pointer);
		if (!range || range->kind != RANGE_IMPORTED)
			return CUDA_ERROR_INVALID_VALUE;
	}
	if (!--range->opened)
		heap_forget(range);
	return CUDA_SUCCESS;
}
