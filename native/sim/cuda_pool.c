/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pools: memory that is allocated and freed in the order of a stream.
 *
 * A pool holds on to what is freed, charged to the device, until a
 * synchronisation finds it idle above the release threshold (0 at first), until
 * it is trimmed, or until somebody else is short of memory.
 */
#include <stdlib.h>

#include "cuda_pool.h"

_Static_assert(sizeof(struct pool) <= 256, "an object fits a cell");

static struct pool *pools;
static struct pool *host_default, *host_pool; /* the one in use */

struct pool *pool_new(struct device *device)
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
	if (pool->shared)
		share_drop(pool->shared);
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

CUresult pool_of(CUmemoryPool handle, struct pool **pool)
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
	graph_memory_end(device);
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

/* ---- pools themselves ---- */

/* Memory of the host is nobody's device's; its pool takes turns on the first. */
static CUresult place_of(const CUmemPoolProps *properties, struct device **device, bool *host)
{
	*host = properties->location.type >= CU_MEM_LOCATION_TYPE_HOST &&
		properties->location.type <= CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
	if (*host)
		return device_of(0, device);
	if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
		return CUDA_ERROR_INVALID_VALUE;
	return device_of(properties->location.id, device);
}

/* A pool that can be exported is known to the machine from the beginning. */
static CUresult make_shareable(struct pool *pool)
{
	const struct sim_shared wanted = {
		.kind = SIM_SHARED_POOL,
		.device = SIM_DEVICES,
		.key = {pool->heap.device->number, pool->heap.host},
	};
	pool->heap.shareable = true;
	return share_make(&wanted, &pool->shared);
}

API cuMemPoolCreate(CUmemoryPool *handle, const CUmemPoolProps *properties)
{
	struct device *device;
	bool host;
	ENTER();
	if (!handle || !properties)
		return CUDA_ERROR_INVALID_VALUE;
	if (properties->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED ||
	    properties->handleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(place_of(properties, &device, &host));
	struct pool *pool = pool_new(device);
	if (!pool)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pool->limit = properties->maxSize;
	pool->heap.host = host;
	if (properties->handleTypes && make_shareable(pool)) {
		pool_free(pool);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*handle = pool_handle(pool);
	return CUDA_SUCCESS;
}

void pool_drop(struct pool *pool)
{
	pool->closing = true;
	if (!pool->heap.used)
		pool_free(pool);
}

API cuMemPoolDestroy(CUmemoryPool handle)
{
	struct pool *pool;
	ENTER();
	TRY(pool_of(handle, &pool));
	struct device *device = pool->heap.device;
	if (device->default_pool == pool || pool == host_default)
		return CUDA_ERROR_INVALID_VALUE;
	if (device->pool == pool)
		device->pool = device->default_pool;
	if (host_pool == pool)
		host_pool = host_default;
	pool_drop(pool);
	return CUDA_SUCCESS;
}

API cuMemPoolTrimTo(CUmemoryPool handle, size_t keep)
{
	struct pool *pool;
	ENTER();
	TRY(pool_of(handle, &pool));
	/* What was freed for work that is not done is not idle yet. */
	const struct device *device = pool->heap.device;
	if (pool->free_target <= sim_served(device->number, driver.slot))
		heap_release(&pool->heap, keep);
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
	if (pool->heap.device != device || pool->heap.host || pool->imported)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(device_pools(device));
	device->pool = pool;
	return CUDA_SUCCESS;
}

/* ---- the same by location ---- */

static CUresult host_pools(void)
{
	struct device *device;
	TRY(device_of(0, &device));
	if (host_default)
		return CUDA_SUCCESS;
	host_default = pool_new(device);
	if (!host_default)
		return CUDA_ERROR_OUT_OF_MEMORY;
	host_default->heap.host = true;
	host_pool = host_default;
	return CUDA_SUCCESS;
}

static CUresult check_location(const CUmemLocation *location, CUmemAllocationType type)
{
	if (type == CU_MEM_ALLOCATION_TYPE_MANAGED)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (!location || type != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    location->type < CU_MEM_LOCATION_TYPE_DEVICE ||
	    location->type > CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_SUCCESS;
}

static CUresult location_pool(CUmemoryPool *handle, const CUmemLocation *location,
			      CUmemAllocationType type, bool standard)
{
	CHECK_READY();
	TRY(check_location(location, type));
	if (location->type == CU_MEM_LOCATION_TYPE_DEVICE)
		return device_pool(handle, location->id, standard);
	ENTER();
	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(host_pools());
	*handle = pool_handle(standard ? host_default : host_pool);
	return CUDA_SUCCESS;
}

API cuMemGetDefaultMemPool(CUmemoryPool *pool, CUmemLocation *location, CUmemAllocationType type)
{
	return location_pool(pool, location, type, true);
}

API cuMemGetMemPool(CUmemoryPool *pool, CUmemLocation *location, CUmemAllocationType type)
{
	return location_pool(pool, location, type, false);
}

API cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool handle)
{
	struct pool *pool;
	CHECK_READY();
	TRY(check_location(location, type));
	if (location->type == CU_MEM_LOCATION_TYPE_DEVICE)
		return cuDeviceSetMemPool(location->id, handle);
	ENTER();
	TRY(pool_of(handle, &pool));
	if (!pool->heap.host || pool->imported)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(host_pools());
	host_pool = pool;
	return CUDA_SUCCESS;
}
