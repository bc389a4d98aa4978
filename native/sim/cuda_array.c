/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arrays and mipmapped arrays: making, describing, ending them.
 *
 * Their memory comes from the context's heap like any other, or from the client
 * (cuda_sparse.c).  Rows, slices and levels follow one another without gaps but
 * for the alignment of levels.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda_array.h"
#include "cuda_share.h"

#define LEVEL_ALIGNMENT 512UL

_Static_assert(sizeof(struct array) <= 256, "an object fits a cell");
_Static_assert(sizeof(struct mipmap) <= 256, "an object fits a cell");

CUresult array_of(CUarray handle, struct array **array)
{
	*array = object_of(handle, OBJECT_ARRAY);
	return *array ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult mipmap_of(CUmipmappedArray handle, struct mipmap **mipmap)
{
	*mipmap = object_of(handle, OBJECT_MIPMAP);
	return *mipmap ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* ---- memory ---- */

CUresult image_new(struct device *device, const CUDA_ARRAY3D_DESCRIPTOR *description,
		   unsigned levels, struct image **made)
{
	struct image *image = calloc(1, sizeof(*image));
	if (!image)
		return CUDA_ERROR_OUT_OF_MEMORY;
	image->description = *description;
	image->device = device;
	image->levels = levels;
	for (unsigned level = 0; level < levels; level++) {
		CUDA_ARRAY3D_DESCRIPTOR part = array_level(description, level);
		image->start[level] = image->bytes;
		image->bytes += level_bytes(&part) + LEVEL_ALIGNMENT - 1;
		image->bytes -= image->bytes % LEVEL_ALIGNMENT;
	}
	*made = image;
	return CUDA_SUCCESS;
}

static CUresult image_memory(struct image *image, struct heap *heap)
{
	CUdeviceptr pointer;
	if (image->description.Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING))
		return sparse_new(image);
	TRY(heap_alloc(heap, RANGE_DEVICE, image->bytes, &pointer));
	image->memory = (char *)(uintptr_t)pointer;
	return CUDA_SUCCESS;
}

void image_free(struct image *image)
{
	struct allocation found;
	if (image->sparse) {
		munmap(image->memory, image->bytes);
		sparse_free(image->sparse);
	} else if (image->external) {
		munmap(image->outside, image->outside_length);
		external_release(image->external);
	} else if (image->memory && find_allocation((uintptr_t)image->memory, &found)) {
		heap_free(&found);
	}
	free(image);
}

/* ---- handles ---- */

static struct array *array_new(struct context *owner, struct image *image, unsigned level)
{
	struct array *array = object_new(OBJECT_ARRAY, owner);
	if (!array)
		return NULL;
	array->description = array_level(&image->description, level);
	array->image = image;
	array->layout = plane_layout(&array->description, 0);
	array->bytes = level_bytes(&array->description);
	array->memory = image->memory + image->start[level];
	return array;
}

static void drop_part(struct array *array)
{
	for (int i = 0; i < 3; i++)
		if (array->planes[i])
			object_free(array->planes[i]);
	object_free(array);
}

void array_free(struct array *array)
{
	image_free(array->image);
	drop_part(array);
}

void mipmap_free(struct mipmap *mipmap)
{
	for (int i = 0; i < ARRAY_LEVELS; i++)
		if (mipmap->levels[i])
			drop_part(mipmap->levels[i]);
	image_free(mipmap->image);
	object_free(mipmap);
}

static CUresult create(CUarray *handle, const CUDA_ARRAY3D_DESCRIPTOR *description)
{
	struct image *image;
	ENTER();
	CURRENT(context);
	if (!handle || !array_valid(description))
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	TRY(image_new(context->device, description, 1, &image));
	CUresult result = image_memory(image, context->heap);
	struct array *array = result ? NULL : array_new(context, image, 0);
	if (!array) {
		image_free(image);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*handle = (CUarray)array;
	return CUDA_SUCCESS;
}

API cuArray3DCreate_v2(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *description)
{
	CHECK_READY();
	return description ? create(array, description) : CUDA_ERROR_INVALID_VALUE;
}

API cuArrayCreate_v2(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *d)
{
	CHECK_READY();
	if (!d)
		return CUDA_ERROR_INVALID_VALUE;
	return create(array, &(CUDA_ARRAY3D_DESCRIPTOR){.Width = d->Width,
							.Height = d->Height,
							.Format = d->Format,
							.NumChannels = d->NumChannels});
}

API cuArray3DCreate(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *d)
{
	CHECK_READY();
	if (!d)
		return CUDA_ERROR_INVALID_VALUE;
	return create(array, &(CUDA_ARRAY3D_DESCRIPTOR){d->Width, d->Height, d->Depth, d->Format,
							d->NumChannels, d->Flags});
}

API cuArrayCreate(CUarray *array, const CUDA_ARRAY_DESCRIPTOR_v1 *d)
{
	CHECK_READY();
	if (!d)
		return CUDA_ERROR_INVALID_VALUE;
	return create(array, &(CUDA_ARRAY3D_DESCRIPTOR){d->Width, d->Height, 0, d->Format,
							d->NumChannels, 0});
}

/* Memory may still be used by queued work: that is waited for first. */
static void settle(struct device *device)
{
	uint64_t served;
	if (!driver.machine->knobs.null_mode)
		wait_for(device, sim_enqueue(device->number, driver.slot, 0, 0, &served));
}

API cuArrayDestroy(CUarray handle)
{
	struct array *array;
	ENTER();
	TRY(array_of(handle, &array));
	if (array->part)
		return CUDA_ERROR_INVALID_HANDLE;
	UNSAFE();
	settle(array->image->device);
	TRY(array_of(handle, &array)); /* somebody may have been faster */
	array_free(array);
	return CUDA_SUCCESS;
}

/* ---- what an array is ---- */

static CUresult describe(CUarray handle, CUDA_ARRAY3D_DESCRIPTOR *description)
{
	struct array *array;
	ENTER();
	TRY(array_of(handle, &array));
	*description = array->description;
	return CUDA_SUCCESS;
}

API cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *description, CUarray array)
{
	CHECK_READY();
	return description ? describe(array, description) : CUDA_ERROR_INVALID_VALUE;
}

API cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *description, CUarray array)
{
	CUDA_ARRAY3D_DESCRIPTOR d;
	CHECK_READY();
	if (!description)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(describe(array, &d));
	*description = (CUDA_ARRAY_DESCRIPTOR){d.Width, d.Height, d.Format, d.NumChannels};
	return CUDA_SUCCESS;
}

API cuArray3DGetDescriptor(CUDA_ARRAY3D_DESCRIPTOR_v1 *description, CUarray array)
{
	CUDA_ARRAY3D_DESCRIPTOR d;
	CHECK_READY();
	if (!description)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(describe(array, &d));
	*description = (CUDA_ARRAY3D_DESCRIPTOR_v1){(unsigned)d.Width, (unsigned)d.Height,
						    (unsigned)d.Depth, d.Format,
						    d.NumChannels,     d.Flags};
	return CUDA_SUCCESS;
}

API cuArrayGetDescriptor(CUDA_ARRAY_DESCRIPTOR_v1 *description, CUarray array)
{
	CUDA_ARRAY3D_DESCRIPTOR d;
	CHECK_READY();
	if (!description)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(describe(array, &d));
	*description = (CUDA_ARRAY_DESCRIPTOR_v1){(unsigned)d.Width, (unsigned)d.Height, d.Format,
						  d.NumChannels};
	return CUDA_SUCCESS;
}

/* A plane is an array of plain samples: one channel of luma, two of chroma. */
static CUDA_ARRAY3D_DESCRIPTOR describe_plane(const struct array *array,
					      const struct format *format, unsigned number)
{
	const struct plane *plane = &format->plane[number];
	CUDA_ARRAY3D_DESCRIPTOR part = array->description;
	unsigned sample = format->plane[0].bytes;
	part.Width = (part.Width + plane->across - 1) / plane->across;
	part.Height = (part.Height + plane->down - 1) / plane->down;
	part.Format = sample == 1 ? CU_AD_FORMAT_UNSIGNED_INT8 : CU_AD_FORMAT_UNSIGNED_INT16;
	part.NumChannels = plane->bytes / sample;
	return part;
}

API cuArrayGetPlane(CUarray *handle, CUarray whole, unsigned int number)
{
	struct format format;
	struct array *array;
	ENTER();
	TRY(array_of(whole, &array));
	const CUDA_ARRAY3D_DESCRIPTOR *d = &array->description;
	if (!handle || !format_of(d->Format, d->NumChannels, &format) || format.planes < 2 ||
	    number >= format.planes)
		return CUDA_ERROR_INVALID_VALUE;
	if (!array->planes[number]) {
		struct array *plane = object_new(OBJECT_ARRAY, NULL);
		if (!plane)
			return CUDA_ERROR_OUT_OF_MEMORY;
		plane->description = describe_plane(array, &format, number);
		plane->image = array->image;
		plane->layout = plane_layout(d, number);
		plane->bytes = plane_bytes(d, number);
		plane->memory = array->memory;
		plane->part = true;
		for (unsigned before = 0; before < number; before++)
			plane->memory += plane_bytes(d, before);
		array->planes[number] = plane;
	}
	*handle = (CUarray)array->planes[number];
	return CUDA_SUCCESS;
}

/* ---- mipmapped arrays ---- */

/* Takes the image, also when it fails. */
CUresult mipmap_new(struct context *context, struct image *image, CUmipmappedArray *handle)
{
	struct mipmap *mipmap = object_new(OBJECT_MIPMAP, context);
	if (!mipmap) {
		image_free(image);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	mipmap->image = image;
	for (unsigned level = 0; level < image->levels; level++) {
		struct array *array = array_new(NULL, image, level);
		if (!array) {
			mipmap_free(mipmap);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
		array->part = true;
		mipmap->levels[level] = array;
	}
	*handle = (CUmipmappedArray)mipmap;
	return CUDA_SUCCESS;
}

API cuMipmappedArrayCreate(CUmipmappedArray *handle, const CUDA_ARRAY3D_DESCRIPTOR *description,
			   unsigned int levels)
{
	struct image *image;
	ENTER();
	CURRENT(context);
	if (!handle || !description || !array_valid(description))
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	unsigned most = array_levels(description);
	levels = levels < 1 ? 1 : levels > most ? most : levels;
	TRY(image_new(context->device, description, levels, &image));
	CUresult result = image_memory(image, context->heap);
	if (result) {
		image_free(image);
		return result;
	}
	return mipmap_new(context, image, handle);
}

API cuMipmappedArrayGetLevel(CUarray *handle, CUmipmappedArray whole, unsigned int level)
{
	struct mipmap *mipmap;
	ENTER();
	TRY(mipmap_of(whole, &mipmap));
	if (!handle || level >= mipmap->image->levels)
		return CUDA_ERROR_INVALID_VALUE;
	*handle = (CUarray)mipmap->levels[level];
	return CUDA_SUCCESS;
}

API cuMipmappedArrayDestroy(CUmipmappedArray handle)
{
	struct mipmap *mipmap;
	ENTER();
	TRY(mipmap_of(handle, &mipmap));
	UNSAFE();
	settle(mipmap->image->device);
	TRY(mipmap_of(handle, &mipmap));
	mipmap_free(mipmap);
	return CUDA_SUCCESS;
}
