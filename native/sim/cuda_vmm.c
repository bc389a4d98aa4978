/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtual memory management: physical memory and addresses, apart.
 *
 * Physical memory is a part of one file in memory, so that it can be mapped
 * several times.  It is charged when made and given back when neither a handle
 * nor a mapping is left, whichever goes last.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cuda_driver.h"

#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1U
#endif
#ifndef FALLOC_FL_KEEP_SIZE
#define FALLOC_FL_KEEP_SIZE 1
#define FALLOC_FL_PUNCH_HOLE 2
#endif

#define USAGE_TILE_POOL 1 /* made for sparse arrays */

struct physical {
	struct object object;
	struct device *device; /* NULL: host memory, not charged */
	CUmemAllocationProp properties;
	size_t size;
	uint64_t offset; /* in the file */
	unsigned handles, mappings;
};

struct reservation {
	struct reservation *next;
	uintptr_t base;
	size_t size;
};

static struct reservation *reservations;
static int file = -1;
static uint64_t file_size;

static int grow_file(uint64_t bytes, uint64_t *offset)
{
	if (file < 0)
		file = (int)syscall(SYS_memfd_create, "simulated-gpu", MFD_CLOEXEC);
	if (file < 0 || ftruncate(file, (off_t)(file_size + bytes)))
		return -1;
	*offset = file_size; /* never used again: what is freed becomes a hole */
	file_size += bytes;
	return 0;
}

static CUresult check_properties(const CUmemAllocationProp *properties, struct device **device)
{
	*device = NULL;
	if (!properties || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED)
		return CUDA_ERROR_INVALID_VALUE;
	if (properties->requestedHandleTypes)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE)
		return device_of(properties->location.id, device);
	if (properties->location.type < CU_MEM_LOCATION_TYPE_HOST ||
	    properties->location.type > CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_SUCCESS;
}

API cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *properties,
				  int option)
{
	struct device *device;
	ENTER();
	if (!granularity || option < 0 || option > 1)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(check_properties(properties, &device));
	*granularity = BLOCK_SIZE;
	return CUDA_SUCCESS;
}

/* Needs no context: clients call it on threads that have none. */
API cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
		const CUmemAllocationProp *properties, unsigned long long flags)
{
	struct device *device;
	ENTER();
	if (!handle || flags || !size || size % BLOCK_SIZE)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(check_properties(properties, &device));
	if (device && sim_charge(device->number, driver.slot, size)) {
		pools_shrink(device);
		if (sim_charge(device->number, driver.slot, size))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	struct physical *physical = object_new(OBJECT_PHYSICAL, NULL);
	if (!physical || grow_file(size, &physical->offset)) {
		if (device)
			sim_refund(device->number, driver.slot, size);
		if (physical)
			object_free(physical);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	physical->device = device;
	physical->properties = *properties;
	physical->size = size;
	physical->handles = 1;
	*handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
	return CUDA_SUCCESS;
}

static CUresult physical_of(CUmemGenericAllocationHandle handle, struct physical **physical)
{
	*physical = object_of((void *)(uintptr_t)handle, OBJECT_PHYSICAL);
	return *physical && (*physical)->handles ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static void free_if_unused(struct physical *physical)
{
	if (physical->handles || physical->mappings)
		return;
	fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)physical->offset,
		  (off_t)physical->size);
	if (physical->device)
		sim_refund(physical->device->number, driver.slot, physical->size);
	object_free(physical);
}

CUresult physical_hold(CUmemGenericAllocationHandle handle, uint64_t offset, uint64_t bytes,
		       const struct device *device, struct physical **physical)
{
	TRY(physical_of(handle, physical));
	if ((*physical)->device != device || offset > (*physical)->size ||
	    bytes > (*physical)->size - offset ||
	    !((*physical)->properties.allocFlags.usage & USAGE_TILE_POOL))
		return CUDA_ERROR_INVALID_VALUE;
	(*physical)->mappings++;
	return CUDA_SUCCESS;
}

void physical_hold_again(struct physical *physical)
{
	physical->mappings++;
}

void physical_let_go(struct physical *physical)
{
	physical->mappings--;
	free_if_unused(physical);
}

API cuMemRelease(CUmemGenericAllocationHandle handle)
{
	struct physical *physical;
	ENTER();
	TRY(physical_of(handle, &physical));
	physical->handles--;
	free_if_unused(physical);
	return CUDA_SUCCESS;
}

API cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
	ENTER();
	struct range *range = range_at((uintptr_t)address);
	if (!handle || !range || range->kind != RANGE_MAPPED)
		return CUDA_ERROR_INVALID_VALUE;
	struct physical *physical = range->detail;
	physical->handles++;
	*handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
	return CUDA_SUCCESS;
}

API cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *properties,
					   CUmemGenericAllocationHandle handle)
{
	struct physical *physical;
	ENTER();
	TRY(physical_of(handle, &physical));
	if (!properties)
		return CUDA_ERROR_INVALID_VALUE;
	*properties = physical->properties;
	return CUDA_SUCCESS;
}

/* ---- addresses ---- */

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
	if (mmap((void *)base, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
		 file, (off_t)physical->offset) == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	struct range *range = range_add(RANGE_MAPPED, base, size);
	if (!range)
		return CUDA_ERROR_OUT_OF_MEMORY;
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
		physical->mappings--;
		free_if_unused(physical);
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
		if (descriptions[0].flags)
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
