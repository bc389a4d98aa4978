/* SPDX-License-Identifier: Apache-2.0 */
/* What a pointer is: the attributes of the memory that it points into. */
#include <string.h>

#include "cuda_physical.h"

static bool on_host(const struct range *range)
{
	return range->kind == RANGE_HOST || range->kind == RANGE_REGISTERED ||
	       (range->heap && range->heap->host);
}

static bool mapped_shareable(const struct range *range)
{
	return ((const struct physical *)range->detail)->shared != 0;
}

static size_t put(void *data, const void *value, size_t size)
{
	memcpy(data, value, size);
	return size;
}

#define PUT(type, value)                                                                           \
	do {                                                                                       \
		type value_ = (type)(value);                                                       \
		put(data, &value_, sizeof(value_));                                                \
	} while (0)

static void *pool_of(const struct range *range)
{
	return range->heap && range->heap->pool ? pool_handle(range->heap->pool) : NULL;
}

/* Attributes that are addresses, handles or numbers of the memory; false: not one of them. */
static bool put_place(const struct allocation *a, int attribute, CUdeviceptr pointer, void *data)
{
	const struct range *range = a->range;
	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		PUT(void *, range->context);
		return true;
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
		PUT(CUdeviceptr, pointer);
		return true;
	case CU_POINTER_ATTRIBUTE_BUFFER_ID:
		/* Small allocations share a block: their place tells them apart. */
		PUT(unsigned long long, range->id << 12 | (a->base - range->base) / 512 % 4096);
		return true;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		PUT(CUdeviceptr, a->base);
		return true;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		PUT(size_t, a->size);
		return true;
	case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
		PUT(void *, pool_of(range));
		return true;
	default:
		return false;
	}
}

/* Attributes that say what kind of memory it is. */
static bool put_kind(const struct range *range, int attribute, void *data)
{
	int value;
	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
		value = on_host(range) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
		break;
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
		value = range->kind == RANGE_MANAGED;
		break;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		value = range->device ? range->device->ordinal : -2;
		break;
	case CU_POINTER_ATTRIBUTE_MAPPED:
		value = 1;
		break;
	case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
		value = 3;
		break;
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
		value = (range->kind == RANGE_BLOCK || range->kind == RANGE_DEVICE) &&
			range->heap && !range->heap->pool && !range->external;
		break;
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
		value = range->heap ? range->heap->shareable
				    : range->kind == RANGE_MAPPED && mapped_shareable(range);
		break;
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
	case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
		value = 0;
		break;
	default:
		return false;
	}
	PUT(int, value);
	return true;
}

/* 0, or -1 when the memory has no such attribute. */
static int attribute_of(const struct allocation *a, int attribute, CUdeviceptr pointer, void *data)
{
	bool both = on_host(a->range) || a->range->kind == RANGE_MANAGED;
	if (attribute == CU_POINTER_ATTRIBUTE_HOST_POINTER && both) {
		PUT(void *, (uintptr_t)pointer);
		return 0;
	}
	return put_place(a, attribute, pointer, data) || put_kind(a->range, attribute, data) ? 0
											     : -1;
}

API cuPointerGetAttribute(void *data, int attribute, CUdeviceptr pointer)
{
	struct allocation found;
	ENTER();
	if (!data || !find_allocation((uintptr_t)pointer, &found) ||
	    attribute_of(&found, attribute, pointer, data))
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_SUCCESS;
}

/* Of memory that is not ours everything is null, and that is no error. */
static void nothing(int attribute, void *data)
{
	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		PUT(int, -2);
		break;
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
	case CU_POINTER_ATTRIBUTE_MAPPED:
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
	case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
	case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
		PUT(int, 0);
		break;
	default:
		PUT(void *, NULL);
	}
}

API cuPointerGetAttributes(unsigned int count, const int *attributes, void **data,
			   CUdeviceptr pointer)
{
	struct allocation found;
	ENTER();
	if (!count || !attributes || !data)
		return CUDA_ERROR_INVALID_VALUE;
	bool known = find_allocation((uintptr_t)pointer, &found);
	for (unsigned i = 0; i < count; i++) {
		if (attributes[i] < 1 || attributes[i] > CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE)
			return CUDA_ERROR_INVALID_VALUE;
		if (!known || attribute_of(&found, attributes[i], pointer, data[i]))
			nothing(attributes[i], data[i]);
	}
	return CUDA_SUCCESS;
}
