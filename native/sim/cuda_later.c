/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work behind a host function.
 *
 * How long a host function takes, nobody knows, not even the device.  So what is
 * put on its stream meanwhile is kept here, with its arguments, and goes on when
 * the function has returned: its bytes move then, its device time begins then,
 * and an event in it is not reached before.  The caller does not wait, except
 * when as much is kept as a stream's queue would hold.
 */
#include <stdlib.h>

#include "cuda_work.h"

struct later {
	struct later *next;
	bool is_callback;
	uint64_t serial; /* of the event that is to be recorded */
	struct work work;
	struct callback callback;
};

static CUresult keep(struct stream *stream, const struct later *kept)
{
	uint32_t generation = stream->object.generation;
	uint32_t room = driver.machine->knobs.queue_depth;
	struct later *later = malloc(sizeof(*later));
	if (!later)
		return CUDA_ERROR_OUT_OF_MEMORY;
	while (room && stream->later_count >= room && callback_wait())
		if (stream->object.generation != generation || stream->closing) {
			free(later);
			return CUDA_ERROR_INVALID_HANDLE;
		}
	*later = *kept;
	later->next = NULL;
	if (!stream->later)
		stream->later_last = &stream->later;
	*stream->later_last = later;
	stream->later_last = &later->next;
	stream->later_count++;
	return CUDA_SUCCESS;
}

CUresult later_work(struct stream *stream, const struct work *work)
{
	struct later later = {.work = *work};
	if (work->type == CU_GRAPH_NODE_TYPE_EVENT_RECORD) {
		if (!object_of(work->event, OBJECT_EVENT))
			return CUDA_ERROR_INVALID_HANDLE;
		event_hold(work->event, stream);
		later.serial = work->event->serial;
	}
	return keep(stream, &later);
}

CUresult later_callback(struct stream *stream, const struct callback *callback)
{
	return keep(stream, &(struct later){.is_callback = true, .callback = *callback});
}

/* An event that was recorded again since, or destroyed, is left alone. */
static bool is_outdated(const struct later *later)
{
	const struct event *event = later->work.event;
	return !later->is_callback && later->work.type == CU_GRAPH_NODE_TYPE_EVENT_RECORD &&
	       (!object_of(event, OBJECT_EVENT) || event->serial != later->serial);
}

void later_continue(struct stream *stream)
{
	uint32_t generation = stream->object.generation;
	while (stream->later && !stream->busy_host) {
		struct later *first = stream->later;
		stream->later = first->next;
		stream->later_count--;
		if (first->is_callback)
			callback_start(stream, &first->callback);
		else if (!is_outdated(first))
			work_do(&first->work, stream);
		free(first);
		if (stream->object.generation != generation)
			return; /* its context ended while it waited for room */
	}
	if (stream->closing && !stream_held(stream))
		stream_free(stream);
}

void later_drop(struct stream *stream)
{
	while (stream->later) {
		struct later *first = stream->later;
		stream->later = first->next;
		free(first);
	}
	stream->later_count = 0;
}
