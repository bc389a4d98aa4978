/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stream-ordered memory: allocating and freeing on streams.
 *
 * All work of a process on a device is one sequence, so memory freed on any
 * stream may be given out again at once.  A capturing stream makes nodes.
 */
#include "cuda_pool.h"

static CUresult alloc_async(CUdeviceptr *pointer, size_t bytes, struct pool *pool,
			    struct stream *stream)
{
	struct device *device = pool ? pool->heap.device : stream_device(stream);
	struct work work = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC,
			    .memory = {.bytes = bytes, .device = device}};
	bool captured;
	if (!pointer || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (!stream->capture)
		return pool_alloc(pool ? pool : device->pool, bytes, pointer);
	TRY(graph_reserve(&work));
	CUresult result = capture_work(stream, &work, &captured);
	if (result)
		graph_unreserve(&work);
	else
		*pointer = work.memory.pointer;
	return result;
}

static CUresult alloc_on(CUdeviceptr *pointer, size_t bytes, CUstream handle, bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	return alloc_async(pointer, bytes, NULL, stream);
}

static CUresult alloc_from(CUdeviceptr *pointer, size_t bytes, CUmemoryPool from, CUstream handle,
			   bool per_thread)
{
	struct stream *stream;
	struct pool *pool;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	TRY(pool_of(from, &pool));
	if (pool->imported)
		return CUDA_ERROR_INVALID_VALUE;
	if (pool->heap.host && stream->capture)
		return CUDA_ERROR_NOT_SUPPORTED;
	return alloc_async(pointer, bytes, pool, stream);
}

static CUresult free_on(CUdeviceptr pointer, CUstream handle, bool per_thread)
{
	struct work work = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .memory = {.pointer = pointer}};
	struct allocation found;
	struct stream *stream;
	bool captured;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (!find_allocation((uintptr_t)pointer, &found) || found.base != (uintptr_t)pointer ||
	    !found.range->device || found.range->kind > RANGE_MANAGED)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(capture_work(stream, &work, &captured));
	if (captured)
		return CUDA_SUCCESS;
	if (stream_held(stream))
		return later_work(stream, &work);
	allocation_free(&found);
	return CUDA_SUCCESS;
}

TWINS(cuMemAllocAsync, ptsz, (CUdeviceptr * pointer, size_t bytes, CUstream stream),
      alloc_on(pointer, bytes, stream, per_thread))
TWINS(cuMemAllocFromPoolAsync, ptsz,
      (CUdeviceptr * pointer, size_t bytes, CUmemoryPool pool, CUstream stream),
      alloc_from(pointer, bytes, pool, stream, per_thread))
TWINS(cuMemFreeAsync, ptsz, (CUdeviceptr pointer, CUstream stream),
      free_on(pointer, stream, per_thread))
