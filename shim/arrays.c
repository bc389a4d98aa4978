/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: arrays, and memory that another driver has made.  An array's size is
 * computed from what it is made of: bytes of an element, by format and number of
 * channels, times what there is of them.  The driver may lay it out larger, which
 * only its own figure for the process shows.
 *
 * Sparse arrays have no memory of their own; what is mapped into them later is
 * (blocks.c).  Arrays with deferred mapping likewise.
 */
#include "blocks.h"

/* ---- how large an array is ---------------------------------------------------------------------
 */

/* Bits of one texel, or of a block of 4 x 4 texels; and of one sample of colour, where
 * that is a plane of half the width, and perhaps half the height. */
struct texel {
	uint32_t bits;
	uint32_t is_block;
	uint32_t colour_bits;
	uint32_t colour_rows; /* of the image for each of its own */
};

/* Bits of one channel of the formats that are no more than channels side by side. */
static uint32_t channel_bits(unsigned int format)
{
	switch (format) {
	case CU_AD_FORMAT_UNSIGNED_INT8:
	case CU_AD_FORMAT_SIGNED_INT8:
		return 8;
	case CU_AD_FORMAT_UNSIGNED_INT16:
	case CU_AD_FORMAT_SIGNED_INT16:
	case CU_AD_FORMAT_HALF:
		return 16;
	case CU_AD_FORMAT_UNSIGNED_INT32:
	case CU_AD_FORMAT_SIGNED_INT32:
	case CU_AD_FORMAT_FLOAT:
		return 32;
	}
	return 0;
}

/* Formats that say everything by themselves. */
static struct texel whole_format(unsigned int format)
{
	switch (format) {
	case CU_AD_FORMAT_BC1_UNORM:
	case CU_AD_FORMAT_BC1_UNORM_SRGB:
	case CU_AD_FORMAT_BC4_UNORM:
	case CU_AD_FORMAT_BC4_SNORM:
		return (struct texel){64, 1, 0, 1};
	case CU_AD_FORMAT_BC2_UNORM:
	case CU_AD_FORMAT_BC2_UNORM_SRGB:
	case CU_AD_FORMAT_BC3_UNORM:
	case CU_AD_FORMAT_BC3_UNORM_SRGB:
	case CU_AD_FORMAT_BC5_UNORM:
	case CU_AD_FORMAT_BC5_SNORM:
	case CU_AD_FORMAT_BC6H_UF16:
	case CU_AD_FORMAT_BC6H_SF16:
	case CU_AD_FORMAT_BC7_UNORM:
	case CU_AD_FORMAT_BC7_UNORM_SRGB:
		return (struct texel){128, 1, 0, 1};
	case CU_AD_FORMAT_UNORM_INT8X1:
	case CU_AD_FORMAT_SNORM_INT8X1:
		return (struct texel){8, 0, 0, 1};
	case CU_AD_FORMAT_NV12:
		return (struct texel){8, 0, 16, 2};
	case CU_AD_FORMAT_P010:
	case CU_AD_FORMAT_P016:
		return (struct texel){16, 0, 32, 2};
	case CU_AD_FORMAT_NV16:
		return (struct texel){8, 0, 16, 1};
	case CU_AD_FORMAT_P210:
	case CU_AD_FORMAT_P216:
		return (struct texel){16, 0, 32, 1};
	case CU_AD_FORMAT_UNORM_INT8X2:
	case CU_AD_FORMAT_SNORM_INT8X2:
	case CU_AD_FORMAT_UNORM_INT16X1:
	case CU_AD_FORMAT_SNORM_INT16X1:
	case CU_AD_FORMAT_YUY2:
		return (struct texel){16, 0, 0, 1};
	case CU_AD_FORMAT_Y444_PLANAR8:
	case CU_AD_FORMAT_YUV444_8bit_SemiPlanar:
		return (struct texel){24, 0, 0, 1};
	case CU_AD_FORMAT_UNORM_INT_101010_2:
	case CU_AD_FORMAT_UNORM_INT8X4:
	case CU_AD_FORMAT_SNORM_INT8X4:
	case CU_AD_FORMAT_UNORM_INT16X2:
	case CU_AD_FORMAT_SNORM_INT16X2:
	case CU_AD_FORMAT_Y210:
	case CU_AD_FORMAT_Y216:
	case CU_AD_FORMAT_AYUV:
	case CU_AD_FORMAT_Y410:
		return (struct texel){32, 0, 0, 1};
	case CU_AD_FORMAT_Y444_PLANAR10:
	case CU_AD_FORMAT_YUV444_16bit_SemiPlanar:
		return (struct texel){48, 0, 0, 1};
	case CU_AD_FORMAT_UNORM_INT16X4:
	case CU_AD_FORMAT_SNORM_INT16X4:
	case CU_AD_FORMAT_Y416:
		return (struct texel){64, 0, 0, 1};
	}
	/* A format of a later driver: as large as any that we know. */
	return (struct texel){128, 0, 0, 1};
}

static struct texel texel_of(unsigned int format, unsigned int channels)
{
	uint32_t bits = channel_bits(format);

	return bits ? (struct texel){bits * channels, 0, 0, 1} : whole_format(format);
}

static uint64_t half(uint64_t extent)
{
	return extent / 2 + extent % 2;
}

/* 0, or -1 when it is beyond 64 bits. */
static int plane_bytes(uint64_t width, uint64_t height, uint64_t depth, uint32_t bits,
		       uint64_t *bytes)
{
	uint64_t product;

	if (__builtin_mul_overflow(width, height, &product) ||
	    __builtin_mul_overflow(product, depth, &product) ||
	    __builtin_mul_overflow(product, bits, &product))
		return -1;
	*bytes = product / 8 + (product % 8 != 0);
	return 0;
}

static int level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *of, uint64_t width, uint64_t height,
		       uint64_t depth, uint64_t *bytes)
{
	struct texel texel = texel_of(of->Format, of->NumChannels);
	uint64_t colour;

	if (texel.is_block) {
		width = width / 4 + (width % 4 != 0);
		height = height / 4 + (height % 4 != 0);
	}
	if (plane_bytes(width, height, depth, texel.bits, bytes) ||
	    plane_bytes(half(width), texel.colour_rows == 2 ? half(height) : height, depth,
			texel.colour_bits, &colour))
		return -1;
	return __builtin_add_overflow(*bytes, colour, bytes) ? -1 : 0;
}

static uint64_t at_least_one(uint64_t extent)
{
	return extent ? extent : 1;
}

/* All levels, and the driver takes 0 for 1.  Depth halves from level to level, unless
 * it counts layers. */
static int array_bytes(const CUDA_ARRAY3D_DESCRIPTOR *of, unsigned int levels, uint64_t *bytes)
{
	uint64_t width = of->Width, height = at_least_one(of->Height);
	uint64_t depth = at_least_one(of->Depth), level;
	int has_layers = of->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP);

	*bytes = 0;
	for (unsigned int i = 0; i == 0 || i < levels; i++) {
		if (level_bytes(of, width, height, depth, &level) ||
		    __builtin_add_overflow(*bytes, level, bytes))
			return -1;
		if (width == 1 && height == 1 && (has_layers || depth == 1))
			break;
		width = at_least_one(width / 2);
		height = at_least_one(height / 2);
		depth = has_layers ? depth : at_least_one(depth / 2);
	}
	return 0;
}

/* ---- making them --------------------------------------------------------------------------------
 */

/* 1: charge it.  What makes no sense is the driver's to refuse. */
static int is_sized(const CUDA_ARRAY3D_DESCRIPTOR *of, unsigned int levels, uint64_t *bytes)
{
	return !(of->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) && of->Width &&
	       !array_bytes(of, levels, bytes) && *bytes;
}

static CUresult stake(struct claim *claim, const struct driver *driver, const struct tenant *tenant,
		      uint64_t bytes)
{
	CUresult rc = vgpu_claim(claim, driver, tenant);
	int slice;

	if (rc)
		return rc;
	slice = vgpu_current_slice(driver, tenant, claim->process);
	return vgpu_stake(claim, RECORD_OBJECT, slice, vgpu_granule_round(tenant, slice, bytes));
}

#define CREATE(symbol, object, destroy, parameters, arguments, description, levels)                \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		const struct tenant *tenant = vgpu_tenant();                                       \
		struct claim claim;                                                                \
		uint64_t bytes;                                                                    \
		CUresult rc, answer;                                                               \
                                                                                                   \
		if (!vgpu_is_charged(tenant) || !object || !of ||                                  \
		    !is_sized(description, levels, &bytes))                                        \
			return driver->real.symbol arguments;                                      \
		rc = stake(&claim, driver, tenant, bytes);                                         \
		if (rc)                                                                            \
			return rc;                                                                 \
		rc = driver->real.symbol arguments;                                                \
		answer = vgpu_conclude(&claim, rc, rc ? 0 : (uintptr_t)*object);                   \
		if (answer && !rc)                                                                 \
			driver->real.destroy(*object);                                             \
		return answer;                                                                     \
	}

#define AS_3D(depth, flags)                                                                        \
	(&(CUDA_ARRAY3D_DESCRIPTOR){of->Width, of->Height, depth, of->Format, of->NumChannels,     \
				    flags})

CREATE(cuArrayCreate, array, cuArrayDestroy, (CUarray * array, const CUDA_ARRAY_DESCRIPTOR_v1 *of),
       (array, of), AS_3D(0, 0), 1)
CREATE(cuArrayCreate_v2, array, cuArrayDestroy, (CUarray * array, const CUDA_ARRAY_DESCRIPTOR *of),
       (array, of), AS_3D(0, 0), 1)
CREATE(cuArray3DCreate, array, cuArrayDestroy,
       (CUarray * array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *of), (array, of),
       AS_3D(of->Depth, of->Flags), 1)
CREATE(cuArray3DCreate_v2, array, cuArrayDestroy,
       (CUarray * array, const CUDA_ARRAY3D_DESCRIPTOR *of), (array, of), of, 1)
CREATE(cuMipmappedArrayCreate, mipmap, cuMipmappedArrayDestroy,
       (CUmipmappedArray * mipmap, const CUDA_ARRAY3D_DESCRIPTOR *of, unsigned int levels),
       (mipmap, of, levels), of, levels)

/* Memory that another driver interface made, and that nobody has charged yet. */
CUresult cuImportExternalMemory(CUexternalMemory *memory,
				const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *of)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct claim claim;
	CUresult rc, answer;

	if (!vgpu_is_charged(tenant) || !memory || !of || !of->size)
		return driver->real.cuImportExternalMemory(memory, of);
	rc = stake(&claim, driver, tenant, of->size);
	if (rc)
		return rc;
	rc = driver->real.cuImportExternalMemory(memory, of);
	answer = vgpu_conclude(&claim, rc, rc ? 0 : (uintptr_t)*memory);
	if (answer && !rc)
		driver->real.cuDestroyExternalMemory(*memory);
	return answer;
}

/* ---- ending them
 * ---------------------------------------------------------------------------------- */

#define DESTROY(symbol, type, name)                                                                \
	CUresult symbol(type name)                                                                 \
	{                                                                                          \
		struct claim claim;                                                                \
		struct record *record = vgpu_withdraw(&claim, RECORD_OBJECT, (uintptr_t)name);     \
		CUresult rc = vgpu_driver(LIBRARY_CUDA)->real.symbol(name);                        \
                                                                                                   \
		if (!rc && claim.process)                                                          \
			vgpu_bindings_drop(claim.process, (uintptr_t)name);                        \
		return vgpu_settled(&claim, record, rc);                                           \
	}

DESTROY(cuArrayDestroy, CUarray, array)
DESTROY(cuMipmappedArrayDestroy, CUmipmappedArray, mipmap)
DESTROY(cuDestroyExternalMemory, CUexternalMemory, memory)
