/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that belongs to a graph.
 *
 * An allocation node has its address from the moment it is made, and memory,
 * charged to the device, from its launch until a free node, or a client, frees
 * it.  The address stays the graph's.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "cuda_work.h"

CUresult graph_reserve(struct work *work)
{
	size_t size = (work->memory.bytes + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE;
	void *memory = map_memory(size);
	struct range *range = memory ? range_add(RANGE_DEVICE, (uintptr_t)memory, size) : NULL;
	if (!range) {
		if (memory)
			munmap(memory, size);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	range->device = work->memory.device;
	range->wanted = work->memory.bytes;
	range->flags = RANGE_OF_GRAPH;
	range->id = next_buffer_id();
	work->memory.pointer = (CUdeviceptr)range->base;
	return CUDA_SUCCESS;
}

void graph_unreserve(const struct work *work)
{
	struct range *range = range_at((uintptr_t)work->memory.pointer);
	if (!range || !(range->flags & RANGE_OF_GRAPH))
		return;
	graph_memory_free(range);
	munmap((void *)range->base, range->size);
	range_remove(range);
}

CUresult graph_memory_alloc(struct range *range)
{
	struct device *device = range->device;
	if (range->charged)
		return CUDA_ERROR_INVALID_VALUE; /* launched again before it was freed */
	if (sim_charge(device->number, driver.slot, range->size)) {
		pools_shrink(device);
		if (sim_charge(device->number, driver.slot, range->size))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	range->charged = range->size;
	device->graph_used += range->size;
	if (device->graph_used > device->graph_used_high)
		device->graph_used_high = device->graph_used;
	return CUDA_SUCCESS;
}

void graph_memory_free(struct range *range)
{
	if (!range->charged)
		return;
	sim_refund(range->device->number, driver.slot, range->charged);
	range->device->graph_used -= range->charged;
	range->charged = 0;
}

/* ---- public ---- */

API cuDeviceGetGraphMemAttribute(CUdevice ordinal, CUgraphMem_attribute attribute, void *value)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (!value || attribute > CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)
		return CUDA_ERROR_INVALID_VALUE;
	bool now = attribute == CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT ||
		   attribute == CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT;
	*(uint64_t *)value = now ? device->graph_used : device->graph_used_high;
	return CUDA_SUCCESS;
}

API cuDeviceSetGraphMemAttribute(CUdevice ordinal, CUgraphMem_attribute attribute, void *value)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (!value || *(uint64_t *)value ||
	    (attribute != CU_GRAPH_MEM_ATTR_USED_MEM_HIGH &&
	     attribute != CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH))
		return CUDA_ERROR_INVALID_VALUE;
	device->graph_used_high = device->graph_used;
	return CUDA_SUCCESS;
}

/* Nothing is kept beyond what is in use. */
API cuDeviceGraphMemTrim(CUdevice ordinal)
{
	struct device *device;
	ENTER();
	return device_of(ordinal, &device);
}
