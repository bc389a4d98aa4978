/* SPDX-License-Identifier: Apache-2.0 */
/* What a context tells about itself, and its settings. */
#include "cuda_driver.h"

API cuCtxGetDevice(CUdevice *device)
{
	CHECK_READY();
	CURRENT(context);
	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	*device = context->device->ordinal;
	return CUDA_SUCCESS;
}

API cuCtxGetDevice_v2(CUdevice *device, CUcontext handle)
{
	struct context *context;
	ENTER();
	TRY(context_or_current(handle, &context));
	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	*device = context->device->ordinal;
	return CUDA_SUCCESS;
}

static struct stream *stream_with_callbacks(struct context *context)
{
	for (struct object *object = context->objects; object; object = object->next)
		if (object->kind == OBJECT_STREAM && stream_held((struct stream *)object))
			return (struct stream *)object;
	return NULL;
}

static CUresult synchronize(struct context *context)
{
	struct device *device = context->device;
	uint32_t generation = context->object.generation;
	struct stream *waiting;
	uint64_t served;
	UNSAFE();
	while ((waiting = stream_with_callbacks(context))) {
		TRY(stream_finish(waiting));
		if (!context->alive || context->object.generation != generation)
			return CUDA_ERROR_CONTEXT_IS_DESTROYED;
	}
	wait_for(device, sim_enqueue(device->number, driver.slot, 0, 0, &served));
	pools_settle(device);
	return CUDA_SUCCESS;
}

API cuCtxSynchronize(void)
{
	ENTER();
	CURRENT(context);
	return synchronize(context);
}

API cuCtxSynchronize_v2(CUcontext handle)
{
	struct context *context;
	ENTER();
	TRY(context_or_current(handle, &context));
	return synchronize(context);
}

API cuCtxGetFlags(unsigned int *flags)
{
	ENTER();
	CURRENT(context);
	if (!flags)
		return CUDA_ERROR_INVALID_VALUE;
	*flags = context->flags;
	return CUDA_SUCCESS;
}

API cuCtxSetFlags(unsigned int flags)
{
	ENTER();
	CURRENT(context);
	if (flags & ~(unsigned)CU_CTX_FLAGS_MASK)
		return CUDA_ERROR_INVALID_VALUE;
	context->flags = flags;
	return CUDA_SUCCESS;
}

API cuCtxGetId(CUcontext handle, unsigned long long *id)
{
	struct context *context;
	ENTER();
	TRY(context_or_current(handle, &context));
	if (!id)
		return CUDA_ERROR_INVALID_VALUE;
	*id = context->id;
	return CUDA_SUCCESS;
}

API cuCtxGetApiVersion(CUcontext handle, unsigned int *version)
{
	struct context *context;
	ENTER();
	TRY(context_or_current(handle, &context));
	if (!version)
		return CUDA_ERROR_INVALID_VALUE;
	*version = context->version ? context->version : 3020;
	return CUDA_SUCCESS;
}

API cuCtxGetLimit(size_t *value, CUlimit limit)
{
	ENTER();
	CURRENT(context);
	if (!value)
		return CUDA_ERROR_INVALID_VALUE;
	if (limit >= CONTEXT_LIMITS)
		return CUDA_ERROR_UNSUPPORTED_LIMIT;
	*value = context->limits[limit];
	return CUDA_SUCCESS;
}

/* What a limit makes the driver set aside: a stack for every thread that the device
 * can hold, what kernels print, what they allocate. */
static uint64_t set_aside(const struct device *device, CUlimit limit, size_t value)
{
	const struct sim_identity *identity = device->identity;
	if (limit == CU_LIMIT_STACK_SIZE)
		return (uint64_t)value * identity->sm_count * identity->threads_per_sm;
	return limit == CU_LIMIT_PRINTF_FIFO_SIZE || limit == CU_LIMIT_MALLOC_HEAP_SIZE ? value : 0;
}

API cuCtxSetLimit(CUlimit limit, size_t value)
{
	ENTER();
	CURRENT(context);
	if (limit >= CONTEXT_LIMITS)
		return CUDA_ERROR_UNSUPPORTED_LIMIT;
	if (value > UINT32_MAX * 64ULL)
		return CUDA_ERROR_INVALID_VALUE;
	uint64_t before = set_aside(context->device, limit, context->limits[limit]);
	uint64_t after = set_aside(context->device, limit, value);
	/* What a new context has of it is part of what that takes, and stays. */
	uint64_t charged = context->limits_charged;
	uint64_t wanted = charged + after < before ? 0 : charged + after - before;
	if (wanted > charged)
		TRY(heap_charge(context->heap, wanted - charged));
	else
		heap_refund(context->heap, charged - wanted);
	context->limits_charged = wanted;
	context->limits[limit] = value;
	return CUDA_SUCCESS;
}

API cuCtxGetCacheConfig(int *config)
{
	ENTER();
	CURRENT(context);
	if (!config)
		return CUDA_ERROR_INVALID_VALUE;
	*config = context->cache_config;
	return CUDA_SUCCESS;
}

API cuCtxSetCacheConfig(int config)
{
	ENTER();
	CURRENT(context);
	if (config < 0 || config > 3)
		return CUDA_ERROR_INVALID_VALUE;
	context->cache_config = config;
	return CUDA_SUCCESS;
}

API cuCtxGetSharedMemConfig(int *config)
{
	ENTER();
	CURRENT(context);
	if (!config)
		return CUDA_ERROR_INVALID_VALUE;
	*config = context->shared_config;
	return CUDA_SUCCESS;
}

API cuCtxSetSharedMemConfig(int config)
{
	ENTER();
	CURRENT(context);
	if (config < 0 || config > 2)
		return CUDA_ERROR_INVALID_VALUE;
	context->shared_config = config;
	return CUDA_SUCCESS;
}

API cuCtxResetPersistingL2Cache(void)
{
	ENTER();
	CURRENT(context);
	(void)context;
	return CUDA_SUCCESS;
}

/* Smaller is more urgent. */
API cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	ENTER();
	CURRENT(context);
	(void)context;
	if (least)
		*least = 0;
	if (greatest)
		*greatest = -5;
	return CUDA_SUCCESS;
}

/* All memory is in one address space, so peers need nothing but permission. */

static CUresult peer_bit(CUcontext handle, struct context *context, unsigned *bit)
{
	struct context *peer;
	TRY(context_of(handle, &peer));
	if (peer->device == context->device)
		return CUDA_ERROR_INVALID_DEVICE;
	*bit = 1u << peer->device->ordinal;
	return CUDA_SUCCESS;
}

API cuCtxEnablePeerAccess(CUcontext handle, unsigned int flags)
{
	unsigned bit;
	ENTER();
	CURRENT(context);
	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(peer_bit(handle, context, &bit));
	if (context->peers & bit)
		return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
	context->peers |= bit;
	return CUDA_SUCCESS;
}

API cuCtxDisablePeerAccess(CUcontext handle)
{
	unsigned bit;
	ENTER();
	CURRENT(context);
	TRY(peer_bit(handle, context, &bit));
	if (!(context->peers & bit))
		return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
	context->peers &= ~bit;
	return CUDA_SUCCESS;
}
