/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that belongs to a graph.
 *
 * An allocation node has its address from the moment it is made, and memory from
 * its launch until a free node, or a client, frees it.  The address stays the
 * graph's.  The memory behind it is the device's stock: charged when a launch, or
 * an upload, needs more than there is, shared by all graphs, since all work of a
 * process on a device is one sequence, and kept until it is trimmed.  A graph has
 * its memory mapped from then on too, which is what "used" means here.
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

static uint64_t higher(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* What is mapped by some graph; graphs share. */
static uint64_t mapped(const struct device *device)
{
	return device->graph_mapped < device->graph_reserved ? device->graph_mapped
							     : device->graph_reserved;
}

static void set_mapped(struct range *range, bool is_mapped)
{
	bool was_mapped = range->flags & RANGE_IN_STOCK;
	if (is_mapped == was_mapped)
		return;
	range->flags ^= RANGE_IN_STOCK;
	range->device->graph_mapped += is_mapped ? range->size : -range->size;
}

static CUresult stock_up(struct device *device, uint64_t bytes)
{
	if (bytes <= device->graph_reserved)
		return CUDA_SUCCESS;
	uint64_t more = bytes - device->graph_reserved;
	if (sim_charge(device->number, driver.slot, more)) {
		pools_shrink(device);
		if (sim_charge(device->number, driver.slot, more))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	device->graph_reserved = bytes;
	device->graph_reserved_high = higher(device->graph_reserved_high, bytes);
	return CUDA_SUCCESS;
}

static void note_mapped(struct range *range)
{
	set_mapped(range, true);
	range->device->graph_used_high =
		higher(range->device->graph_used_high, mapped(range->device));
}

void graph_unreserve(const struct work *work)
{
	struct range *range = range_at((uintptr_t)work->memory.pointer);
	if (!range || !(range->flags & RANGE_OF_GRAPH))
		return;
	graph_memory_free(range);
	set_mapped(range, false);
	munmap((void *)range->base, range->size);
	range_remove(range);
}

CUresult graph_memory_alloc(struct range *range)
{
	struct device *device = range->device;
	if (range->charged)
		return CUDA_ERROR_INVALID_VALUE; /* launched again before it was freed */
	TRY(stock_up(device, device->graph_live + range->size));
	range->charged = range->size;
	device->graph_live += range->size;
	note_mapped(range);
	return CUDA_SUCCESS;
}

void graph_memory_free(struct range *range)
{
	struct device *device = range->device;
	uint64_t served;
	if (!range->charged)
		return;
	device->graph_live -= range->charged;
	range->charged = 0;
	device->graph_target = sim_enqueue(device->number, driver.slot, 0, 0, &served);
}

/* Of a step that allocates or frees memory of the graph's; NULL else. */
static struct range *range_of_step(const struct step *step)
{
	if (step->work.type != CU_GRAPH_NODE_TYPE_MEM_ALLOC &&
	    step->work.type != CU_GRAPH_NODE_TYPE_MEM_FREE)
		return NULL;
	struct range *range = range_at((uintptr_t)step->work.memory.pointer);
	return range && range->flags & RANGE_OF_GRAPH ? range : NULL;
}

CUresult graph_memory_bring(const struct exec *exec)
{
	uint64_t now[SIM_DEVICES], peak[SIM_DEVICES];
	for (int i = 0; i < driver.device_count; i++)
		now[i] = peak[i] = driver.devices[i].graph_live;
	for (size_t i = 0; i < exec->count; i++) {
		const struct work *work = &exec->steps[i].work;
		struct range *range = range_of_step(&exec->steps[i]);
		if (!range)
			continue;
		int device = range->device->ordinal;
		if (work->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC && !range->charged) {
			now[device] += range->size;
			peak[device] = higher(peak[device], now[device]);
		} else if (work->type == CU_GRAPH_NODE_TYPE_MEM_FREE) {
			now[device] -= range->size;
		}
	}
	for (int i = 0; i < driver.device_count; i++)
		TRY(stock_up(&driver.devices[i], peak[i]));
	for (size_t i = 0; i < exec->count; i++)
		if (range_of_step(&exec->steps[i]))
			note_mapped(range_of_step(&exec->steps[i]));
	return CUDA_SUCCESS;
}

/* `all`: of the device; else what no graph holds. */
static void let_go(struct device *device, bool all)
{
	struct range *next;
	for (struct range *range = range_next(0); range; range = next) {
		next = range_next(range->base + range->size);
		if (!(range->flags & RANGE_OF_GRAPH) || range->device != device ||
		    (range->charged && !all))
			continue;
		set_mapped(range, false);
		range->charged = 0;
	}
	if (all)
		device->graph_live = 0;
	sim_refund(device->number, driver.slot, device->graph_reserved - device->graph_live);
	device->graph_reserved = device->graph_live;
}

void graph_memory_end(struct device *device)
{
	let_go(device, true);
}

/* ---- public ---- */

API cuDeviceGetGraphMemAttribute(CUdevice ordinal, CUgraphMem_attribute attribute, void *value)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (!value || attribute > CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)
		return CUDA_ERROR_INVALID_VALUE;
	const uint64_t values[] = {
		[CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT] = mapped(device),
		[CU_GRAPH_MEM_ATTR_USED_MEM_HIGH] = device->graph_used_high,
		[CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT] = device->graph_reserved,
		[CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH] = device->graph_reserved_high,
	};
	*(uint64_t *)value = values[attribute];
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
	if (attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)
		device->graph_used_high = mapped(device);
	else
		device->graph_reserved_high = device->graph_reserved;
	return CUDA_SUCCESS;
}

/* What work that is not done still needs stays. */
API cuDeviceGraphMemTrim(CUdevice ordinal)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (device->graph_target <= sim_served(device->number, driver.slot))
		let_go(device, false);
	return CUDA_SUCCESS;
}
