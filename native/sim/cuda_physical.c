/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Physical memory, apart from any address.
 *
 * It is charged when made and given back when neither a handle nor a mapping is
 * left, whichever goes last.  Memory that may be exported is shared memory of
 * the machine, where handles and mappings of other processes and descriptors
 * under way count as well; other memory is a part of one file of this process.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cuda_physical.h"

#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1U
#endif
#ifndef FALLOC_FL_KEEP_SIZE
#define FALLOC_FL_KEEP_SIZE 1
#define FALLOC_FL_PUNCH_HOLE 2
#endif

#define USAGE_TILE_POOL 1 /* made for sparse arrays */

_Static_assert(sizeof(struct physical) <= 256, "an object fits a cell");
_Static_assert(sizeof(CUmemAllocationProp) <= SIM_NOTE, "an importer reads them in the note");

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
	if (properties->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
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

struct physical *physical_new(size_t size)
{
	struct physical *physical = object_new(OBJECT_PHYSICAL, NULL);
	if (physical) {
		physical->size = size;
		physical->handles = 1;
	}
	return physical;
}

/* Where its bytes are: among the shared things, or in this process's file. */
static CUresult place(struct physical *physical)
{
	struct sim_shared wanted = {
		.kind = SIM_SHARED_MEMORY,
		.device = physical->device ? physical->device->number : SIM_DEVICES,
		.size = physical->size,
	};
	if (!physical->properties.requestedHandleTypes)
		return grow_file(physical->size, &physical->offset) ? CUDA_ERROR_OUT_OF_MEMORY
								    : CUDA_SUCCESS;
	memcpy(wanted.note, &physical->properties, sizeof(physical->properties));
	return share_make(&wanted, &physical->shared);
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
	struct physical *physical = physical_new(size);
	if (physical) {
		physical->device = device;
		physical->properties = *properties;
	}
	CUresult result = physical ? place(physical) : CUDA_ERROR_OUT_OF_MEMORY;
	if (result) {
		if (device)
			sim_refund(device->number, driver.slot, size);
		if (physical)
			object_free(physical);
		return result;
	}
	*handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
	return CUDA_SUCCESS;
}

CUresult physical_of(CUmemGenericAllocationHandle handle, struct physical **physical)
{
	*physical = object_of((void *)(uintptr_t)handle, OBJECT_PHYSICAL);
	return *physical && (*physical)->handles ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult physical_map(const struct physical *physical, void *at, size_t size)
{
	if (physical->multicast)
		return CUDA_SUCCESS; /* the reservation stays as it is: without access */
	if (physical->shared)
		return share_map(physical->shared, at, size);
	void *mapped = mmap(at, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file, (off_t)physical->offset);
	return mapped == MAP_FAILED ? CUDA_ERROR_MAP_FAILED : CUDA_SUCCESS;
}

static void free_if_unused(struct physical *physical)
{
	if (physical->handles || physical->mappings)
		return;
	if (physical->multicast)
		multicast_free(physical->multicast);
	if (physical->shared) {
		share_drop(physical->shared);
	} else if (!physical->multicast) {
		fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)physical->offset,
			  (off_t)physical->size);
		if (physical->device)
			sim_refund(physical->device->number, driver.slot, physical->size);
	}
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

/* ---- handles ---- */

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
	if (!properties || physical->multicast)
		return CUDA_ERROR_INVALID_VALUE;
	*properties = physical->properties;
	return CUDA_SUCCESS;
}

/* ---- other processes ---- */

API cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
				 CUmemAllocationHandleType type, unsigned long long flags)
{
	struct physical *physical;
	ENTER();
	TRY(physical_of(handle, &physical));
	if (!shareable || flags || !physical->shared ||
	    type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	return share_export(physical->shared, shareable);
}

/* What it was made with, but for the number that its device has here. */
static CUresult describe_import(struct physical *physical)
{
	const struct sim_shared *entry = share_entry(physical->shared);
	physical->size = entry->size;
	memcpy(&physical->properties, entry->note, sizeof(physical->properties));
	if (entry->device == SIM_DEVICES)
		return CUDA_SUCCESS;
	physical->device = device_numbered(entry->device);
	if (!physical->device)
		return CUDA_ERROR_INVALID_DEVICE;
	physical->properties.location.id = physical->device->ordinal;
	return CUDA_SUCCESS;
}

/* Each import is a handle of its own, and wants a release of its own. */
API cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
				   CUmemAllocationHandleType type)
{
	uint32_t shared;
	int descriptor = (int)(intptr_t)shareable;
	bool multicast = false;
	ENTER();
	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (share_import(descriptor, SIM_SHARED_MEMORY, &shared)) {
		TRY(share_import(descriptor, SIM_SHARED_MULTICAST, &shared));
		multicast = true;
	}
	struct physical *physical = physical_new(0);
	if (!physical) {
		share_drop(shared);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	physical->shared = shared;
	CUresult result = multicast ? multicast_import(physical) : describe_import(physical);
	if (result) {
		share_drop(shared);
		object_free(physical);
		return result;
	}
	*handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
	return CUDA_SUCCESS;
}
