/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams: handles, order and back-pressure.
 *
 * All work of a process on a device is one sequence in the machine, so streams
 * need no order among themselves; a stream only remembers its newest target.
 * Its queue holds a bounded number of pending operations: the next one blocks
 * its caller, as a real driver's does, until the oldest is done.
 *
 * The stream "per thread" is one to a context here, not one to a thread.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_driver.h"

#define DEFAULT_DEPTH 1024
#define LEAST_URGENT 0
#define MOST_URGENT (-5)

static uint32_t depth(void)
{
	uint32_t knob = driver.machine->knobs.queue_depth;
	return knob ? knob : DEFAULT_DEPTH;
}

struct stream *stream_new(struct context *context, unsigned flags, int priority)
{
	static uint64_t ids;
	struct stream *stream = object_new(OBJECT_STREAM, context);
	uint64_t *queue = malloc(depth() * sizeof(*queue));
	if (!stream || !queue) {
		free(queue);
		if (stream)
			object_free(stream);
		return NULL;
	}
	stream->flags = flags;
	stream->priority = priority;
	stream->id = ++ids;
	stream->queue = queue;
	return stream;
}

void stream_free(struct stream *stream)
{
	capture_drop(stream);
	later_drop(stream);
	free(stream->queue);
	object_free(stream);
}

CUresult stream_of(CUstream handle, bool per_thread, struct stream **stream)
{
	uintptr_t value = (uintptr_t)handle;
	struct context *context;
	TRY(context_current(&context));
	if (value <= CU_STREAM_PER_THREAD_VALUE) {
		if (!value)
			value = per_thread ? CU_STREAM_PER_THREAD_VALUE : CU_STREAM_LEGACY_VALUE;
		*stream = value == CU_STREAM_LEGACY_VALUE ? context->null_stream
							  : context->thread_stream;
		return CUDA_SUCCESS;
	}
	*stream = object_of(handle, OBJECT_STREAM);
	return *stream && !(*stream)->closing ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

void note_served(struct device *device, uint64_t served)
{
	device->served = served;
	if (device->pending_count && device->pending[0]->target <= served)
		events_reached(device);
}

void wait_for(struct device *device, uint64_t target)
{
	if (driver.machine->knobs.null_mode)
		return;
	if (target > device->served) {
		pthread_mutex_unlock(&driver.lock);
		sim_wait(device->number, driver.slot, target);
		pthread_mutex_lock(&driver.lock);
	}
	note_served(device, sim_served(device->number, driver.slot));
}

static void forget_done(struct stream *stream, uint64_t served)
{
	uint32_t size = depth();
	while (stream->count && stream->queue[stream->head] <= served) {
		stream->head = (stream->head + 1) % size;
		stream->count--;
	}
}

/* Wait for room; the stream may be destroyed meanwhile. */
static CUresult make_room(struct stream *stream)
{
	struct device *device = stream_device(stream);
	uint32_t generation = stream->object.generation;
	for (;;) {
		forget_done(stream, device->served);
		if (stream->count < depth())
			return CUDA_SUCCESS;
		wait_for(device, stream->queue[stream->head]);
		if (stream->object.kind != OBJECT_STREAM || stream->object.generation != generation)
			return CUDA_ERROR_INVALID_HANDLE;
	}
}

CUresult stream_work(struct stream *stream, uint64_t ns, uint32_t launches)
{
	struct context *context = stream->object.context;
	struct device *device = context->device;
	uint64_t served;
	if (driver.machine->knobs.null_mode)
		return CUDA_SUCCESS;
	if (stream->count == depth())
		TRY(make_room(stream));
	stream->target = sim_enqueue(device->number, driver.slot, ns, launches, &served);
	note_served(device, served);
	stream->queue[(stream->head + stream->count++) % depth()] = stream->target;
	if (!(stream->flags & CU_STREAM_NON_BLOCKING))
		context->blocking_target = stream->target;
	return CUDA_SUCCESS;
}

/* The null stream ends when the streams do that wait for it. */
uint64_t stream_target(const struct stream *stream)
{
	return stream->legacy ? stream->object.context->blocking_target : stream->target;
}

CUresult stream_finish(struct stream *stream)
{
	struct device *device = stream_device(stream);
	uint32_t generation = stream->object.generation;
	TRY(capture_forbids_sync(stream));
	while (stream_held(stream) && callback_wait())
		if (stream->object.generation != generation)
			return CUDA_ERROR_INVALID_HANDLE;
	wait_for(device, stream_target(stream));
	pools_settle(device);
	return CUDA_SUCCESS;
}

/* ---- public ---- */

static CUresult create(CUstream *handle, unsigned flags, int priority)
{
	ENTER();
	CURRENT(context);
	if (!handle || flags & ~(unsigned)CU_STREAM_NON_BLOCKING)
		return CUDA_ERROR_INVALID_VALUE;
	if (priority > LEAST_URGENT)
		priority = LEAST_URGENT;
	if (priority < MOST_URGENT)
		priority = MOST_URGENT;
	struct stream *stream = stream_new(context, flags, priority);
	if (!stream)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*handle = (CUstream)stream;
	return CUDA_SUCCESS;
}

API cuStreamCreate(CUstream *stream, unsigned int flags)
{
	return create(stream, flags, 0);
}

API cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
	return create(stream, flags, priority);
}

/* What is queued is still done. */
API cuStreamDestroy_v2(CUstream handle)
{
	ENTER();
	struct stream *stream = object_of(handle, OBJECT_STREAM);
	if (!stream || stream->closing || stream == stream->object.context->null_stream ||
	    stream == stream->object.context->thread_stream)
		return CUDA_ERROR_INVALID_HANDLE;
	if (stream_held(stream))
		stream->closing = true;
	else
		stream_free(stream);
	return CUDA_SUCCESS;
}

API cuStreamDestroy(CUstream handle)
{
	return cuStreamDestroy_v2(handle);
}

static CUresult query(CUstream handle, bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	TRY(capture_forbids_sync(stream));
	if (driver.machine->knobs.null_mode)
		return stream_held(stream) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
	struct device *device = stream_device(stream);
	note_served(device, sim_served(device->number, driver.slot));
	if (stream_held(stream) || stream_target(stream) > device->served)
		return CUDA_ERROR_NOT_READY;
	return CUDA_SUCCESS;
}

static CUresult synchronize(CUstream handle, bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	return stream_finish(stream);
}

static CUresult get_context(CUstream handle, CUcontext *context, bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (!context)
		return CUDA_ERROR_INVALID_VALUE;
	*context = (CUcontext)stream->object.context;
	return CUDA_SUCCESS;
}

/* No context here is a green one. */
static CUresult get_contexts(CUstream handle, CUcontext *context, void **green, bool per_thread)
{
	if (green)
		*green = NULL;
	return get_context(handle, context, per_thread);
}

enum property { PRIORITY, FLAGS, ID, DEVICE };

static CUresult get_property(CUstream handle, enum property property, void *value, bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (!value)
		return CUDA_ERROR_INVALID_VALUE;
	switch (property) {
	case PRIORITY:
		*(int *)value = stream->priority;
		break;
	case FLAGS:
		*(unsigned *)value = stream->flags;
		break;
	case ID:
		*(unsigned long long *)value = stream->id;
		break;
	case DEVICE:
		*(CUdevice *)value = stream_device(stream)->ordinal;
		break;
	}
	return CUDA_SUCCESS;
}

static CUresult attach(CUstream handle, CUdeviceptr pointer, size_t length, bool per_thread)
{
	struct allocation found;
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (!find_allocation((uintptr_t)pointer, &found) || found.range->kind != RANGE_MANAGED ||
	    length > found.size)
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_SUCCESS;
}

TWINS(cuStreamQuery, ptsz, (CUstream stream), query(stream, per_thread))
TWINS(cuStreamSynchronize, ptsz, (CUstream stream), synchronize(stream, per_thread))
TWINS(cuStreamGetCtx, ptsz, (CUstream stream, CUcontext *context),
      get_context(stream, context, per_thread))
TWINS(cuStreamGetCtx_v2, ptsz, (CUstream stream, CUcontext *context, void **green),
      get_contexts(stream, context, green, per_thread))
TWINS(cuStreamGetPriority, ptsz, (CUstream stream, int *priority),
      get_property(stream, PRIORITY, priority, per_thread))
TWINS(cuStreamGetFlags, ptsz, (CUstream stream, unsigned int *flags),
      get_property(stream, FLAGS, flags, per_thread))
TWINS(cuStreamGetId, ptsz, (CUstream stream, unsigned long long *id),
      get_property(stream, ID, id, per_thread))
TWINS(cuStreamGetDevice, ptsz, (CUstream stream, CUdevice *device),
      get_property(stream, DEVICE, device, per_thread))
TWINS(cuStreamAttachMemAsync, ptsz,
      (CUstream stream, CUdeviceptr pointer, size_t length, unsigned int flags),
      ((void)flags, attach(stream, pointer, length, per_thread)))
