/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contexts: the primary one of each device, created ones, and each thread's
 * stack of current ones.
 *
 * A context that ends takes everything made in it along: streams, events,
 * modules and memory.  A thread may still have it on its stack; it is then
 * "destroyed", which the generation of its cell reveals.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_array.h"

#define STACK 64

struct entry {
	struct context *context;
	uint32_t generation;
};

static __thread struct {
	struct entry entries[STACK];
	int depth;
} stack;

static const size_t default_limits[CONTEXT_LIMITS] = {
	1024,    /* stack */
	1048576, /* printf */
	8388608, /* heap */
	2,       /* synchronisation depth */
	2048,    /* pending launches */
	64,      /* L2 fetch */
};

static bool entry_valid(const struct entry *entry)
{
	return entry->context->object.kind == OBJECT_CONTEXT && entry->context->alive &&
	       entry->context->object.generation == entry->generation;
}

CUresult context_current(struct context **context)
{
	if (!stack.depth || !stack.entries[stack.depth - 1].context)
		return CUDA_ERROR_INVALID_CONTEXT;
	const struct entry *top = &stack.entries[stack.depth - 1];
	if (!entry_valid(top))
		return CUDA_ERROR_CONTEXT_IS_DESTROYED;
	*context = top->context;
	return CUDA_SUCCESS;
}

CUresult context_of(CUcontext handle, struct context **context)
{
	struct context *found = object_of(handle, OBJECT_CONTEXT);
	if (!found || !found->alive)
		return CUDA_ERROR_INVALID_CONTEXT;
	*context = found;
	return CUDA_SUCCESS;
}

CUresult context_or_current(CUcontext handle, struct context **context)
{
	return handle ? context_of(handle, context) : context_current(context);
}

static CUcontext handle_of(struct context *context)
{
	return (CUcontext)context;
}

static void free_object(struct object *object)
{
	switch (object->kind) {
	case OBJECT_STREAM:
		stream_free((struct stream *)object);
		break;
	case OBJECT_EVENT:
		event_forget((struct event *)object);
		break;
	case OBJECT_MODULE:
		module_free((struct module *)object);
		break;
	case OBJECT_ARRAY:
		array_free((struct array *)object);
		break;
	case OBJECT_MIPMAP:
		mipmap_free((struct mipmap *)object);
		break;
	default:
		object_free(object);
	}
}

/* Work still queued is abandoned by nobody waiting for it; its time is spent. */
static void take_down(struct context *context)
{
	while (context->objects)
		free_object(context->objects);
	heap_refund(context->heap, context->limits_charged);
	context->limits_charged = 0;
	heap_destroy(context->heap);
	free(context->heap);
	context->alive = false;
	if (!--context->device->contexts) {
		pools_empty(context->device);
		libraries_leave(context->device);
	}
	sim_context_end(context->device->number, driver.slot);
}

static CUresult bring_up(struct context *context)
{
	static uint64_t ids;
	struct device *device = context->device;
	TRY(device_pools(device));
	context->heap = calloc(1, sizeof(*context->heap));
	if (!context->heap || sim_context_begin(device->number, driver.slot)) {
		free(context->heap);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	context->heap->device = device;
	context->heap->context = context;
	memcpy(context->limits, default_limits, sizeof(context->limits));
	context->id = ++ids;
	context->alive = true;
	device->contexts++;
	context->null_stream = stream_new(context, 0, 0);
	context->thread_stream = stream_new(context, 0, 0);
	if (!context->null_stream || !context->thread_stream) {
		take_down(context);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	context->null_stream->legacy = true;
	return CUDA_SUCCESS;
}

static void push(struct context *context)
{
	stack.entries[stack.depth++] =
		(struct entry){context, context ? context->object.generation : 0};
}

/* ---- primary contexts ---- */

API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice ordinal)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (!context)
		return CUDA_ERROR_INVALID_VALUE;
	if (!device->primary) {
		device->primary = object_new(OBJECT_CONTEXT, NULL);
		if (!device->primary)
			return CUDA_ERROR_OUT_OF_MEMORY;
		device->primary->device = device;
		device->primary->primary = true;
	}
	if (!device->primary->alive) {
		device->primary->flags = device->primary_flags;
		TRY(bring_up(device->primary));
	}
	device->retained++;
	*context = handle_of(device->primary);
	return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice ordinal)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (!device->retained)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!--device->retained && device->primary->alive)
		take_down(device->primary);
	return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease(CUdevice ordinal)
{
	return cuDevicePrimaryCtxRelease_v2(ordinal);
}

/* Ends the context whatever holds it; retain counts stay. */
API cuDevicePrimaryCtxReset_v2(CUdevice ordinal)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (device->primary && device->primary->alive)
		take_down(device->primary);
	device->retained = 0;
	return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxReset(CUdevice ordinal)
{
	return cuDevicePrimaryCtxReset_v2(ordinal);
}

API cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned int *flags, int *active)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (!flags || !active)
		return CUDA_ERROR_INVALID_VALUE;
	*active = device->primary && device->primary->alive;
	*flags = device->primary_flags;
	return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned int flags)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	if (flags & ~(unsigned)CU_CTX_FLAGS_MASK)
		return CUDA_ERROR_INVALID_VALUE;
	device->primary_flags = flags;
	if (device->primary && device->primary->alive)
		device->primary->flags = flags;
	return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxSetFlags(CUdevice ordinal, unsigned int flags)
{
	return cuDevicePrimaryCtxSetFlags_v2(ordinal, flags);
}

/* ---- created contexts ---- */

static CUresult create(CUcontext *handle, unsigned flags, CUdevice ordinal, unsigned version)
{
	struct device *device;
	ENTER();
	if (!handle || flags & ~(unsigned)CU_CTX_FLAGS_MASK)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(device_of(ordinal, &device));
	if (stack.depth == STACK)
		return CUDA_ERROR_OUT_OF_MEMORY;
	struct context *context = object_new(OBJECT_CONTEXT, NULL);
	if (!context)
		return CUDA_ERROR_OUT_OF_MEMORY;
	context->device = device;
	context->flags = flags;
	context->version = version;
	context->references = 1;
	CUresult result = bring_up(context);
	if (result) {
		object_free(context);
		return result;
	}
	push(context);
	*handle = handle_of(context);
	return CUDA_SUCCESS;
}

API cuCtxCreate(CUcontext *context, unsigned int flags, CUdevice device)
{
	return create(context, flags, device, 3010);
}

API cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device)
{
	return create(context, flags, device, 3020);
}

/* Restricting a context to some multiprocessors is a feature of MPS. */
API cuCtxCreate_v3(CUcontext *context, CUexecAffinityParam *affinity, int count, unsigned int flags,
		   CUdevice device)
{
	CHECK_READY();
	if (affinity || count)
		return CUDA_ERROR_NOT_SUPPORTED;
	return create(context, flags, device, 3020);
}

API cuCtxCreate_v4(CUcontext *context, CUctxCreateParams *parameters, unsigned int flags,
		   CUdevice device)
{
	CHECK_READY();
	if (parameters && (parameters->execAffinityParams || parameters->cigParams))
		return CUDA_ERROR_NOT_SUPPORTED;
	return create(context, flags, device, 3020);
}

static CUresult destroy(struct context *context)
{
	if (context->primary)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (stack.depth && stack.entries[stack.depth - 1].context == context)
		stack.depth--;
	take_down(context);
	object_free(context);
	return CUDA_SUCCESS;
}

API cuCtxDestroy_v2(CUcontext handle)
{
	struct context *context;
	ENTER();
	TRY(context_of(handle, &context));
	return destroy(context);
}

API cuCtxDestroy(CUcontext handle)
{
	return cuCtxDestroy_v2(handle);
}

API cuCtxAttach(CUcontext *handle, unsigned int flags)
{
	ENTER();
	if (!handle || flags)
		return CUDA_ERROR_INVALID_VALUE;
	CURRENT(context);
	context->references++;
	*handle = handle_of(context);
	return CUDA_SUCCESS;
}

API cuCtxDetach(CUcontext handle)
{
	struct context *context;
	ENTER();
	TRY(context_of(handle, &context));
	if (context->primary || --context->references > 0)
		return CUDA_SUCCESS;
	return destroy(context);
}

/* ---- what is current ---- */

API cuCtxPushCurrent_v2(CUcontext handle)
{
	struct context *context;
	ENTER();
	TRY(context_of(handle, &context));
	if (stack.depth == STACK)
		return CUDA_ERROR_OUT_OF_MEMORY;
	push(context);
	return CUDA_SUCCESS;
}

API cuCtxPushCurrent(CUcontext handle)
{
	return cuCtxPushCurrent_v2(handle);
}

API cuCtxPopCurrent_v2(CUcontext *handle)
{
	ENTER();
	if (!stack.depth || !stack.entries[stack.depth - 1].context)
		return CUDA_ERROR_INVALID_CONTEXT;
	struct context *top = stack.entries[--stack.depth].context;
	if (handle)
		*handle = handle_of(top);
	return CUDA_SUCCESS;
}

API cuCtxPopCurrent(CUcontext *handle)
{
	return cuCtxPopCurrent_v2(handle);
}

API cuCtxSetCurrent(CUcontext handle)
{
	struct context *context = NULL;
	ENTER();
	if (handle)
		TRY(context_of(handle, &context));
	if (stack.depth)
		stack.depth--;
	if (context)
		push(context);
	return CUDA_SUCCESS;
}

API cuCtxGetCurrent(CUcontext *handle)
{
	CHECK_READY();
	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	*handle = stack.depth ? handle_of(stack.entries[stack.depth - 1].context) : NULL;
	return CUDA_SUCCESS;
}
