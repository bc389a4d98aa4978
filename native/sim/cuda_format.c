/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How large an array is: bytes of an element by format and channels, planes of
 * video formats, levels of mipmaps.
 *
 * Sizes are those of the elements and nothing else: a real driver's tiling adds
 * to them what only it knows.
 */
#include "cuda_array.h"

/* Formats with elements of one size, whatever `channels` says: bytes. */
static unsigned packed_bytes(CUarray_format format)
{
	if (format >= CU_AD_FORMAT_UNORM_INT8X1 && format <= CU_AD_FORMAT_SNORM_INT16X4) {
		unsigned kind = (format - CU_AD_FORMAT_UNORM_INT8X1) % 6;
		return (kind < 3 ? 1u : 2u) << kind % 3;
	}
	switch (format) {
	case CU_AD_FORMAT_YUY2:
		return 2;
	case CU_AD_FORMAT_UNORM_INT_101010_2:
	case CU_AD_FORMAT_Y210:
	case CU_AD_FORMAT_Y216:
	case CU_AD_FORMAT_AYUV:
	case CU_AD_FORMAT_Y410:
		return 4;
	case CU_AD_FORMAT_Y416:
		return 8;
	default:
		return 0;
	}
}

static unsigned channel_bytes(CUarray_format format)
{
	switch (format) {
	case CU_AD_FORMAT_UNSIGNED_INT8:
	case CU_AD_FORMAT_SIGNED_INT8:
		return 1;
	case CU_AD_FORMAT_UNSIGNED_INT16:
	case CU_AD_FORMAT_SIGNED_INT16:
	case CU_AD_FORMAT_HALF:
		return 2;
	case CU_AD_FORMAT_UNSIGNED_INT32:
	case CU_AD_FORMAT_SIGNED_INT32:
	case CU_AD_FORMAT_FLOAT:
		return 4;
	default:
		return 0;
	}
}

/* Compressed blocks of 4 x 4: bytes. */
static unsigned block_bytes(CUarray_format format)
{
	if (format < CU_AD_FORMAT_BC1_UNORM || format > CU_AD_FORMAT_BC7_UNORM_SRGB)
		return 0;
	bool half = format <= CU_AD_FORMAT_BC1_UNORM_SRGB || format == CU_AD_FORMAT_BC4_UNORM ||
		    format == CU_AD_FORMAT_BC4_SNORM;
	return half ? 8 : 16;
}

/* Video in planes: luma, then the two chromas together or each alone. */
static bool video_planes(CUarray_format format, struct format *out)
{
	switch (format) {
	case CU_AD_FORMAT_NV12:
		*out = (struct format){1, 2, {{1, 1, 1}, {2, 2, 2}}};
		return true;
	case CU_AD_FORMAT_P010:
	case CU_AD_FORMAT_P016:
		*out = (struct format){1, 2, {{1, 1, 2}, {2, 2, 4}}};
		return true;
	case CU_AD_FORMAT_NV16:
		*out = (struct format){1, 2, {{1, 1, 1}, {2, 1, 2}}};
		return true;
	case CU_AD_FORMAT_P210:
	case CU_AD_FORMAT_P216:
		*out = (struct format){1, 2, {{1, 1, 2}, {2, 1, 4}}};
		return true;
	case CU_AD_FORMAT_YUV444_8bit_SemiPlanar:
		*out = (struct format){1, 2, {{1, 1, 1}, {1, 1, 2}}};
		return true;
	case CU_AD_FORMAT_YUV444_16bit_SemiPlanar:
		*out = (struct format){1, 2, {{1, 1, 2}, {1, 1, 4}}};
		return true;
	case CU_AD_FORMAT_Y444_PLANAR8:
		*out = (struct format){1, 3, {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}}};
		return true;
	case CU_AD_FORMAT_Y444_PLANAR10:
		*out = (struct format){1, 3, {{1, 1, 2}, {1, 1, 2}, {1, 1, 2}}};
		return true;
	default:
		return false;
	}
}

bool format_of(CUarray_format format, unsigned channels, struct format *out)
{
	unsigned bytes = channel_bytes(format) * channels;
	if (channels < 1 || channels > 4)
		return false;
	if (bytes && channels == 3)
		return false;
	if (video_planes(format, out))
		return true;
	if (!bytes)
		bytes = packed_bytes(format);
	uint8_t block = bytes ? 1 : 4;
	if (!bytes)
		bytes = block_bytes(format);
	*out = (struct format){block, 1, {{1, 1, (uint8_t)bytes}}};
	return bytes != 0;
}

/* What may be together: a line, a plane or a box; layers of the first two; cubes. */
static bool shape_valid(const CUDA_ARRAY3D_DESCRIPTOR *d)
{
	bool cube = d->Flags & CUDA_ARRAY3D_CUBEMAP, layers = d->Flags & CUDA_ARRAY3D_LAYERED;
	if (!d->Width || d->Width > 1 << 17 || d->Height > 1 << 17 || d->Depth > 1 << 14)
		return false;
	if (cube)
		return d->Width == d->Height &&
		       (layers ? d->Depth && d->Depth % 6 == 0 : d->Depth == 6);
	if (layers)
		return d->Depth > 0;
	return d->Height || !d->Depth;
}

bool array_valid(const CUDA_ARRAY3D_DESCRIPTOR *d)
{
	const unsigned sparse = CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING;
	struct format format;
	if (d->Flags & ~0x1ffu || (d->Flags & sparse) == sparse)
		return false;
	if (!format_of(d->Format, d->NumChannels, &format) || !shape_valid(d))
		return false;
	if (format.planes > 1 || format.block > 1)
		return d->Height && !(d->Flags & CUDA_ARRAY3D_SPARSE && format.planes > 1);
	return !(d->Flags & CUDA_ARRAY3D_SPARSE) || d->Height;
}

unsigned array_levels(const CUDA_ARRAY3D_DESCRIPTOR *d)
{
	size_t widest = d->Width > d->Height ? d->Width : d->Height;
	unsigned levels = 1;
	if (!array_layered(d) && d->Depth > widest)
		widest = d->Depth;
	for (; widest > 1; widest /= 2)
		levels++;
	return levels;
}

static size_t halved(size_t extent, unsigned level)
{
	return extent && !(extent >> level) ? 1 : extent >> level;
}

CUDA_ARRAY3D_DESCRIPTOR array_level(const CUDA_ARRAY3D_DESCRIPTOR *whole, unsigned level)
{
	CUDA_ARRAY3D_DESCRIPTOR part = *whole;
	part.Width = halved(whole->Width, level);
	part.Height = halved(whole->Height, level);
	if (!array_layered(whole))
		part.Depth = halved(whole->Depth, level);
	return part;
}

static size_t parts(size_t extent, size_t of)
{
	return extent ? (extent + of - 1) / of : 1;
}

struct layout plane_layout(const CUDA_ARRAY3D_DESCRIPTOR *level, unsigned number)
{
	struct format format;
	if (!format_of(level->Format, level->NumChannels, &format) || number >= format.planes)
		return (struct layout){0, 0, 0};
	const struct plane *plane = &format.plane[number];
	return (struct layout){
		.width = parts(level->Width, (size_t)plane->across * format.block) * plane->bytes,
		.rows = parts(level->Height, (size_t)plane->down * format.block),
		.slices = parts(level->Depth, 1),
	};
}

size_t plane_bytes(const CUDA_ARRAY3D_DESCRIPTOR *level, unsigned plane)
{
	struct layout layout = plane_layout(level, plane);
	return layout.width * layout.rows * layout.slices;
}

size_t level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *level)
{
	return plane_bytes(level, 0) + plane_bytes(level, 1) + plane_bytes(level, 2);
}
