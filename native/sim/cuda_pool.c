/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stream-ordered memory: pools, and allocation and freeing on streams.
 *
 * A pool holds on to what is freed, charged to the device, until a
 * synchronisation finds it idle above the release threshold (0 at first), until
 * it is trimmed, or until somebody else is short of memory.  All work of a
 * process on a device is one sequence, so memory freed on any stream may be
 * given out again at once.
 */
#include <stdlib.h>

#include "cuda_work.h"

struct pool {
	struct object object;
	struct pool *next; /* of all pools of the process */
	struct heap heap;
	uint64_t threshold;
	uint64_t limit; /* 0: none */
	uint64_t used_high, reserved_high;
	uint64_t free_target; /* the newest free takes effect there */
	int reuse[3];
	uint32_t peers; /* bit: that device may use the memory */
	bool closing;   /* destroyed, with allocations left */
};

_Static_assert(sizeof(struct pool) <= 256, "an object fits a cell");

static struct pool *pools;

static struct pool *pool_new(struct device *device)
{
	struct pool *pool = object_new(OBJECT_POOL, NULL);
	if (!pool)
		return NULL;
	pool->heap.device = device;
	pool->heap.pool = pool;
	pool->heap.keeps_empty = true;
	for (int i = 0; i < 3; i++)
		pool->reuse[i] = 1;
	pool->next = pools;
	pools = pool;
	return pool;
}

static void pool_free(struct pool *pool)
{
	struct pool **place = &pools;
	while (*place != pool)
		place = &(*place)->next;
	*place = pool->next;
	heap_destroy(&pool->heap);
	object_free(pool);
}

CUresult device_pools(struct device *device)
{
	if (device->default_pool)
		return CUDA_SUCCESS;
	device->default_pool = pool_new(device);
	device->pool = device->default_pool;
	return device->pool ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUmemoryPool pool_handle(struct pool *pool)
{
	return (CUmemoryPool)pool;
}

static CUresult pool_of(CUmemoryPool handle, struct pool **pool)
{
	*pool = object_of(handle, OBJECT_POOL);
	return *pool && !(*pool)->closing ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void pools_settle(struct device *device)
{
	for (struct pool *pool = pools; pool; pool = pool->next)
		if (pool->heap.device == device && pool->free_target <= device->served)
			heap_release(&pool->heap, pool->threshold);
}

void pools_shrink(struct device *device)
{
	for (struct pool *pool = pools; pool; pool = pool->next)
		if (pool->heap.device == device)
			heap_release(&pool->heap, 0);
}

void pools_empty(struct device *device)
{
	for (struct pool *pool = pools; pool; pool = pool->next)
		if (pool->heap.device == device)
			heap_destroy(&pool->heap);
}

void allocation_free(const struct allocation *allocation)
{
	struct heap *heap = allocation->range->heap;
	struct pool *pool = heap ? heap->pool : NULL;
	uint64_t served;
	heap_free(allocation);
	if (!pool)
		return;
	pool->free_target = sim_enqueue(pool->heap.device->number, driver.slot, 0, 0, &served);
	if (pool->closing && !pool->heap.used)
		pool_free(pool);
}

CUresult pool_alloc(struct pool *pool, size_t bytes, CUdeviceptr *pointer)
{
	if (pool->limit &&
	    bytes > pool->limit - (pool->heap.used < pool->limit ? pool->heap.used : pool->limit))
		return CUDA_ERROR_OUT_OF_MEMORY;
	TRY(heap_alloc(&pool->heap, RANGE_DEVICE, bytes, pointer));
	if (pool->heap.used > pool->used_high)
		pool->used_high = pool->heap.used;
	if (pool->heap.charged > pool->reserved_high)
		pool->reserved_high = pool->heap.charged;
	return CUDA_SUCCESS;
}

/* ---- on streams ---- */

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

/* ---- pools themselves ---- */

API cuMemPoolCreate(CUmemoryPool *handle, const CUmemPoolProps *properties)
{
	struct device *device;
	ENTER();
	if (!handle || !properties || properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
		return CUDA_ERROR_INVALID_VALUE;
	if (properties->handleTypes || properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
		return CUDA_ERROR_NOT_SUPPORTED;
	TRY(device_of(properties->location.id, &device));
	struct pool *pool = pool_new(device);
	if (!pool)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pool->limit = properties->maxSize;
	*handle = pool_handle(pool);
	return CUDA_SUCCESS;
}

API cuMemPoolDestroy(CUmemoryPool handle)
{
	struct pool *pool;
	ENTER();
	TRY(pool_of(handle, &pool));
	struct device *device = pool->heap.device;
	if (device->default_pool == pool)
		return CUDA_ERROR_INVALID_VALUE;
	if (device->pool == pool)
		device->pool = device->default_pool;
	pool->closing = true;
	if (!pool->heap.used)
		pool_free(pool);
	return CUDA_SUCCESS;
}

API cuMemPoolTrimTo(CUmemoryPool handle, size_t keep)
{
	struct pool *pool;
	ENTER();
	TRY(pool_of(handle, &pool));
	heap_release(&pool->heap, keep);
	return CUDA_SUCCESS;
}

API cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value)
{
	struct pool *pool;
	uint64_t *wide = value;
	ENTER();
	TRY(pool_of(handle, &pool));
	if (!value)
		return CUDA_ERROR_INVALID_VALUE;
	switch (attribute) {
	case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
	case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
	case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
		*(int *)value = pool->reuse[attribute - 1];
		break;
	case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
		*wide = pool->threshold;
		break;
	case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
		*wide = pool->heap.charged;
		break;
	case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
		*wide = pool->reserved_high;
		break;
	case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
		*wide = pool->heap.used;
		break;
	case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
		*wide = pool->used_high;
		break;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

API cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value)
{
	struct pool *pool;
	const uint64_t *wide = value;
	ENTER();
	TRY(pool_of(handle, &pool));
	if (!value)
		return CUDA_ERROR_INVALID_VALUE;
	switch (attribute) {
	case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
	case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
	case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
		pool->reuse[attribute - 1] = *(const int *)value != 0;
		break;
	case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
		pool->threshold = *wide;
		break;
	case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: /* a high-water mark can only be put back */
		if (*wide)
			return CUDA_ERROR_INVALID_VALUE;
		pool->reserved_high = pool->heap.charged;
		break;
	case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
		if (*wide)
			return CUDA_ERROR_INVALID_VALUE;
		pool->used_high = pool->heap.used;
		break;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

API cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc *map, size_t count)
{
	struct device *device;
	struct pool *pool;
	ENTER();
	TRY(pool_of(handle, &pool));
	for (size_t i = 0; map && i < count; i++) {
		if (map[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE)
			return CUDA_ERROR_INVALID_VALUE;
		TRY(device_of(map[i].location.id, &device));
		if (device == pool->heap.device && !map[i].flags)
			return CUDA_ERROR_INVALID_VALUE;
		if (map[i].flags)
			pool->peers |= 1u << device->ordinal;
		else
			pool->peers &= ~(1u << device->ordinal);
	}
	return map ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API cuMemPoolGetAccess(unsigned int *flags, CUmemoryPool handle, const CUmemLocation *location)
{
	struct device *device;
	struct pool *pool;
	ENTER();
	TRY(pool_of(handle, &pool));
	if (!flags || !location || location->type != CU_MEM_LOCATION_TYPE_DEVICE)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(device_of(location->id, &device));
	*flags = device == pool->heap.device || pool->peers >> device->ordinal & 1 ? 3 : 0;
	return CUDA_SUCCESS;
}

static CUresult device_pool(CUmemoryPool *handle, CUdevice ordinal, bool standard)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(device_pools(device));
	*handle = pool_handle(standard ? device->default_pool : device->pool);
	return CUDA_SUCCESS;
}

API cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device)
{
	return device_pool(pool, device, true);
}

API cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device)
{
	return device_pool(pool, device, false);
}

API cuDeviceSetMemPool(CUdevice ordinal, CUmemoryPool handle)
{
	struct device *device;
	struct pool *pool;
	ENTER();
	TRY(device_of(ordinal, &device));
	TRY(pool_of(handle, &pool));
	if (pool->heap.device != device)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(device_pools(device));
	device->pool = pool;
	return CUDA_SUCCESS;
}
