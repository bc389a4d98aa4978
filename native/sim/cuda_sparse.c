/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arrays whose memory the client brings, tile by tile, or for the whole array
 * (deferred mapping).
 *
 * Such an array takes no device memory of its own.  A mapped tile keeps the
 * physical memory alive, whatever becomes of its handle.  The bytes themselves
 * stand beside it: memory that is also mapped at an address does not show what
 * is written through the array.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda_array.h"

#define TILE 65536UL

struct sparse {
	size_t tile[3];  /* its extents, in elements; of no account when deferred */
	unsigned layers; /* 1, when there are none */
	unsigned tail;   /* the first level smaller than a tile */
	size_t tail_tiles, tail_start;
	size_t first[ARRAY_LEVELS]; /* tile of each level */
	size_t grid[ARRAY_LEVELS][3];
	size_t count;
	struct physical **tiles;
};

static bool is_box(const CUDA_ARRAY3D_DESCRIPTOR *d)
{
	return d->Depth && !array_layered(d);
}

/* The standard shapes of 64 KiB: of a plane 256 x 256 bytes and its halves. */
static void tile_shape(const CUDA_ARRAY3D_DESCRIPTOR *d, size_t *tile)
{
	static const size_t planes[5][3] = {
		{256, 256, 1}, {256, 128, 1}, {128, 128, 1}, {128, 64, 1}, {64, 64, 1}};
	static const size_t boxes[5][3] = {
		{64, 32, 32}, {32, 32, 32}, {32, 32, 16}, {32, 16, 16}, {16, 16, 16}};
	struct format format;
	format_of(d->Format, d->NumChannels, &format);
	unsigned size = (unsigned)__builtin_ctz(format.plane[0].bytes);
	memcpy(tile, is_box(d) ? boxes[size] : planes[size], sizeof(size_t[3]));
	tile[0] *= format.block;
	tile[1] *= format.block;
}

static size_t tiles_in(size_t extent, size_t tile)
{
	return extent ? (extent + tile - 1) / tile : 1;
}

/* Levels in tiles, then the tails, one for each layer. */
static void divide(struct sparse *sparse, const struct image *image)
{
	const CUDA_ARRAY3D_DESCRIPTOR *whole = &image->description;
	size_t tail_bytes = 0;
	bool box = is_box(whole), mipmapped = image->levels > 1;
	tile_shape(whole, sparse->tile);
	sparse->layers = array_layered(whole) ? (unsigned)whole->Depth : 1;
	sparse->tail = image->levels;
	for (unsigned i = 0; i < image->levels; i++) {
		CUDA_ARRAY3D_DESCRIPTOR level = array_level(whole, i);
		if (mipmapped &&
		    (level.Width < sparse->tile[0] || level.Height < sparse->tile[1] ||
		     (box && level.Depth < sparse->tile[2])) &&
		    i < sparse->tail)
			sparse->tail = i;
		if (i >= sparse->tail) {
			tail_bytes += level_bytes(&level) / sparse->layers;
			continue;
		}
		sparse->first[i] = sparse->count;
		sparse->grid[i][0] = tiles_in(level.Width, sparse->tile[0]);
		sparse->grid[i][1] = tiles_in(level.Height, sparse->tile[1]);
		sparse->grid[i][2] = box ? tiles_in(level.Depth, sparse->tile[2]) : 1;
		sparse->count += sparse->grid[i][0] * sparse->grid[i][1] * sparse->grid[i][2] *
				 sparse->layers;
	}
	sparse->tail_start = sparse->count;
	sparse->tail_tiles = (tail_bytes + TILE - 1) / TILE;
	sparse->count += sparse->tail_tiles * sparse->layers;
}

CUresult sparse_new(struct image *image)
{
	struct sparse *sparse = calloc(1, sizeof(*sparse));
	if (!sparse)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (image->description.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING)
		sparse->count = (image->bytes + TILE - 1) / TILE;
	else
		divide(sparse, image);
	sparse->tiles = calloc(sparse->count, sizeof(*sparse->tiles));
	char *memory = sparse->tiles ? map_memory(image->bytes) : NULL;
	if (!memory) {
		free(sparse->tiles);
		free(sparse);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	image->sparse = sparse;
	image->memory = memory;
	return CUDA_SUCCESS;
}

void sparse_free(struct sparse *sparse)
{
	for (size_t i = 0; i < sparse->count; i++)
		if (sparse->tiles[i])
			physical_let_go(sparse->tiles[i]);
	free(sparse->tiles);
	free(sparse);
}

/* ---- what a client has to bring ---- */

static CUresult requirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *out, const struct image *image,
			     CUdevice ordinal)
{
	struct device *device;
	TRY(device_of(ordinal, &device));
	if (!out || !(image->description.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING))
		return CUDA_ERROR_INVALID_VALUE;
	*out = (CUDA_ARRAY_MEMORY_REQUIREMENTS){.size = image->sparse->count * TILE,
						.alignment = TILE};
	return CUDA_SUCCESS;
}

API cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *out, CUarray handle,
				 CUdevice device)
{
	struct array *array;
	ENTER();
	TRY(array_of(handle, &array));
	return requirements(out, array->image, device);
}

API cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *out,
					  CUmipmappedArray handle, CUdevice device)
{
	struct mipmap *mipmap;
	ENTER();
	TRY(mipmap_of(handle, &mipmap));
	return requirements(out, mipmap->image, device);
}

static CUresult properties(CUDA_ARRAY_SPARSE_PROPERTIES *out, const struct image *image)
{
	if (!out || !(image->description.Flags & CUDA_ARRAY3D_SPARSE))
		return CUDA_ERROR_INVALID_VALUE;
	const struct sparse *sparse = image->sparse;
	*out = (CUDA_ARRAY_SPARSE_PROPERTIES){
		.tileExtent = {(unsigned)sparse->tile[0], (unsigned)sparse->tile[1],
			       (unsigned)sparse->tile[2]},
		.miptailFirstLevel = image->levels > 1 ? sparse->tail : 0,
		.miptailSize = sparse->tail_tiles * TILE,
	};
	return CUDA_SUCCESS;
}

API cuArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *out, CUarray handle)
{
	struct array *array;
	ENTER();
	TRY(array_of(handle, &array));
	return array->part ? CUDA_ERROR_INVALID_VALUE : properties(out, array->image);
}

API cuMipmappedArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *out, CUmipmappedArray handle)
{
	struct mipmap *mipmap;
	ENTER();
	TRY(mipmap_of(handle, &mipmap));
	return properties(out, mipmap->image);
}

/* ---- bringing it ---- */

/* A box of tiles of one level and layer, or some tiles in a row. */
struct part {
	size_t first, row, slice; /* strides in tiles */
	size_t extent[3];
};

static bool whole_tiles(size_t offset, size_t extent, size_t tile, size_t of)
{
	return extent && offset % tile == 0 && offset <= of && extent <= of - offset &&
	       (extent % tile == 0 || offset + extent == of);
}

static CUresult part_of_level(const CUarrayMapInfo *info, const struct image *image,
			      struct part *part)
{
	const struct sparse *sparse = image->sparse;
	unsigned level = info->subresource.sparseLevel.level;
	unsigned layer = info->subresource.sparseLevel.layer;
	if (level >= sparse->tail || layer >= sparse->layers)
		return CUDA_ERROR_INVALID_VALUE;
	CUDA_ARRAY3D_DESCRIPTOR d = array_level(&image->description, level);
	const size_t offsets[3] = {info->subresource.sparseLevel.offsetX,
				   info->subresource.sparseLevel.offsetY,
				   info->subresource.sparseLevel.offsetZ};
	const size_t extents[3] = {info->subresource.sparseLevel.extentWidth,
				   info->subresource.sparseLevel.extentHeight,
				   info->subresource.sparseLevel.extentDepth};
	const size_t of[3] = {d.Width, d.Height, is_box(&d) ? d.Depth : 1};
	const size_t *grid = sparse->grid[level];
	part->row = grid[0];
	part->slice = grid[0] * grid[1];
	part->first = sparse->first[level] + layer * grid[2] * part->slice;
	for (int i = 0; i < 3; i++) {
		if (!whole_tiles(offsets[i], extents[i], sparse->tile[i], of[i]))
			return CUDA_ERROR_INVALID_VALUE;
		part->extent[i] = tiles_in(extents[i], sparse->tile[i]);
	}
	part->first += offsets[0] / sparse->tile[0] + offsets[1] / sparse->tile[1] * part->row +
		       offsets[2] / sparse->tile[2] * part->slice;
	return CUDA_SUCCESS;
}

static CUresult part_of(const CUarrayMapInfo *info, const struct image *image, struct part *part)
{
	const struct sparse *sparse = image->sparse;
	if (image->description.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING) {
		*part = (struct part){0, 0, 0, {sparse->count, 1, 1}};
		return CUDA_SUCCESS;
	}
	if (info->subresourceType == 0)
		return part_of_level(info, image, part);
	uint64_t offset = info->subresource.miptail.offset, size = info->subresource.miptail.size;
	unsigned layer = info->subresource.miptail.layer;
	if (info->subresourceType != 1 || layer >= sparse->layers || !size || size % TILE ||
	    offset % TILE || offset > sparse->tail_tiles * TILE ||
	    size > sparse->tail_tiles * TILE - offset)
		return CUDA_ERROR_INVALID_VALUE;
	*part = (struct part){sparse->tail_start + layer * sparse->tail_tiles + offset / TILE,
			      0,
			      0,
			      {size / TILE, 1, 1}};
	return CUDA_SUCCESS;
}

/* Each tile holds the new memory before it lets go of the old. */
static void set_tiles(struct sparse *sparse, const struct part *part, struct physical *physical)
{
	for (size_t z = 0; z < part->extent[2]; z++)
		for (size_t y = 0; y < part->extent[1]; y++)
			for (size_t x = 0; x < part->extent[0]; x++) {
				struct physical **tile =
					&sparse->tiles[part->first + x + y * part->row +
						       z * part->slice];
				if (physical)
					physical_hold_again(physical);
				if (*tile)
					physical_let_go(*tile);
				*tile = physical;
			}
}

static CUresult image_of(const CUarrayMapInfo *info, struct image **image)
{
	struct mipmap *mipmap;
	struct array *array;
	if (info->resourceType == 1) {
		TRY(mipmap_of(info->resource.mipmap, &mipmap));
		*image = mipmap->image;
	} else {
		TRY(array_of(info->resource.array, &array));
		*image = array->part ? NULL : array->image;
	}
	return *image && (*image)->sparse && info->resourceType <= 1 ? CUDA_SUCCESS
								     : CUDA_ERROR_INVALID_VALUE;
}

static CUresult map_part(const CUarrayMapInfo *info, const struct device *device)
{
	struct physical *physical = NULL;
	struct image *image;
	struct part part;
	TRY(image_of(info, &image));
	if (info->flags || info->memHandleType || image->device != device ||
	    info->deviceBitMask != 1u << device->ordinal)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(part_of(info, image, &part));
	if (info->memOperationType == 1)
		TRY(physical_hold(info->memHandle.memHandle, info->offset,
				  part.extent[0] * part.extent[1] * part.extent[2] * TILE, device,
				  &physical));
	else if (info->memOperationType != 2 || info->memHandle.memHandle)
		return CUDA_ERROR_INVALID_VALUE;
	set_tiles(image->sparse, &part, physical);
	if (physical)
		physical_let_go(physical); /* the tiles hold it now */
	return CUDA_SUCCESS;
}

static CUresult map_list(const CUarrayMapInfo *list, unsigned count, CUstream handle,
			 bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (!list || !count)
		return CUDA_ERROR_INVALID_VALUE;
	if (stream->capture)
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	for (unsigned i = 0; i < count; i++)
		TRY(map_part(&list[i], stream_device(stream)));
	return CUDA_SUCCESS;
}

TWINS(cuMemMapArrayAsync, ptsz, (CUarrayMapInfo * list, unsigned int count, CUstream stream),
      map_list(list, count, stream, per_thread))
