/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtual memory management: addresses, and what is mapped there.
 *
 * A mapping holds its physical memory (cuda_physical.c), so that unmapping may
 * be what frees it.  A multicast object can be mapped too, but only multimem
 * instructions use such addresses: copies are refused.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "cuda_physical.h"

struct reservation {
	struct reservation *next;
	uintptr_t base;
	size_t size;
};

static struct reservation *reservations;

API cuMemAddressReserve(CUdeviceptr *pointer, size_t size, size_t alignment, CUdeviceptr wanted,
			unsigned long long flags)
{
	ENTER();
	(void)wanted; /* a wish, which need not be met */
	if (!pointer || flags || !size || size % BLOCK_SIZE || alignment & (alignment - 1))
		return CUDA_ERROR_INVALID_VALUE;
	if (size > SIZE_MAX / 4 || alignment > SIZE_MAX / 4)
		return CUDA_ERROR_OUT_OF_MEMORY;
	size_t slack = alignment > BLOCK_SIZE ? alignment : BLOCK_SIZE;
	struct reservation *reservation = malloc(sizeof(*reservation));
	char *all = mmap(NULL, size + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			 -1, 0);
	if (!reservation || all == MAP_FAILED) {
		free(reservation);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	size_t before = (slack - (uintptr_t)all % slack) % slack;
	if (before)
		munmap(all, before);
	if (slack - before)
		munmap(all + before + size, slack - before);
	*reservation = (struct reservation){reservations, (uintptr_t)all + before, size};
	reservations = reservation;
	*pointer = (CUdeviceptr)reservation->base;
	return CUDA_SUCCESS;
}

static struct reservation *reservation_around(uintptr_t base, size_t size)
{
	for (struct reservation *r = reservations; r; r = r->next)
		if (base >= r->base && base - r->base < r->size &&
		    size <= r->size - (base - r->base))
			return r;
	return NULL;
}

API cuMemAddressFree(CUdeviceptr pointer, size_t size)
{
	ENTER();
	for (struct reservation **place = &reservations; *place; place = &(*place)->next) {
		struct reservation *found = *place;
		if (found->base != (uintptr_t)pointer || found->size != size)
			continue;
		if (!range_free_between(found->base, size))
			return CUDA_ERROR_INVALID_VALUE;
		munmap((void *)found->base, size);
		*place = found->next;
		free(found);
		return CUDA_SUCCESS;
	}
	return CUDA_ERROR_INVALID_VALUE;
}

API cuMemMap(CUdeviceptr pointer, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
	     unsigned long long flags)
{
	struct physical *physical;
	uintptr_t base = (uintptr_t)pointer;
	ENTER();
	TRY(physical_of(handle, &physical));
	if (flags || offset || !size || size % BLOCK_SIZE || base % BLOCK_SIZE ||
	    size > physical->size)
		return CUDA_ERROR_INVALID_VALUE;
	if (!reservation_around(base, size) || !range_free_between(base, size))
		return CUDA_ERROR_INVALID_VALUE;
	struct range *range = range_add(RANGE_MAPPED, base, size);
	if (!range)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (physical_map(physical, (void *)base, size)) {
		range_remove(range);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	range->detail = physical;
	range->device = physical->device;
	range->id = next_buffer_id();
	physical->mappings++;
	return CUDA_SUCCESS;
}

/* The whole of [pointer, pointer + size) must be mappings, none of them cut. */
static bool covers_mappings(uintptr_t base, size_t size)
{
	uintptr_t at = base;
	if (size > UINTPTR_MAX - base)
		return false;
	while (at < base + size) {
		const struct range *range = range_at(at);
		if (!range || range->kind != RANGE_MAPPED || range->base != at ||
		    range->size > base + size - at)
			return false;
		at += range->size;
	}
	return size > 0;
}

API cuMemUnmap(CUdeviceptr pointer, size_t size)
{
	uintptr_t base = (uintptr_t)pointer;
	ENTER();
	if (!covers_mappings(base, size))
		return CUDA_ERROR_INVALID_VALUE;
	for (uintptr_t at = base; at < base + size;) {
		struct range *range = range_at(at);
		struct physical *physical = range->detail;
		mmap((void *)at, range->size, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
		at += range->size;
		range_remove(range);
		physical_let_go(physical);
	}
	return CUDA_SUCCESS;
}

API cuMemSetAccess(CUdeviceptr pointer, size_t size, const CUmemAccessDesc *descriptions,
		   size_t count)
{
	uintptr_t base = (uintptr_t)pointer;
	ENTER();
	if (!descriptions || !count || !covers_mappings(base, size))
		return CUDA_ERROR_INVALID_VALUE;
	for (uintptr_t at = base; at < base + size;) {
		struct range *range = range_at(at);
		const struct physical *physical = range->detail;
		if (descriptions[0].flags && !physical->multicast)
			range->flags |= RANGE_ACCESSIBLE;
		else
			range->flags &= ~RANGE_ACCESSIBLE;
		at += range->size;
	}
	return CUDA_SUCCESS;
}

API cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr pointer)
{
	ENTER();
	const struct range *range = range_at((uintptr_t)pointer);
	if (!flags || !location || !range || range->kind != RANGE_MAPPED)
		return CUDA_ERROR_INVALID_VALUE;
	*flags = range->flags & RANGE_ACCESSIBLE ? 3 : 0;
	return CUDA_SUCCESS;
}
