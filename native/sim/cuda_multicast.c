/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Multicast objects: a team of devices, and memory of theirs bound together.
 *
 * An object has no memory; what is bound to it stays alive until it is unbound,
 * or until the object goes.  The team of an exported object is its processes'
 * together; a binding belongs to the process that made it.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_physical.h"

struct binding {
	struct binding *next;
	struct device *device;
	struct physical *physical;
	size_t offset, size; /* in the object */
};

/* What an importer must know, and the team: the note of an exported object. */
struct team {
	uint64_t devices; /* bit: that device of the machine is in; changed atomically */
	uint64_t size;
	uint32_t count; /* of devices that there are to be */
	uint32_t handle_types;
};

struct multicast {
	struct binding *bindings;
	struct team own;   /* when it cannot be exported */
	struct team *team; /* its team: that one, or the one in the machine */
};

_Static_assert(sizeof(struct team) <= SIM_NOTE, "it fits a note");

static bool complete(const struct multicast *multicast)
{
	uint64_t devices = __atomic_load_n(&multicast->team->devices, __ATOMIC_RELAXED);
	return (uint32_t)__builtin_popcountll(devices) == multicast->team->count;
}

static CUresult multicast_of(CUmemGenericAllocationHandle handle, struct physical **object)
{
	TRY(physical_of(handle, object));
	return (*object)->multicast ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static void unbind(struct binding **place)
{
	struct binding *binding = *place;
	*place = binding->next;
	physical_let_go(binding->physical);
	free(binding);
}

void multicast_free(struct multicast *multicast)
{
	while (multicast->bindings)
		unbind(&multicast->bindings);
	free(multicast);
}

static CUresult check(const CUmulticastObjectProp *properties)
{
	if (!properties || !properties->numDevices || properties->numDevices > SIM_DEVICES ||
	    !properties->size || properties->size % BLOCK_SIZE || properties->flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (properties->handleTypes & ~(unsigned long long)CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_NOT_SUPPORTED;
	return CUDA_SUCCESS;
}

/* The team of an exported object lies where all its processes see it. */
static CUresult place(struct physical *object)
{
	struct sim_shared wanted = {.kind = SIM_SHARED_MULTICAST, .device = SIM_DEVICES};
	struct multicast *multicast = object->multicast;
	multicast->team = &multicast->own;
	if (!multicast->own.handle_types)
		return CUDA_SUCCESS;
	memcpy(wanted.note, &multicast->own, sizeof(multicast->own));
	TRY(share_make(&wanted, &object->shared));
	multicast->team = (struct team *)(uintptr_t)share_entry(object->shared)->note;
	return CUDA_SUCCESS;
}

API cuMulticastCreate(CUmemGenericAllocationHandle *handle, const CUmulticastObjectProp *properties)
{
	ENTER();
	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(check(properties));
	struct physical *object = physical_new(properties->size);
	struct multicast *multicast = calloc(1, sizeof(*multicast));
	if (object && multicast) {
		multicast->own = (struct team){0, properties->size, properties->numDevices,
					       (uint32_t)properties->handleTypes};
		object->multicast = multicast;
	}
	if (!object || !multicast || place(object)) {
		free(multicast);
		if (object)
			object_free(object);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*handle = (CUmemGenericAllocationHandle)(uintptr_t)object;
	return CUDA_SUCCESS;
}

CUresult multicast_import(struct physical *object)
{
	object->multicast = calloc(1, sizeof(*object->multicast));
	if (!object->multicast)
		return CUDA_ERROR_OUT_OF_MEMORY;
	object->multicast->team = (struct team *)(uintptr_t)share_entry(object->shared)->note;
	object->size = object->multicast->team->size;
	return CUDA_SUCCESS;
}

API cuMulticastGetGranularity(size_t *granularity, const CUmulticastObjectProp *properties,
			      unsigned int option)
{
	ENTER();
	if (!granularity || option > 1)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(check(properties));
	*granularity = BLOCK_SIZE;
	return CUDA_SUCCESS;
}

API cuMulticastAddDevice(CUmemGenericAllocationHandle handle, CUdevice ordinal)
{
	struct physical *object;
	struct device *device;
	ENTER();
	TRY(multicast_of(handle, &object));
	TRY(device_of(ordinal, &device));
	struct team *team = object->multicast->team;
	uint64_t bit = 1ULL << device->number;
	uint64_t devices = __atomic_load_n(&team->devices, __ATOMIC_RELAXED);
	do {
		if (devices & bit || (uint32_t)__builtin_popcountll(devices) == team->count)
			return CUDA_ERROR_INVALID_VALUE;
	} while (!__atomic_compare_exchange_n(&team->devices, &devices, devices | bit, false,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return CUDA_SUCCESS;
}

static bool fits(size_t offset, size_t size, size_t whole)
{
	return size && offset % BLOCK_SIZE == 0 && size % BLOCK_SIZE == 0 && offset <= whole &&
	       size <= whole - offset;
}

static CUresult bind(struct physical *object, struct device *device, size_t offset,
		     struct physical *memory, size_t memory_offset, size_t size)
{
	struct multicast *multicast = object->multicast;
	if (memory->multicast || !memory->device || (device && memory->device != device) ||
	    !fits(offset, size, object->size) || !fits(memory_offset, size, memory->size))
		return CUDA_ERROR_INVALID_VALUE;
	device = memory->device;
	if (!complete(multicast) || !(multicast->team->devices >> device->number & 1))
		return CUDA_ERROR_INVALID_DEVICE;
	if (object->shared && !memory->shared)
		return CUDA_ERROR_INVALID_VALUE;
	for (const struct binding *b = multicast->bindings; b; b = b->next)
		if (b->device == device && offset < b->offset + b->size &&
		    b->offset < offset + size)
			return CUDA_ERROR_INVALID_VALUE;
	struct binding *made = malloc(sizeof(*made));
	if (!made)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*made = (struct binding){multicast->bindings, device, memory, offset, size};
	multicast->bindings = made;
	physical_hold_again(memory);
	return CUDA_SUCCESS;
}

/* `ordinal` NULL: the device is the memory's. */
static CUresult bind_memory(CUmemGenericAllocationHandle handle, const CUdevice *ordinal,
			    size_t offset, CUmemGenericAllocationHandle memory,
			    size_t memory_offset, size_t size, unsigned long long flags)
{
	struct physical *object, *physical;
	struct device *device = NULL;
	ENTER();
	TRY(multicast_of(handle, &object));
	TRY(physical_of(memory, &physical));
	if (ordinal)
		TRY(device_of(*ordinal, &device));
	return flags ? CUDA_ERROR_INVALID_VALUE
		     : bind(object, device, offset, physical, memory_offset, size);
}

/* The memory of one mapping; memory of a pool cannot be bound here. */
static CUresult bind_address(CUmemGenericAllocationHandle handle, const CUdevice *ordinal,
			     size_t offset, CUdeviceptr pointer, size_t size,
			     unsigned long long flags)
{
	struct physical *object;
	struct device *device = NULL;
	ENTER();
	TRY(multicast_of(handle, &object));
	if (ordinal)
		TRY(device_of(*ordinal, &device));
	struct range *range = range_at((uintptr_t)pointer);
	if (flags || !range)
		return CUDA_ERROR_INVALID_VALUE;
	if (range->kind != RANGE_MAPPED)
		return range->heap && range->heap->pool ? CUDA_ERROR_NOT_SUPPORTED
							: CUDA_ERROR_INVALID_VALUE;
	return bind(object, device, offset, range->detail, (uintptr_t)pointer - range->base, size);
}

API cuMulticastBindMem(CUmemGenericAllocationHandle multicast, size_t offset,
		       CUmemGenericAllocationHandle memory, size_t memory_offset, size_t size,
		       unsigned long long flags)
{
	return bind_memory(multicast, NULL, offset, memory, memory_offset, size, flags);
}

API cuMulticastBindMem_v2(CUmemGenericAllocationHandle multicast, CUdevice device, size_t offset,
			  CUmemGenericAllocationHandle memory, size_t memory_offset, size_t size,
			  unsigned long long flags)
{
	return bind_memory(multicast, &device, offset, memory, memory_offset, size, flags);
}

API cuMulticastBindAddr(CUmemGenericAllocationHandle multicast, size_t offset, CUdeviceptr pointer,
			size_t size, unsigned long long flags)
{
	return bind_address(multicast, NULL, offset, pointer, size, flags);
}

API cuMulticastBindAddr_v2(CUmemGenericAllocationHandle multicast, CUdevice device, size_t offset,
			   CUdeviceptr pointer, size_t size, unsigned long long flags)
{
	return bind_address(multicast, &device, offset, pointer, size, flags);
}

API cuMulticastUnbind(CUmemGenericAllocationHandle handle, CUdevice ordinal, size_t offset,
		      size_t size)
{
	struct physical *object;
	struct device *device;
	bool found = false;
	ENTER();
	TRY(multicast_of(handle, &object));
	TRY(device_of(ordinal, &device));
	if (!fits(offset, size, object->size))
		return CUDA_ERROR_INVALID_VALUE;
	for (struct binding **place = &object->multicast->bindings; *place;) {
		const struct binding *b = *place;
		if (b->device == device && b->offset >= offset &&
		    b->offset + b->size <= offset + size) {
			unbind(place);
			found = true;
		} else {
			place = &(*place)->next;
		}
	}
	return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
