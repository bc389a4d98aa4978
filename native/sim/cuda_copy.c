/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies.  Bytes really move, at once and in the order of the calls; the device
 * time that a copy would take goes into the same queue as kernels.
 *
 * Every form is a box: rows, layers, and where each begins.
 */
#include <string.h>

#include "cuda_work.h"

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

enum side { HOST, DEVICE, EITHER };

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
static CUresult put(const struct copy *copy, enum side to, enum side from, CUstream on,
		    bool per_thread, bool wait)
{
	struct work work = {.type = CU_GRAPH_NODE_TYPE_MEMCPY, .memcpy = {.copy = *copy}};
	struct stream *stream;
	ENTER();
	TRY(stream_of(on, per_thread, &stream));
	TRY(check(copy, to, from));
	if (wait)
		UNSAFE();
	TRY(stream_do(stream, &work));
	return wait ? stream_finish(stream) : CUDA_SUCCESS;
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

static CUresult side_of(unsigned type, const void *host, CUdeviceptr device, uintptr_t *base,
			enum side *side)
{
	switch (type) {
	case CU_MEMORYTYPE_HOST:
		*base = (uintptr_t)host;
		*side = HOST;
		return CUDA_SUCCESS;
	case CU_MEMORYTYPE_DEVICE:
		*base = (uintptr_t)device;
		*side = DEVICE;
		return CUDA_SUCCESS;
	case CU_MEMORYTYPE_UNIFIED:
		*base = (uintptr_t)device;
		*side = EITHER;
		return CUDA_SUCCESS;
	case CU_MEMORYTYPE_ARRAY:
		return CUDA_ERROR_NOT_SUPPORTED;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
}

static CUresult parse(const CUDA_MEMCPY3D *p, struct copy *copy, enum side *to_side,
		      enum side *from_side)
{
	uintptr_t to, from;
	TRY(side_of(p->dstMemoryType, p->dstHost, p->dstDevice, &to, to_side));
	TRY(side_of(p->srcMemoryType, p->srcHost, p->srcDevice, &from, from_side));
	size_t to_pitch = p->dstPitch ? p->dstPitch : p->WidthInBytes + p->dstXInBytes;
	size_t from_pitch = p->srcPitch ? p->srcPitch : p->WidthInBytes + p->srcXInBytes;
	size_t to_height = p->dstHeight ? p->dstHeight : p->Height + p->dstY;
	size_t from_height = p->srcHeight ? p->srcHeight : p->Height + p->srcY;
	if (p->WidthInBytes + p->dstXInBytes > to_pitch ||
	    p->WidthInBytes + p->srcXInBytes > from_pitch)
		return CUDA_ERROR_INVALID_VALUE;
	*copy = (struct copy){
		.to = (char *)(to + p->dstXInBytes + to_pitch * (p->dstY + to_height * p->dstZ)),
		.from = (const char *)(from + p->srcXInBytes +
				       from_pitch * (p->srcY + from_height * p->srcZ)),
		.to_pitch = to_pitch,
		.from_pitch = from_pitch,
		.to_layer = to_pitch * to_height,
		.from_layer = from_pitch * from_height,
		.width = p->WidthInBytes,
		.height = p->Height,
		.depth = p->Depth,
	};
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
	CHECK_READY();
	TRY(parse(parameters, &copy, &to, &from));
	return put(&copy, to, from, stream, per_thread, wait);
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
