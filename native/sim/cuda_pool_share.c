/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pools of other processes.
 *
 * A pool comes as a descriptor, its allocations one by one as 64 bytes each.  An
 * imported pool allocates nothing itself; what it imports stays as long as the
 * importer has it, whatever the exporter does.
 */
#include <string.h>

#include "cuda_pool.h"

#define MAGIC 0x766770757074ULL

struct pointer {
	uint64_t magic;
	uint64_t generation; /* of the shared memory */
	uint64_t offset, size;
	uint32_t number;
	uint32_t pool; /* number of the pool, 1 added */
};

_Static_assert(sizeof(struct pointer) <= sizeof(CUmemPoolPtrExportData), "it fits");

API cuMemPoolExportToShareableHandle(void *handle, CUmemoryPool from,
				     CUmemAllocationHandleType type, unsigned long long flags)
{
	struct pool *pool;
	ENTER();
	TRY(pool_of(from, &pool));
	if (!handle || flags || !pool->shared || pool->imported ||
	    type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	return share_export(pool->shared, handle);
}

API cuMemPoolImportFromShareableHandle(CUmemoryPool *handle, void *descriptor,
				       CUmemAllocationHandleType type, unsigned long long flags)
{
	uint32_t shared;
	ENTER();
	if (!handle || flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_NOT_SUPPORTED;
	TRY(share_import((int)(intptr_t)descriptor, SIM_SHARED_POOL, &shared));
	const struct sim_shared *entry = share_entry(shared);
	struct device *device = device_numbered((uint32_t)entry->key[0]);
	struct pool *pool = device ? pool_new(device) : NULL;
	if (!pool) {
		share_drop(shared);
		return device ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_DEVICE;
	}
	pool->heap.host = entry->key[1];
	pool->heap.keeps_empty = false;
	pool->imported = true;
	pool->shared = shared;
	*handle = pool_handle(pool);
	return CUDA_SUCCESS;
}

API cuMemPoolExportPointer(CUmemPoolPtrExportData *data, CUdeviceptr pointer)
{
	struct allocation found;
	ENTER();
	if (!data || !find_allocation((uintptr_t)pointer, &found) || !found.range->heap ||
	    !found.range->heap->shareable)
		return CUDA_ERROR_INVALID_VALUE;
	const struct range *range = found.range;
	const struct pointer exported = {
		.magic = MAGIC,
		.generation = share_entry(range->shared)->generation,
		.offset = found.base - range->base,
		.size = found.size,
		.number = range->shared - 1,
		.pool = range->heap->pool->shared,
	};
	memset(data, 0, sizeof(*data));
	memcpy(data, &exported, sizeof(exported));
	return CUDA_SUCCESS;
}

API cuMemPoolImportPointer(CUdeviceptr *pointer, CUmemoryPool into, CUmemPoolPtrExportData *data)
{
	struct pointer exported;
	struct range *range;
	struct pool *pool;
	uint32_t shared;
	ENTER();
	TRY(pool_of(into, &pool));
	if (!pointer || !data || !pool->imported)
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(&exported, data, sizeof(exported));
	if (exported.magic != MAGIC || exported.pool != pool->shared ||
	    exported.number >= SIM_SHARED ||
	    share_hold((int)exported.number, exported.generation, &shared))
		return CUDA_ERROR_INVALID_VALUE;
	CUresult result = heap_adopt(&pool->heap, RANGE_DEVICE, shared, &range);
	if (result) {
		share_drop(shared);
		return result;
	}
	range->skip = exported.offset;
	range->wanted = exported.size;
	pool->heap.used += range->size;
	*pointer = (CUdeviceptr)(range->base + range->skip);
	return CUDA_SUCCESS;
}
