/* SPDX-License-Identifier: Apache-2.0 */
/* What can be asked of a pool, and set. */
#include "cuda_pool.h"

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
