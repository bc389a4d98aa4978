/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device memory: mappings of this process, charged to the device.
 *
 * A device pointer is an address of ours, so that copies move real bytes.  The
 * mappings are not reserved: 141 GiB fit while they are not touched, and fresh
 * memory reads zero.  The device counts in blocks of 2 MiB; requests below one
 * MiB share blocks, in units of 512 bytes.
 *
 * A context's heap gives a block back as soon as it is empty.  A pool's heap
 * keeps it, charged, until heap_release().
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda_share.h"
#include "cuda_work.h"

#define UNIT 512UL
#define UNITS (BLOCK_SIZE / UNIT)
#define SMALL (1UL << 20)
#define ATTEMPTS 8 /* open blocks tried before a new one is made */

/* How a block is divided: `length` at the first unit of an allocation. */
struct block {
	struct range *range;
	struct block *next, *before; /* among the open blocks of the heap */
	bool open;
	bool used_before; /* not fresh any more: clear what is given out */
	unsigned free_units;
	uint64_t busy[UNITS / 64];
	uint16_t length[UNITS];
};

uint64_t next_buffer_id(void)
{
	static uint64_t last;
	return ++last;
}

static void unlink_range(struct heap *heap, struct range *range)
{
	if (range->before)
		range->before->next = range->next;
	else
		heap->ranges = range->next;
	if (range->next)
		range->next->before = range->before;
}

/* Memory is charged before it exists.  Short of it, idle pools give theirs. */
CUresult heap_charge(struct heap *heap, size_t bytes)
{
	struct device *device = heap->device;
	if (!heap->host && sim_charge(device->number, driver.slot, bytes)) {
		pools_shrink(device);
		if (sim_charge(device->number, driver.slot, bytes))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	heap->charged += bytes;
	return CUDA_SUCCESS;
}

void heap_refund(struct heap *heap, size_t bytes)
{
	if (!heap->host)
		sim_refund(heap->device->number, driver.slot, bytes);
	heap->charged -= bytes;
}

static void link_range(struct heap *heap, struct range *range)
{
	range->heap = heap;
	range->context = heap->context;
	range->device = heap->device;
	range->id = next_buffer_id();
	range->next = heap->ranges;
	if (heap->ranges)
		heap->ranges->before = range;
	heap->ranges = range;
}

/* What is shared stays charged, to whoever holds it next. */
static void drop_range(struct range *range)
{
	struct heap *heap = range->heap;
	unlink_range(heap, range);
	munmap((void *)range->base, range->size);
	if (range->external) {
		external_release(range->external);
	} else if (range->shared) {
		share_drop(range->shared);
		heap->charged -= range->charged;
	} else if (range->charged) {
		heap_refund(heap, range->charged);
	}
	free(range->detail);
	range_remove(range);
}

static CUresult new_range(struct heap *heap, enum range_kind kind, size_t size,
			  void *(*map)(size_t), struct range **made)
{
	CUresult charged = heap_charge(heap, size);
	/* Managed memory beyond the device's stays on the host. */
	if (charged && kind != RANGE_MANAGED)
		return charged;
	void *memory = map(size);
	struct range *range = memory ? range_add(kind, (uintptr_t)memory, size) : NULL;
	if (!range) {
		if (memory)
			munmap(memory, size);
		if (!charged)
			heap_refund(heap, size);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	range->charged = charged ? 0 : size;
	link_range(heap, range);
	CUresult result = heap->shareable ? range_share(range) : CUDA_SUCCESS;
	if (result)
		drop_range(range);
	*made = range;
	return result;
}

struct range *heap_place(struct heap *heap, enum range_kind kind, void *memory, size_t size)
{
	struct range *range = range_add(kind, (uintptr_t)memory, size);
	if (range)
		link_range(heap, range);
	return range;
}

CUresult heap_adopt(struct heap *heap, enum range_kind kind, uint32_t shared, struct range **made)
{
	size_t size = share_entry(shared)->size;
	void *memory = map_memory(size);
	bool mapped = memory && !share_map(shared, memory, size);
	*made = mapped ? heap_place(heap, kind, memory, size) : NULL;
	if (!*made) {
		if (memory)
			munmap(memory, size);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	(*made)->shared = shared;
	return CUDA_SUCCESS;
}

void heap_forget(struct range *range)
{
	drop_range(range);
}

/* ---- blocks ---- */

static bool is_busy(const struct block *block, unsigned unit)
{
	return block->busy[unit / 64] >> (unit % 64) & 1;
}

static void mark(struct block *block, unsigned first, unsigned count, bool busy)
{
	for (unsigned unit = first; unit < first + count; unit++)
		if (busy)
			block->busy[unit / 64] |= 1ULL << (unit % 64);
		else
			block->busy[unit / 64] &= ~(1ULL << (unit % 64));
}

/* First place for `count` units in a row, or -1. */
static int find_units(const struct block *block, unsigned count)
{
	unsigned run = 0;
	for (unsigned unit = 0; unit < UNITS; unit++) {
		if (!run && unit % 64 == 0 && block->busy[unit / 64] == ~0ULL) {
			unit += 63;
			continue;
		}
		run = is_busy(block, unit) ? 0 : run + 1;
		if (run == count)
			return (int)(unit - count + 1);
	}
	return -1;
}

static struct block *first_open(const struct heap *heap)
{
	return heap->open ? heap->open->detail : NULL;
}

static void set_open(struct heap *heap, struct block *block, bool open)
{
	if (block->open == open)
		return;
	block->open = open;
	if (open) {
		block->before = NULL;
		block->next = first_open(heap);
		if (block->next)
			block->next->before = block;
		heap->open = block->range;
		return;
	}
	if (block->before)
		block->before->next = block->next;
	else
		heap->open = block->next ? block->next->range : NULL;
	if (block->next)
		block->next->before = block->before;
}

static CUresult new_block(struct heap *heap, struct block **made)
{
	struct range *range;
	struct block *block = calloc(1, sizeof(*block));
	if (!block)
		return CUDA_ERROR_OUT_OF_MEMORY;
	CUresult result = new_range(heap, RANGE_BLOCK, BLOCK_SIZE, map_memory, &range);
	if (result) {
		free(block);
		return result;
	}
	range->detail = block;
	block->range = range;
	block->free_units = UNITS;
	set_open(heap, block, true);
	*made = block;
	return CUDA_SUCCESS;
}

static CUresult alloc_small(struct heap *heap, size_t bytes, CUdeviceptr *pointer)
{
	unsigned units = (unsigned)((bytes + UNIT - 1) / UNIT);
	struct block *block = first_open(heap);
	int place = -1;
	for (int i = 0; block && i < ATTEMPTS; i++, block = block->next) {
		place = block->free_units >= units ? find_units(block, units) : -1;
		if (place >= 0)
			break;
	}
	if (place < 0) {
		TRY(new_block(heap, &block));
		place = 0;
	}
	mark(block, (unsigned)place, units, true);
	block->length[place] = (uint16_t)units;
	block->free_units -= units;
	heap->used += units * UNIT;
	if (!block->free_units)
		set_open(heap, block, false);
	char *memory = (char *)block->range->base + (size_t)place * UNIT;
	if (block->used_before && !driver.machine->knobs.null_mode)
		memset(memory, 0, units * UNIT);
	*pointer = (CUdeviceptr)(uintptr_t)memory;
	return CUDA_SUCCESS;
}

static void free_small(struct range *range, unsigned unit)
{
	struct block *block = range->detail;
	struct heap *heap = range->heap;
	unsigned units = block->length[unit];
	block->length[unit] = 0;
	mark(block, unit, units, false);
	block->free_units += units;
	block->used_before = true;
	heap->used -= units * UNIT;
	set_open(heap, block, true);
	/* In null mode the last block stays: mapping it again would be the cost. */
	if (block->free_units == UNITS && !heap->keeps_empty &&
	    !(driver.machine->knobs.null_mode && heap->open == range && !block->next)) {
		set_open(heap, block, false);
		drop_range(range);
	}
}

/* ---- whole ranges ---- */

/* A pool's free ranges have `wanted` 0; one not much too large is used again. */
static struct range *idle_range(struct heap *heap, size_t size)
{
	for (struct range *range = heap->ranges; range; range = range->next)
		if (range->kind == RANGE_DEVICE && !range->wanted && range->size >= size &&
		    range->size <= size + size / 4)
			return range;
	return NULL;
}

CUresult heap_alloc(struct heap *heap, enum range_kind kind, size_t bytes, CUdeviceptr *pointer)
{
	struct range *range = NULL;
	if (bytes > SIZE_MAX / 4)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (kind == RANGE_DEVICE && bytes <= SMALL)
		return alloc_small(heap, bytes, pointer);
	size_t size = (bytes + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE;
	if (heap->keeps_empty)
		range = idle_range(heap, size);
	if (!range)
		TRY(new_range(heap, kind, size, map_memory, &range));
	range->wanted = bytes;
	range->id = next_buffer_id();
	heap->used += range->size;
	*pointer = (CUdeviceptr)range->base;
	return CUDA_SUCCESS;
}

/* A range of its own, at an address of 32 bits. */
CUresult heap_alloc_low(struct heap *heap, size_t bytes, CUdeviceptr *pointer)
{
	struct range *range;
	size_t size = (bytes + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE;
	TRY(new_range(heap, RANGE_DEVICE, size, map_low_memory, &range));
	range->wanted = bytes;
	heap->used += range->size;
	*pointer = (CUdeviceptr)range->base;
	return CUDA_SUCCESS;
}

bool find_allocation(uintptr_t address, struct allocation *found)
{
	struct range *range = range_at(address);
	if (!range)
		return false;
	*found = (struct allocation){range, range->base + range->skip, range->wanted};
	if (range->kind != RANGE_BLOCK)
		return range->wanted && address - found->base < range->wanted;
	struct block *block = range->detail;
	unsigned unit = (unsigned)((address - range->base) / UNIT);
	if (!is_busy(block, unit))
		return false;
	while (!block->length[unit])
		unit--;
	found->base = range->base + unit * UNIT;
	found->size = block->length[unit] * UNIT;
	return true;
}

void heap_free(const struct allocation *allocation)
{
	struct range *range = allocation->range;
	if (range->flags & RANGE_OF_GRAPH) {
		graph_memory_free(range);
		return;
	}
	if (range->kind == RANGE_BLOCK) {
		free_small(range, (unsigned)((allocation->base - range->base) / UNIT));
		return;
	}
	range->heap->used -= range->size;
	if (!range->heap->keeps_empty) {
		drop_range(range);
		return;
	}
	/* The pool keeps it; what comes next finds it zero again. */
	if (madvise((void *)range->base, range->size, range->shared ? MADV_REMOVE : MADV_DONTNEED))
		memset((void *)range->base, 0, range->size);
	range->wanted = 0;
}

void heap_release(struct heap *heap, uint64_t keep)
{
	struct range *next;
	for (struct range *range = heap->ranges; range && heap->charged > keep; range = next) {
		struct block *block = range->detail;
		next = range->next;
		if (range->kind == RANGE_BLOCK && block->free_units == UNITS) {
			set_open(heap, block, false);
			drop_range(range);
		} else if (range->kind == RANGE_DEVICE && !range->wanted) {
			drop_range(range);
		}
	}
}

void heap_destroy(struct heap *heap)
{
	while (heap->ranges)
		drop_range(heap->ranges);
	heap->open = NULL;
	heap->used = 0;
}

bool memory_valid(CUdeviceptr address, size_t bytes)
{
	uintptr_t at = (uintptr_t)address, end = at + bytes;
	struct allocation allocation;
	if (end < at)
		return false;
	for (;;) {
		if (!find_allocation(at, &allocation))
			return at == end && at != (uintptr_t)address;
		at = allocation.base + allocation.size;
		if (end <= at)
			return allocation.range->kind != RANGE_MAPPED ||
			       allocation.range->flags & RANGE_ACCESSIBLE;
		/* Only mappings may continue one another. */
		if (allocation.range->kind != RANGE_MAPPED ||
		    !(allocation.range->flags & RANGE_ACCESSIBLE))
			return false;
	}
}
