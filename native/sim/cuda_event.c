/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events: a place in a stream, and the time at which the device passed it.
 *
 * The time is the simulated completion time, not that of any call: it is read
 * from the machine's record of service once the target has been passed.  Events
 * wait for that in one list for each device, in the order of their targets,
 * because the record is read forwards only.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_work.h"

static void pending_insert(struct device *device, struct event *event)
{
	if (device->pending_count == device->pending_room) {
		int room = device->pending_room ? device->pending_room * 2 : 64;
		struct event **grown = realloc(device->pending, (size_t)room * sizeof(*grown));
		if (!grown) { /* no stamp to the nanosecond then */
			event->reached = true;
			event->stamp = sim_now();
			return;
		}
		device->pending = grown;
		device->pending_room = room;
	}
	int place = device->pending_count++;
	while (place && device->pending[place - 1]->target > event->target) {
		device->pending[place] = device->pending[place - 1];
		place--;
	}
	device->pending[place] = event;
}

static void pending_remove(struct event *event)
{
	struct device *device = event->device;
	if (!event->recorded || event->reached || event->capture)
		return;
	for (int i = 0; i < device->pending_count; i++) {
		if (device->pending[i] != event)
			continue;
		memmove(&device->pending[i], &device->pending[i + 1],
			(size_t)(--device->pending_count - i) * sizeof(*device->pending));
		return;
	}
}

void events_reached(struct device *device)
{
	int done = 0;
	while (done < device->pending_count && device->pending[done]->target <= device->served) {
		struct event *event = device->pending[done++];
		event->stamp =
			sim_reached(device->number, driver.slot, event->target, &device->cursor);
		event->reached = true;
	}
	device->pending_count -= done;
	memmove(device->pending, device->pending + done,
		(size_t)device->pending_count * sizeof(*device->pending));
}

static void clear(struct event *event)
{
	pending_remove(event);
	free(event->tips);
	event->tips = NULL;
	event->tip_count = 0;
	event->capture = 0;
	event->recorded = false;
	event->reached = false;
	event->held_on = NULL;
	event->serial++;
}

void event_forget(struct event *event)
{
	clear(event);
	event_unshare(event);
	object_free(event);
}

CUresult event_of(CUevent handle, struct event **event)
{
	*event = object_of(handle, OBJECT_EVENT);
	return *event ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult record_captured(struct event *event, struct stream *stream)
{
	size_t size = (size_t)stream->tip_count * sizeof(*stream->tips);
	struct node **tips = malloc(size + 1);
	if (!tips)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (size)
		memcpy(tips, stream->tips, size);
	clear(event);
	event->tips = tips;
	event->tip_count = stream->tip_count;
	event->capture = capture_number(stream->capture);
	event->recorded = true;
	return CUDA_SUCCESS;
}

/* Recorded, but nobody knows yet where: not reached before that is known. */
void event_hold(struct event *event, struct stream *stream)
{
	clear(event);
	event->device = stream_device(stream);
	event->recorded = true;
	event->target = UINT64_MAX;
	event->held_on = stream;
}

CUresult event_record(struct event *event, struct stream *stream)
{
	struct work work = {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD, .event = event};
	if (event->object.context->device != stream_device(stream))
		return CUDA_ERROR_INVALID_HANDLE;
	if (stream->capture)
		return record_captured(event, stream);
	return stream_held(stream) ? later_work(stream, &work) : event_record_now(event, stream);
}

CUresult event_record_now(struct event *event, struct stream *stream)
{
	struct device *device = stream_device(stream);
	uint64_t served, target = stream_target(stream);
	clear(event);
	event->device = device;
	event->recorded = true;
	event->target = target;
	event_tell(event);
	if (driver.machine->knobs.null_mode) {
		served = target;
	} else {
		sim_enqueue(device->number, driver.slot, 0, 0, &served);
		note_served(device, served);
	}
	if (target > served) {
		pending_insert(device, event);
		return CUDA_SUCCESS;
	}
	event->reached = true;
	event->stamp = sim_now();
	return CUDA_SUCCESS;
}

/* Until it is known where the event is. */
static CUresult wait_held(struct event *event)
{
	uint32_t generation = event->object.generation;
	while (event->held_on && callback_wait())
		if (event->object.generation != generation)
			return CUDA_ERROR_INVALID_HANDLE;
	return CUDA_SUCCESS;
}

/* Within a device the order is kept anyway.  A wait for another device's event
 * holds the caller, which keeps the order too, if not the overlap. */
CUresult event_wait(struct event *event, struct stream *stream)
{
	if (stream->capture || event->capture)
		return capture_join(stream, event);
	if (event->held_on && event->held_on != stream)
		TRY(wait_held(event));
	if (event->recorded && !event->reached && event->device != stream_device(stream))
		wait_for(event->device, event->target);
	event_wait_remote(event);
	return CUDA_SUCCESS;
}

/* ---- public ---- */

API cuEventCreate(CUevent *handle, unsigned int flags)
{
	ENTER();
	CURRENT(context);
	if (!handle || flags > 7)
		return CUDA_ERROR_INVALID_VALUE;
	if (flags & CU_EVENT_INTERPROCESS && !(flags & CU_EVENT_DISABLE_TIMING))
		return CUDA_ERROR_INVALID_VALUE;
	struct event *event = object_new(OBJECT_EVENT, context);
	if (!event)
		return CUDA_ERROR_OUT_OF_MEMORY;
	event->flags = flags;
	*handle = (CUevent)event;
	return CUDA_SUCCESS;
}

API cuEventDestroy_v2(CUevent handle)
{
	struct event *event;
	ENTER();
	TRY(event_of(handle, &event));
	event_forget(event);
	return CUDA_SUCCESS;
}

API cuEventDestroy(CUevent handle)
{
	return cuEventDestroy_v2(handle);
}

static CUresult record(CUevent handle, CUstream on, unsigned flags, bool per_thread)
{
	struct stream *stream;
	struct event *event;
	ENTER();
	TRY(event_of(handle, &event));
	TRY(stream_of(on, per_thread, &stream));
	if (flags > 1)
		return CUDA_ERROR_INVALID_VALUE;
	return event_record(event, stream);
}

TWINS(cuEventRecord, ptsz, (CUevent event, CUstream stream), record(event, stream, 0, per_thread))
TWINS(cuEventRecordWithFlags, ptsz, (CUevent event, CUstream stream, unsigned int flags),
      record(event, stream, flags, per_thread))

static CUresult wait_event(CUstream on, CUevent handle, unsigned flags, bool per_thread)
{
	struct stream *stream;
	struct event *event;
	ENTER();
	TRY(stream_of(on, per_thread, &stream));
	TRY(event_of(handle, &event));
	if (flags > 1)
		return CUDA_ERROR_INVALID_VALUE;
	return event_wait(event, stream);
}

TWINS(cuStreamWaitEvent, ptsz, (CUstream stream, CUevent event, unsigned int flags),
      wait_event(stream, event, flags, per_thread))

/* Brings the event's state up to now. */
static CUresult look(CUevent handle, struct event **event)
{
	TRY(event_of(handle, event));
	if ((*event)->capture)
		return CUDA_ERROR_CAPTURED_EVENT;
	struct device *device = (*event)->device;
	if ((*event)->recorded && !(*event)->reached)
		note_served(device, sim_served(device->number, driver.slot));
	return CUDA_SUCCESS;
}

API cuEventQuery(CUevent handle)
{
	struct event *event;
	ENTER();
	UNSAFE();
	TRY(look(handle, &event));
	if (event_remote(event))
		return CUDA_ERROR_NOT_READY;
	return event->recorded && !event->reached ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

API cuEventSynchronize(CUevent handle)
{
	struct event *event;
	ENTER();
	UNSAFE();
	TRY(look(handle, &event));
	TRY(wait_held(event));
	event_wait_remote(event);
	if (event->recorded && !event->reached)
		wait_for(event->device, event->target);
	if (event->recorded)
		pools_settle(event->device);
	return CUDA_SUCCESS;
}

API cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
	struct event *from, *to;
	ENTER();
	if (!milliseconds)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(look(start, &from));
	TRY(look(end, &to));
	if (!from->recorded || !to->recorded || (from->flags | to->flags) & CU_EVENT_DISABLE_TIMING)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!from->reached || !to->reached)
		return CUDA_ERROR_NOT_READY;
	*milliseconds = (float)((double)((int64_t)(to->stamp - from->stamp)) / 1e6);
	return CUDA_SUCCESS;
}

API cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end)
{
	return cuEventElapsedTime(milliseconds, start, end);
}
