/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies.  Bytes really move, at once and in the order of the calls; the device
 * time that a copy would take goes into the same queue as kernels.
 *
 * Every form is a box: rows, layers, and where each begins.
 */
#include <string.h>

#include "cuda_array.h"

uint64_t copy_ns(uint64_t bytes)
{
	const struct sim_knobs *knobs = &driver.machine->knobs;
	uint64_t moving = knobs->copy_bytes_per_us ? bytes * 1000 / knobs->copy_bytes_per_us : 0;
	return knobs->copy_latency_ns + moving;
}

void copy_run(const struct copy *copy)
{
	for (size_t z = 0; z < copy->depth; z++)
		for (size_t y = 0; y < copy->height; y++)
			memmove(copy->to + z * copy->to_layer + y * copy->to_pitch,
				copy->from + z * copy->from_layer + y * copy->from_pitch,
				copy->width);
}

enum side { HOST, DEVICE, EITHER, ARRAY };

/* One side of a box: where it begins and what lies between its rows and layers. */
struct place {
	uintptr_t base;
	size_t pitch, layer;
	enum side side;
};

/* Bytes from the first to the last that a side of the box touches. */
static size_t extent(const struct copy *copy, size_t pitch, size_t layer)
{
	if (!copy->width || !copy->height || !copy->depth)
		return 0;
	return (copy->depth - 1) * layer + (copy->height - 1) * pitch + copy->width;
}

static CUresult check_side(const void *pointer, size_t bytes, enum side side)
{
	CUdeviceptr address = (CUdeviceptr)(uintptr_t)pointer;
	if (!bytes)
		return CUDA_SUCCESS;
	if (side == DEVICE && !memory_valid(address, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	/* Host memory is the client's own; memory of ours must still be whole. */
	if (side == EITHER && range_at((uintptr_t)pointer) && !memory_valid(address, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	return pointer ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult check(const struct copy *copy, enum side to, enum side from)
{
	TRY(check_side(copy->to, extent(copy, copy->to_pitch, copy->to_layer), to));
	return check_side(copy->from, extent(copy, copy->from_pitch, copy->from_layer), from);
}

/* Put a copy on a stream; `wait` for the forms that return when it is done. */
static CUresult put_held(const struct copy *copy, enum side to, enum side from, CUstream on,
			 bool per_thread, bool wait)
{
	struct work work = {.type = CU_GRAPH_NODE_TYPE_MEMCPY, .memcpy = {.copy = *copy}};
	struct stream *stream;
	TRY(stream_of(on, per_thread, &stream));
	TRY(check(copy, to, from));
	if (wait)
		UNSAFE();
	TRY(stream_do(stream, &work));
	return wait ? stream_finish(stream) : CUDA_SUCCESS;
}

static CUresult put(const struct copy *copy, enum side to, enum side from, CUstream on,
		    bool per_thread, bool wait)
{
	ENTER();
	return put_held(copy, to, from, on, per_thread, wait);
}

static struct copy line(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	return (struct copy){
		.to = (char *)(uintptr_t)to,
		.from = (const char *)(uintptr_t)from,
		.width = bytes,
		.height = 1,
		.depth = 1,
	};
}

#define AT(pointer) ((CUdeviceptr)(uintptr_t)(pointer))
#define LINE(to, from) (&(struct copy[]){line(to, from, bytes)}[0])

TWINS(cuMemcpy, ptds, (CUdeviceptr to, CUdeviceptr from, size_t bytes),
      put(LINE(to, from), EITHER, EITHER, NULL, per_thread, true))
TWINS(cuMemcpyHtoD_v2, ptds, (CUdeviceptr to, const void *from, size_t bytes),
      put(LINE(to, AT(from)), DEVICE, EITHER, NULL, per_thread, true))
TWINS(cuMemcpyDtoH_v2, ptds, (void *to, CUdeviceptr from, size_t bytes),
      put(LINE(AT(to), from), EITHER, DEVICE, NULL, per_thread, true))
TWINS(cuMemcpyDtoD_v2, ptds, (CUdeviceptr to, CUdeviceptr from, size_t bytes),
      put(LINE(to, from), DEVICE, DEVICE, NULL, per_thread, false))
TWINS(cuMemcpyPeer, ptds,
      (CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
       size_t bytes),
      ((void)to_context, (void)from_context,
       put(LINE(to, from), DEVICE, DEVICE, NULL, per_thread, false)))

TWINS(cuMemcpyAsync, ptsz, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream),
      put(LINE(to, from), EITHER, EITHER, stream, per_thread, false))
TWINS(cuMemcpyHtoDAsync_v2, ptsz, (CUdeviceptr to, const void *from, size_t bytes, CUstream stream),
      put(LINE(to, AT(from)), DEVICE, EITHER, stream, per_thread, false))
TWINS(cuMemcpyDtoHAsync_v2, ptsz, (void *to, CUdeviceptr from, size_t bytes, CUstream stream),
      put(LINE(AT(to), from), EITHER, DEVICE, stream, per_thread, false))
TWINS(cuMemcpyDtoDAsync_v2, ptsz, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream),
      put(LINE(to, from), DEVICE, DEVICE, stream, per_thread, false))
TWINS(cuMemcpyPeerAsync, ptsz,
      (CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes,
       CUstream stream),
      ((void)to_context, (void)from_context,
       put(LINE(to, from), DEVICE, DEVICE, stream, per_thread, false)))

/* ---- boxes ---- */

/* The box must lie within the array, which says itself what its rows are. */
static CUresult place_in(CUarray handle, const size_t *at, const CUDA_MEMCPY3D *box,
			 struct place *place)
{
	struct array *array;
	TRY(array_of(handle, &array));
	const struct layout *layout = &array->layout;
	if (at[0] > layout->width || box->WidthInBytes > layout->width - at[0] ||
	    at[1] > layout->rows || box->Height > layout->rows - at[1] || at[2] > layout->slices ||
	    box->Depth > layout->slices - at[2])
		return CUDA_ERROR_INVALID_VALUE;
	size_t layer = layout->width * layout->rows;
	*place = (struct place){
		.base = (uintptr_t)array->memory + at[0] + at[1] * layout->width + at[2] * layer,
		.pitch = layout->width,
		.layer = layer,
		.side = ARRAY,
	};
	return CUDA_SUCCESS;
}

static CUresult place_of(unsigned type, const void *host, CUdeviceptr device, size_t pitch,
			 size_t height, const size_t *at, const CUDA_MEMCPY3D *box,
			 struct place *place)
{
	if (type < CU_MEMORYTYPE_HOST || type > CU_MEMORYTYPE_UNIFIED)
		return CUDA_ERROR_INVALID_VALUE;
	pitch = pitch ? pitch : box->WidthInBytes + at[0];
	height = height ? height : box->Height + at[1];
	if (box->WidthInBytes + at[0] > pitch)
		return CUDA_ERROR_INVALID_VALUE;
	uintptr_t base = type == CU_MEMORYTYPE_HOST ? (uintptr_t)host : (uintptr_t)device;
	*place = (struct place){
		.base = base + at[0] + pitch * (at[1] + height * at[2]),
		.pitch = pitch,
		.layer = pitch * height,
		.side = type == CU_MEMORYTYPE_HOST      ? HOST
			: type == CU_MEMORYTYPE_UNIFIED ? EITHER
							: DEVICE,
	};
	return CUDA_SUCCESS;
}

static CUresult parse(const CUDA_MEMCPY3D *p, struct copy *copy, enum side *to_side,
		      enum side *from_side)
{
	const size_t to_at[3] = {p->dstXInBytes, p->dstY, p->dstZ};
	const size_t from_at[3] = {p->srcXInBytes, p->srcY, p->srcZ};
	struct place to, from;
	if (p->dstMemoryType == CU_MEMORYTYPE_ARRAY)
		TRY(place_in(p->dstArray, to_at, p, &to));
	else
		TRY(place_of(p->dstMemoryType, p->dstHost, p->dstDevice, p->dstPitch, p->dstHeight,
			     to_at, p, &to));
	if (p->srcMemoryType == CU_MEMORYTYPE_ARRAY)
		TRY(place_in(p->srcArray, from_at, p, &from));
	else
		TRY(place_of(p->srcMemoryType, p->srcHost, p->srcDevice, p->srcPitch, p->srcHeight,
			     from_at, p, &from));
	*copy = (struct copy){
		.to = (char *)to.base,
		.from = (const char *)from.base,
		.to_pitch = to.pitch,
		.from_pitch = from.pitch,
		.to_layer = to.layer,
		.from_layer = from.layer,
		.width = p->WidthInBytes,
		.height = p->Height,
		.depth = p->Depth,
	};
	*to_side = to.side;
	*from_side = from.side;
	return CUDA_SUCCESS;
}

CUresult copy_parse(const CUDA_MEMCPY3D *parameters, struct copy *copy)
{
	enum side to, from;
	TRY(parse(parameters, copy, &to, &from));
	return check(copy, to, from);
}

static CUresult put_box(const CUDA_MEMCPY3D *parameters, CUstream stream, bool per_thread,
			bool wait)
{
	struct copy copy;
	enum side to, from;
	ENTER();
	TRY(parse(parameters, &copy, &to, &from));
	return put_held(&copy, to, from, stream, per_thread, wait);
}

static CUresult put_3d(const CUDA_MEMCPY3D *parameters, CUstream stream, bool per_thread, bool wait)
{
	return parameters ? put_box(parameters, stream, per_thread, wait)
			  : CUDA_ERROR_INVALID_VALUE;
}

static CUresult put_2d(const CUDA_MEMCPY2D *p, CUstream stream, bool per_thread, bool wait)
{
	if (!p)
		return CUDA_ERROR_INVALID_VALUE;
	CUDA_MEMCPY3D box = {
		.srcXInBytes = p->srcXInBytes,
		.srcY = p->srcY,
		.srcMemoryType = p->srcMemoryType,
		.srcHost = p->srcHost,
		.srcDevice = p->srcDevice,
		.srcArray = p->srcArray,
		.srcPitch = p->srcPitch,
		.dstXInBytes = p->dstXInBytes,
		.dstY = p->dstY,
		.dstMemoryType = p->dstMemoryType,
		.dstHost = p->dstHost,
		.dstDevice = p->dstDevice,
		.dstArray = p->dstArray,
		.dstPitch = p->dstPitch,
		.WidthInBytes = p->WidthInBytes,
		.Height = p->Height,
		.Depth = 1,
	};
	return put_box(&box, stream, per_thread, wait);
}

TWINS(cuMemcpy2D_v2, ptds, (const CUDA_MEMCPY2D *copy), put_2d(copy, NULL, per_thread, true))
TWINS(cuMemcpy2DUnaligned_v2, ptds, (const CUDA_MEMCPY2D *copy),
      put_2d(copy, NULL, per_thread, true))
TWINS(cuMemcpy2DAsync_v2, ptsz, (const CUDA_MEMCPY2D *copy, CUstream stream),
      put_2d(copy, stream, per_thread, false))
TWINS(cuMemcpy3D_v2, ptds, (const CUDA_MEMCPY3D *copy), put_3d(copy, NULL, per_thread, true))
TWINS(cuMemcpy3DAsync_v2, ptsz, (const CUDA_MEMCPY3D *copy, CUstream stream),
      put_3d(copy, stream, per_thread, false))

/* ---- lines of arrays of one dimension ---- */

#define FROM_ARRAY(array, offset)                                                                  \
	.srcMemoryType = CU_MEMORYTYPE_ARRAY, .srcArray = (array), .srcXInBytes = (offset)
#define TO_ARRAY(array, offset)                                                                    \
	.dstMemoryType = CU_MEMORYTYPE_ARRAY, .dstArray = (array), .dstXInBytes = (offset)
#define FROM_HOST(pointer) .srcMemoryType = CU_MEMORYTYPE_HOST, .srcHost = (pointer)
#define TO_HOST(pointer) .dstMemoryType = CU_MEMORYTYPE_HOST, .dstHost = (pointer)
#define FROM_DEVICE(pointer) .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = (pointer)
#define TO_DEVICE(pointer) .dstMemoryType = CU_MEMORYTYPE_DEVICE, .dstDevice = (pointer)
#define LINE_OF(to, from)                                                                          \
	(&(CUDA_MEMCPY3D){to, from, .WidthInBytes = bytes, .Height = 1, .Depth = 1})

TWINS(cuMemcpyAtoD_v2, ptds, (CUdeviceptr to, CUarray from, size_t offset, size_t bytes),
      put_box(LINE_OF(TO_DEVICE(to), FROM_ARRAY(from, offset)), NULL, per_thread, true))
TWINS(cuMemcpyDtoA_v2, ptds, (CUarray to, size_t offset, CUdeviceptr from, size_t bytes),
      put_box(LINE_OF(TO_ARRAY(to, offset), FROM_DEVICE(from)), NULL, per_thread, true))
TWINS(cuMemcpyHtoA_v2, ptds, (CUarray to, size_t offset, const void *from, size_t bytes),
      put_box(LINE_OF(TO_ARRAY(to, offset), FROM_HOST(from)), NULL, per_thread, true))
TWINS(cuMemcpyAtoH_v2, ptds, (void *to, CUarray from, size_t offset, size_t bytes),
      put_box(LINE_OF(TO_HOST(to), FROM_ARRAY(from, offset)), NULL, per_thread, true))
TWINS(cuMemcpyAtoA_v2, ptds,
      (CUarray to, size_t to_offset, CUarray from, size_t offset, size_t bytes),
      put_box(LINE_OF(TO_ARRAY(to, to_offset), FROM_ARRAY(from, offset)), NULL, per_thread, true))
TWINS(cuMemcpyHtoAAsync_v2, ptsz,
      (CUarray to, size_t offset, const void *from, size_t bytes, CUstream stream),
      put_box(LINE_OF(TO_ARRAY(to, offset), FROM_HOST(from)), stream, per_thread, false))
TWINS(cuMemcpyAtoHAsync_v2, ptsz,
      (void *to, CUarray from, size_t offset, size_t bytes, CUstream stream),
      put_box(LINE_OF(TO_HOST(to), FROM_ARRAY(from, offset)), stream, per_thread, false))
