/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arrays inside one process: an image in device memory that clients know by a
 * handle and never by an address.
 *
 * A mipmapped array is one image with several levels; each level, and each
 * plane of a video format, is an array of its own in the memory of the whole.
 */
#ifndef VGPU_SIM_CUDA_ARRAY_H
#define VGPU_SIM_CUDA_ARRAY_H

#include "cuda_work.h"

#define ARRAY_LEVELS 18 /* of the widest image */

/* ---- cuda_format.c: how large an image is ---- */

/* Samples of one plane: a part of the image's width and height, `bytes` each. */
struct plane {
	uint8_t across, down, bytes;
};

struct format {
	uint8_t block; /* samples of a plane stand in squares of this side */
	uint8_t planes;
	struct plane plane[3];
};

/* Where a plane lies, in bytes. */
struct layout {
	size_t width, rows, slices;
};

bool format_of(CUarray_format format, unsigned channels, struct format *out);
bool array_valid(const CUDA_ARRAY3D_DESCRIPTOR *description);
unsigned array_levels(const CUDA_ARRAY3D_DESCRIPTOR *description); /* the most it may have */
CUDA_ARRAY3D_DESCRIPTOR array_level(const CUDA_ARRAY3D_DESCRIPTOR *description, unsigned level);
struct layout plane_layout(const CUDA_ARRAY3D_DESCRIPTOR *level, unsigned plane);
size_t plane_bytes(const CUDA_ARRAY3D_DESCRIPTOR *level, unsigned plane);
size_t level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *level); /* all planes */

static inline bool array_layered(const CUDA_ARRAY3D_DESCRIPTOR *description)
{
	return description->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP);
}

/* ---- cuda_array.c ---- */

/* The memory of an array, or of all levels of a mipmapped one. */
struct image {
	CUDA_ARRAY3D_DESCRIPTOR description;
	struct device *device;
	unsigned levels;
	size_t bytes;
	size_t start[ARRAY_LEVELS]; /* of each level */
	char *memory;
	struct sparse *sparse;     /* memory that the client brings, or NULL */
	struct external *external; /* memory of somebody else's, mapped whole, or NULL */
	void *outside;
	size_t outside_length;
};

struct array {
	struct object object;
	CUDA_ARRAY3D_DESCRIPTOR description;
	struct image *image;
	struct layout layout; /* of a plane; of the first one when it has several */
	size_t bytes;
	char *memory;
	struct array *planes[3];
	bool part; /* of a mipmapped array or of an array with planes, and ends with it */
};

struct mipmap {
	struct object object;
	struct image *image;
	struct array *levels[ARRAY_LEVELS];
};

CUresult array_of(CUarray handle, struct array **array);
CUresult mipmap_of(CUmipmappedArray handle, struct mipmap **mipmap);
CUresult mipmap_new(struct context *context, struct image *image, CUmipmappedArray *handle);
CUresult image_new(struct device *device, const CUDA_ARRAY3D_DESCRIPTOR *description,
		   unsigned levels, struct image **made); /* no memory yet */
void image_free(struct image *image);
void array_free(struct array *array);
void mipmap_free(struct mipmap *mipmap);

/* ---- cuda_sparse.c ---- */

CUresult sparse_new(struct image *image);
void sparse_free(struct sparse *sparse);

#endif
