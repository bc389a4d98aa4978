/* SPDX-License-Identifier: Apache-2.0 */
/*
 * External memory: of another driver, or of CUDA in another process, brought by
 * a descriptor.
 *
 * A descriptor that this simulator exported stands for memory that is counted
 * already.  Any other file that can be mapped stands for memory of some graphics
 * driver: it is counted on the importer's device once, however many processes
 * import it, from the first import until the last of them has let go of the
 * object and of what it mapped.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda_array.h"
#include "cuda_share.h"

struct external {
	struct object object;
	struct device *device;
	uint32_t shared;
	uint64_t size;
	int file;
	uint64_t offset; /* in the file */
	unsigned users;  /* the object itself, and mappings */
	bool destroyed;
};

void external_release(struct external *external)
{
	if (--external->users)
		return;
	share_drop(external->shared);
	close(external->file);
	object_free(external);
}

static CUresult external_of(CUexternalMemory handle, struct external **external)
{
	*external = object_of(handle, OBJECT_EXTERNAL);
	return *external && !(*external)->destroyed ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* Memory of another driver: counted by whoever imports it first. */
static CUresult count(struct device *device, int file, uint64_t size, uint32_t *shared)
{
	struct stat status;
	if (fstat(file, &status) || !S_ISREG(status.st_mode) || (uint64_t)status.st_size < size)
		return CUDA_ERROR_INVALID_VALUE;
	struct sim_shared wanted = {
		.kind = SIM_SHARED_OUTSIDE,
		.device = device->number,
		.size = (size + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE,
		.key = {status.st_dev, status.st_ino},
	};
	int known = sim_shared_find(wanted.key);
	if (known >= 0 && !share_hold(known, sim_shared_entry(known)->generation, shared))
		return CUDA_SUCCESS;
	if (sim_charge(device->number, driver.slot, wanted.size)) {
		pools_shrink(device);
		if (sim_charge(device->number, driver.slot, wanted.size))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	CUresult result = share_make(&wanted, shared);
	if (result)
		sim_refund(device->number, driver.slot, wanted.size);
	return result;
}

static CUresult import(struct external *external, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *d)
{
	if (!share_import(d->handle.fd, SIM_SHARED_MEMORY, &external->shared)) {
		const struct sim_shared *entry = share_entry(external->shared);
		external->offset = entry->offset;
		external->file = dup(sim_shared_file());
		if (entry->size < d->size || external->file < 0) {
			share_drop(external->shared);
			return CUDA_ERROR_INVALID_VALUE;
		}
		close(d->handle.fd); /* ours now, and of no more use */
		return CUDA_SUCCESS;
	}
	external->file = d->handle.fd;
	return count(external->device, d->handle.fd, d->size, &external->shared);
}

API cuImportExternalMemory(CUexternalMemory *handle,
			   const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *description)
{
	ENTER();
	CURRENT(context);
	if (!handle || !description || !description->size || description->flags > 1 ||
	    description->size > INT64_MAX / 2)
		return CUDA_ERROR_INVALID_VALUE;
	if (description->type != CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD)
		return CUDA_ERROR_NOT_SUPPORTED;
	UNSAFE();
	/* It may outlive the context: what is mapped of it may not. */
	struct external *external = object_new(OBJECT_EXTERNAL, NULL);
	if (!external)
		return CUDA_ERROR_OUT_OF_MEMORY;
	external->device = context->device;
	external->size = description->size;
	external->users = 1;
	CUresult result = import(external, description);
	if (result) {
		object_free(external);
		return result;
	}
	*handle = (CUexternalMemory)external;
	return CUDA_SUCCESS;
}

API cuDestroyExternalMemory(CUexternalMemory handle)
{
	struct external *external;
	ENTER();
	TRY(external_of(handle, &external));
	external->destroyed = true;
	external_release(external);
	return CUDA_SUCCESS;
}

/* All of it, from its beginning: a part may begin anywhere. */
static void *map_whole(const struct external *external, size_t *length)
{
	*length = (external->size + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE;
	void *memory = map_memory(*length);
	if (memory &&
	    mmap(memory, *length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
		 external->file, (off_t)external->offset) == MAP_FAILED) {
		munmap(memory, *length);
		return NULL;
	}
	return memory;
}

API cuExternalMemoryGetMappedBuffer(CUdeviceptr *pointer, CUexternalMemory handle,
				    const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *d)
{
	struct external *external;
	size_t length;
	ENTER();
	CURRENT(context);
	TRY(external_of(handle, &external));
	if (!pointer || !d || d->flags || !d->size || d->offset > external->size ||
	    d->size > external->size - d->offset)
		return CUDA_ERROR_INVALID_VALUE;
	void *memory = map_whole(external, &length);
	struct range *range =
		memory ? heap_place(context->heap, RANGE_DEVICE, memory, length) : NULL;
	if (!range) {
		if (memory)
			munmap(memory, length);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	range->device = external->device;
	range->external = external;
	range->skip = d->offset;
	range->wanted = d->size;
	context->heap->used += range->size;
	external->users++;
	*pointer = (CUdeviceptr)(range->base + range->skip);
	return CUDA_SUCCESS;
}

API cuExternalMemoryGetMappedMipmappedArray(CUmipmappedArray *mipmap, CUexternalMemory handle,
					    const CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC *d)
{
	const unsigned own_memory = CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING;
	struct external *external;
	struct image *image;
	size_t length;
	ENTER();
	CURRENT(context);
	TRY(external_of(handle, &external));
	if (!mipmap || !d || !array_valid(&d->arrayDesc) || d->arrayDesc.Flags & own_memory ||
	    !d->numLevels || d->numLevels > array_levels(&d->arrayDesc))
		return CUDA_ERROR_INVALID_VALUE;
	TRY(image_new(external->device, &d->arrayDesc, d->numLevels, &image));
	bool fits = d->offset <= external->size && image->bytes <= external->size - d->offset;
	char *memory = fits ? map_whole(external, &length) : NULL;
	if (!memory) {
		image_free(image);
		return fits ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
	}
	image->outside = memory;
	image->outside_length = length;
	image->memory = memory + d->offset;
	image->external = external;
	external->users++;
	return mipmap_new(context, image, mipmap);
}
